//! What an operation of the formats and of the machine costs, for counting instructions.
//!
//! It does one kind of operation so many times and says nothing; `scripts/instructions` runs it in valgrind with two counts and divides
//! the difference, which gives the same number on a busy machine as on a quiet one.
//!
//! ```text
//! cargo run --release --example instructions -- pair-write 1000
//! ```

use std::collections::VecDeque;
use std::hint::black_box;
use std::time::Duration;

use repblk::condition::Mode;
use repblk::meta::{
    Bitmap, DeviceFacts, FormatParams, Layout, LogWriter, MetaPage, PAGE_LEN, Page, Recovered, Unrecovered, format,
};
use repblk::nbd;
use repblk::units::{
    BufId, ByteRange, ClusterId, ConnectionId, DiskInstance, ExtentNo, Moment, PeerNo, Seq, SessionId, Term, Ticket,
    VolumeId,
};
use repblk::volume::io::{Command, Effect, HostOp, Input, Report, SendBody};
use repblk::volume::{Limits, PaceLimits, Volume, VolumeConfig};
use repblk::wire::{FrameReader, FrameWriter, Message};

const DATA_LEN: u64 = 64 << 20;
const BLOCK: u64 = 4096;
/// Requests that come in one turn.
const BATCH: u64 = 32;

fn main() {
    let mut arguments = std::env::args().skip(1);
    let kind = arguments.next().unwrap_or_default();
    let count: u64 = arguments.next().and_then(|text| text.parse().ok()).expect("usage: instructions KIND COUNT");
    match kind.as_str() {
        "nbd-request" => nbd_requests(count),
        "frame" => frames(count, 4096),
        "frame-empty" => frames(count, 0),
        "checksum-64k" => {
            let bytes = vec![7; 65536];
            (0..count).for_each(|_| {
                let _ = black_box(crc32fast::hash(black_box(&bytes)));
            });
        }
        "bitmap" => bitmap(count),
        "activity-log" => activity_log(count),
        "pair-write" => Duet::new(Mode::Sync).writes(count, BATCH),
        "pair-write-alone" => Duet::new(Mode::Sync).writes(count, 1),
        "pair-write-flush" => Duet::new(Mode::Sync).flushed_writes(count),
        "read" => Duet::new(Mode::Sync).reads(count),
        other => panic!("no such kind: {other}"),
    }
}

/// One write request: header parsed, checked, answered.
fn nbd_requests(count: u64) {
    let mode = nbd::Mode::Structured;
    let export = nbd::ExportInfo::new("v", DATA_LEN);
    let terms = nbd::Handover { export, mode, contexts: nbd::MetaContexts::default() }.terms();
    let mut bytes = [0; 28];
    bytes[..8].copy_from_slice(&[0x25, 0x60, 0x95, 0x13, 0, 0, 0, 1]);
    bytes[24..].copy_from_slice(&4096u32.to_be_bytes());
    for at in 0..count {
        bytes[16..24].copy_from_slice(&(at % 1000 * BLOCK).to_be_bytes());
        let header = nbd::parse_header(&terms, black_box(&bytes)).expect("well-formed").expect("whole");
        black_box(nbd::validate(&terms, &header).expect("allowed"));
        black_box(nbd::reply::success(header.reply_to(mode)));
    }
}

/// One frame written and read.
fn frames(count: u64, len: usize) {
    let (mut writer, mut reader) = (FrameWriter::new(ConnectionId(1)), FrameReader::new(ConnectionId(1)));
    let (payload, mut out) = (vec![7; len], Vec::new());
    let bytes = u64::try_from(len).expect("small");
    for number in 1..=count {
        let seq = Seq(number);
        let message = if len == 0 {
            Message::Ack { received: seq, written: seq, stable: seq }
        } else {
            Message::Write { seq, range: ByteRange::new(0, bytes), resync: false }
        };
        out.clear();
        writer.encode(Term(1), &message, black_box(&payload), &mut out);
        let header = reader.header(out[..].try_into().expect("a header")).expect("intact");
        black_box(header.decode(&payload).expect("intact"));
    }
}

/// One block made dirty and clean, and the next dirty one looked for.
fn bitmap(count: u64) {
    let mut bitmap = Bitmap::new(1 << 40);
    bitmap.set(ByteRange::new(1 << 39, BLOCK));
    for at in 0..count {
        let range = ByteRange::new(at * 7919 % (1 << 20) * BLOCK, BLOCK);
        bitmap.set(range);
        black_box(bitmap.next_run(range.start() / BLOCK, 16));
        bitmap.clear(range);
    }
}

