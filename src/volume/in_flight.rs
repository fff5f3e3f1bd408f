//! Which bytes are being changed right now.
//!
//! Overlapping writes in flight would be free to finish in different orders on the two copies, so at most one of them is
//! let through at a time: whoever holds a range keeps the others out until it is done everywhere. Resync blocks ask like
//! anybody else, so the conflict between an application's write and a resync of the same block is ordinary.
//!
//! Few are held at a time, as many as clients may have under way: a sorted list is quicker to search and to change than a tree.
//!
//! Invariant: held ranges do not overlap.

use crate::units::ByteRange;

/// The set of held ranges.
#[derive(Clone, Debug, Default)]
pub(crate) struct InFlight {
    /// In ascending order.
    held: Vec<ByteRange>,
}

impl InFlight {
    /// Takes `range` (not empty) unless somebody holds a part of it.
    pub(crate) fn try_hold(&mut self, range: ByteRange) -> bool {
        debug_assert!(!range.is_empty(), "an empty range conflicts with nobody");
        let at = self.place(range);
        let free = self.is_free(at, range);
        if free {
            self.held.insert(at, range);
        }
        free
    }

    /// True when somebody holds a part of `range`.
    pub(crate) fn is_held(&self, range: ByteRange) -> bool {
        !self.is_free(self.place(range), range)
    }

    /// How many of the held ranges end at or before the start of `range`.
    fn place(&self, range: ByteRange) -> usize {
        self.held.partition_point(|held| held.end() <= range.start())
    }

    /// True when the range that is held at `at`, the first that reaches beyond the start of `range`, begins behind it.
    fn is_free(&self, at: usize, range: ByteRange) -> bool {
        self.held.get(at).is_none_or(|held| held.start() >= range.end())
    }

    /// Gives `range` back.
    ///
    /// # Panics
    /// When exactly this range is not held.
    pub(crate) fn release(&mut self, range: ByteRange) {
        let at = self.place(range);
        assert_eq!(self.held.get(at), Some(&range), "a range is given back as it was taken");
        self.held.remove(at);
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
