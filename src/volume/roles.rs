//! Promote, demote, switchover, shutdown: how a node takes and gives up its role.
//!
//! ```text
//!  promote:    [peer connected: claim -> grant durable there] -> term (and, without peers, a new generation) durable -> primary
//!  demote:     hold requests -> all done and stable everywhere -> secondary durable -> secondary
//!  switchover: as demote, then offer -> the peer promotes -> it says that it is primary
//!  shutdown:   as demote, but what is recorded is that everything is in order -> goodbye
//! ```
//! The role is given up durably *before* the offer is sent: a lost offer leaves no primary, never two.

use std::time::Duration;

use crate::condition::{Continuity, DiskState, Role};
use crate::generation::Lineage;
use crate::units::{Moment, PeerNo, Seq, Term, Ticket};
use crate::volume::book::Then;
use crate::volume::io::{Command, Effect, HostError, PeerView, Refusal, Report};
use crate::volume::marks::Mark;
use crate::volume::peer::{Link, Sync};
use crate::volume::rule::Rule;
use crate::volume::transfer_log::Cursor;
use crate::volume::{Effects, Volume};
use crate::wire::Message;

/// How long the peer may take to consent or to take over.
const CONSENT: Duration = Duration::from_millis(1500);
/// How long what is under way may take to become stable before a role is kept after all.
const DRAIN: Duration = Duration::from_secs(10);
/// A heartbeat is believed for this long.
pub(super) const HEARTBEAT_FRESH: Duration = Duration::from_millis(1500);

/// What the role is given up for.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Goal {
    Demote,
    Switchover,
    Shutdown,
}

/// Peers whose word is awaited.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub(super) struct Awaited(u8);

const _: () = assert!(crate::meta::PEER_SLOTS <= 8, "a peer is a bit");

impl Awaited {
    fn with(self, peer: PeerNo) -> Self {
        Self(self.0 | 1 << peer.0)
    }

    fn without(self, peer: PeerNo) -> Self {
        Self(self.0 & !(1 << peer.0))
    }

    fn has(self, peer: PeerNo) -> bool {
        self != self.without(peer)
    }
}

/// A change of role under way. `ticket` is none when the node acts by itself.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Transition {
    None,
    /// The consent of peers is awaited.
    Claiming {
        ticket: Option<Ticket>,
        term: Term,
        awaited: Awaited,
        until: Moment,
    },
    /// Being primary is being made durable.
    Promoting {
        ticket: Option<Ticket>,
    },
    /// Requests are held; what is under way becomes stable.
    Draining {
        ticket: Ticket,
        goal: Goal,
        until: Moment,
    },
    /// Being secondary, or the end, is being made durable.
    Recording {
        ticket: Ticket,
        goal: Goal,
    },
    /// The peer was asked to take over.
    Offering {
        ticket: Ticket,
        term: Term,
        peer: PeerNo,
        until: Moment,
    },
    /// The end is recorded: nothing happens any more.
    Ended,
}

impl Transition {
    pub(super) fn is_none(self) -> bool {
        self == Self::None
    }

    /// True when nothing but the end of the daemon follows.
    pub(super) fn is_final(self) -> bool {
        matches!(
            self,
            Self::Ended | Self::Draining { goal: Goal::Shutdown, .. } | Self::Recording { goal: Goal::Shutdown, .. }
        )
    }

    /// True when the role is as good as given up: nothing is acknowledged any more.
    pub(super) fn has_ended(self) -> bool {
        matches!(self, Self::Ended | Self::Recording { .. })
    }

    /// True while requests of clients wait.
    pub(super) fn holds_requests(self) -> bool {
        matches!(self, Self::Draining { .. } | Self::Recording { .. } | Self::Ended)
    }

    pub(super) fn deadline(self) -> Option<Moment> {
        match self {
            Self::Claiming { until, .. } | Self::Draining { until, .. } | Self::Offering { until, .. } => Some(until),
            Self::None | Self::Promoting { .. } | Self::Recording { .. } | Self::Ended => None,
        }
    }
}

pub(super) fn refusal(rule: Rule, what: impl Into<String>, way_out: impl Into<String>) -> Refusal {
    Refusal { rule, what: what.into(), way_out: way_out.into() }
}

