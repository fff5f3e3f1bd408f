//! The task that drives the failover machine of one volume.
//!
//! Time is [`crate::dataplane::now`], which counts suspend. A deadline that is met late is told to the machine as it is: it knows then
//! that its own node slept. When the time of day runs ahead of that clock, the clock itself may have stood still (a virtual machine that was
//! paused and resumed), and the machine is told that, too.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use tokio::sync::{mpsc, oneshot, watch};
use tokio::time::sleep_until;
use tracing::{debug, info, warn};

use super::etcd::{Answered, Etcd};
use super::memory::Memory;
use super::prover::Prover;
use super::{Denied, Outcome, Post, adapter};
use crate::condition::Role;
use crate::daemon::beat::failover_datagram;
use crate::daemon::beat_path::BeatPath;
use crate::daemon::events::Happening;
use crate::daemon::handle::VolumeHandle;
use crate::dataplane::now;
use crate::failover::io::{ArbiterAnswer, ArbiterRequest, Ask, Beat, Directive, Effect, Input, ProofWord, VolumeView};
use crate::failover::{Effects, Failover};
use crate::units::{Moment, Ticket};

/// The machine is told the time of day so often.
const DAY_INTERVAL: Duration = Duration::from_secs(60);
/// The time of day may run ahead of the clock by so much between two looks before the clock is doubted.
const CLOCK_DOUBT: Duration = Duration::from_secs(1);

/// A question that is asked of the machine where it is.
pub(super) type Glance = Box<dyn FnOnce(&Failover, Moment) + Send>;

/// What is said to the driver.
pub(super) enum Said {
    Volume(VolumeView),
    /// The volume cannot do what it was told.
    Refused(String),
    Arbiter {
        ask: u64,
        answer: ArbiterAnswer,
    },
    Proof {
        ask: u64,
        word: ProofWord,
    },
    Gateway(Option<bool>),
    Carrier(bool),
    Operator {
        ask: Ask,
        reply: oneshot::Sender<Outcome>,
    },
    Look(Glance),
}

/// Where questions to the arbiter go.
type Questions = mpsc::UnboundedSender<(u64, ArbiterRequest)>;

pub(super) struct Driver {
    failover: Failover,
    volume: Arc<VolumeHandle>,
    node: String,
    /// To the peer.
    paths: Vec<Arc<BeatPath>>,
    questions: Option<Questions>,
    prover: Option<Prover>,
    memory: watch::Sender<Memory>,
    carrier: bool,
    gateway: Option<bool>,
    link: bool,
    /// Operators who wait.
    waiting: BTreeMap<Ticket, oneshot::Sender<Outcome>>,
    tickets: u64,
    day: Day,
}

/// The two clocks, when they were last compared.
struct Day {
    clock: Moment,
    wall: SystemTime,
    told: Option<Moment>,
}

impl Driver {
    pub(super) fn new(
        failover: Failover,
        volume: Arc<VolumeHandle>,
        (node, paths): (String, Vec<Arc<BeatPath>>),
        (questions, prover): (Option<Questions>, Option<Prover>),
        memory: watch::Sender<Memory>,
    ) -> Self {
        let day = Day { clock: now(), wall: SystemTime::now(), told: None };
        let (carrier, gateway, link, waiting) = (true, None, false, BTreeMap::new());
        Self {
            failover,
            volume,
            node,
            paths,
            questions,
            prover,
            memory,
            carrier,
            gateway,
            link,
            waiting,
            tickets: 0,
            day,
        }
    }

    /// Drives, for ever.
    pub(super) async fn run(
        mut self,
        post: Post,
        mut said: mpsc::UnboundedReceiver<Said>,
        mut beats: mpsc::Receiver<(usize, Beat)>,
    ) {
        loop {
            let wait = self.failover.next_deadline(now()).since(now());
            let due = Instant::now().checked_add(wait).unwrap_or_else(|| Instant::now() + DAY_INTERVAL);
            let input = tokio::select! {
                biased;
                Some(said) = said.recv() => {
                    self.tell_services(&said, &post);
                    self.input(said)
                }
                Some((path, beat)) = beats.recv() => Some(Input::Beat { path, beat }),
                () = sleep_until(due.into()) => Some(Input::Wake),
            };
            self.look_at_clocks(&post);
            if let Some(input) = input {
                self.step(input, &post);
            }
        }
    }

    /// What runs on the primary follows the volume's role, and is announced when a network is back.
    fn tell_services(&mut self, said: &Said, post: &Post) {
        let Some(services) = &post.services else { return };
        let back = match said {
            Said::Volume(view) => {
                services.role(view.role == Role::Primary);
                !std::mem::replace(&mut self.link, view.link) && view.link
            }
            Said::Carrier(carrier) => *carrier,
            _ => false,
        };
        if back {
            services.healed();
        }
    }

    fn input(&mut self, said: Said) -> Option<Input> {
        Some(match said {
            Said::Volume(view) => Input::Volume(view),
            Said::Refused(why) => Input::VolumeRefused { why },
            Said::Arbiter { ask, answer } => Input::Arbiter { ask, answer },
            Said::Proof { ask, word } => Input::Proof { ask, word },
            Said::Gateway(gateway) => {
                self.gateway = gateway;
                Input::Surroundings { carrier: self.carrier, gateway }
            }
            Said::Carrier(carrier) => {
                self.carrier = carrier;
                Input::Surroundings { carrier, gateway: self.gateway }
            }
            Said::Operator { ask, reply } => {
                self.tickets += 1;
                let ticket = Ticket(self.tickets);
                self.waiting.retain(|_, waiter| !waiter.is_closed());
                self.waiting.insert(ticket, reply);
                Input::Operator { ticket, ask }
            }
            Said::Look(look) => {
                look(&self.failover, now());
                return None;
            }
        })
    }

