//! The configuration: one TOML file, the same on every node.
//!
//! Every value is checked when the file is read, and a complaint says where it stands and what would be right. What
//! only the running system can tell (whether a device exists, whether a port is free) is not judged here.

mod allow;
mod arbiter;
mod check;
mod control;
mod limits;
mod parse;
mod reader;
mod security;
mod services;
mod suggest;

use std::fmt;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use crate::condition::Mode;
use crate::meta::superblock;

pub use super::admission::{AllowList, Prefix};
pub use arbiter::{AgentSpec, ArbiterKind, ArbiterSpec, EtcdSpec, EtcdTls, FenceSpec};
pub use control::{ControlSpec, Readers};
pub use limits::{CLIENTS_MAX, Limits};
pub use parse::is_name;
pub use reader::ConfigError;
pub use security::{NbdRule, NbdTls, NbdTlsMode, Security};
pub use services::{ServiceKind, ServiceSpec};

/// Where the configuration is looked for when no file is named.
pub const DEFAULT_PATH: &str = "/etc/repblk/repblk.toml";
/// Longest name of a cluster, node or volume, in bytes: what the metadata can hold.
pub const NAME_LEN_MAX: usize = superblock::NAME_LEN_MAX;
/// Most nodes of a cluster.
pub const NODES_MAX: usize = 4;
/// Most volumes of a cluster: their heartbeats share one datagram.
pub const VOLUMES_MAX: usize = 8;

/// A checked configuration.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Config {
    /// Name of the cluster; nodes of different clusters refuse each other.
    pub cluster: String,
    /// Time between two heartbeats on one path.
    pub heartbeat_interval: Duration,
    /// How what nodes say to each other is protected.
    pub security: Security,
    /// What NBD clients may and must do.
    pub nbd_tls: NbdTls,
    /// What anybody can cost others.
    pub limits: Limits,
    /// Who may use the control socket.
    pub control: ControlSpec,
    /// Who decides about failover.
    pub arbiter: ArbiterSpec,
    /// The nodes, in the order of the file.
    pub nodes: Vec<Node>,
    /// The volumes, in the order of the file.
    pub volumes: Vec<VolumeSpec>,
}

/// One node.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Node {
    /// Its name.
    pub name: String,
    /// Where it takes data links.
    pub data: SocketAddr,
    /// Its end of each heartbeat path; the n-th address of every node belongs to the n-th path.
    pub heartbeat: Vec<SocketAddr>,
    /// Its control socket.
    pub control: PathBuf,
    /// Where it takes NBD clients.
    pub nbd: Vec<NbdAddress>,
    /// Directory for blocks that are saved before a copy is given up.
    pub saved: PathBuf,
    /// Directory for what failover must not forget.
    pub state: PathBuf,
    /// Where its agent is asked about its daemon.
    pub agent: Option<SocketAddr>,
}

/// Where NBD clients are taken.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum NbdAddress {
    /// A Unix socket.
    Unix(PathBuf),
    /// A TCP address.
    Tcp(SocketAddr),
}

impl fmt::Display for NbdAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Unix(path) => write!(f, "unix:{}", path.display()),
            Self::Tcp(address) => write!(f, "tcp:{address}"),
        }
    }
}

/// One volume.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct VolumeSpec {
    /// Its name, which is also the name of its NBD export.
    pub name: String,
    /// When a write is acknowledged.
    pub mode: Mode,
    /// Silence of a peer after which it is dropped.
    pub peer_timeout: Duration,
    /// Time between two keep-alives on an idle link.
    pub ping_interval: Duration,
    /// `async`: most bytes acknowledged and not yet on the peer.
    pub backlog_bytes: u64,
    /// `async`: longest time that a write may be acknowledged and not yet on the peer.
    pub backlog_age: Duration,
    /// Most bytes a second that resync takes; none for no limit.
    pub resync_rate_max: Option<u64>,
    /// Bytes a second that resync gets even under load.
    pub resync_rate_min: u64,
    /// Extents of the activity log.
    pub activity_log_slots: u32,
    /// Bytes of payload buffers; a power of two: half for writes, a quarter for reads, a quarter for resync.
    pub pool_bytes: u64,
    /// Time that the volume's thread polls before it sleeps.
    pub spin: Duration,
    /// Open the device with `O_DIRECT`.
    pub direct: bool,
    /// A primary that ended without order becomes primary again when it restarts, if nobody else was promoted.
    pub resume_primary: bool,
    /// How the device is driven.
    pub engine: Engine,
    /// Who may have it over TCP.
    pub allow: AllowList,
    /// What is started on the primary, in this order.
    pub services: Vec<ServiceSpec>,
    /// The copies, in the order of the nodes.
    pub copies: Vec<CopySpec>,
}

