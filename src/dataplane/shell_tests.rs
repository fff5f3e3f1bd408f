//! The thread with real sockets and a real disk, driven by a small machine that mirrors writes without any of the care
//! of the real one.

use std::collections::{BTreeMap, HashMap};
use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::time::Duration;

use tokio::sync::mpsc;

use super::backend::BackendChoice;
use super::idle::IdleWatch;
use super::line::Negotiated;
use super::mailbox::{ClientManners, Letter, Mailbox, News};
use super::open::{Disk, DiskConfig, MetadataPlace, OpenError};
use super::pool::{Pool, PoolSizes};
use super::shell::Machine;
use super::thread::prepare;
use crate::condition::{DiskState, Mode, Role};
use crate::units::{
    BufId, ByteRange, ConnectionId, DiskInstance, GenerationId, Moment, OpId, PeerNo, Seq, SessionId, Term, Ticket,
};
use crate::volume::io::{BufSlice, Command, DirtyRuns, Effect, HostError, HostOp, Input, Report, SendBody, Snapshot};
use crate::wire::Message;
use crate::wire::frame::{FrameWriter, HEADER_LEN};

const PEER: PeerNo = PeerNo(0);

#[derive(Debug)]
enum Doing {
    Read { session: SessionId, tag: u64 },
    Write { session: SessionId, tag: u64, buf: BufId },
    Other { session: SessionId, tag: u64 },
    Copy { seq: Seq },
}

/// What the test sees of its machine.
#[derive(Debug, Default)]
pub(super) struct Seen {
    serving: AtomicBool,
    /// Answer nothing.
    pub(super) frozen: AtomicBool,
    here: AtomicUsize,
    gone: AtomicUsize,
    requests: AtomicUsize,
    links_down: AtomicUsize,
    pub(super) generation: AtomicU64,
}

struct Script {
    seen: Arc<Seen>,
    next: u64,
    doing: HashMap<u64, Doing>,
    link: Option<ConnectionId>,
    sent: u64,
    /// Written here, unacknowledged there.
    unacked: BTreeMap<u64, (SessionId, u64, bool)>,
    acked: u64,
    copied: u64,
    tell: bool,
    held: Vec<Effect>,
}

impl Script {
    fn new(seen: &Arc<Seen>) -> Self {
        Self {
            seen: Arc::clone(seen),
            next: 0,
            doing: HashMap::new(),
            link: None,
            sent: 0,
            unacked: BTreeMap::new(),
            acked: 0,
            copied: 0,
            tell: false,
            held: Vec::new(),
        }
    }

    fn op(&mut self, doing: Doing) -> OpId {
        self.next += 1;
        self.doing.insert(self.next, doing);
        OpId(self.next)
    }

    fn host(&mut self, session: SessionId, tag: u64, op: HostOp, range: ByteRange, out: &mut Vec<Effect>) {
        self.seen.requests.fetch_add(1, Ordering::SeqCst);
        match op {
            HostOp::Read => {
                let op = self.op(Doing::Read { session, tag });
                out.push(Effect::DiskRead { op, range });
            }
            HostOp::Write { buf } => {
                let op = self.op(Doing::Write { session, tag, buf });
                let len = u32::try_from(range.len()).expect("at most 32 MiB");
                // Whatever the order, the buffer must live: releases may come first.
                let data = BufSlice { buf, offset: 0, len };
                if let Some(connection) = self.link {
                    for piece in 0..len.div_ceil(1 << 20) {
                        let from = piece << 20;
                        let part = BufSlice { buf, offset: from, len: (len - from).min(1 << 20) };
                        self.sent += 1;
                        let range = ByteRange::new(range.start() + u64::from(from), u64::from(part.len));
                        let message = Message::Write { seq: Seq(self.sent), range, resync: false };
                        let body = Some(SendBody::Slice(part));
                        out.push(Effect::Send { peer: PEER, connection, term: Term(1), message, body });
                    }
                    self.unacked.insert(self.sent, (session, tag, false));
                }
                out.push(Effect::DiskWrite { op, range, data });
            }
            HostOp::Flush => {
                let op = self.op(Doing::Other { session, tag });
                out.push(Effect::DiskFlush { op });
            }
            HostOp::Trim | HostOp::Zero { .. } => {
                let op = self.op(Doing::Other { session, tag });
                out.push(Effect::DiskZero { op, range, unmap: op != OpId(0) });
            }
        }
    }

