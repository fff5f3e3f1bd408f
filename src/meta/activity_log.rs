//! The activity log: which extents may differ between the copies, kept by a ring of [`AL_PAGES`] pages.
//!
//! A write is let out only when its extent is *hot*: in the log, durably. After a crash the hot extents are all that may
//! differ without a bit in a dirty bitmap, so only they are compared.
//!
//! One transaction is one page. It holds up to [`UPDATES_MAX`] changes of the slot table and a window of
//! [`WINDOW_LEN`] entries of the table as it is after them. The windows follow each other round the table, so the last
//! `ceil(slots / WINDOW_LEN)` pages hold all of it. The payload of the [`sectors`](super) format, whose stamp is
//! (`al_epoch`, sequence from 1):
//!
//! ```text
//! offset size field
//!      0    4 slots of the table
//!      4    4 number of updates
//!      8    4 first slot of the window
//!     12    4 entries of the window
//!     16   16 reserved, zero
//!     32  512 64 updates: slot 4, extent 4 (0xffffffff: the slot becomes empty)
//!    544 3104 776 entries of the window: extent 4 (0xffffffff: empty)
//! ```
//! Transaction `s` of an epoch stands in page `s % AL_PAGES`.
//!
//! # What the writer promises
//! 1. One transaction at a time: the next one is written when the one before is stable.
//! 2. A superblock with the epoch is stable before the epoch's first transaction is written.
//! 3. An extent is replaced only when nothing in it is in flight, it is stable on both copies or dirty in the bitmap, and
//!    the bitmap pages that cover it are stable. The replacing transaction then needs no cover for it.
//! 4. `format` wrote every page of the ring (epoch 0), so that each sector is intact from the start.
//!
//! # Why recovery is safe
//! Let `n` be the highest sequence of a whole page of this epoch, 0 if there is none. The result is the table after `n`
//! together with the table before `n`.
//! - *Completed transactions*: by promise 1 all of `1..=n` completed, `n` perhaps without the writer hearing of it. The
//!   last `ceil(slots / WINDOW_LEN) + 1` of them must be whole, else the answer is an error and everything is dirty; from
//!   them both tables follow exactly (each slot's newest window, then later updates).
//! - *`n + 1` was in flight and is torn or lost*: its page then holds an intact sector that is not of `n + 1`, which
//!   proves that it did not complete, so no write relied on its new extents. The old ones are in the table after `n`.
//! - *`n` was in flight and reached the disk*: its new extents are in the table after `n`, the ones it replaced in the
//!   table before; no argument about promise 3 is needed.
//! - *`n + 1` completed and rotted*: all its sectors carried its stamp, so none disproves it: an error.
//! - *an older page rotted*: outside of the needed run it matters to nobody; inside, an error.
//! - *stale pages*: of earlier epochs, and by promise 2 nothing of theirs is hot any more: attaching turned it into bits.
//!   A sector of a *later* epoch, or of a later sequence than `n + 1`, proves that something newer was lost: an error.
//! - *pages of another instance or another place*: such sectors prove nothing and count as damaged.

use crate::meta::cursor::{PayloadReader, PayloadWriter};
use crate::meta::layout::{AL_PAGES, activity_log_page};
use crate::meta::sectors::{self, Kind, SECTORS, Sector, Stamp};
use crate::meta::{MetaPage, PAGE_LEN, Page, narrow, wide};
use crate::units::{DiskInstance, ExtentNo};
use std::collections::BTreeSet;

/// Changes of the slot table in one transaction, at most.
pub const UPDATES_MAX: usize = 64;
/// Entries of the slot table that each transaction repeats.
pub const WINDOW_LEN: u32 = 776;
/// Slots that the ring can carry: the needed run and the page being written fit it.
pub const AL_SLOTS_MAX: u32 = 48_112;

const KIND: Kind = Kind { magic: u32::from_le_bytes(*b"RBA1"), version: 1 };
const EMPTY: u32 = u32::MAX;
const RESERVED: usize = 16;

const _: () = assert!(16 + RESERVED + UPDATES_MAX * 8 + WINDOW_LEN as usize * 4 == sectors::PAYLOAD_LEN);
const _: () = assert!(AL_SLOTS_MAX as u64 == (AL_PAGES as u64 - 2) * WINDOW_LEN as u64);

/// True when a sector of `page` says of itself that it belongs to an activity log, whole or damaged, of whatever copy. For whoever is
/// about to overwrite an area whose superblocks are gone.
#[must_use]
pub fn is_of_a_log(page: &Page) -> bool {
    page.chunks_exact(sectors::SECTOR_LEN).any(|sector| sector.starts_with(&KIND.magic.to_le_bytes()))
}