/// One transaction of the activity log, with 16 extents in it.
fn activity_log(count: u64) {
    let mut writer = LogWriter::new(DiskInstance(1), 1, 1024);
    let mut updates = [(0, None); 16];
    for at in 0..count {
        for (i, update) in (0u32..).zip(&mut updates) {
            let number = u32::try_from(at % 1000).expect("small") * 16 + i;
            *update = (number % 1024, Some(ExtentNo(number)));
        }
        black_box(writer.transaction(&updates));
    }
}

/// Two machines with a link, disks that hold nothing, and time that stands still.
struct Duet {
    volumes: [Volume; 2],
    /// What each machine has still to hear, in order.
    inputs: [VecDeque<Input>; 2],
    effects: Vec<Effect>,
    now: Moment,
    replies: u64,
}

const PEER: PeerNo = PeerNo(0);
const SESSION: SessionId = SessionId(1);

impl Duet {
    /// A pair in sync whose node 0 is primary and has every extent in its activity log.
    fn new(mode: Mode) -> Self {
        let mut duet = Self {
            volumes: [volume(0, mode), volume(1, mode)],
            inputs: [VecDeque::new(), VecDeque::new()],
            effects: Vec::new(),
            now: Moment(1_000_000_000),
            replies: 0,
        };
        for node in 0..2 {
            duet.inputs[node].push_back(Input::Wake);
        }
        duet.run();
        let command = Command::Promote { force: true, peer_is_down: true };
        duet.inputs[0].push_back(Input::Command { ticket: Ticket(1), command });
        duet.inputs[0].push_back(Input::HostHere { session: SESSION });
        duet.run();
        for node in 0..2 {
            let (connection, instance) = (ConnectionId(1), instance(1 - node));
            duet.inputs[node].push_back(Input::LinkUp { peer: PEER, connection, instance });
        }
        duet.run();
        while !duet.is_even() {
            duet.now = duet.now.after(Duration::from_millis(1));
            assert!(
                duet.now < Moment(60_000_000_000),
                "the pair does not get in sync: {:?}",
                duet.volumes[0].snapshot(duet.now)
            );
            (0..2).for_each(|node| duet.inputs[node].push_back(Input::Wake));
            duet.run();
        }
        duet.writes(DATA_LEN / BLOCK, BATCH);
        duet
    }

    fn is_even(&self) -> bool {
        let snapshot = self.volumes[0].snapshot(self.now);
        self.volumes[0].is_serving()
            && snapshot.peers[0].out_of_sync_bytes == 0
            && snapshot.peers[0].replication == "established"
    }

    fn writes(&mut self, count: u64, batch: u64) {
        let before = self.replies;
        for first in (0..count).step_by(usize::try_from(batch).expect("small")) {
            for at in first..count.min(first + batch) {
                self.host(at, HostOp::Write { buf: BufId(0) }, Self::range(at));
            }
            self.run();
        }
        assert_eq!(self.replies - before, count, "each write is answered");
    }

    fn flushed_writes(&mut self, count: u64) {
        for at in 0..count {
            self.writes(1, 1);
            self.host(at, HostOp::Flush, ByteRange::new(0, 0));
            self.run();
        }
    }

    fn reads(&mut self, count: u64) {
        for at in 0..count {
            self.host(at, HostOp::Read, Self::range(at));
            self.run();
        }
    }

    fn range(at: u64) -> ByteRange {
        ByteRange::new(at * 7919 % (DATA_LEN / BLOCK) * BLOCK, BLOCK)
    }

    fn host(&mut self, tag: u64, op: HostOp, range: ByteRange) {
        self.inputs[0].push_back(Input::Host { session: SESSION, tag, op, range, fua: false });
    }

    /// Until nothing happens any more: all inputs of a machine, then the end of its turn.
    fn run(&mut self) {
        while self.inputs.iter().any(|inputs| !inputs.is_empty()) {
            for node in 0..2 {
                let mine = self.inputs[node].len();
                for _ in 0..mine {
                    let input = self.inputs[node].pop_front().expect("counted");
                    self.step(node, input);
                }
                if mine > 0 {
                    self.step(node, Input::TurnEnd);
                }
            }
        }
    }

