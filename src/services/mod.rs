//! Rank 3, machine: what is started on the node that is primary and stopped on the one that is not, in order.
//!
//! Services are the rungs of a ladder: [`Services`] climbs it one step at a time when the node becomes primary, and comes down in reverse when it
//! ceases to be. How many rungs there should be is one number that follows from the role, the lease, and what operators want; everything else
//! follows from the difference to the rungs that there are.
//!
//! ```text
//!  primary, lease runs ........ all
//!  primary, lease is over ..... all below the first address: another node may be told to take the addresses
//!  not primary, at rest, or something could not be started ..... none
//! ```
//! - A service that does not start in its time is stopped with all below it. Then the role is handed back once, if the peer can take it;
//!   otherwise, and the next time, everything stays stopped until somebody looks.
//! - Before a role is given up in order everything is stopped (*rest*); a service that cannot be stopped forbids it, and what was stopped starts
//!   again. Where the role was taken away nothing can be forbidden: the others are stopped all the same, and somebody is told.
//! - What an earlier life of the daemon may have left running is not known: it is stopped before anything is started.
//!
//! It knows no process, no command and no address; and it must never know how a role is decided.

#[cfg(test)]
mod tests;

use std::collections::BTreeMap;
use std::time::Duration;

use crate::units::{Moment, Ticket};

/// Addresses are announced so long after they were brought up, or after the network was mended.
const ANNOUNCEMENTS_MS: &[u64] = &[0, 200, 400, 600, 800, 10_000, 20_000, 30_000, 40_000, 50_000, 60_000];
/// A role that was given away is not handed back within this time, and none is handed back twice.
const HAND_BACK_AGAIN: Duration = Duration::from_secs(3600);

/// One service, as far as its order and its times go.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Rung {
    /// It is an address: given up when the lease is over, and announced.
    pub address: bool,
    /// It must be started within this time.
    pub start_limit: Duration,
    /// It must be stopped within this time.
    pub stop_limit: Duration,
}

/// What is done to a service.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Action {
    /// Start it; done when it runs already.
    Start,
    /// Stop it; done when it does not run.
    Stop,
}

/// What the machine hears.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Input {
    /// The volume's role, at each change and as often as one likes.
    Role {
        /// This node is primary.
        primary: bool,
    },
    /// Until when this node may answer clients.
    Lease {
        /// The end.
        until: Moment,
    },
    /// A job has ended.
    Done {
        /// Which.
        job: u64,
        /// Why it failed, if it did.
        result: Result<(), String>,
    },
    /// Everything shall be stopped although the node is primary; answered by [`Effect::Rested`].
    Rest {
        /// Comes back in the answer.
        ticket: Ticket,
    },
    /// The rest is over, and what failed may be tried again.
    Release,
    /// The network was away and is back.
    Healed,
    /// The deadline has come.
    Wake,
}

/// What the machine wants done.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Effect {
    /// Start or stop a service; [`Input::Done`] follows. One at a time.
    Run {
        /// The number of the job.
        job: u64,
        /// Which service, counted from 0.
        service: usize,
        /// What.
        action: Action,
    },
    /// End a job with force. Its [`Input::Done`] still follows, soon.
    Kill {
        /// Which.
        job: u64,
    },
    /// Tell the network that an address is here.
    Announce {
        /// Which service.
        service: usize,
    },
    /// Everything is stopped, or cannot be.
    Rested {
        /// As asked.
        ticket: Ticket,
        /// Which service could not be stopped, and why.
        result: Result<(), String>,
    },
    /// Give the role to the peer, if that can take it.
    HandBack,
    /// One line in the log.
    Report {
        /// What it is about; none for all of them.
        service: Option<usize>,
        /// The sentence.
        text: String,
        /// Somebody should look.
        alarm: bool,
    },
}

/// How a service is.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum State {
    /// Stopped.
    Down,
    /// Being started.
    Starting,
    /// Started.
    Up,
    /// Being stopped.
    Stopping,
    /// It could not be started.
    Failed,
    /// It could not be stopped, and may run.
    Stuck,
    /// Left by an earlier life of the daemon: it may run.
    Unknown,
}

impl State {
    /// The word in `status`.
    #[must_use]
    pub fn word(self) -> &'static str {
        match self {
            Self::Down => "down",
            Self::Starting => "starting",
            Self::Up => "up",
            Self::Stopping => "stopping",
            Self::Failed => "failed",
            Self::Stuck => "stuck",
            Self::Unknown => "unknown",
        }
    }
}

