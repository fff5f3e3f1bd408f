//! A thin NBD client that measures servers without being what is measured.
//!
//! It gathers all requests that may go now into one send, and takes all replies that have come with one receive: about one and a
//! half microseconds for an operation at depth 32, where fio's engine takes five and more. It asks for nothing but simple
//! replies and checks that every request is answered once, and without an error; it never looks at what was read.
//!
//! ```text
//! cargo run --release --example nbdload -- --unix SOCKET --export v --work write --depth 32 --seconds 1
//! ```
//!
//! The result is one line of JSON. An operation of `--work flush` is a write and a flush behind it, as a database log makes them;
//! `--depth` is then the number of writers that do so independently of each other. Each connection has a thread of its own.

mod nbd;

use std::collections::BTreeMap;
use std::error::Error;
use std::net::TcpStream;
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use clap::Parser;

use nbd::{COMMAND_READ, REQUEST_LEN, Stream, header, negotiate, number};

type Result<T> = std::result::Result<T, Box<dyn Error + Send + Sync>>;

const REPLY_LEN: usize = 16;
const REPLY_MAGIC: u32 = 0x6744_6698;
const COMMAND_WRITE: u16 = 1;
const COMMAND_DISCONNECT: u16 = 2;
const COMMAND_FLUSH: u16 = 3;

#[derive(Clone, Copy, PartialEq, Eq, Debug, clap::ValueEnum)]
enum Work {
    /// Random writes.
    Write,
    /// Random reads.
    Read,
    /// Seven reads for three writes, at random places.
    Mixed,
    /// Writes one behind the other; each connection has a part of the device.
    SeqWrite,
    /// The same with reads.
    SeqRead,
    /// Random writes, and behind each of them a flush.
    Flush,
}

/// Measures an NBD server.
#[derive(Clone, Parser, Debug)]
struct Options {
    /// A Unix socket.
    #[arg(long, conflicts_with = "tcp", required_unless_present = "tcp")]
    unix: Option<String>,
    /// HOST:PORT.
    #[arg(long)]
    tcp: Option<String>,
    /// Name of the export.
    #[arg(long, default_value = "")]
    export: String,
    #[arg(long, value_enum)]
    work: Work,
    /// Bytes of a request; a multiple of 512.
    #[arg(long, default_value_t = 4096)]
    block: u32,
    /// Requests outstanding on each connection.
    #[arg(long, default_value_t = 1)]
    depth: usize,
    #[arg(long, default_value_t = 1)]
    connections: u64,
    #[arg(long, default_value_t = 1.0)]
    seconds: f64,
}

/// One request that is outstanding.
struct Slot {
    begun: Instant,
    outstanding: bool,
    /// The write of this operation is done; its flush is next.
    flush_next: bool,
}

struct Connection {
    stream: Box<dyn Stream>,
    options: Options,
    /// The part of the device that is used: first byte and length.
    part: (u64, u64),
    /// A request with its payload for each slot.
    requests: Vec<u8>,
    slots: Vec<Slot>,
    random: u64,
    next: u64,
    latencies: Vec<u32>,
}

fn main() -> Result<()> {
    let options = Options::parse();
    if options.block == 0 || !options.block.is_multiple_of(512) || options.depth == 0 || options.connections == 0 {
        return Err("block must be a multiple of 512; depth and connections at least 1".into());
    }
    let stop = Arc::new(AtomicBool::new(false));
    let mut threads = Vec::new();
    for number in 0..options.connections {
        let connection = Connection::open(&options, number)?;
        let stop = Arc::clone(&stop);
        threads.push(std::thread::spawn(move || connection.run(&stop)));
    }
    let begun = Instant::now();
    let end = begun + Duration::from_secs_f64(options.seconds);
    while Instant::now() < end && !threads.iter().any(std::thread::JoinHandle::is_finished) {
        std::thread::sleep(end.saturating_duration_since(Instant::now()).min(Duration::from_millis(50)));
    }
    stop.store(true, Ordering::Relaxed);
    let mut latencies = Vec::new();
    for thread in threads {
        latencies.extend(thread.join().map_err(|_| "a connection's thread panicked")??);
    }
    let seconds = begun.elapsed().as_secs_f64();
    if latencies.is_empty() {
        return Err("no operation ended in this time".into());
    }
    latencies.sort_unstable();
    let count = u32::try_from(latencies.len())?;
    let at = |per_mille: usize| f64::from(latencies[(latencies.len() - 1) * per_mille / 1000]) / 1000.0;
    let iops = f64::from(count) / seconds;
    let figures = BTreeMap::from([
        ("iops", iops),
        ("mib", iops * f64::from(options.block) / 1_048_576.0),
        ("count", f64::from(count)),
        ("p50", at(500)),
        ("p99", at(990)),
        ("p99.9", at(999)),
    ]);
    println!("{}", serde_json::to_string(&figures)?);
    Ok(())
}

