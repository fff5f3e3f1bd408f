//! Writers that keep a book, outside the device, of what was acknowledged to them, and the audit of that book.
//!
//! A writer that loses its connection tries the nodes in turn until one takes it, and repeats the write that was in
//! doubt. An error reply is never excused. Every sector carries who wrote it and which version it is, so that the audit
//! tells old from new, and both from anything else.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use crate::raw_nbd::{FUA, Raw};
use crate::tools::wait_for;

pub(crate) const BLOCK: usize = 4096;
const SECTOR: usize = 512;
/// A writer flushes after so many writes.
const FLUSH_EVERY: u64 = 16;
/// Every so many writes one is made with FUA.
const FUA_EVERY: u64 = 7;

/// What is known of one block.
#[derive(Debug, Clone, Copy, Default)]
struct Entry {
    /// Newest version that was ever sent.
    sent: u64,
    /// Newest version whose write was acknowledged.
    acked: u64,
}

/// The book after the work.
pub(crate) struct Book {
    writers: Vec<Vec<Entry>>,
    /// Writes acknowledged.
    pub(crate) acked: u64,
    /// Error replies; there must be none.
    pub(crate) errors: Vec<String>,
    /// Longest time between two acknowledgements to one writer.
    pub(crate) gap: Duration,
    pub(crate) reconnects: u64,
}

#[derive(Default)]
struct Shared {
    over: AtomicBool,
    acked: AtomicU64,
    reconnects: AtomicU64,
    errors: Mutex<Vec<String>>,
}

pub(crate) struct Ledger {
    shared: Arc<Shared>,
    writers: Vec<JoinHandle<(Vec<Entry>, Duration)>>,
}

impl Ledger {
    /// Starts `writers` writers, each with `blocks` blocks of its own from the start of the volume on.
    pub(crate) fn start(places: &[String], writers: u64, blocks: usize) -> Self {
        let shared = Arc::new(Shared::default());
        let start = |number| {
            let (shared, places) = (Arc::clone(&shared), places.to_vec());
            thread::spawn(move || Writer { number, places, shared, entries: vec![Entry::default(); blocks] }.work())
        };
        let writers = (0..writers).map(start).collect();
        Self { shared, writers }
    }

    pub(crate) fn acked(&self) -> u64 {
        self.shared.acked.load(Ordering::Relaxed)
    }

    /// Waits until `more` writes have been acknowledged from now on.
    #[track_caller]
    pub(crate) fn wait_more(&self, more: u64, limit: Duration) {
        let goal = self.acked() + more;
        wait_for(&format!("{more} more acknowledged writes"), limit, || (self.acked() >= goal).then_some(()));
    }

    /// Ends the work; the writers finish what is in doubt first.
    pub(crate) fn stop(mut self) -> Book {
        self.shared.over.store(true, Ordering::Relaxed);
        let (mut entries, mut gap) = (Vec::new(), Duration::ZERO);
        for writer in self.writers.drain(..) {
            let (book, longest) = writer.join().expect("a writer does not panic");
            entries.push(book);
            gap = gap.max(longest);
        }
        Book {
            writers: entries,
            acked: self.acked(),
            errors: std::mem::take(&mut self.shared.errors.lock().expect("nobody panics with it in hand")),
            gap,
            reconnects: self.shared.reconnects.load(Ordering::Relaxed),
        }
    }
}

impl Drop for Ledger {
    fn drop(&mut self) {
        self.shared.over.store(true, Ordering::Relaxed);
    }
}

struct Writer {
    number: u64,
    places: Vec<String>,
    shared: Arc<Shared>,
    entries: Vec<Entry>,
}

impl Writer {
    fn work(mut self) -> (Vec<Entry>, Duration) {
        let (mut client, mut count, mut last, mut gap) = (None, 0u64, Instant::now(), Duration::ZERO);
        let mut state = self.number * 977 + 1;
        while !self.is_over() {
            // Most writes go to few blocks, as a database's do.
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            let wide = usize::try_from(state >> 33).expect("31 bits");
            let block =
                if wide.is_multiple_of(4) { wide % self.entries.len() } else { wide % self.entries.len().min(16) };
            count += 1;
            let flags = if count.is_multiple_of(FUA_EVERY) { FUA } else { 0 };
            self.entries[block].sent += 1;
            let version = self.entries[block].sent;
            let bytes = block_bytes(self.number, block, version);
            let at = self.offset(block);
            if !self.insist(&mut client, |client| client.write(at, &bytes, flags)) {
                break;
            }
            self.entries[block].acked = version;
            self.shared.acked.fetch_add(1, Ordering::Relaxed);
            gap = gap.max(last.elapsed());
            last = Instant::now();
            if count.is_multiple_of(FLUSH_EVERY) {
                self.flush(&mut client);
            }
        }
        (self.entries, gap)
    }

