//! Heartbeats: small datagrams on their own paths, so that a broken data link can be told from a lost host.
//!
//! Each is the body of a sealed datagram ([`crate::wire::sealed`]). Two kinds travel on a path. A *beat of the node* is sent at each
//! interval and tells how its volumes are. A *beat of failover* belongs to one volume; its machine says when it is sent, and numbers
//! it ([`crate::failover::io::Beat`]).
//!
//! A datagram is complete in itself; one that is damaged, foreign, forged, older than one already heard, or from an unknown node
//! is dropped, and counted. What is heard is told to the volumes and shown in `status`; nothing is decided here.

use std::collections::BTreeMap;
use std::io::ErrorKind;
use std::net::SocketAddr;
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use tokio::net::UdpSocket;
use tokio::task::JoinSet;
use tokio::time::{MissedTickBehavior, interval, timeout};
use tracing::{debug, info, warn};

use super::beat::{Beat, Datagram};
use super::beat_path::BeatPaths;
use super::config::{Config, Node};
use super::failover::Post;
use super::handle::VolumeHandle;
use super::identity::cluster_id;
use super::security::Guard;
use super::status::{HeartbeatStatus, millis};
use crate::dataplane::mailbox::{Letter, State};
use crate::units::PeerNo;
use crate::volume::io::PeerView;
use crate::wire::sealed;

/// A path is dead after so many intervals of silence.
const SILENT_INTERVALS: u32 = 5;

/// Datagrams that are taken in one go.
const DATAGRAMS_AT_ONCE: usize = 256;
/// So long datagrams are left in the kernel after one that was not believed. Short beside the least interval of heartbeats, which is 20 ms, and
/// short enough for a flood of 100,000 in a second to fit into a socket's memory meanwhile.
const FLOOD_REST: Duration = Duration::from_millis(1);

/// What was heard last from a node on a path.
#[derive(Debug, Clone, Copy)]
struct Heard {
    at: Instant,
    incarnation: u64,
    sequence: u64,
    hears_us: bool,
}

/// What was heard, by node and number of the path.
pub(super) struct Ear {
    interval: Duration,
    heard: Mutex<BTreeMap<(String, usize), Heard>>,
}

impl Ear {
    pub(super) fn new(interval: Duration) -> Self {
        Self { interval, heard: Mutex::default() }
    }

    /// Takes in a beat; false when it is older than one already heard.
    fn hear(&self, path: usize, beat: &Beat, at: Instant) -> bool {
        let mut heard = self.heard.lock().expect("nobody panics while listening");
        let last = heard.get(&(beat.node.clone(), path));
        if last.is_some_and(|last| last.incarnation == beat.incarnation && last.sequence >= beat.sequence) {
            return false;
        }
        let now = Heard { at, incarnation: beat.incarnation, sequence: beat.sequence, hears_us: beat.hears_you };
        heard.insert((beat.node.clone(), path), now);
        true
    }

    /// How each path to `peer` is.
    pub(super) fn paths(&self, peer: &Node) -> Vec<HeartbeatStatus> {
        let status = |(path, address): (usize, &SocketAddr)| {
            let heard =
                self.heard.lock().expect("nobody panics while listening").get(&(peer.name.clone(), path)).copied();
            let age = heard.map(|heard| heard.at.elapsed());
            HeartbeatStatus {
                address: address.to_string(),
                alive: age.is_some_and(|age| age <= self.interval * SILENT_INTERVALS),
                age_ms: age.map(millis),
                heard_by_peer: heard.is_some_and(|heard| heard.hears_us),
            }
        };
        peer.heartbeat.iter().enumerate().map(status).collect()
    }
}

/// The heartbeats of one node.
pub(super) struct Heartbeat {
    pub(super) config: Arc<Config>,
    pub(super) me: Node,
    pub(super) volumes: Vec<Arc<VolumeHandle>>,
    pub(super) ear: Arc<Ear>,
    pub(super) incarnation: u64,
    /// Where the beats of failover go, in the order of the volumes.
    pub(super) posts: Vec<Post>,
    pub(super) paths: Arc<BeatPaths>,
    pub(super) guard: Arc<Guard>,
}

