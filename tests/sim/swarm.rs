//! Each seed draws its own world: sizes, limits, modes, and which faults happen how often.

use repblk::condition::Mode;
use repblk::volume::Limits;

use crate::disk::DiskFaults;
use crate::media::Loss;
use crate::node::NODES_MAX;
use crate::rng::Rng;

/// One millisecond of virtual time.
pub(crate) const MS: u64 = 1_000_000;
/// One second of virtual time.
pub(crate) const SECOND: u64 = 1000 * MS;

/// What one run is made of. A scenario starts from [`Options::calm`]; a seed from [`Options::draw`].
#[derive(Clone, Debug)]
pub(crate) struct Options {
    /// Nodes: 2, or 3, of which the first is the only one that is ever primary.
    pub(crate) nodes: usize,
    /// Length of the data in bytes.
    pub(crate) data_len: u64,
    /// Slots of the activity log.
    pub(crate) al_slots: u32,
    /// Length of an extent in bytes.
    pub(crate) extent_len: u32,
    /// Acknowledgement mode of both nodes.
    pub(crate) mode: Mode,
    /// Bounds of the machine's memory.
    pub(crate) limits: Limits,
    /// `async`: bytes not yet replicated, at most.
    pub(crate) backlog_bytes_max: u64,
    /// Resync in bytes a second at most; 0 for no bound.
    pub(crate) rate_max: u64,
    /// A primary that was killed becomes primary again when the peer consents.
    pub(crate) resume_primary: bool,
    /// A record says who is primary.
    pub(crate) arbitrated: bool,
    /// How long clients and faults go on.
    pub(crate) busy_for: u64,
    /// Clients.
    pub(crate) clients: usize,
    /// Requests that a client has under way at most.
    pub(crate) depth: usize,
    /// Mean time between two requests of one client.
    pub(crate) think: u64,
    /// Longest request in sectors.
    pub(crate) request_sectors_max: u64,
    /// Sectors that clients use; fewer make more conflicts.
    pub(crate) span: u64,
    /// A flush in so many requests.
    pub(crate) flush_every: u64,
    /// Mean delay of a disk operation.
    pub(crate) disk_delay: u64,
    /// Disks that have no volatile cache.
    pub(crate) write_through: [bool; NODES_MAX],
    /// Mean delay of bytes on the link.
    pub(crate) latency: u64,
    /// Random disk faults.
    pub(crate) disk_faults: DiskFaults,
    /// What a power loss leaves; drawn anew each time when none.
    pub(crate) loss: Option<Loss>,
    /// Mean time between power losses of some node; 0: none.
    pub(crate) power_every: u64,
    /// Mean time between killed processes; 0: none.
    pub(crate) kill_every: u64,
    /// Mean time between link cuts; 0: none.
    pub(crate) cut_every: u64,
    /// Mean time between one-way stalls; 0: none.
    pub(crate) stall_every: u64,
    /// Mean time between damaged bits; 0: none.
    pub(crate) damage_every: u64,
    /// Mean time between power losses of both nodes at once; 0: none.
    pub(crate) both_every: u64,
    /// Mean time between operator's whims; 0: none.
    pub(crate) whim_every: u64,
    /// Mean time between rotten sectors; 0: none.
    pub(crate) rot_every: u64,
    /// Mean time between damages to metadata; 0: none.
    pub(crate) meta_damage_every: u64,
    /// Mean time between replaced disks; 0: none.
    pub(crate) replace_every: u64,
    /// Mean time between stopped processes; 0: none.
    pub(crate) pause_every: u64,
    /// Heartbeats lost, in a thousand.
    pub(crate) heartbeats_lost: u64,
    /// The operator promotes without looking.
    pub(crate) careless: bool,
    /// Faults have no bound and never end: only safety is checked.
    pub(crate) unbounded: bool,
    /// The shell tells the machine of a link that the machine itself closed.
    pub(crate) echo_close: bool,
    /// Clock drift of node B against node A in parts per million, up to this, either way.
    pub(crate) drift_ppm_max: u64,
}

impl Options {
    /// A small volume, steady clients, no faults.
    pub(crate) fn calm() -> Self {
        Self {
            nodes: 2,
            data_len: 1 << 20,
            al_slots: 8,
            extent_len: 64 << 10,
            mode: Mode::Sync,
            limits: Limits::default(),
            backlog_bytes_max: 256 << 10,
            rate_max: 0,
            resume_primary: false,
            arbitrated: false,
            busy_for: 0,
            clients: 0,
            depth: 4,
            think: 2 * MS,
            request_sectors_max: 64,
            span: 2048,
            flush_every: 10,
            disk_delay: 100_000,
            write_through: [false; NODES_MAX],
            latency: 100_000,
            disk_faults: DiskFaults::default(),
            loss: Some(Loss::Anything),
            power_every: 0,
            kill_every: 0,
            cut_every: 0,
            stall_every: 0,
            damage_every: 0,
            both_every: 0,
            whim_every: 0,
            rot_every: 0,
            meta_damage_every: 0,
            replace_every: 0,
            pause_every: 0,
            heartbeats_lost: 0,
            careless: false,
            unbounded: false,
            echo_close: true,
            drift_ppm_max: 0,
        }
    }

