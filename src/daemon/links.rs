//! Data links: dialling, accepting, and giving the socket to the volume.
//!
//! Of two nodes the one whose name sorts first dials, the other accepts. A new link takes the place of an old one only
//! after both hellos were accepted, so that a stranger cannot cut a good link. The same refusal is logged once, not at
//! each retry.
//!
//! With keys, TLS comes before the hello, and a node is who its certificate says: an address proves nothing. Who does not finish a handshake
//! keeps nobody out: it sits in a lobby, and loses its seat to newcomers.

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};
use std::os::fd::OwnedFd;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use socket2::{SockRef, TcpKeepalive};
use tokio::net::{TcpListener, TcpSocket, TcpStream};
use tokio::time::{Instant, sleep, timeout};
use tracing::warn;

use super::admission::{Door, Quota, Source, turn_away};
use super::config::{Config, Node};
use super::handle::VolumeHandle;
use super::handshake;
use super::hello_exchange::{self, ExchangeError};
use super::identity::random_u64;
use super::lobby::Lobby;
use super::security::Guard;
use super::stream::Stream;
use crate::dataplane::Negotiated;
use crate::tls::LINK_PROTOCOL;
use crate::units::{ClusterId, DiskInstance, PeerNo, VolumeId};
use crate::wire::Hello;

const CONNECT_TIME: Duration = Duration::from_secs(2);
const BACKOFF_MIN: Duration = Duration::from_millis(100);
const BACKOFF_MAX: Duration = Duration::from_secs(2);
/// A link that held so long was good: the next attempt starts without delay.
const GOOD_LINK: Duration = Duration::from_secs(5);
/// Handshakes and hellos at one time.
const LOBBY_SEATS: usize = 64;
/// Addresses whose last reason is remembered, so that it is logged once.
const STRANGERS_TOLD: usize = 64;

/// True when `me` dials `peer`, and not the other way round.
pub(super) fn dials(me: &str, peer: &str) -> bool {
    me < peer
}

/// Keeps a link to one peer, for ever.
pub(super) async fn keep_dialling(
    volume: Arc<VolumeHandle>,
    (me, cluster): (Node, String),
    peer: Node,
    guard: Arc<Guard>,
) {
    let Some(slot) = volume.peer_no(&peer.name) else { return };
    let mut backoff = BACKOFF_MIN;
    let mut log = OncePerChange::default();
    loop {
        let began = Instant::now();
        if volume.ended().is_some() {
            return;
        }
        if !volume.has_link(slot) && takes_links(&volume, slot).await.is_ok() {
            match dial(&volume, slot, (&me, &cluster), &peer, &guard).await {
                Ok(()) => log.clear(),
                Err(why) => {
                    log.tell(&volume.spec.name, &peer.name, &why);
                    volume.note_no_link(slot, &why);
                }
            }
        }
        while volume.has_link(slot) && volume.ended().is_none() {
            // The pause bounds the time that a notice between the question and the wait is missed.
            let _ = timeout(Duration::from_millis(250), volume.link_news.notified()).await;
        }
        backoff = if began.elapsed() >= GOOD_LINK { BACKOFF_MIN } else { (backoff * 2).min(BACKOFF_MAX) };
        sleep(jittered(backoff)).await;
    }
}

async fn dial(
    volume: &VolumeHandle,
    slot: PeerNo,
    (me, cluster): (&Node, &str),
    peer: &Node,
    guard: &Guard,
) -> Result<(), String> {
    let mine = own_hello(volume, me, cluster)?;
    let stream = match timeout(CONNECT_TIME, connect(me.data, peer.data)).await {
        Ok(Ok(stream)) => stream,
        Ok(Err(error)) => return Err(format!("cannot connect to {}: {error}", peer.data)),
        Err(_) => {
            return Err(format!("cannot connect to {}: no answer within {} s", peer.data, CONNECT_TIME.as_secs()));
        }
    };
    let mut stream =
        handshake::dial(stream, &peer.name, LINK_PROTOCOL, guard).await.map_err(|error| error.to_string())?;
    let theirs = hello_exchange::dial(&mut stream, &mine, &peer.name).await.map_err(|error| error.to_string())?;
    adopt(volume, slot, &mine, &theirs, stream).map_err(|error| format!("the socket cannot be handed over: {error}"))
}

/// Connects from this node's own address of the data link, so that mirrored writes never take another network.
async fn connect(from: SocketAddr, to: SocketAddr) -> std::io::Result<TcpStream> {
    let socket = if to.is_ipv4() { TcpSocket::new_v4()? } else { TcpSocket::new_v6()? };
    if from.is_ipv4() == to.is_ipv4() {
        socket.bind(SocketAddr::new(from.ip(), 0))?;
    }
    socket.connect(to).await
}

