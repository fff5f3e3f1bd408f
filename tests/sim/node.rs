//! One node: its devices, which outlive everything, and its process, which does not.

use std::collections::BTreeMap;
use std::time::Duration;

use repblk::condition::{DiskState, Role};
use repblk::meta::{
    DeviceFacts, FormatParams, Layout, MetaPage, Note, PAGE_LEN, Page, Recovered, RecoveryError, Unrecovered, format,
};
use repblk::units::{ByteRange, ClusterId, DiskInstance, Moment, PeerNo, SessionId, Term, VolumeId};
use repblk::volume::io::{PeerView, Snapshot};
use repblk::volume::{PaceLimits, Volume, VolumeConfig};

use crate::arbitration::Deputy;
use crate::disk::{Image, SimDisk};
use crate::pool::Pool;
use crate::rng::Rng;
use crate::swarm::Options;

/// Nodes of a world, at most.
pub(crate) const NODES_MAX: usize = 3;

/// The nodes form a star: node A has a link to each other, and they have none among themselves.
pub(crate) fn others(node: usize, nodes: usize) -> std::ops::Range<usize> {
    if node == 0 { 1..nodes } else { 0..1 }
}

/// The number under which `node` knows `other`.
pub(crate) fn peer_no(node: usize, other: usize) -> PeerNo {
    PeerNo(if node == 0 { u8::try_from(other - 1).expect("few nodes") } else { 0 })
}

/// The node that `node` knows as `peer`.
pub(crate) fn node_of(node: usize, peer: PeerNo) -> usize {
    if node == 0 { usize::from(peer.0) + 1 } else { 0 }
}

/// How traces and reports name a node.
pub(crate) fn letter(node: usize) -> char {
    ['A', 'B', 'C'][node]
}

/// A short name for what recovery noted.
fn word(note: &Note) -> &'static str {
    match note {
        Note::SuperblockCopy => "one superblock is damaged",
        Note::LogUnusable(_) => "the activity log is unusable",
        Note::BitmapPages { .. } => "bitmap pages are damaged",
        _ => "something else is damaged",
    }
}

/// The name of a node in the configuration.
fn name(node: usize) -> String {
    ["alpha", "beta", "gamma"][node].to_owned()
}

/// What `repblk init` writes.
pub(crate) fn blank(instance: DiskInstance, options: &Options) -> Vec<MetaPage> {
    format(&FormatParams {
        cluster: ClusterId(7),
        cluster_name: "sim".to_owned(),
        volume: VolumeId(9),
        volume_name: "v".to_owned(),
        instance,
        data_len: options.data_len,
        extent_len: options.extent_len,
        al_slots: options.al_slots,
    })
}

/// A running daemon.
#[derive(Clone, Debug)]
pub(crate) struct Process {
    /// The machine.
    pub(crate) volume: Volume,
    /// Its buffers.
    pub(crate) pool: Pool,
    /// Sessions that were announced and are not gone, and the client of each.
    pub(crate) sessions: BTreeMap<SessionId, usize>,
    /// A `TurnEnd` is due.
    pub(crate) turn_pending: bool,
    /// When the machine is to be woken.
    pub(crate) wake_at: Option<u64>,
    /// Wakes at one moment, one after the other: a machine must not spin.
    pub(crate) wakes_now: u32,
    /// A clean end was asked for.
    pub(crate) ending: bool,
    /// Decides about failover, in a world with an arbiter.
    pub(crate) deputy: Option<Box<Deputy>>,
}

/// A server.
#[derive(Clone, Debug)]
pub(crate) struct Node {
    /// 0 or 1.
    pub(crate) index: usize,
    /// Its devices.
    pub(crate) disk: SimDisk,
    /// The daemon, while it runs.
    pub(crate) process: Option<Process>,
    /// Counts starts and ends of the process: what was scheduled for another life is dropped.
    pub(crate) life: u64,
    /// Identity of the host's boot.
    pub(crate) boot: u128,
    /// Identity of its copy.
    pub(crate) instance: DiskInstance,
    /// Its process is stopped until then.
    pub(crate) paused_until: u64,
    /// A superblock was damaged since the disk was formatted: the other may be torn when it is needed.
    pub(crate) superblock_damaged: bool,
    /// A snapshot of an earlier time, and the identity of the copy then.
    pub(crate) snapshot: Option<(DiskInstance, Image)>,
    /// The clock's start.
    clock_offset: u64,
    /// The clock's speed: this many millionths faster.
    clock_ppm: u64,
    entropy: Rng,
}

impl Node {
    /// A host with formatted devices, off.
    pub(crate) fn new(index: usize, options: &Options, rng: &mut Rng) -> Self {
        let instance = DiskInstance(u128::from(rng.next()) << 32 | (index as u128 + 1));
        let layout = Layout::for_data_len(options.data_len);
        let mut disk = SimDisk::new(options.data_len, layout.total_len(), options.disk_delay, rng.fork(1));
        disk.faults = options.disk_faults;
        disk.write_through = options.write_through[index];
        disk.format(&blank(instance, options));
        Self {
            index,
            disk,
            process: None,
            life: 0,
            boot: u128::from(rng.next()) | 1,
            instance,
            paused_until: 0,
            superblock_damaged: false,
            snapshot: None,
            clock_offset: rng.below(1 << 50),
            clock_ppm: if options.drift_ppm_max == 0 { 0 } else { rng.below(options.drift_ppm_max + 1) },
            entropy: rng.fork(2),
        }
    }

