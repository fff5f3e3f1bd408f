//! Rank 3, machine: when to promote, when to go on alone, when to stop. One for each volume on each node.
//!
//! Everything comes in through [`Failover::step`] and leaves as [`Effect`]s; [`io`] lists every word. The machine knows no file, socket,
//! thread or clock, no arbiter's protocol, and nothing of how a volume works inside: it sees a [`VolumeView`] and gives [`Directive`]s.
//!
//! | file | noun |
//! |---|---|
//! | `view`, `decision`, `rule` | the evidence, the table over it, the names of its rows |
//! | `record`, `history`, `book` | the arbiter's record, what happened, what is known and what is in doubt |
//! | `lease` | until when the writer answers, from when on another claims |
//! | `detector` | is the peer silent, or was this node asleep |
//! | `stage` | how a role is taken and given up, step by step |
//! | `beats` | what the two nodes say to each other |
//! | `plan` | what would happen now, changing nothing |
//! | `config` | modes, times, and the arithmetic that refuses unsafe ones |
//!
//! # Why there is never a second writer, and nothing acknowledged is lost
//!
//! Layer A needs no clock. (1) The primary answers a write only with the peer's acknowledgement at its term, or after the record names its
//! copy without the peer's. (2) A standby makes the promise of a newer term durable *before* it claims the record, and takes nothing of an
//! older term afterwards. (3) It claims from a record that counts its copy in sync, at the revision it has read. So of "exclude the peer"
//! and "claim" only one succeeds, and what was acknowledged before is in the copy that is promoted.
//! (4) While a change of the record is in doubt, nothing is decided that depends on it.
//!
//! Layer B, the lease, keeps a primary that was forgotten from answering reads: [`lease`].
//!
//! # How it talks to the volume
//!
//! ```text
//!  take over:  Promise(term) -> view.promised -> claim the record -> TakeOver(term) -> view.role = primary
//!  degrade:    view.exclusion = n (writes wait, nothing minted) -> record without the peer -> Exclude(n) -> generation durable -> alone
//!  readmit:    view.peer_in_sync (new writes wait for the peer again) -> record with the peer
//!  hand over:  Drain -> view.role = secondary -> record without a writer -> the peer takes over
//!  superseded: StandDown -> view.role = secondary, outdated
//! ```
//! An exclusion has a number of its own, and the volume mints only when it is allowed. So a primary that dies while it waits has minted nothing
//! and does not come back as a fork; a peer that returns while it waits is greeted as usual, and when it is in sync again the volume
//! withdraws the exclusion. An `Exclude` that comes late carries an old number and is ignored. If it comes in time, and the peer is being
//! greeted, the volume drops that link, mints, and greets again.

mod beats;
mod book;
pub mod config;
pub mod decision;
pub mod detector;
pub mod history;
pub mod io;
pub mod lease;
mod plan;
pub mod record;
pub mod rule;
mod stage;
pub mod view;

use std::collections::VecDeque;
use std::time::Duration;

use crate::condition::{DiskState, Role};
use crate::failover::book::{Book, News, State};
use crate::failover::config::{Arbiter, Config};
use crate::failover::decision::{Verdict, decide};
use crate::failover::detector::Sentry;
use crate::failover::history::{Cause, Episode, History};
use crate::failover::io::{Ask, Beat, Directive, Effect, Input, ProofWord, VolumeView};
use crate::failover::lease::{Lease, Patience};
pub use crate::failover::plan::{Plan, Question};
use crate::failover::rule::Rule;
use crate::failover::stage::Stage;
use crate::failover::view::{Proof, Recorded, View, Wish, Writer};
use crate::units::{Moment, Term, Ticket};

/// Effects of one or more steps, in the order they were decided.
pub type Effects = Vec<Effect>;

/// A fence or an agent that was asked, or what it said.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
struct Inquiry {
    ask: u64,
    at: Moment,
    proof: Proof,
}

