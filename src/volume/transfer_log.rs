//! The writes that are not yet stable on every copy, in the primary's order.
//!
//! Every write, trim, zero and resync block takes the next sequence number when it is launched and stays here until it
//! is stable on the local disk and on every peer it was sent to. Each copy, local or not, is a [`Cursor`]: how far it has
//! received, written and made stable. What leaves the log at the front is stable everywhere it went: only then are dirty
//! bits of the peers cleared and references to hot extents dropped. What is in the log above a lost peer's stable mark
//! becomes dirty.
//!
//! Invariant: `front .. front + entries` are the sequence numbers held; `stable <= written <= received` on each cursor.

use std::collections::VecDeque;

use crate::units::{ByteRange, PeerNo, Seq};
use crate::volume::requests::SegmentId;

/// How far one copy has come.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub(crate) struct Cursor {
    /// Numbers up to here were never sent to this copy.
    pub(crate) joined: Seq,
    /// Everything to here is in its memory.
    pub(crate) received: Seq,
    /// Everything to here is written.
    pub(crate) written: Seq,
    /// Everything to here is stable.
    pub(crate) stable: Seq,
}

impl Cursor {
    /// A copy that takes part from the number after `last` on. Its stable mark is one lower, so that the first flush
    /// really flushes: what it wrote in an earlier life may still be in its cache.
    pub(crate) fn joining(last: Seq) -> Self {
        Self { joined: last, received: last, written: last, stable: Seq(last.0.saturating_sub(1)) }
    }
}

/// One write.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Entry {
    /// Bytes written.
    pub(crate) range: ByteRange,
    /// The host's segment that waits for it; none for a resync block and for a segment that is done.
    pub(crate) segment: Option<SegmentId>,
    /// Written on the local disk (or the local disk is not used).
    pub(crate) local_written: bool,
    /// Holds references in the activity log.
    pub(crate) logged: bool,
    /// Sent by resync to this peer alone; holds its range until that peer has written it.
    pub(crate) resync: Option<PeerNo>,
}

impl Entry {
    /// True when a peer that takes part was sent this.
    pub(crate) fn went_to(&self, peer: PeerNo) -> bool {
        self.resync.is_none_or(|target| target == peer)
    }
}

/// Entries that there is room for from the start.
const ROOM: usize = 1024;

/// The log.
#[derive(Clone, Debug)]
pub(crate) struct TransferLog {
    entries: VecDeque<Entry>,
    /// Number of the first entry.
    front: Seq,
    capacity: usize,
    /// Bytes of all entries.
    bytes: u64,
}

impl TransferLog {
    /// An empty log for at most `capacity` entries, whose last number is `last`.
    pub(crate) fn new(capacity: usize, last: Seq) -> Self {
        // It wanders through all the room that it has: no more than it ever needed, so that it stays in a near cache.
        Self { entries: VecDeque::with_capacity(capacity.min(ROOM)), front: last.next(), capacity, bytes: 0 }
    }

    /// True when no entry fits.
    pub(crate) fn is_full(&self) -> bool {
        self.entries.len() >= self.capacity
    }

    /// True when it is time to make things stable, so that it does not get full.
    pub(crate) fn is_crowded(&self) -> bool {
        self.entries.len() * 2 > self.capacity
    }

    /// Number of entries.
    pub(crate) fn len(&self) -> usize {
        self.entries.len()
    }

    /// Bytes of all entries.
    pub(crate) fn bytes(&self) -> u64 {
        self.bytes
    }

    /// The last number given out.
    pub(crate) fn last(&self) -> Seq {
        Seq(self.front.0 + self.entries.len() as u64 - 1)
    }

    /// Adds a write and numbers it.
    ///
    /// # Panics
    /// When the log is full; the caller has asked.
    pub(crate) fn push(&mut self, entry: Entry) -> Seq {
        assert!(!self.is_full(), "admission asks for room first");
        self.bytes += entry.range.len();
        self.entries.push_back(entry);
        self.last()
    }

    /// The entry of a number that is still here.
    pub(crate) fn get(&self, seq: Seq) -> Option<&Entry> {
        let at = seq.0.checked_sub(self.front.0)?;
        self.entries.get(usize::try_from(at).ok()?)
    }

    /// The entry of a number that is still here.
    pub(crate) fn get_mut(&mut self, seq: Seq) -> Option<&mut Entry> {
        let at = seq.0.checked_sub(self.front.0)?;
        self.entries.get_mut(usize::try_from(at).ok()?)
    }

    /// The highest number such that it and everything before is written locally, starting the look at `from`.
    pub(crate) fn local_written_through(&self, from: Seq) -> Seq {
        let mut through = from.max(Seq(self.front.0 - 1));
        while self.get(through.next()).is_some_and(|entry| entry.local_written) {
            through = through.next();
        }
        through
    }

    /// Entries numbered above `seq`, with their numbers.
    pub(crate) fn above(&self, seq: Seq) -> impl Iterator<Item = (Seq, &Entry)> {
        let skip = usize::try_from((seq.0 + 1).saturating_sub(self.front.0)).unwrap_or(usize::MAX);
        let front = self.front.0;
        self.entries.iter().enumerate().skip(skip).map(move |(i, entry)| (Seq(front + i as u64), entry))
    }

    /// Takes the first entry away if its number is at most `stable` and no segment waits for it.
    pub(crate) fn pop_stable(&mut self, stable: Seq) -> Option<(Seq, Entry)> {
        let first = self.entries.front()?;
        if self.front > stable || first.segment.is_some() || !first.local_written {
            return None;
        }
        let seq = self.front;
        self.front = seq.next();
        let entry = self.entries.pop_front().expect("looked at above");
        self.bytes -= entry.range.len();
        Some((seq, entry))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entry(at: u64) -> Entry {
        Entry {
            range: ByteRange::new(at * 4096, 4096),
            segment: None,
            local_written: false,
            logged: true,
            resync: None,
        }
    }

    #[test]
    fn numbers_run_on_and_the_front_leaves_when_stable() {
        let mut log = TransferLog::new(4, Seq(1));
        assert_eq!(log.last(), Seq(1));
        assert_eq!((log.push(entry(0)), log.push(entry(1)), log.push(entry(2))), (Seq(2), Seq(3), Seq(4)));
        assert!(log.pop_stable(Seq(9)).is_none(), "not written yet");
        log.get_mut(Seq(2)).expect("here").local_written = true;
        log.get_mut(Seq(4)).expect("here").local_written = true;
        assert_eq!(log.local_written_through(Seq(1)), Seq(2));
        log.get_mut(Seq(3)).expect("here").local_written = true;
        assert_eq!(log.local_written_through(Seq(2)), Seq(4));
        assert!(log.pop_stable(Seq(1)).is_none());
        assert_eq!(log.pop_stable(Seq(3)).expect("stable").0, Seq(2));
        assert_eq!(log.pop_stable(Seq(3)).expect("stable").0, Seq(3));
        assert!(log.pop_stable(Seq(3)).is_none());
        assert_eq!(log.above(Seq(0)).map(|(seq, _)| seq).collect::<Vec<_>>(), [Seq(4)]);
        assert_eq!((log.len(), log.bytes(), log.last()), (1, 4096, Seq(4)));
    }
}
