//! The table `[security]`: whether what nodes say to each other is encrypted and authenticated.
//!
//! It is, unless all of it stays on one host. Whoever wants it otherwise must say so.

use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;

use super::parse::{PATH, absolute};
use super::reader::{At, Document, Section};
use super::{NbdAddress, Node};
use crate::tls::DEFAULT_FOLDER;

/// How what nodes say to each other is protected.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Security {
    /// TLS on the data link, and sealed heartbeats; the keys are in this folder, the same on each node.
    Keys(PathBuf),
    /// Nothing is, since nothing leaves the host.
    Loopback,
    /// Nothing is, and the operator said so.
    Insecure,
}

impl Security {
    /// The folder of keys, if there is one.
    #[must_use]
    pub fn keys(&self) -> Option<&PathBuf> {
        match self {
            Self::Keys(folder) => Some(folder),
            Self::Loopback | Self::Insecure => None,
        }
    }

    /// The word for it in `status`.
    #[must_use]
    pub fn word(&self) -> &'static str {
        match self {
            Self::Keys(_) => "keys",
            Self::Loopback => "loopback",
            Self::Insecure => "insecure",
        }
    }

    /// What it means, for the start and for `config check`.
    #[must_use]
    pub fn meaning(&self) -> String {
        match self {
            Self::Keys(folder) => {
                format!("TLS between the nodes, and authenticated heartbeats, with the keys in {}", folder.display())
            }
            Self::Loopback => "nothing between the nodes is encrypted, since it does not leave this host".to_owned(),
            Self::Insecure => {
                "INSECURE: whoever reaches the networks of data links, heartbeats or NBD can read and change the data"
                    .to_owned()
            }
        }
    }
}

/// What NBD clients may and must do, as it is configured. Without keys the mode is `Off`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct NbdTls {
    /// Whether TLS is offered on TCP; none: clients of other hosts must speak it, those of this host may.
    pub mode: Option<NbdTlsMode>,
    /// Whether a client must show a certificate of the cluster; none: wherever it must speak TLS.
    pub certificates: Option<bool>,
}

/// Whether NBD clients speak TLS.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum NbdTlsMode {
    /// It is not offered.
    Off,
    /// They may.
    Allow,
    /// They must.
    Require,
}

impl NbdTlsMode {
    /// The word for it in the configuration and in `status`.
    #[must_use]
    pub fn word(self) -> &'static str {
        match self {
            Self::Off => "off",
            Self::Allow => "allow",
            Self::Require => "require",
        }
    }
}

/// What one listener demands of NBD clients.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct NbdRule {
    /// Whether they speak TLS.
    pub mode: NbdTlsMode,
    /// Who speaks it must show a certificate of the cluster.
    pub certificates: bool,
}

impl NbdTls {
    /// What a listener at this IP address demands; at a Unix socket there is none.
    #[must_use]
    pub fn rule(self, listener: Option<IpAddr>) -> NbdRule {
        let mode = match (listener, self.mode) {
            (None, Some(NbdTlsMode::Off)) => NbdTlsMode::Off,
            // What does not leave the host may be in the clear.
            (None, _) => NbdTlsMode::Allow,
            (Some(_), Some(mode)) => mode,
            (Some(address), None) if address.is_loopback() => NbdTlsMode::Allow,
            (Some(_), None) => NbdTlsMode::Require,
        };
        NbdRule { mode, certificates: mode == NbdTlsMode::Require && self.certificates.unwrap_or(true) }
    }

    /// What the listener at `address` demands.
    #[must_use]
    pub fn rule_at(self, address: &NbdAddress) -> NbdRule {
        self.rule(match address {
            NbdAddress::Tcp(address) => Some(address.ip()),
            NbdAddress::Unix(_) => None,
        })
    }

    /// What holds for clients of other hosts; none when no listener of `nodes` is reached by any.
    pub fn remote<'n>(self, nodes: impl IntoIterator<Item = &'n Node>) -> Option<NbdRule> {
        nodes.into_iter().flat_map(remote_listeners).next().map(|address| self.rule(Some(address.ip())))
    }
}

impl NbdRule {
    /// What it means for clients of other hosts.
    #[must_use]
    pub fn meaning(self) -> &'static str {
        match (self.mode, self.certificates) {
            (NbdTlsMode::Require, true) => {
                "clients of other hosts speak TLS and show a certificate of the cluster (`repblk cert issue NAME --client`)"
            }
            (NbdTlsMode::Require, false) => {
                "clients of other hosts speak TLS, and ANYBODY who reaches the port is one: nbd_client_certificates = false"
            }
            (NbdTlsMode::Allow, _) => {
                "clients of other hosts may speak TLS, and NOBODY IS KEPT OUT: nbd_tls = \"allow\" serves whoever reaches the port in \
                 the clear, too; \"require\" does not"
            }
            (NbdTlsMode::Off, _) => "clients of other hosts are served in the clear, whoever they are",
        }
    }

    /// Somebody without a certificate of the cluster gets in.
    #[must_use]
    pub fn is_open(self) -> bool {
        !self.certificates
    }
}

