//! How a role is taken and given up, step by step; and how the record and the lease are kept meanwhile.
//!
//! ```text
//!  Rest --take over--> Promising --promised--> Claiming --record names this node--> Starting --primary--> Rest
//!  Rest --hand over--> Draining --secondary--> Offering --the peer is writer--> Rest
//! ```
//! After the promise is durable the table is asked again: what was true may not be any more.

use std::collections::BTreeSet;

use crate::condition::{DiskState, Role};
use crate::failover::book::blank;
use crate::failover::config::Arbiter;
use crate::failover::decision::{Verdict, decide};
use crate::failover::history::{Cause, Episode};
use crate::failover::io::{Ask, DIRECT_AGAIN, Directive, Effect, NEVER};
use crate::failover::record::Record;
use crate::failover::rule::Rule;
use crate::failover::view::{Proof, Recorded, View, Writer};
use crate::failover::{Effects, Failover, Inquiry};
use crate::units::{Moment, Term, Ticket};

/// A change of role under way.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub(super) enum Stage {
    /// None.
    Rest,
    /// The term is being made durable, and older ones refused.
    Promising { term: Term, rule: Rule, force: bool },
    /// The record is asked to name this node.
    Claiming { term: Term, rule: Rule, force: bool },
    /// The volume becomes primary.
    Starting { term: Term, force: bool },
    /// The volume finishes what is under way and becomes secondary.
    Draining { ticket: Ticket },
    /// The record shall name nobody, and then the peer.
    Offering { ticket: Ticket, until: Moment },
}

impl Stage {
    pub(super) fn deadline(self) -> Option<Moment> {
        match self {
            Self::Offering { until, .. } => Some(until),
            _ => None,
        }
    }
}

/// Rules under which nobody is left behind that might still write.
fn is_orderly(rule: Rule) -> bool {
    matches!(rule, Rule::TakeOverHanded | Rule::TakeBack | Rule::TakeOverOwnRecord)
}

fn cause(rule: Rule) -> Cause {
    match rule {
        _ if is_orderly(rule) => Cause::Orderly,
        Rule::TakeOverByOperator => Cause::Operator,
        _ => Cause::Automatic,
    }
}

/// Rules that somebody should look at.
fn is_alarm(rule: Rule) -> bool {
    use Rule as R;
    matches!(
        rule,
        R::NotTheWriter
            | R::Overruled
            | R::CannotServe
            | R::ArbiterSilentFrozen
            | R::ExclusionRecorded
            | R::ExclusionFenced
            | R::ExclusionByPromise
            | R::ExclusionFree
            | R::FenceFailed
            | R::PeerWonFence
            | R::GatewayFrozen
            | R::TakeOverLeaseOver
            | R::TakeOverProvedDead
            | R::TakeOverFenced
            | R::TakeOverSplitBrainAccepted
            | R::ForeignRecord
            | R::RolledBack
            | R::ArbiterSilent
            | R::OwnDiskBad
            | R::TooMany
            | R::PeerIsHeard
    )
}

impl Failover {
    /// Moves a change of role on, or decides on one.
    pub(super) fn advance(&mut self, now: Moment, out: &mut Effects) {
        match self.stage {
            Stage::Rest => self.rest(now, out),
            Stage::Promising { term, rule, force } => self.promising(now, term, rule, force, out),
            Stage::Claiming { term, rule, force } => self.claiming(now, term, rule, force, out),
            Stage::Starting { term, force } => self.direct(now, Directive::TakeOver { term, force }, out),
            Stage::Draining { ticket } => self.draining(now, ticket, out),
            Stage::Offering { ticket, until } => self.offering(now, ticket, until, out),
        }
    }