    /// One flush on the present connection. A flush on a new one says nothing of what an old server had in its cache, so
    /// it is not repeated there.
    fn flush(&self, client: &mut Option<Raw>) {
        let Some(raw) = client else { return };
        match raw.flush() {
            Ok(0) => {}
            Ok(error) => self.fault(format!("a flush was answered with error {error}")),
            Err(_) => *client = None,
        }
    }

    /// Does `what` until it is acknowledged, on whichever node takes it; false when the work ends before.
    fn insist(&self, client: &mut Option<Raw>, mut what: impl FnMut(&mut Raw) -> std::io::Result<u32>) -> bool {
        let mut turn = 0;
        loop {
            let Some(raw) = client else {
                if self.is_over() {
                    return false;
                }
                *client = Raw::connect(&self.places[turn % self.places.len()]).ok();
                turn += 1;
                if client.is_none() {
                    thread::sleep(Duration::from_millis(10));
                }
                continue;
            };
            match what(raw) {
                Ok(0) => return true,
                Ok(error) => {
                    self.fault(format!("writer {} was answered with error {error}", self.number));
                    return false;
                }
                Err(_) => {
                    self.shared.reconnects.fetch_add(1, Ordering::Relaxed);
                    *client = None;
                }
            }
        }
    }

    fn fault(&self, what: String) {
        self.shared.errors.lock().expect("nobody panics with it in hand").push(what);
        self.shared.over.store(true, Ordering::Relaxed);
    }

    fn is_over(&self) -> bool {
        self.shared.over.load(Ordering::Relaxed)
    }

    fn offset(&self, block: usize) -> u64 {
        offset(self.number, block, self.entries.len())
    }
}

impl Book {
    /// Reads every block of the book over NBD: each sector must hold what was acknowledged last, or what was sent later.
    #[track_caller]
    pub(crate) fn audit(&self, client: &mut Raw) {
        assert_eq!(self.errors, Vec::<String>::new(), "a client saw an error");
        assert!(self.acked > 0, "the load did something");
        for (writer, entries) in (0u64..).zip(&self.writers) {
            for (block, entry) in entries.iter().enumerate() {
                let bytes = client.read(offset(writer, block, entries.len()), BLOCK).expect("the volume can be read");
                for (sector, bytes) in bytes.chunks(SECTOR).enumerate() {
                    let version = u64::from_le_bytes(bytes[..8].try_into().expect("8 bytes"));
                    let place = format!("writer {writer} block {block} sector {sector}: {entry:?}");
                    assert!(
                        version >= entry.acked,
                        "{place}: version {version} is there, an acknowledged write is lost"
                    );
                    assert!(version <= entry.sent, "{place}: version {version} was never written");
                    assert_eq!(bytes, sector_bytes(writer, block, sector, version), "{place}: neither old nor new");
                }
            }
        }
    }
}

fn offset(writer: u64, block: usize, blocks: usize) -> u64 {
    let (block, blocks) = (u64::try_from(block).expect("64 bits"), u64::try_from(blocks).expect("64 bits"));
    (writer * blocks + block) * u64::try_from(BLOCK).expect("64 bits")
}

fn block_bytes(writer: u64, block: usize, version: u64) -> Vec<u8> {
    (0..BLOCK / SECTOR).flat_map(|sector| sector_bytes(writer, block, sector, version)).collect()
}

/// What a sector holds in `version`; version 0 is what an untouched volume has.
fn sector_bytes(writer: u64, block: usize, sector: usize, version: u64) -> Vec<u8> {
    if version == 0 {
        return vec![0; SECTOR];
    }
    let place = u64::try_from(block * 8 + sector).expect("64 bits");
    let fill = (writer << 48 | place).wrapping_mul(0x9e37_79b9_7f4a_7c15) ^ version;
    let words = std::iter::once(version).chain(std::iter::repeat(fill)).take(SECTOR / 8);
    words.flat_map(u64::to_le_bytes).collect()
}