/// Takes links from peers, for ever.
pub(super) async fn keep_accepting(
    listener: TcpListener,
    volumes: Vec<Arc<VolumeHandle>>,
    me: Node,
    config: Arc<Config>,
    guard: Arc<Guard>,
) {
    let lobby = Arc::new(Lobby::new(LOBBY_SEATS));
    let door = Door::new("connections to the data link", config.limits.rate(), Arc::clone(&guard.turned_away));
    let log = Arc::new(StrangersLog::of(&config));
    loop {
        let (stream, from) = match listener.accept().await {
            Ok((stream, from)) if door.admits(from.ip()) => (stream, from),
            Ok((stream, _)) => {
                turn_away(&stream);
                continue;
            }
            Err(error) => {
                // Out of descriptors or memory: going on at once would only burn the processor.
                warn!(%error, "a data link cannot be accepted");
                sleep(Duration::from_millis(200)).await;
                continue;
            }
        };
        let (volumes, me, config, log) = (volumes.clone(), me.clone(), Arc::clone(&config), Arc::clone(&log));
        let (lobby, guard) = (Arc::clone(&lobby), Arc::clone(&guard));
        tokio::spawn(async move {
            let source = Some(Source::of(from.ip()));
            let seated = lobby.seat_from(source, accept(stream, &volumes, &me, &config, &guard)).await;
            log.note(from.ip(), seated.unwrap_or(Err(ExchangeError::Slow)).err().map(|why| why.to_string()));
        });
    }
}

async fn accept(
    stream: TcpStream,
    volumes: &[Arc<VolumeHandle>],
    me: &Node,
    config: &Config,
    guard: &Guard,
) -> Result<(), ExchangeError> {
    let (mut stream, proved) = handshake::accept(stream, LINK_PROTOCOL, guard).await?;
    let answer = async |theirs: Hello| {
        let (mine, found) = find(&theirs, volumes, me, config).await?;
        match proved {
            Some(name) if name != theirs.node => {
                let why = format!("its certificate is that of node {name:?}, and its hello that of {:?}", theirs.node);
                Err(Box::new((mine, why)))
            }
            _ => Ok((mine, found)),
        }
    };
    let (mine, theirs, (volume, slot)) = hello_exchange::accept(&mut stream, answer).await?;
    adopt(&volume, slot, &mine, &theirs, stream)?;
    Ok(())
}

type Found = (Hello, (Arc<VolumeHandle>, PeerNo));

/// What to answer to a hello that came in.
async fn find(
    theirs: &Hello,
    volumes: &[Arc<VolumeHandle>],
    me: &Node,
    config: &Config,
) -> Result<Found, Box<(Hello, String)>> {
    let nobody = |why: String| {
        let mine = Hello {
            cluster_name: config.cluster.clone(),
            cluster: ClusterId::NONE,
            volume_name: theirs.volume_name.clone(),
            volume: VolumeId::NONE,
            instance: DiskInstance::NONE,
            node: me.name.clone(),
            size: 0,
            nonce: 0,
            refusal: String::new(),
        };
        Box::new((mine, why))
    };
    if theirs.cluster_name != config.cluster {
        return Err(nobody(format!("this is cluster {:?}, not {:?}", config.cluster, theirs.cluster_name)));
    }
    let Some(volume) = volumes.iter().find(|volume| volume.name() == theirs.volume_name) else {
        return Err(nobody(format!(
            "node {} has no copy of volume {:?}; compare the configurations",
            me.name, theirs.volume_name
        )));
    };
    let mine = own_hello(volume, me, &config.cluster).map_err(nobody)?;
    // The own name is left to the exchange, which tells a loop from a clash of names.
    let slot = volume.peer_no(&theirs.node).or((theirs.node == me.name).then_some(PeerNo(0)));
    let Some(slot) = slot else {
        let why = format!(
            "node {:?} is no peer of volume {} in the configuration of node {}",
            theirs.node,
            volume.name(),
            me.name
        );
        return Err(Box::new((mine, why)));
    };
    match takes_links(volume, slot).await {
        Ok(()) => Ok((mine, (Arc::clone(volume), slot))),
        Err(why) => Err(Box::new((mine, why))),
    }
}

/// Whether the volume takes a link to that peer now: an operator may have said `disconnect`.
async fn takes_links(volume: &VolumeHandle, slot: PeerNo) -> Result<(), String> {
    let state = volume.ask().await?;
    match state.volume.peers.get(usize::from(slot.0)) {
        Some(peer) if peer.connection == "standalone" => Err(format!(
            "volume {} is standalone there ({}); `repblk connect` there lets links in",
            volume.name(),
            peer.why
        )),
        _ => Ok(()),
    }
}

