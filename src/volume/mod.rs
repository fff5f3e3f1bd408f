//! Rank 2, machine: one volume on one node.
//!
//! Everything that happens to a volume comes in through [`Volume::step`], one [`Input`] at a time, and leaves as
//! [`Effect`]s; [`io`] lists every word. The machine knows no file, socket, thread or clock, and no NBD: any shell that
//! keeps the rules of [`io`] can drive it, and the simulator in `tests/sim` is one.
//!
//! | file | noun |
//! |---|---|
//! | `primary` | a client's request: admission, launch, counting copies, reply |
//! | `mirror` | a peer's cursor: acknowledgements, loss |
//! | `exclusion` | going on without a peer that was in sync, or without the own disk |
//! | `secondary` | the stream of a primary: apply, order, acknowledge |
//! | `greeting` | a link from its first word to its verdict |
//! | `source`, `target` | the two sides of a resync |
//! | `roles` | promote, demote, switchover, shutdown |
//! | `orders` | promise, take over, stand down: what whoever decides about failover says |
//! | `copying` | resync, pause, disconnect, as an operator wants them |
//! | `stability` | flushes and barriers: who has made what stable |
//! | `foresight` | whether a flush is about to follow |
//! | `metadata` | commits: superblock, activity log, bitmap pages |
//! | `failure` | the local disk is lost |
//! | `status` | what an operator sees |
//!
//! and the parts that they own: `requests`, `in_flight`, `hot_extents`, `extent_index`, `transfer_log`, `book`, `peer`, `resync`,
//! `reconcile`, `rule`, `marks`.
//!
//! # Invariants, checked by [`Volume::assert_invariants`] after every step of the simulator
//!
//! 1. A block that may differ between this copy and a peer's is dirty in the peer's bitmap, or in a hot extent, or in the
//!    transfer log.
//! 2. A write is acknowledged without a peer that was in sync only after the generation without it is durable and the
//!    exclusion was allowed.
//! 3. A dirty bit is cleared only by an entry of the transfer log that was stable on both copies.
//! 4. Ranges in flight do not overlap.

mod book;
mod copying;
mod exclusion;
mod extent_index;
mod failure;
mod foresight;
mod greeting;
mod hot_extents;
mod in_flight;
pub mod io;
mod marks;
mod metadata;
mod mirror;
mod orders;
mod peer;
mod primary;
pub mod reconcile;
mod requests;
mod resync;
mod roles;
pub mod rule;
mod secondary;
mod source;
mod stability;
mod status;
mod target;
mod transfer_log;

use std::collections::VecDeque;
use std::time::Duration;

use crate::condition::{Continuity, DiskState, Mode, Role};
use crate::meta::{Layout, LogWriter, PEER_SLOTS, PeerRecord, Recovered};
use crate::units::{BufId, ByteRange, ConnectionId, GenerationId, Moment, OpId, PeerNo, Seq, Term};
use crate::volume::book::{Book, Obituary};
use crate::volume::hot_extents::HotExtents;
use crate::volume::in_flight::InFlight;
use crate::volume::io::{Effect, Input, Report};
use crate::volume::metadata::LogCommit;
use crate::volume::peer::Peer;
use crate::volume::requests::{Request, RequestId, Segment, SegmentId, Slab};
pub use crate::volume::resync::PaceLimits;
use crate::volume::roles::Transition;
use crate::volume::secondary::Stream;
use crate::volume::transfer_log::{Cursor, TransferLog};
use crate::wire::Message;

/// Effects of one or more steps, in the order they were decided.
pub type Effects = Vec<Effect>;

/// Bounds that keep a volume's memory and queues small.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Limits {
    /// Writes that may be not yet stable on every copy.
    pub log_entries: usize,
    /// Bytes of them before stability is asked for.
    pub unstable_bytes: u64,
    /// Longest part of a write that is mirrored as one, in bytes; at most [`crate::wire::frame::BODY_LEN_MAX`].
    pub segment_len: u64,
    /// Longest part of a trim or zero that is mirrored as one, in bytes.
    pub hole_len: u64,
}

impl Default for Limits {
    fn default() -> Self {
        Self { log_entries: 65_536, unstable_bytes: 32 << 20, segment_len: 256 << 10, hole_len: 64 << 20 }
    }
}

