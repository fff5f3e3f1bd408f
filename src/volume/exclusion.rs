//! Going on without a peer that was in sync, or without the own disk.
//!
//! ```text
//!  peer lost --> asked for, by number --Exclude(number)--> generation durable --> shares given up: alone
//!                     \--the peer is in sync again--> withdrawn: what waited is on both copies
//! ```
//! While it is asked for, nothing is minted, and nothing is acknowledged that the peer does not have (contract, section 2.4). So a
//! primary that dies meanwhile has made no fork, and the peer is greeted as usual when it returns. Whoever decides names the exclusion
//! by its number: one that comes late finds another number, or none, and changes nothing.
//!
//! # State
//!
//! `Exclusion` in the peer: its number, whether it was allowed, and the writes that are *parked*. A parked write is on the local disk,
//! dirty towards the peer, and waits for nothing but the exclusion. It holds neither its range nor a place in the log any more, or
//! the resync that would bring the peer back could not read its blocks.
//!
//! # Invariants
//!
//! 1. A generation is minted for an exclusion only after `Exclude` came with its number.
//! 2. A write that waits for the peer ends when the exclusion is done (it is dirty) or withdrawn (the peer has it), and not before.
//! 3. While an exclusion is asked for, only the copy that it is about is greeted: a blank copy in its place holds none of what waits, and
//!    the old one may come back. With more than one peer nobody is greeted, since writes wait for several copies then.

use std::time::Duration;

use crate::units::{Moment, PeerNo, Seq};
use crate::volume::book::Then;
use crate::volume::failure::Detaching;
use crate::volume::io::{Effect, Report};
use crate::volume::marks::Mark;
use crate::volume::peer::{Exclusion, Link};
use crate::volume::requests::{SegmentId, Stage};
use crate::volume::{Effects, Volume};

/// An exclusion that nobody has allowed yet is asked for again this often.
const REPEAT: Duration = Duration::from_secs(1);

/// When the question for it is due again.
pub(super) fn asked_again_at(exclusion: &Exclusion) -> Option<Moment> {
    (!exclusion.allowed).then(|| exclusion.asked.after(REPEAT))
}

impl Volume {
    /// Starts to go on without a peer that could be promoted with what it has.
    pub(super) fn exclude(&mut self, now: Moment, peer: PeerNo, out: &mut Effects) {
        let (last, number) = (self.log.last(), self.next_exclusion());
        let link = self.peer_mut(peer);
        link.share_floor.get_or_insert(last);
        link.exclusion = Some(Exclusion { number, allowed: false, asked: now, parked: Vec::new() });
        self.park_written(peer);
        out.push(Effect::Report(Report::ExclusionWanted { peer, number }));
    }

    /// A number that no exclusion of this life has had.
    pub(super) fn next_exclusion(&mut self) -> u64 {
        self.exclusions += 1;
        self.exclusions
    }

    /// The exclusion that waits for whoever decides, or is being made durable.
    pub(super) fn exclusion_number(&self) -> Option<u64> {
        let of_peer = self.peers.iter().find_map(|peer| peer.exclusion.as_ref());
        of_peer.map(|exclusion| exclusion.number).or(self.detaching.as_ref().map(|detaching| detaching.number))
    }

    pub(super) fn ask_again(&mut self, now: Moment, peer: PeerNo, out: &mut Effects) {
        let due = |exclusion: &&mut Exclusion| asked_again_at(exclusion).is_some_and(|at| now >= at);
        if let Some(exclusion) = self.peer_mut(peer).exclusion.as_mut().filter(due) {
            exclusion.asked = now;
            let number = exclusion.number;
            out.push(Effect::Report(Report::ExclusionWanted { peer, number }));
        }
        let due = |detaching: &&mut Detaching| {
            detaching.peer == peer && detaching.is_asked() && now.since(detaching.asked) >= REPEAT
        };
        if let Some(detaching) = self.detaching.as_mut().filter(due) {
            detaching.asked = now;
            let number = detaching.number;
            out.push(Effect::Report(Report::ExclusionWanted { peer, number }));
        }
    }

