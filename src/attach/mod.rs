//! Rank 2, machine: follows a volume's primary on behalf of one device, so that its user notices no failover.
//!
//! ```text
//!            ┌──────────── Lost ────────────┐
//!            ▼                              │
//!  Seeking ──┴─ Offered, judged good ──► Serving ── Offered with a newer term, judged good ──► Serving
//!     │  ▲
//!     │  └─ Offered, in doubt: nothing is sent, nothing is answered (or, if so wished, everything is failed)
//! ```
//!
//! The machine holds every open request (`table`) and sends all of them again to the next primary, if that one holds whatever was
//! acknowledged (module `judge`). It sees no byte of data, no socket and no clock. It must never know who dials, and how
//! requests look on the wire.

pub mod judge;
mod table;

use std::time::Duration;

use self::judge::{Claim, Judgement, judge};
use self::table::{Open, Table};
use crate::nbd::Standing;
use crate::nbd::constants::{EIO, ESHUTDOWN};
use crate::units::{ByteRange, Moment, Term};

/// Without an answer for so long, another primary is looked for while this one is still waited for.
pub const PATIENCE: Duration = Duration::from_secs(1);
/// Without an answer for so long, the connection is made anew: it may be dead without a word.
pub const RENEWAL: Duration = Duration::from_secs(15);

/// What a request does.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Class {
    /// Reads, or asks for reading ahead.
    Read,
    /// Writes, zeroes, trims.
    Change,
    /// Makes stable what was answered.
    Flush,
}

/// What to do when acknowledged data may be missing.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum OnDoubt {
    /// Answer nothing until an operator has decided.
    #[default]
    Hold,
    /// Answer everything with an error, for good.
    Fail,
}

/// What the machine starts with.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Setup {
    /// The cluster's name in the configuration.
    pub cluster: String,
    /// What to do in doubt.
    pub on_doubt: OnDoubt,
    /// What an earlier life was acknowledged under, and the size of its device in bytes.
    pub remembered: Option<(Standing, u64)>,
}

/// What the machine hears. Connections and clients have numbers that are given once.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Input {
    /// A client's request, validated. Numbers grow.
    Asked {
        /// Its name from here on.
        number: u64,
        /// Whose.
        client: u64,
        /// What it does.
        class: Class,
        /// Where; empty for a flush.
        range: ByteRange,
        /// The change must be stable when it is answered.
        fua: bool,
    },
    /// A client's connection ended.
    ClientGone {
        /// Whose.
        client: u64,
    },
    /// A node serves the volume to a new connection. Answered by [`Effect::Take`] or [`Effect::Close`].
    Offered {
        /// The connection.
        connection: u64,
        /// What the node says that it serves.
        standing: Box<Standing>,
        /// How much, in bytes.
        size: u64,
    },
    /// An answer came.
    Replied {
        /// On which connection.
        connection: u64,
        /// To which request.
        number: u64,
        /// 0, or NBD's error value.
        error: u32,
    },
    /// A connection ended.
    Lost {
        /// Which.
        connection: u64,
        /// Why, for people.
        why: String,
    },
    /// The deadline has come.
    Wake,
}

/// What the machine wants done, in this order.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Effect {
    /// Look for a primary; with `above`, only for one of a newer term.
    Seek {
        /// The term of the primary that there is.
        above: Option<Term>,
    },
    /// Look no more.
    Rest,
    /// The offered connection is the one in use.
    Take {
        /// Which.
        connection: u64,
    },
    /// Close a connection. Nothing that still comes from it counts.
    Close {
        /// Which.
        connection: u64,
        /// Why.
        why: String,
    },
    /// Send a request.
    Send {
        /// Where.
        connection: u64,
        /// Which.
        number: u64,
    },
    /// Make durable what [`Follower::proven`] says, before anything that follows.
    Remember,
    /// Answer a request and forget it.
    Answer {
        /// Which.
        number: u64,
        /// 0, or NBD's error value.
        error: u32,
    },
    /// Forget a request that nobody waits for.
    Forget {
        /// Which.
        number: u64,
    },
    /// Something that people should know.
    Report(Report),
}

/// What happened.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Report {
    /// A primary is followed.
    Following {
        /// What it says of itself.
        standing: Box<Standing>,
        /// Open requests that were sent again.
        replayed: usize,
        /// Since the last one was lost; none for the first.
        gap: Option<Duration>,
    },
    /// The primary is lost.
    Lost {
        /// Why.
        why: String,
        /// Open requests, which wait.
        open: usize,
    },
    /// The primary has not answered for a while; another is looked for.
    Silent,
    /// A primary is there that may lack acknowledged data.
    Doubt {
        /// Why.
        why: String,
    },
}