impl Volume {
    pub(super) fn command(&mut self, now: Moment, ticket: Ticket, command: Command, out: &mut Effects) {
        if self.transition.is_final() && !matches!(command, Command::Exclude { .. }) {
            let result = Err(refusal(Rule::ShuttingDown, "this node is shutting down", "Wait, or ask the other node"));
            out.push(Effect::Answer { ticket, result });
            return;
        }
        let done = match command {
            Command::Promote { force, peer_is_down } => {
                if let Err(refused) = self.promote(now, Some(ticket), force, peer_is_down, out) {
                    out.push(Effect::Answer { ticket, result: Err(refused) });
                }
                return;
            }
            Command::Demote { disconnect_clients } => self.demote(now, ticket, disconnect_clients),
            Command::Switchover => self.switchover(now, ticket),
            Command::Shutdown => {
                self.drain(now, ticket, Goal::Shutdown);
                Ok(false)
            }
            Command::Resync { full, discard } => self.resync(now, full, discard, out).map(|()| true),
            Command::Pause => self.pause(true, out).map(|()| true),
            Command::Resume => self.pause(false, out).map(|()| true),
            Command::Disconnect => self.disconnect(now, out).map(|()| true),
            Command::Connect => {
                for peer in &mut self.peers {
                    peer.standalone = false;
                }
                Ok(true)
            }
            Command::Promise { term, part } => self.make_promise(now, ticket, (term, part), out),
            Command::Release => {
                self.promise = None;
                Ok(true)
            }
            Command::TakeOver { term, force } => self.take_over(now, ticket, (term, force), out),
            Command::StandDown => Ok(self.stand_down(now, ticket, out)),
            Command::Drain => self.drain_role(now, ticket),
            Command::Outdate => self.be_outdated(now, ticket, out),
            Command::Exclude { number } => {
                self.exclusion_allowed(now, number, out);
                Ok(true)
            }
        };
        match done {
            Ok(true) => out.push(Effect::Answer { ticket, result: Ok(()) }),
            Ok(false) => {}
            Err(refused) => out.push(Effect::Answer { ticket, result: Err(refused) }),
        }
    }

    /// Why this node could not be promoted without force, if it could not.
    pub(super) fn promotable(&self, now: Moment) -> Result<(), Refusal> {
        self.check_promote(now, false, false)
    }

    fn check_promote(&self, now: Moment, force: bool, peer_is_down: bool) -> Result<(), Refusal> {
        if self.role == Role::Primary {
            return Err(refusal(Rule::AlreadyPrimary, "this node is primary already", "Nothing needs to be done"));
        }
        if !self.local_ok {
            return Err(refusal(
                Rule::DiskFailed,
                "this node's disk failed",
                "Promote the other node, then replace the disk",
            ));
        }
        if self.disk() == DiskState::Diverged {
            // Whoever the peer is now: neither its role nor the link is what has to be mended.
            self.check_copy(force)?;
        }
        for peer in &self.peers {
            let seen = peer.seen_within(now, HEARTBEAT_FRESH, self.term());
            if let (None, Some((at, PeerView { role: Role::Primary, .. }))) = (peer.connection(), seen) {
                let age = now.since(at).as_millis();
                return Err(refusal(
                    Rule::PeerIsPrimary,
                    format!("{} said {age} ms ago that it is primary, though its data link is down", peer.name),
                    "If it has just died, ask again in 2 s; if it lives, mend the link and use `repblk switchover` on it",
                ));
            }
            if peer.role == Some(Role::Primary) {
                return Err(refusal(
                    Rule::PeerIsPrimary,
                    format!("{} is primary and alive", peer.name),
                    "Use `repblk switchover` on it to hand the role over without loss",
                ));
            }
        }
        self.check_copy(force)?;
        if !self.transition.is_none()
            || !self.attached
            || !self.stream_is_idle()
            || !self.former_writes_rest()
            || self.promise.is_some()
        {
            return Err(refusal(
                Rule::Busy,
                "a promise, a change of role, the start, or the last writes of the old primary are still under way",
                "Ask again in a moment",
            ));
        }
        let unseen: Vec<&str> =
            self.peers.iter().filter(|p| !matches!(p.link, Link::Up { .. })).map(|p| p.name.as_str()).collect();
        if !unseen.is_empty() && !force && !peer_is_down {
            return Err(refusal(
                Rule::PeerUnseen,
                format!("there is no link to {}, which may be primary for all this node can know", unseen.join(", ")),
                "Make sure that it is switched off or does not serve, then say --peer-is-down",
            ));
        }
        Ok(())
    }

