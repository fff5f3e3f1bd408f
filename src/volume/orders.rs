//! What whoever decides about failover tells a volume: to promise, to take over, to stand down, to drain, to be outdated.
//!
//! ```text
//!  promise:    older links dropped, none taken --> term durable --> promised
//!  take over:  promised, and the old stream applied --> generation without absent peers and the role durable --> primary
//!  stand down: nobody is answered any more, clients and links are dropped --> outdated durable --> secondary
//! ```
//! No peer is asked for consent: the record has decided, and a peer that does not know it yet can do nothing with this copy's word.
//!
//! # State
//!
//! `Promised`: a term, whether it is durable, and whether links are refused. It is of this life only; that the term is never taken by
//! anybody else is in the superblock. [`Volume::standing`] shows what is durable and nothing else.
//!
//! # Inputs
//!
//! `Promise`, `Release`, `TakeOver`, `StandDown`, `Drain`, `Outdate` of [`Command`](super::io::Command). Each may be said again while it is
//! under way, and is then answered at once. Promises, outdating and standing down are answered when they are durable.
//!
//! # Invariants
//!
//! 0. A copy that lost its cache does not count as UpToDate before it has met the peer that may know more.
//! 1. While a promise holds, nothing of a primary is applied and no link is greeted; and no other term makes this node primary.
//! 2. A term never falls.
//! 3. After `StandDown` nothing is answered that was asked before, and nothing that was asked before is still being written when a link
//!    is greeted or the node becomes primary again.

use crate::condition::{DiskState, Role};
use crate::units::{Moment, PeerNo, Term, Ticket};
use crate::volume::book::Then;
use crate::volume::io::{Effect, HostError, Refusal, Report, Standing};
use crate::volume::marks::Mark;
use crate::volume::peer::{Link, Sync};
use crate::volume::roles::{Goal, Transition, refusal};
use crate::volume::rule::Rule;
use crate::volume::{Effects, Volume};

/// A term that this node keeps itself free for.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Promised {
    term: Term,
    /// Links are dropped and refused.
    part: bool,
    durable: bool,
}

fn primary_already() -> Refusal {
    refusal(Rule::AlreadyPrimary, "this node is primary", "Demote it first, or let it stand down")
}

fn under_way() -> Refusal {
    refusal(
        Rule::Busy,
        "a change of role, the start, or writes of an older role are under way",
        "Ask again in a moment",
    )
}