    fn reply(session: SessionId, tag: u64, result: Result<(), HostError>, buf: Option<BufId>) -> Effect {
        Effect::Reply { session, tag, result, buf, more: Vec::new() }
    }

    fn acknowledge(&mut self, out: &mut Vec<Effect>) {
        while let Some(entry) = self.unacked.first_entry() {
            let (seq, (session, tag, written)) = (*entry.key(), *entry.get());
            if seq > self.acked || !written {
                break;
            }
            entry.remove();
            out.push(Self::reply(session, tag, Ok(()), None));
        }
    }
}

impl Machine for Script {
    fn step(&mut self, _: Moment, input: Input, out: &mut Vec<Effect>) {
        if !self.seen.frozen.load(Ordering::SeqCst) {
            out.append(&mut self.held);
        }
        match input {
            Input::Host { session, tag, op, range, .. } => {
                let mut effects = Vec::new();
                self.host(session, tag, op, range, &mut effects);
                if self.seen.frozen.load(Ordering::SeqCst) {
                    self.held.append(&mut effects);
                } else {
                    out.append(&mut effects);
                }
            }
            Input::HostHere { .. } => drop(self.seen.here.fetch_add(1, Ordering::SeqCst)),
            Input::HostGone { .. } => drop(self.seen.gone.fetch_add(1, Ordering::SeqCst)),
            Input::LinkUp { connection, .. } => self.link = Some(connection),
            Input::LinkDown { connection, .. } => {
                if self.link == Some(connection) {
                    self.link = None;
                }
                self.seen.links_down.fetch_add(1, Ordering::SeqCst);
            }
            Input::Peer { connection, .. } if self.link != Some(connection) => panic!("an old link speaks"),
            Input::Peer { message: Message::Write { seq, range, .. }, buf, .. } => {
                let buf = buf.expect("a write carries its data");
                let op = self.op(Doing::Copy { seq });
                let data = BufSlice { buf, offset: 0, len: u32::try_from(range.len()).expect("a segment") };
                out.push(Effect::Release(buf));
                out.push(Effect::DiskWrite { op, range, data });
            }
            Input::Peer { message: Message::Ack { written, .. }, .. } => {
                self.acked = written.0;
                self.acknowledge(out);
            }
            Input::DiskDone { op, result } => match self.doing.remove(&op.0).expect("asked for once") {
                Doing::Read { session, tag } => {
                    let (result, buf) = match result {
                        Ok(buf) => (Ok(()), buf),
                        Err(_) => (Err(HostError::Io), None),
                    };
                    out.push(Self::reply(session, tag, result, buf));
                }
                Doing::Write { session, tag, buf } => {
                    out.push(Effect::Release(buf));
                    match self.unacked.values_mut().find(|w| (w.0, w.1) == (session, tag)) {
                        Some(write) => write.2 = true,
                        None => out.push(Self::reply(session, tag, result.map(drop).map_err(|_| HostError::Io), None)),
                    }
                    self.acknowledge(out);
                }
                Doing::Other { session, tag } => {
                    out.push(Self::reply(session, tag, result.map(drop).map_err(|_| HostError::Io), None));
                }
                Doing::Copy { seq } => {
                    self.copied = seq.0;
                    self.tell = true;
                }
            },
            Input::Command { ticket, command: Command::Disconnect } => {
                let connection = self.link.expect("linked");
                out.push(Effect::Send { peer: PEER, connection, term: Term(1), message: Message::Goodbye, body: None });
                out.push(Effect::CloseLink { peer: PEER, connection, why: "the operator asked".into() });
                out.push(Effect::Answer { ticket, result: Ok(()) });
            }
            Input::Command { ticket, command: Command::Demote { .. } } => {
                self.seen.serving.store(false, Ordering::SeqCst);
                out.push(Effect::Report(Report::DisconnectClients));
                out.push(Effect::Answer { ticket, result: Ok(()) });
            }
            Input::TurnEnd if self.tell => {
                self.tell = false;
                let (connection, seq) = (self.link.expect("linked"), Seq(self.copied));
                let message = Message::Ack { received: seq, written: seq, stable: Seq(0) };
                out.push(Effect::Send { peer: PEER, connection, term: Term(1), message, body: None });
            }
            _ => {}
        }
    }

    fn next_deadline(&self) -> Option<Moment> {
        None
    }

