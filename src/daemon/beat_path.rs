//! A heartbeat path to one peer: datagrams are sealed on their way out, and judged on their way in.

use std::collections::VecDeque;
use std::io;
use std::net::SocketAddr;
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use tokio::net::UdpSocket;
use tracing::debug;

use super::config::{Config, Node};
use super::identity::cluster_id;
use super::security::Guard;
use crate::wire::sealed::{Opened, Route, Seal, Secret};

/// Whoever cannot be told from a recording is answered so often at most. Counted for each life that is claimed, so that recordings of
/// one do not keep another from its answer.
const REPLY_INTERVAL: Duration = Duration::from_millis(5);
/// Lives that are told apart.
const LIVES_MAX: usize = 16;

/// One path to one peer.
pub(super) struct BeatPath {
    /// The peer's name.
    pub(super) peer: String,
    /// Number of the path.
    pub(super) number: usize,
    /// The peer's end.
    pub(super) to: SocketAddr,
    socket: Arc<UdpSocket>,
    guard: Arc<Guard>,
    inner: Mutex<Inner>,
}

struct Inner {
    seal: Seal,
    secrets: Vec<Secret>,
    /// Lives that were answered last, and when.
    replied: VecDeque<(u64, Instant)>,
}

/// All paths of a node to all of its peers.
pub(super) struct BeatPaths(Vec<Arc<BeatPath>>);

impl BeatPaths {
    /// The paths of `me`, over its end of each; `incarnation` was drawn when this daemon started.
    pub(super) fn new(
        config: &Config,
        me: &Node,
        sockets: &[Arc<UdpSocket>],
        incarnation: u64,
        guard: &Arc<Guard>,
    ) -> Self {
        let secrets = guard.secrets();
        let path = |peer: &Node, number: usize, socket: &Arc<UdpSocket>, to: SocketAddr| {
            let route = Route {
                cluster: cluster_id(&config.cluster),
                purpose: "heartbeat",
                path: u16::try_from(number).expect("a node has few addresses"),
                from: me.name.clone(),
                to: peer.name.clone(),
            };
            let seal = Seal::new(&secrets, route, incarnation);
            let inner = Mutex::new(Inner { seal, secrets: secrets.clone(), replied: VecDeque::new() });
            let (socket, guard) = (Arc::clone(socket), Arc::clone(guard));
            Arc::new(BeatPath { peer: peer.name.clone(), number, to, socket, guard, inner })
        };
        let peers = config.nodes.iter().filter(|node| node.name != me.name);
        let paths = peers.flat_map(|peer| {
            let ends = sockets.iter().zip(&peer.heartbeat).enumerate();
            ends.map(|(number, (socket, to))| path(peer, number, socket, *to)).collect::<Vec<_>>()
        });
        Self(paths.collect())
    }

    /// The paths to `peer`, in the order of their numbers.
    pub(super) fn to(&self, peer: &str) -> Vec<Arc<BeatPath>> {
        self.0.iter().filter(|path| path.peer == peer).cloned().collect()
    }

    /// The path with this number whose other end is at `from`.
    pub(super) fn from(&self, number: usize, from: SocketAddr) -> Option<&Arc<BeatPath>> {
        self.0.iter().find(|path| path.number == number && path.to == from)
    }

    /// Takes up changed secrets, for ever.
    pub(super) async fn keep_secrets(self: Arc<Self>, guard: Arc<Guard>) {
        loop {
            tokio::time::sleep(super::security::LOOK_INTERVAL).await;
            let secrets = guard.secrets();
            for path in &self.0 {
                path.take_secrets(&secrets);
            }
        }
    }
}

impl Inner {
    fn may_reply(&mut self, incarnation: u64, now: Instant) -> bool {
        if self.replied.iter().any(|(life, at)| *life == incarnation && now.duration_since(*at) < REPLY_INTERVAL) {
            return false;
        }
        self.replied.retain(|(life, _)| *life != incarnation);
        self.replied.truncate(LIVES_MAX - 1);
        self.replied.push_front((incarnation, now));
        true
    }
}

impl BeatPath {
    fn inner(&self) -> MutexGuard<'_, Inner> {
        // A panic while sealing leaves a counter behind that was used, which is harmless.
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn take_secrets(&self, secrets: &[Secret]) {
        let mut inner = self.inner();
        if inner.secrets != secrets {
            inner.seal.change_secrets(secrets);
            inner.secrets = secrets.to_vec();
        }
    }

    /// Seals and sends.
    ///
    /// # Errors
    /// When the system does not take it; the peer notices the silence.
    pub(super) fn send(&self, body: &[u8]) -> io::Result<()> {
        let datagram = self.inner().seal.seal(body);
        self.put(&datagram)
    }

    fn put(&self, datagram: &[u8]) -> io::Result<()> {
        self.socket.try_send_to(datagram, self.to).map(drop)
    }

    /// The body of a datagram that came from the peer's address, when it is the peer's and new. What is not believed is counted.
    pub(super) fn open<'d>(&self, datagram: &'d [u8]) -> Option<&'d [u8]> {
        let counters = &self.guard.disbelieved;
        let opened = self.inner().seal.open(datagram);
        let (counter, what) = match opened {
            Opened::Fresh { body, newcomer } => {
                if newcomer {
                    debug!(peer = self.peer, path = self.number, "the peer's heartbeats are believed");
                    // It knows this side at once, and not with the next beat.
                    self.send(&[]).unwrap_or_else(|error| self.not_sent(&error));
                }
                return (!body.is_empty()).then_some(body);
            }
            Opened::Unproven { incarnation, reply } => {
                if self.inner().may_reply(incarnation, Instant::now()) {
                    self.put(&reply).unwrap_or_else(|error| self.not_sent(&error));
                }
                (&counters.replayed, "answers nothing: it is new, or a recording")
            }
            Opened::Replayed => (&counters.replayed, "was heard before"),
            Opened::Forged => (&counters.forged, "was not made with the cluster's secret"),
            Opened::Foreign => (&counters.foreign, "is no heartbeat of this version"),
        };
        counter.fetch_add(1, Ordering::Relaxed);
        debug!(peer = self.peer, address = %self.to, "a datagram {what}");
        None
    }

    fn not_sent(&self, error: &io::Error) {
        debug!(peer = self.peer, address = %self.to, %error, "heartbeat not sent");
    }
}
