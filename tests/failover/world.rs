//! Two nodes, an arbiter, and what lies between them, in one simulated time. Every message crosses a network that delays, loses and cuts;
//! every clock may run at a rate of its own; every process may stop and go on.
//!
//! What must never happen is checked at every event, and panics with the course of events:
//!
//! - two nodes that may answer clients at once;
//! - an acknowledgement at an older term after one at a newer term;
//! - a promotion, not forced, of a copy that lacks something acknowledged.

use std::collections::BTreeMap;
use std::time::Duration;

use repblk::condition::Role;
use repblk::failover::Failover;
use repblk::failover::config::{Arbiter, Config, Timing};
use repblk::failover::history::History;
use repblk::failover::io::{ArbiterAnswer, ArbiterRequest, Ask, Beat, Directive, Effect, Input, ProofWord, VolumeView};
use repblk::failover::record::{Record, Revision};
use repblk::failover::rule::Rule;
use repblk::units::{ClusterId, DiskInstance, Moment, Term, Ticket, VolumeId};

use crate::volume::Copy;

mod copies;

/// A delay of the network between the nodes, and of everything else that takes a moment.
const HOP: Duration = Duration::from_micros(300);
/// What a disk takes to make something durable.
const COMMIT: Duration = Duration::from_millis(2);
/// The volume drops a silent link after this.
const PEER_TIMEOUT: Duration = Duration::from_secs(3);
/// How often the client writes.
const WRITES: Duration = Duration::from_millis(50);
/// How long a resync takes.
const RESYNC: Duration = Duration::from_millis(300);

/// What a fault may do to something that happens.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Fault {
    None,
    /// The question does not reach the arbiter, and the asker cannot know.
    AskLost,
    /// It is done, and the answer is lost.
    AnswerLost,
    /// It is done so much later.
    Late(Duration),
    /// The node stops here and goes on so much later.
    Pause(Duration),
    /// The process is killed here, and starts again so much later.
    Kill(Duration),
    /// Everything between the nodes is cut for so long.
    Cut(Duration),
}

/// Where a fault may strike.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Place {
    Arbiter,
    Directive,
    Beat,
}

/// Chooses the faults of a run.
pub(crate) trait Fate {
    fn strikes(&mut self, place: Place) -> Fault;
}

/// No faults but those of a script.
pub(crate) struct Calm;

impl Fate for Calm {
    fn strikes(&mut self, _: Place) -> Fault {
        Fault::None
    }
}

#[derive(Clone, Debug)]
enum Event {
    Wake {
        node: usize,
        life: u64,
    },
    Look {
        node: usize,
    },
    Give {
        node: usize,
        life: u64,
        input: Box<Input>,
    },
    /// The question reaches the arbiter; it answers if the last flag says so.
    Ask {
        node: usize,
        life: u64,
        ask: u64,
        request: ArbiterRequest,
        answered: bool,
    },
    Beat {
        to: usize,
        path: usize,
        beat: Box<Beat>,
    },
    Direct {
        node: usize,
        life: u64,
        directive: Directive,
    },
    Durable {
        node: usize,
        life: u64,
        what: Durable,
    },
    Write,
    Mirrored {
        to: usize,
        link: u64,
        id: u64,
        term: Term,
    },
    Acked {
        to: usize,
        link: u64,
        id: u64,
    },
    Link,
    LinkDead {
        link: u64,
    },
    Resynced {
        link: u64,
        source: usize,
    },
    Start {
        node: usize,
    },
}

#[derive(Clone, Copy, Debug)]
enum Durable {
    Promise(Term),
    Primary { term: Term, force: bool },
    Alone { number: u64 },
    Secondary,
    Outdated,
}

pub(crate) struct Node {
    pub(crate) failover: Option<Failover>,
    pub(crate) copy: Copy,
    life: u64,
    paused_until: Option<u64>,
    lease: Moment,
    /// Millionths that its clock is fast.
    ppm: i64,
    pub(crate) answers: Vec<Result<(), Rule>>,
    pub(crate) rule: Option<Rule>,
    floor: Term,
    past: History,
    view: Option<VolumeView>,
    woken_at: u64,
    /// When the last directive arrives.
    directed_at: u64,
}