    fn rest(&mut self, now: Moment, out: &mut Effects) {
        let view = self.view(now);
        let (rule, verdict) = decide(&view);
        self.tell(rule, &view, out);
        let asked = matches!(self.wish, Some((_, Ask::Promote { .. } | Ask::HandOver)));
        if asked && !matches!(verdict, Verdict::TakeOver | Verdict::HandOver) {
            self.answer(Err(rule), out);
        }
        match verdict {
            Verdict::Stay | Verdict::Wait | Verdict::Record | Verdict::Refuse => {
                if self.outdate_wanted {
                    self.direct(now, Directive::Outdate, out);
                }
            }
            Verdict::Prove => {
                let ask = self.next_proof;
                self.next_proof += 1;
                self.inquiry = Some(Inquiry { ask, at: now, proof: Proof::Asked });
                out.push(Effect::Prove { ask });
            }
            Verdict::Allow => {
                let number = self.volume.exclusion.expect("only a volume that waits is allowed");
                self.direct(now, Directive::Exclude { number }, out);
            }
            Verdict::StandDown => {
                self.holding = None;
                self.direct(now, Directive::StandDown, out);
            }
            Verdict::HandOver => {
                let Some((ticket, Ask::HandOver)) = self.wish.take() else { return };
                self.stage = Stage::Draining { ticket };
                self.direct(now, Directive::Drain, out);
            }
            Verdict::TakeOver => {
                let force = matches!(self.wish, Some((_, Ask::Promote { force: true, .. })));
                let recorded = self.book.record().map_or(Term(0), |record| record.term);
                let term = recorded.max(self.volume.term).max(self.book.floor()).next();
                self.stage = Stage::Promising { term, rule, force };
                self.promising(now, term, rule, force, out);
            }
        }
    }

    /// What is under way may need the peer, and the peer may be lost meanwhile: then it is excluded as at any other time.
    fn draining(&mut self, now: Moment, ticket: Ticket, out: &mut Effects) {
        let view = self.view(now);
        let (rule, verdict) = decide(&view);
        if verdict == Verdict::StandDown {
            out.push(Effect::Answer { ticket, result: Err(rule) });
            self.come_to_rest(out);
        } else if let (Verdict::Allow, Some(number)) = (verdict, self.volume.exclusion) {
            self.tell(rule, &view, out);
            self.direct(now, Directive::Exclude { number }, out);
        } else if !view.waits {
            self.direct(now, Directive::Drain, out);
        }
    }

    fn promising(&mut self, now: Moment, term: Term, rule: Rule, force: bool, out: &mut Effects) {
        if self.volume.promised != Some(term) {
            self.direct(now, Directive::Promise { term, part: !is_orderly(rule) }, out);
            return;
        }
        let view = self.view(now);
        match decide(&view) {
            (rule, Verdict::TakeOver) if self.config.arbiter == Arbiter::Etcd => {
                self.stage = Stage::Claiming { term, rule, force };
                self.claiming(now, term, rule, force, out);
            }
            (rule, Verdict::TakeOver) => {
                self.happened(now, term, rule, &view, out);
                self.starts(now, term, force, out);
            }
            (rule, _) => self.gives_up(now, rule, &view, out),
        }
    }

    fn claiming(&mut self, now: Moment, term: Term, rule: Rule, force: bool, out: &mut Effects) {
        let mine = |record: &Record| record.writer == Some(self.config.instance) && record.term == term;
        if self.book.record().is_some_and(mine) {
            let episode = self.book.record().and_then(|record| record.history.episodes().last().cloned());
            out.extend(episode.map(Effect::Happened));
            self.starts(now, term, force, out);
            return;
        }
        if !self.book.may_ask(now) {
            return;
        }
        if self.book.is_stale() {
            self.book.read(now, out);
            return;
        }
        let view = self.view(now);
        if !self.book.in_doubt() {
            // The record moved, or is not as it was: the table decides anew, and a newer term needs a newer promise.
            let (rule, verdict) = decide(&view);
            let moved = self.book.record().is_some_and(|record| record.term >= term);
            if verdict != Verdict::TakeOver || (moved && !view_is_rolled_back(&view)) {
                self.gives_up(now, rule, &view, out);
                return;
            }
        }
        if view_is_rolled_back(&view) {
            self.book.accept_rollback();
        }
        let ids = (self.config.cluster, self.config.volume, self.config.instance);
        let mut record = self.book.record().cloned().unwrap_or_else(|| blank(ids.0, ids.1, ids.2));
        record.history.add(self.episode(now, term, rule, &view));
        record.writer = Some(self.config.instance);
        record.writer_name.clone_from(&self.config.node);
        record.left_by = None;
        record.term = term;
        record.in_sync = BTreeSet::from([self.config.instance]);
        record.renewals += 1;
        self.book.swap(now, record, out);
    }

