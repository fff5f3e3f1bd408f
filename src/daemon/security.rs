//! How this node proves who it is, and learns who the others are.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use serde::{Deserialize, Serialize};

use super::config::{Config, NbdRule, Node};
use super::identity::cluster_id;
use crate::tls::{Holder, Keyring, Keys, day_of};
use crate::wire::sealed::Secret;

/// What is known of the node's keys, and of datagrams that were not believed. Part of [`Status`](super::status::Status).
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct SecurityStatus {
    /// `keys`: data links with TLS, sealed heartbeats. `loopback`: neither, and nothing leaves the host. `insecure`: neither.
    pub mode: String,
    /// Last day of the node's certificate, as `2031-04-05`; null without keys.
    pub certificate_until: Option<String>,
    /// What an operator must do about the keys; null when nothing.
    pub warning: Option<String>,
    /// Whether NBD clients of other hosts speak TLS: `require`, `allow` or `off`; null when no listener of this node is reached by any.
    #[serde(default)]
    pub nbd_tls: Option<String>,
    /// That strangers are served, where they are.
    #[serde(default)]
    pub nbd_warning: Option<String>,
    /// Heartbeats that nobody with the cluster's secret made for this path.
    pub heartbeats_forged: u64,
    /// Genuine heartbeats that were heard before, or answered nothing.
    pub heartbeats_replayed: u64,
    /// Datagrams that are no heartbeats, or came from an address of no node.
    pub datagrams_foreign: u64,
    /// Connections that were turned away because their address opened them faster than `[limits]` allows.
    #[serde(default)]
    pub connections_turned_away: u64,
}

/// Datagrams that were not believed.
#[derive(Debug, Default)]
pub(super) struct Disbelieved {
    pub(super) forged: AtomicU64,
    pub(super) replayed: AtomicU64,
    pub(super) foreign: AtomicU64,
}

/// The node's keys, if it has any.
#[derive(Debug)]
pub(super) struct Guard {
    mode: &'static str,
    keyring: Option<Keyring>,
    /// What holds for NBD clients of other hosts.
    clients: Option<NbdRule>,
    pub(super) disbelieved: Disbelieved,
    /// Connections that came faster than allowed.
    pub(super) turned_away: Arc<AtomicU64>,
}

impl Guard {
    /// Reads the keys of `me`.
    ///
    /// # Errors
    /// What is missing or wrong, and what to do.
    pub(super) fn new(config: &Config, me: &Node) -> Result<Arc<Self>, String> {
        let own = Holder::node(cluster_id(&config.cluster), &me.name);
        let keyring = config.security.keys().map(|folder| Keyring::open(folder, own)).transpose();
        let keyring = keyring.map_err(|error| {
            format!(
                "{error}. Nodes on different hosts prove who they are: `repblk cert init` makes all keys at once, see \
                 docs/security.md; or say insecure = true in [security]"
            )
        })?;
        let (mode, clients) = (config.security.word(), config.nbd_tls.remote([me]));
        let (disbelieved, turned_away) = (Disbelieved::default(), Arc::default());
        Ok(Arc::new(Self { mode, keyring, clients, disbelieved, turned_away }))
    }

    /// For tests of what has nothing to do with keys.
    #[cfg(test)]
    pub(super) fn without_keys() -> Arc<Self> {
        let (disbelieved, turned_away) = (Disbelieved::default(), Arc::default());
        Arc::new(Self { mode: "loopback", keyring: None, clients: None, disbelieved, turned_away })
    }

    /// The keys as they are now; none without TLS.
    pub(super) fn keys(&self) -> Option<Arc<Keys>> {
        self.keyring.as_ref().map(Keyring::now)
    }

    /// The secrets under which heartbeats are sealed, the one in use first.
    pub(super) fn secrets(&self) -> Vec<Secret> {
        self.keys().map_or_else(|| vec![Secret::public()], |keys| keys.secrets.clone())
    }

    /// For `status`.
    pub(super) fn status(&self) -> SecurityStatus {
        let count = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        SecurityStatus {
            mode: self.mode.to_owned(),
            certificate_until: self.keys().map(|keys| day_of(keys.not_after)),
            warning: self.keyring.as_ref().and_then(Keyring::warning),
            nbd_tls: self.clients.map(|rule| rule.mode.word().to_owned()),
            nbd_warning: self.clients.filter(|rule| rule.is_open()).map(|rule| format!("NBD: {}", rule.meaning())),
            heartbeats_forged: count(&self.disbelieved.forged),
            heartbeats_replayed: count(&self.disbelieved.replayed),
            datagrams_foreign: count(&self.disbelieved.foreign),
            connections_turned_away: count(&self.turned_away),
        }
    }

    /// Warns of what an operator must do, once when it comes up and then once a day, for ever.
    pub(super) async fn keep_warning(self: Arc<Self>) {
        if let Some(keyring) = &self.keyring {
            keyring.keep_warning().await;
        }
    }
}