    /// When the question whether the own copy may be given up is due again.
    pub(super) fn detach_asked_again_at(&self) -> Option<Moment> {
        self.detaching.filter(Detaching::is_asked).map(|detaching| detaching.asked.after(REPEAT))
    }

    /// True when a returning peer may be greeted.
    pub(super) fn may_greet(&self, peer: PeerNo, instance: crate::units::DiskInstance) -> bool {
        let waits = self.peers.iter().any(|peer| peer.exclusion.is_some());
        let asked = self.peer(peer).exclusion.as_ref().is_some_and(|exclusion| !exclusion.allowed);
        !waits || (asked && self.peers.len() == 1 && self.record(peer).instance == instance)
    }

    /// Parks what is on the local disk and waits for nothing but the peer.
    pub(super) fn park_written(&mut self, peer: PeerNo) {
        if self.peers.len() > 1 {
            return;
        }
        let floor = self.peer(peer).share_floor.expect("an exclusion holds shares");
        let written: Vec<(Seq, SegmentId)> = self
            .log
            .above(floor)
            .filter(|(_, entry)| entry.local_written)
            .filter_map(|(seq, entry)| Some((seq, entry.segment?)))
            .collect();
        for (seq, segment) in written {
            self.park(peer, seq, segment);
        }
    }

    /// A segment has been written here, or has failed to: true when it is parked now.
    pub(super) fn parks(&mut self, id: SegmentId, seq: Seq) -> bool {
        let [peer] = self.peers.as_slice() else { return false };
        let mirrored = peer.cursor.is_some_and(|cursor| seq > cursor.joined);
        let waits = peer.exclusion.is_some() && !mirrored;
        let Stage::Launched { pending: pending @ 2, .. } = &mut self.segments.get_mut(id).stage else { return false };
        if waits {
            *pending -= 1;
            self.park(PeerNo(0), seq, id);
        }
        waits
    }

    fn park(&mut self, peer: PeerNo, seq: Seq, id: SegmentId) {
        self.mark(Mark::Parked);
        let segment = self.segments.get_mut(id);
        let Stage::Launched { copies, pending, .. } = segment.stage else {
            unreachable!("only a launched segment has an entry");
        };
        assert_eq!(pending, 1, "a parked segment waits for the peer alone");
        segment.stage = Stage::Parked { copies };
        let range = segment.range;
        self.log.get_mut(seq).expect("a segment keeps its entry").segment = None;
        // It may be answered before any other: a flush that comes then covers it.
        self.done = self.done.max(seq);
        self.release_range(range);
        self.peer_mut(peer).exclusion.as_mut().expect("it waits for one").parked.push(id);
    }

    /// Whoever decides has agreed to the exclusion of this number.
    pub(super) fn exclusion_allowed(&mut self, now: Moment, number: u64, out: &mut Effects) {
        if self.transition.has_ended() {
            return;
        }
        if self.detaching.as_ref().is_some_and(|detaching| detaching.number == number) {
            self.detach_allowed(out);
            return;
        }
        let asked = |exclusion: &Exclusion| exclusion.number == number && !exclusion.allowed;
        let Some(peer) = self.peer_numbers().find(|&p| self.peer(p).exclusion.as_ref().is_some_and(asked)) else {
            return;
        };
        if self.peer(peer).connection().is_some() {
            self.mark(Mark::Overtaken);
            self.drop_link(now, peer, "this node may go on without it; both greet again".into(), out);
        }
        self.peer_mut(peer).exclusion.as_mut().expect("just found").allowed = true;
        self.leave_behind(Some(Then::Excluded(peer)), "a peer that was in sync is gone", out);
        // A target was told the generation that it comes to; it has to be told the new one.
        let targets: Vec<PeerNo> = self.peer_numbers().filter(|&p| self.peer(p).is_target()).collect();
        for target in targets {
            self.drop_link(now, target, "the generation changed meanwhile; both greet again".into(), out);
        }
    }

