//! Which counters of one life of a sender were taken already.

/// A counter so much older than the newest one is taken for heard.
pub(super) const LEN: u64 = 64;

/// The newest counter, and which of those before it were taken.
#[derive(Clone, Debug)]
pub(super) struct Window {
    newest: u64,
    /// Bit n stands for the counter n before the newest.
    taken: u64,
}

impl Window {
    pub(super) fn starting_with(counter: u64) -> Self {
        // What was sent before it belongs to a time in which nothing was believed.
        Self { newest: counter, taken: u64::MAX }
    }

    pub(super) fn newest(&self) -> u64 {
        self.newest
    }

    /// Takes a counter; false when it was taken before, or is too old to know.
    pub(super) fn take(&mut self, counter: u64) -> bool {
        if counter > self.newest {
            let ahead = counter - self.newest;
            self.taken = if ahead >= LEN { 0 } else { self.taken << ahead };
            (self.newest, self.taken) = (counter, self.taken | 1);
            return true;
        }
        let behind = self.newest - counter;
        if behind >= LEN || self.taken & (1 << behind) != 0 {
            return false;
        }
        self.taken |= 1 << behind;
        true
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use proptest::prelude::*;

    use super::*;

    proptest! {
        /// Against the set of all counters that were taken.
        #[test]
        fn each_counter_is_taken_once_and_never_when_too_old(steps in proptest::collection::vec(0u64..300, 1..400)) {
            let mut window = Window::starting_with(100);
            let (mut taken, mut newest): (BTreeSet<u64>, u64) = ((0..=100).collect(), 100);
            for counter in steps {
                let expected = !taken.contains(&counter) && newest.saturating_sub(counter) < LEN;
                prop_assert_eq!(window.take(counter), expected, "{} after {}", counter, newest);
                if expected {
                    taken.insert(counter);
                    newest = newest.max(counter);
                }
                prop_assert_eq!(window.newest(), newest);
            }
        }
    }

    #[test]
    fn the_largest_counter_ends_it() {
        let mut window = Window::starting_with(1);
        assert!(window.take(u64::MAX) && !window.take(u64::MAX) && window.take(u64::MAX - 63));
        assert!(!window.take(u64::MAX - 64) && !window.take(0));
    }
}