impl Volume {
    /// Why no link is taken, if a promise forbids it.
    pub(super) fn promise_forbids_link(&self) -> Option<&'static str> {
        let parted = self.promise.is_some_and(|promise| promise.part);
        parted.then_some("this node has promised a newer term, and waits for the decision")
    }

    /// Nothing that was asked of this node as a primary is still under way.
    pub(super) fn former_writes_rest(&self) -> bool {
        !self.former_writes
    }

    /// What was asked of this node before it stood down comes to its end.
    pub(super) fn watch_former_writes(&mut self) {
        self.former_writes &= self.requests.len() + self.segments.len() + self.log.len() > 0;
    }

    /// Makes the term durable, and takes nothing of an older one. True: answered already.
    pub(super) fn make_promise(
        &mut self,
        now: Moment,
        ticket: Ticket,
        (term, part): (Term, bool),
        out: &mut Effects,
    ) -> Result<bool, Refusal> {
        if self.role == Role::Primary {
            return Err(primary_already());
        }
        let again = self.promise.is_some_and(|promise| promise.term == term && promise.durable);
        if !self.transition.is_none() || !self.attached {
            return Err(under_way());
        }
        if !self.local_ok {
            return Err(refusal(Rule::DiskFailed, "this node's disk failed", "Promote the other node"));
        }
        if term < self.term() || (term == self.term() && self.promise.is_none_or(|promise| promise.term != term)) {
            let what = format!("this node knows of term {} already", self.term());
            return Err(refusal(Rule::OldTerm, what, "Ask for a newer term"));
        }
        for peer in self.peer_numbers() {
            let link = self.peer(peer);
            // Over a link that stays, nothing of a primary may come.
            let old = link.role == Some(Role::Primary) || !matches!(link.link, Link::Up { .. });
            if part || old {
                self.drop_link(now, peer, "this node promises a newer term".into(), out);
            }
        }
        if again {
            self.promise = Some(Promised { term, part, durable: true });
            return Ok(true);
        }
        self.promise = Some(Promised { term, part, durable: false });
        self.book.change_then(Then::Promised(ticket, term), |superblock| superblock.term = term);
        Ok(false)
    }

    /// The promised term is durable.
    pub(super) fn promise_is_durable(&mut self, term: Term) {
        if let Some(promise) = self.promise.as_mut().filter(|promise| promise.term == term) {
            promise.durable = true;
        }
    }

    /// Becomes primary at the promised term. True: answered already.
    pub(super) fn take_over(
        &mut self,
        now: Moment,
        ticket: Ticket,
        (term, force): (Term, bool),
        out: &mut Effects,
    ) -> Result<bool, Refusal> {
        let promised = self.promise.is_some_and(|promise| promise.term == term && promise.durable);
        if (self.role == Role::Primary && self.term() == term)
            || (promised && matches!(self.transition, Transition::Promoting { .. }))
        {
            return Ok(true);
        }
        if self.role == Role::Primary {
            return Err(primary_already());
        }
        if !promised || self.term() != term {
            let what = format!("this node has not promised term {term}, or knows of a newer one");
            return Err(refusal(Rule::NotPromised, what, "Let it promise a newer term first"));
        }
        if !self.local_ok {
            return Err(refusal(Rule::DiskFailed, "this node's disk failed", "Promote the other node"));
        }
        self.check_copy(force)?;
        if !force && self.may_lack_writes() {
            let what = "this node lost its cache, and its peer may hold acknowledged writes that it had not flushed";
            return Err(refusal(Rule::Outdated, what, "Let both copies meet first"));
        }
        if !self.transition.is_none() || !self.attached || !self.stream_is_idle() || !self.former_writes_rest() {
            return Err(under_way());
        }
        self.take_role(now, Some(ticket), term, out);
        Ok(false)
    }

    /// Stops at once: somebody else is the writer. True: answered already.
    pub(super) fn stand_down(&mut self, now: Moment, ticket: Ticket, out: &mut Effects) -> bool {
        if self.role != Role::Primary {
            return true;
        }
        self.mark(Mark::StoodDown);
        let superseded = refusal(Rule::PeerIsPrimary, "another node has taken over", "Look at `repblk status`");
        if let Transition::Draining { ticket, .. } | Transition::Recording { ticket, .. } = self.transition {
            out.push(Effect::Answer { ticket, result: Err(superseded) });
        }
        self.transition = Transition::None;
        self.book.forget(|then| *then == Then::Demoted);
        self.role = Role::Secondary;
        self.silence_clients(out);
        out.push(Effect::Report(Report::DisconnectClients));
        for peer in self.peer_numbers() {
            self.drop_link(now, peer, "this node stands down; both greet again".into(), out);
            self.drop_exclusion(peer, out);
        }
        self.stable_goal = self.log.last();
        let (old, local_ok) = (self.disk(), self.local_ok);
        let outdated = if old == DiskState::UpToDate { DiskState::Outdated } else { old };
        self.former_writes = true;
        self.book.change(|superblock| {
            superblock.was_primary = false;
            superblock.disk = outdated;
        });
        if local_ok {
            self.book.change_then(Then::Done(ticket), |_| {});
        }
        let why = "another node has taken over";
        Self::changed("role", Role::Primary, Role::Secondary, why, out);
        Self::changed("disk", old, outdated, why, out);
        !local_ok
    }

    /// Whoever has asked for something is not answered any more. What has started ends; what has not, never will.
    fn silence_clients(&mut self, out: &mut Effects) {
        let all: Vec<_> = self.requests.iter().map(|(id, _)| id).collect();
        for id in all {
            self.requests.get_mut(id).orphan = true;
        }
        for id in std::mem::take(&mut self.held) {
            self.reply(id, Err(HostError::NotPrimary), None, out);
        }
        let mut dropped = std::mem::take(&mut self.waiting);
        dropped.append(&mut self.conflicted);
        for segment in dropped {
            let request = self.segments.remove(segment).request;
            self.requests.get_mut(request).failed = true;
            self.request_part_done(request, out);
        }
    }

    /// Finishes what is under way and becomes secondary. True: answered already.
    pub(super) fn drain_role(&mut self, now: Moment, ticket: Ticket) -> Result<bool, Refusal> {
        match self.transition {
            Transition::None if self.role == Role::Secondary => Ok(true),
            Transition::None => {
                self.drain(now, ticket, Goal::Demote);
                Ok(false)
            }
            Transition::Draining { goal: Goal::Demote, .. } | Transition::Recording { goal: Goal::Demote, .. } => {
                Ok(true)
            }
            _ => Err(under_way()),
        }
    }

    /// Makes durable that this copy lacks writes. True: answered already.
    pub(super) fn be_outdated(&mut self, now: Moment, ticket: Ticket, out: &mut Effects) -> Result<bool, Refusal> {
        if self.role == Role::Primary {
            return Err(primary_already());
        }
        if !self.transition.is_none() {
            return Err(under_way());
        }
        if self.peers.iter().any(super::Peer::is_even) {
            let what = "this copy and the peer's are equal, and linked";
            return Err(refusal(Rule::AlreadyInSync, what, "Nothing needs to be done"));
        }
        if self.disk() != DiskState::UpToDate {
            return Ok(true);
        }
        let greeting = |p: &PeerNo| self.peer(*p).connection().is_some() && self.peer(*p).sync().is_none();
        for peer in self.peer_numbers().filter(greeting).collect::<Vec<_>>() {
            self.drop_link(now, peer, "this copy is outdated now; both greet again".into(), out);
        }
        self.set_disk(DiskState::Outdated, "the primary goes on without this copy", out);
        self.book.change_then(Then::Done(ticket), |_| {});
        Ok(false)
    }

    /// This copy lost what was not flushed, and another that was in sync with it may still hold that.
    fn may_lack_writes(&self) -> bool {
        self.lost_cache
            && self.role == Role::Secondary
            && self.peer_numbers().any(|peer| !self.record(peer).base.is_some())
    }

    /// What failover needs to know of this volume. All of it is durable.
    #[must_use]
    pub fn standing(&self) -> Standing {
        let (disk, term) = self.book.durable_facts();
        let peer = self.peers.first();
        let met = peer.map(|peer| self.book.record(usize::from(peer.slot.0)).instance);
        let stream_ended = self.stream_is_live() || self.stream_is_idle();
        let mirrors = |peer: &super::Peer| self.role == Role::Secondary || peer.cursor.is_some();
        Standing {
            role: self.role,
            disk: if disk == DiskState::UpToDate && self.may_lack_writes() { DiskState::Outdated } else { disk },
            disk_stalled: self.disk_stalled,
            term,
            promised: self.promise.filter(|promise| promise.durable).map(|promise| promise.term),
            idle: self.attached && self.transition.is_none() && stream_ended && self.former_writes_rest(),
            link: self.peers.iter().any(|peer| matches!(peer.link, Link::Up { .. })),
            peer: met.filter(|instance| instance.is_some()),
            peer_in_sync: peer.is_some_and(|peer| matches!(peer.sync(), Some(Sync::Even)) && mirrors(peer)),
            exclusion: self.exclusion_number(),
        }
    }

    /// Notes whether the disk answers nothing although something is due.
    pub(super) fn watch_disk(&mut self, now: Moment, answered: bool) {
        if answered || self.ops.len() == 0 {
            self.disk_waits = None;
        }
        if self.ops.len() > 0 {
            self.disk_waits.get_or_insert(now);
        }
        self.disk_stalled = self.disk_waits.is_some_and(|since| now >= since.after(self.config.peer_timeout));
    }

    /// When the disk counts as stalled, unless it answers before.
    pub(super) fn disk_stall_due(&self) -> Option<Moment> {
        self.disk_waits.filter(|_| !self.disk_stalled).map(|since| since.after(self.config.peer_timeout))
    }
}