/// Why the log does not tell what was hot. Everything must then count as dirty.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum LogError {
    /// The zone was not read whole.
    #[error("{found} bytes of the activity log were read, {expected} are there")]
    Length {
        /// Bytes given.
        found: usize,
        /// Bytes of the zone.
        expected: usize,
    },
    /// A page that is needed is damaged.
    #[error("page {page} of the activity log is damaged, which should hold transaction {sequence}")]
    Damaged {
        /// Index of the page in the ring.
        page: usize,
        /// Transaction that should stand there.
        sequence: u64,
    },
    /// The log is ahead of the superblock or of itself.
    #[error("page {page} of the activity log is newer than the superblock and the rest of the log: an update was lost")]
    Ahead {
        /// Index of the page in the ring.
        page: usize,
    },
    /// A page is intact and makes no sense.
    #[error("page {page} of the activity log is intact but not valid: {why}")]
    Malformed {
        /// Index of the page in the ring.
        page: usize,
        /// What is wrong.
        why: &'static str,
    },
}

/// Makes the transactions of one epoch. Owns the slot table.
#[derive(Clone, Debug)]
pub struct LogWriter {
    instance: DiskInstance,
    al_epoch: u64,
    sequence: u64,
    table: Vec<Option<ExtentNo>>,
}

impl LogWriter {
    /// A writer for a new epoch, with an empty table. Nothing needs to be written for that.
    ///
    /// # Panics
    /// When `al_epoch` is 0 or there are more slots than [`AL_SLOTS_MAX`].
    #[must_use]
    pub fn new(instance: DiskInstance, al_epoch: u64, al_slots: u32) -> Self {
        assert!(al_epoch != 0 && (1..=AL_SLOTS_MAX).contains(&al_slots), "the superblock is valid");
        let slots = usize::try_from(al_slots).expect("usize has at least 32 bits");
        Self { instance, al_epoch, sequence: 0, table: vec![None; slots] }
    }

    /// The slot table as it is after the last transaction handed out.
    #[must_use]
    pub fn table(&self) -> &[Option<ExtentNo>] {
        &self.table
    }

    /// Applies `updates` (slot, new extent) in order and makes their page. The next transaction is asked for when this
    /// page is stable.
    ///
    /// # Panics
    /// When there are more than [`UPDATES_MAX`] updates, or one names a slot that is not there.
    pub fn transaction(&mut self, updates: &[(u32, Option<ExtentNo>)]) -> MetaPage {
        assert!(updates.len() <= UPDATES_MAX, "the caller splits long transactions");
        for &(slot, extent) in updates {
            assert!(extent.is_none_or(|e| e.0 != EMPTY), "no device has that extent");
            self.table[slot_index(slot)] = extent;
        }
        self.sequence += 1;
        let slots = u32::try_from(self.table.len()).expect("bounded on creation");
        let (start, len) = window(self.sequence, slots);
        let mut w = PayloadWriter::new();
        w.u32(slots);
        w.u32(u32::try_from(updates.len()).expect("bounded above"));
        w.u32(start);
        w.u32(len);
        w.zeros(RESERVED);
        for &(slot, extent) in updates {
            w.u32(slot);
            w.u32(extent_code(extent));
        }
        w.zeros((UPDATES_MAX - updates.len()) * 8);
        for &extent in &self.table[slot_index(start)..slot_index(start + len)] {
            w.u32(extent_code(extent));
        }
        let stamp = Stamp { epoch: self.al_epoch, sequence: self.sequence };
        page(self.instance, stamp, w)
    }
}

/// The pages of a new, empty log: epoch 0, which no superblock ever has. `format` writes them; written again when all
/// that the log said is in stable bitmaps, they heal a damaged ring.
pub fn blank_pages(instance: DiskInstance) -> impl Iterator<Item = MetaPage> {
    (0..wide(AL_PAGES)).map(move |sequence| page(instance, Stamp { epoch: 0, sequence }, PayloadWriter::new()))
}

fn page(instance: DiskInstance, stamp: Stamp, payload: PayloadWriter) -> MetaPage {
    let offset = activity_log_page(page_index(stamp.sequence));
    MetaPage { offset, bytes: sectors::seal(KIND, instance, offset, stamp, &payload.finish()) }
}

