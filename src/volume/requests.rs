//! The host's requests and the segments that writes are cut into.
//!
//! A request waits for its segments; a segment is the unit that is logged, mirrored and counted. Both live in slabs, so
//! that a write under load allocates nothing.

use crate::units::{BufId, ByteRange, Seq, SessionId};
use crate::volume::io::{BufSlice, HostOp};

/// A place in a slab.
#[derive(Clone, Debug)]
pub(crate) struct Slab<T> {
    places: Vec<Option<T>>,
    free: Vec<u32>,
    used: usize,
}

impl<T> Default for Slab<T> {
    fn default() -> Self {
        Self { places: Vec::new(), free: Vec::new(), used: 0 }
    }
}

impl<T> Slab<T> {
    /// Keeps `value`; returns its place.
    pub(crate) fn insert(&mut self, value: T) -> u32 {
        self.used += 1;
        if let Some(at) = self.free.pop() {
            self.places[at as usize] = Some(value);
            return at;
        }
        self.places.push(Some(value));
        u32::try_from(self.places.len() - 1).expect("limits keep the slab small")
    }

    /// What is kept at `at`.
    ///
    /// # Panics
    /// When nothing is.
    pub(crate) fn get(&self, at: u32) -> &T {
        self.places[at as usize].as_ref().expect("the place is taken")
    }

    /// What is kept at `at`.
    ///
    /// # Panics
    /// When nothing is.
    pub(crate) fn get_mut(&mut self, at: u32) -> &mut T {
        self.places[at as usize].as_mut().expect("the place is taken")
    }

    /// Gives back what is kept at `at`.
    ///
    /// # Panics
    /// When nothing is.
    pub(crate) fn remove(&mut self, at: u32) -> T {
        let value = self.places[at as usize].take().expect("the place is taken");
        self.free.push(at);
        self.used -= 1;
        value
    }

    /// Number of places taken.
    pub(crate) fn len(&self) -> usize {
        self.used
    }

    /// Everything kept, with its place, in order of place.
    pub(crate) fn iter(&self) -> impl Iterator<Item = (u32, &T)> {
        self.places
            .iter()
            .enumerate()
            .filter_map(|(at, value)| Some((u32::try_from(at).expect("limits keep the slab small"), value.as_ref()?)))
    }
}

/// Name of a request in its slab.
pub(crate) type RequestId = u32;
/// Name of a segment in its slab.
pub(crate) type SegmentId = u32;

/// A request of a client.
#[derive(Clone, Debug)]
pub(crate) struct Request {
    /// The client's connection.
    pub(crate) session: SessionId,
    /// The client's name for it.
    pub(crate) tag: u64,
    /// What is wanted.
    pub(crate) op: HostOp,
    /// Where.
    pub(crate) range: ByteRange,
    /// Must be stable when answered.
    pub(crate) fua: bool,
    /// Segments not yet done; pieces not yet read for a read from a peer.
    pub(crate) pending: u32,
    /// Some part could be served by no copy.
    pub(crate) failed: bool,
    /// The client is gone: nobody to answer.
    pub(crate) orphan: bool,
    /// Pieces of a read from a peer, in order.
    pub(crate) pieces: Vec<Option<BufId>>,
}

impl Request {
    /// The buffer of a write.
    pub(crate) fn payload(&self) -> Option<BufId> {
        match self.op {
            HostOp::Write { buf } => Some(buf),
            HostOp::Read | HostOp::Flush | HostOp::Trim | HostOp::Zero { .. } => None,
        }
    }
}

/// What a segment does to its range.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Change {
    /// Writes the slice.
    Write(BufSlice),
    /// Not needed any more.
    Trim,
    /// Zeroes.
    Zero {
        /// May deallocate.
        unmap: bool,
    },
}

/// Where a segment is on its way.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Stage {
    /// Waits for room, or for a range that another holds.
    Waiting,
    /// Holds its range and waits for the activity log.
    Warming,
    /// Launched under this number; `pending` shares (the local disk, each peer) are outstanding.
    Launched {
        /// Its number.
        seq: Seq,
        /// Shares outstanding.
        pending: u32,
        /// Copies that took it.
        copies: u32,
    },
    /// Written here; it waits for the exclusion of the peer, or for its return.
    Parked {
        /// Copies that took it.
        copies: u32,
    },
}

/// A part of a write, trim or zero.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Segment {
    /// Its request.
    pub(crate) request: RequestId,
    /// Its bytes.
    pub(crate) range: ByteRange,
    /// What happens to them.
    pub(crate) change: Change,
    /// Where it is.
    pub(crate) stage: Stage,
}

#[cfg(test)]
mod tests {
    use super::Slab;

    #[test]
    fn places_are_reused() {
        let mut slab = Slab::default();
        let (a, b) = (slab.insert("a"), slab.insert("b"));
        assert_eq!(slab.remove(a), "a");
        assert_eq!(slab.insert("c"), a);
        assert_eq!((*slab.get(b), slab.len()), ("b", 2));
        assert_eq!(slab.iter().map(|(_, v)| *v).collect::<Vec<_>>(), ["c", "b"]);
    }
}