    fn dirty_runs(&self, _: u64) -> DirtyRuns {
        DirtyRuns { role: Role::Primary, generation: GenerationId(1), blocks: 0, runs: Vec::new() }
    }

    fn snapshot(&self, _: Moment) -> Snapshot {
        Snapshot {
            role: Role::Primary,
            disk: DiskState::UpToDate,
            mode: Mode::Sync,
            generation: GenerationId(1),
            history: [GenerationId::NONE; crate::generation::HISTORY_LEN],
            term: Term(1),
            whole_since: Term(0),
            peers: Vec::new(),
            resync: None,
            frozen: None,
            not_promotable: None,
            requests: self.doing.len(),
            unstable_writes: 0,
            mirrored_bytes: 0,
            resynced_bytes: 0,
        }
    }

    fn is_serving(&self) -> bool {
        self.seen.serving.load(Ordering::SeqCst)
    }

    fn generation(&self) -> GenerationId {
        GenerationId(self.seen.generation.load(Ordering::SeqCst))
    }
}

const LEN: u64 = 136 << 20;

pub(super) struct Node {
    pub(super) mailbox: Mailbox,
    news: mpsc::Receiver<News>,
    pub(super) seen: Arc<Seen>,
    file: tempfile::NamedTempFile,
    thread: std::thread::JoinHandle<Option<Pool>>,
}

fn config(file: &tempfile::NamedTempFile) -> DiskConfig {
    DiskConfig {
        device: file.path().to_owned(),
        metadata: MetadataPlace::Internal,
        create_metadata: false,
        direct: false,
        backend: BackendChoice::Auto,
    }
}

impl Node {
    pub(super) fn new(sizes: PoolSizes) -> Self {
        Self::with_disk(sizes, "/dev/shm", false)
    }

    /// Clients that ask for nothing for `limit` are ended.
    pub(super) fn with_idle_limit(sizes: PoolSizes, limit: Duration) -> Self {
        Self::with(sizes, "/dev/shm", false, IdleWatch::new(Some(limit)))
    }

    fn with_disk(sizes: PoolSizes, folder: &str, direct: bool) -> Self {
        Self::with(sizes, folder, direct, IdleWatch::new(None))
    }

    fn with(sizes: PoolSizes, folder: &str, direct: bool, idle: IdleWatch) -> Self {
        let file = tempfile::NamedTempFile::new_in(folder).expect("a file");
        file.as_file().set_len(LEN + (8 << 20)).expect("sparse");
        let disk = Disk::open(&DiskConfig { direct, ..config(&file) }).expect("opens");
        assert!(disk.data_len() >= LEN);
        let seen = Arc::new(Seen::default());
        seen.serving.store(true, Ordering::SeqCst);
        let (sender, news) = mpsc::channel(4);
        let spin = Duration::from_micros(50);
        let (mailbox, mut shell) = prepare(Script::new(&seen), disk, LEN, sizes, spin, sender).expect("prepared");
        shell.idle = idle;
        let thread = std::thread::spawn(move || shell.run());
        Self { mailbox, news, seen, file, thread }
    }

    pub(super) fn client(&self, id: u64, manners: ClientManners) -> UnixStream {
        let (ours, theirs) = UnixStream::pair().expect("a pair");
        ours.set_read_timeout(Some(Duration::from_secs(20))).expect("set");
        let letter = Letter::AdoptClient {
            session: SessionId(id),
            line: OwnedFd::from(theirs).into(),
            manners,
            leftover: Vec::new(),
            from: "test".into(),
        };
        self.mailbox.post(letter).expect("taken");
        ours
    }

    /// Waits for news that `pick` likes; the others are dropped.
    fn hear<T>(&mut self, mut pick: impl FnMut(News) -> Option<T>) -> T {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build().expect("a runtime");
        runtime.block_on(async {
            loop {
                let news = tokio::time::timeout(Duration::from_secs(20), self.news.recv()).await;
                if let Some(found) = pick(news.expect("news in time").expect("the thread lives")) {
                    return found;
                }
            }
        })
    }

    /// Waits until the machine was given so many requests.
    pub(super) fn wait_requests(&self, count: usize) {
        let until = std::time::Instant::now() + Duration::from_secs(20);
        while self.seen.requests.load(Ordering::SeqCst) < count {
            assert!(std::time::Instant::now() < until, "the requests came in time");
            std::thread::sleep(Duration::from_millis(1));
        }
    }