/// What the machine does at present.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Stage<'a> {
    /// No primary is in use.
    Seeking {
        /// Why the last one that offered itself was not taken, if acknowledged data may be missing there.
        doubt: Option<&'a str>,
    },
    /// This one is in use.
    Serving(&'a Standing),
    /// Everything is answered with an error.
    Failed(&'a str),
}

#[derive(Debug)]
enum Place {
    Seeking { since: Option<Moment> },
    Serving { connection: u64, standing: Box<Standing>, heard: Moment, looking: bool },
    Failed { why: String },
}

/// One device that follows a volume.
#[derive(Debug)]
pub struct Follower {
    cluster: String,
    on_doubt: OnDoubt,
    proven: Option<Standing>,
    size: Option<u64>,
    place: Place,
    doubt: Option<String>,
    table: Table,
    /// Changes without FUA that were answered, and how many of them a flush has covered.
    answered: u64,
    covered: u64,
}

impl Follower {
    /// A follower that looks for its primary; the first effects are appended to `out`.
    #[must_use]
    pub fn new(setup: Setup, out: &mut Vec<Effect>) -> Self {
        out.push(Effect::Seek { above: None });
        let (proven, size) = setup.remembered.unzip();
        // What was not covered by a flush in an earlier life is not known.
        let answered = u64::from(proven.is_some());
        Self {
            cluster: setup.cluster,
            on_doubt: setup.on_doubt,
            proven,
            size,
            place: Place::Seeking { since: None },
            doubt: None,
            table: Table::default(),
            answered,
            covered: 0,
        }
    }

    /// Takes one input; what is to be done is appended to `out`.
    ///
    /// # Panics
    /// When a request's number comes twice.
    pub fn step(&mut self, now: Moment, input: Input, out: &mut Vec<Effect>) {
        match input {
            Input::Asked { number, client, class, range, fua } => {
                if let Place::Failed { .. } = self.place {
                    return out.push(Effect::Answer { number, error: EIO });
                }
                let open = Open { client, class, range, fua, sent: false, orphan: false, covers: 0 };
                self.table.insert(number, open);
                self.send(now, out);
            }
            Input::ClientGone { client } => {
                out.extend(self.table.abandon(client).into_iter().map(|number| Effect::Forget { number }));
                self.send(now, out);
            }
            Input::Offered { connection, standing, size } => self.offered(now, connection, standing, size, out),
            Input::Replied { connection, number, error } => self.replied(now, connection, number, error, out),
            Input::Lost { connection, why } => {
                if self.connection() == Some(connection) {
                    self.lost(now, why, out);
                }
            }
            Input::Wake => self.wake(now, out),
        }
    }

    /// When [`Input::Wake`] is due, if nothing else happens before.
    #[must_use]
    pub fn next_deadline(&self) -> Option<Moment> {
        match self.place {
            Place::Serving { heard, looking, .. } if self.table.sent() > 0 => {
                Some(heard.after(if looking { RENEWAL } else { PATIENCE }))
            }
            _ => None,
        }
    }

    /// The standing of the last acknowledgement, and the size of the device in bytes.
    #[must_use]
    pub fn proven(&self) -> Option<(&Standing, u64)> {
        self.proven.as_ref().zip(self.size)
    }

    /// What it does at present.
    #[must_use]
    pub fn stage(&self) -> Stage<'_> {
        match &self.place {
            Place::Seeking { .. } => Stage::Seeking { doubt: self.doubt.as_deref() },
            Place::Serving { standing, .. } => Stage::Serving(standing),
            Place::Failed { why } => Stage::Failed(why),
        }
    }

    /// Open requests.
    #[must_use]
    pub fn open(&self) -> usize {
        self.table.len()
    }

    fn connection(&self) -> Option<u64> {
        match self.place {
            Place::Serving { connection, .. } => Some(connection),
            _ => None,
        }
    }

    /// Sends whatever may be sent.
    fn send(&mut self, now: Moment, out: &mut Vec<Effect>) {
        let Place::Serving { connection, heard, .. } = &mut self.place else { return };
        if self.table.sent() == 0 {
            // Silence counts from the first question on.
            *heard = now;
        }
        while let Some(number) = self.table.next(self.answered) {
            out.push(Effect::Send { connection: *connection, number });
        }
    }

    fn offered(&mut self, now: Moment, connection: u64, standing: Box<Standing>, size: u64, out: &mut Vec<Effect>) {
        let current = match &self.place {
            Place::Failed { why } => {
                let why = why.clone();
                return out.push(Effect::Close { connection, why });
            }
            Place::Serving { standing: present, .. } if standing.term <= present.term => {
                let why = format!("it is not newer than node {}, which is in use", present.node);
                return out.push(Effect::Close { connection, why });
            }
            Place::Serving { connection, .. } => Some(*connection),
            Place::Seeking { .. } => None,
        };
        let exposed = self.answered > self.covered;
        let claim = Claim { proven: self.proven.as_ref(), size: self.size, exposed, cluster: &self.cluster };
        match judge(claim, &standing, size) {
            Judgement::Good => {}
            Judgement::Stale(why) => return out.push(Effect::Close { connection, why }),
            Judgement::Doubt(why) => {
                out.push(Effect::Close { connection, why: why.clone() });
                return self.in_doubt(why, out);
            }
        }
        if let Some(old) = current {
            // Closed before anything is sent to the new one: whatever the old one still says is not heard any more.
            let why = format!("node {} is primary under the newer term {}", standing.node, standing.term);
            out.push(Effect::Close { connection: old, why: why.clone() });
            self.lost(now, why, out);
        }
        let gap = match self.place {
            Place::Seeking { since } => since.map(|since| now.since(since)),
            Place::Serving { .. } | Place::Failed { .. } => None,
        };
        self.doubt = None;
        self.size = Some(size);
        let report = Report::Following { standing: standing.clone(), replayed: self.table.len(), gap };
        self.place = Place::Serving { connection, standing, heard: now, looking: false };
        out.extend([Effect::Rest, Effect::Take { connection }, Effect::Report(report)]);
        self.send(now, out);
    }

    fn in_doubt(&mut self, why: String, out: &mut Vec<Effect>) {
        if self.doubt.as_ref() != Some(&why) {
            out.push(Effect::Report(Report::Doubt { why: why.clone() }));
        }
        self.doubt = Some(why.clone());
        // With a primary that still serves there is nothing to fail.
        if self.on_doubt == OnDoubt::Fail && self.connection().is_none() && self.proven.is_some() {
            out.push(Effect::Rest);
            self.place = Place::Failed { why };
            for (number, open) in self.table.drain() {
                out.push(if open.orphan { Effect::Forget { number } } else { Effect::Answer { number, error: EIO } });
            }
        }
    }

    fn replied(&mut self, now: Moment, from: u64, number: u64, error: u32, out: &mut Vec<Effect>) {
        let Place::Serving { connection, standing, heard, looking } = &mut self.place else { return };
        if *connection != from {
            return;
        }
        let why = if error == ESHUTDOWN {
            Some("the server is shutting down")
        } else if !self.table.is_sent(number) {
            Some("the server answered what it was not asked")
        } else {
            None
        };
        if let Some(why) = why {
            out.push(Effect::Close { connection: from, why: why.to_owned() });
            return self.lost(now, why.to_owned(), out);
        }
        *heard = now;
        if std::mem::take(looking) {
            out.push(Effect::Rest);
        }
        let open = self.table.remove(number).expect("what is sent is open");
        if error == 0 && open.class != Class::Read {
            if self.proven.as_ref() != Some(&**standing) {
                self.proven = Some((**standing).clone());
                out.push(Effect::Remember);
            }
            match open.class {
                Class::Change if !open.fua => self.answered += 1,
                Class::Flush => self.covered = self.covered.max(open.covers),
                _ => {}
            }
        }
        out.push(if open.orphan { Effect::Forget { number } } else { Effect::Answer { number, error } });
        self.send(now, out);
    }

    fn lost(&mut self, now: Moment, why: String, out: &mut Vec<Effect>) {
        self.place = Place::Seeking { since: Some(now) };
        out.extend(self.table.rewind().into_iter().map(|number| Effect::Forget { number }));
        out.push(Effect::Report(Report::Lost { why, open: self.table.len() }));
        out.push(Effect::Seek { above: None });
    }

    fn wake(&mut self, now: Moment, out: &mut Vec<Effect>) {
        if self.next_deadline().is_none_or(|deadline| now < deadline) {
            return;
        }
        let Place::Serving { connection, standing, looking, .. } = &mut self.place else { return };
        if !*looking {
            *looking = true;
            out.push(Effect::Report(Report::Silent));
            out.push(Effect::Seek { above: Some(standing.term) });
            return;
        }
        let why = format!("no answer for {} s", RENEWAL.as_secs());
        out.push(Effect::Close { connection: *connection, why: why.clone() });
        self.lost(now, why, out);
    }
}

#[cfg(test)]
mod tests;
