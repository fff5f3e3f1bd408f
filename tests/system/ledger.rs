//! Writers that keep a book, outside the device, of what was acknowledged to them, and the audit of that book.
//!
//! A writer that loses its connection tries the nodes in turn until one takes it, and repeats the write that was in
//! doubt. An error reply is never excused. Every sector carries who wrote it and by which operation, so that the audit
//! tells old from new, and both from anything else.
//!
//! What a sector may hold follows from the contract. Its *floor* is the newest operation on it that must have survived:
//! the newest that was acknowledged; but when every copy that was in sync lost power since ([`Ledger::power_was_lost`]), the newest
//! that a flush or FUA had made stable. Anything from the floor on may be there, nothing older, and nothing else.

use std::ops::Range;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use crate::raw_nbd::{FUA, Raw, TRIM, WRITE_ZEROES};
use crate::rng::Rng;
use crate::tools::wait_for;

pub(crate) const BLOCK: usize = 4096;
const SECTOR: usize = 512;
const BLOCK_SECTORS: usize = BLOCK / SECTOR;
/// Longest operation of a mixed load, in sectors.
const OPERATION_MAX: u64 = 64;
/// A writer flushes after so many writes.
const FLUSH_EVERY: u64 = 16;
/// Every so many writes one is made with FUA.
const FUA_EVERY: u64 = 7;

/// What is known of one sector. Operations are numbered for each writer, from 1.
#[derive(Debug, Clone, Copy, Default)]
struct Entry {
    /// Newest operation that was ever sent.
    sent: u64,
    /// Newest that was sent and makes zeros.
    zeroed: u64,
    /// Newest that was acknowledged.
    acked: u64,
    /// The number of power losses before `acked` was sent.
    era: u64,
    /// Newest that is stable, by a flush or FUA.
    stable: u64,
}

impl Entry {
    fn floor(&self, era: u64) -> u64 {
        if self.era == era { self.acked.max(self.stable) } else { self.stable }
    }
}

/// The book after the work.
pub(crate) struct Book {
    writers: Vec<Writing>,
    era: u64,
    /// Writes acknowledged.
    pub(crate) acked: u64,
    /// Error replies; there must be none.
    pub(crate) errors: Vec<String>,
    /// Longest time between two acknowledgements to one writer.
    pub(crate) gap: Duration,
    pub(crate) reconnects: u64,
}

/// What one writer has written.
#[derive(Clone)]
struct Writing {
    count: u64,
    sectors: Vec<Entry>,
}

#[derive(Default)]
struct Shared {
    over: AtomicBool,
    acked: AtomicU64,
    reconnects: AtomicU64,
    era: AtomicU64,
    errors: Mutex<Vec<String>>,
}

pub(crate) struct Ledger {
    shared: Arc<Shared>,
    writers: Vec<JoinHandle<(Writing, Duration)>>,
}

impl Ledger {
    /// Starts `writers` writers of whole blocks, each with `blocks` blocks of its own from the start of the volume on.
    pub(crate) fn start(places: &[String], writers: u64, blocks: usize) -> Self {
        let fresh = Writing { count: 0, sectors: vec![Entry::default(); blocks * BLOCK_SECTORS] };
        Self::run(places, (0..writers).map(|_| fresh.clone()).collect(), 0, None)
    }

    /// As `start`, with a load that `seed` mixes: ranges of sectors of any length and place, zeroes and trims.
    pub(crate) fn mixed(places: &[String], writers: u64, blocks: usize, seed: u64) -> Self {
        let fresh = Writing { count: 0, sectors: vec![Entry::default(); blocks * BLOCK_SECTORS] };
        Self::run(places, (0..writers).map(|_| fresh.clone()).collect(), 0, Some(seed))
    }

    /// Goes on where an audited book ended, with a mixed load.
    pub(crate) fn resume(places: &[String], book: Book, seed: u64) -> Self {
        Self::run(places, book.writers, book.era, Some(seed))
    }

    fn run(places: &[String], writings: Vec<Writing>, era: u64, mix: Option<u64>) -> Self {
        let shared = Arc::new(Shared { era: AtomicU64::new(era), ..Shared::default() });
        let start = |(number, writing)| {
            let (shared, places) = (Arc::clone(&shared), places.to_vec());
            let rng = Rng::new(mix.unwrap_or_default()).fork(number);
            thread::spawn(move || Writer { number, places, shared, writing, rng, mixed: mix.is_some() }.work())
        };
        let writers = (0..).zip(writings).map(start).collect();
        Self { shared, writers }
    }

    pub(crate) fn acked(&self) -> u64 {
        self.shared.acked.load(Ordering::Relaxed)
    }

    /// Waits until `more` writes have been acknowledged from now on.
    #[track_caller]
    pub(crate) fn wait_more(&self, more: u64, limit: Duration) {
        let goal = self.acked() + more;
        let what = format!("{more} more acknowledged writes");
        wait_for(&what, limit, || (self.acked() >= goal || self.is_broken()).then_some(()));
    }

