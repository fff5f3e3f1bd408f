//! What the two nodes say to each other, on every path.
//!
//! A beat in turn is numbered by the time since the start, so that a sender that paused skips numbers. A beat out of turn answers a probe
//! or brings news; it proves life only when it names a beat of the receiver that was sent a moment ago.

use crate::condition::{DiskState, Role};
use crate::failover::config::Arbiter;
use crate::failover::detector::Suspicion;
use crate::failover::io::{Beat, Echo, Effect};
use crate::failover::stage::Stage;
use crate::failover::view::{Recorded, Writer};
use crate::failover::{Effects, Failover};
use crate::units::Moment;

/// How many sent beats an answer may still name.
const SENT_MAX: usize = 256;

impl Failover {
    fn sequence(&self, now: Moment) -> u64 {
        let interval = self.config.timing.detector.interval.as_nanos().max(1);
        u64::try_from(now.since(self.started).as_nanos() / interval).unwrap_or(u64::MAX - 1) + 1
    }

    /// When the beat was sent that an echo names, if it is one of this life.
    fn sent_at(&self, echo: Option<Echo>) -> Option<Moment> {
        let echo = echo.filter(|echo| echo.incarnation == self.config.incarnation)?;
        self.sent.iter().rev().find(|(number, _)| *number == echo.sequence).map(|(_, at)| *at)
    }

    /// True when this node will keep to what it says with `patient`: it claims only from another's record, and only after its wait.
    fn is_patient(&self) -> bool {
        self.volume.role == Role::Secondary
            && self.stage == Stage::Rest
            && self.recorded() == Recorded::Known(Writer::Other)
            && !self.book.in_doubt()
    }

    fn beat(&mut self, now: Moment, path: usize, extra: bool, probe: bool) -> Beat {
        let echo = self.echoes[path].map(|(incarnation, sequence, at)| Echo {
            incarnation,
            sequence,
            age_ms: u64::try_from(now.since(at).as_millis()).unwrap_or(u64::MAX),
        });
        let patient = self.is_patient() && echo.is_some();
        if let (true, Some((_, _, at))) = (patient, self.echoes[path]) {
            self.patience.again(at);
        }
        let sequence = self.sent.back().map_or(1, |(number, _)| *number);
        let outdate = self.volume.exclusion.is_some() && self.config.arbiter != Arbiter::Etcd;
        if outdate {
            self.outdate_asked.get_or_insert(sequence);
        }
        Beat {
            incarnation: self.config.incarnation,
            sequence,
            extra,
            echo,
            patient,
            probe,
            look: matches!(self.stage, Stage::Offering { .. }) || self.recorded() == Recorded::Known(Writer::LeftByMe),
            outdate,
            instance: self.config.instance,
            role: self.volume.role,
            disk: self.volume.disk,
            disk_stalled: self.volume.disk_stalled,
            term: self.volume.term,
        }
    }

    fn say(&mut self, now: Moment, extra: bool, probe: bool, out: &mut Effects) {
        for path in 0..self.config.paths {
            let beat = self.beat(now, path, extra, probe);
            out.push(Effect::Beat { path, beat });
        }
    }

    /// Sends what is due: beats in turn, probes of a peer that is late, news.
    pub(super) fn keep_beating(&mut self, now: Moment, out: &mut Effects) {
        let interval = self.config.timing.detector.interval;
        if now >= self.beat_due {
            let sequence = self.sequence(now);
            if self.sent.back().is_none_or(|(last, _)| *last < sequence) {
                self.sent.push_back((sequence, now));
                if self.sent.len() > SENT_MAX {
                    self.sent.pop_front();
                }
                self.say(now, false, false, out);
            } else {
                self.say(now, true, false, out);
            }
            let nanos = u64::try_from(interval.as_nanos()).unwrap_or(u64::MAX);
            // The next turn on the grid of the start.
            self.beat_due = Moment(self.started.0.saturating_add(sequence.saturating_mul(nanos)));
            self.nudge = false;
        }
        let late = self.sentry.suspicion(now) == Suspicion::Late;
        if late && now >= self.probe_due {
            self.say(now, true, true, out);
            self.probe_due = now.after(interval / 4);
        } else if self.nudge && !self.sent.is_empty() {
            self.say(now, true, false, out);
            self.nudge = false;
        }
    }

    /// A beat came.
    pub(super) fn beat_heard(&mut self, now: Moment, path: usize, beat: Beat, out: &mut Effects) {
        if path >= self.config.paths || beat.instance == self.config.instance {
            return;
        }
        let sent = self.sent_at(beat.echo);
        let hears_us = sent.is_some_and(|at| now.since(at) <= self.config.timing.detector.cap);
        let newest = self.sentry.last(path);
        if beat.extra {
            let recent = sent.is_some_and(|at| now.since(at) <= self.config.timing.detector.floor);
            let ordered = newest.is_some_and(|(life, number)| life == beat.incarnation && number <= beat.sequence);
            if !recent || !ordered {
                return;
            }
            self.sentry.alive(now, path);
        } else if !self.sentry.hear(now, path, beat.incarnation, beat.sequence, hears_us) {
            return;
        }
        if self.heard.is_some_and(|(_, last)| last.incarnation != beat.incarnation) {
            // What was proved of its last life says nothing about this one.
            self.inquiry = None;
        }
        self.echoes[path] = Some((beat.incarnation, beat.sequence, now));
        self.heard = Some((now, beat));
        // Two primaries: the record says which of them is one.
        self.read_now |= beat.look || (beat.role == Role::Primary && self.volume.role == Role::Primary);
        self.learn_from(&beat, sent);
        if beat.probe && !self.sent.is_empty() {
            let answer = self.beat(now, path, true, false);
            out.push(Effect::Beat { path, beat: answer });
        }
    }

    fn learn_from(&mut self, beat: &Beat, sent: Option<Moment>) {
        let counted = self.book.record().is_some_and(|record| record.in_sync.contains(&beat.instance));
        if let (Some(sent), true, true, Role::Secondary) = (sent, beat.patient, counted, beat.role)
            && self.holding.is_some()
            && beat.term <= self.volume.term
        {
            // The only other copy that could claim has promised to wait.
            self.lease.renewed(sent);
        }
        if let (Some(asked), Some(echo), DiskState::Outdated) = (self.outdate_asked, beat.echo, beat.disk) {
            let answers = echo.incarnation == self.config.incarnation && echo.sequence >= asked;
            self.peer_outdated |= answers && beat.role == Role::Secondary;
        }
        let mine = self.volume.role == Role::Secondary && !self.volume.link && self.stage == Stage::Rest;
        let primary = beat.role == Role::Primary && beat.term >= self.volume.term;
        if beat.outdate && mine && primary && self.volume.disk == DiskState::UpToDate {
            self.outdate_wanted = self.inquiry.is_none();
        }
    }
}