impl Connection {
    fn open(options: &Options, number: u64) -> Result<Self> {
        let mut stream: Box<dyn Stream> = match (&options.unix, &options.tcp) {
            (Some(path), _) => Box::new(UnixStream::connect(path)?),
            (None, Some(address)) => {
                let stream = TcpStream::connect(address)?;
                stream.set_nodelay(true)?;
                Box::new(stream)
            }
            (None, None) => return Err("neither --unix nor --tcp".into()),
        };
        let size = negotiate(&mut *stream, &options.export)?;
        let block = u64::from(options.block);
        let len = size / options.connections / block * block;
        if len == 0 {
            return Err(format!("the device of {size} bytes is too small").into());
        }
        let requests = (0..options.depth * Self::request_len(options)).map(|i| (i % 251).to_le_bytes()[0]).collect();
        let slots = (0..options.depth).map(|_| Slot { begun: Instant::now(), outstanding: false, flush_next: false });
        Ok(Self {
            stream,
            part: (number * len, len),
            requests,
            slots: slots.collect(),
            random: 0x9E37_79B9_7F4A_7C15 ^ (number << 32) ^ u64::from(std::process::id()),
            next: 0,
            latencies: Vec::with_capacity(1 << 20),
            options: options.clone(),
        })
    }

    /// A header and the longest payload.
    fn request_len(options: &Options) -> usize {
        REQUEST_LEN + usize::try_from(options.block).expect("usize has at least 32 bits")
    }

    /// Works until `stop`, and waits for what is outstanding then; nanoseconds of each operation.
    fn run(mut self, stop: &AtomicBool) -> Result<Vec<u32>> {
        let room = (2 << 20) + Self::request_len(&self.options);
        let (mut replies, mut have) = (vec![0; room], 0);
        let mut out = Vec::new();
        loop {
            let stopping = stop.load(Ordering::Relaxed);
            out.clear();
            for at in 0..self.slots.len() {
                if !self.slots[at].outstanding && (!stopping || self.slots[at].flush_next) {
                    self.ask(at, &mut out);
                }
            }
            self.stream.write_all(&out)?;
            if !self.slots.iter().any(|slot| slot.outstanding) {
                self.stream.write_all(&header(COMMAND_DISCONNECT, 0, 0, 0))?;
                return Ok(self.latencies);
            }
            let came = self.stream.read(&mut replies[have..])?;
            if came == 0 {
                return Err("the server closed the connection".into());
            }
            have += came;
            let used = self.take_replies(&replies[..have])?;
            replies.copy_within(used..have, 0);
            have -= used;
        }
    }

    /// Appends the next request of a slot.
    fn ask(&mut self, at: usize, out: &mut Vec<u8>) {
        let block = self.options.block;
        let (len, cookie) = (Self::request_len(&self.options), u64::try_from(at).expect("usize has at most 64 bits"));
        let slot = &mut self.slots[at];
        slot.outstanding = true;
        if slot.flush_next {
            out.extend_from_slice(&header(COMMAND_FLUSH, cookie, 0, 0));
            return;
        }
        slot.begun = Instant::now();
        let (command, offset) = self.next_request();
        let request = &mut self.requests[at * len..(at + 1) * len];
        request[..REQUEST_LEN].copy_from_slice(&header(command, cookie, offset, block));
        out.extend_from_slice(if command == COMMAND_WRITE { request } else { &request[..REQUEST_LEN] });
    }

    fn next_request(&mut self) -> (u16, u64) {
        self.random ^= self.random << 13;
        self.random ^= self.random >> 7;
        self.random ^= self.random << 17;
        let (block, (start, len)) = (u64::from(self.options.block), self.part);
        let anywhere = start + (self.random >> 8) % (len / block) * block;
        let here = start + self.next % (len / block) * block;
        self.next += 1;
        match self.options.work {
            Work::Write | Work::Flush => (COMMAND_WRITE, anywhere),
            Work::Read => (COMMAND_READ, anywhere),
            Work::Mixed if self.random % 10 < 7 => (COMMAND_READ, anywhere),
            Work::Mixed => (COMMAND_WRITE, anywhere),
            Work::SeqWrite => (COMMAND_WRITE, here),
            Work::SeqRead => (COMMAND_READ, here),
        }
    }

    /// Takes the replies that are whole; how many bytes they had.
    fn take_replies(&mut self, bytes: &[u8]) -> Result<usize> {
        let (now, mut used) = (Instant::now(), 0);
        while let Some((head, rest)) = bytes[used..].split_first_chunk::<REPLY_LEN>() {
            if number(&head[..4]) != u64::from(REPLY_MAGIC) || number(&head[4..8]) != 0 {
                return Err(format!("a reply that is none, or an error: {head:02x?}").into());
            }
            let at = usize::try_from(number(&head[8..]))?;
            let len = Self::request_len(&self.options);
            let command = self.requests[at * len + 6..at * len + 8].to_vec();
            let Some(slot) = self.slots.get_mut(at).filter(|slot| slot.outstanding) else {
                return Err("a reply to no request".into());
            };
            let data = if number(&command) == u64::from(COMMAND_READ) { len - REQUEST_LEN } else { 0 };
            if rest.len() < data {
                break;
            }
            used += REPLY_LEN + data;
            slot.outstanding = false;
            slot.flush_next = self.options.work == Work::Flush && !slot.flush_next;
            if !slot.flush_next {
                let nanos = now.duration_since(slot.begun).as_nanos();
                self.latencies.push(u32::try_from(nanos).unwrap_or(u32::MAX));
            }
        }
        Ok(used)
    }
}
