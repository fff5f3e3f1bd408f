//! The superblock, and what waits for it to become durable.
//!
//! Changes are made in memory at once and written by one commit at a time; whoever must not act before a change is durable
//! leaves a [`Then`] with the change's version. This is how "persist, then tell" is said everywhere in the machine.
//!
//! A change is *durable* when both copies of the superblock carry it: commits go to the two copies in turn, until none is
//! older than the last change. So the loss of either copy, by whatever damage, never loses a generation, a term or a
//! role that anything relied on, and recovery has nothing to guess.
//!
//! A generation vouches for everything acknowledged before it. So the data is made stable before a superblock with a new one
//! is written: else a power loss could leave the generation and take what the absent copy still has.

use std::collections::VecDeque;

use crate::condition::DiskState;
use crate::meta::{MetaPage, PeerRecord, Superblock};
use crate::units::{GenerationId, OpId, PeerNo, Term, Ticket};

/// What to do when a change is durable.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Then {
    /// The metadata says that this node has attached the disk.
    Attached,
    /// The generation without this peer is durable.
    Excluded(PeerNo),
    /// Become primary.
    Promoted,
    /// Tell the peer that it may become primary.
    Granted(PeerNo, Term),
    /// Become secondary, by the operator's wish.
    Demoted,
    /// The target counts as Inconsistent at the source's generation: say so.
    TargetReady(PeerNo),
    /// The target is UpToDate: say so.
    TargetFinished(PeerNo),
    /// The source counts the target as in sync: tell it.
    SourceFinished(PeerNo),
    /// The generation of a primary without a disk is durable: say so.
    PeerDetached(PeerNo, GenerationId),
    /// The end is recorded.
    ShutDown,
    /// A promise is durable.
    Promised(Ticket, Term),
    /// What a command asked for is durable.
    Done(Ticket),
}

/// What a disk that has failed is to say of its copy from now on.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Obituary {
    /// What was not flushed may be missing: a failed flush is no better than a power loss.
    CacheLost,
    /// Another copy is the good one.
    NoGoodCopy,
}

/// Whether the data that the generation in memory vouches for is stable.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Data {
    Stable,
    Unflushed,
    Flushing,
}

/// The superblock in memory and on its way to the disk.
#[derive(Clone, Debug)]
pub(crate) struct Book {
    superblock: Superblock,
    /// Grows with each change.
    version: u64,
    /// Version in the commit under way.
    committing: Option<(OpId, u64)>,
    /// Version that the last commit wrote, and the one before it: what the two copies hold.
    held: [u64; 2],
    /// As it was in the last page given out: the newest that the disk can hold.
    written: Superblock,
    data: Data,
    waiting: Vec<(u64, Then)>,
    /// What the disk is worth and the term, with the version since which: first the durable ones, then those that are not yet.
    facts: VecDeque<(u64, DiskState, Term)>,
}

impl Book {
    /// A book that starts with what the disk holds.
    pub(crate) fn new(superblock: Superblock) -> Self {
        let facts = VecDeque::from([(0, superblock.disk, superblock.term)]);
        let (written, waiting) = (superblock.clone(), Vec::new());
        Self { superblock, version: 0, committing: None, held: [0; 2], written, data: Data::Stable, waiting, facts }
    }

    /// The superblock as of the last change.
    pub(crate) fn get(&self) -> &Superblock {
        &self.superblock
    }

    /// The record of a slot.
    pub(crate) fn record(&self, slot: usize) -> &PeerRecord {
        &self.superblock.peers[slot]
    }

    /// Changes the superblock; it will be written.
    pub(crate) fn change(&mut self, how: impl FnOnce(&mut Superblock)) {
        let generation = self.superblock.lineage.current;
        how(&mut self.superblock);
        self.version += 1;
        let (disk, term) = (self.superblock.disk, self.superblock.term);
        if self.facts.back().is_none_or(|&(_, d, t)| (d, t) != (disk, term)) {
            self.facts.push_back((self.version, disk, term));
        }
        if self.superblock.lineage.current != generation {
            self.data = Data::Unflushed;
        }
    }

    /// True when the data must be flushed before anything more is committed; the caller begins to.
    pub(crate) fn begin_flush(&mut self) -> bool {
        let wanted = self.data == Data::Unflushed;
        if wanted {
            self.data = Data::Flushing;
        }
        wanted
    }

    /// A flush that was begun has ended well.
    pub(crate) fn flushed(&mut self) {
        if self.data == Data::Flushing {
            self.data = Data::Stable;
        }
    }

    /// Changes the superblock; `then` comes out of [`Book::committed`] when the change is durable.
    pub(crate) fn change_then(&mut self, then: Then, how: impl FnOnce(&mut Superblock)) {
        self.change(how);
        self.waiting.push((self.version, then));
    }

