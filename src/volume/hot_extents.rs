//! The activity log's table: which extents may be written without touching the metadata first.
//!
//! After a crash of the primary nobody knows which of the last writes reached which disk. The activity log answers with
//! a superset: every extent that may differ is *hot*, durably, before its first write. A write to a cold extent waits for
//! one metadata commit; many waiting writes share it.
//!
//! ```text
//!   cold --acquire--> warming --commit done--> hot --evict or cool (no references, bitmap pages durable)--> cold
//! ```
//! An extent is evicted when its slot is needed, and cooled when nobody wrote to it for a while: what a crash makes dirty is
//! then what was written lately, and not what was written ever.
//!
//! Invariants: an extent has at most one slot. A slot with references is never evicted. An extent leaves the table on disk only
//! in a commit that starts after the dirty bitmap of that extent is durable for every peer (the caller commits those pages first).

use crate::units::{ByteRange, ExtentNo};
use crate::volume::extent_index::ExtentIndex;

/// Extents that stay hot though nobody writes to them, with a table of the usual size: 64 MiB of the default length.
const KEEP_HOT: usize = 256;

/// Result of asking for extents.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Acquired {
    /// All are hot: write.
    Hot,
    /// References are taken; wait for the commit.
    Warming,
    /// Too few slots are free; nothing was taken.
    Full,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Heat {
    Free,
    /// Chosen, not yet in a commit, or in the one under way.
    Warming,
    Hot,
    /// Its extent is leaving with a commit that has not ended.
    Cooling,
}

#[derive(Clone, Copy, Debug)]
struct Slot {
    extent: ExtentNo,
    references: u32,
    heat: Heat,
    /// Second chance for the eviction clock.
    used: bool,
    /// Not used since the sweep before the last.
    stale: bool,
}

/// A change that the next commit must carry.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Change {
    /// The slot.
    pub(crate) slot: u32,
    /// What it held.
    pub(crate) old: Option<ExtentNo>,
    /// What it will hold.
    pub(crate) new: Option<ExtentNo>,
}

/// The table.
#[derive(Clone, Debug)]
pub(crate) struct HotExtents {
    extent_len: u64,
    slots: Vec<Slot>,
    index: ExtentIndex,
    /// Changes waiting for a commit, in order.
    waiting: Vec<Change>,
    /// Changes in the commit under way.
    committing: Vec<Change>,
    hand: usize,
    /// Slots with references.
    pinned: usize,
    /// As many extents stay hot though nobody writes to them.
    keep: usize,
}

impl HotExtents {
    /// An empty table of `slots` slots for extents of `extent_len` bytes.
    pub(crate) fn new(slots: u32, extent_len: u32) -> Self {
        let slots = usize::try_from(slots).expect("usize has at least 32 bits");
        let empty = Slot { extent: ExtentNo(0), references: 0, heat: Heat::Free, used: false, stale: false };
        Self {
            extent_len: u64::from(extent_len),
            slots: vec![empty; slots],
            index: ExtentIndex::new(slots),
            waiting: Vec::new(),
            committing: Vec::new(),
            hand: 0,
            pinned: 0,
            keep: KEEP_HOT.min(slots / 8),
        }
    }

    fn extents(&self, range: ByteRange) -> std::ops::RangeInclusive<u32> {
        let number = |at: u64| u32::try_from(at / self.extent_len).expect("the layout bounds the device");
        number(range.start())..=number(range.end() - 1)
    }

    /// How many bytes one write may span so that it always finds slots.
    pub(crate) fn span_max(&self) -> u64 {
        // Half the slots, less one for a range that does not start at an extent's edge.
        (self.slots.len() as u64 / 2 - 1).max(1) * self.extent_len
    }

    /// Takes a reference to each extent of `range`.
    pub(crate) fn acquire(&mut self, range: ByteRange) -> Acquired {
        let mut all_hot = true;
        for number in self.extents(range) {
            let extent = ExtentNo(number);
            let slot = match self.index.get(extent) {
                Some(slot) => slot,
                None => {
                    let Some(slot) = self.make_room(extent) else {
                        self.give_back(range.start(), u64::from(number) * self.extent_len);
                        return Acquired::Full;
                    };
                    slot
                }
            };
            let entry = &mut self.slots[slot as usize];
            if entry.references == 0 {
                self.pinned += 1;
            }
            entry.references += 1;
            (entry.used, entry.stale) = (true, false);
            all_hot &= entry.heat == Heat::Hot;
        }
        if all_hot { Acquired::Hot } else { Acquired::Warming }
    }