    pub(super) fn wait_gone(&mut self, id: u64) -> String {
        self.hear(|news| match news {
            News::ClientGone { session, why } if session == SessionId(id) => Some(why),
            _ => None,
        })
    }

    pub(super) fn stop(mut self) -> tempfile::NamedTempFile {
        self.mailbox.post(Letter::Stop).expect("taken");
        let error = self.hear(|news| match news {
            News::Stopped { error } => Some(error),
            _ => None,
        });
        assert_eq!(error, None);
        let pool = self.thread.join().expect("no panic").expect("nothing runs any more");
        assert!(pool.is_unused(), "a buffer leaked");
        self.file
    }
}

pub(super) fn request(kind: u16, flags: u16, cookie: u64, offset: u64, len: u32) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(28);
    bytes.extend_from_slice(&0x2560_9513u32.to_be_bytes());
    bytes.extend_from_slice(&flags.to_be_bytes());
    bytes.extend_from_slice(&kind.to_be_bytes());
    bytes.extend_from_slice(&cookie.to_be_bytes());
    bytes.extend_from_slice(&offset.to_be_bytes());
    bytes.extend_from_slice(&len.to_be_bytes());
    bytes
}

/// Reads a simple reply: its cookie and error.
pub(super) fn simple(stream: &mut impl Read) -> (u64, u32) {
    let mut bytes = [0u8; 16];
    stream.read_exact(&mut bytes).expect("a reply");
    assert_eq!(bytes[..4], 0x6744_6698u32.to_be_bytes());
    let error = u32::from_be_bytes(bytes[4..8].try_into().expect("four"));
    (u64::from_be_bytes(bytes[8..].try_into().expect("eight")), error)
}

pub(super) fn pattern(seed: usize, len: usize) -> Vec<u8> {
    (0..len).map(|i| u8::try_from((i / 7 + i * 13 + seed * 101) % 251).expect("a remainder")).collect()
}

pub(super) fn get(stream: &mut UnixStream, offset: u64, len: usize) -> Vec<u8> {
    stream.write_all(&request(0, 0, 99, offset, u32::try_from(len).expect("small"))).expect("sent");
    assert_eq!(simple(stream), (99, 0));
    let mut bytes = vec![0; len];
    stream.read_exact(&mut bytes).expect("the data");
    bytes
}

/// All kinds of sizes in one stream, cut at awkward places: each write lands where it belongs.
#[test]
fn a_pipelined_stream_of_any_sizes_is_written_and_read_back() {
    let node = Node::new(PoolSizes::default());
    let mut stream = node.client(1, ClientManners::default());
    let sizes = [1, 512, 4096, 70_000, 4096, 300_000, 28, 65_536, 1 << 20, 4095, 131_072, 3 << 20];
    let (mut bytes, mut model, mut at) = (Vec::new(), vec![0u8; 16 << 20], 0);
    for (i, &size) in sizes.iter().cycle().take(36).enumerate() {
        let at_now = at % ((16 << 20) - size);
        let data = pattern(i, size);
        bytes.extend_from_slice(&request(1, 0, i as u64, at_now as u64, u32::try_from(size).expect("small")));
        bytes.extend_from_slice(&data);
        model[at_now..at_now + size].copy_from_slice(&data);
        at += size + 333;
    }
    let mut writer = stream.try_clone().expect("cloned");
    let sender = std::thread::spawn(move || {
        for (i, part) in bytes.chunks(100_003).enumerate() {
            let (a, b) = part.split_at(part.len().min(i % 40));
            writer.write_all(a).expect("sent");
            writer.write_all(b).expect("sent");
        }
    });
    let mut answered: Vec<u64> =
        (0..36).map(|_| simple(&mut stream)).inspect(|r| assert_eq!(r.1, 0)).map(|r| r.0).collect();
    answered.sort_unstable();
    assert_eq!(answered, (0..36).collect::<Vec<_>>());
    sender.join().expect("sent all");
    assert!(get(&mut stream, 0, 16 << 20) == model);
    node.stop();
}