/// Failover of one volume on one node.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub struct Failover {
    config: Config,
    book: Book,
    sentry: Sentry,
    lease: Lease,
    patience: Patience,
    stage: Stage,
    volume: VolumeView,
    /// The volume has said how it is.
    attached: bool,
    /// The term at which the record names this node, taken in this life.
    holding: Option<Term>,
    inquiry: Option<Inquiry>,
    next_proof: u64,
    wish: Option<(Ticket, Ask)>,
    carrier: bool,
    gateway: Option<bool>,
    /// The time of day, and when it was told.
    day: Option<(Moment, u64)>,
    /// Changes of the writer where no record keeps them.
    past: History,
    started: Moment,
    /// The deadline that was last asked for.
    due: Moment,
    /// When this node last overslept.
    overslept: Option<Moment>,
    met: bool,
    in_sync_since: Option<Moment>,
    role_since: Moment,
    /// When the record's renewals were last seen to change by another's hand.
    renewal_seen: Option<Moment>,
    /// When the peer became silent on every path.
    silent_since: Option<Moment>,
    /// When the record was last seen without a writer for the first time.
    left_since: Option<Moment>,
    /// The peer's last beat, and when it came.
    heard: Option<(Moment, Beat)>,
    /// The peer is outdated, and said so after it was asked.
    peer_outdated: bool,
    /// The number of the beat that asked for it first.
    outdate_asked: Option<u64>,
    /// The peer asked this node to be outdated.
    outdate_wanted: bool,
    /// What was heard last on each path: incarnation, number, when.
    echoes: Vec<Option<(u64, u64, Moment)>>,
    /// When the beats were sent that an answer may still name.
    sent: VecDeque<(u64, Moment)>,
    beat_due: Moment,
    probe_due: Moment,
    /// Say "look" in the next beat.
    nudge: bool,
    directed: Option<(Directive, Moment)>,
    told: Option<Rule>,
    /// The lease as last told.
    lease_told: Moment,
    retry_at: Moment,
    remembered: Term,
    /// Read the record as soon as possible.
    read_now: bool,
    /// When the writer's last own swap was confirmed or tried.
    renewed: Option<Moment>,
}

impl Failover {
    /// A node that starts. `past` and `floor` are what [`Effect::Happened`] and [`Effect::Remember`] told before.
    #[must_use]
    pub fn new(now: Moment, config: Config, past: History, floor: Term) -> Self {
        let timing = config.timing;
        let ids = (config.cluster, config.volume);
        Self {
            book: Book::new(ids, (config.instance, config.incarnation), timing.arbiter_timeout, floor),
            sentry: Sentry::new(timing.detector, config.paths),
            lease: Lease::new(timing.lease),
            patience: Patience::starting(now, timing.claim_wait()),
            stage: Stage::Rest,
            volume: VolumeView::default(),
            attached: false,
            holding: None,
            inquiry: None,
            next_proof: 1,
            wish: None,
            carrier: true,
            gateway: None,
            day: None,
            past,
            started: now,
            due: now,
            overslept: None,
            met: false,
            in_sync_since: None,
            role_since: now,
            renewal_seen: None,
            silent_since: None,
            left_since: None,
            heard: None,
            peer_outdated: false,
            outdate_asked: None,
            outdate_wanted: false,
            echoes: vec![None; config.paths],
            sent: VecDeque::new(),
            beat_due: now,
            probe_due: now,
            nudge: false,
            directed: None,
            told: None,
            lease_told: Moment(0),
            retry_at: now,
            remembered: floor,
            read_now: true,
            renewed: None,
            config,
        }
    }

