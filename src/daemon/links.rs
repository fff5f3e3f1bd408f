//! Data links: dialling, accepting, and giving the socket to the volume.
//!
//! Of two nodes the one whose name sorts first dials, the other accepts. A new link takes the place of an old one only
//! after both hellos were accepted, so that a stranger cannot cut a good link. The same refusal is logged once, not at
//! each retry.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::os::fd::OwnedFd;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use socket2::{SockRef, TcpKeepalive};
use tokio::net::{TcpListener, TcpSocket, TcpStream};
use tokio::sync::Semaphore;
use tokio::time::{Instant, sleep, timeout};
use tracing::warn;

use super::config::{Config, Node};
use super::handle::VolumeHandle;
use super::hello_exchange::{self, ExchangeError};
use super::identity::random_u64;
use crate::units::{ClusterId, DiskInstance, PeerNo, VolumeId};
use crate::wire::Hello;

const CONNECT_TIME: Duration = Duration::from_secs(2);
const BACKOFF_MIN: Duration = Duration::from_millis(100);
const BACKOFF_MAX: Duration = Duration::from_secs(2);
/// A link that held so long was good: the next attempt starts without delay.
const GOOD_LINK: Duration = Duration::from_secs(5);
/// Hellos being exchanged at one time; a flood of strangers waits in the kernel's queue.
const ACCEPTING_MAX: usize = 16;

/// True when `me` dials `peer`, and not the other way round.
pub(super) fn dials(me: &str, peer: &str) -> bool {
    me < peer
}

/// Keeps a link to one peer, for ever.
pub(super) async fn keep_dialling(volume: Arc<VolumeHandle>, me: Node, cluster: String, peer: Node) {
    let Some(slot) = volume.peer_no(&peer.name) else { return };
    let mut backoff = BACKOFF_MIN;
    let mut log = OncePerChange::default();
    loop {
        let began = Instant::now();
        if volume.ended().is_some() {
            return;
        }
        if !volume.has_link(slot) && takes_links(&volume, slot).await.is_ok() {
            match dial(&volume, slot, &me, &cluster, &peer).await {
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

async fn dial(volume: &VolumeHandle, slot: PeerNo, me: &Node, cluster: &str, peer: &Node) -> Result<(), String> {
    let mine = own_hello(volume, me, cluster)?;
    let mut stream = match timeout(CONNECT_TIME, connect(me.data, peer.data)).await {
        Ok(Ok(stream)) => stream,
        Ok(Err(error)) => return Err(format!("cannot connect to {}: {error}", peer.data)),
        Err(_) => {
            return Err(format!("cannot connect to {}: no answer within {} s", peer.data, CONNECT_TIME.as_secs()));
        }
    };
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
) {
    let places = Arc::new(Semaphore::new(ACCEPTING_MAX));
    let log = Arc::new(Mutex::new(BTreeMap::<String, OncePerChange>::new()));
    loop {
        let place = Arc::clone(&places).acquire_owned().await.expect("the semaphore is never closed");
        let (stream, from) = match listener.accept().await {
            Ok(accepted) => accepted,
            Err(error) => {
                // Out of descriptors or memory: going on at once would only burn the processor.
                warn!(%error, "a data link cannot be accepted");
                sleep(Duration::from_millis(200)).await;
                continue;
            }
        };
        let (volumes, me, config, log) = (volumes.clone(), me.clone(), Arc::clone(&config), Arc::clone(&log));
        tokio::spawn(async move {
            let outcome = accept(stream, &volumes, &me, &config).await;
            drop(place);
            let from = from.ip().to_string();
            let mut log = log.lock().expect("nobody panics with the log in hand");
            // A scan from many addresses must not grow this for ever.
            if log.len() > 64 {
                log.clear();
            }
            let log = log.entry(from.clone()).or_default();
            match outcome {
                Ok(()) => log.clear(),
                Err(why) => log.tell("", &from, &why.to_string()),
            }
        });
    }
}

async fn accept(
    mut stream: TcpStream,
    volumes: &[Arc<VolumeHandle>],
    me: &Node,
    config: &Config,
) -> Result<(), ExchangeError> {
    let answer = async |theirs: Hello| find(&theirs, volumes, me, config).await;
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

fn adopt(volume: &VolumeHandle, slot: PeerNo, mine: &Hello, theirs: &Hello, stream: TcpStream) -> std::io::Result<()> {
    stream.set_nodelay(true)?;
    let keepalive = TcpKeepalive::new().with_time(Duration::from_secs(5)).with_interval(Duration::from_secs(2));
    SockRef::from(&stream).set_tcp_keepalive(&keepalive)?;
    let socket: OwnedFd = stream.into_std()?.into();
    volume.adopt_link(slot, mine.connection(theirs), theirs.instance, socket).map_err(std::io::Error::other)
}

/// Between half and all of `backoff`, so that two nodes do not keep step.
fn jittered(backoff: Duration) -> Duration {
    let part = u32::try_from(random_u64().unwrap_or(0) % 512).expect("below 512");
    backoff / 1024 * (512 + part)
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

    #[test]
    fn jitter_stays_within_its_bounds() {
        for _ in 0..1000 {
            let wait = jittered(BACKOFF_MAX);
            assert!(wait >= BACKOFF_MAX * 49 / 100 && wait <= BACKOFF_MAX, "{wait:?}");
        }
    }
}