/// How a volume behaves.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct VolumeConfig {
    /// Name of this node, for the log.
    pub node: String,
    /// Names of the peers; their index is their [`PeerNo`].
    pub peers: Vec<String>,
    /// When a write is acknowledged.
    pub mode: Mode,
    /// A peer that is silent, or makes no progress, for this long is dropped.
    pub peer_timeout: Duration,
    /// An idle link is pinged this often.
    pub ping_interval: Duration,
    /// `async`: bytes acknowledged and not yet replicated, at most.
    pub backlog_bytes_max: u64,
    /// `async`: age of the oldest write acknowledged and not yet replicated, at most.
    pub backlog_age_max: Duration,
    /// Bounds of resync.
    pub pace: PaceLimits,
    /// A node that was primary when it stopped becomes primary again when the peer consents.
    pub resume_primary: bool,
    /// A record says which node is primary: this node never resumes that role by itself, and does not call a copy Diverged because it
    /// meets a primary that was superseded and does not know it yet.
    pub arbitrated: bool,
    /// Identity of the host's boot.
    pub boot: u128,
    /// An extent that nobody wrote to for one to two of these leaves the activity log. Short: little is copied again after a crash. Long: who
    /// writes to it again seldom has to wait for a commit of metadata, which costs as much as a flush.
    pub cool_after: Duration,
    /// The disk has no volatile cache: what it has written is stable. Whatever was written to it before this life is stable too.
    pub write_through: bool,
    /// Bounds of memory.
    pub limits: Limits,
}

/// What an outstanding operation was started for.
#[derive(Clone, Copy, Debug)]
enum Op {
    SegmentWrite(SegmentId),
    HostRead(RequestId),
    LocalFlush {
        covers: Seq,
    },
    ResyncRead {
        peer: PeerNo,
        connection: ConnectionId,
        range: ByteRange,
    },
    /// A generation is about to be committed.
    LineageFlush,
    /// The superblock learns that this copy is no good one.
    Obituary(Obituary),
    StreamWrite {
        seq: Seq,
    },
    StreamFlush {
        covers: Seq,
    },
    PeerRead {
        peer: PeerNo,
        connection: ConnectionId,
        id: u64,
        len: u32,
    },
    Superblock,
    LogCommit,
    BitmapCommit,
}

/// One volume on one node.
#[derive(Clone, Debug)]
pub struct Volume {
    config: VolumeConfig,
    layout: Layout,
    data_len: u64,
    book: Book,
    role: Role,
    continuity: Continuity,
    /// Every write acknowledged from this term on is here; of earlier ones that no flush covered some may be missing.
    whole_since: Term,
    /// State of the generator of generation ids.
    entropy: u64,
    attached: bool,
    attaching: bool,
    /// The ring of the activity log must be written anew before the first transaction.
    blank_log: bool,
    /// The disk is in use.
    local_ok: bool,
    /// No commit of metadata has failed.
    metadata_ok: bool,
    /// What the metadata is still to say of the local copy, whose disk has failed, and in how many copies of the superblock.
    obituary: Option<(Obituary, u8)>,
    /// A primary without a disk waits for a peer to record it.
    detaching: Option<failure::Detaching>,
    /// Segments whose local share waits for that.
    detach_waiting: Vec<SegmentId>,
    /// Become primary again when a peer consents.
    resume: bool,

