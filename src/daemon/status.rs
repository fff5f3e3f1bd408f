//! What `repblk status --json` says: schema 1. Fields may be added to it; none is renamed, removed or given another
//! meaning without a new schema number.

use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::condition::{DiskState, Role};
use crate::dataplane::mailbox::{Counters, State};
use crate::volume::io::{PeerSnapshot, ResyncView, Snapshot};

use super::events::now_ms;
use super::failover::look::FailoverStatus;
use super::services::ServiceStatus;

/// Number of this schema.
pub const SCHEMA: u32 = 1;

/// A node.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Status {
    /// [`SCHEMA`].
    pub schema: u32,
    /// Name of the cluster.
    pub cluster: String,
    /// Name of the node.
    pub node: String,
    /// Version of the daemon.
    pub version: String,
    /// Its process.
    pub pid: u32,
    /// Who decides about failover: `etcd`, `fence`, `agent`, `none`.
    pub arbiter: String,
    /// What that guarantees, as a sentence.
    pub guarantee: String,
    /// The volumes of which this node holds a copy.
    pub volumes: Vec<VolumeStatus>,
}

/// A volume.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
pub struct VolumeStatus {
    /// Name of the volume.
    pub volume: String,
    /// `primary` or `secondary`; `unknown` when its thread never answered.
    pub role: String,
    /// `uptodate`, `outdated`, `inconsistent`, `diverged`, `failed`; `unknown` as above.
    pub disk_state: String,
    /// `sync`, `semisync`, `async`.
    pub mode: String,
    /// Current generation, 16 hexadecimal digits; zeros on a copy that never held data.
    pub generation: String,
    /// Term.
    pub term: u64,
    /// Bytes of the volume.
    pub size_bytes: u64,
    /// The device.
    pub device: String,
    /// Clients.
    pub nbd: NbdStatus,
    /// The other copies.
    pub peers: Vec<PeerStatus>,
    /// The running resync, if any.
    pub resync: Option<ResyncStatus>,
    /// Why requests wait, if they do.
    pub frozen: Option<Frozen>,
    /// Whether this copy could be promoted now.
    pub promotable: Promotable,
    /// What failover makes of it.
    pub failover: FailoverStatus,
    /// What runs on the primary, in the order in which it starts.
    pub services: Vec<ServiceStatus>,
    /// Requests in the machine.
    pub requests: u64,
    /// Writes not yet stable on every copy.
    pub unstable_writes: u64,
    /// Bytes mirrored since the start.
    pub mirrored_bytes: u64,
    /// Bytes resynced since the start.
    pub resynced_bytes: u64,
    /// Counters since the start.
    pub counters: CounterStatus,
    /// Seconds since the volume's thread started.
    pub up_s: u64,
    /// Set when the volume's thread did not answer in time: what is the matter. The other fields are then old.
    pub trouble: Option<String>,
}

/// NBD side of a volume.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
pub struct NbdStatus {
    /// Connected clients.
    pub clients: u64,
    /// Where this node takes clients.
    pub listen: Vec<String>,
}

/// Another copy.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
pub struct PeerStatus {
    /// Its node.
    pub name: String,
    /// `connected`, `connecting`, `negotiating`, `standalone`.
    pub connection: String,
    /// For how long it has been so, in milliseconds.
    pub connection_ms: u64,
    /// `established`, `source`, `target`, `paused`, `off`.
    pub replication: String,
    /// As last heard; `unknown` before.
    pub disk_state: String,
    /// As last heard; `unknown` before.
    pub role: String,
    /// Bytes that may differ from ours.
    pub out_of_sync_bytes: u64,
    /// Why it is not connected or not replicating.
    pub why: String,
    /// Heartbeats, one entry for each path.
    pub heartbeat: Vec<HeartbeatStatus>,
}

/// One heartbeat path to a peer.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct HeartbeatStatus {
    /// The peer's address.
    pub address: String,
    /// One was heard within five intervals.
    pub alive: bool,
    /// Milliseconds since the last; null when none was ever heard.
    pub age_ms: Option<u64>,
    /// The peer says that it hears us on this path.
    pub heard_by_peer: bool,
}

/// A resync.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
pub struct ResyncStatus {
    /// The peer.
    pub peer: String,
    /// `source` or `target`.
    pub part: String,
    /// 0 to 100, two decimals.
    pub percent: f64,
    /// Bytes copied.
    pub bytes_done: u64,
    /// Bytes to copy in all.
    pub bytes_total: u64,
    /// Bytes a second since it began.
    pub rate: u64,
    /// Seconds to go at that rate; null when the rate is 0.
    pub eta_s: Option<u64>,
    /// Paused by an operator.
    pub paused: bool,
}