/// Four clients each send the largest payload at once, into memory for one: all are served, and small ones in between too.
#[test]
fn the_largest_payloads_of_many_clients_are_served_in_turn() {
    let node = Node::new(PoolSizes::default());
    let len = 32usize << 20;
    let clients: Vec<_> = (0..4u64)
        .map(|i| {
            let mut stream = node.client(i + 1, ClientManners::default());
            std::thread::spawn(move || {
                let data = pattern(usize::try_from(i).expect("small"), len);
                for _ in 0..2 {
                    let head = request(1, 0, i, i * len as u64, u32::try_from(len).expect("32 MiB"));
                    stream.write_all(&head).expect("sent");
                    stream.write_all(&data).expect("sent");
                    assert_eq!(simple(&mut stream), (i, 0));
                }
                assert!(get(&mut stream, i * len as u64, len) == data);
            })
        })
        .collect();
    let mut small = node.client(9, ClientManners::default());
    let mut rounds = 0;
    while !clients.iter().all(std::thread::JoinHandle::is_finished) {
        small.write_all(&request(1, 0, rounds, 128 << 20, 4096)).expect("sent");
        small.write_all(&pattern(5, 4096)).expect("sent");
        assert_eq!(simple(&mut small), (rounds, 0));
        assert!(get(&mut small, 128 << 20, 4096) == pattern(5, 4096));
        rounds += 1;
    }
    assert!(rounds > 0);
    for client in clients {
        client.join().expect("served");
    }
    node.stop();
}

#[test]
fn refusals_leave_the_connection_in_step_and_harm_nobody() {
    let mut node = Node::new(PoolSizes::default());
    let mut stream = node.client(1, ClientManners::default());
    // A write past the end, its payload larger than any chunk; an unknown command; a fast zero with NO_HOLE.
    stream.write_all(&request(1, 0, 1, LEN - 10, 600_000)).expect("sent");
    stream.write_all(&vec![7; 600_000]).expect("sent");
    stream.write_all(&request(77, 0, 2, 0, 512)).expect("sent");
    stream.write_all(&request(6, 0x10 | 0x2, 3, 0, 4096)).expect("sent");
    stream.write_all(&request(5, 0, 4, 0, 4096)).expect("sent");
    stream.write_all(&request(0, 0, 5, 0, 0)).expect("sent");
    stream.write_all(&request(3, 0, 6, 0, 0)).expect("sent");
    let mut replies: Vec<_> = (0..6).map(|_| simple(&mut stream)).collect();
    replies.sort_unstable();
    assert_eq!(replies, [(1, 28), (2, 22), (3, 95), (4, 0), (5, 0), (6, 0)]);
    // A client out of step is cut off; the other goes on.
    let mut other = node.client(2, ClientManners::default());
    other.write_all(b"GET / HTTP/1.1\r\n\r\n").expect("sent");
    let mut rest = Vec::new();
    other.read_to_end(&mut rest).expect("closed");
    assert!(rest.is_empty());
    assert!(node.wait_gone(2).contains("lost step"));
    assert_eq!(get(&mut stream, 0, 512), vec![0; 512]);
    assert_eq!(node.seen.here.load(Ordering::SeqCst), 2);
    assert_eq!(node.seen.gone.load(Ordering::SeqCst), 1);
    node.stop();
}

/// Everything sent before the goodbye is done, though the client has closed already and takes no reply.
#[test]
fn goodbye_finishes_what_was_sent_before() {
    let mut node = Node::new(PoolSizes::default());
    let mut stream = node.client(1, ClientManners::default());
    node.seen.frozen.store(true, Ordering::SeqCst);
    for i in 0..300u64 {
        stream.write_all(&request(1, 0, i, i * 4096, 4096)).expect("sent");
        stream.write_all(&pattern(usize::try_from(i).expect("small"), 4096)).expect("sent");
        if i == 20 {
            node.seen.frozen.store(false, Ordering::SeqCst);
        }
    }
    stream.write_all(&request(2, 0, 0, 0, 0)).expect("sent");
    drop(stream);
    assert!(node.wait_gone(1).contains("goodbye"));
    assert_eq!(node.seen.requests.load(Ordering::SeqCst), 300);
    let mut reader = node.client(2, ClientManners::default());
    for i in 0..300u64 {
        assert!(get(&mut reader, i * 4096, 4096) == pattern(usize::try_from(i).expect("small"), 4096), "write {i}");
    }
    node.stop();
}

