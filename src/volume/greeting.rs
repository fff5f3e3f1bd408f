//! A link from its first word to its verdict.
//!
//! Each node greets when it is at rest: attached, nothing of an old stream left to apply, no change of role under way, and no exclusion
//! that was allowed. Both judge the two greetings with [`reconcile`] and tell each other; a pair that disagrees parts. What a
//! node has said must still be true when it judges, or it parts and greets again.

use crate::condition::{Continuity, DiskState, Role};
use crate::units::{ConnectionId, DiskInstance, GenerationId, Moment, PeerNo};
use crate::volume::io::{Effect, Report};
use crate::volume::marks::Mark;
use crate::volume::peer::{Link, Sync};
use crate::volume::reconcile::{SyncRule, Verdict, reconcile};
use crate::volume::{Effects, Volume};
use crate::wire::Message;
use crate::wire::message::{Greeting, Verdict as WireVerdict};

impl Volume {
    pub(super) fn link_up(
        &mut self,
        now: Moment,
        peer: PeerNo,
        connection: ConnectionId,
        instance: DiskInstance,
        out: &mut Effects,
    ) {
        if self.peer(peer).connection().is_some() {
            self.lose_link(now, peer, "replaced by a newer link".into(), out);
        }
        let refused = if self.peer(peer).standalone {
            Some("this node was told to stay disconnected; `repblk connect` ends that")
        } else if self.transition.is_final() {
            Some("this node is shutting down")
        } else {
            self.promise_forbids_link()
        };
        let link = self.peer_mut(peer);
        link.link = Link::Greeting { connection, instance, mine: None, theirs: None };
        link.heard = now;
        link.pinged = now;
        if let Some(why) = refused {
            out.push(Effect::CloseLink { peer, connection, why: why.into() });
            link.link = Link::Down;
            link.why = why.into();
        }
    }

    /// What this node says of itself to a peer.
    fn greeting(&self, peer: PeerNo, instance: DiskInstance) -> Greeting {
        let superblock = self.book.get();
        let record = self.record(peer);
        // The bitmap counts against one copy. Another copy in its place may differ anywhere.
        let stranger = record.instance.is_some() && record.instance != instance;
        Greeting {
            instance: superblock.instance,
            lineage: superblock.lineage,
            base_for_you: record.base,
            dirty_blocks: self.peer(peer).bitmap.count(),
            full: stranger,
            disk: superblock.disk,
            role: self.role,
            term: superblock.term,
            mode: self.config.mode,
            was_primary: superblock.was_primary,
            discard: self.peer(peer).discard,
            continuity: self.continuity,
        }
    }

    /// Greets where a link waits for it and this node is at rest.
    pub(super) fn pump_greetings(&mut self, now: Moment, out: &mut Effects) {
        for peer in self.peer_numbers() {
            let at_rest = self.attached
                && self.stream_is_idle()
                && self.transition.is_none()
                && self.promise.is_none()
                && self.former_writes_rest()
                && self.detaching.is_none();
            let Link::Greeting { instance, mine: None, .. } = &self.peer(peer).link else { continue };
            if !at_rest || !self.may_greet(peer, *instance) {
                continue;
            }
            let said = self.greeting(peer, *instance);
            if let Link::Greeting { mine, .. } = &mut self.peer_mut(peer).link {
                *mine = Some(Box::new(said));
            }
            self.send(peer, Message::Greeting(Box::new(said)), None, out);
            self.judge(now, peer, out);
        }
    }

    pub(super) fn greeting_heard(&mut self, now: Moment, peer: PeerNo, heard: Box<Greeting>, out: &mut Effects) {
        match &mut self.peer_mut(peer).link {
            Link::Greeting { theirs: theirs @ None, instance, .. } if *instance == heard.instance => {
                *theirs = Some(heard)
            }
            _ => {
                self.drop_link(now, peer, "protocol error: a greeting that does not fit".into(), out);
                return;
            }
        }
        self.judge(now, peer, out);
    }