    /// Mints a generation that absent peers do not have.
    pub(super) fn leave_behind(&mut self, then: Option<Then>, why: &str, out: &mut Effects) {
        let next = self.mint();
        let fresh = self.book.get().lineage.is_fresh();
        let absent: Vec<usize> = self
            .peer_numbers()
            .filter(|&p| fresh || !matches!(self.peer(p).link, Link::Up { .. }))
            .map(|p| self.slot(p))
            .collect();
        let old = self.book.get().lineage.current;
        let how = |superblock: &mut crate::meta::Superblock| {
            for slot in absent {
                let base = &mut superblock.peers[slot].base;
                if !base.is_some() {
                    *base = if old.is_some() { old } else { next };
                }
            }
            superblock.lineage.advance(next);
        };
        match then {
            Some(then) => self.book.change_then(then, how),
            None => self.book.change(how),
        }
        Self::changed("generation", old, next, why, out);
    }

    /// The generation without the peer is durable: this node goes on alone.
    pub(super) fn excluded_durably(&mut self, peer: PeerNo, out: &mut Effects) {
        let link = self.peer_mut(peer);
        let Some(exclusion) = link.exclusion.take() else { return };
        let floor = link.share_floor.take().expect("an exclusion holds shares");
        let name = link.name.clone();
        self.unpark(exclusion.parked, out);
        self.settle_shares(floor, self.log.last(), out);
        Self::changed(
            &format!("replication {name}"),
            "established",
            "off",
            "this node goes on alone; its writes are recorded as dirty",
            out,
        );
    }

    /// The peer is in sync again: nothing has to be decided about it.
    pub(super) fn withdraw_exclusion(&mut self, peer: PeerNo, out: &mut Effects) {
        let Some(exclusion) = self.peer_mut(peer).exclusion.take() else { return };
        self.mark(Mark::Withdrawn);
        self.unpark(exclusion.parked, out);
        if let Some(cursor) = self.peer(peer).cursor {
            self.settle_shares(cursor.joined, cursor.joined, out);
        }
        out.push(Effect::Report(Report::ExclusionWithdrawn { peer, number: exclusion.number }));
    }

    /// Forgets an exclusion: nobody is answered by this node any more.
    pub(super) fn drop_exclusion(&mut self, peer: PeerNo, out: &mut Effects) {
        self.book.forget(|then| *then == Then::Excluded(peer));
        let link = self.peer_mut(peer);
        let (exclusion, floor) = (link.exclusion.take(), link.share_floor.take());
        if let Some(exclusion) = exclusion {
            self.unpark(exclusion.parked, out);
        }
        if let Some(floor) = floor {
            self.settle_shares(floor, self.log.last(), out);
        }
    }

    /// Gives up what waits for the peer, up to `through`. The peer may have been back meanwhile, so that what was launched before and is
    /// still being written lies below the floor; what was given up already no longer counts on it.
    fn settle_shares(&mut self, floor: Seq, through: Seq, out: &mut Effects) {
        if self.peers.len() > 1 {
            self.give_shares_up(floor, Some(through), out);
            return;
        }
        let launched = self.log.above(Seq(0)).filter(|(seq, _)| *seq <= through);
        let open: Vec<SegmentId> = launched
            .filter_map(|(_, entry)| Some((entry.segment?, u32::from(!entry.local_written))))
            .filter(
                |&(id, own)| matches!(self.segments.get(id).stage, Stage::Launched { pending, .. } if pending > own),
            )
            .map(|(id, _)| id)
            .collect();
        for id in open {
            self.share_done(id, out);
        }
    }

    fn unpark(&mut self, parked: Vec<SegmentId>, out: &mut Effects) {
        for id in parked {
            let segment = self.segments.remove(id);
            let Stage::Parked { copies } = segment.stage else { unreachable!("it was parked") };
            if copies == 0 {
                self.requests.get_mut(segment.request).failed = true;
            }
            self.request_part_done(segment.request, out);
        }
    }
}