/// The NBD addresses of a node that other hosts may reach.
fn remote_listeners(node: &Node) -> impl Iterator<Item = SocketAddr> {
    node.nbd.iter().filter_map(|address| match address {
        NbdAddress::Tcp(address) => Some(*address).filter(|address| !address.ip().is_loopback()),
        NbdAddress::Unix(_) => None,
    })
}

/// Reads the table; `section` is none when there is none.
pub(super) fn security(section: Option<Section<'_>>) -> (Option<PathBuf>, Option<At<bool>>, Option<At<NbdTls>>) {
    let Some(mut section) = section else { return (None, None, None) };
    let keys = section.parsed("keys", PATH, absolute);
    let line = section.line;
    let insecure = section.switch("insecure", false);
    if let (Some(At { line, .. }), true) = (&keys, insecure) {
        section.problem(*line, "keys would do nothing beside insecure = true; take one of the two away");
    }
    let mode = section.parsed("nbd_tls", "it must be \"off\", \"allow\" or \"require\"", |text| {
        [NbdTlsMode::Off, NbdTlsMode::Allow, NbdTlsMode::Require].into_iter().find(|mode| mode.word() == text)
    });
    const CERTIFICATES: &str = "nbd_client_certificates";
    let certificates = section.has(CERTIFICATES).then(|| section.switch(CERTIFICATES, true));
    let nbd = NbdTls { mode: mode.as_ref().map(|at| at.value), certificates };
    if nbd.certificates == Some(true) && matches!(nbd.mode, Some(NbdTlsMode::Off | NbdTlsMode::Allow)) {
        section.problem(line, "nbd_client_certificates = true keeps nobody out unless nbd_tls = \"require\"");
    }
    section.finish();
    let nbd = At { value: nbd, line: mode.map_or(line, |at| at.line) };
    (keys.map(|at| at.value), Some(At { value: insecure, line }), Some(nbd))
}

/// What follows for these nodes.
pub(super) fn resolve(
    doc: &Document<'_>,
    (keys, insecure, nbd): (Option<PathBuf>, Option<At<bool>>, Option<At<NbdTls>>),
    nodes: &[At<Node>],
) -> (Security, NbdTls) {
    let addresses = |node: &Node| -> Vec<SocketAddr> {
        let agent = node.agent.as_slice();
        [&[node.data], node.heartbeat.as_slice(), agent].concat().into_iter().chain(remote_listeners(node)).collect()
    };
    let leaves_host = |address: &SocketAddr| !address.ip().is_loopback();
    let local = !nodes.iter().flat_map(|node| addresses(&node.value)).any(|address| leaves_host(&address));
    let security = match (keys, insecure) {
        (_, Some(At { value: true, line })) if local => {
            doc.problem(line, "[security]: insecure = true does nothing where all addresses of nodes are of this host");
            Security::Loopback
        }
        (_, Some(At { value: true, .. })) => Security::Insecure,
        (Some(keys), _) => Security::Keys(keys),
        (None, _) if local => Security::Loopback,
        (None, _) => Security::Keys(PathBuf::from(DEFAULT_FOLDER)),
    };
    let At { value: nbd, line } = nbd.unwrap_or(At { value: NbdTls::default(), line: 0 });
    if security.keys().is_none() {
        if matches!(nbd.mode, Some(NbdTlsMode::Allow | NbdTlsMode::Require)) || nbd.certificates == Some(true) {
            doc.problem(line, "[security]: nbd_tls needs keys; write keys = \"FOLDER\"");
        }
        return (security, NbdTls { mode: Some(NbdTlsMode::Off), certificates: None });
    }
    let exposed = |node: &Node| remote_listeners(node).map(|address| format!("tcp:{address}")).collect::<Vec<_>>();
    let exposed: Vec<String> = nodes.iter().flat_map(|node| exposed(&node.value)).collect();
    if nbd.mode == Some(NbdTlsMode::Off) && !exposed.is_empty() {
        let what = format!(
            "[security]: nbd_tls = \"off\" is for Unix sockets and loopback, and other hosts reach {}; take it away, since \"require\" is \
             the default there, write \"allow\" to serve clients without TLS too, or insecure = true to encrypt nothing at all",
            exposed.join(", ")
        );
        doc.problem(line, what);
    }
    (security, nbd)
}