fn own_hello(volume: &VolumeHandle, me: &Node, cluster: &str) -> Result<Hello, String> {
    let nonce = random_u64().map_err(|error| format!("no random number can be had: {error}"))?;
    let identity = &volume.identity;
    Ok(Hello {
        cluster_name: cluster.to_owned(),
        cluster: identity.cluster,
        volume_name: volume.name().to_owned(),
        volume: identity.volume,
        instance: identity.instance,
        node: me.name.clone(),
        size: identity.size,
        nonce,
        refusal: String::new(),
    })
}

fn adopt(
    volume: &VolumeHandle,
    slot: PeerNo,
    mine: &Hello,
    theirs: &Hello,
    stream: Stream<TcpStream>,
) -> std::io::Result<()> {
    let (stream, tls) = stream.into_parts();
    stream.set_nodelay(true)?;
    let keepalive = TcpKeepalive::new().with_time(Duration::from_secs(5)).with_interval(Duration::from_secs(2));
    SockRef::from(&stream).set_tcp_keepalive(&keepalive)?;
    let socket: OwnedFd = stream.into_std()?.into();
    let line = Negotiated { socket, tls };
    volume.adopt_link(slot, mine.connection(theirs), theirs.instance, line).map_err(std::io::Error::other)
}

/// Between half and all of `backoff`, so that two nodes do not keep step.
fn jittered(backoff: Duration) -> Duration {
    let part = u32::try_from(random_u64().unwrap_or(0) % 512).expect("below 512");
    backoff / 1024 * (512 + part)
}

/// What is logged of connections that came in. What the addresses of nodes cause is always told; strangers, who may be many, have a quota.
struct StrangersLog {
    nodes: Vec<IpAddr>,
    quota: Quota,
    told: Mutex<BTreeMap<IpAddr, OncePerChange>>,
}

impl StrangersLog {
    fn of(config: &Config) -> Self {
        let nodes = config.nodes.iter().map(|node| node.data.ip()).collect();
        Self { nodes, quota: Quota::of_strangers(), told: Mutex::default() }
    }

    /// A connection from `from` came to nothing for this reason, or became a link.
    fn note(&self, from: IpAddr, why: Option<String>) {
        let mut told = self.told.lock().unwrap_or_else(PoisonError::into_inner);
        let Some(why) = why else {
            told.remove(&from);
            return;
        };
        let is_node = self.nodes.contains(&from);
        // A scan from many addresses must not grow this for ever.
        if told.len() >= STRANGERS_TOLD && !told.contains_key(&from) {
            told.retain(|address, _| self.nodes.contains(address));
        }
        let once = told.entry(from).or_default();
        if once.last != why && (is_node || self.quota.take()) {
            once.tell("", &from.to_string(), &why);
        }
    }
}

/// Logs a reason when it is another than the last one.
#[derive(Default)]
struct OncePerChange {
    last: String,
}

impl OncePerChange {
    fn tell(&mut self, volume: &str, peer: &str, why: &str) {
        if self.last != why {
            warn!(volume, peer, "no data link: {why}; trying on, and silent until this changes");
            why.clone_into(&mut self.last);
        }
    }

    fn clear(&mut self) {
        self.last.clear();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn exactly_one_of_two_nodes_dials() {
        for (a, b) in [("alpha", "beta"), ("n1", "n10"), ("A", "a")] {
            assert!(dials(a, b) != dials(b, a));
        }
    }

    /// A scan from many addresses fills neither the memory nor the disk of the log, and hides no trouble of a node.
    #[test]
    fn strangers_have_a_quota_in_the_log_and_nodes_have_not() {
        let text = include_str!("../../docs/repblk.example.toml");
        let config = Config::parse(text, std::path::Path::new("example")).expect("the example is right");
        let log = StrangersLog::of(&config);
        let peer = config.nodes[1].data.ip();
        for n in 0..10_000u32 {
            log.note(IpAddr::V4(n.into()), Some("it speaks no TLS".to_owned()));
        }
        let last = |address: IpAddr| log.told.lock().expect("whole").get(&address).map(|once| once.last.clone());
        assert_eq!(last(IpAddr::V4(9_999.into())), Some(String::new()), "its quota is used up: it is not told");
        log.note(peer, Some("its certificate expired".to_owned()));
        assert_eq!(last(peer).as_deref(), Some("its certificate expired"));
        (0..1000u32).for_each(|n| log.note(IpAddr::V4(n.into()), Some("again".to_owned())));
        assert_eq!(last(peer).as_deref(), Some("its certificate expired"), "a node is not forgotten for strangers");
        assert!(log.told.lock().expect("whole").len() <= STRANGERS_TOLD + config.nodes.len());
        log.note(peer, None);
        assert_eq!(last(peer), None);
    }

    #[test]
    fn jitter_stays_within_its_bounds() {
        for _ in 0..1000 {
            let wait = jittered(BACKOFF_MAX);
            assert!(wait >= BACKOFF_MAX * 49 / 100 && wait <= BACKOFF_MAX, "{wait:?}");
        }
    }
}