pub(crate) struct World<F> {
    pub(crate) now: u64,
    events: BTreeMap<(u64, u64), Event>,
    next_event: u64,
    pub(crate) nodes: [Node; 2],
    fate: F,
    arbiter: Arbiter,
    timing: Timing,
    automatic_per_hour: usize,
    /// Agents run on both hosts besides the arbiter.
    agents: bool,
    // The network.
    /// Data link is cut, beats from `i` to the other are cut.
    pub(crate) cut_link: bool,
    pub(crate) cut_beats: [bool; 2],
    cut_until: u64,
    pub(crate) arbiter_up: [bool; 2],
    pub(crate) arbiter_delay: Duration,
    /// Its answers to a node take so much longer.
    pub(crate) answer_delay: [Duration; 2],
    link: Option<u64>,
    links: u64,
    dying: bool,
    // The arbiter.
    pub(crate) revision: Revision,
    pub(crate) text: Option<String>,
    pub(crate) proof: ProofWord,
    // What was promised to clients.
    next_write: u64,
    acked: Vec<u64>,
    acked_term: Term,
    pub(crate) last_ack: [u64; 2],
    pub(crate) forced: bool,
    pub(crate) split_brains: usize,
    generations: u64,
    lives: u64,
    pub(crate) steps: u64,
    trace: Vec<String>,
}

fn ns(duration: Duration) -> u64 {
    u64::try_from(duration.as_nanos()).expect("short")
}

impl<F: Fate> World<F> {
    /// Two equal copies, nobody primary; `b` hears nothing before `start`.
    pub(crate) fn new(arbiter: Arbiter, timing: Timing, fate: F) -> Self {
        let node = |instance| Node {
            failover: None,
            copy: Copy::new(instance),
            life: 0,
            paused_until: None,
            lease: Moment(0),
            ppm: 0,
            answers: vec![],
            rule: None,
            floor: Term(0),
            past: History::default(),
            view: None,
            woken_at: u64::MAX,
            directed_at: 0,
        };
        let mut world = Self {
            now: 1_000_000_000,
            events: BTreeMap::new(),
            next_event: 0,
            nodes: [node(0xa), node(0xb)],
            fate,
            arbiter,
            timing,
            automatic_per_hour: 1000,
            agents: false,
            cut_link: false,
            cut_beats: [false; 2],
            cut_until: 0,
            arbiter_up: [true; 2],
            arbiter_delay: Duration::from_millis(1),
            answer_delay: [Duration::ZERO; 2],
            link: None,
            links: 0,
            dying: false,
            revision: Revision(0),
            text: None,
            proof: ProofWord::Nothing,
            next_write: 1,
            acked: vec![],
            acked_term: Term(0),
            last_ack: [0; 2],
            forced: false,
            split_brains: 0,
            generations: 1,
            lives: 0,
            steps: 0,
            trace: vec![],
        };
        world.at(Duration::ZERO, Event::Write);
        world.at(Duration::from_millis(10), Event::Link);
        world
    }

    /// `a` is primary and `b` in sync, and the record says so.
    pub(crate) fn healthy(arbiter: Arbiter, timing: Timing, fate: F) -> Self {
        Self::healthy_with(arbiter, timing, fate, false)
    }

    /// The same, with agents on both hosts.
    pub(crate) fn healthy_with(arbiter: Arbiter, timing: Timing, fate: F, agents: bool) -> Self {
        let mut world = Self::new(arbiter, timing, fate);
        world.agents = agents;
        for node in &mut world.nodes {
            (node.copy.term, node.copy.met_peer) = (Term(7), true);
        }
        if arbiter == Arbiter::Etcd {
            world.revision = Revision(10);
            let [a, b] = [DiskInstance(0xa), DiskInstance(0xb)];
            world.text = Some(
                Record {
                    cluster: ClusterId(1),
                    volume: VolumeId(2),
                    writer: Some(a),
                    writer_name: "a".into(),
                    left_by: None,
                    term: Term(7),
                    in_sync: [a, b].into(),
                    renewals: 1,
                    maintenance: false,
                    stamp: repblk::failover::record::Stamp::default(),
                    history: History::default(),
                }
                .encode(),
            );
        } else {
            // Without a record only an operator, here the test, makes the first primary.
            world.nodes[0].copy.role = Role::Primary;
            world.nodes[0].lease = repblk::failover::io::NEVER;
        }
        world.start(0);
        world.start(1);
        world
    }

    pub(crate) fn fate(&mut self) -> &mut F {
        &mut self.fate
    }