    fn step(&mut self, node: usize, input: Input) {
        let mut effects = std::mem::take(&mut self.effects);
        self.volumes[node].step(self.now, input, &mut effects);
        for effect in effects.drain(..) {
            self.perform(node, effect);
        }
        self.effects = effects;
    }

    fn perform(&mut self, node: usize, effect: Effect) {
        match effect {
            Effect::DiskRead { op, .. } => {
                self.inputs[node].push_back(Input::DiskDone { op, result: Ok(Some(BufId(0))) });
            }
            Effect::DiskReadSparse { op, .. }
            | Effect::DiskWrite { op, .. }
            | Effect::DiskZero { op, .. }
            | Effect::DiskFlush { op } => self.inputs[node].push_back(Input::DiskDone { op, result: Ok(None) }),
            Effect::MetaCommit { op, .. } => self.inputs[node].push_back(Input::MetaDone { op, result: Ok(()) }),
            Effect::Send { connection, term, message, body, .. } => {
                let input = match (message, body) {
                    (Message::BitmapPage { index }, Some(SendBody::Page(page))) => {
                        Input::PeerPage { peer: PEER, connection, index, page }
                    }
                    (message, body) => {
                        let buf = body.map(|_| BufId(0));
                        Input::Peer { peer: PEER, connection, term, message, buf }
                    }
                };
                self.inputs[1 - node].push_back(input);
            }
            Effect::Reply { result, .. } => {
                assert_eq!(result, Ok(()), "nothing fails here");
                self.replies += 1;
            }
            Effect::CloseLink { why, .. } => panic!("the pair came apart: {why}"),
            Effect::Report(Report::ExclusionWanted { .. }) => panic!("the pair came apart"),
            Effect::Answer { result, .. } => result.expect("it may be promoted"),
            Effect::Release(_) | Effect::Report(_) => {}
        }
    }
}

fn instance(node: usize) -> DiskInstance {
    DiskInstance([17, 18][node])
}

fn volume(node: usize, mode: Mode) -> Volume {
    let names = ["a", "b"];
    let config = VolumeConfig {
        node: names[node].to_owned(),
        peers: vec![names[1 - node].to_owned()],
        mode,
        peer_timeout: Duration::from_secs(3),
        ping_interval: Duration::from_millis(500),
        backlog_bytes_max: 8 << 20,
        backlog_age_max: Duration::from_secs(2),
        pace: PaceLimits { rate_max: u64::MAX, rate_min: 1 << 20 },
        resume_primary: false,
        cool_after: Duration::from_secs(10),
        write_through: false,
        arbitrated: false,
        boot: 1,
        limits: Limits::default(),
    };
    Volume::new(config, fresh(instance(node)), 42)
}

/// What the metadata of a copy that was just formatted holds.
fn fresh(instance: DiskInstance) -> Recovered {
    let pages = format(&FormatParams {
        cluster: ClusterId(7),
        cluster_name: "bench".to_owned(),
        volume: VolumeId(9),
        volume_name: "v".to_owned(),
        instance,
        data_len: DATA_LEN,
        extent_len: 4 << 20,
        al_slots: 64,
    });
    let metadata_len = Layout::for_data_len(DATA_LEN).total_len();
    let mut area = vec![0; usize::try_from(metadata_len).expect("small")];
    for MetaPage { offset, bytes } in &pages {
        let at = usize::try_from(*offset).expect("inside");
        area[at..at + PAGE_LEN].copy_from_slice(&bytes[..]);
    }
    let zone = |range: ByteRange| {
        area[usize::try_from(range.start()).expect("inside")..usize::try_from(range.end()).expect("inside")].to_vec()
    };
    let page = |copy: usize| -> Box<Page> {
        let range = ByteRange::new(Layout::superblock_offset(copy), u64::try_from(PAGE_LEN).expect("small"));
        zone(range).into_boxed_slice().try_into().expect("one page")
    };
    let facts = DeviceFacts { data_len: DATA_LEN, metadata_len };
    let unrecovered = Unrecovered::read(&page(0), &page(1), facts).expect("just formatted");
    let log = unrecovered.activity_log_range().map(zone).unwrap_or_default();
    let bitmaps = unrecovered.bitmap_ranges().map(|range| range.map(zone));
    unrecovered.recover(&log, bitmaps, 1)
}
