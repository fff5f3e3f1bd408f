//! A node's two devices: operations in flight, their delays and their faults. What sectors remember is `media`'s business.
//!
//! - Operations end after seeded delays, in any order.
//! - While a write is in flight each of its sectors may already be there for a reader, or for a crash.
//! - A killed process leaves each sector of a write in flight old or new, in the cache; a power loss goes on from there.
//! - A metadata commit writes its pages in any order and then flushes: a crash in the middle leaves a subset of their sectors.
//! - A failing operation gives EIO; a write or a commit that fails may have done any part of its work; a flush that fails
//!   curses what it covered. A device may also hang: nothing that was asked of it ends until the process is killed.
//! - The machine promises never to have two writes outstanding for one sector, or two commits for one page. It is held to that.

use std::collections::BTreeMap;

use repblk::meta::{MetaPage, PAGE_LEN};
use repblk::units::{ByteRange, OpId};

use crate::media::{Loss, Media};
use crate::rng::Rng;
use crate::stamp::{self, SECTOR};

/// Sectors of one metadata page.
const PAGE_SECTORS: usize = PAGE_LEN / SECTOR;

/// Content of a metadata sector.
pub(crate) type Bytes = [u8; SECTOR];

/// What goes wrong at random, each in a million operations.
#[derive(Clone, Copy, Default, Debug)]
pub(crate) struct DiskFaults {
    /// Reads that fail.
    pub(crate) read_eio: u64,
    /// Writes that fail.
    pub(crate) write_eio: u64,
    /// Flushes that fail.
    pub(crate) flush_eio: u64,
    /// Commits that fail.
    pub(crate) meta_eio: u64,
    /// Operations with which the device hangs.
    pub(crate) hang: u64,
    /// Writes of which one sector is not written, and nobody is told.
    pub(crate) dropped: u64,
    /// Writes of which one sector is written elsewhere, and nobody is told.
    pub(crate) misdirected: u64,
}

/// How the device answers in general.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub(crate) enum Health {
    /// As it should, but for random faults.
    #[default]
    Good,
    /// Every operation fails.
    Dead,
    /// No operation ends.
    Hung,
}

/// One operation on the data.
#[derive(Clone, Debug)]
pub(crate) enum DataOp {
    /// Read sectors.
    Read,
    /// Read sectors; only zeros are nothing.
    ReadSparse,
    /// Write these stamps.
    Write(Vec<u64>),
    /// Make what is completed stable.
    Flush,
}

#[derive(Clone, Debug)]
struct InFlight {
    first: usize,
    len: usize,
    op: DataOp,
    mark: u64,
}

/// Everything that both devices hold.
pub(crate) type Image = (Media<u64>, Media<Bytes>);

/// Both devices of one node.
#[derive(Clone, Debug)]
pub(crate) struct SimDisk {
    /// The volume's data, one stamp for each sector.
    pub(crate) data: Media<u64>,
    /// The metadata area.
    pub(crate) meta: Media<Bytes>,
    /// General health.
    pub(crate) health: Health,
    /// Random faults.
    pub(crate) faults: DiskFaults,
    /// Mean delay of an operation in nanoseconds.
    pub(crate) delay_mean: u64,
    /// Its data has no volatile cache: a write that ended is stable.
    pub(crate) write_through: bool,
    /// Flushes of the data that were asked for.
    pub(crate) flushes: u64,
    /// Something failed since the disk was last healed: errors to clients may be excused.
    pub(crate) ever_failed: bool,
    /// Counts what changes what a crash would leave: writes, flushes and commits, when they begin and when they end.
    pub(crate) touched: u64,
    /// Sectors that hold what they should not because this disk lied, with what they hold, since somebody asked last.
    pub(crate) lies: Vec<(usize, u64)>,
    ops: BTreeMap<OpId, InFlight>,
    commits: BTreeMap<OpId, Vec<MetaPage>>,
    next_fault: Option<&'static str>,
    rng: Rng,
}

/// How a data operation ended.
pub(crate) type DataEnd = Result<Option<Vec<u64>>, i32>;

const EIO: i32 = 5;