    pub(crate) fn set_rate(&mut self, node: usize, ppm: i64) {
        self.nodes[node].ppm = ppm;
    }

    pub(crate) fn set_budget(&mut self, per_hour: usize) {
        self.automatic_per_hour = per_hour;
    }

    fn at(&mut self, after: Duration, event: Event) {
        self.next_event += 1;
        self.events.insert((self.now + ns(after), self.next_event), event);
    }

    fn say(&mut self, text: String) {
        if self.trace.len() >= 400 {
            self.trace.drain(..200);
        }
        self.trace.push(format!("{:>10.4} {text}", (self.now as f64) / 1e9 - 1.0));
    }

    fn clock(&self, node: usize) -> Moment {
        let drift = i128::from(self.now) * i128::from(self.nodes[node].ppm) / 1_000_000;
        Moment(u64::try_from(i128::from(self.now) + drift).expect("clocks run forward"))
    }

    pub(crate) fn failed(&self, why: &str) -> ! {
        panic!("{why}\n{}", self.trace.join("\n"));
    }

    pub(crate) fn start(&mut self, node: usize) {
        if self.nodes[node].failover.is_some() {
            return;
        }
        self.lives += 1;
        let (me, life) = (["a", "b"][node], self.lives);
        let config = Config {
            node: me.into(),
            peer: ["b", "a"][node].into(),
            cluster: ClusterId(1),
            volume: VolumeId(2),
            instance: self.nodes[node].copy.instance,
            incarnation: life,
            paths: 2,
            arbiter: self.arbiter,
            agent: self.agents,
            timing: self.timing,
            automatic: true,
            automatic_per_hour: self.automatic_per_hour,
            gateway: false,
            accept_split_brain: false,
        };
        let now = self.clock(node);
        let it = &mut self.nodes[node];
        it.life = life;
        it.failover = Some(Failover::new(now, config, it.past.clone(), it.floor));
        (it.view, it.woken_at, it.paused_until, it.rule) = (None, u64::MAX, None, None);
        self.say(format!("{me} starts"));
        self.give(node, Input::TimeOfDay { unix_ms: 1_700_000_000_000 + self.now / 1_000_000 });
        self.look(node);
    }

    /// The process ends; the host's kernel closes its connections, unless the host is lost with it.
    pub(crate) fn kill(&mut self, node: usize, host: bool) {
        let it = &mut self.nodes[node];
        it.failover = None;
        it.life = 0;
        it.lease = Moment(0);
        it.copy.restarted();
        self.say(format!("{} is killed", ["a", "b"][node]));
        if host {
            self.link_dies();
        } else {
            self.drop_link("the process ended");
        }
    }

    pub(crate) fn pause(&mut self, node: usize, length: Duration) {
        self.nodes[node].paused_until = Some(self.now + ns(length));
        self.say(format!("{} pauses for {length:?}", ["a", "b"][node]));
        self.link_dies_if_longer(length);
    }

    fn link_dies_if_longer(&mut self, length: Duration) {
        if length > PEER_TIMEOUT {
            self.link_dies();
        }
    }

    /// The link is lost without a word; both sides notice after a while.
    pub(crate) fn link_dies(&mut self) {
        if let (Some(link), false) = (self.link, self.dying) {
            self.dying = true;
            self.at(PEER_TIMEOUT, Event::LinkDead { link });
        }
    }

    pub(crate) fn drop_link(&mut self, why: &str) {
        if self.link.take().is_none() {
            return;
        }
        self.dying = false;
        self.say(format!("link down: {why}"));
        for node in 0..2 {
            self.nodes[node].copy.link_lost();
        }
        for node in 0..2 {
            self.look(node);
        }
    }

    fn may_answer(&self, node: usize) -> bool {
        let it = &self.nodes[node];
        it.failover.is_some() && it.copy.role == Role::Primary && self.clock(node) < it.lease
    }