    /// Undoes the references taken for the extents that start in `start .. end`.
    fn give_back(&mut self, start: u64, end: u64) {
        if end > start {
            self.release(ByteRange::new(start, end - start));
        }
    }

    /// Drops a reference to each extent of `range`.
    ///
    /// # Panics
    /// When one was not taken.
    pub(crate) fn release(&mut self, range: ByteRange) {
        for number in self.extents(range) {
            let slot = self.index.get(ExtentNo(number)).expect("a referenced extent has a slot");
            let entry = &mut self.slots[slot as usize];
            entry.references = entry.references.checked_sub(1).expect("as many releases as acquires");
            if entry.references == 0 {
                self.pinned -= 1;
            }
        }
    }

    /// True when all extents of `range`, already acquired, are hot.
    pub(crate) fn is_hot(&self, range: ByteRange) -> bool {
        self.extents(range).all(|number| self.is_hot_extent(ExtentNo(number)))
    }

    /// True when `extent` is hot on disk.
    pub(crate) fn is_hot_extent(&self, extent: ExtentNo) -> bool {
        self.index.get(extent).is_some_and(|slot| self.slots[slot as usize].heat == Heat::Hot)
    }

    /// True when the extent of byte `at` is hot, or was until a commit that is not yet durable.
    pub(crate) fn covers(&self, at: u64) -> bool {
        let extent = *self.extents(ByteRange::new(at, 1)).start();
        self.is_hot_extent(ExtentNo(extent))
            || self.waiting.iter().chain(&self.committing).any(|change| change.old == Some(ExtentNo(extent)))
    }

    /// Finds a slot for `extent` and queues the change. Clock with second chance: cheap and good enough for a log that is large by default.
    fn make_room(&mut self, extent: ExtentNo) -> Option<u32> {
        // Twice around: the first pass may only take second chances away.
        for _ in 0..2 * self.slots.len() {
            let at = self.hand;
            self.hand = (self.hand + 1) % self.slots.len();
            let slot = &mut self.slots[at];
            let old = match slot.heat {
                Heat::Free => None,
                Heat::Hot if slot.references == 0 && slot.used => {
                    slot.used = false;
                    continue;
                }
                Heat::Hot if slot.references == 0 => Some(slot.extent),
                Heat::Hot | Heat::Warming | Heat::Cooling => continue,
            };
            if let Some(old) = old {
                self.index.remove(old);
            }
            *slot = Slot { extent, references: 0, heat: Heat::Warming, used: true, stale: false };
            let number = u32::try_from(at).expect("the layout bounds the slots");
            self.index.insert(extent, number);
            self.waiting.push(Change { slot: number, old, new: Some(extent) });
            return Some(number);
        }
        None
    }

    /// Marks the slots that nobody used since the last sweep. True when any slot is hot.
    pub(crate) fn sweep(&mut self) -> bool {
        let mut any = false;
        for slot in self.slots.iter_mut().filter(|slot| slot.heat == Heat::Hot) {
            slot.stale = !slot.used && slot.references == 0;
            slot.used = false;
            any = true;
        }
        any
    }

    /// Queues the end of at most `max` stale extents. A small working set stays hot: copying it again costs little.
    pub(crate) fn cool(&mut self, max: usize) {
        let max = max.min(self.index.len().saturating_sub(self.keep));
        let stale =
            self.slots.iter_mut().enumerate().filter(|(_, s)| s.heat == Heat::Hot && s.stale && s.references == 0);
        for (at, slot) in stale.take(max) {
            slot.heat = Heat::Cooling;
            slot.stale = false;
            self.index.remove(slot.extent);
            let number = u32::try_from(at).expect("the layout bounds the slots");
            self.waiting.push(Change { slot: number, old: Some(slot.extent), new: None });
        }
    }

    /// True when an extent is in the table.
    pub(crate) fn is_used(&self) -> bool {
        self.index.len() > 0
    }

    /// Changes that wait for a commit.
    pub(crate) fn has_waiting(&self) -> bool {
        !self.waiting.is_empty()
    }

    /// The first `max` waiting changes; they are what [`HotExtents::begin_commit`] with the same `max` will take.
    pub(crate) fn waiting(&self, max: usize) -> &[Change] {
        &self.waiting[..self.waiting.len().min(max)]
    }

    /// Starts a commit of at most `max` changes.
    pub(crate) fn begin_commit(&mut self, max: usize) -> &[Change] {
        assert!(self.committing.is_empty(), "one commit at a time");
        let count = self.waiting.len().min(max);
        self.committing.extend(self.waiting.drain(..count));
        &self.committing
    }

