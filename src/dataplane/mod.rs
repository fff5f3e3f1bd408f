//! Rank 4, shell: one thread per volume that owns its sockets and its disk, and drives the machine.
//!
//! The room turns what the kernel says into [`Input`](crate::volume::io::Input)s and [`Effect`](crate::volume::io::Effect)s
//! into system calls. It decides nothing about data: no role, no generation, no resync. It knows NBD and the frames of
//! the link only through their formats, and the daemon only through the [`mailbox`]: a socket comes in when its
//! negotiation is over. It never blocks on a device or a socket, except for what the page cache does at once.
//!
//! | file | noun |
//! |---|---|
//! | `thread`, `shell` | the thread and the order of its turns |
//! | `effects` | what the machine wants, done |
//! | `traffic` | clients and peers in a turn |
//! | `session`, `link` | one client, one peer |
//! | `asked` | what a client is still owed |
//! | `share` | what a client may hold |
//! | `read_queue` | reads that wait for memory |
//! | `line` | a socket, and the TLS over it |
//! | `receiver`, `outbox` | bytes in, bytes out |
//! | `pool`, `buddy` | payload memory |
//! | `open` | the disk before the volume runs |
//! | `engine`, `transfer`, `sync_queue` | the disk while it runs |
//! | `backend`, `ring`, `worker` | where its slow operations run |
//! | [`mailbox`], `newsroom` | the daemon |
//! | `sys` | system calls |
//!
//! # Memory
//!
//! Payloads live in one arena and are never copied on their way: a write is received in place, sent to the peers from
//! there, and written from there. What one kind of use holds never waits for the same kind of memory (see `pool`), so that a full
//! pool always drains; and what clients hold by not moving is bounded for all of them together (see `share`), so that none
//! waits for another.
//!
//! This is the only room with `unsafe`: system calls (`sys`), the arena (`pool`), and memory that the kernel uses while a
//! job runs (`backend`).
#![allow(unsafe_code)]

mod asked;
mod backend;
mod buddy;
mod effects;
mod engine;
#[cfg(test)]
mod engine_tests;
#[cfg(test)]
mod follow_tests;
mod idle;
#[cfg(test)]
mod idle_tests;
#[cfg(test)]
mod lease_tests;
mod line;
mod link;
#[cfg(test)]
mod link_tests;
pub mod mailbox;
mod newsroom;
mod open;
mod outbox;
mod pool;
mod read_queue;
mod receiver;
mod ring;
mod session;
mod share;
mod shell;
#[cfg(test)]
mod shell_tests;
mod sync_queue;
mod sys;
mod thread;
mod traffic;
mod transfer;
mod worker;

pub use backend::BackendChoice;
pub use line::Negotiated;
pub use mailbox::{Mailbox, PostError};
pub use open::{Disk, DiskConfig, MetadataPlace, OpenError};
pub use pool::PoolSizes;
pub use sys::{Process, broadcast_arp, interface, keep_memory_private, kill_group, now, peer_groups};
pub use thread::{SPIN_DEFAULT, ThreadParams, start};