/// With direct I/O a write of half a block is a read and then a write of the block. The second was once pushed into the ring and
/// handed to the kernel only when something else was wanted; the end of a shutdown waited for seconds for such a job.
#[test]
fn what_follows_from_a_disk_job_is_started_without_other_traffic() {
    let node = Node::with_disk(PoolSizes::default(), "/var/tmp", true);
    let mut stream = node.client(1, ClientManners::default());
    for round in 0..3u64 {
        stream.write_all(&request(1, 0, round, 4096 * round + 100, 700)).expect("sent");
        stream.write_all(&[7; 700]).expect("sent");
        assert_eq!(simple(&mut stream), (round, 0));
    }
    assert_eq!(get(&mut stream, 4096 + 90, 720)[10..710], [7; 700]);
    node.stop();
}

/// Sixty that announce the largest payload and send little of it, while one client writes and reads: memory is never theirs.
#[test]
fn clients_that_stall_in_a_large_write_keep_memory_from_nobody() {
    let node = Node::new(PoolSizes::default());
    let mut stalled: Vec<_> = (0..60u64).map(|i| node.client(i + 1, ClientManners::default())).collect();
    let mut honest = node.client(99, ClientManners::default());
    for round in 0..300usize {
        if let Some(stream) = stalled.get_mut(round / 3) {
            // Nothing, a little, and more than a piece of the payload.
            stream.set_nonblocking(true).expect("set");
            let _ = stream.write(&request(1, 0, 1, 0, 32 << 20));
            let _ = stream.write(&vec![1; [1, 5000, 600_000][round % 3]]);
        }
        let data = pattern(round, 1 << 20);
        honest.write_all(&request(1, 0, 5, 128 << 20, 1 << 20)).expect("sent");
        honest.write_all(&data).expect("sent");
        assert_eq!(simple(&mut honest), (5, 0));
        assert!(get(&mut honest, 128 << 20, 1 << 20) == data);
    }
    node.stop();
}

/// A reply in pieces stands alone in the stream, also when requests of other kinds are pipelined around it, and is whole.
#[test]
fn a_read_that_is_larger_than_a_share_comes_in_pieces() {
    let node = Node::new(PoolSizes::default());
    for (id, structured) in [(1, false), (2, true)] {
        let mut stream = node.client(id, ClientManners { structured, ..ClientManners::default() });
        let (data, head) = (pattern(3, 20 << 20), if structured { 20 + 8 } else { 16 });
        let len = |n: usize| u32::try_from(n).expect("small");
        stream.write_all(&request(1, 1, 1, 513, len(data.len()))).expect("sent");
        stream.write_all(&data).expect("sent");
        // Success without data is one simple reply in both forms.
        let answer = 16;
        stream.read_exact(&mut vec![0; answer]).expect("the write's reply");
        for _ in 0..3 {
            // All in one chunk where the form has chunks.
            let flags = if structured { 4 } else { 0 };
            stream.write_all(&request(0, flags, 2, 513, len(data.len()))).expect("sent");
            stream.write_all(&request(3, 0, 3, 0, 0)).expect("sent");
        }
        for _ in 0..3 {
            let mut bytes = vec![0; head + data.len() + answer];
            stream.read_exact(&mut bytes).expect("a reply and a flush's");
            assert!(bytes[head..head + data.len()] == data, "whole and in order");
        }
    }
    node.stop();
}

/// A client that sends and never reads stops only itself, and at a bound.
#[test]
fn a_client_that_never_reads_is_bounded_and_alone() {
    let node = Node::new(PoolSizes::default());
    let mut greedy = node.client(1, ClientManners::default());
    greedy.set_nonblocking(true).expect("set");
    let ask = request(0, 0, 1, 0, 1 << 20);
    // A partly sent request may be lost here: it is never answered anyway.
    let mut blocked = 0;
    while blocked < 200 {
        match greedy.write(&ask) {
            Ok(_) => {}
            Err(e) if e.kind() == std::io::ErrorKind::WouldBlock => {
                blocked += 1;
                let mut polite = node.client(100 + blocked, ClientManners::default());
                assert_eq!(get(&mut polite, 0, 64).len(), 64);
            }
            Err(e) => panic!("{e}"),
        }
    }
    // 2 MiB unsent, and what a socket holds.
    assert!(node.seen.requests.load(Ordering::SeqCst) < 200 + 20);
    node.stop();
}