    /// The commit is durable: its extents are hot.
    pub(crate) fn commit_done(&mut self) {
        for change in self.committing.drain(..) {
            let slot = &mut self.slots[change.slot as usize];
            match change.new {
                Some(extent) => {
                    assert_eq!(
                        (slot.extent, slot.heat),
                        (extent, Heat::Warming),
                        "a warming slot waits for its commit"
                    );
                    slot.heat = Heat::Hot;
                }
                None => {
                    assert_eq!(slot.heat, Heat::Cooling, "a cooling slot waits for its commit");
                    slot.heat = Heat::Free;
                }
            }
        }
    }

    /// True when more than half of the slots are referenced: time to make writes stable so that slots become free.
    pub(crate) fn is_crowded(&self) -> bool {
        self.pinned * 2 > self.slots.len()
    }

    /// Number of referenced slots.
    pub(crate) fn pinned(&self) -> usize {
        self.pinned
    }

    /// Byte range of an extent, cut off at `data_len`.
    pub(crate) fn range_of(&self, extent: ExtentNo, data_len: u64) -> ByteRange {
        let start = u64::from(extent.0) * self.extent_len;
        ByteRange::new(start, self.extent_len.min(data_len - start))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const LEN: u32 = 65536;

    fn commit(hot: &mut HotExtents) {
        hot.begin_commit(64);
        hot.commit_done();
    }

    #[test]
    fn a_cold_extent_waits_and_a_hot_one_does_not() {
        let mut hot = HotExtents::new(8, LEN);
        let range = ByteRange::new(0, 4096);
        assert_eq!(hot.acquire(range), Acquired::Warming);
        assert!(!hot.is_hot(range));
        commit(&mut hot);
        assert!(hot.is_hot(range));
        assert_eq!(hot.acquire(range), Acquired::Hot);
    }

    #[test]
    fn a_full_table_takes_nothing() {
        let mut hot = HotExtents::new(8, LEN);
        for i in 0..7 {
            assert_eq!(hot.acquire(ByteRange::new(i * u64::from(LEN), 1)), Acquired::Warming);
        }
        // Needs two more, only one is free: neither stays referenced.
        assert_eq!(hot.acquire(ByteRange::new(7 * u64::from(LEN), 2 * u64::from(LEN))), Acquired::Full);
        assert_eq!(hot.pinned(), 7);
    }

    #[test]
    fn an_evicted_extent_is_covered_until_the_commit() {
        let mut hot = HotExtents::new(8, LEN);
        for i in 0..8 {
            let range = ByteRange::new(i * u64::from(LEN), 1);
            hot.acquire(range);
            hot.release(range);
        }
        commit(&mut hot);
        hot.acquire(ByteRange::new(100 * u64::from(LEN), 1));
        let old = hot.waiting(1)[0].old.expect("all slots were taken");
        assert!(hot.covers(u64::from(old.0) * u64::from(LEN)));
        commit(&mut hot);
        assert!(!hot.covers(u64::from(old.0) * u64::from(LEN)));
    }

    #[test]
    fn what_nobody_writes_to_cools_after_two_sweeps() {
        let mut hot = HotExtents::new(8, LEN);
        hot.keep = 0;
        let (idle, busy) = (ByteRange::new(0, 1), ByteRange::new(u64::from(LEN), 1));
        for range in [idle, busy] {
            hot.acquire(range);
        }
        commit(&mut hot);
        hot.release(idle);
        hot.sweep();
        hot.cool(64);
        assert!(hot.is_hot(idle), "used since the sweep before");
        hot.sweep();
        hot.cool(64);
        assert!(!hot.is_hot(idle) && hot.covers(0), "on its way out, and covered until that is durable");
        commit(&mut hot);
        assert!(!hot.covers(0) && hot.is_hot(busy));
        assert_eq!(hot.acquire(idle), Acquired::Warming);
    }

    proptest! {
        #[test]
        fn references_balance(extents in proptest::collection::vec(0u64..40, 1..300)) {
            let mut hot = HotExtents::new(16, LEN);
            let mut taken: Vec<ByteRange> = Vec::new();
            for extent in extents {
                let range = ByteRange::new(extent * u64::from(LEN), 2 * u64::from(LEN));
                if taken.len() > 4 {
                    hot.release(taken.remove(0));
                }
                if hot.acquire(range) == Acquired::Full {
                    commit(&mut hot);
                    prop_assert_ne!(hot.acquire(range), Acquired::Full);
                }
                taken.push(range);
                commit(&mut hot);
                for range in &taken {
                    prop_assert!(hot.is_hot(*range), "a referenced extent stays hot");
                }
            }
            for range in taken.drain(..) {
                hot.release(range);
            }
            prop_assert_eq!(hot.pinned(), 0);
        }
    }
}