    fn starts(&mut self, now: Moment, term: Term, force: bool, out: &mut Effects) {
        self.holding = Some(term);
        self.renewed = None;
        self.stage = Stage::Starting { term, force };
        self.direct(now, Directive::TakeOver { term, force }, out);
    }

    fn gives_up(&mut self, now: Moment, rule: Rule, view: &View, out: &mut Effects) {
        self.tell(rule, view, out);
        self.answer(Err(rule), out);
        self.come_to_rest(out);
        self.retry_at = now.after(self.config.timing.detector.interval);
    }

    fn come_to_rest(&mut self, out: &mut Effects) {
        if self.volume.promised.is_some() && self.volume.role == Role::Secondary {
            out.push(Effect::Direct(Directive::Release));
        }
        self.stage = Stage::Rest;
        self.directed = None;
    }

    fn offering(&mut self, now: Moment, ticket: Ticket, until: Moment, out: &mut Effects) {
        match self.recorded() {
            // It may have given the role up again before this node has read that it was taken.
            Recorded::Known(Writer::Other | Writer::LeftByPeer) => {
                out.push(Effect::Answer { ticket, result: Ok(()) });
                self.come_to_rest(out);
            }
            _ if now >= until => {
                out.push(Effect::Answer { ticket, result: Err(Rule::HandOverLost) });
                self.come_to_rest(out);
            }
            _ => {}
        }
    }

    /// The volume's new state may be what a stage waits for.
    pub(super) fn stage_sees_volume(&mut self, now: Moment, out: &mut Effects) {
        match self.stage {
            Stage::Starting { .. } if self.volume.role == Role::Primary => {
                self.answer(Ok(()), out);
                self.stage = Stage::Rest;
                self.directed = None;
                self.inquiry = None;
            }
            Stage::Draining { ticket } if self.volume.role == Role::Secondary => {
                self.holding = None;
                self.directed = None;
                self.nudge = true;
                let until = now.after(self.config.timing.hand_over);
                self.stage = Stage::Offering { ticket, until };
            }
            _ => {}
        }
        if self.directed.is_some_and(|(directive, _)| self.is_done(directive)) {
            self.directed = None;
        }
        if self.stage == Stage::Rest && self.volume.promised.is_some() && self.volume.role == Role::Secondary {
            out.push(Effect::Direct(Directive::Release));
        }
    }

    fn is_done(&self, directive: Directive) -> bool {
        match directive {
            Directive::Promise { term, .. } => self.volume.promised == Some(term),
            Directive::Release => self.volume.promised.is_none(),
            Directive::TakeOver { .. } | Directive::Promote { .. } => self.volume.role == Role::Primary,
            Directive::Exclude { number } => self.volume.exclusion != Some(number),
            Directive::StandDown | Directive::Drain | Directive::Switchover { .. } => {
                self.volume.role == Role::Secondary
            }
            Directive::Outdate => self.volume.disk == DiskState::Outdated,
        }
    }

    pub(super) fn volume_refused(&mut self, now: Moment, why: &str, out: &mut Effects) {
        let evidence = format!("{} volume-refused: {why}", self.view(now));
        out.push(Effect::Decided { rule: Rule::Busy, evidence, alarm: true });
        if let Stage::Draining { ticket } = self.stage {
            out.push(Effect::Answer { ticket, result: Err(Rule::Busy) });
        }
        self.answer(Err(Rule::Busy), out);
        if matches!(self.stage, Stage::Starting { .. }) {
            self.holding = None;
        }
        if self.stage != Stage::Rest {
            self.come_to_rest(out);
        }
        self.retry_at = now.after(DIRECT_AGAIN);
    }

