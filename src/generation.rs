//! Rank 0: data lineage, the identity of what a copy holds.
//!
//! A *generation* names one uninterrupted line of acknowledged writes. Two copies with the same current generation hold
//! the same acknowledged data, but for blocks that a dirty bitmap or an activity log names. A new generation is minted,
//! and made durable, before a node acknowledges a write that some other copy of the current generation will not have.
//! The generation that the absent peer still has becomes its *base* in the record kept for it; the dirty bitmap of that
//! peer counts from there. A base of [`GenerationId::NONE`] says that the peer is in sync: it holds everything
//! acknowledged under the current generation.
//!
//! Values only: who may mint and when is `volume`'s business; how two lineages are compared is `volume/reconcile.rs`.

use crate::units::GenerationId;

/// How many former generations a copy remembers. A peer that was away for longer gets a full resync.
pub const HISTORY_LEN: usize = 16;

/// What one copy knows of its own data's descent.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, serde::Serialize, serde::Deserialize)]
pub struct Lineage {
    /// The generation of the data on this disk; [`GenerationId::NONE`] on a disk that never held any.
    pub current: GenerationId,
    /// Former generations, youngest first, unused places [`GenerationId::NONE`].
    pub history: [GenerationId; HISTORY_LEN],
}

impl Lineage {
    /// The lineage of a disk whose data starts with `first`.
    #[must_use]
    pub fn starting_with(first: GenerationId) -> Self {
        Self { current: first, history: [GenerationId::NONE; HISTORY_LEN] }
    }

    /// True on a disk that never held data of this volume.
    #[must_use]
    pub fn is_fresh(&self) -> bool {
        !self.current.is_some()
    }

    /// Makes `next` current and moves the former current generation into the history.
    ///
    /// # Panics
    /// When `next` is none or already current: a generation is minted once.
    pub fn advance(&mut self, next: GenerationId) {
        assert!(next.is_some() && next != self.current, "a generation is minted once");
        if self.current.is_some() {
            self.history.copy_within(0..HISTORY_LEN - 1, 1);
            self.history[0] = self.current;
        }
        self.current = next;
    }

    /// True when `generation` is one of this copy's former generations.
    #[must_use]
    pub fn remembers(&self, generation: GenerationId) -> bool {
        generation.is_some() && self.history.contains(&generation)
    }

    /// The youngest generation that both copies have been at, if any.
    #[must_use]
    pub fn common_ancestor(&self, other: &Self) -> Option<GenerationId> {
        std::iter::once(self.current)
            .chain(self.history)
            .find(|&g| g.is_some() && (g == other.current || other.remembers(g)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn advancing_remembers_the_youngest_sixteen() {
        let mut lineage = Lineage::default();
        for i in 1..=20 {
            lineage.advance(GenerationId(i));
        }
        assert_eq!(lineage.current, GenerationId(20));
        assert_eq!(lineage.history[0], GenerationId(19));
        assert_eq!(lineage.history[15], GenerationId(4));
        assert!(!lineage.remembers(GenerationId(3)) && !lineage.remembers(GenerationId::NONE));
    }

    #[test]
    fn siblings_share_their_parent() {
        let mut a = Lineage::starting_with(GenerationId(1));
        let mut b = a;
        a.advance(GenerationId(2));
        b.advance(GenerationId(3));
        assert_eq!(a.common_ancestor(&b), Some(GenerationId(1)));
        assert_eq!(a.common_ancestor(&Lineage::starting_with(GenerationId(9))), None);
    }
}