    /// What the node's clock shows at virtual time `now`.
    pub(crate) fn clock(&self, now: u64) -> Moment {
        Moment(self.clock_offset + now + now / 1_000_000 * self.clock_ppm)
    }

    /// The first virtual time at which the node's clock has reached `moment`.
    pub(crate) fn when(&self, moment: Moment) -> u64 {
        let local = moment.0.saturating_sub(self.clock_offset);
        let mut now = local - local / (1_000_000 + self.clock_ppm) * self.clock_ppm;
        while self.clock(now) < moment {
            now += 1 + (moment.0 - self.clock(now).0) / 2;
        }
        now
    }

    /// Starts the daemon: recovers the metadata and makes a machine of it. False when the copy cannot be attached.
    ///
    /// Gives what recovery found remarkable.
    ///
    /// # Errors
    /// When there is no whole superblock.
    pub(crate) fn start(&mut self, options: &Options) -> Result<Vec<String>, RecoveryError> {
        assert!(self.process.is_none(), "it is running already");
        self.life += 1;
        self.paused_until = 0;
        self.disk.open();
        let recovered = self.recover(options.data_len)?;
        let mut found: Vec<String> = recovered.notes.iter().map(|note| format!("attach: {}", word(note))).collect();
        found.push(format!("attach: continuity {:?}", recovered.continuity));
        let config = self.config(options);
        let entropy = self.entropy.next();
        let volume = Volume::new(config, recovered, entropy);
        self.process = Some(Process {
            volume,
            pool: Pool::default(),
            sessions: BTreeMap::new(),
            turn_pending: false,
            wake_at: None,
            wakes_now: 0,
            ending: false,
            deputy: None,
        });
        Ok(found)
    }

    fn config(&self, options: &Options) -> VolumeConfig {
        VolumeConfig {
            node: name(self.index),
            peers: others(self.index, options.nodes).map(name).collect(),
            mode: options.mode,
            peer_timeout: Duration::from_secs(3),
            ping_interval: Duration::from_millis(500),
            backlog_bytes_max: options.backlog_bytes_max,
            backlog_age_max: Duration::from_secs(2),
            pace: PaceLimits { rate_max: options.rate_max, rate_min: 1 << 20 },
            resume_primary: options.resume_primary,
            cool_after: Duration::from_secs(3),
            write_through: self.disk.write_through,
            arbitrated: options.arbitrated,
            boot: self.boot,
            limits: options.limits,
        }
    }

    /// The newest whole superblock on the disk, and where the zones stand.
    pub(crate) fn read_superblock(&self, data_len: u64) -> Result<Unrecovered, RecoveryError> {
        let disk = &self.disk;
        let page = |copy: usize| -> Box<Page> {
            let bytes = disk.meta_bytes(ByteRange::new(Layout::superblock_offset(copy), PAGE_LEN as u64));
            bytes.into_boxed_slice().try_into().expect("one page")
        };
        let facts = DeviceFacts { data_len, metadata_len: Layout::for_data_len(data_len).total_len() };
        Unrecovered::read(&page(0), &page(1), facts)
    }

    fn recover(&self, data_len: u64) -> Result<Recovered, RecoveryError> {
        let disk = &self.disk;
        let unrecovered = self.read_superblock(data_len)?;
        let log = unrecovered.activity_log_range().map(|range| disk.meta_bytes(range)).unwrap_or_default();
        let bitmaps = unrecovered.bitmap_ranges().map(|range| range.map(|range| disk.meta_bytes(range)));
        Ok(unrecovered.recover(&log, bitmaps, self.boot))
    }

    /// The machine's view of itself, while there is one.
    pub(crate) fn snapshot(&self, now: u64) -> Option<Snapshot> {
        self.process.as_ref().map(|p| p.volume.snapshot(self.clock(now)))
    }

    /// What the node's heartbeats to `other` say.
    pub(crate) fn view(&self, other: usize) -> Option<PeerView> {
        self.process.as_ref().map(|p| p.volume.view_for(peer_no(self.index, other)))
    }

    /// What the node says of itself to anybody.
    fn self_view(&self) -> Option<PeerView> {
        self.process.as_ref().map(|p| p.volume.view_for(PeerNo(0)))
    }

    /// The node's role, while it runs.
    pub(crate) fn role(&self) -> Option<Role> {
        self.self_view().map(|view| view.role)
    }

    /// The node's term, while it runs.
    pub(crate) fn term(&self) -> Option<Term> {
        self.self_view().map(|view| view.term)
    }

    /// True when the node serves clients.
    pub(crate) fn is_primary(&self) -> bool {
        self.role() == Some(Role::Primary)
    }

    /// True when the node's disk state is `disk`.
    pub(crate) fn disk_is(&self, disk: DiskState) -> bool {
        self.self_view().is_some_and(|view| view.disk == disk)
    }

    /// The running machine.
    ///
    /// # Panics
    /// When the process does not run.
    pub(crate) fn running(&mut self) -> &mut Process {
        self.process.as_mut().expect("the caller has checked that it runs")
    }
}