    clients: usize,
    requests: Slab<Request>,
    segments: Slab<Segment>,
    /// Exclusions of this life.
    exclusions: u64,
    /// Segments that wait for room, oldest first.
    waiting: VecDeque<SegmentId>,
    /// Segments that wait for a range that another holds.
    conflicted: VecDeque<SegmentId>,
    /// Segments that wait for the activity log.
    warming: VecDeque<SegmentId>,
    /// Requests that came while the role is being given up.
    held: VecDeque<RequestId>,
    /// Requests that wait until everything up to a number is stable. The numbers never fall.
    flushes: VecDeque<(RequestId, Seq)>,
    /// The highest number of a write that is done, or from which on a copy takes part: what a flush covers.
    done: Seq,
    in_flight: InFlight,
    hot: HotExtents,
    log_writer: LogWriter,
    log_commit: LogCommit,
    bitmap_commit: Option<OpId>,
    lineage_flush: Option<OpId>,
    bitmaps_flushed: Moment,
    swept: Moment,
    cooled: Moment,
    log: TransferLog,
    local: Cursor,
    local_flush: Option<OpId>,
    /// Make everything up to here stable, besides what flushes ask for.
    stable_goal: Seq,
    foresight: foresight::Foresight,
    last_write: Moment,
    /// Last request of a client.
    host_active: Moment,
    peers: Vec<Peer>,
    stream: Option<Box<Stream>>,
    transition: Transition,
    promise: Option<orders::Promised>,
    /// This node stood down, and something of what was asked of it before is still under way.
    former_writes: bool,
    /// What was not flushed when this node stopped may be missing, until a peer has made it good.
    lost_cache: bool,
    /// Since when the disk owes something and answers nothing.
    disk_waits: Option<Moment>,
    disk_stalled: bool,
    ops: Slab<Op>,
    /// Reads asked of a peer.
    remote_reads: Vec<primary::RemoteRead>,
    next_remote_read: u64,
    /// Reads that a peer without a disk asked for and that wait for its own writes.
    peer_reads: VecDeque<(PeerNo, ConnectionId, u64, ByteRange)>,
    frozen_since: Option<Moment>,
    resync_reported: Moment,
    /// Dirty runs that are being read; each will want a place in the log.
    runs_reading: usize,
    resync_pumped: Moment,
    mirrored_bytes: u64,
    resynced_bytes: u64,
    notes: Vec<String>,
    marks: marks::Marks,
}

/// Requests that wait longer than this count as frozen.
const FROZEN_AFTER: Duration = Duration::from_millis(500);

impl Volume {
    /// A volume over what the metadata holds. `entropy` is a random number: generation ids are drawn from it.
    ///
    /// # Panics
    /// When the configuration names more peers than the metadata has slots for; the daemon checks.
    #[must_use]
    pub fn new(config: VolumeConfig, recovered: Recovered, entropy: u64) -> Self {
        assert!(config.peers.len() <= PEER_SLOTS, "the daemon bounds the peers");
        let Recovered { mut superblock, layout, mut bitmaps, continuity, notes, .. } = recovered;
        let mut peers = Vec::new();
        for name in &config.peers {
            let slot = superblock.peers.iter().position(|record| record.name == *name).or_else(|| {
                let free = superblock.peers.iter().position(|record| !record.is_used())?;
                superblock.peers[free] = PeerRecord { name: name.clone(), full: true, ..PeerRecord::default() };
                Some(free)
            });
            let slot = slot.expect("the daemon bounds the peers");
            let bitmap = bitmaps[slot].take().unwrap_or_else(|| {
                let mut bitmap = crate::meta::Bitmap::new(superblock.data_len);
                bitmap.set_all();
                bitmap
            });
            peers.push(Peer::new(name.clone(), PeerNo(u8::try_from(slot).expect("few slots")), bitmap));
        }
        let blank_log = notes.iter().any(|note| matches!(note, crate::meta::Note::LogUnusable(_)));
        let (al_slots, extent_len) = (superblock.al_slots, superblock.extent_len);
        let resume = config.resume_primary
            && !config.arbitrated
            && superblock.was_primary
            && superblock.disk == DiskState::UpToDate;
        // A copy that lost its cache may lack what was acknowledged and not flushed. In semisync a secondary may have been cut
        // off between receiving a write, for which the primary has its word, and applying it.
        let lost = continuity == Continuity::Lost
            || (config.mode == Mode::SemiSync && continuity != Continuity::Clean && !superblock.was_primary);
        let whole_since = if lost { superblock.term.next() } else { superblock.term };
        let start = Seq(1);
        Self {
            layout,
            data_len: superblock.data_len,
            local_ok: superblock.disk != DiskState::Failed,
            log_writer: LogWriter::new(superblock.instance, superblock.al_epoch + 1, al_slots),
            book: Book::new(superblock),
            role: Role::Secondary,
            continuity,
            whole_since,
            entropy,
            attached: false,
            attaching: false,
            blank_log,
            metadata_ok: true,
            obituary: None,
            detaching: None,
            detach_waiting: Vec::new(),
            resume,
            clients: 0,
            requests: Slab::default(),
            segments: Slab::default(),
            exclusions: 0,
            waiting: VecDeque::new(),
            conflicted: VecDeque::new(),
            warming: VecDeque::new(),
            held: VecDeque::new(),
            flushes: VecDeque::new(),
            done: Seq(0),
            in_flight: InFlight::default(),
            hot: HotExtents::new(al_slots, extent_len),
            log_commit: LogCommit::Idle,
            bitmap_commit: None,
            lineage_flush: None,
            bitmaps_flushed: Moment(0),
            swept: Moment(0),
            cooled: Moment(0),
            log: TransferLog::new(config.limits.log_entries, start),
            local: Cursor::joining(start),
            local_flush: None,
            stable_goal: Seq(0),
            foresight: foresight::Foresight::default(),
            last_write: Moment(0),
            host_active: Moment(0),
            peers,
            stream: None,
            transition: Transition::None,
            promise: None,
            former_writes: false,
            lost_cache: lost,
            disk_waits: None,
            disk_stalled: false,
            ops: Slab::default(),
            remote_reads: Vec::new(),
            next_remote_read: 0,
            peer_reads: VecDeque::new(),
            frozen_since: None,
            resync_reported: Moment(0),
            runs_reading: 0,
            resync_pumped: Moment(0),
            mirrored_bytes: 0,
            resynced_bytes: 0,
            notes: notes.iter().map(ToString::to_string).collect(),
            marks: marks::Marks::default(),
            config,
        }
    }

