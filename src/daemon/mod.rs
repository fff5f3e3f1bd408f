//! Rank 4, shell: the control plane. Everything that is not on the path of a write.
//!
//! One thread runs `tokio`: it reads the configuration, formats and opens copies, negotiates with NBD clients and peers,
//! sends heartbeats, and answers operators. When a socket is agreed it is handed to the volume's thread through
//! [`crate::dataplane::mailbox`], the only seam to the data plane. The room must never know a frame, a request or a
//! buffer, and nothing in it waits for a volume's thread without a bound.

mod arbiter;
pub mod config;
pub mod control;
pub mod events;
mod exports;
mod handle;
mod heartbeat;
mod hello_exchange;
pub mod identity;
pub mod init;
mod links;
pub mod logs;
pub mod signature;
mod sockets;
pub mod status;