    /// One input in, its effects out.
    pub fn step(&mut self, now: Moment, input: Input, out: &mut Effects) {
        if self.sentry.woke(now, self.due) {
            self.overslept = Some(now);
        }
        self.book.tick(now);
        match input {
            Input::Volume(view) => self.volume_changed(now, view, out),
            Input::VolumeRefused { why } => self.volume_refused(now, &why, out),
            Input::Beat { path, beat } => self.beat_heard(now, path, beat, out),
            Input::Arbiter { ask, answer } => {
                let news = self.book.answer(now, ask, answer);
                self.record_news(now, news, out);
            }
            Input::RecordSeen { revision, text } => {
                let news = self.book.seen(revision, text);
                self.record_news(now, news, out);
            }
            Input::Proof { ask, word } => self.proved(now, ask, word),
            Input::Surroundings { carrier, gateway } => (self.carrier, self.gateway) = (carrier, gateway),
            Input::TimeOfDay { unix_ms } => self.day = Some((now, unix_ms)),
            Input::ClockDoubted => {
                self.lease.void(now);
                self.overslept = Some(now);
            }
            Input::Operator { ticket, ask } => self.asked(ticket, ask, out),
            Input::Wake => {}
        }
        self.settle(now, out);
        self.due = self.next_deadline(now);
    }

    /// What follows from how things are; nothing in here waits for an edge that could be missed.
    fn settle(&mut self, now: Moment, out: &mut Effects) {
        self.notice(now);
        if self.attached {
            self.advance(now, out);
        }
        self.keep_record(now, out);
        self.keep_lease(now, out);
        self.keep_beating(now, out);
    }

    /// Updates what is measured in time.
    fn notice(&mut self, now: Moment) {
        use crate::failover::detector::Suspicion;
        let silent = self.sentry.suspicion(now) >= Suspicion::Silent;
        self.silent_since = if silent { self.silent_since.or(Some(now)) } else { None };
        let left = self.book.record().is_some_and(|record| record.writer.is_none());
        self.left_since = if left { self.left_since.or(Some(now)) } else { None };
        let asked_anew = |inquiry: &mut Inquiry| {
            let failed = matches!(inquiry.proof, Proof::Failed | Proof::Alive);
            failed && now.since(inquiry.at) >= self.config.timing.proof_again
        };
        self.inquiry.take_if(asked_anew);
        // What was proved of the peer holds until something is heard of it again.
        if self.volume.link || (!silent && self.volume.exclusion.is_none() && self.config.arbiter == Arbiter::Fence) {
            self.inquiry = None;
        }
    }

    fn volume_changed(&mut self, now: Moment, view: VolumeView, out: &mut Effects) {
        let old = std::mem::replace(&mut self.volume, view);
        self.attached = true;
        if old.role != view.role {
            self.role_since = now;
        }
        if view.peer_in_sync {
            self.met = true;
            self.in_sync_since = self.in_sync_since.or(Some(now));
        } else if view.link || view.disk != DiskState::UpToDate {
            self.in_sync_since = None;
        }
        self.met &= view.disk == DiskState::UpToDate;
        if view.exclusion != old.exclusion {
            (self.peer_outdated, self.outdate_asked) = (false, None);
            self.inquiry = None;
            if view.exclusion.is_some() {
                self.beat_due = now;
            }
        }
        if view.link || view.disk != DiskState::UpToDate {
            self.outdate_wanted = false;
        }
        self.stage_sees_volume(now, out);
    }

    fn record_news(&mut self, now: Moment, news: News, out: &mut Effects) {
        if news == News::Nothing {
            return;
        }
        if let News::Swapped(sent) = news {
            self.lease.renewed(sent);
        }
        let mine = self.book.record().is_some_and(|record| record.writer == Some(self.config.instance));
        if !mine {
            // A role that was given up is taken by whoever hears of it.
            self.nudge |= matches!(news, News::Swapped(_));
            // A sign of life of whoever writes, or of somebody who became writer.
            self.patience.again(now);
            self.renewal_seen = Some(now);
            self.inquiry = None;
        }
        if self.book.floor() > self.remembered {
            self.remembered = self.book.floor();
            out.push(Effect::Remember { term: self.remembered });
        }
    }

