//! Reads that wait for memory, in the order they came.

use std::collections::VecDeque;

use super::pool::{Area, Pool};
use crate::units::{BufId, ByteRange, OpId};

/// The reads into one area.
#[derive(Debug)]
pub(super) struct ReadQueue {
    area: Area,
    reads: VecDeque<(OpId, ByteRange)>,
    /// Frees of the area when there was no memory for the first one.
    in_vain: Option<u64>,
}

impl ReadQueue {
    pub(super) fn new(area: Area) -> Self {
        Self { area, reads: VecDeque::new(), in_vain: None }
    }

    /// Appends a read.
    pub(super) fn push(&mut self, op: OpId, range: ByteRange) {
        self.reads.push_back((op, range));
    }

    /// True when asking for the next one is not in vain.
    pub(super) fn may_go_on(&self, pool: &Pool) -> bool {
        !self.reads.is_empty() && self.in_vain.is_none_or(|frees| frees != pool.frees(self.area))
    }

    /// The next read, with its memory, when there is any.
    pub(super) fn next(&mut self, pool: &mut Pool) -> Option<(OpId, ByteRange, BufId)> {
        if !self.may_go_on(pool) {
            return None;
        }
        let &(op, range) = self.reads.front()?;
        let len = usize::try_from(range.len()).expect("reads are bounded by the maximum payload");
        let Some(buf) = pool.allocate_buffer(self.area, len) else {
            self.in_vain = Some(pool.frees(self.area));
            return None;
        };
        self.reads.pop_front();
        self.in_vain = None;
        Some((op, range, buf))
    }
}