    /// Takes one input; what is to be done is appended to `out`.
    ///
    /// # Panics
    /// When the shell breaks a rule of [`io`]: those are errors of the program, not of a disk, peer or client.
    pub fn step(&mut self, now: Moment, input: Input, out: &mut Effects) {
        let answered = matches!(input, Input::DiskDone { .. } | Input::MetaDone { .. });
        let ends_turn = matches!(input, Input::TurnEnd);
        let mut settles = !self.is_ordinary(&input);
        match input {
            Input::Host { session, tag, op, range, fua } => self.host(now, (session, tag), op, range, fua, out),
            Input::HostHere { .. } => self.clients += 1,
            Input::HostGone { session } => self.host_gone(now, session, out),
            Input::LinkUp { peer, connection, instance } => self.link_up(now, peer, connection, instance, out),
            Input::Peer { peer, connection, term, message, buf } => {
                self.peer_says(now, (peer, connection), term, message, buf, out);
                settles |= self.peer(peer).connection() != Some(connection);
                if !settles {
                    self.pump_stream(out);
                }
            }
            Input::PeerPage { peer, connection, index, page } => {
                self.bitmap_page_heard(now, (peer, connection), index, &page, out);
            }
            Input::LinkDown { peer, connection, why } => {
                if self.peer(peer).connection() == Some(connection) {
                    self.lose_link(now, peer, why, out);
                }
            }
            Input::DiskDone { op, result } => {
                let done = self.ops.remove(place(op));
                self.disk_done(now, op, done, result, out);
            }
            Input::MetaDone { op, result } => {
                let done = self.ops.remove(place(op));
                self.meta_done(now, done, result, out);
            }
            Input::Command { ticket, command } => self.command(now, ticket, command, out),
            Input::PeerSeen { peer, view } => self.peer_seen(now, peer, view, out),
            Input::TurnEnd | Input::Wake => {}
        }
        if settles {
            self.settle(now, out);
        }
        if ends_turn {
            self.turn_end(now, out);
        }
        self.watch_disk(now, answered);
    }

    /// True for what happens with each write and read while nothing else does: all that follows from it but what it does itself can wait
    /// for the end of the turn, which is for many of them at once.
    fn is_ordinary(&self, input: &Input) -> bool {
        let calm = self.local_ok && self.detaching.is_none() && self.transition.is_none();
        calm && match input {
            Input::Host { .. } => self.role == Role::Primary,
            Input::Peer { message, .. } => matches!(message, Message::Write { .. } | Message::Ack { .. }),
            Input::DiskDone { op, result } => {
                result.is_ok()
                    && match self.ops.get(place(*op)) {
                        Op::SegmentWrite(_) | Op::HostRead(_) => true,
                        // When a stream that was cut off is done with, the next link may begin.
                        Op::StreamWrite { .. } => self.stream_is_live(),
                        _ => false,
                    }
            }
            _ => false,
        }
    }