    pub(super) fn check_copy(&self, force: bool) -> Result<(), Refusal> {
        let receiving = self.peers.iter().any(super::Peer::is_source);
        if receiving {
            let what = "this copy is being brought up to date from its peer";
            return Err(refusal(
                Rule::Inconsistent,
                what,
                "Wait for the resync, or `repblk disconnect` first and then use --force",
            ));
        }
        if force {
            return Ok(());
        }
        if self.book.get().lineage.is_fresh() {
            let what = "this copy never held data of this volume";
            return Err(refusal(
                Rule::NoData,
                what,
                "Use --force on the one node whose present content shall become the volume's",
            ));
        }
        let (rule, what) = match self.disk() {
            DiskState::UpToDate => return Ok(()),
            DiskState::Outdated => (Rule::Outdated, "this copy is known to lack acknowledged writes"),
            DiskState::Diverged => (Rule::Diverged, "this copy and the peer's went different ways"),
            DiskState::Inconsistent | DiskState::Failed => {
                (Rule::Inconsistent, "this copy is a mix of old and new blocks")
            }
        };
        Err(refusal(rule, what, "Promote the node with the good copy; --force here gives up what only that one has"))
    }

    fn promote(
        &mut self,
        now: Moment,
        ticket: Option<Ticket>,
        force: bool,
        peer_is_down: bool,
        out: &mut Effects,
    ) -> Result<(), Refusal> {
        self.check_promote(now, force, peer_is_down)?;
        let term = self.term().next();
        let linked: Vec<PeerNo> =
            self.peer_numbers().filter(|&p| matches!(self.peer(p).link, Link::Up { .. })).collect();
        if linked.is_empty() {
            self.take_role(now, ticket, term, out);
            return Ok(());
        }
        // All are asked at once: the first answer brings the new term with it, and later questions would seem old.
        let awaited = linked.iter().fold(Awaited::default(), |awaited, &p| awaited.with(p));
        self.transition = Transition::Claiming { ticket, term, awaited, until: now.after(CONSENT) };
        for peer in linked {
            self.send(peer, Message::Claim { term }, None, out);
        }
        Ok(())
    }

    /// Makes being primary at `term` durable.
    pub(super) fn take_role(&mut self, now: Moment, ticket: Option<Ticket>, term: Term, out: &mut Effects) {
        self.transition = Transition::Promoting { ticket };
        let greeting: Vec<PeerNo> = self
            .peer_numbers()
            .filter(|&p| self.peer(p).connection().is_some() && !matches!(self.peer(p).link, Link::Up { .. }))
            .collect();
        for peer in greeting {
            self.mark(Mark::PromotedGreeting);
            self.drop_link(now, peer, "this node is becoming primary; both greet again".into(), out);
        }
        let fresh = self.book.get().lineage.is_fresh();
        let good = matches!(self.disk(), DiskState::UpToDate) && !fresh;
        let left = self
            .peer_numbers()
            .any(|p| !matches!(self.peer(p).link, Link::Up { .. }) && !self.record(p).base.is_some());
        if !good && !fresh {
            // The copy lacks writes that its current generation may stand for. It must not pass for their descendant.
            self.mark(Mark::Forced);
            let next = self.mint();
            let history = self.book.get().lineage.history;
            let slots: Vec<usize> = self.peer_numbers().map(|p| self.slot(p)).collect();
            self.book.change(|superblock| {
                superblock.lineage = Lineage { current: next, history };
                for slot in slots {
                    superblock.peers[slot].base = next;
                }
            });
            Self::note(
                format!("promoted by force: generation {next} starts from this copy; what it lacks is given up"),
                true,
                out,
            );
        } else if fresh || left {
            self.leave_behind(None, "this node becomes primary without every peer", out);
        }
        self.book.change_then(Then::Promoted, |superblock| {
            superblock.term = term;
            superblock.was_primary = true;
            superblock.disk = DiskState::UpToDate;
        });
    }