/// Why requests wait.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Frozen {
    /// The reason.
    pub reason: String,
    /// Since when, in milliseconds since 1970.
    pub since: u64,
    /// How long already, in milliseconds.
    pub for_ms: u64,
}

/// Whether a copy could be promoted.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Promotable {
    /// It could.
    pub yes: bool,
    /// Why it could not, and what to do; empty when it could.
    pub reason: String,
    /// The rule that forbids it; null when it could.
    pub rule: Option<String>,
}

/// Counters since the start of the volume's thread; see [`Counters`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[allow(missing_docs, reason = "the names and meanings are those of `Counters`")]
pub struct CounterStatus {
    pub reads: u64,
    pub read_bytes: u64,
    pub writes: u64,
    pub write_bytes: u64,
    pub flushes: u64,
    pub holes: u64,
    pub errors: u64,
    pub frames_sent: u64,
    pub frames_received: u64,
    pub link_bytes_sent: u64,
    pub link_bytes_received: u64,
    pub metadata_commits: u64,
    pub disk_flushes: u64,
}

impl VolumeStatus {
    /// Takes over what the volume's thread said `age` ago.
    pub(super) fn fill(&mut self, state: &State, age: Duration) {
        let Snapshot { role, disk, mode, generation, term, peers, resync, frozen, not_promotable, .. } = &state.volume;
        self.role = role.to_string();
        self.disk_state = disk.to_string();
        self.mode = mode.to_string();
        self.generation = generation.to_string();
        self.term = term.0;
        self.nbd.clients = state.clients as u64;
        self.peers = peers.iter().map(PeerStatus::of).collect();
        self.resync = resync.as_ref().map(|view| ResyncStatus::of(view, peers));
        self.frozen = frozen.as_ref().map(|(reason, so_far)| Frozen {
            reason: reason.clone(),
            since: now_ms().saturating_sub(millis(*so_far + age)),
            for_ms: millis(*so_far + age),
        });
        self.promotable = match not_promotable {
            None => Promotable { yes: true, reason: String::new(), rule: None },
            Some(refusal) => Promotable {
                yes: false,
                reason: format!("{}. {}", refusal.what, refusal.way_out),
                rule: Some(refusal.rule.to_string()),
            },
        };
        self.requests = state.volume.requests as u64;
        self.unstable_writes = state.volume.unstable_writes as u64;
        self.mirrored_bytes = state.volume.mirrored_bytes;
        self.resynced_bytes = state.volume.resynced_bytes;
        self.counters = CounterStatus::of(&state.counters);
        self.up_s = (state.up + age).as_secs();
    }
}

impl PeerStatus {
    fn of(peer: &PeerSnapshot) -> Self {
        Self {
            name: peer.name.clone(),
            connection: peer.connection.to_owned(),
            connection_ms: millis(peer.since),
            replication: peer.replication.to_owned(),
            disk_state: peer.disk.map_or("unknown", DiskState::word).to_owned(),
            role: peer.role.map_or("unknown", Role::word).to_owned(),
            out_of_sync_bytes: peer.out_of_sync_bytes,
            why: peer.why.clone(),
            heartbeat: Vec::new(),
        }
    }
}

impl ResyncStatus {
    fn of(view: &ResyncView, peers: &[PeerSnapshot]) -> Self {
        let rate = rate(view);
        Self {
            peer: peers.get(usize::from(view.peer.0)).map(|peer| peer.name.clone()).unwrap_or_default(),
            part: part(view).to_owned(),
            percent: percent(view.done, view.total),
            bytes_done: view.done,
            bytes_total: view.total,
            rate,
            eta_s: view.total.saturating_sub(view.done).div_ceil(rate.max(1)).into(),
            paused: view.paused,
        }
        .without_guess(rate)
    }

    fn without_guess(mut self, rate: u64) -> Self {
        if rate == 0 || self.paused {
            self.eta_s = None;
        }
        self
    }
}

impl CounterStatus {
    fn of(c: &Counters) -> Self {
        Self {
            reads: c.reads,
            read_bytes: c.read_bytes,
            writes: c.writes,
            write_bytes: c.write_bytes,
            flushes: c.flushes,
            holes: c.holes,
            errors: c.errors,
            frames_sent: c.frames_sent,
            frames_received: c.frames_received,
            link_bytes_sent: c.link_bytes_sent,
            link_bytes_received: c.link_bytes_received,
            metadata_commits: c.metadata_commits,
            disk_flushes: c.disk_flushes,
        }
    }
}

