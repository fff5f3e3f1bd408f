//! What this node knows of the record, and what of it is in doubt.
//!
//! One question is open at a time. A swap whose end is not known leaves a *doubt*: it may still happen as long as the record is at the
//! revision that it expects. Only a newer revision ends the doubt, so the way out is another swap at the same revision: of the two at
//! most one succeeds. What was meant with a swap does not matter afterwards; everything is decided from the record as it is.

use std::collections::BTreeSet;
use std::time::Duration;

use crate::failover::io::{ArbiterAnswer, ArbiterRequest, Effect};
use crate::failover::record::{Record, Revision, Stamp};
use crate::units::{ClusterId, DiskInstance, Moment, Term, VolumeId};

/// The record as last read.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub(crate) enum State {
    Missing,
    Foreign,
    Known(Box<Record>),
}

/// A question that waits for its answer.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
struct Open {
    ask: u64,
    sent: Moment,
    swap: Option<(Revision, Box<Record>)>,
}

/// Swaps that may still happen.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
struct Doubt {
    /// As long as the record is at this revision.
    expected: Revision,
    /// Copies that one of them would count in sync.
    counted: BTreeSet<DiskInstance>,
}

#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub(crate) struct Book {
    cluster: ClusterId,
    volume: VolumeId,
    me: DiskInstance,
    incarnation: u64,
    timeout: Duration,
    known: Option<(Revision, State)>,
    open: Option<Open>,
    doubt: Option<Doubt>,
    /// A swap was refused: the record is not what is known of it.
    stale: bool,
    answered: Option<Moment>,
    not_before: Moment,
    next_ask: u64,
    /// The record was seen at a newer revision, or term, than now.
    rolled_back: bool,
    floor: Term,
}

/// What an answer brought.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum News {
    Nothing,
    /// The record was read anew or changed.
    Record,
    /// The own swap, sent then, was done.
    Swapped(Moment),
}

impl Book {
    pub(crate) fn new(
        (cluster, volume): (ClusterId, VolumeId),
        (me, incarnation): (DiskInstance, u64),
        timeout: Duration,
        floor: Term,
    ) -> Self {
        Self {
            cluster,
            volume,
            me,
            incarnation,
            timeout,
            known: None,
            open: None,
            doubt: None,
            stale: false,
            answered: None,
            not_before: Moment(0),
            next_ask: 1,
            rolled_back: false,
            floor,
        }
    }

    pub(crate) fn state(&self) -> Option<&State> {
        self.known.as_ref().map(|(_, state)| state)
    }

    pub(crate) fn record(&self) -> Option<&Record> {
        match self.state()? {
            State::Known(record) => Some(record),
            State::Missing | State::Foreign => None,
        }
    }

    pub(crate) fn rolled_back(&self) -> bool {
        self.rolled_back
    }

    /// The highest term that the record is known to have had.
    pub(crate) fn floor(&self) -> Term {
        self.floor
    }

    /// A swap may still happen.
    pub(crate) fn in_doubt(&self) -> bool {
        self.doubt.is_some()
    }

    /// The record counts the copy in sync, or a swap of this node may yet make it so.
    pub(crate) fn may_count(&self, copy: DiskInstance) -> bool {
        let opened = self.open.as_ref().and_then(|open| open.swap.as_ref());
        self.record().is_some_and(|record| record.in_sync.contains(&copy))
            || opened.is_some_and(|(_, record)| record.in_sync.contains(&copy))
            || self.doubt.as_ref().is_some_and(|doubt| doubt.counted.contains(&copy))
    }

    /// The same, of any copy but this node's.
    pub(crate) fn may_count_others(&self) -> bool {
        let others = |set: &BTreeSet<DiskInstance>| set.iter().any(|&copy| copy != self.me);
        let opened = self.open.as_ref().and_then(|open| open.swap.as_ref());
        self.record().is_some_and(|record| others(&record.in_sync))
            || opened.is_some_and(|(_, record)| others(&record.in_sync))
            || self.doubt.as_ref().is_some_and(|doubt| others(&doubt.counted))
    }

    /// The record has to be read before it is swapped again.
    pub(crate) fn is_stale(&self) -> bool {
        self.stale || self.known.is_none()
    }

    /// Nothing is asked, and a question makes sense again.
    pub(crate) fn may_ask(&self, now: Moment) -> bool {
        self.open.is_none() && now >= self.not_before
    }

    /// The arbiter answered within `age`.
    pub(crate) fn answers(&self, now: Moment, age: Duration) -> bool {
        self.answered.is_some_and(|at| now.since(at) <= age)
    }

    pub(crate) fn answered(&self) -> Option<Moment> {
        self.answered
    }

    pub(crate) fn deadline(&self) -> Option<Moment> {
        self.open.as_ref().map(|open| open.sent.after(self.timeout))
    }