    /// The disk state and the term that both copies carry.
    pub(crate) fn durable_facts(&self) -> (DiskState, Term) {
        let &(_, disk, term) = self.facts.front().expect("there is always one");
        (disk, term)
    }

    fn learn_durable(&mut self) {
        let durable = self.durable();
        while self.facts.get(1).is_some_and(|&(since, ..)| since <= durable) {
            self.facts.pop_front();
        }
    }

    /// Drops what `forget` names from what waits.
    pub(crate) fn forget(&mut self, forget: impl Fn(&Then) -> bool) {
        self.waiting.retain(|(_, then)| !forget(then));
    }

    /// The page to commit, when there is something to commit and no commit is under way. It belongs to the copy that the
    /// commit before did not write.
    pub(crate) fn next_commit(&mut self, op: impl FnOnce() -> OpId) -> Option<(OpId, MetaPage)> {
        if self.committing.is_some() || self.version == self.durable() || self.data != Data::Stable {
            return None;
        }
        self.superblock.sequence += 1;
        let op = op();
        self.committing = Some((op, self.version));
        self.written = self.superblock.clone();
        Some((op, self.superblock.encode()))
    }

    /// A superblock that says what became of this copy, for the copy that the commit before did not write.
    pub(crate) fn obituary(&mut self, what: Obituary) -> MetaPage {
        self.superblock.sequence += 1;
        match what {
            Obituary::CacheLost => {
                let sequence = self.superblock.sequence;
                Superblock { boot: 0, clean: false, sequence, ..self.written.clone() }.encode()
            }
            Obituary::NoGoodCopy => Superblock { disk: DiskState::Inconsistent, ..self.superblock.clone() }.encode(),
        }
    }

    /// The commit is on the disk: what may be done now, in order of the changes.
    pub(crate) fn committed(&mut self) -> Vec<Then> {
        let (_, version) = self.committing.take().expect("a commit was under way");
        self.held = [version, self.held[0]];
        self.learn_durable();
        let durable = self.durable();
        let mut ready = Vec::new();
        self.waiting.retain(|&(wanted, then)| {
            let done = wanted <= durable;
            if done {
                ready.push(then);
            }
            !done
        });
        ready
    }

    /// The newest version that both copies carry.
    fn durable(&self) -> u64 {
        self.held[1]
    }

    /// True when everything is durable.
    pub(crate) fn is_settled(&self) -> bool {
        self.committing.is_none() && self.version == self.durable()
    }

    /// Nothing is written any more: the disk has failed. Returns what waited, and waits in vain.
    pub(crate) fn abandon(&mut self) -> Vec<Then> {
        self.held = [self.version; 2];
        self.committing = None;
        self.data = Data::Stable;
        self.learn_durable();
        self.waiting.drain(..).map(|(_, then)| then).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::meta::FormatParams;

    fn commit(book: &mut Book, op: u64) -> Option<u64> {
        book.next_commit(|| OpId(op)).map(|(_, page)| page.offset)
    }

    #[test]
    fn a_generation_waits_for_the_data_it_vouches_for() {
        let params =
            FormatParams { instance: crate::units::DiskInstance(1), data_len: 1 << 20, ..FormatParams::default() };
        let mut book = Book::new(params.superblock());
        assert!(!book.begin_flush());
        book.change(|superblock| superblock.lineage.advance(GenerationId(7)));
        assert_eq!(commit(&mut book, 1), None, "not before the flush");
        assert!(book.begin_flush() && !book.begin_flush());
        book.change(|superblock| superblock.lineage.advance(GenerationId(8)));
        book.flushed();
        assert_eq!(commit(&mut book, 1), None, "the flush began before the second");
        assert!(book.begin_flush());
        book.flushed();
        assert!(commit(&mut book, 1).is_some());
    }

    #[test]
    fn what_waits_is_told_when_both_copies_carry_it() {
        let params =
            FormatParams { instance: crate::units::DiskInstance(1), data_len: 1 << 20, ..FormatParams::default() };
        let mut book = Book::new(params.superblock());
        assert_eq!(commit(&mut book, 1), None, "nothing has changed");
        book.change_then(Then::Promoted, |superblock| superblock.was_primary = true);
        let first = commit(&mut book, 1).expect("there is a change");
        // Changed while the first copy is written: the second copy carries both changes.
        book.change_then(Then::Demoted, |superblock| superblock.was_primary = false);
        assert_eq!(book.committed(), [], "one copy is not enough");
        let second = commit(&mut book, 2).expect("one copy is old");
        assert_ne!(first, second, "the copies are written in turn");
        assert_eq!(book.committed(), [Then::Promoted]);
        assert!(!book.is_settled());
        assert_eq!(commit(&mut book, 3), Some(first));
        assert_eq!(book.committed(), [Then::Demoted]);
        assert!(book.is_settled());
    }
}