/// What is under way.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
struct Job {
    number: u64,
    service: usize,
    action: Action,
    until: Moment,
    end: End,
}

/// How a job is to end.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum End {
    /// By itself.
    Own,
    /// It was killed for want of time.
    Late,
    /// It was killed because nobody wants it any more.
    Unwanted,
}

/// The services of one volume on one node.
#[derive(Debug)]
pub struct Services {
    rungs: Vec<Rung>,
    /// So many, counted from the first, may run.
    up: usize,
    /// What an earlier life left is being stopped.
    sweeping: bool,
    job: Option<Job>,
    jobs: u64,
    primary: bool,
    lease: Moment,
    /// Everything is kept stopped.
    rest: bool,
    waiting: Vec<Ticket>,
    failed: Option<(usize, String)>,
    /// What follows from the failure was told, or done.
    settled: bool,
    stuck: BTreeMap<usize, String>,
    /// When this node was primary last, or handed a role back.
    left: Option<Moment>,
    /// From when on announcements count, and how many were made.
    announcing: Option<(Moment, usize)>,
}

impl Services {
    /// The services in the order in which they start. All of them may be running.
    #[must_use]
    pub fn new(rungs: Vec<Rung>) -> Self {
        Self {
            up: rungs.len(),
            sweeping: true,
            rungs,
            job: None,
            jobs: 0,
            primary: false,
            lease: Moment(0),
            rest: false,
            waiting: Vec::new(),
            failed: None,
            settled: false,
            stuck: BTreeMap::new(),
            left: None,
            announcing: None,
        }
    }

    /// One input in, its effects appended to `out`.
    pub fn step(&mut self, now: Moment, input: Input, out: &mut Vec<Effect>) {
        match input {
            Input::Role { primary } => self.role(now, primary),
            Input::Lease { until } => self.lease = until,
            Input::Done { job, result } => self.done(now, job, result, out),
            Input::Rest { ticket } => {
                self.waiting.push(ticket);
                self.rest = true;
            }
            Input::Release => {
                (self.rest, self.failed, self.settled) = (false, None, false);
                self.stuck.clear();
            }
            Input::Healed => self.announcing = Some((now, 0)),
            Input::Wake => {}
        }
        self.climb(now, out);
        self.announce(now, out);
    }

    /// When the machine wants to be woken, if nothing else happens before.
    #[must_use]
    pub fn next_deadline(&self, now: Moment) -> Option<Moment> {
        let job = self.job.filter(|job| job.end == End::Own).map(|job| job.until);
        let lease = Some(self.lease).filter(|&until| until > now && self.primary);
        [job, lease, self.announcement_due()].into_iter().flatten().min()
    }

    /// How each is, and why it failed or is stuck.
    #[must_use]
    pub fn states(&self) -> Vec<(State, &str)> {
        let state = |service: usize| match (&self.job, &self.failed) {
            (Some(job), _) if job.service == service => match job.action {
                Action::Start => (State::Starting, ""),
                Action::Stop => (State::Stopping, ""),
            },
            (_, Some((failed, why))) if *failed == service => (State::Failed, why.as_str()),
            _ => match self.stuck.get(&service) {
                Some(why) => (State::Stuck, why.as_str()),
                None if service >= self.up => (State::Down, ""),
                None if self.sweeping => (State::Unknown, ""),
                None => (State::Up, ""),
            },
        };
        (0..self.rungs.len()).map(state).collect()
    }

    fn role(&mut self, now: Moment, primary: bool) {
        if self.primary && !primary {
            self.left = Some(now);
            // Whatever was wrong was wrong with that life as a primary.
            (self.rest, self.failed, self.settled) = (false, None, false);
        }
        self.primary = primary;
    }

    /// So many should run.
    fn goal(&self, now: Moment) -> usize {
        if !self.primary || self.rest || self.sweeping || self.failed.is_some() {
            return 0;
        }
        let all = self.rungs.len();
        if now < self.lease {
            return all;
        }
        // Nothing is begun either.
        self.rungs.iter().position(|rung| rung.address).unwrap_or(all).min(self.up)
    }

