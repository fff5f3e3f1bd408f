//! A volume as failover sees it: the contract of `failover::io`, with a list of numbers in the place of data.

use std::collections::BTreeSet;

use repblk::condition::{DiskState, Role};
use repblk::failover::io::VolumeView;
use repblk::units::{DiskInstance, Term};

/// One copy, and the node's part of the volume.
#[derive(Clone, Debug)]
pub(crate) struct Copy {
    pub(crate) instance: DiskInstance,
    pub(crate) role: Role,
    pub(crate) disk: DiskState,
    pub(crate) term: Term,
    pub(crate) promised: Option<Term>,
    /// Generations this copy has been at, youngest last.
    pub(crate) lineage: Vec<u64>,
    /// The generation since which it goes on without the peer.
    pub(crate) base: Option<u64>,
    pub(crate) was_primary: bool,
    pub(crate) data: BTreeSet<u64>,
    /// Written here, not answered yet; true: the peer has it.
    pub(crate) pending: Vec<u64>,
    pub(crate) in_sync: bool,
    pub(crate) met_peer: bool,
    pub(crate) exclusion: Option<u64>,
    pub(crate) exclusions: u64,
    pub(crate) draining: bool,
    pub(crate) stalled: bool,
}

impl Copy {
    pub(crate) fn new(instance: u128) -> Self {
        Self {
            instance: DiskInstance(instance),
            role: Role::Secondary,
            disk: DiskState::UpToDate,
            term: Term(1),
            promised: None,
            lineage: vec![1],
            base: None,
            was_primary: false,
            data: BTreeSet::new(),
            pending: vec![],
            in_sync: false,
            met_peer: false,
            exclusion: None,
            exclusions: 0,
            draining: false,
            stalled: false,
        }
    }

    pub(crate) fn generation(&self) -> u64 {
        *self.lineage.last().expect("a copy has a generation")
    }

    /// What a restart leaves.
    pub(crate) fn restarted(&mut self) {
        self.was_primary |= self.role == Role::Primary;
        self.role = Role::Secondary;
        self.promised = None;
        self.pending.clear();
        (self.in_sync, self.met_peer, self.draining) = (false, false, false);
        self.exclusion = None;
    }

    /// The link is lost: a primary that counted the peer waits for its exclusion.
    pub(crate) fn link_lost(&mut self) {
        let counted = self.role == Role::Primary && self.base.is_none();
        self.in_sync = false;
        if counted && self.exclusion.is_none() {
            self.exclusions += 1;
            self.exclusion = Some(self.exclusions);
        }
    }

    /// Goes on without the peer.
    pub(crate) fn leave_behind(&mut self, generation: u64) {
        if self.base.is_none() {
            self.base = Some(self.generation());
        }
        self.lineage.push(generation);
    }

    pub(crate) fn view(&self, link: bool, peer: DiskInstance) -> VolumeView {
        VolumeView {
            role: self.role,
            disk: self.disk,
            disk_stalled: self.stalled,
            term: self.term,
            promised: self.promised,
            idle: !self.draining,
            link,
            peer: self.met_peer.then_some(peer),
            peer_in_sync: self.in_sync,
            exclusion: self.exclusion,
        }
    }
}

/// Who sends what to whom when two copies meet; the simplest form of the volume's own table.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Meeting {
    Even,
    /// The copy of this index is the source.
    From(usize),
    /// One of them is primary and should not be any more: it will learn that, and then both meet again.
    Wait,
    SplitBrain,
}

pub(crate) fn meet(copies: [&Copy; 2]) -> Meeting {
    let [a, b] = copies;
    if a.role == Role::Primary && b.role == Role::Primary {
        return Meeting::Wait;
    }
    if a.generation() == b.generation() {
        let worth = |copy: &Copy| match copy.disk {
            DiskState::UpToDate => 2,
            DiskState::Outdated => 1,
            _ => 0,
        };
        let rank = |copy: &Copy| (worth(copy), copy.role == Role::Primary, copy.was_primary);
        if a.data == b.data && worth(a) == worth(b) {
            return Meeting::Even;
        }
        return Meeting::From(usize::from(rank(a) < rank(b)));
    }
    match (a.lineage.contains(&b.generation()), b.lineage.contains(&a.generation())) {
        (true, false) if b.role == Role::Secondary => Meeting::From(0),
        (false, true) if a.role == Role::Secondary => Meeting::From(1),
        // A primary that is behind was superseded, and will learn it.
        (true, false) | (false, true) => Meeting::Wait,
        _ => Meeting::SplitBrain,
    }
}