    fn look_at_clocks(&mut self, post: &Post) {
        let (clock, wall) = (now(), SystemTime::now());
        let ran = clock.since(self.day.clock);
        let ahead = wall.duration_since(self.day.wall).unwrap_or_default().saturating_sub(ran);
        (self.day.clock, self.day.wall) = (clock, wall);
        if ahead > CLOCK_DOUBT {
            warn!(
                volume = self.volume.name(),
                ahead_ms = ahead.as_millis(),
                "the time of day ran ahead of the clock: this host may have stood still; the lease is renewed before anything is answered"
            );
            self.day.told = None;
            self.step(Input::ClockDoubted, post);
        }
        if self.day.told.is_none_or(|told| clock.since(told) >= DAY_INTERVAL) {
            self.day.told = Some(clock);
            let unix = wall.duration_since(UNIX_EPOCH).unwrap_or_default();
            let unix_ms = u64::try_from(unix.as_millis()).unwrap_or(u64::MAX);
            self.step(Input::TimeOfDay { unix_ms }, post);
        }
    }

    fn step(&mut self, input: Input, post: &Post) {
        let mut effects = Effects::new();
        self.failover.step(now(), input, &mut effects);
        for effect in effects {
            self.carry_out(effect, post);
        }
    }

    fn carry_out(&mut self, effect: Effect, post: &Post) {
        match effect {
            Effect::Beat { path, beat } => self.send(path, beat),
            Effect::Arbiter { ask, request } => {
                // Without anybody to ask it stays without an answer, which the machine can bear.
                let _ = self.questions.as_ref().map(|questions| questions.send((ask, request)));
            }
            Effect::Prove { ask } => {
                let Some(prover) = self.prover.clone() else { return };
                let post = post.clone();
                tokio::spawn(async move {
                    let word = prover.prove().await;
                    post.say(Said::Proof { ask, word });
                });
            }
            Effect::Direct(directive) => self.direct(directive, post),
            // Only a record that others read makes a lease of it.
            Effect::Lease { until } if self.questions.is_some() => {
                self.volume.set_lease(until);
                let _ = post.services.as_ref().map(|services| services.lease(until));
            }
            Effect::Lease { .. } => {}
            Effect::Answer { ticket, result } => {
                let waiter = self.waiting.remove(&ticket);
                // Whoever asked may have given up.
                let _ = waiter.map(|waiter| waiter.send(result.map_err(Denied::Failover)));
            }
            Effect::Decided { rule, evidence, alarm } => {
                let (volume, name) = (self.volume.name(), rule.name());
                if alarm {
                    warn!(volume, rule = name, evidence, "{}", rule.sentence());
                } else {
                    info!(volume, rule = name, evidence, "{}", rule.sentence());
                }
                let text = format!("rule {name}: {}", rule.sentence());
                self.volume.events.tell(volume, Happening::Note { text, warning: alarm });
            }
            Effect::Happened(episode) => {
                let (volume, rule, evidence) = (self.volume.name(), &episode.rule, &episode.evidence);
                warn!(volume, to = episode.to, term = episode.term, rule, evidence, "the primary changes");
                self.memory.send_modify(|memory| memory.past.add(episode));
            }
            Effect::Remember { term } => self.memory.send_modify(|memory| memory.floor = term),
        }
    }

    fn send(&self, path: usize, beat: Beat) {
        let Some(path) = self.paths.get(path) else { return };
        let identity = &self.volume.identity;
        let datagram = failover_datagram(identity.cluster, &self.node, identity.volume, beat);
        // A path that is down now may be up at the next beat; the peer notices the silence.
        if let Err(error) = path.send(&datagram) {
            debug!(volume = self.volume.name(), address = %path.to, %error, "beat not sent");
        }
    }

    /// Tells the volume, and passes on what it says to it.
    fn direct(&mut self, directive: Directive, post: &Post) {
        debug!(volume = self.volume.name(), ?directive, "directive");
        let waiter = match directive {
            Directive::Promote { ticket, .. } | Directive::Switchover { ticket } => self.waiting.remove(&ticket),
            _ => None,
        };
        let (answer, post) = (self.volume.command(adapter::command(directive)), post.clone());
        tokio::spawn(async move {
            // Without an answer the volume's thread has ended, which is told elsewhere.
            let Ok(answered) = answer.await else { return };
            match (waiter, answered) {
                // Whoever asked may have given up.
                (Some(waiter), answered) => drop(waiter.send(answered.map_err(Denied::Volume))),
                (None, Err(refusal)) => post.say(Said::Refused(refusal.to_string())),
                (None, Ok(())) => {}
            }
        });
    }
}

/// Asks etcd one question after the other, for ever.
pub(super) async fn keep_asking(
    mut etcd: Etcd,
    mut questions: mpsc::UnboundedReceiver<(u64, ArbiterRequest)>,
    volume: String,
    post: Post,
) {
    let mut told: Option<String> = None;
    while let Some((ask, request)) = questions.recv().await {
        let Answered { answer, trouble } = etcd.ask(&request).await;
        match (&trouble, &told) {
            (Some(why), None) => {
                warn!(volume, "the arbiter does not answer: {why}; asking on, and silent until this changes")
            }
            (None, Some(_)) => info!(volume, "the arbiter answers"),
            (Some(why), Some(_)) => debug!(volume, "the arbiter does not answer: {why}"),
            (None, None) => {}
        }
        told = trouble;
        post.say(Said::Arbiter { ask, answer });
    }
}
