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
            tokio::time::sleep(crate::tls::LOOK_INTERVAL).await;
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

#[cfg(test)]
mod tests {
    use super::*;

    /// Two nodes with a path each way, and their sockets.
    struct Two {
        sockets: [Arc<UdpSocket>; 2],
        guards: [Arc<Guard>; 2],
        ends: [Arc<BeatPath>; 2],
    }

    impl Two {
        async fn new() -> Self {
            let bind = async || Arc::new(UdpSocket::bind("127.0.0.1:0").await.expect("bound"));
            let sockets = [bind().await, bind().await];
            let text = include_str!("../../docs/repblk.example.toml");
            let mut config = Config::parse(text, std::path::Path::new("example")).expect("the example is right");
            for (node, socket) in config.nodes.iter_mut().zip(&sockets) {
                node.heartbeat = vec![socket.local_addr().expect("bound")];
            }
            let guards = [Guard::without_keys(), Guard::without_keys()];
            let end = |me: usize| {
                let incarnation = 10 + u64::try_from(me).expect("small");
                let sockets = &sockets[me..=me];
                let paths = BeatPaths::new(&config, &config.nodes[me], sockets, incarnation, &guards[me]);
                Arc::clone(&paths.to(&config.nodes[1 - me].name)[0])
            };
            let ends = [end(0), end(1)];
            Self { sockets, guards, ends }
        }

        /// Takes what came to `me`; the body, if it was believed.
        async fn take(&self, me: usize) -> (Vec<u8>, Option<Vec<u8>>) {
            let mut datagram = vec![0; 2000];
            let (len, from) = self.sockets[me].recv_from(&mut datagram).await.expect("comes");
            assert_eq!(from, self.ends[me].to);
            datagram.truncate(len);
            let body = self.ends[me].open(&datagram).map(<[u8]>::to_vec);
            (datagram, body)
        }

        fn counted(&self, me: usize) -> [u64; 3] {
            let counters = &self.guards[me].disbelieved;
            [&counters.forged, &counters.replayed, &counters.foreign].map(|counter| counter.load(Ordering::Relaxed))
        }

        async fn send(&self, from: usize, body: &[u8]) {
            self.sockets[from].writable().await.expect("open");
            self.ends[from].send(body).expect("room");
        }
    }

    /// The first beat of a stranger is not believed, and all others are: two datagrams without a body make it known.
    #[tokio::test]
    async fn strangers_come_to_know_each_other_within_one_beat() {
        let two = Two::new().await;
        two.send(0, b"first").await;
        assert_eq!(two.take(1).await.1, None, "it answers nothing");
        two.take(0).await;
        two.take(1).await;
        two.send(0, b"second").await;
        assert_eq!(two.take(1).await.1.as_deref(), Some(&b"second"[..]));
        two.take(0).await;
        two.send(1, b"back").await;
        assert_eq!(two.take(0).await.1.as_deref(), Some(&b"back"[..]));
        assert_eq!([two.counted(0), two.counted(1)], [[0, 0, 0], [0, 1, 0]]);
    }

    #[tokio::test]
    async fn what_is_not_believed_is_counted_and_changes_nothing() {
        let two = Two::new().await;
        two.send(0, b"hello").await;
        for me in [1, 0, 1, 0] {
            two.take(me).await;
        }
        two.send(0, b"heard").await;
        let (recorded, heard) = two.take(1).await;
        assert!(heard.is_some());
        for _ in 0..1000 {
            assert_eq!(two.ends[1].open(&recorded), None);
        }
        let mut forged = recorded.clone();
        forged[60] ^= 1;
        for _ in 0..500 {
            assert_eq!(two.ends[1].open(&forged), None);
        }
        assert_eq!(two.ends[1].open(b"GET / HTTP/1.1"), None);
        assert_eq!(two.counted(1), [500, 1001, 1]);
        two.send(0, b"goes on").await;
        assert_eq!(two.take(1).await.1.as_deref(), Some(&b"goes on"[..]));
    }

    #[tokio::test]
    async fn a_flood_of_recordings_is_answered_seldom_and_a_newcomer_at_once() {
        let two = Two::new().await;
        let now = Instant::now();
        let mut inner = two.ends[0].inner();
        let later = now + REPLY_INTERVAL;
        assert!(inner.may_reply(1, now));
        assert!(!(0..1000).any(|_| inner.may_reply(1, now)));
        assert!(inner.may_reply(2, now) && inner.may_reply(1, later) && !inner.may_reply(1, later));
        (100..1100).for_each(|life| assert!(inner.may_reply(life, later)));
        assert_eq!(inner.replied.len(), LIVES_MAX);
    }
}
