//! Which bytes are being changed right now.
//!
//! Overlapping writes in flight would be free to finish in different orders on the two copies, so at most one of them is
//! let through at a time: whoever holds a range keeps the others out until it is done everywhere. Resync blocks ask like
//! anybody else, so the conflict between an application's write and a resync of the same block is ordinary.
//!
//! Invariant: held ranges do not overlap.

use std::collections::BTreeMap;

use crate::units::ByteRange;

/// The set of held ranges.
#[derive(Clone, Debug, Default)]
pub(crate) struct InFlight {
    /// End of each held range, by its start.
    held: BTreeMap<u64, u64>,
}

impl InFlight {
    /// Takes `range` (not empty) unless somebody holds a part of it.
    pub(crate) fn try_hold(&mut self, range: ByteRange) -> bool {
        debug_assert!(!range.is_empty(), "an empty range conflicts with nobody");
        if self.is_held(range) {
            return false;
        }
        self.held.insert(range.start(), range.end());
        true
    }

    /// True when somebody holds a part of `range`.
    pub(crate) fn is_held(&self, range: ByteRange) -> bool {
        // Held ranges are disjoint, so the last one that starts before our end is the only one that can reach into us
        // from the left, and any that starts inside us is found by the same look.
        self.held.range(..range.end()).next_back().is_some_and(|(_, &end)| end > range.start())
    }

    /// Gives `range` back.
    ///
    /// # Panics
    /// When exactly this range is not held.
    pub(crate) fn release(&mut self, range: ByteRange) {
        let end = self.held.remove(&range.start());
        assert_eq!(end, Some(range.end()), "a range is given back as it was taken");
    }

    /// Number of held ranges.
    pub(crate) fn len(&self) -> usize {
        self.held.len()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn agrees_with_a_naive_list(steps in proptest::collection::vec((0u64..200, 1u64..20, any::<bool>()), 1..200)) {
            let mut real = InFlight::default();
            let mut naive: Vec<ByteRange> = Vec::new();
            for (start, len, drop_one) in steps {
                if drop_one && !naive.is_empty() {
                    let at = usize::try_from(start).expect("small") % naive.len();
                    real.release(naive.swap_remove(at));
                }
                let range = ByteRange::new(start, len);
                let free = naive.iter().all(|held| !held.overlaps(range));
                prop_assert_eq!(real.try_hold(range), free);
                if free {
                    naive.push(range);
                }
                prop_assert_eq!(real.len(), naive.len());
            }
        }
    }
}