    /// Being primary is durable.
    pub(super) fn promoted(&mut self, now: Moment, out: &mut Effects) {
        let Transition::Promoting { ticket } = self.transition else { return };
        self.transition = Transition::None;
        self.role = Role::Primary;
        // What this node wrote as secondary may still be in the disk's cache: the first flush really flushes.
        self.local = Cursor::joining(self.log.last());
        self.done = self.log.last();
        self.stream = None;
        self.promise = None;
        self.resume = false;
        self.resolved();
        let term = self.term();
        Self::changed("role", Role::Secondary, Role::Primary, format!("term {term}"), out);
        self.tell_state(out);
        for peer in self.peer_numbers() {
            match self.peer(peer).sync() {
                Some(Sync::Even) => self.open_stream(now, peer, out),
                // The other copy learns by greeting again that there is data now.
                Some(Sync::Wait) => self.drop_link(now, peer, "this node became primary; both greet again".into(), out),
                _ => {}
            }
        }
        out.extend(ticket.map(|ticket| Effect::Answer { ticket, result: Ok(()) }));
    }

    pub(super) fn tell_state(&self, out: &mut Effects) {
        for peer in self.peer_numbers().filter(|&p| matches!(self.peer(p).link, Link::Up { .. })) {
            self.send(peer, Message::State { role: self.role, disk: self.disk() }, None, out);
        }
    }

    /// A node that was primary when it stopped becomes primary again when its peer is there, is secondary and consents.
    pub(super) fn try_to_resume(&mut self, now: Moment, out: &mut Effects) {
        if self.resume && self.promote(now, None, false, false, out).is_ok() {
            self.mark(Mark::Resumed);
            Self::note("this node was primary when it stopped, and asks to be primary again", false, out);
        }
    }

    /// The peer asks for consent.
    pub(super) fn claimed(&mut self, peer: PeerNo, term: Term, out: &mut Effects) {
        let mine = self.book.get().instance;
        let theirs = match &self.peer(peer).link {
            Link::Up { theirs, .. } => theirs.instance,
            _ => return,
        };
        let deny = if self.role == Role::Primary {
            Some(Rule::PeerIsPrimary)
        } else if term <= self.term() {
            Some(Rule::OldTerm)
        } else {
            match self.transition {
                Transition::None => self.promise.map(|_| Rule::Busy),
                Transition::Claiming { .. } if mine > theirs => None,
                Transition::Claiming { .. } => Some(Rule::PeerGoesFirst),
                _ => Some(Rule::Busy),
            }
        };
        if let Some(rule) = deny {
            // The term travels in the frame: a claimant with an old one learns the newer and may ask again.
            self.send(peer, Message::Deny { term, rule: rule.number() }, None, out);
            return;
        }
        if let Transition::Claiming { ticket, .. } = self.transition {
            self.mark(Mark::ClaimsCrossed);
            self.transition = Transition::None;
            let result = Err(refusal(
                Rule::PeerGoesFirst,
                "the peer asked at the same moment and goes first",
                "Look at `repblk status`",
            ));
            out.extend(ticket.map(|ticket| Effect::Answer { ticket, result }));
        }
        self.resume = false;
        self.book.change_then(Then::Granted(peer, term), |superblock| {
            superblock.term = term;
            superblock.was_primary = false;
        });
    }

    pub(super) fn granted(&mut self, now: Moment, from: PeerNo, granted: Term, out: &mut Effects) {
        match self.transition {
            Transition::Claiming { ticket, term, awaited, until } if term == granted && awaited.has(from) => {
                let awaited = awaited.without(from);
                self.transition = Transition::Claiming { ticket, term, awaited, until };
                if awaited == Awaited::default() {
                    self.take_role(now, ticket, term, out);
                }
            }
            _ => {}
        }
    }