    /// Gives a directive, and again while it is not done.
    fn direct(&mut self, now: Moment, directive: Directive, out: &mut Effects) {
        let fresh = |&(last, at): &(Directive, Moment)| last == directive && now.since(at) < DIRECT_AGAIN;
        if self.directed.as_ref().is_none_or(|told| !fresh(told)) {
            self.directed = Some((directive, now));
            out.push(Effect::Direct(directive));
        }
    }

    fn answer(&mut self, result: Result<(), Rule>, out: &mut Effects) {
        if let Some((ticket, _)) = self.wish.take_if(|(_, ask)| !matches!(ask, Ask::Maintenance { .. })) {
            out.push(Effect::Answer { ticket, result });
        }
    }

    /// One line for each new rule, with the whole evidence.
    fn tell(&mut self, rule: Rule, view: &View, out: &mut Effects) {
        if self.told.replace(rule) != Some(rule) {
            out.push(Effect::Decided { rule, evidence: view.to_string(), alarm: is_alarm(rule) });
        }
    }

    fn episode(&self, now: Moment, term: Term, rule: Rule, view: &View) -> Episode {
        Episode {
            at_unix_ms: self.unix_ms(now),
            term: term.0,
            to: self.config.node.clone(),
            cause: cause(rule),
            rule: rule.name().to_owned(),
            evidence: view.to_string(),
        }
    }

    fn happened(&mut self, now: Moment, term: Term, rule: Rule, view: &View, out: &mut Effects) {
        let episode = self.episode(now, term, rule, view);
        self.past.add(episode.clone());
        out.push(Effect::Happened(episode));
    }

    /// Reads the record, renews it, and changes it to what it has to be.
    pub(super) fn keep_record(&mut self, now: Moment, out: &mut Effects) {
        if self.config.arbiter != Arbiter::Etcd || !self.book.may_ask(now) {
            return;
        }
        if matches!(self.stage, Stage::Claiming { .. }) {
            return;
        }
        let poll = self.config.timing.renew / 4;
        let writes = matches!(self.stage, Stage::Offering { .. })
            || (self.volume.role == Role::Primary && self.holding.is_some());
        let mine = matches!(self.recorded(), Recorded::Known(Writer::Me | Writer::MeBefore));
        if !self.book.is_stale() && writes && mine {
            if let Some(next) = self.wanted(now) {
                self.renewed = Some(now);
                if next.in_sync.len() > 1 && !self.book.may_count_others() {
                    // Until this is sent nobody could claim, so the lease counts from here on.
                    self.lease.renewed(now);
                }
                self.book.swap(now, next, out);
            }
        } else if let (false, Some(next)) = (self.book.is_stale(), self.resigned()) {
            self.book.swap(now, next, out);
        } else if let (false, Some(next)) = (self.book.is_stale(), self.mended()) {
            self.book.swap(now, next, out);
        } else if let (false, Some(next)) = (self.book.is_stale(), self.maintained(out)) {
            self.book.swap(now, next, out);
        } else if let (false, true, Some(record)) = (self.book.is_stale(), self.book.in_doubt(), self.book.record()) {
            // The same again, only newer: what is in doubt comes to nothing, or has been done.
            let same = record.clone();
            self.book.swap(now, same, out);
        } else if self.read_now || self.book.is_stale() || !self.book.answers(now, poll) {
            self.read_now = false;
            self.book.read(now, out);
        }
    }

    /// The record as the writer wants it, if it is to be written now.
    fn wanted(&mut self, now: Moment) -> Option<Record> {
        let mut next = self.book.record()?.clone();
        let due = self.renewed.is_none_or(|at| now.since(at) >= self.config.timing.renew);
        let me = self.config.instance;
        if self.volume.exclusion.is_some() {
            let others = next.in_sync.iter().any(|&copy| copy != me);
            match self.volume.disk {
                // Somebody must be left.
                DiskState::Failed if others => next.in_sync.remove(&me),
                DiskState::Failed => false,
                _ => {
                    next.in_sync = BTreeSet::from([me]);
                    true
                }
            };
        } else if let (Some(peer), true) = (self.volume.peer, self.volume.peer_in_sync) {
            next.in_sync.insert(peer);
        }
        if matches!(self.stage, Stage::Offering { .. }) {
            (next.writer, next.left_by) = (None, Some(me));
            next.writer_name.clear();
        }
        if let Some((_, Ask::Maintenance { on })) = self.wish {
            next.maintenance = on;
        }
        let changed = self.book.record().is_some_and(|known| *known != next);
        if changed || due || self.book.in_doubt() {
            next.renewals += 1;
            Some(next)
        } else {
            None
        }
    }