impl Heartbeat {
    /// Sends to all peers on all paths, for ever.
    pub(super) async fn keep_sending(self: Arc<Self>) {
        let mut tick = interval(self.config.heartbeat_interval);
        tick.set_missed_tick_behavior(MissedTickBehavior::Skip);
        let mut alive = BTreeMap::new();
        for sequence in 1.. {
            tick.tick().await;
            let states = self.states().await;
            for peer in self.config.nodes.iter().filter(|node| node.name != self.me.name) {
                let paths = self.ear.paths(peer);
                self.tell_changes(peer, &paths, &mut alive);
                for (way, path) in self.paths.to(&peer.name).iter().zip(&paths) {
                    let beat = self.beat(peer, sequence, path.alive, &states);
                    // A path that is down now may be up at the next beat; the peer notices the silence.
                    if let Err(error) = way.send(&Datagram::Node(beat).encode()) {
                        debug!(peer = peer.name, address = %way.to, %error, "heartbeat not sent");
                    }
                }
            }
        }
    }

    /// Listens on one path, for ever.
    pub(super) async fn keep_listening(self: Arc<Self>, path: usize, socket: Arc<UdpSocket>) {
        keep_taking(&socket, |datagram, from| self.hear(path, datagram, from)).await;
    }

    /// Takes in a datagram; false when nothing was learned from it.
    fn hear(&self, path: usize, datagram: &[u8], from: SocketAddr) -> bool {
        let Some(way) = self.paths.from(path, from) else {
            self.guard.disbelieved.foreign.fetch_add(1, Ordering::Relaxed);
            debug!(path, %from, "a datagram from an address of no node");
            return false;
        };
        let Some(body) = way.open(datagram) else { return false };
        let Some(heard) = Datagram::decode(body) else { return true };
        let (theirs, node) = heard.sender();
        if theirs == cluster_id(&self.config.cluster) && node == way.peer {
            match heard {
                Datagram::Node(beat) if self.ear.hear(path, &beat, Instant::now()) => self.pass_on(&beat),
                // Older than one already heard.
                Datagram::Node(_) => {}
                Datagram::Failover { node, volume, beat, .. } => {
                    let of = |known: &&Arc<VolumeHandle>| known.identity.volume == volume;
                    let place = self.volumes.iter().position(|known| of(&known) && known.peer_no(&node).is_some());
                    if let Some(post) = place.and_then(|place| self.posts.get(place)) {
                        post.beat(path, beat);
                    }
                }
            }
        }
        true
    }

    fn pass_on(&self, beat: &Beat) {
        for (volume_id, view) in &beat.views {
            let volume = self.volumes.iter().find(|volume| volume.identity.volume == *volume_id);
            if let Some((volume, peer)) = volume.and_then(|volume| Some((volume, volume.peer_no(&beat.node)?))) {
                // A volume that does not keep up hears the next one.
                let _ = volume.post(Letter::PeerSeen { peer, view: *view });
            }
        }
    }

    /// How the volumes are, but for those that do not say so quickly: a hung one must not silence the others.
    async fn states(&self) -> Vec<(Arc<VolumeHandle>, State)> {
        let patience = self.config.heartbeat_interval / 2;
        let mut asked = JoinSet::new();
        for volume in &self.volumes {
            let volume = Arc::clone(volume);
            asked.spawn(async move { Some((volume.clone(), timeout(patience, volume.ask()).await.ok()?.ok()?)) });
        }
        asked.join_all().await.into_iter().flatten().collect()
    }

    fn beat(&self, peer: &Node, sequence: u64, hears_you: bool, states: &[(Arc<VolumeHandle>, State)]) -> Beat {
        let view = |(volume, state): &(Arc<VolumeHandle>, State)| {
            let PeerNo(slot) = volume.peer_no(&peer.name)?;
            let view = PeerView {
                instance: volume.identity.instance,
                role: state.volume.role,
                disk: state.volume.disk,
                term: state.volume.term,
                generation: state.volume.generation,
                base_for_you: state.volume.peers.get(usize::from(slot))?.base,
            };
            Some((volume.identity.volume, view))
        };
        Beat {
            cluster: cluster_id(&self.config.cluster),
            node: self.me.name.clone(),
            incarnation: self.incarnation,
            sequence,
            hears_you,
            views: states.iter().filter_map(view).collect(),
        }
    }