    /// When [`Input::Wake`] is due, if nothing else happens before.
    #[must_use]
    pub fn next_deadline(&self) -> Option<Moment> {
        let mut next: Option<Moment> = None;
        let mut at = |moment: Option<Moment>| next = next.into_iter().chain(moment).min();
        for peer in &self.peers {
            at(self.peer_deadline(peer));
        }
        at(self.transition.deadline());
        at(self.detach_asked_again_at());
        at(self.disk_stall_due());
        at(self.idle_barrier_due());
        at(self.bitmap_flush_due());
        at(self.resync_due());
        at(self.cool_due());
        next
    }

    /// True when requests of clients are served.
    #[must_use]
    pub fn is_serving(&self) -> bool {
        self.role == Role::Primary
    }

    /// The generation under which requests are acknowledged now.
    #[must_use]
    pub fn generation(&self) -> GenerationId {
        self.book.get().lineage.current
    }

    /// Everything that follows from the state, whatever input led to it. Done with each input but the ordinary ones, and at the end of each
    /// turn.
    fn settle(&mut self, now: Moment, out: &mut Effects) {
        self.attach(now, out);
        self.check_peers(now, out);
        self.pump_log();
        if !self.local_ok {
            self.launch_warmed(now, out);
        }
        self.pump_waiting(now, out);
        self.check_flushes(out);
        self.watch_former_writes();
        self.pump_greetings(now, out);
        self.pump_sources(now, out);
        self.pump_stream(out);
        self.pump_peer_reads(out);
        self.pump_transition(now, out);
        self.pump_metadata(now, out);
        self.watch_frozen(now);
    }

    fn peer(&self, peer: PeerNo) -> &Peer {
        &self.peers[usize::from(peer.0)]
    }

    fn peer_mut(&mut self, peer: PeerNo) -> &mut Peer {
        &mut self.peers[usize::from(peer.0)]
    }

    fn peer_numbers(&self) -> impl Iterator<Item = PeerNo> + use<> {
        (0..u8::try_from(self.peers.len()).expect("few peers")).map(PeerNo)
    }

    fn slot(&self, peer: PeerNo) -> usize {
        usize::from(self.peer(peer).slot.0)
    }

    fn record(&self, peer: PeerNo) -> &PeerRecord {
        self.book.record(self.slot(peer))
    }

    fn disk(&self) -> DiskState {
        self.book.get().disk
    }

    fn term(&self) -> Term {
        self.book.get().term
    }

    fn begin(&mut self, op: Op) -> OpId {
        OpId(u64::from(self.ops.insert(op)))
    }

    /// A new generation id. splitmix64 over a random start: two nodes draw the same one with a chance of 2^-64.
    fn mint(&mut self) -> GenerationId {
        loop {
            self.entropy = self.entropy.wrapping_add(0x9E37_79B9_7F4A_7C15);
            let mut z = self.entropy;
            z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
            z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
            let id = GenerationId(z ^ (z >> 31));
            if id.is_some() && id != self.book.get().lineage.current {
                return id;
            }
        }
    }

    fn send(&self, peer: PeerNo, message: Message, body: Option<io::SendBody>, out: &mut Effects) {
        if let Some(connection) = self.peer(peer).connection() {
            out.push(Effect::Send { peer, connection, term: self.term(), message, body });
        }
    }

    fn mark(&mut self, mark: marks::Mark) {
        self.marks.set(mark);
    }

    fn note(text: impl Into<String>, warning: bool, out: &mut Effects) {
        out.push(Effect::Report(Report::Note { text: text.into(), warning }));
    }

    fn changed(what: &str, old: impl ToString, new: impl ToString, why: impl Into<String>, out: &mut Effects) {
        let (old, new) = (old.to_string(), new.to_string());
        if old != new {
            out.push(Effect::Report(Report::Changed { what: what.into(), old, new, why: why.into() }));
        }
    }

    fn release(buf: Option<BufId>, out: &mut Effects) {
        out.extend(buf.map(Effect::Release));
    }
}

fn place(op: OpId) -> u32 {
    u32::try_from(op.0).expect("ops are named by their place")
}
