//! Rank 4, shell: the control plane. Everything that is not on the path of a write.
//!
//! One thread runs `tokio`: it reads the configuration, formats and opens copies, negotiates with NBD clients and peers,
//! sends heartbeats, and answers operators. When a socket is agreed it is handed to the volume's thread through
//! [`crate::dataplane::mailbox`], the only seam to the data plane. The room must never know a frame, a request or a
//! buffer, and nothing in it waits for a volume's thread without a bound.

pub(crate) mod accounts;
mod admission;
pub mod agent;
pub mod beat;
mod beat_path;
pub mod config;
pub mod control;
pub mod events;
mod exports;
pub mod failover;
mod handle;
mod handshake;
mod heartbeat;
mod hello_exchange;
pub mod identity;
pub mod init;
mod links;
pub(crate) mod lobby;
pub mod logs;
pub(crate) mod printable;
mod saved;
pub mod security;
mod serve;
pub mod services;
pub mod signature;
pub(crate) mod sockets;
mod start;
pub mod status;
pub(crate) mod stream;

use crate::condition::Mode;

pub use serve::serve;

/// What an acknowledgement means in a mode; printed at start and by `repblk config check`.
#[must_use]
pub fn promise(mode: Mode) -> &'static str {
    match mode {
        Mode::Sync => {
            "a write is acknowledged when both copies have written it, a flush when both are stable; if the peer is lost, \
             when this copy has"
        }
        Mode::SemiSync => {
            "a write is acknowledged when this copy has written it and the peer received it, a flush when both are stable; if \
             the peer is lost, when this copy has"
        }
        Mode::Async => {
            "a write is acknowledged when this copy has written it and the backlog is under its bound, a flush when this copy \
             is stable; if this node is lost, the peer may lack the backlog"
        }
    }
}