    fn tell_changes(&self, peer: &Node, paths: &[HeartbeatStatus], alive: &mut BTreeMap<String, bool>) {
        for path in paths {
            let was = alive.insert(path.address.clone(), path.alive).unwrap_or(false);
            match (was, path.alive) {
                (false, true) => info!(peer = peer.name, address = path.address, "heartbeat path up"),
                (true, false) => warn!(peer = peer.name, address = path.address, "heartbeat path down: silence"),
                _ => {}
            }
        }
    }
}

/// Gives all that comes to `take`, for ever; it says whether it learned something. That is taken at once. After a datagram that was worth nothing
/// what follows is left in the kernel for a moment and taken in one go: a flood wakes this thread no oftener than that.
async fn keep_taking(socket: &UdpSocket, mut take: impl FnMut(&[u8], SocketAddr) -> bool) {
    let mut datagram = vec![0; sealed::OVERHEAD + sealed::BODY_LEN_MAX + 1];
    loop {
        let mut flood = false;
        for _ in 0..DATAGRAMS_AT_ONCE {
            match socket.try_recv_from(&mut datagram) {
                Ok((len, from)) => flood |= !take(&datagram[..len], from),
                Err(error) if error.kind() == ErrorKind::WouldBlock => break,
                Err(error) => {
                    // Errors of earlier sends come back here; there is nothing to do but to listen on.
                    debug!(%error, "heartbeat path");
                    flood = true;
                    break;
                }
            }
        }
        if flood {
            tokio::time::sleep(FLOOD_REST).await;
        }
        if let Err(error) = socket.readable().await {
            debug!(%error, "heartbeat path");
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::beat::tests::beat;
    use super::*;

    /// What is believed is taken at once; what follows something that is not, a millisecond later and in one go.
    #[tokio::test(start_paused = true)]
    async fn a_flood_is_taken_in_one_go_and_a_beat_at_once() {
        use std::cell::RefCell;
        let bind = async || UdpSocket::bind("127.0.0.1:0").await.expect("bound");
        let (to, from) = (bind().await, bind().await);
        let place = to.local_addr().expect("bound");
        let (began, taken) = (tokio::time::Instant::now(), RefCell::new(Vec::new()));
        let taking = keep_taking(&to, |datagram, _| {
            taken.borrow_mut().push(began.elapsed());
            datagram == b"good"
        });
        let taken_are = async |count: usize| {
            // The clock stands still as long as somebody is busy.
            while taken.borrow().len() < count {
                tokio::task::yield_now().await;
            }
        };
        let sending = async {
            for count in 1..=3 {
                from.send_to(b"good", place).await.expect("sent");
                taken_are(count).await;
            }
            from.send_to(b"bad", place).await.expect("sent");
            taken_are(4).await;
            assert_eq!(began.elapsed(), Duration::ZERO, "none of them waited");
            for _ in 0..50 {
                from.send_to(b"bad", place).await.expect("sent");
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
            let late = taken.borrow()[4..].to_vec();
            assert_eq!(late.len(), 50);
            assert!(late[0] >= FLOOD_REST && late.iter().all(|at| *at == late[0]), "{late:?}");
            from.send_to(b"good", place).await.expect("sent");
            taken_are(55).await;
            assert_eq!(began.elapsed(), Duration::from_millis(10), "it did not wait");
        };
        tokio::select! {
            () = taking => unreachable!("it goes on for ever"),
            done = timeout(Duration::from_secs(60), sending) => done.expect("all were taken"),
        }
    }

    #[test]
    fn an_old_beat_is_not_heard_again_but_a_restarted_peer_is() {
        let ear = Ear::new(Duration::from_millis(200));
        let now = Instant::now();
        assert!(ear.hear(0, &beat(5), now));
        assert!(!ear.hear(0, &beat(5), now) && !ear.hear(0, &beat(4), now));
        assert!(ear.hear(1, &beat(4), now), "another path");
        assert!(ear.hear(0, &Beat { incarnation: 1, ..beat(1) }, now));
    }
}
