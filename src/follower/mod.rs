//! Rank 4, shell: `repblk attach` on the database host.
//!
//! It serves a local NBD socket, on which a client sees one device that never goes away, and carries what it is asked to whichever
//! node is primary. What is sent again after a failover, and whether it may be, is decided in [`crate::attach`]; here are the
//! sockets, the bytes and the clock:
//!
//! ```text
//!   local client ── front ──► hub ──► upstream ──► primary
//!                              ▲ │
//!                  dialler ────┘ └──► memory (what was acknowledged under which standing)
//! ```
//! One thread. The room must never know a volume's inside: it is a client of the nodes as any other.

mod control;
mod device;
mod dial;
mod front;
mod hub;
mod memory;
mod netlink;
mod tunnel;
mod upstream;

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Instant;

use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::{mpsc, watch};
use tracing::info;

use self::control::Servers;
pub use self::control::{ServerStatus, Status, ask_status, detach};
use self::device::Device;
use self::dial::Dialler;
use self::front::Front;
use self::hub::{Event, Hub};
use self::memory::Memory;
use crate::attach::{Follower, OnDoubt, Setup};
use crate::daemon::config::NbdAddress;
use crate::daemon::sockets::UnixSocket;
use crate::tls::Keyring;

/// Where the sockets of `repblk attach` are unless it is said otherwise. Must not outlive a reboot of the host.
pub const DEFAULT_FOLDER: &str = "/run/repblk";

/// A node's address for NBD clients.
#[derive(Clone, Debug)]
pub struct Server {
    /// The node, which its certificate must name.
    pub node: String,
    /// Where.
    pub address: NbdAddress,
    /// With what this host proves who it is; none: in the clear.
    pub keys: Option<Arc<Keyring>>,
}

/// What to attach, and how.
#[derive(Clone, Debug)]
pub struct Options {
    /// The volume.
    pub volume: String,
    /// The cluster's name.
    pub cluster: String,
    /// Where its nodes take NBD clients.
    pub servers: Vec<Server>,
    /// Folder of the sockets and of the memory.
    pub folder: PathBuf,
    /// What to do when acknowledged data may be missing.
    pub on_doubt: OnDoubt,
    /// The device of the kernel's NBD client, by its number; none for a socket.
    pub device: Option<u32>,
}

/// The files of one attached volume.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Files {
    /// The socket of the device.
    pub nbd: PathBuf,
    /// The socket for `status` and `detach`.
    pub control: PathBuf,
    /// What was acknowledged under which standing.
    pub memory: PathBuf,
}

impl Files {
    /// The files of `volume` in `folder`.
    #[must_use]
    pub fn of(folder: &Path, volume: &str) -> Self {
        let file = |end: &str| folder.join(format!("attach-{volume}.{end}"));
        Self { nbd: file("nbd"), control: file("ctl"), memory: file("standing") }
    }
}

/// Attaches, and returns when it is told to end.
///
/// # Errors
/// A sentence when it cannot begin, or cannot go on.
pub fn attach(options: Options) -> Result<(), String> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(|error| format!("the runtime cannot be started: {error}"))?;
    runtime.block_on(run(options))
}

async fn run(options: Options) -> Result<(), String> {
    let files = Files::of(&options.folder, &options.volume);
    let control = UnixSocket::bind(&files.control, 0o600, "commands to `repblk attach`")?;
    let memory = Memory::new(files.memory);
    let (events, inbox) = mpsc::channel::<Event>(64);
    let (search, searching) = watch::channel(dial::Search::Rest);
    for server in &options.servers {
        let dialler = Dialler::new(server.clone(), &options.volume, searching.clone(), events.clone());
        tokio::spawn(dialler.keep_dialling());
    }
    let keys = options.servers.iter().find_map(|server| server.keys.clone());
    if let Some(keys) = keys.clone() {
        info!(volume = options.volume, "TLS to the nodes, as {} {}", keys.own().kind.title(), keys.own().name);
        tokio::spawn(async move { keys.keep_warning().await });
    }
    tokio::spawn(control::keep_answering(control, events.clone()));
    let addresses: Vec<String> = options.servers.iter().map(|server| server.address.to_string()).collect();
    info!(volume = options.volume, servers = addresses.join(", "), "repblk attach started");
    let servers = Servers::new(addresses.into_iter(), keys);
    let mut term = signal(SignalKind::terminate()).map_err(|error| error.to_string())?;
    let mut interrupt = signal(SignalKind::interrupt()).map_err(|error| error.to_string())?;
    let work = async {
        if let Some(index) = options.device {
            let what = (options.volume, options.cluster, options.on_doubt);
            return Device::new(what, index, memory, search, servers)?.run(inbox).await;
        }
        let remembered = memory.load()?;
        let (size_told, size_news) = watch::channel(remembered.as_ref().map(|(_, size)| *size));
        let setup = Setup { cluster: options.cluster, on_doubt: options.on_doubt, remembered };
        let mut effects = Vec::new();
        let follower = Follower::new(setup, &mut effects);
        let front = Arc::new(Front::new(&options.volume, size_news, events.clone()));
        tokio::spawn(front.keep_serving(files.nbd));
        let hub = Hub::new(options.volume, follower, memory, search, size_told, servers);
        hub.run(effects, events, inbox).await
    };
    tokio::select! {
        ended = work => ended,
        _ = term.recv() => Ok(()),
        _ = interrupt.recv() => Ok(()),
    }
}

async fn sleep_until(deadline: Option<Instant>) {
    match deadline {
        Some(deadline) => tokio::time::sleep_until(deadline.into()).await,
        None => std::future::pending().await,
    }
}

/// What the log says when acknowledged data may be missing.
fn doubt_sentence(volume: &str, why: &str) -> String {
    format!(
        "acknowledged data may be missing: {why}. Nothing is sent there. Promote the node that has the data; or give up what may be \
         missing: stop what uses the device, `repblk detach {volume}`, and attach again"
    )
}
