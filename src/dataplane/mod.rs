//! Rank 4, shell.
#![allow(unsafe_code)]

mod backend;
mod buddy;
mod effects;
mod engine;
mod link;
pub mod mailbox;
mod newsroom;
mod open;
mod outbox;
mod pool;
mod receiver;
mod ring;
mod session;
mod shell;
mod sync_queue;
mod sys;
mod thread;
mod traffic;
mod transfer;
mod worker;

pub use backend::BackendChoice;
pub use mailbox::{Mailbox, PostError};
pub use open::{Disk, DiskConfig, MetadataPlace, OpenError};
pub use pool::PoolSizes;
pub use sys::now;
pub use thread::{SPIN_DEFAULT, ThreadParams, start};