/// This node's part in a resync.
pub(super) fn part(view: &ResyncView) -> &'static str {
    if view.source { "source" } else { "target" }
}

/// Bytes a second since the resync began.
pub(super) fn rate(view: &ResyncView) -> u64 {
    u64::try_from(u128::from(view.done) * 1000 / view.elapsed.as_millis().max(1)).unwrap_or(u64::MAX)
}

/// `done` of `total` in percent with two decimals, cut and not rounded: 100 means all.
pub(super) fn percent(done: u64, total: u64) -> f64 {
    let hundredths = if total == 0 { 10_000 } else { u128::from(done) * 10_000 / u128::from(total) };
    f64::from(u32::try_from(hundredths.min(10_000)).expect("at most 10,000")) / 100.0
}

pub(super) fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::condition::Mode;
    use crate::units::{GenerationId, PeerNo, Term};
    use crate::volume::io::Refusal;
    use crate::volume::rule::Rule;

    fn state() -> State {
        let peer = PeerSnapshot {
            name: "beta".into(),
            connection: "connected",
            since: Duration::from_millis(60),
            replication: "source",
            disk: Some(DiskState::Inconsistent),
            role: None,
            out_of_sync_bytes: 8192,
            base: GenerationId(1),
            why: String::new(),
        };
        let resync = ResyncView {
            peer: PeerNo(0),
            source: true,
            done: 3 << 20,
            total: 4 << 20,
            elapsed: Duration::from_secs(3),
            finished: false,
            paused: false,
        };
        let refusal = Refusal { rule: Rule::AlreadyPrimary, what: "it is".into(), way_out: "Nothing to do".into() };
        let volume = Snapshot {
            role: Role::Primary,
            disk: DiskState::UpToDate,
            mode: Mode::Sync,
            generation: GenerationId(0xabc),
            history: [GenerationId::NONE; crate::generation::HISTORY_LEN],
            term: Term(7),
            whole_since: Term(0),
            peers: vec![peer],
            resync: Some(resync),
            frozen: Some(("the peer is asked".into(), Duration::from_millis(40))),
            not_promotable: Some(refusal),
            requests: 1,
            unstable_writes: 2,
            mirrored_bytes: 3,
            resynced_bytes: 4,
        };
        State { volume, clients: 2, counters: Counters::default(), up: Duration::from_secs(5) }
    }

    #[test]
    fn the_schema_has_what_was_promised() {
        let mut status = VolumeStatus { volume: "mes".into(), ..VolumeStatus::default() };
        status.fill(&state(), Duration::ZERO);
        let mut value = serde_json::to_value(&status).expect("a plain value");
        assert!(value["frozen"]["since"].as_u64().is_some_and(|since| since > 1_600_000_000_000));
        value["frozen"]["since"] = 0.into();
        value.as_object_mut().expect("an object").remove("counters");
        let expected = serde_json::json!({
            "volume": "mes", "role": "primary", "disk_state": "uptodate", "mode": "sync", "generation": "0000000000000abc",
            "term": 7, "size_bytes": 0, "device": "", "nbd": {"clients": 2, "listen": []},
            "peers": [{"name": "beta", "connection": "connected", "connection_ms": 60, "replication": "source", "disk_state": "inconsistent",
                "role": "unknown", "out_of_sync_bytes": 8192, "why": "", "heartbeat": []}],
            "resync": {"peer": "beta", "part": "source", "percent": 75.0, "bytes_done": 3 << 20, "bytes_total": 4 << 20,
                "rate": 1 << 20, "eta_s": 1, "paused": false},
            "frozen": {"reason": "the peer is asked", "since": 0, "for_ms": 40},
            "promotable": {"yes": false, "reason": "it is. Nothing to do", "rule": "already-primary"},
            "failover": {"rule": "", "sentence": "", "verdict": "", "evidence": "", "lease_ms": null, "maintenance": false}, "services": [],
            "requests": 1, "unstable_writes": 2, "mirrored_bytes": 3, "resynced_bytes": 4, "up_s": 5, "trouble": null
        });
        assert_eq!(value, expected);
    }

    #[test]
    fn percent_says_100_only_when_all_is_done() {
        assert!((percent(9_999_999, 10_000_000) - 99.99).abs() < 1e-9);
        assert!((percent(0, 0) - 100.0).abs() < 1e-9);
        assert!((percent(u64::MAX, u64::MAX) - 100.0).abs() < 1e-9);
    }
}