impl SimDisk {
    /// Blank devices.
    pub(crate) fn new(data_len: u64, meta_len: u64, delay_mean: u64, rng: Rng) -> Self {
        let sectors = |len: u64| usize::try_from(len).expect("simulated devices are small") / SECTOR;
        Self {
            data: Media::new(sectors(data_len), stamp::ZERO),
            meta: Media::new(sectors(meta_len), [0; SECTOR]),
            health: Health::Good,
            faults: DiskFaults::default(),
            delay_mean,
            write_through: false,
            flushes: 0,
            ever_failed: false,
            touched: 0,
            lies: Vec::new(),
            ops: BTreeMap::new(),
            commits: BTreeMap::new(),
            next_fault: None,
            rng,
        }
    }

    /// The next operation of this kind (`read`, `write`, `flush`, `commit`) fails.
    pub(crate) fn fail_next(&mut self, kind: &'static str) {
        self.next_fault = Some(kind);
    }

    /// A daemon opens it: on a disk without a cache it makes stable what an earlier life may have left in the system's.
    pub(crate) fn open(&mut self) {
        if self.write_through {
            self.data.flushed(self.data.mark());
        }
    }

    /// No more faults. What was cursed stays cursed.
    pub(crate) fn heal(&mut self) {
        self.health = Health::Good;
        self.faults = DiskFaults::default();
        self.next_fault = None;
    }

    /// Operations in flight.
    pub(crate) fn busy(&self) -> usize {
        self.ops.len() + self.commits.len()
    }