    fn proved(&mut self, now: Moment, ask: u64, word: ProofWord) {
        let Some(inquiry) = self.inquiry.as_mut().filter(|inquiry| inquiry.ask == ask) else { return };
        inquiry.at = now;
        inquiry.proof = match word {
            ProofWord::Off => Proof::Off,
            ProofWord::PeerOutdated => Proof::Outdated,
            ProofWord::PeerPrimary => Proof::Primary,
            ProofWord::DaemonDead { in_sync: true } => Proof::Dead,
            ProofWord::DaemonDead { in_sync: false } => Proof::DeadAhead,
            ProofWord::DaemonAlive => Proof::Alive,
            ProofWord::Nothing => Proof::Failed,
        };
    }

    fn asked(&mut self, ticket: Ticket, ask: Ask, out: &mut Effects) {
        if self.wish.is_some() || !matches!(self.stage, Stage::Rest) {
            out.push(Effect::Answer { ticket, result: Err(Rule::Busy) });
            return;
        }
        let by_record = self.config.arbiter == Arbiter::Etcd;
        match ask {
            Ask::Promote { force, peer_is_down } if !by_record => {
                out.push(Effect::Direct(Directive::Promote { ticket, force, peer_is_down }));
            }
            Ask::HandOver if !by_record => out.push(Effect::Direct(Directive::Switchover { ticket })),
            Ask::Maintenance { .. } if !by_record => {
                out.push(Effect::Answer { ticket, result: Err(Rule::NoRecord) });
            }
            _ => self.wish = Some((ticket, ask)),
        }
    }

    /// Everything that is known now.
    #[must_use]
    pub fn view(&self, now: Moment) -> View {
        let timing = &self.config.timing;
        let record = self.book.record();
        let heard = self.heard.filter(|(at, _)| now.since(*at) <= timing.detector.cap).map(|(_, beat)| beat);
        let fresh = timing.arbiter_timeout + timing.renew * 2;
        let (wish, vouched) = match self.wish {
            Some((_, Ask::Promote { force, peer_is_down })) => {
                (if force { Wish::Force } else { Wish::Promote }, peer_is_down)
            }
            Some((_, Ask::HandOver)) => (Wish::HandOver, false),
            Some((_, Ask::Maintenance { .. })) | None => (Wish::None, false),
        };
        let past = record.map_or(&self.past, |record| &record.history);
        View {
            arbiter: self.config.arbiter,
            role: self.volume.role,
            disk: self.volume.disk,
            disk_stalled: self.volume.disk_stalled,
            busy: !self.volume.idle || now < self.retry_at,
            met: self.met,
            overslept: self.overslept.is_some_and(|at| now.since(at) < timing.detector.floor),
            carrier: self.carrier,
            gateway: self.gateway.filter(|_| self.config.gateway),
            automatic: self.config.automatic,
            accept_split_brain: self.config.accept_split_brain,
            link: self.volume.link,
            peer: self.sentry.suspicion(now),
            deaf: self.sentry.deaf(now),
            peer_stalled: heard.is_some_and(|beat| beat.disk_stalled),
            peer_primary: heard.is_some_and(|beat| beat.role == Role::Primary),
            overruled: heard.is_some_and(|beat| beat.role == Role::Primary && beat.term > self.volume.term),
            peer_in_sync: self.volume.peer_in_sync,
            peer_outdated: self.peer_outdated,
            waits: self.volume.exclusion.is_some(),
            answers: self.book.answers(now, fresh),
            limbo: self.book.in_doubt(),
            record: self.recorded(),
            me_recorded: self.book.may_count(self.config.instance),
            peer_recorded: self.book.may_count_others(),
            renewing: self.renewal_seen.is_some_and(|at| now.since(at) <= timing.renew * 2),
            claim_open: now >= self.patience.over_at(),
            my_turn: self.left_since.is_some_and(|at| now.since(at) >= timing.hand_over),
            maintenance: record.is_some_and(|record| record.maintenance),
            spent: past.automatic_within_an_hour(self.unix_ms(now)) >= self.config.automatic_per_hour,
            dwelt: self.dwelt(now),
            agent: self.config.agent || self.config.arbiter == Arbiter::Agent,
            proof: self.inquiry.map_or(Proof::None, |inquiry| inquiry.proof),
            fence_turn: self.silent_since.is_some_and(|at| now.since(at) >= timing.fence_delay),
            wish,
            vouched,
        }
    }