    fn judge(&mut self, now: Moment, peer: PeerNo, out: &mut Effects) {
        let Link::Greeting { connection, instance, mine: Some(mine), theirs: Some(theirs) } = &self.peer(peer).link
        else {
            return;
        };
        let (connection, said, theirs) = (*connection, **mine, theirs.clone());
        let fresh = Greeting { dirty_blocks: said.dirty_blocks, ..self.greeting(peer, *instance) };
        if fresh != said || !self.transition.is_none() {
            self.mark(Mark::GreetedTooSoon);
            self.drop_link(now, peer, "this node's state changed while it greeted; it greets again".into(), out);
            return;
        }
        let (rule, verdict) = reconcile(&said, &theirs);
        let wire = WireVerdict { rule: rule.number(), part: verdict.number() };
        self.send(peer, Message::Verdict(wire), None, out);
        self.peer_mut(peer).link = Link::Judging { connection, rule, verdict, theirs };
    }

    pub(super) fn verdict_heard(&mut self, now: Moment, peer: PeerNo, heard: WireVerdict, out: &mut Effects) {
        let Link::Judging { rule, verdict, theirs, connection } = &self.peer(peer).link else {
            self.drop_link(now, peer, "protocol error: a verdict that does not fit".into(), out);
            return;
        };
        let (rule, verdict, theirs, connection) = (*rule, *verdict, theirs.clone(), *connection);
        let expected = WireVerdict { rule: rule.number(), part: verdict.mirrored().number() };
        if heard != expected {
            let why = format!(
                "the two nodes disagree: this one says {} by rule {}, the peer rule {}",
                word(verdict),
                rule.name(),
                heard.rule
            );
            self.drop_link(now, peer, why, out);
            return;
        }
        match verdict {
            _ if !self.transition.is_none() || self.promise.is_some() => {
                self.drop_link(now, peer, "this node's role is changing; it greets again".into(), out);
            }
            Verdict::Refuse | Verdict::SplitBrain => self.refuse(now, peer, rule, verdict, &theirs, out),
            Verdict::Even | Verdict::Wait | Verdict::Source { .. } | Verdict::Target { .. } => {
                self.accept(now, (peer, connection), (rule, verdict), theirs, out);
            }
        }
    }

    fn accept(
        &mut self,
        now: Moment,
        (peer, connection): (PeerNo, ConnectionId),
        (rule, verdict): (SyncRule, Verdict),
        theirs: Box<Greeting>,
        out: &mut Effects,
    ) {
        let (name, old) = (self.peer(peer).name.clone(), self.peer(peer).connection_word());
        let slot = self.slot(peer);
        let term = self.term().max(theirs.term);
        if term > self.term() || self.record(peer).instance != theirs.instance {
            self.book.change(|superblock| {
                superblock.term = term;
                superblock.peers[slot].instance = theirs.instance;
            });
        }
        let (role, disk) = (theirs.role, theirs.disk);
        let link = self.peer_mut(peer);
        (link.role, link.disk) = (Some(role), Some(disk));
        link.progress = now;
        link.since = now;
        link.why.clear();
        link.link = Link::Up { connection, sync: Sync::Wait, theirs };
        if link.paused.0 {
            self.send(peer, Message::Pause { on: true }, None, out);
        }
        let why = format!("rule {}: {}", rule.name(), word(verdict));
        Self::changed(&format!("peer {name}"), old, "connected", why, out);
        match verdict {
            Verdict::Even => self.becomes_even(now, peer, rule.name(), out),
            Verdict::Source { full } => self.source_begins(peer, full, out),
            Verdict::Target { full } => self.target_offers(peer, full, out),
            Verdict::Wait | Verdict::SplitBrain | Verdict::Refuse => {}
        }
        if role == Role::Primary {
            self.peer_became_primary(now, peer, out);
        }
    }