#[test]
fn block_status_tells_holes_and_data() {
    let node = Node::new(PoolSizes::default());
    let manners = ClientManners { structured: true, allocation_context: Some(1), ..ClientManners::default() };
    let mut stream = node.client(1, manners);
    stream.write_all(&request(1, 0, 1, 4096, 4096)).expect("sent");
    stream.write_all(&[1; 4096]).expect("sent");
    let mut reply = [0; 16];
    stream.read_exact(&mut reply).expect("a simple reply");
    stream.write_all(&request(7, 0, 2, 0, 16384)).expect("sent");
    let mut reply = [0u8; 20 + 4 + 3 * 8];
    stream.read_exact(&mut reply).expect("a chunk");
    let words: Vec<u32> = reply[20..].chunks(4).map(|w| u32::from_be_bytes(w.try_into().expect("four"))).collect();
    assert_eq!(words, [1, 4096, 3, 4096, 0, 8192, 3]);
    node.stop();
}

/// Found by the power tests: the second job of an operation was handed to the kernel when the machine wanted something next. With
/// no peer to ping that was never, and the client waited for ever.
#[test]
fn an_operation_of_several_jobs_ends_though_nothing_else_happens() {
    let node = Node::new(PoolSizes::default());
    let mut stream = node.client(1, ClientManners::default());
    stream.write_all(&request(1, 0, 1, 0, 16384)).expect("sent");
    stream.write_all(&[1; 16384]).expect("sent");
    assert_eq!(simple(&mut stream), (1, 0));
    // A hole in the middle, and zeros written before and behind it.
    stream.write_all(&request(6, 0, 2, 512, 15360)).expect("sent");
    assert_eq!(simple(&mut stream), (2, 0));
    let bytes = get(&mut stream, 0, 16384);
    assert!(bytes[..512].iter().chain(&bytes[15872..]).all(|&byte| byte == 1));
    assert!(bytes[512..15872].iter().all(|&byte| byte == 0));
    node.stop();
}

#[test]
fn a_node_that_is_not_primary_answers_nothing() {
    let mut node = Node::new(PoolSizes::default());
    let mut stream = node.client(1, ClientManners::default());
    assert_eq!(get(&mut stream, 0, 16).len(), 16);
    node.mailbox
        .post(Letter::Command { ticket: Ticket(5), command: Command::Demote { disconnect_clients: true } })
        .expect("taken");
    let mut rest = Vec::new();
    stream.read_to_end(&mut rest).expect("closed");
    assert!(rest.is_empty());
    let mut late = node.client(2, ClientManners::default());
    late.read_to_end(&mut rest).expect("closed");
    assert!(rest.is_empty());
    assert!(node.wait_gone(2).contains("not primary"));
    node.stop();
}

pub(super) fn tcp_pair() -> (OwnedFd, TcpStream) {
    let listener = TcpListener::bind("127.0.0.1:0").expect("bound");
    let far = TcpStream::connect(listener.local_addr().expect("an address")).expect("connected");
    (OwnedFd::from(listener.accept().expect("accepted").0), far)
}

pub(super) fn link(node: &Node, connection: u64, line: impl Into<Negotiated>) {
    let (connection, instance, line) = (ConnectionId(connection), DiskInstance(7), line.into());
    node.mailbox.post(Letter::AdoptLink { peer: PEER, connection, instance, line }).expect("taken");
}

pub(super) fn state(node: &mut Node) -> Box<super::mailbox::State> {
    node.mailbox.post(Letter::Ask { ticket: Ticket(1) }).expect("taken");
    node.hear(|news| match news {
        News::State { state, .. } => Some(state),
        _ => None,
    })
}

/// Last words and the end may come in one event, of which there is no second: the end is not missed. Seen as a link that stayed
/// open for a second after its peer had left.
#[test]
fn an_end_right_behind_the_last_words_is_heard() {
    let mut node = Node::new(PoolSizes::default());
    for connection in 1..=20 {
        let (near, mut far) = tcp_pair();
        link(&node, connection, near);
        state(&mut node);
        let (mut writer, mut bytes) = (FrameWriter::new(ConnectionId(connection)), Vec::new());
        writer.encode(Term(1), &Message::Pong, &[], &mut bytes);
        far.write_all(&bytes).expect("sent");
        far.shutdown(std::net::Shutdown::Write).expect("ended");
        let heard = node.hear(|news| match news {
            News::LinkClosed { connection, .. } => Some(connection),
            _ => None,
        });
        assert_eq!(heard, ConnectionId(connection));
    }
    node.stop();
}