    pub(crate) fn not_before(&self) -> Moment {
        self.not_before
    }

    pub(crate) fn read(&mut self, now: Moment, out: &mut Vec<Effect>) {
        self.ask(now, None, ArbiterRequest::Read, out);
    }

    /// Writes the record in place of the known one.
    pub(crate) fn swap(&mut self, now: Moment, mut record: Record, out: &mut Vec<Effect>) {
        let expected = self.known.as_ref().map_or(Revision(0), |(revision, _)| *revision);
        record.stamp = Stamp { by: self.me, incarnation: self.incarnation, serial: self.next_ask };
        let text = record.encode();
        self.ask(now, Some((expected, Box::new(record))), ArbiterRequest::Swap { expected, text }, out);
    }

    fn ask(
        &mut self,
        now: Moment,
        swap: Option<(Revision, Box<Record>)>,
        request: ArbiterRequest,
        out: &mut Vec<Effect>,
    ) {
        assert!(self.open.is_none(), "one question at a time");
        let ask = self.next_ask;
        self.next_ask += 1;
        self.open = Some(Open { ask, sent: now, swap });
        out.push(Effect::Arbiter { ask, request });
    }

    /// Gives up on an answer that takes too long.
    pub(crate) fn tick(&mut self, now: Moment) {
        if self.deadline().is_some_and(|deadline| now >= deadline) {
            let open = self.open.take().expect("it has a deadline");
            self.lost(open);
        }
    }

    fn lost(&mut self, open: Open) {
        if let Some((expected, record)) = open.swap {
            let doubt = self.doubt.get_or_insert(Doubt { expected, counted: BTreeSet::new() });
            doubt.counted.extend(record.in_sync);
        }
    }

    pub(crate) fn answer(&mut self, now: Moment, ask: u64, answer: ArbiterAnswer) -> News {
        let Some(open) = self.open.take_if(|open| open.ask == ask) else { return News::Nothing };
        match answer {
            ArbiterAnswer::Unreachable | ArbiterAnswer::Unknown => {
                self.not_before = now.after(self.timeout / 4);
                if answer == ArbiterAnswer::Unknown {
                    self.lost(open);
                }
                News::Nothing
            }
            ArbiterAnswer::Refused => {
                self.answered = Some(now);
                // It was at another revision; which one, a read says.
                self.stale = true;
                News::Nothing
            }
            ArbiterAnswer::Swapped { revision } => {
                self.answered = Some(now);
                let Some((_, record)) = open.swap else { return News::Nothing };
                self.learn(revision, State::Known(record));
                News::Swapped(open.sent)
            }
            ArbiterAnswer::Is { revision, text } => {
                self.answered = Some(now);
                self.stale = false;
                self.read_done(revision, text)
            }
        }
    }

    /// The record, from a watch: it may be older than what a read has told.
    pub(crate) fn seen(&mut self, revision: Revision, text: Option<String>) -> News {
        if self.known.as_ref().is_some_and(|(known, _)| *known >= revision) {
            return News::Nothing;
        }
        self.read_done(revision, text)
    }

    fn read_done(&mut self, revision: Revision, text: Option<String>) -> News {
        if self.known.as_ref().is_some_and(|(known, _)| *known == revision) {
            return News::Nothing;
        }
        let state = match text.as_deref().map(Record::decode) {
            None => State::Missing,
            Some(Ok(record)) if record.belongs_to(self.cluster, self.volume).is_ok() => State::Known(Box::new(record)),
            Some(_) => State::Foreign,
        };
        self.learn(revision, state);
        News::Record
    }

    fn learn(&mut self, revision: Revision, state: State) {
        let known = self.known.as_ref().map_or(Revision(0), |(known, _)| *known);
        let term = match &state {
            State::Known(record) => record.term,
            State::Missing | State::Foreign => Term(0),
        };
        // An arbiter's revisions only grow, and so does the term; what falls was restored from a backup.
        self.rolled_back = state != State::Foreign && (revision < known || term < self.floor);
        self.floor = self.floor.max(term);
        self.doubt.take_if(|doubt| revision > doubt.expected);
        self.known = Some((revision, state));
    }

    /// An operator takes responsibility for a record that is older than it should be.
    pub(crate) fn accept_rollback(&mut self) {
        self.rolled_back = false;
        self.floor = self.record().map_or(Term(0), |record| record.term);
    }
}

/// A record of this volume with nobody in it yet.
pub(crate) fn blank(cluster: ClusterId, volume: VolumeId, me: DiskInstance) -> Record {
    Record {
        cluster,
        volume,
        writer: None,
        writer_name: String::new(),
        left_by: Some(me),
        term: Term(1),
        in_sync: BTreeSet::from([me]),
        renewals: 0,
        maintenance: false,
        stamp: Stamp::default(),
        history: crate::failover::history::History::default(),
    }
}
