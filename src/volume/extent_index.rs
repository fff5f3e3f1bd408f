//! Which slot of the activity log's table holds an extent.
//!
//! A write looks here twice, so an answer must cost no more than a line or two of memory: a table of open addresses (Knuth, The Art of
//! Computer Programming, volume 3, section 6.4), at most half full, that never grows. Clients choose the extents; one who chose them
//! so that they meet in one place would slow down no volume but his own.
//!
//! Invariants: an extent is in the table at most once. No free place lies between where an extent would stand first and where it stands.

use crate::units::ExtentNo;

/// Marks a free place; no slot has this number.
const FREE: u32 = u32::MAX;

#[derive(Clone, Copy, Debug)]
struct Place {
    extent: ExtentNo,
    slot: u32,
}

/// The index.
#[derive(Clone, Debug)]
pub(crate) struct ExtentIndex {
    /// A power of two of them.
    places: Vec<Place>,
    len: usize,
}

impl ExtentIndex {
    /// An empty index for at most `most` extents.
    pub(crate) fn new(most: usize) -> Self {
        let places = (2 * most.max(1)).next_power_of_two();
        Self { places: vec![Place { extent: ExtentNo(0), slot: FREE }; places], len: 0 }
    }

    /// Number of extents in it.
    pub(crate) fn len(&self) -> usize {
        self.len
    }

    /// The slot of an extent.
    pub(crate) fn get(&self, extent: ExtentNo) -> Option<u32> {
        let place = self.places[self.find(extent)];
        (place.slot != FREE).then_some(place.slot)
    }

    /// Notes the slot of an extent that is not in the index.
    pub(crate) fn insert(&mut self, extent: ExtentNo, slot: u32) {
        assert!(self.len * 2 < self.places.len() && slot != FREE, "a table has a slot for each extent in it");
        let at = self.find(extent);
        assert_eq!(self.places[at].slot, FREE, "an extent has one slot");
        self.places[at] = Place { extent, slot };
        self.len += 1;
    }

    /// Forgets an extent that is in the index.
    pub(crate) fn remove(&mut self, extent: ExtentNo) {
        let mut gap = self.find(extent);
        assert_ne!(self.places[gap].slot, FREE, "only what is there is forgotten");
        self.len -= 1;
        // Whoever stands behind the gap and might have stood in it moves up, so that a search still finds all that it passes the gap for.
        let mut at = gap;
        loop {
            at = self.next(at);
            let Place { extent, slot } = self.places[at];
            if slot == FREE {
                break;
            }
            let wandered = self.distance(self.first(extent), at);
            if wandered >= self.distance(gap, at) {
                self.places[gap] = self.places[at];
                gap = at;
            }
        }
        self.places[gap].slot = FREE;
    }

    /// Where an extent stands, or the free place where it would.
    fn find(&self, extent: ExtentNo) -> usize {
        let mut at = self.first(extent);
        while self.places[at].slot != FREE && self.places[at].extent != extent {
            at = self.next(at);
        }
        at
    }

    /// Where an extent stands if nobody else does. The factor is 2^32 divided by the golden ratio.
    fn first(&self, extent: ExtentNo) -> usize {
        let spread = extent.0.wrapping_mul(0x9E37_79B9);
        (spread >> (32 - self.places.len().trailing_zeros())) as usize
    }

    fn next(&self, at: usize) -> usize {
        (at + 1) & (self.places.len() - 1)
    }

    /// Steps from one place to another.
    fn distance(&self, from: usize, to: usize) -> usize {
        to.wrapping_sub(from) & (self.places.len() - 1)
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use proptest::prelude::*;

    use super::*;

    proptest! {
        /// Few places and many extents that want the same: the end of the table and long runs are met all the time.
        #[test]
        fn agrees_with_a_map(steps in proptest::collection::vec((any::<bool>(), 0u32..40), 1..400), most in 1usize..12) {
            let (mut index, mut map) = (ExtentIndex::new(most), BTreeMap::new());
            for (at, (insert, number)) in (0u32..).zip(steps) {
                let extent = ExtentNo(number);
                match map.contains_key(&extent) {
                    true if !insert => {
                        index.remove(extent);
                        map.remove(&extent);
                    }
                    false if insert && map.len() < most => {
                        index.insert(extent, at);
                        map.insert(extent, at);
                    }
                    _ => {}
                }
                prop_assert_eq!(index.len(), map.len());
                for number in 0..40 {
                    prop_assert_eq!(index.get(ExtentNo(number)), map.get(&ExtentNo(number)).copied());
                }
            }
        }
    }
}
