//! The buffers of one node, and who holds them.
//!
//! The machine owns a buffer from the input that hands it over to the effect that gives it back. The bytes live on while
//! a disk operation still needs them; here they are counted references, so only ownership needs watching: a buffer given
//! back twice, or used after it was given back, is a fault of the machine.

use std::collections::BTreeMap;
use std::rc::Rc;

use repblk::units::BufId;
use repblk::volume::io::BufSlice;

/// Buffers of one process.
#[derive(Clone, Debug, Default)]
pub(crate) struct Pool {
    owned: BTreeMap<BufId, Rc<[u8]>>,
    next: u32,
}

impl Pool {
    /// A new buffer, owned by the machine from now on.
    pub(crate) fn give(&mut self, bytes: Vec<u8>) -> BufId {
        self.next += 1;
        let id = BufId(self.next);
        self.owned.insert(id, bytes.into());
        id
    }

    /// The bytes of a slice that the machine wants to have written or sent.
    pub(crate) fn borrow(&self, slice: BufSlice) -> Rc<[u8]> {
        let bytes = self.owned.get(&slice.buf).unwrap_or_else(|| panic!("{:?} is used but not owned", slice.buf));
        let small = |n: u32| usize::try_from(n).expect("at least 32 bits");
        let end = small(slice.offset) + small(slice.len);
        assert!(end <= bytes.len(), "{slice:?} lies within its buffer of {} bytes", bytes.len());
        if end - small(slice.offset) == bytes.len() { Rc::clone(bytes) } else { bytes[small(slice.offset)..end].into() }
    }

    /// The machine gives a buffer back.
    pub(crate) fn take(&mut self, id: BufId) -> Rc<[u8]> {
        self.owned.remove(&id).unwrap_or_else(|| panic!("{id:?} is given back but not owned"))
    }

    /// Buffers that the machine owns.
    pub(crate) fn owned(&self) -> impl Iterator<Item = BufId> + '_ {
        self.owned.keys().copied()
    }
}
