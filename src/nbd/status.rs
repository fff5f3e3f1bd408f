//! The answer to a block status query while it is being gathered.

use super::constants::{EXTENTS_MAX, STATE_HOLE, STATE_ZERO};

/// State of an extent in `base:allocation`. When in doubt it is [`Allocation::Data`], which is always true enough.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Allocation {
    /// Allocated, content unknown.
    Data,
    /// Allocated, reads as zeroes.
    Zero,
    /// Not allocated, reads as zeroes.
    Hole,
}

impl Allocation {
    /// The flags on the wire (NBD, "`base:allocation` metadata context").
    #[must_use]
    pub fn flags(self) -> u32 {
        match self {
            Self::Data => 0,
            Self::Zero => STATE_ZERO,
            Self::Hole => STATE_HOLE | STATE_ZERO,
        }
    }
}

/// A run of bytes in one state.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Extent {
    /// Length in bytes, never 0.
    pub len: u64,
    /// The state of all of them.
    pub state: Allocation,
}

/// Extents from the start of a query on, as one answer may carry them.
///
/// - There is no empty extent, and no two neighbours share a state.
/// - They cover at most the length asked for, so that each fits the field the request's length came in.
/// - There are at most [`EXTENTS_MAX`], or one when the client asked for one.
#[derive(Clone, Debug)]
pub struct Extents {
    list: Vec<Extent>,
    /// Bytes of the query not covered yet.
    left: u64,
    limit: usize,
}

impl Extents {
    /// An answer to a query of `len` bytes, of one extent when `one` is set (the flag `REQ_ONE`).
    #[must_use]
    pub fn new(len: u64, one: bool) -> Self {
        Self { list: Vec::new(), left: len, limit: if one { 1 } else { EXTENTS_MAX } }
    }

    /// Adds the next `len` bytes, which are in `state`. False when the answer is complete and more would be in vain.
    pub fn push(&mut self, len: u64, state: Allocation) -> bool {
        let len = len.min(self.left);
        let full = self.list.len() == self.limit;
        match self.list.last_mut() {
            _ if len == 0 => {}
            Some(last) if last.state == state => last.len += len,
            _ if full => return false,
            _ => self.list.push(Extent { len, state }),
        }
        self.left -= len;
        self.left > 0
    }

    /// The extents in order. Empty only when nothing was pushed.
    #[must_use]
    pub fn as_slice(&self) -> &[Extent] {
        &self.list
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn neighbours_of_one_state_merge_and_the_end_is_cut() {
        let mut extents = Extents::new(100, false);
        assert!(extents.push(30, Allocation::Data));
        assert!(extents.push(0, Allocation::Zero));
        assert!(extents.push(20, Allocation::Data));
        assert!(!extents.push(u64::MAX, Allocation::Hole));
        assert!(!extents.push(1, Allocation::Data));
        let expected = [Extent { len: 50, state: Allocation::Data }, Extent { len: 50, state: Allocation::Hole }];
        assert_eq!(extents.as_slice(), expected);
    }

    #[test]
    fn one_extent_means_one() {
        let mut extents = Extents::new(100, true);
        assert!(extents.push(10, Allocation::Zero));
        assert!(extents.push(10, Allocation::Zero));
        assert!(!extents.push(10, Allocation::Hole));
        assert_eq!(extents.as_slice(), [Extent { len: 20, state: Allocation::Zero }]);
    }

    #[test]
    fn an_answer_stays_small() {
        let mut extents = Extents::new(u64::MAX, false);
        let mut pushed = 0;
        while extents.push(512, if pushed % 2 == 0 { Allocation::Data } else { Allocation::Hole }) {
            pushed += 1;
        }
        assert_eq!((extents.as_slice().len(), pushed), (EXTENTS_MAX, EXTENTS_MAX));
    }
}