    /// Gives an input to a node, and carries its effects out.
    pub(crate) fn give(&mut self, node: usize, input: Input) {
        let (now, life) = (self.clock(node), self.nodes[node].life);
        if let Some(until) = self.nodes[node].paused_until {
            if self.now < until {
                let event = if matches!(input, Input::Volume(_)) {
                    self.nodes[node].view = None;
                    Event::Look { node }
                } else {
                    Event::Give { node, life, input: Box::new(input) }
                };
                self.at(Duration::from_nanos(until - self.now), event);
                return;
            }
            self.nodes[node].paused_until = None;
        }
        let Some(failover) = &mut self.nodes[node].failover else { return };
        let mut out = vec![];
        failover.step(now, input, &mut out);
        self.steps += 1;
        let due = failover.next_deadline(now);
        for effect in out {
            self.carry_out(node, effect);
        }
        let wait = due.since(now).max(Duration::from_micros(10));
        let wake = self.now + ns(wait.min(Duration::from_secs(60)));
        if self.nodes[node].woken_at <= self.now || wake < self.nodes[node].woken_at {
            self.nodes[node].woken_at = wake;
            self.at(Duration::from_nanos(wake - self.now), Event::Wake { node, life });
        }
    }

    fn carry_out(&mut self, node: usize, effect: Effect) {
        let (me, life) = (["a", "b"][node], self.nodes[node].life);
        match effect {
            Effect::Beat { path, beat } => {
                let fault = if path == 0 && !beat.extra { self.fate.strikes(Place::Beat) } else { Fault::None };
                self.strike(node, fault);
                let lost = self.cut_beats[node] || self.now < self.cut_until;
                if !lost && fault == Fault::None {
                    self.at(HOP, Event::Beat { to: 1 - node, path, beat: Box::new(beat) });
                }
            }
            Effect::Arbiter { ask, request } => {
                if !self.arbiter_up[node] {
                    let answer = ArbiterAnswer::Unreachable;
                    let input = Box::new(Input::Arbiter { ask, answer });
                    self.at(self.arbiter_delay, Event::Give { node, life, input });
                    return;
                }
                let swap = matches!(request, ArbiterRequest::Swap { .. });
                let fault = if swap { self.fate.strikes(Place::Arbiter) } else { Fault::None };
                if fault != Fault::None {
                    self.say(format!("{me} asks the arbiter, and: {fault:?}"));
                }
                let mut delay = self.arbiter_delay;
                match fault {
                    Fault::AskLost => return,
                    Fault::Late(more) => delay += more,
                    other => self.strike(node, other),
                }
                let answered = fault != Fault::AnswerLost;
                self.at(delay, Event::Ask { node, life, ask, request, answered });
            }
            Effect::Prove { ask } => {
                let word = self.proof;
                if word == ProofWord::Off {
                    self.kill(1 - node, true);
                }
                let input = Box::new(Input::Proof { ask, word });
                self.at(Duration::from_millis(500), Event::Give { node, life, input });
            }
            Effect::Direct(directive) => {
                self.say(format!("{me} directs {directive:?}"));
                let fault = self.fate.strikes(Place::Directive);
                let late = if let Fault::Late(more) = fault { more } else { Duration::ZERO };
                self.strike(node, fault);
                // Late or not, they come in the order in which they were given.
                let at = (self.now + ns(HOP + late)).max(self.nodes[node].directed_at);
                self.nodes[node].directed_at = at;
                self.at(Duration::from_nanos(at - self.now), Event::Direct { node, life, directive });
            }
            Effect::Lease { until } => {
                self.nodes[node].lease = until;
            }
            Effect::Answer { result, .. } => {
                self.say(format!("{me} answers {result:?}"));
                self.nodes[node].answers.push(result);
            }
            Effect::Decided { rule, evidence, .. } => {
                self.say(format!("{me} decides {rule}: {evidence}"));
                self.nodes[node].rule = Some(rule);
            }
            Effect::Happened(episode) => self.nodes[node].past.add(episode),
            Effect::Remember { term } => self.nodes[node].floor = term,
        }
    }

    fn strike(&mut self, node: usize, fault: Fault) {
        match fault {
            Fault::Pause(length) => self.pause(node, length),
            Fault::Kill(length) => {
                self.kill(node, false);
                self.at(length, Event::Start { node });
            }
            Fault::Cut(length) => {
                self.cut_until = self.now + ns(length);
                self.say(format!("cut for {length:?}"));
                self.link_dies_if_longer(length);
            }
            Fault::None | Fault::AskLost | Fault::AnswerLost | Fault::Late(_) => {}
        }
    }