    pub(super) fn denied(&mut self, now: Moment, peer: PeerNo, denied: Term, rule: u16, out: &mut Effects) {
        let rule = Rule::of_number(rule).unwrap_or(Rule::Busy);
        let name = self.peer(peer).name.clone();
        match self.transition {
            Transition::Claiming { ticket, term, .. } if term == denied => {
                self.transition = Transition::None;
                if ticket.is_none() && rule == Rule::OldTerm {
                    // The newer term came with the answer.
                    self.try_to_resume(now, out);
                    return;
                }
                self.resume &= rule != Rule::PeerIsPrimary;
                let result =
                    Err(refusal(rule, format!("{name} does not consent"), "Look at `repblk status` on both nodes"));
                out.extend(ticket.map(|ticket| Effect::Answer { ticket, result }));
            }
            Transition::Offering { ticket, term, .. } if term == denied => {
                self.transition = Transition::None;
                self.mark(Mark::OfferDenied);
                Self::note(format!("{name} did not take the role ({rule}); this node takes it back"), true, out);
                let why = refusal(rule, format!("{name} did not take the role"), "This node takes it back");
                out.push(Effect::Answer { ticket, result: Err(why) });
                self.resume = true;
                self.try_to_resume(now, out);
            }
            _ => {}
        }
    }

    /// The former primary asks this node to take over.
    pub(super) fn offered(&mut self, now: Moment, peer: PeerNo, term: Term, out: &mut Effects) {
        let deny = if term <= self.term() {
            Some(Rule::OldTerm)
        } else if !self.transition.is_none() || !self.stream_is_stable() {
            Some(Rule::Busy)
        } else if !self.peer(peer).is_even() {
            Some(Rule::PeerNotInSync)
        } else {
            self.peer_mut(peer).role = Some(Role::Secondary);
            self.check_promote(now, false, false).err().map(|refused| refused.rule)
        };
        match deny {
            Some(rule) => self.send(peer, Message::Deny { term, rule: rule.number() }, None, out),
            None => self.take_role(now, None, term, out),
        }
    }

    /// The peer says that it is primary.
    pub(super) fn peer_became_primary(&mut self, now: Moment, peer: PeerNo, out: &mut Effects) {
        self.resume = false;
        match self.transition {
            Transition::Offering { ticket, peer: to, .. } if to == peer => {
                self.transition = Transition::None;
                out.push(Effect::Answer { ticket, result: Ok(()) });
            }
            _ if self.role == Role::Primary => {
                self.drop_link(now, peer, "both nodes are primary".into(), out);
            }
            _ => {}
        }
        if self.role == Role::Secondary && !self.local_ok {
            // A copy that failed while it was primary must not count for the next one.
            self.send(peer, Message::DiskFailed { errno: 0 }, None, out);
            self.drop_link(now, peer, "this node's disk failed".into(), out);
        }
        if self.role == Role::Secondary
            && self.book.get().was_primary
            && !matches!(self.transition, Transition::Promoting { .. })
        {
            self.book.change(|superblock| superblock.was_primary = false);
        }
    }

    fn demote(&mut self, now: Moment, ticket: Ticket, disconnect_clients: bool) -> Result<bool, Refusal> {
        if self.role != Role::Primary {
            return Err(refusal(Rule::NotPrimary, "this node is not primary", "Nothing needs to be done"));
        }
        if !self.transition.is_none() {
            return Err(refusal(Rule::Busy, "another change of role is under way", "Ask again in a moment"));
        }
        if self.clients > 0 && !disconnect_clients {
            return Err(refusal(
                Rule::ClientsConnected,
                format!("NBD clients are connected ({})", self.clients),
                "Stop what uses the device, or say --disconnect-clients; `repblk switchover` hands over instead",
            ));
        }
        self.drain(now, ticket, Goal::Demote);
        Ok(false)
    }

    fn switchover(&mut self, now: Moment, ticket: Ticket) -> Result<bool, Refusal> {
        if self.role != Role::Primary {
            return Err(refusal(Rule::NotPrimary, "this node is not primary", "Run switchover on the primary node"));
        }
        if !self.transition.is_none() {
            return Err(refusal(Rule::Busy, "another change of role is under way", "Ask again in a moment"));
        }
        match self.peers.first() {
            Some(peer) if peer.is_even() => {}
            Some(peer) if matches!(peer.link, Link::Up { .. }) => {
                let what = format!("{} does not hold everything yet", peer.name);
                return Err(refusal(Rule::PeerNotInSync, what, "Wait for the resync (`repblk resync --watch`)"));
            }
            _ => {
                return Err(refusal(
                    Rule::NotConnected,
                    "the peer is not connected",
                    "Bring the peer and its link up first",
                ));
            }
        }
        self.drain(now, ticket, Goal::Switchover);
        Ok(false)
    }