    fn climb(&mut self, now: Moment, out: &mut Vec<Effect>) {
        self.sweeping &= self.up > 0;
        let goal = self.goal(now);
        if let Some(job) = &mut self.job {
            let late = now >= job.until;
            let unwanted = job.action == Action::Start && goal <= job.service;
            if job.end == End::Own && (late || unwanted) {
                job.end = if unwanted { End::Unwanted } else { End::Late };
                out.push(Effect::Kill { job: job.number });
            }
            return;
        }
        if self.up != goal {
            let (service, action) = if self.up > goal { (self.up - 1, Action::Stop) } else { (self.up, Action::Start) };
            return self.run(now, service, action, out);
        }
        if goal == 0 {
            let done = self.waiting.drain(..).map(|ticket| Effect::Rested { ticket, result: Ok(()) });
            out.extend(done);
            self.give_up(now, out);
        }
    }

    fn run(&mut self, now: Moment, service: usize, action: Action, out: &mut Vec<Effect>) {
        self.jobs += 1;
        let rung = self.rungs[service];
        let limit = if action == Action::Start { rung.start_limit } else { rung.stop_limit };
        self.job = Some(Job { number: self.jobs, service, action, until: now.after(limit), end: End::Own });
        out.push(Effect::Run { job: self.jobs, service, action });
    }

    fn done(&mut self, now: Moment, number: u64, result: Result<(), String>, out: &mut Vec<Effect>) {
        let Some(job) = self.job.take_if(|job| job.number == number) else { return };
        let service = job.service;
        let result = match (result, job.end) {
            (Err(_), End::Late) => Err("it took too long and was ended".to_owned()),
            (result, _) => result,
        };
        match (job.action, result) {
            (Action::Start, Ok(())) => {
                self.up = service + 1;
                self.stuck.remove(&service);
                Self::report(Some(service), "is started", false, out);
                if self.rungs[service].address {
                    self.announcing = Some((now, 0));
                }
            }
            (Action::Start, Err(why)) => {
                // Some of it may run.
                self.up = service + 1;
                if job.end != End::Unwanted {
                    Self::report(Some(service), format!("could not be started: {why}"), true, out);
                    (self.failed, self.settled) = (Some((service, why)), false);
                }
            }
            (Action::Stop, Ok(())) => {
                self.up = service;
                self.stuck.remove(&service);
                if !self.sweeping {
                    Self::report(Some(service), "is stopped", false, out);
                }
            }
            (Action::Stop, Err(why)) if self.primary && !self.waiting.is_empty() => {
                self.rest = false;
                Self::report(Some(service), format!("could not be stopped, and the role is kept: {why}"), true, out);
                let result = Err(format!("service {service} could not be stopped: {why}"));
                out.extend(self.waiting.drain(..).map(|ticket| Effect::Rested { ticket, result: result.clone() }));
            }
            (Action::Stop, Err(why)) => {
                self.up = service;
                Self::report(Some(service), format!("could not be stopped, and may still run: {why}"), true, out);
                self.stuck.insert(service, why);
            }
        }
    }

    /// Everything is stopped because something could not be started.
    fn give_up(&mut self, now: Moment, out: &mut Vec<Effect>) {
        if self.failed.is_none() || self.settled {
            return;
        }
        self.settled = true;
        if self.left.is_some_and(|at| now.since(at) < HAND_BACK_AGAIN) {
            Self::report(None, "stay stopped; mend them, then say `repblk services start`", true, out);
            return;
        }
        self.left = Some(now);
        Self::report(None, "are stopped; the role is handed to the peer, if that can take it", true, out);
        out.push(Effect::HandBack);
    }

    fn announcement_due(&self) -> Option<Moment> {
        let (since, made) = self.announcing?;
        ANNOUNCEMENTS_MS.get(made).map(|&ms| since.after(Duration::from_millis(ms)))
    }

    fn announce(&mut self, now: Moment, out: &mut Vec<Effect>) {
        if self.announcement_due().is_none_or(|due| now < due) {
            return;
        }
        let Some((_, made)) = &mut self.announcing else { return };
        *made += 1;
        let here = self.rungs.iter().take(if self.sweeping { 0 } else { self.up });
        let addresses = here.enumerate().filter(|(_, rung)| rung.address);
        out.extend(addresses.map(|(service, _)| Effect::Announce { service }));
    }

    fn report(service: Option<usize>, text: impl Into<String>, alarm: bool, out: &mut Vec<Effect>) {
        out.push(Effect::Report { service, text: text.into(), alarm });
    }
}