    /// The options of a seed.
    pub(crate) fn draw(rng: &mut Rng) -> Self {
        let data_len = (1u64 << 20) * rng.pick(&[1, 1, 1, 2, 2, 4]);
        let sectors = data_len / 512;
        let busy_for = rng.between(2, 12) * SECOND;
        let careless = rng.chance(1, 12);
        let mode = rng.pick(&[Mode::Sync, Mode::Sync, Mode::Sync, Mode::SemiSync, Mode::Async]);
        let disk = rng.chance(1, 4);
        let mut rate = |of_four: u64, low: u64, high: u64| {
            if rng.chance(of_four, 4) { rng.between(low, high) * 100 * MS } else { 0 }
        };
        let power_every = rate(2, 10, 60);
        let kill_every = rate(2, 8, 60);
        let cut_every = rate(2, 3, 40);
        let stall_every = rate(1, 10, 60);
        let damage_every = rate(1, 5, 40);
        let both_every = rate(1, 20, 80);
        let whim_every = rate(2, 3, 30);
        let disk_faults = if disk {
            DiskFaults {
                read_eio: rng.pick(&[0, 200, 1000]),
                write_eio: rng.pick(&[0, 100, 500]),
                flush_eio: rng.pick(&[0, 200, 1000]),
                meta_eio: rng.pick(&[0, 0, 200, 1000]),
                hang: rng.pick(&[0, 0, 100]),
                ..DiskFaults::default()
            }
        } else {
            DiskFaults::default()
        };
        Self {
            data_len,
            al_slots: rng.pick(&[8, 8, 9, 12]),
            extent_len: 64 << 10,
            mode,
            limits: Limits {
                log_entries: rng.pick(&[64, 256, 1024]),
                unstable_bytes: rng.pick(&[128 << 10, 1 << 20]),
                segment_len: rng.pick(&[4096, 16 << 10, 64 << 10]),
                hole_len: rng.pick(&[16 << 10, 64 << 10]),
            },
            backlog_bytes_max: rng.pick(&[64 << 10, 1 << 20]),
            rate_max: rng.pick(&[0, 0, 4 << 20, 32 << 20]),
            resume_primary: rng.coin(),
            arbitrated: false,
            busy_for,
            clients: rng.pick(&[1, 1, 2, 3]),
            depth: rng.pick(&[1, 4, 8, 16]),
            think: rng.pick(&[MS, 2 * MS, 5 * MS, 15 * MS]),
            request_sectors_max: rng.pick(&[1, 8, 16, 64, 128]),
            span: if rng.coin() { sectors } else { rng.between(64, sectors) },
            flush_every: rng.pick(&[3, 10, 50, 1000]),
            disk_delay: rng.pick(&[20_000, 100_000, 100_000, 500_000, 3 * MS]),
            latency: rng.pick(&[30_000, 100_000, 500_000, 5 * MS]),
            disk_faults,
            loss: rng.pick(&[None, None, Some(Loss::Anything), Some(Loss::Everything)]),
            power_every,
            kill_every,
            cut_every,
            stall_every,
            damage_every,
            both_every,
            whim_every,
            heartbeats_lost: rng.pick(&[0, 0, 50, 500]),
            careless,
            unbounded: rng.chance(1, 12),
            echo_close: rng.coin(),
            drift_ppm_max: rng.pick(&[0, 200]),
            ..Self::calm()
        }
    }

    /// A primary with two secondaries. Nothing makes a secondary primary, and the primary's power stays: see `docs/testing.md`.
    fn trio(mut self, rng: &mut Rng) -> Self {
        self.nodes = 3;
        self.mode = Mode::Sync;
        self.careless = false;
        self.disk_faults = DiskFaults::default();
        self.replace_every = 0;
        self.cut_every = rng.pick(&[self.cut_every, SECOND / 2, SECOND]);
        self
    }

    /// Adds what the first seeds did not know: disks that lie, rot or are exchanged, processes that stop for a while, and
    /// limits so small that they are met all the time. A draw of its own, so that old seeds keep their meaning.
    pub(crate) fn harden(mut self, rng: &mut Rng) -> Self {
        let mut rate = |of_eight: u64, low: u64, high: u64| {
            if rng.chance(of_eight, 8) { rng.between(low, high) * 100 * MS } else { 0 }
        };
        self.rot_every = rate(1, 2, 20);
        self.meta_damage_every = rate(2, 3, 30);
        self.replace_every = rate(2, 10, 40);
        self.pause_every = rate(2, 10, 60);
        if rng.chance(1, 8) {
            self.disk_faults.dropped = rng.pick(&[0, 2000]);
            self.disk_faults.misdirected = rng.pick(&[0, 2000]);
        }
        if rng.chance(1, 6) {
            self = self.trio(rng);
        }
        if rng.chance(1, 5) {
            self.limits.log_entries = rng.pick(&[8, 16, 32]);
            self.limits.unstable_bytes = 8 << 10;
            self.backlog_bytes_max = 8 << 10;
            self.span = self.data_len / 512;
        }
        if rng.chance(1, 4) {
            self.write_through = [rng.coin(), rng.coin(), rng.coin()];
        }
        self
    }
}