    pub(super) fn drain(&mut self, now: Moment, ticket: Ticket, goal: Goal) {
        self.stable_goal = self.log.last();
        // What this node wrote as secondary since it was primary last is in no log: the flush at the end really flushes.
        self.local.stable = self.local.stable.min(Seq(self.stable_goal.0.saturating_sub(1)));
        self.ask_stream_stable();
        self.transition = Transition::Draining { ticket, goal, until: now.after(DRAIN) };
    }

    /// Moves a change of role on when what it waits for has come.
    pub(super) fn pump_transition(&mut self, now: Moment, out: &mut Effects) {
        let overdue = self.transition.deadline().is_some_and(|until| now >= until);
        match self.transition {
            Transition::Draining { ticket, goal, .. } => {
                let open = self.requests.len() - self.held.len();
                let settled = self.peers.iter().all(|peer| peer.exclusion.is_none()) && self.detaching.is_none();
                let still = open == 0
                    && settled
                    && self.log.len() == 0
                    && self.local_is_flushed()
                    && self.streams_are_flushed()
                    && self.stream_is_stable()
                    && self.resyncs_rest()
                    && self.obituary.is_none();
                // An orderly end forgets the activity log, so the bitmaps on the disk must be whole before.
                let quiet = still && (goal != Goal::Shutdown || self.bitmaps_are_durable());
                if quiet || (overdue && goal == Goal::Shutdown) {
                    self.record_end(now, ticket, goal, quiet, out);
                } else if overdue {
                    self.resume_service(now, ticket, out);
                } else {
                    self.stable_goal = self.log.last();
                }
            }
            Transition::Claiming { ticket, awaited, .. } if overdue => {
                self.mark(Mark::ClaimOverdue);
                self.transition = Transition::None;
                let silent = self.peer_numbers().filter(|&p| awaited.has(p)).map(|p| self.peer(p).name.as_str());
                let name = silent.collect::<Vec<_>>().join(", ");
                let why = refusal(
                    Rule::PeerSilent,
                    format!("{name} did not answer"),
                    "Look at `repblk status` there, and ask again",
                );
                out.extend(ticket.map(|ticket| Effect::Answer { ticket, result: Err(why) }));
            }
            Transition::Offering { ticket, peer, .. } if overdue => self.offer_lost(ticket, peer, out),
            _ => {}
        }
    }

    /// The disk was flushed since the drain began, also of what an earlier life of the daemon may have left in its cache.
    fn local_is_flushed(&self) -> bool {
        !self.local_ok || (self.local_flush.is_none() && self.local.stable >= self.stable_goal)
    }

    /// What was sent to copies that take part is stable there, also what they wrote in an earlier role: a barrier that is still under
    /// way would make the next primary refuse the role.
    fn streams_are_flushed(&self) -> bool {
        self.peers.iter().filter_map(|peer| peer.cursor).all(|cursor| cursor.stable >= self.stable_goal)
    }

    /// No block is read for a resync any more, nor for one whose link is lost.
    fn resyncs_rest(&self) -> bool {
        self.runs_reading == 0
    }

    fn record_end(&mut self, now: Moment, ticket: Ticket, goal: Goal, quiet: bool, out: &mut Effects) {
        self.transition = Transition::Recording { ticket, goal };
        if goal == Goal::Shutdown {
            for id in std::mem::take(&mut self.held) {
                self.reply(id, Err(HostError::NotPrimary), None, out);
            }
            for peer in self.peer_numbers() {
                self.send(peer, Message::Goodbye, None, out);
                self.drop_link(now, peer, "this node shuts down".into(), out);
            }
            self.shut_down_when_recorded(quiet);
        } else {
            let next = self.term().next();
            self.book.change_then(Then::Demoted, |superblock| {
                superblock.was_primary = false;
                if goal == Goal::Switchover {
                    superblock.term = next;
                }
            });
        }
    }