    /// Sectors that an operation in flight may change.
    pub(crate) fn sectors_in_flight(&self) -> impl Iterator<Item = usize> + '_ {
        self.ops.values().filter(|o| matches!(o.op, DataOp::Write(_))).flat_map(|o| o.first..o.first + o.len)
    }

    /// Takes an operation; the delay until it ends, or `None` when it hangs.
    pub(crate) fn submit(&mut self, id: OpId, range: ByteRange, op: DataOp) -> Option<u64> {
        let (first, len) = sectors(range);
        assert!(first + len <= self.data.view().len(), "an operation stays on the device: {range:?}");
        if let DataOp::Write(stamps) = &op {
            assert_eq!(stamps.len(), len, "data as long as its range");
            for (other, o) in self.ops.iter().filter(|(_, o)| matches!(o.op, DataOp::Write(_))) {
                let apart = first + len <= o.first || o.first + o.len <= first;
                assert!(apart, "two writes outstanding for one sector: {id:?} {range:?} and {other:?}");
            }
        }
        let mark = self.data.mark();
        self.flushes += u64::from(matches!(op, DataOp::Flush));
        self.touched += u64::from(!matches!(op, DataOp::Read | DataOp::ReadSparse));
        assert!(self.ops.insert(id, InFlight { first, len, op, mark }).is_none(), "{id:?} is used twice");
        assert!(!self.commits.contains_key(&id), "{id:?} is used twice");
        self.delay()
    }

    /// Takes a commit; the delay until it ends, or `None` when it hangs.
    pub(crate) fn commit(&mut self, id: OpId, pages: Vec<MetaPage>) -> Option<u64> {
        let end = self.meta.view().len() * SECTOR;
        for (i, page) in pages.iter().enumerate() {
            let offset = usize::try_from(page.offset).expect("small");
            assert!(offset % PAGE_LEN == 0 && offset + PAGE_LEN <= end, "page {offset} is in the area");
            assert!(pages[..i].iter().all(|p| p.offset != page.offset), "a commit holds a page once: {offset}");
            let twice = self.commits.iter().find(|(_, c)| c.iter().any(|p| p.offset == page.offset));
            assert!(twice.is_none(), "two commits outstanding for page {offset}: {id:?} and {:?}", twice.map(|t| t.0));
        }
        assert!(!self.ops.contains_key(&id), "{id:?} is used twice");
        assert!(self.commits.insert(id, pages).is_none(), "{id:?} is used twice");
        self.touched += 1;
        self.delay()
    }

    fn delay(&mut self) -> Option<u64> {
        let hang = self.faults.hang;
        if self.rng.chance(hang, 1_000_000) {
            self.health = Health::Hung;
        }
        if self.health == Health::Hung {
            self.ever_failed = true;
            return None;
        }
        Some(self.rng.wait(self.delay_mean))
    }

    fn fails(&mut self, kind: &'static str, rate: u64) -> bool {
        let forced = self.next_fault == Some(kind);
        if forced {
            self.next_fault = None;
        }
        let fails = forced || self.health == Health::Dead || self.rng.chance(rate, 1_000_000);
        self.ever_failed |= fails;
        fails
    }

    /// Ends a data operation. `None` when the device has come to hang meanwhile.
    pub(crate) fn finish(&mut self, id: OpId) -> Option<DataEnd> {
        if self.health == Health::Hung {
            return None;
        }
        let InFlight { first, len, op, mark } = self.ops.remove(&id).expect("it was submitted");
        self.touched += u64::from(!matches!(op, DataOp::Read | DataOp::ReadSparse));
        Some(match op {
            DataOp::Read | DataOp::ReadSparse if self.fails("read", self.faults.read_eio) => Err(EIO),
            DataOp::ReadSparse => {
                let stamps = self.read_now(first, len);
                Ok(stamps.iter().any(|&stamp| stamp != stamp::ZERO).then_some(stamps))
            }
            DataOp::Read => Ok(Some(self.read_now(first, len))),
            DataOp::Write(stamps) => {
                let failed = self.fails("write", self.faults.write_eio);
                let lied = if failed { None } else { self.lie(first, &stamps) };
                for (i, &stamp) in stamps.iter().enumerate() {
                    if (!failed || self.rng.coin()) && lied != Some(i) {
                        self.data.write(first + i, stamp);
                    }
                }
                if failed {
                    return Some(Err(EIO));
                }
                if self.write_through {
                    self.data.flushed(self.data.mark());
                }
                Ok(None)
            }
            DataOp::Flush if self.fails("flush", self.faults.flush_eio) => {
                self.data.flush_failed(mark);
                Err(EIO)
            }
            DataOp::Flush => {
                self.data.flushed(mark);
                Ok(None)
            }
        })
    }

    /// Drops or misdirects one sector of a write, at random: which.
    fn lie(&mut self, first: usize, stamps: &[u64]) -> Option<usize> {
        let misdirected = self.rng.chance(self.faults.misdirected, 1_000_000);
        if !misdirected && !self.rng.chance(self.faults.dropped, 1_000_000) {
            return None;
        }
        let i = self.rng.index(stamps.len());
        let kept = self.data.view()[first + i];
        self.lies.push((first + i, kept));
        if misdirected {
            let elsewhere = self.rng.index(self.data.view().len());
            let busy = self.sectors_in_flight().any(|sector| sector == elsewhere);
            if !busy && !(first..first + stamps.len()).contains(&elsewhere) {
                self.data.write(elsewhere, stamps[i]);
                self.lies.push((elsewhere, stamps[i]));
            }
        }
        Some(i)
    }

    /// A stable sector of the data rots.
    pub(crate) fn rot(&mut self, sector: usize, stamp: u64) {
        self.data.decay(sector, stamp);
        self.lies.push((sector, stamp));
    }

    /// Some sectors of a range of the metadata become noise.
    pub(crate) fn damage_meta(&mut self, range: ByteRange) {
        let (first, len) = sectors(range);
        let hit = self.rng.between(1, 4);
        for _ in 0..hit {
            let sector = first + self.rng.index(len);
            let noise = self.rng.next();
            let mut bytes = self.meta.durable()[sector];
            bytes[usize::try_from(noise % 512).expect("small")] ^= 1 << (noise >> 32 & 7);
            self.meta.decay(sector, bytes);
        }
    }

    /// Another device of the same size takes the place of this one: empty, but for the pages of a new format.
    pub(crate) fn replace(&mut self, pages: &[MetaPage]) {
        assert!(self.busy() == 0, "no daemon runs on it");
        self.data = Media::new(self.data.view().len(), stamp::ZERO);
        self.meta = Media::new(self.meta.view().len(), [0; SECTOR]);
        self.health = Health::Good;
        self.format(pages);
    }

    /// What a reader sees now: of a write in flight, any part.
    fn read_now(&mut self, first: usize, len: usize) -> Vec<u64> {
        let mut seen = self.data.view()[first..first + len].to_vec();
        for o in self.ops.values() {
            let DataOp::Write(stamps) = &o.op else { continue };
            for sector in first.max(o.first)..(first + len).min(o.first + o.len) {
                if self.rng.coin() {
                    seen[sector - first] = stamps[sector - o.first];
                }
            }
        }
        seen
    }

    /// Ends a commit. `None` when the device has come to hang meanwhile.
    pub(crate) fn finish_commit(&mut self, id: OpId) -> Option<Result<(), i32>> {
        if self.health == Health::Hung {
            return None;
        }
        let pages = self.commits.remove(&id).expect("it was submitted");
        self.touched += 1;
        let failed = self.fails("commit", self.faults.meta_eio);
        for page in &pages {
            self.write_page(page, failed);
        }
        Some(if failed {
            self.meta.flush_failed(self.meta.mark());
            Err(EIO)
        } else {
            self.meta.flushed(self.meta.mark());
            Ok(())
        })
    }

    fn write_page(&mut self, page: &MetaPage, any_part: bool) {
        let first = usize::try_from(page.offset).expect("small") / SECTOR;
        for i in 0..PAGE_SECTORS {
            if !any_part || self.rng.coin() {
                let bytes = page.bytes[i * SECTOR..(i + 1) * SECTOR].try_into().expect("one sector");
                self.meta.write(first + i, bytes);
            }
        }
    }

    /// Writes pages and makes them stable, at once: `repblk init`.
    pub(crate) fn format(&mut self, pages: &[MetaPage]) {
        for page in pages {
            self.write_page(page, false);
        }
        self.meta.flushed(self.meta.mark());
    }

    /// Everything that both devices hold, as a storage administrator's snapshot has it.
    pub(crate) fn image(&self) -> Image {
        (self.data.clone(), self.meta.clone())
    }

    /// A snapshot takes the place of what is there.
    pub(crate) fn restore(&mut self, (data, meta): Image) {
        assert!(self.busy() == 0, "no daemon runs on it");
        (self.data, self.meta) = (data, meta);
        self.data.touch_all();
    }

    /// The process is killed: nothing more is asked, and what was in flight has happened in any part.
    pub(crate) fn kill(&mut self) {
        if self.health == Health::Hung {
            self.health = Health::Good;
        }
        for (_, o) in std::mem::take(&mut self.ops) {
            let DataOp::Write(stamps) = o.op else { continue };
            let part = self.rng.below(3);
            for (i, &stamp) in stamps.iter().enumerate() {
                if part == 0 || part == 1 && self.rng.coin() {
                    self.data.write(o.first + i, stamp);
                }
            }
        }
        for (_, pages) in std::mem::take(&mut self.commits) {
            let part = self.rng.below(4);
            for page in &pages {
                let torn = part == 1 && self.rng.coin();
                if part == 0 || torn || part == 2 && self.rng.coin() {
                    self.write_page(page, torn);
                }
            }
        }
        self.data.forget_cursed();
        self.meta.forget_cursed();
    }

    /// The power goes.
    pub(crate) fn power_loss(&mut self, loss: Loss) {
        self.kill();
        self.data.power_loss(loss, &mut self.rng);
        self.meta.power_loss(loss, &mut self.rng);
    }

    /// Everything that is in flight reaches the cache. What is stable does not change.
    pub(crate) fn land(&mut self) {
        for (_, o) in std::mem::take(&mut self.ops) {
            let DataOp::Write(stamps) = o.op else { continue };
            for (i, &stamp) in stamps.iter().enumerate() {
                self.data.write(o.first + i, stamp);
            }
        }
        for page in std::mem::take(&mut self.commits).into_values().flatten() {
            self.write_page(&page, false);
        }
        self.data.forget_cursed();
        self.meta.forget_cursed();
    }

    /// Nothing of what is in flight is done.
    pub(crate) fn abandon(&mut self) {
        self.ops.clear();
        self.commits.clear();
        self.kill();
    }

    /// Sectors of both devices that a power cut may take back; of the data first.
    pub(crate) fn unflushed(&self) -> usize {
        self.data.unflushed() + self.meta.unflushed()
    }

    /// The power goes; `keep` is asked of each unflushed sector how many of its versions had reached the medium.
    pub(crate) fn power_cut(&mut self, mut keep: impl FnMut(usize) -> usize) {
        self.data.power_cut(&mut keep);
        self.meta.power_cut(&mut keep);
    }

    /// The metadata bytes of a range, as a process reads them that opens the device now.
    pub(crate) fn meta_bytes(&self, range: ByteRange) -> Vec<u8> {
        let (first, len) = sectors(range);
        self.meta.view()[first..first + len].concat()
    }
}

fn sectors(range: ByteRange) -> (usize, usize) {
    let small = |n: u64| usize::try_from(n).expect("simulated devices are small");
    assert!(small(range.start()) % SECTOR == 0 && small(range.len()) % SECTOR == 0, "whole sectors: {range:?}");
    (small(range.start()) / SECTOR, small(range.len()) / SECTOR)
}