    /// Tells a node's failover how its volume is, if that is different.
    fn look(&mut self, node: usize) {
        let peer = self.nodes[1 - node].copy.instance;
        let view = self.nodes[node].copy.view(self.link.is_some(), peer);
        if self.nodes[node].failover.is_some() && self.nodes[node].view != Some(view) {
            self.nodes[node].view = Some(view);
            self.give(node, Input::Volume(view));
        }
    }

    /// The volume of a node was changed from outside.
    pub(crate) fn look_again(&mut self, node: usize) {
        self.look(node);
    }

    pub(crate) fn ask(&mut self, node: usize, ask: Ask) {
        self.give(node, Input::Operator { ticket: Ticket(1), ask });
    }

    pub(crate) fn run(&mut self, length: Duration) {
        let end = self.now + ns(length);
        while let Some(entry) = self.events.first_entry().filter(|entry| entry.key().0 <= end) {
            let ((at, _), event) = entry.remove_entry();
            self.now = at;
            self.happen(event);
            if self.may_answer(0) && self.may_answer(1) && !self.forced {
                self.failed("two nodes may answer clients");
            }
        }
        self.now = end;
    }

    /// A process that is stopped does nothing, and what is on its way to it waits.
    fn waits_for(&self, event: &Event) -> Option<u64> {
        let stopped = |node: usize| self.nodes[node].paused_until.filter(|&until| self.now < until);
        match *event {
            Event::Direct { node, .. } | Event::Durable { node, .. } => stopped(node),
            Event::Mirrored { to, link, .. } | Event::Acked { to, link, .. } if self.link == Some(link) => {
                let cut = self.cut_link || self.now < self.cut_until;
                stopped(to).or(cut.then_some(self.now + ns(Duration::from_millis(50))))
            }
            _ => None,
        }
    }

    fn happen(&mut self, event: Event) {
        if let Some(until) = self.waits_for(&event) {
            self.at(Duration::from_nanos(until - self.now), event);
            return;
        }
        match event {
            Event::Wake { node, life } => {
                if self.nodes[node].life == life && self.nodes[node].woken_at <= self.now {
                    self.nodes[node].woken_at = u64::MAX;
                    self.give(node, Input::Wake);
                }
            }
            Event::Look { node } => self.look(node),
            Event::Give { node, life, input } if self.nodes[node].life == life => self.give(node, *input),
            Event::Give { .. } => {}
            Event::Ask { node, life, ask, request, answered } => self.arbitrate(node, life, ask, request, answered),
            Event::Beat { to, path, beat } => self.give(to, Input::Beat { path, beat: *beat }),
            Event::Direct { node, life, directive } if self.nodes[node].life == life => self.directed(node, directive),
            Event::Direct { .. } => {}
            Event::Durable { node, life, what } if self.nodes[node].life == life => self.durable(node, what),
            Event::Durable { .. } => {}
            Event::Write => self.write(),
            Event::Mirrored { to, link, id, term } => self.mirrored(to, link, id, term),
            Event::Acked { to, link, id } => {
                if self.link == Some(link) && self.is_awake(to) {
                    self.acknowledge(to, id);
                    self.drained(to);
                }
            }
            Event::Link => {
                self.at(Duration::from_millis(100), Event::Link);
                self.try_link();
            }
            Event::LinkDead { link } if self.link == Some(link) => self.drop_link("silence"),
            Event::LinkDead { .. } => {}
            Event::Resynced { link, source } => self.resynced(link, source),
            Event::Start { node } => self.start(node),
        }
    }

    fn is_awake(&self, node: usize) -> bool {
        self.nodes[node].failover.is_some() && self.nodes[node].paused_until.is_none_or(|until| until <= self.now)
    }

    fn arbitrate(&mut self, node: usize, life: u64, ask: u64, request: ArbiterRequest, answered: bool) {
        let answer = match request {
            ArbiterRequest::Read => ArbiterAnswer::Is { revision: self.revision, text: self.text.clone() },
            ArbiterRequest::Swap { expected, text } if expected == self.revision => {
                self.revision.0 += 1;
                self.text = Some(text);
                ArbiterAnswer::Swapped { revision: self.revision }
            }
            ArbiterRequest::Swap { .. } => ArbiterAnswer::Refused,
        };
        if answered {
            let input = Box::new(Input::Arbiter { ask, answer });
            self.at(self.arbiter_delay + self.answer_delay[node], Event::Give { node, life, input });
        }
    }

    pub(crate) fn acked(&self) -> usize {
        self.acked.len()
    }
}