/// How a volume's thread runs operations that would hold it up.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Engine {
    /// `io_uring`, or a helper thread where the kernel refuses it.
    #[default]
    Auto,
    /// A helper thread.
    Thread,
}

/// One copy of a volume.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CopySpec {
    /// The node that holds it.
    pub node: String,
    /// The block device or file.
    pub device: PathBuf,
    /// Where its metadata is.
    pub metadata: MetadataPlace,
}

/// Where a copy's metadata is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum MetadataPlace {
    /// At the end of the device.
    Internal,
    /// In a file or device of its own.
    External(PathBuf),
}

impl fmt::Display for MetadataPlace {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Internal => f.write_str("internal"),
            Self::External(path) => write!(f, "{}", path.display()),
        }
    }
}

impl Config {
    /// Reads and checks a file.
    ///
    /// # Errors
    /// [`ConfigError`], with every problem of the file.
    pub fn load(path: &Path) -> Result<Self, ConfigError> {
        let text = std::fs::read_to_string(path).map_err(|error| {
            let what =
                format!("cannot be read: {error}; name the configuration with --config, or create {DEFAULT_PATH}");
            ConfigError { file: path.to_path_buf(), problems: vec![(0, what)] }
        })?;
        Self::parse(&text, path)
    }

    /// Checks the text of a file; `file` is named in complaints.
    ///
    /// # Errors
    /// [`ConfigError`], with every problem of the text.
    pub fn parse(text: &str, file: &Path) -> Result<Self, ConfigError> {
        parse::config(text, file)
    }

    /// The node called `name`.
    #[must_use]
    pub fn node(&self, name: &str) -> Option<&Node> {
        self.nodes.iter().find(|node| node.name == name)
    }

    /// The node this process is: the one called `wanted`, or the one called like the host.
    ///
    /// # Errors
    /// A sentence that says which names there are.
    pub fn choose_node(&self, wanted: Option<&str>, host: &str) -> Result<&Node, String> {
        let names = self.nodes.iter().map(|node| node.name.as_str());
        match wanted {
            Some(name) => self.node(name).ok_or_else(|| {
                let hint =
                    suggest::nearest(name, names.clone()).map_or(String::new(), |n| format!(" (did you mean {n:?}?)"));
                format!(
                    "the configuration has no node {name:?}{hint}; it has: {}.",
                    names.collect::<Vec<_>>().join(", ")
                )
            }),
            None => self.node(host).or_else(|| self.node(host.split('.').next().unwrap_or(host))).ok_or_else(|| {
                format!(
                    "the configuration has no node called like this host ({host:?}); say which node this is with \
                     --node NAME; it has: {}",
                    names.collect::<Vec<_>>().join(", ")
                )
            }),
        }
    }

    /// The volumes of which `node` holds a copy.
    pub fn volumes_of<'a>(&'a self, node: &'a str) -> impl Iterator<Item = (&'a VolumeSpec, &'a CopySpec)> {
        self.volumes.iter().filter_map(move |volume| volume.copy_on(node).map(|copy| (volume, copy)))
    }
}

impl VolumeSpec {
    /// The copy on `node`, if it has one.
    #[must_use]
    pub fn copy_on(&self, node: &str) -> Option<&CopySpec> {
        self.copies.iter().find(|copy| copy.node == node)
    }

    /// The names of the other nodes that hold a copy, in the order of the file.
    pub fn peers_of<'a>(&'a self, node: &'a str) -> impl Iterator<Item = &'a str> {
        self.copies.iter().map(|copy| copy.node.as_str()).filter(move |&name| name != node)
    }
}

#[cfg(test)]
mod tests;