    fn recorded(&self) -> Recorded {
        match self.book.state() {
            None => Recorded::Unread,
            Some(State::Foreign) => Recorded::Foreign,
            Some(_) if self.book.rolled_back() => Recorded::RolledBack,
            Some(State::Missing) => Recorded::Missing,
            Some(State::Known(record)) => Recorded::Known(match (record.writer, record.left_by) {
                (Some(writer), _) if writer == self.config.instance && self.holding == Some(record.term) => Writer::Me,
                (Some(writer), _) if writer == self.config.instance => Writer::MeBefore,
                (Some(_), _) => Writer::Other,
                (None, Some(by)) if by == self.config.instance => Writer::LeftByMe,
                (None, _) => Writer::LeftByPeer,
            }),
        }
    }

    fn dwelt(&self, now: Moment) -> bool {
        let timing = &self.config.timing;
        let last = self.history().iter().rev().find(|episode| episode.cause == Cause::Automatic);
        let unix = self.unix_ms(now);
        let rested = last.is_none_or(|e| Duration::from_millis(unix.saturating_sub(e.at_unix_ms)) >= timing.dwell);
        // A copy that was in sync for long enough stays eligible when its link is lost; another becomes so in time.
        let since = self.in_sync_since.unwrap_or(self.started);
        rested && now.since(since) >= timing.settled
    }

    fn unix_ms(&self, now: Moment) -> u64 {
        let elapsed = |since| u64::try_from(now.since(since).as_millis()).unwrap_or(u64::MAX);
        self.day.map_or(0, |(at, unix_ms)| unix_ms.saturating_add(elapsed(at)))
    }

    /// When the machine wants to be woken, if nothing else happens before.
    #[must_use]
    pub fn next_deadline(&self, now: Moment) -> Moment {
        let timing = &self.config.timing;
        let mut next = self.beat_due;
        let mut at = |moment: Moment| {
            if moment > now {
                next = next.min(moment);
            }
        };
        at(self.probe_due);
        at(self.retry_at);
        at(self.patience.over_at());
        at(self.book.not_before());
        at(self.lease.until());
        at(self.renewed.map_or(now, |at| at.after(timing.renew)));
        let directed = self.directed.map(|(_, since)| since.after(io::DIRECT_AGAIN));
        let proof = self.inquiry.map(|inquiry| inquiry.at.after(timing.proof_again));
        let fence = self.silent_since.map(|since| since.after(timing.fence_delay));
        let turn = self.left_since.map(|since| since.after(timing.hand_over));
        let poll = self.book.answered().map(|answered| answered.after(timing.renew / 4));
        let stage = self.stage.deadline();
        for moment in [self.sentry.deadline(now), self.book.deadline(), directed, proof, fence, turn, poll, stage]
            .into_iter()
            .flatten()
        {
            at(moment);
        }
        next
    }

    /// The last changes of the writer, oldest first.
    #[must_use]
    pub fn history(&self) -> &[Episode] {
        self.book.record().map_or(&self.past, |record| &record.history).episodes()
    }

    /// Until when this node may answer clients.
    #[must_use]
    pub fn lease_until(&self) -> Moment {
        self.lease_told
    }

    /// The rule that applies now, for `status`.
    #[must_use]
    pub fn rule(&self, now: Moment) -> (Rule, Verdict) {
        decide(&self.view(now))
    }
}
