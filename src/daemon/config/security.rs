//! The table `[security]`: whether what nodes say to each other is encrypted and authenticated.
//!
//! It is, unless all of it stays on one host. Whoever wants it otherwise must say so.

use std::net::SocketAddr;
use std::path::PathBuf;

use super::Node;
use super::parse::{PATH, absolute};
use super::reader::{At, Document, Section};
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
                "INSECURE: whoever reaches the networks of data links and heartbeats can read and change the data"
                    .to_owned()
            }
        }
    }
}

/// What NBD clients may and must do on TCP. On a Unix socket they may always speak in the clear.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct NbdTls {
    /// Whether TLS is offered; none: it is where there are keys.
    pub mode: Option<NbdTlsMode>,
    /// A client must show a certificate of the cluster.
    pub certificates: bool,
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

/// Reads the table; `section` is none when there is none.
pub(super) fn security(section: Option<Section<'_>>) -> (Option<PathBuf>, Option<At<bool>>, Option<At<NbdTls>>) {
    let Some(mut section) = section else { return (None, None, None) };
    let keys = section.parsed("keys", PATH, absolute);
    let line = section.line;
    let insecure = section.switch("insecure", false);
    if let (Some(At { line, .. }), true) = (&keys, insecure) {
        section.problem(*line, "keys would do nothing beside insecure = true; take one of the two away");
    }
    let mode = section.parsed("nbd_tls", "it must be \"off\", \"allow\" or \"require\"", |text| match text {
        "off" => Some(NbdTlsMode::Off),
        "allow" => Some(NbdTlsMode::Allow),
        "require" => Some(NbdTlsMode::Require),
        _ => None,
    });
    let certificates = section.switch("nbd_client_certificates", false);
    let required = mode.as_ref().is_some_and(|mode| mode.value == NbdTlsMode::Require);
    if certificates && !required {
        section.problem(line, "nbd_client_certificates = true keeps nobody out unless nbd_tls = \"require\"");
    }
    section.finish();
    let nbd = NbdTls { mode: mode.map(|at| at.value), certificates };
    (keys.map(|at| at.value), Some(At { value: insecure, line }), Some(At { value: nbd, line }))
}

/// What follows for these nodes.
pub(super) fn resolve(
    doc: &Document<'_>,
    (keys, insecure, nbd): (Option<PathBuf>, Option<At<bool>>, Option<At<NbdTls>>),
    nodes: &[At<Node>],
) -> (Security, NbdTls) {
    let addresses = |node: &Node| -> Vec<SocketAddr> { [&[node.data], node.heartbeat.as_slice()].concat() };
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
    let (nbd, line) = nbd.map_or((NbdTls::default(), 0), |at| (at.value, at.line));
    if matches!(nbd.mode, Some(NbdTlsMode::Allow | NbdTlsMode::Require)) && security.keys().is_none() {
        doc.problem(line, "[security]: nbd_tls needs keys; write keys = \"FOLDER\"");
    }
    (security, nbd)
}
