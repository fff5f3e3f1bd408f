//! Starting a volume's thread.

use std::io;
use std::time::Duration;

use tokio::sync::mpsc::Sender;

use super::idle::IdleWatch;
use super::mailbox::{Mailbox, News, mailbox};
use super::newsroom::Newsroom;
use super::open::Disk;
use super::pool::{Pool, PoolSizes};
use super::shell::{Machine, Shell};
use crate::volume::Volume;

/// Polling the network for this long before sleeping gains the most for its cost; see `docs/performance.md`.
pub const SPIN_DEFAULT: Duration = Duration::from_micros(100);

/// What a volume's thread is made of.
#[derive(Debug)]
pub struct ThreadParams {
    /// Name of the volume; the thread bears it.
    pub name: String,
    /// The machine, over what the disk's metadata holds.
    pub volume: Volume,
    /// The disk, open and locked.
    pub disk: Disk,
    /// Length of the volume in bytes, as its superblock has it; at most the disk's [`Disk::data_len`].
    pub volume_len: u64,
    /// Memory for payloads.
    pub pool: PoolSizes,
    /// How long to poll the network after traffic before sleeping; zero: not at all.
    pub spin: Duration,
    /// A client that asks for nothing for so long is disconnected; none: never.
    pub client_idle: Option<Duration>,
}

/// Starts the thread. It ends by [`Letter::Stop`](super::mailbox::Letter::Stop), or with a reason in
/// [`News::Stopped`], which is the last news in any case.
///
/// # Errors
/// When memory, a descriptor or the thread cannot be had.
pub fn start(params: ThreadParams, news: Sender<News>) -> io::Result<Mailbox> {
    let ThreadParams { name, volume, disk, volume_len, pool, spin, client_idle } = params;
    assert!(volume_len <= disk.data_len(), "the daemon compares the superblock with the device");
    // On a single processor whoever is waited for can only run when this thread does not.
    let alone = std::thread::available_parallelism().is_ok_and(|processors| processors.get() == 1);
    let spin = if alone { Duration::ZERO } else { spin };
    let (mailbox, mut shell) = prepare(volume, disk, volume_len, pool, spin, news)?;
    shell.idle = IdleWatch::new(client_idle);
    let thread = std::thread::Builder::new().name(name).spawn(move || drop(shell.run()))?;
    mailbox.attend(thread);
    Ok(mailbox)
}

/// Everything but the thread itself.
pub(super) fn prepare<M: Machine>(
    machine: M,
    disk: Disk,
    volume_len: u64,
    sizes: PoolSizes,
    spin: Duration,
    news: Sender<News>,
) -> io::Result<(Mailbox, Shell<M>)> {
    let (mailbox, letters) = mailbox()?;
    let (engine, pool) = (disk.into_engine()?, Pool::new(sizes)?);
    let shell = Shell::new(machine, engine, pool, letters, Newsroom::new(news), volume_len, spin)?;
    Ok((mailbox, shell))
}