    /// The record without this node as its writer, when it is named there, serves nothing, and cannot take its role up again: another copy
    /// that is counted in sync goes on, and waits for no lease.
    fn resigned(&self) -> Option<Record> {
        let me = self.config.instance;
        let rests = self.attached && self.volume.role == Role::Secondary && self.stage == Stage::Rest;
        let mine = matches!(self.recorded(), Recorded::Known(Writer::Me | Writer::MeBefore));
        let record = self.book.record().filter(|_| rests && mine)?;
        let lost = self.volume.disk != DiskState::UpToDate || !record.in_sync.contains(&me);
        let mut next = record.clone();
        next.in_sync.remove(&me);
        if !lost || next.in_sync.is_empty() {
            return None;
        }
        (next.writer, next.left_by) = (None, Some(me));
        next.writer_name.clear();
        next.renewals += 1;
        Some(next)
    }

    /// The record as it was before the arbiter was restored from a backup, where this node is primary and the peer follows: of the two nodes
    /// that could have claimed it since, one is this, and the other has not. Should it claim now, only one of both swaps succeeds.
    fn mended(&self) -> Option<Record> {
        let me = self.config.instance;
        let linked = self.volume.link && self.volume.peer_in_sync;
        // A copy that is lost must not be counted again.
        let held = self.volume.role == Role::Primary && linked && self.volume.disk == DiskState::UpToDate;
        let (true, Recorded::RolledBack, Some(term), Some(peer)) =
            (held, self.recorded(), self.holding, self.volume.peer)
        else {
            return None;
        };
        let ids = (self.config.cluster, self.config.volume);
        let mut next = self.book.record().cloned().unwrap_or_else(|| blank(ids.0, ids.1, me));
        (next.writer, next.left_by, next.term) = (Some(me), None, term);
        next.writer_name.clone_from(&self.config.node);
        next.in_sync = BTreeSet::from([me, peer]);
        next.renewals += 1;
        Some(next)
    }

    /// The record with the operator's wish about maintenance, when this node is not its writer.
    fn maintained(&mut self, out: &mut Effects) -> Option<Record> {
        let Some((ticket, Ask::Maintenance { on })) = self.wish else { return None };
        match self.recorded() {
            Recorded::Known(_) => {
                let mut next = self.book.record()?.clone();
                next.maintenance = on;
                (self.book.record() != Some(&next)).then_some(next)
            }
            _ => {
                self.wish = None;
                out.push(Effect::Answer { ticket, result: Err(Rule::ArbiterSilent) });
                None
            }
        }
    }

    /// Renews what needs no arbiter, and tells how long this node may answer.
    pub(super) fn keep_lease(&mut self, now: Moment, out: &mut Effects) {
        if let Some((ticket, Ask::Maintenance { on })) = self.wish
            && self.book.record().is_some_and(|record| record.maintenance == on)
        {
            self.wish = None;
            out.push(Effect::Answer { ticket, result: Ok(()) });
        }
        let until = match (self.config.arbiter, self.holding) {
            (Arbiter::Etcd, Some(_)) => {
                let mine = self.recorded() == Recorded::Known(Writer::Me);
                if mine && !self.book.may_count_others() {
                    // Nobody else can claim: what the record says is lease enough.
                    self.lease.renewed(now);
                }
                self.lease.until()
            }
            (Arbiter::Etcd, None) => Moment(0),
            _ if self.volume.role == Role::Primary => NEVER,
            _ => Moment(0),
        };
        let later = until > self.lease_told.after(self.config.timing.detector.interval);
        if later || until < self.lease_told {
            self.lease_told = until;
            out.push(Effect::Lease { until });
        }
    }
}

fn view_is_rolled_back(view: &View) -> bool {
    view.record == Recorded::RolledBack
}