/// The extents that may be hot, ascending: those in the table after the newest transaction of `al_epoch` in `zone`, and
/// those in the table before it. See the module's documentation for why these are enough.
///
/// # Errors
/// When the log cannot tell; everything must then count as dirty.
pub fn recover(zone: &[u8], instance: DiskInstance, al_epoch: u64, al_slots: u32) -> Result<Vec<ExtentNo>, LogError> {
    let (pages, rest) = zone.as_chunks::<PAGE_LEN>();
    if pages.len() != AL_PAGES || !rest.is_empty() {
        return Err(LogError::Length { found: zone.len(), expected: AL_PAGES * PAGE_LEN });
    }
    let seen: Vec<[Sector; SECTORS]> = pages.iter().enumerate().map(|(i, p)| inspect(instance, i, p)).collect();
    let of_epoch = |page: usize| {
        sectors::whole(&seen[page], &pages[page]).filter(|(_, s)| s.epoch == al_epoch).map(|(_, s)| s.sequence)
    };
    let newest = (0..AL_PAGES).filter_map(of_epoch).max().unwrap_or(0);
    let Some(sequence) = newest.checked_add(1) else {
        return Err(LogError::Malformed { page: page_index(newest), why: "no transaction can follow it" });
    };
    let next = Stamp { epoch: al_epoch, sequence };
    for (page, sectors) in seen.iter().enumerate() {
        if sectors.iter().any(|s| matches!(s, Sector::Intact { stamp, .. } if *stamp > next)) {
            return Err(LogError::Ahead { page });
        }
    }
    let next_page = page_index(next.sequence);
    if !sectors::disprove(&seen[next_page], instance, next) {
        return Err(LogError::Damaged { page: next_page, sequence: next.sequence });
    }
    let run = u64::from(al_slots.div_ceil(WINDOW_LEN)) + 1;
    let first = newest.saturating_sub(run - 1).max(1);
    let mut table = vec![None; slot_index(al_slots)];
    let mut hot = BTreeSet::new();
    for sequence in first..=newest {
        let page = page_index(sequence);
        if of_epoch(page) != Some(sequence) {
            return Err(LogError::Damaged { page, sequence });
        }
        if sequence == newest {
            hot.extend(table.iter().copied().flatten());
        }
        apply(&mut table, al_slots, sequence, &pages[page]).map_err(|why| LogError::Malformed { page, why })?;
    }
    hot.extend(table.into_iter().flatten());
    Ok(hot.into_iter().collect())
}

/// A sector of another instance, or one whose sequence belongs into another page of the ring, proves nothing here.
fn inspect(instance: DiskInstance, index: usize, page: &Page) -> [Sector; SECTORS] {
    sectors::inspect(KIND, activity_log_page(index), page).map(|sector| match sector {
        Sector::Intact { instance: i, stamp, .. } if i == instance && page_index(stamp.sequence) == index => sector,
        Sector::Intact { .. } | Sector::Newer { .. } | Sector::Damaged | Sector::Foreign => Sector::Damaged,
    })
}

fn apply(table: &mut [Option<ExtentNo>], al_slots: u32, sequence: u64, page: &Page) -> Result<(), &'static str> {
    let payload = sectors::payload(page);
    let mut r = PayloadReader::new(&payload);
    let (slots, updates, start, len) = (r.u32(), r.u32(), r.u32(), r.u32());
    r.zeros(RESERVED)?;
    if slots != al_slots {
        return Err("it is of a table of another size");
    }
    if (start, len) != window(sequence, slots) {
        return Err("its window is not the one of its sequence");
    }
    let updates = usize::try_from(updates).ok().filter(|&n| n <= UPDATES_MAX).ok_or("it has too many updates")?;
    for _ in 0..updates {
        let (slot, extent) = (r.u32(), r.u32());
        *table.get_mut(slot_index(slot)).ok_or("it names a slot that is not there")? = extent_from(extent);
    }
    r.zeros((UPDATES_MAX - updates) * 8)?;
    for slot in start..start + len {
        table[slot_index(slot)] = extent_from(r.u32());
    }
    r.finish()
}

/// First slot and length of the window that transaction `sequence` carries.
fn window(sequence: u64, slots: u32) -> (u32, u32) {
    let windows = u64::from(slots.div_ceil(WINDOW_LEN));
    let start = u32::try_from((sequence - 1) % windows).expect("less than the number of windows") * WINDOW_LEN;
    (start, WINDOW_LEN.min(slots - start))
}

fn page_index(sequence: u64) -> usize {
    narrow(sequence % wide(AL_PAGES))
}

fn slot_index(slot: u32) -> usize {
    usize::try_from(slot).expect("usize has at least 32 bits")
}

fn extent_code(extent: Option<ExtentNo>) -> u32 {
    extent.map_or(EMPTY, |e| e.0)
}

fn extent_from(code: u32) -> Option<ExtentNo> {
    (code != EMPTY).then_some(ExtentNo(code))
}
