//! The superblock, and what waits for it to become durable.
//!
//! Changes are made in memory at once and written by one commit at a time; whoever must not act before a change is durable
//! leaves a [`Then`] with the change's version. This is how "persist, then tell" is said everywhere in the machine.

use crate::meta::{MetaPage, PeerRecord, Superblock};
use crate::units::{GenerationId, OpId, PeerNo, Term};

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
}

/// The superblock in memory and on its way to the disk.
#[derive(Clone, Debug)]
pub(crate) struct Book {
    superblock: Superblock,
    /// Grows with each change.
    version: u64,
    /// Version in the commit under way.
    committing: Option<(OpId, u64)>,
    durable: u64,
    waiting: Vec<(u64, Then)>,
}

impl Book {
    /// A book that starts with what the disk holds.
    pub(crate) fn new(superblock: Superblock) -> Self {
        Self { superblock, version: 0, committing: None, durable: 0, waiting: Vec::new() }
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
        how(&mut self.superblock);
        self.version += 1;
    }

    /// Changes the superblock; `then` comes out of [`Book::committed`] when the change is durable.
    pub(crate) fn change_then(&mut self, then: Then, how: impl FnOnce(&mut Superblock)) {
        self.change(how);
        self.waiting.push((self.version, then));
    }

    /// Drops what `forget` names from what waits.
    pub(crate) fn forget(&mut self, forget: impl Fn(&Then) -> bool) {
        self.waiting.retain(|(_, then)| !forget(then));
    }

    /// The page to commit, when there is something to commit and no commit is under way.
    pub(crate) fn next_commit(&mut self, op: impl FnOnce() -> OpId) -> Option<(OpId, MetaPage)> {
        if self.committing.is_some() || self.version == self.durable {
            return None;
        }
        self.superblock.sequence += 1;
        let op = op();
        self.committing = Some((op, self.version));
        Some((op, self.superblock.encode()))
    }

    /// The commit is durable: what may be done now, in order of the changes.
    pub(crate) fn committed(&mut self) -> Vec<Then> {
        let (_, version) = self.committing.take().expect("a commit was under way");
        self.durable = version;
        let mut ready = Vec::new();
        self.waiting.retain(|&(wanted, then)| {
            let done = wanted <= version;
            if done {
                ready.push(then);
            }
            !done
        });
        ready
    }

    /// True when everything is durable.
    pub(crate) fn is_settled(&self) -> bool {
        self.committing.is_none() && self.version == self.durable
    }

    /// Nothing is written any more: the disk has failed. Returns what waited, and waits in vain.
    pub(crate) fn abandon(&mut self) -> Vec<Then> {
        self.durable = self.version;
        self.committing = None;
        self.waiting.drain(..).map(|(_, then)| then).collect()
    }
}