    /// An error reply ended the work; the audit will tell.
    fn is_broken(&self) -> bool {
        self.shared.over.load(Ordering::Relaxed)
    }

    /// To be called when no copy is left that has its cache: after the power of the last one was lost, and before any daemon
    /// starts again. From what was acknowledged until now, only what is stable must survive.
    pub(crate) fn power_was_lost(&self) {
        self.shared.era.fetch_add(1, Ordering::SeqCst);
    }

    /// Ends the work; the writers finish what is in doubt first.
    pub(crate) fn stop(mut self) -> Book {
        self.shared.over.store(true, Ordering::Relaxed);
        let (mut writings, mut gap) = (Vec::new(), Duration::ZERO);
        for writer in self.writers.drain(..) {
            let (writing, longest) = writer.join().expect("a writer does not panic");
            writings.push(writing);
            gap = gap.max(longest);
        }
        Book {
            writers: writings,
            era: self.shared.era.load(Ordering::SeqCst),
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

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    Write,
    Zeroes,
    Trim,
}

struct Writer {
    number: u64,
    places: Vec<String>,
    shared: Arc<Shared>,
    writing: Writing,
    rng: Rng,
    mixed: bool,
}

impl Writer {
    fn work(mut self) -> (Writing, Duration) {
        let (mut client, mut last, mut gap) = (None, Instant::now(), Duration::ZERO);
        while !self.is_over() {
            let (kind, sectors) = self.draw();
            self.writing.count += 1;
            let version = self.writing.count;
            let flags = if version.is_multiple_of(FUA_EVERY) { FUA } else { 0 };
            for entry in &mut self.writing.sectors[sectors.clone()] {
                entry.sent = version;
                if kind != Kind::Write {
                    entry.zeroed = version;
                }
            }
            let Some(era) = self.perform(&mut client, kind, &sectors, flags) else { break };
            for entry in &mut self.writing.sectors[sectors] {
                (entry.acked, entry.era) = (version, era);
                if flags == FUA {
                    entry.stable = version;
                }
            }
            self.shared.acked.fetch_add(1, Ordering::Relaxed);
            gap = gap.max(last.elapsed());
            last = Instant::now();
            if version.is_multiple_of(FLUSH_EVERY) {
                self.flush(&mut client);
            }
        }
        (self.writing, gap)
    }

    /// The next operation. Most go to few blocks, as a database's do.
    fn draw(&mut self) -> (Kind, Range<usize>) {
        let (rng, all) = (&mut self.rng, self.writing.sectors.len());
        let area = if rng.chance(1, 4) { all } else { all.min(16 * BLOCK_SECTORS) };
        if !self.mixed || rng.coin() {
            let first = rng.index(area / BLOCK_SECTORS) * BLOCK_SECTORS;
            return (Kind::Write, first..first + BLOCK_SECTORS);
        }
        let first = rng.index(area);
        let end = (first + usize::try_from(rng.between(1, OPERATION_MAX)).expect("small")).min(all);
        (rng.pick(&[Kind::Write, Kind::Write, Kind::Zeroes, Kind::Trim]), first..end)
    }

    /// Does an operation until it is acknowledged. The number of power losses before it was sent; none when the work ends first.
    fn perform(&self, client: &mut Option<Raw>, kind: Kind, sectors: &Range<usize>, flags: u16) -> Option<u64> {
        let at = offset(self.number, sectors.start, self.writing.sectors.len());
        let len = u32::try_from(sectors.len() * SECTOR).expect("small");
        match kind {
            Kind::Write => {
                let bytes: Vec<u8> =
                    sectors.clone().flat_map(|s| sector_bytes(self.number, s, self.writing.count)).collect();
                self.insist(client, |client| client.write(at, &bytes, flags))
            }
            Kind::Zeroes => self.insist(client, |client| client.plain(flags, WRITE_ZEROES, at, len)),
            Kind::Trim => self.insist(client, |client| client.plain(flags, TRIM, at, len)),
        }
    }

    /// One flush on the present connection; it is not repeated on another. It covers what was acknowledged before it, on
    /// whatever connection, unless the power was lost in between.
    fn flush(&mut self, client: &mut Option<Raw>) {
        let era = self.shared.era.load(Ordering::SeqCst);
        let Some(raw) = client else { return };
        match raw.flush() {
            Ok(0) => {
                for entry in self.writing.sectors.iter_mut().filter(|entry| entry.era == era) {
                    entry.stable = entry.stable.max(entry.acked);
                }
            }
            Ok(error) => self.fault(format!("a flush was answered with error {error}")),
            Err(_) => *client = None,
        }
    }

    /// Does `what` until it is acknowledged, on whichever node takes it; as [`Writer::perform`].
    fn insist(&self, client: &mut Option<Raw>, mut what: impl FnMut(&mut Raw) -> std::io::Result<u32>) -> Option<u64> {
        let mut turn = 0;
        loop {
            let Some(raw) = client else {
                if self.is_over() {
                    return None;
                }
                *client = Raw::connect(&self.places[turn % self.places.len()]).ok();
                turn += 1;
                if client.is_none() {
                    thread::sleep(Duration::from_millis(10));
                }
                continue;
            };
            let era = self.shared.era.load(Ordering::SeqCst);
            match what(raw) {
                Ok(0) => return Some(era),
                Ok(error) => {
                    self.fault(format!("writer {} was answered with error {error}", self.number));
                    return None;
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
}

impl Book {
    /// Reads every sector of the book over NBD: each must hold what its floor was, or what was sent later.
    #[track_caller]
    pub(crate) fn audit(&self, client: &mut Raw) {
        self.found(client);
    }

    /// The same; and what was found is what each sector holds from now on. Only when nothing is under way any more.
    #[track_caller]
    pub(crate) fn settle(&mut self, client: &mut Raw) {
        let found = self.found(client);
        for (writing, found) in self.writers.iter_mut().zip(found) {
            for (entry, version) in writing.sectors.iter_mut().zip(found) {
                (entry.acked, entry.era) = (version, self.era);
            }
        }
    }

    #[track_caller]
    fn found(&self, client: &mut Raw) -> Vec<Vec<u64>> {
        assert_eq!(self.errors, Vec::<String>::new(), "a client saw an error");
        assert!(self.acked > 0, "the load did something");
        let mut found = Vec::new();
        for (writer, writing) in (0u64..).zip(&self.writers) {
            let all = writing.sectors.len();
            let bytes = client.read(offset(writer, 0, all), all * SECTOR).expect("the volume can be read");
            let sectors = writing.sectors.iter().zip(bytes.chunks_exact(SECTOR)).enumerate();
            found.push(sectors.map(|(sector, (entry, bytes))| self.judge(writer, sector, entry, bytes)).collect());
        }
        found
    }

    /// The operation whose content stands in a sector.
    #[track_caller]
    fn judge(&self, writer: u64, sector: usize, entry: &Entry, bytes: &[u8]) -> u64 {
        let zero = bytes.iter().all(|&byte| byte == 0);
        let version = if zero { entry.zeroed } else { u64::from_le_bytes(bytes[..8].try_into().expect("8 bytes")) };
        let place = format!("writer {writer} sector {sector}, power losses {}: {entry:?}", self.era);
        let shown = if zero { format!("zeros (of {version})") } else { version.to_string() };
        assert!(
            zero || bytes == sector_bytes(writer, sector, version),
            "{place}: neither old nor new, but {:02x?}",
            &bytes[..32]
        );
        assert!(version >= entry.floor(self.era), "{place}: {shown} is there, what was promised is lost");
        assert!(version <= entry.sent, "{place}: {shown} was never written");
        version
    }
}

/// Where a sector of a writer is on the volume, in bytes, with `sectors` for each writer.
fn offset(writer: u64, sector: usize, sectors: usize) -> u64 {
    let number = |n: usize| u64::try_from(n).expect("64 bits");
    (writer * number(sectors) + number(sector)) * number(SECTOR)
}

/// What a sector holds after a writer's operation number `version`.
fn sector_bytes(writer: u64, sector: usize, version: u64) -> Vec<u8> {
    let place = u64::try_from(sector).expect("64 bits");
    let fill = (writer << 48 | place).wrapping_mul(0x9e37_79b9_7f4a_7c15) ^ version;
    let words = std::iter::once(version).chain(std::iter::repeat(fill)).take(SECTOR / 8);
    words.flat_map(u64::to_le_bytes).collect()
}

/// A book of one writer with one sector: written four times, of which the second is stable and the third acknowledged.
fn judge_after(losses: u64, found: u64) -> u64 {
    let entry = Entry { sent: 4, zeroed: 0, acked: 3, era: 0, stable: 2 };
    let writers = vec![Writing { count: 4, sectors: vec![entry] }];
    let book = Book { writers, era: losses, acked: 3, errors: Vec::new(), gap: Duration::ZERO, reconnects: 0 };
    book.judge(0, 0, &entry, &sector_bytes(0, 0, found))
}

#[test]
fn the_audit_knows_what_was_promised() {
    for (losses, found) in [(0, 3), (0, 4), (1, 2), (1, 3), (1, 4)] {
        assert_eq!(judge_after(losses, found), found);
    }
    for (losses, found) in [(0, 0), (0, 2), (0, 5), (1, 0), (1, 1), (1, 5)] {
        let judged = std::panic::catch_unwind(|| judge_after(losses, found));
        assert!(judged.is_err(), "after {losses} power losses, {found} was never allowed");
    }
}