/// A broken frame and an end of the stream both end the link, with a reason; a new link takes over.
#[test]
fn a_broken_link_is_told_and_replaced() {
    let mut node = Node::new(PoolSizes::default());
    let closed = |node: &mut Node| {
        node.hear(|news| match news {
            News::LinkClosed { connection, why, .. } => Some((connection, why)),
            _ => None,
        })
    };
    let (near, mut far) = tcp_pair();
    link(&node, 1, near);
    let (mut writer, mut bytes) = (FrameWriter::new(ConnectionId(1)), Vec::new());
    let message = Message::Write { seq: Seq(1), range: ByteRange::new(0, 8), resync: false };
    writer.encode(Term(1), &message, b"mirrored", &mut bytes);
    far.write_all(&bytes).expect("sent");
    far.write_all(b"mirrOred").expect("sent");
    let (connection, why) = closed(&mut node);
    assert!(connection == ConnectionId(1) && why.contains("body damaged"), "{why}");
    let (near, far) = tcp_pair();
    link(&node, 2, near);
    drop(far);
    assert_eq!(closed(&mut node), (ConnectionId(2), "the peer closed the link".to_owned()));
    let (near, _far) = tcp_pair();
    link(&node, 3, near);
    let (near, mut far) = tcp_pair();
    link(&node, 4, near);
    assert_eq!(closed(&mut node).0, ConnectionId(3));
    assert_eq!(node.seen.links_down.load(Ordering::SeqCst), 3);
    // A link that the machine closes still says what was sent before.
    node.mailbox.post(Letter::Command { ticket: Ticket(2), command: Command::Disconnect }).expect("taken");
    node.hear(|news| matches!(news, News::Answer { .. }).then_some(()));
    // What still comes is thrown away, and does not reset the connection under the last frame.
    far.write_all(&[0; 5000]).expect("sent");
    let mut rest = Vec::new();
    far.read_to_end(&mut rest).expect("an orderly end");
    assert_eq!(rest.len(), HEADER_LEN);
    drop(far);
    assert_eq!(closed(&mut node), (ConnectionId(4), "the operator asked".to_owned()));
    node.stop();
}

#[test]
fn a_disk_that_is_let_go_in_time_is_taken() {
    let file = tempfile::NamedTempFile::new_in("/var/tmp").expect("a file");
    file.as_file().set_len(4 << 20).expect("sparse");
    let config = config(&file);
    let first = Disk::open(&config).expect("opens");
    let (sender, receiver) = std::sync::mpsc::channel();
    // As the kernel does with the disk of a daemon that was killed: some time after who opens it anew has begun.
    let letting_go = std::thread::spawn(move || {
        receiver.recv().expect("told");
        std::thread::sleep(Duration::from_millis(200));
        drop(first);
    });
    sender.send(()).expect("heard");
    Disk::open(&config).expect("free in time");
    letting_go.join().expect("does not panic");
}

#[test]
fn a_disk_is_opened_once_and_errors_name_the_path() {
    let file = tempfile::NamedTempFile::new_in("/var/tmp").expect("a file");
    file.as_file().set_len(4 << 20).expect("sparse");
    let mut config = config(&file);
    let first = Disk::open(&config).expect("opens");
    let second = Disk::open(&config).expect_err("locked");
    assert!(matches!(&second, OpenError::InUse { .. }) && second.to_string().contains("another process"), "{second}");
    drop(first);
    config.direct = true;
    let disk = Disk::open(&config).expect("free again, and direct");
    let page = crate::meta::MetaPage { offset: 4096, bytes: Box::new([9; 4096]) };
    disk.write_meta_now(std::slice::from_ref(&page)).expect("written");
    assert_eq!(disk.read_meta(ByteRange::new(4096, 4096)).expect("read"), page.bytes.to_vec());
    assert_eq!(disk.read_device(ByteRange::new(disk.data_len() + 4096, 16)).expect("read"), [9; 16]);
    drop(disk);
    config.metadata = MetadataPlace::External(file.path().with_extension("meta"));
    assert!(matches!(Disk::open(&config), Err(OpenError::NotFound { .. })));
    config.create_metadata = true;
    let disk = Disk::open(&config).expect("made");
    assert_eq!((disk.data_len(), disk.device_len()), (4 << 20, 4 << 20));
    std::fs::remove_file(file.path().with_extension("meta")).expect("there");
    file.as_file().set_len(1000).expect("cut");
    drop(disk);
    assert!(matches!(Disk::open(&config), Err(OpenError::Size { .. })));
    config.device = "/dev/null".into();
    assert!(matches!(Disk::open(&config), Err(OpenError::WrongType { .. })));
}