    /// Both copies are equal, and both nodes know it.
    pub(super) fn becomes_even(&mut self, now: Moment, peer: PeerNo, why: &str, out: &mut Effects) {
        if !self.peer(peer).bitmap.is_empty() {
            // Written since the greeting. Equality is not claimed over a dirty bit.
            self.drop_link(now, peer, "blocks became dirty while both greeted; they greet again".into(), out);
            return;
        }
        let name = self.peer(peer).name.clone();
        let slot = self.slot(peer);
        if let Some(sync) = self.peer_mut(peer).sync_mut() {
            *sync = Sync::Even;
        }
        self.peer_mut(peer).disk = Some(DiskState::UpToDate);
        if self.record(peer).base.is_some() {
            self.book.change(|superblock| superblock.peers[slot].base = GenerationId::NONE);
        }
        self.resolved();
        Self::changed(&format!("replication {name}"), "off", "established", why, out);
        if self.role == Role::Primary && self.peer(peer).cursor.is_none() {
            self.open_stream(now, peer, out);
        }
        self.withdraw_exclusion(peer, out);
        self.try_to_resume(now, out);
    }

    /// Nothing that an earlier stop may have lost is in doubt any more.
    pub(super) fn resolved(&mut self) {
        // What was cleared goes to the disk now: a crash would have it copied again.
        self.bitmaps_flushed = Moment(0);
        self.lost_cache = false;
        if self.continuity != Continuity::Clean {
            self.continuity = Continuity::Clean;
            let boot = self.config.boot;
            self.book.change(|superblock| superblock.boot = boot);
        }
    }

    fn refuse(
        &mut self,
        now: Moment,
        peer: PeerNo,
        rule: SyncRule,
        verdict: Verdict,
        theirs: &Greeting,
        out: &mut Effects,
    ) {
        // The record says who stands down, and then both meet again.
        let decided = self.config.arbitrated && matches!(rule, SyncRule::PrimaryBehind | SyncRule::BothPrimary);
        let split = verdict == Verdict::SplitBrain && !decided;
        let why = match verdict {
            Verdict::SplitBrain if split => format!("split brain (rule {})", rule.name()),
            _ => format!("refused by rule {}", rule.name()),
        };
        let news = self.peer(peer).why != why;
        if split && news {
            let detail = self.split_detail(peer, rule, theirs);
            out.push(Effect::Report(Report::SplitBrain { peer, detail }));
        }
        if split && self.role == Role::Secondary && self.disk() == DiskState::UpToDate {
            self.set_disk(DiskState::Diverged, &why, out);
        }
        self.drop_link(now, peer, why, out);
    }

    fn split_detail(&self, peer: PeerNo, rule: SyncRule, theirs: &Greeting) -> String {
        let superblock = self.book.get();
        let side = |who: &str, g: GenerationId, dirty: u64, role: Role| {
            format!(
                "{who} is {role} at generation {g} with {dirty} blocks ({} MiB) changed since they parted",
                dirty.saturating_mul(4) / 1024
            )
        };
        let ancestor = superblock.lineage.common_ancestor(&theirs.lineage);
        format!(
            "rule {}; {}; {}; common generation {}; nothing was overwritten. Decide which copy to keep; on the other node run \
             `repblk resync --discard-local`",
            rule.name(),
            side(&self.config.node, superblock.lineage.current, self.peer(peer).bitmap.count(), self.role),
            side(&self.peer(peer).name, theirs.lineage.current, theirs.dirty_blocks, theirs.role),
            ancestor.map_or("unknown".into(), |g| g.to_string()),
        )
    }
}

fn word(verdict: Verdict) -> &'static str {
    match verdict {
        Verdict::Even => "both copies are equal",
        Verdict::Source { full: false } => "this node sends the blocks that may differ",
        Verdict::Source { full: true } => "this node sends every block",
        Verdict::Target { full: false } => "this node receives the blocks that may differ",
        Verdict::Target { full: true } => "this node receives every block",
        Verdict::Wait => "neither copy holds data; `repblk promote --force` on one node says whose content counts",
        Verdict::SplitBrain => "split brain",
        Verdict::Refuse => "refused",
    }
}