    fn shut_down_when_recorded(&mut self, quiet: bool) {
        let clean = quiet && self.continuity != Continuity::Lost && self.local_ok;
        self.book.change_then(Then::ShutDown, |superblock| superblock.clean = clean);
    }

    /// The end is recorded.
    pub(super) fn shut_down(&mut self, out: &mut Effects) {
        if let Transition::Recording { ticket, .. } = self.transition {
            self.transition = Transition::Ended;
            out.push(Effect::Report(Report::DisconnectClients));
            out.push(Effect::Answer { ticket, result: Ok(()) });
        }
    }

    fn resume_service(&mut self, now: Moment, ticket: Ticket, out: &mut Effects) {
        self.mark(Mark::DrainOverdue);
        self.transition = Transition::None;
        let why = refusal(
            Rule::Busy,
            format!("what is under way did not become stable within {} s", DRAIN.as_secs()),
            "The role is kept; look at the disk and the link, and ask again",
        );
        out.push(Effect::Answer { ticket, result: Err(why) });
        for id in std::mem::take(&mut self.held) {
            self.start(now, id, out);
        }
    }

    /// Being secondary is durable.
    pub(super) fn demoted(&mut self, now: Moment, out: &mut Effects) {
        let Transition::Recording { ticket, goal } = self.transition else { return };
        self.role = Role::Secondary;
        self.close_streams();
        let targets: Vec<PeerNo> = self.peer_numbers().filter(|&p| self.peer(p).is_target()).collect();
        for peer in targets {
            self.drop_link(now, peer, "this node is not primary any more; both greet again".into(), out);
        }
        let why = if goal == Goal::Switchover { "switchover" } else { "the operator asked" };
        Self::changed("role", Role::Primary, Role::Secondary, why, out);
        for id in std::mem::take(&mut self.held) {
            self.reply(id, Err(HostError::NotPrimary), None, out);
        }
        out.push(Effect::Report(Report::DisconnectClients));
        self.tell_state(out);
        let partner = self.peer_numbers().find(|&p| self.peer(p).is_even());
        match (goal, partner) {
            (Goal::Switchover, Some(peer)) => {
                // The record says `term`; the offer is for the one after, so that it is new to both.
                let term = self.term().next();
                self.transition = Transition::Offering { ticket, term, peer, until: now.after(CONSENT) };
                self.send(peer, Message::Offer { term }, None, out);
            }
            (Goal::Switchover, None) => {
                self.transition = Transition::None;
                let why = refusal(
                    Rule::NotConnected,
                    "the peer was lost during the switchover; no node is primary",
                    "Run `repblk promote` on one",
                );
                out.push(Effect::Answer { ticket, result: Err(why) });
            }
            (Goal::Demote | Goal::Shutdown, _) => {
                self.transition = Transition::None;
                out.push(Effect::Answer { ticket, result: Ok(()) });
            }
        }
    }

    fn offer_lost(&mut self, ticket: Ticket, peer: PeerNo, out: &mut Effects) {
        self.mark(Mark::OfferLost);
        self.transition = Transition::None;
        let name = self.peer(peer).name.clone();
        let why = refusal(
            Rule::PeerSilent,
            format!("{name} was asked to take over and did not say that it has"),
            "Look at its status; if it is not primary, run `repblk promote` on one node",
        );
        out.push(Effect::Answer { ticket, result: Err(why) });
    }

    /// A link that a change of role needs is lost.
    pub(super) fn transition_lost(&mut self, lost: PeerNo, out: &mut Effects) {
        match self.transition {
            Transition::Claiming { ticket, awaited, .. } if awaited.has(lost) => {
                self.transition = Transition::None;
                let name = self.peer(lost).name.clone();
                let why =
                    refusal(Rule::PeerSilent, format!("the link to {name} was lost while it was asked"), "Ask again");
                out.extend(ticket.map(|ticket| Effect::Answer { ticket, result: Err(why) }));
            }
            Transition::Offering { ticket, peer, .. } if peer == lost => self.offer_lost(ticket, peer, out),
            _ => {}
        }
    }
}
