//! The world: virtual time, what will happen in it, and everything that exists. It is the shell of both machines.
//!
//! One number decides everything: events are ordered by time and then by the order of their making, every choice comes from
//! a seeded generator, and nothing depends on addresses, hashes or the wall clock.

use std::collections::BTreeMap;
use std::rc::Rc;

use repblk::failover::io::{ArbiterRequest, Input as FailoverInput};
use repblk::units::{ConnectionId, OpId, SessionId, Term, Ticket};
use repblk::volume::io::{Command, HostOp, Input, PeerView, Refusal};
use repblk::wire::Message;

use crate::arbitration::Arbiter;
use crate::client::Client;
use crate::history::History;
use crate::net::Link;
use crate::node::{NODES_MAX, Node, letter, others, peer_no};
use crate::operator::Operator;
use crate::rng::Rng;
use crate::story::{Blow, Trap};
use crate::swarm::{MS, Options, SECOND};
use crate::trace::trace;

/// More events than any run of bounded length has: beyond, something spins.
const EVENTS_MAX: u64 = 3_000_000;

/// Something that will happen. What belongs to one life of a process carries it, and is dropped in another.
#[derive(Clone, Debug)]
pub(crate) enum Event {
    /// A data operation ends.
    DiskDone { node: usize, life: u64, op: OpId },
    /// A commit ends.
    MetaDone { node: usize, life: u64, op: OpId },
    /// Bytes of `from` arrive.
    Deliver { link: usize, from: usize },
    /// A node is given a link that was agreed.
    LinkUp { node: usize, life: u64, link: usize },
    /// A node learns that a link is down.
    LinkDown { node: usize, life: u64, link: usize, why: &'static str },
    /// The dialers try.
    Dial,
    /// A frame of an older link turns up.
    OldFrame { node: usize, life: u64, frame: Box<OldFrame> },
    /// The turn of a shell's loop ends.
    TurnEnd { node: usize, life: u64 },
    /// A machine's deadline.
    Wake { node: usize, life: u64 },
    /// Heartbeats are sent.
    Heartbeat,
    /// A heartbeat arrives.
    PeerSeen { node: usize, life: u64, from: usize, view: PeerView },
    /// A client looks for something to do.
    ClientTick { client: usize },
    /// The shell learns that a client is gone.
    HostGone { node: usize, life: u64, session: SessionId },
    /// A command reaches a node.
    Command { node: usize, life: u64, ticket: Ticket, command: Command },
    /// The operator looks around.
    OperatorTick,
    /// A fault of a kind; it schedules its next.
    Fault(Fault),
    /// A process starts.
    Start { node: usize, life: u64 },
    /// A stalled stream flows again.
    Unstall { link: usize, from: usize },
    /// The checkers look.
    Check,
    /// A process that has ended in order is gone.
    Stop { node: usize, life: u64 },
    /// A trap closes.
    Blow(Blow),
    /// Something reaches the failover machine of a node.
    Tell { node: usize, life: u64, input: Box<FailoverInput> },
    /// The failover machine's deadline.
    DeputyWake { node: usize, life: u64 },
    /// A question reaches the arbiter.
    AskArbiter { node: usize, life: u64, ask: u64, request: ArbiterRequest, answered: bool },
    /// Partitions come and go.
    Weather,
}

impl Event {
    /// The node whose process has to run for this.
    fn waits_for(&self) -> Option<usize> {
        match *self {
            Self::DiskDone { node, .. }
            | Self::MetaDone { node, .. }
            | Self::LinkUp { node, .. }
            | Self::LinkDown { node, .. }
            | Self::OldFrame { node, .. }
            | Self::TurnEnd { node, .. }
            | Self::Wake { node, .. }
            | Self::PeerSeen { node, .. }
            | Self::HostGone { node, .. }
            | Self::Command { node, .. }
            | Self::Tell { node, .. }
            | Self::DeputyWake { node, .. }
            | Self::Stop { node, .. } => Some(node),
            _ => None,
        }
    }
}

/// Kinds of faults that happen by themselves.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Fault {
    /// A node loses power.
    Power,
    /// Both nodes do.
    Both,
    /// A process is killed.
    Kill,
    /// The link is cut, sometimes for longer.
    Cut,
    /// One direction stalls.
    Stall,
    /// A bit flips under way.
    Damage,
    /// The operator has a whim.
    Whim,
    /// A sector of the data rots.
    Rot,
    /// A part of the metadata is damaged.
    MetaDamage,
    /// A disk is replaced by an empty one, or by an older copy of itself.
    Replace,
    /// A process is stopped for a while.
    Pause,
}

/// A frame kept to turn up later.
#[derive(Clone, Debug)]
pub(crate) struct OldFrame {
    /// Its link.
    pub(crate) connection: ConnectionId,
    /// Its term.
    pub(crate) term: Term,
    /// Its message.
    pub(crate) message: Message,
    /// Its payload.
    pub(crate) payload: Option<Vec<u8>>,
}

/// Is shown the world after each event.
pub(crate) type Probe = Rc<dyn Fn(&World)>;

/// Everything.
#[derive(Clone)]
pub(crate) struct World {
    /// Virtual nanoseconds since the start.
    pub(crate) now: u64,
    /// What this run is made of.
    pub(crate) options: Options,
    /// The servers.
    pub(crate) nodes: Vec<Node>,
    /// Links, oldest first; only the last can be alive.
    pub(crate) links: Vec<Link>,
    /// No link can be made before this time.
    pub(crate) data_cut_until: u64,
    /// No heartbeat arrives before this time.
    pub(crate) beats_cut_until: u64,
    /// Clients cannot reach these nodes.
    pub(crate) unreachable: [bool; NODES_MAX],
    /// A frame of the present link for each receiver, to turn up when it is an old one.
    pub(crate) keepsakes: [Option<OldFrame>; NODES_MAX],
    /// The clients.
    pub(crate) clients: Vec<Client>,
    /// What they did.
    pub(crate) history: History,
    /// Stands in for people, the daemon and the arbiter.
    pub(crate) operator: Operator,
    /// Answers to commands.
    pub(crate) answers: BTreeMap<Ticket, Result<(), Refusal>>,
    /// A scenario's blow that waits for its point.
    pub(crate) trap: Option<Trap>,
    /// Faults still happen.
    pub(crate) trouble: bool,
    /// Looks at the world after each event.
    pub(crate) probe: Option<Probe>,
    /// The arbiter's record, and how well it is reached.
    pub(crate) arbiter: Arbiter,
    /// What checkers remember.
    pub(crate) memory: crate::checkers::Memory,
    /// Coverage: how often something happened, by name.
    pub(crate) marks: BTreeMap<String, u64>,
    pub(crate) rng: Rng,
    pub(crate) link_rng: Rng,
    pub(crate) client_rng: Rng,
    queue: BTreeMap<(u64, u64), Event>,
    made: u64,
    handled: u64,
    next_session: u64,
    next_ticket: u64,
}

impl World {
    /// Two formatted hosts, off, and nothing else.
    pub(crate) fn new(seed: u64, options: Options) -> Self {
        let mut rng = Rng::new(seed);
        let labels = [10, 11, 14].into_iter().enumerate().take(options.nodes);
        let nodes: Vec<Node> = labels.map(|(n, label)| Node::new(n, &options, &mut rng.fork(label))).collect();
        let sectors = usize::try_from(options.data_len / 512).expect("small");
        Self {
            now: 0,
            nodes,
            links: Vec::new(),
            data_cut_until: 0,
            beats_cut_until: 0,
            unreachable: [false; NODES_MAX],
            keepsakes: [const { None }; NODES_MAX],
            clients: Vec::new(),
            history: History::new(sectors, options.nodes),
            operator: Operator::default(),
            answers: BTreeMap::new(),
            trap: None,
            trouble: false,
            probe: None,
            arbiter: Arbiter::default(),
            memory: crate::checkers::Memory::default(),
            marks: BTreeMap::new(),
            link_rng: rng.fork(12),
            client_rng: rng.fork(13),
            rng,
            queue: BTreeMap::new(),
            made: 0,
            handled: 0,
            next_session: 0,
            next_ticket: 0,
            options,
        }
    }

    /// Both daemons start; clients, heartbeats, dialers, checkers and the operator begin their rounds.
    pub(crate) fn begin(&mut self) {
        for node in 0..self.nodes.len() {
            let life = self.nodes[node].life;
            let delay = self.rng.wait(MS);
            self.after(delay, Event::Start { node, life });
        }
        self.after(5 * MS, Event::Dial);
        self.after(20 * MS, Event::Heartbeat);
        self.after(10 * MS, Event::Check);
        self.after(10 * MS, Event::OperatorTick);
        for client in 0..self.options.clients {
            self.clients.push(Client::default());
            self.after(30 * MS, Event::ClientTick { client });
        }
    }

    /// `event` happens `delay` from now.
    pub(crate) fn after(&mut self, delay: u64, event: Event) {
        self.at(self.now + delay, event);
    }

    /// `event` happens at `time`, or now if that has passed.
    pub(crate) fn at(&mut self, time: u64, event: Event) {
        self.made += 1;
        self.queue.insert((time.max(self.now), self.made), event);
    }

    /// Lets `span` of virtual time pass.
    pub(crate) fn run_for(&mut self, span: u64) {
        let end = self.now + span;
        while let Some(entry) = self.queue.first_entry() {
            if entry.key().0 > end {
                break;
            }
            let ((time, _), event) = entry.remove_entry();
            self.now = time;
            self.handled += 1;
            assert!(self.handled < EVENTS_MAX, "the world spins: {event:?}");
            self.happen(event);
            if let Some(probe) = self.probe.clone() {
                probe(self);
            }
        }
        self.now = end;
    }

    /// Lets time pass until `done`, at most `span`. True when it came to be.
    pub(crate) fn run_until(&mut self, span: u64, mut done: impl FnMut(&mut Self) -> bool) -> bool {
        let end = self.now + span;
        while self.now < end {
            if done(self) {
                return true;
            }
            self.run_for((5 * MS).min(end - self.now));
        }
        done(self)
    }

    /// Events handled so far.
    pub(crate) fn handled(&self) -> u64 {
        self.handled
    }

    /// A number for a new session.
    pub(crate) fn new_session(&mut self) -> SessionId {
        self.next_session += 1;
        SessionId(self.next_session)
    }

    /// A number for a new command.
    pub(crate) fn new_ticket(&mut self) -> Ticket {
        self.next_ticket += 1;
        Ticket(self.next_ticket)
    }

    /// Sends a command to a node; the answer will be in `answers`.
    pub(crate) fn command(&mut self, node: usize, command: Command) -> Ticket {
        let ticket = self.new_ticket();
        trace!(self, Some(node), '!', "command {ticket} {command:?}");
        let life = self.nodes[node].life;
        let delay = self.rng.wait(200_000);
        self.after(delay, Event::Command { node, life, ticket, command });
        ticket
    }

    /// True while the process that `life` belongs to still runs.
    pub(crate) fn lives(&self, node: usize, life: u64) -> bool {
        self.nodes[node].process.is_some() && self.nodes[node].life == life
    }

    fn happen(&mut self, event: Event) {
        if let Some(node) = event.waits_for().filter(|&node| self.is_paused(node)) {
            let resumes = self.nodes[node].paused_until;
            self.at(resumes, event);
            return;
        }
        match event {
            Event::DiskDone { node, life, op } if self.lives(node, life) => self.disk_done(node, op),
            Event::MetaDone { node, life, op } if self.lives(node, life) => self.meta_done(node, op),
            Event::Deliver { link, from } => self.deliver(link, from),
            Event::LinkUp { node, life, link } if self.lives(node, life) => self.link_up(node, link),
            Event::LinkDown { node, life, link, why } if self.lives(node, life) => self.link_down(node, link, why),
            Event::Dial => self.dial(),
            Event::OldFrame { node, life, frame } if self.lives(node, life) => self.old_frame(node, *frame),
            Event::TurnEnd { node, life } if self.lives(node, life) => {
                self.nodes[node].running().turn_pending = false;
                self.step(node, Input::TurnEnd);
            }
            Event::Wake { node, life } if self.lives(node, life) => self.wake(node),
            Event::Heartbeat => self.heartbeat(),
            Event::PeerSeen { node, life, from, view } if self.lives(node, life) => {
                self.step(node, Input::PeerSeen { peer: peer_no(node, from), view });
            }
            Event::ClientTick { client } => self.client_tick(client),
            Event::HostGone { node, life, session } if self.lives(node, life) => self.host_gone(node, session),
            Event::Command { node, life, ticket, command } if self.lives(node, life) => {
                self.step(node, Input::Command { ticket, command });
            }
            Event::OperatorTick => self.operator_tick(),
            Event::Fault(fault) => self.fault(fault),
            Event::Start { node, life } if self.nodes[node].process.is_none() && self.nodes[node].life == life => {
                self.start(node);
            }
            Event::Unstall { link, from } => {
                let end = self.links[link].end(from);
                self.links[link].streams[end].stalled = false;
                self.deliver(link, from);
            }
            Event::Blow(blow) => self.fall(blow),
            Event::Stop { node, life } if self.lives(node, life) => self.stop_in_order(node),
            Event::Tell { node, life, input } if self.lives(node, life) => self.tell_deputy(node, *input),
            Event::DeputyWake { node, life } if self.lives(node, life) => {
                self.tell_deputy(node, FailoverInput::Wake);
            }
            Event::AskArbiter { node, life, ask, request, answered } => {
                self.ask_arbiter(node, life, ask, request, answered);
            }
            Event::Weather => self.weather(),
            Event::Check => {
                self.check_now();
                self.after(7 * MS, Event::Check);
            }
            // What was scheduled for another life of a process.
            _ => {}
        }
    }

    /// The daemon of a node starts.
    pub(crate) fn start(&mut self, node: usize) {
        trace!(self, Some(node), '!', "start");
        let options = self.options.clone();
        match self.nodes[node].start(&options) {
            Ok(found) => {
                // Both are whole: the next damage is a single one again.
                self.nodes[node].superblock_damaged &= found.iter().any(|name| name.contains("superblock"));
                for name in found {
                    self.mark(&name);
                }
                self.appoint(node);
                self.step(node, Input::TurnEnd);
            }
            Err(e) => {
                assert!(self.nodes[node].superblock_damaged, "node {} cannot be attached: {e}", letter(node));
                trace!(self, Some(node), '!', "cannot be attached: {e}");
                self.mark("attach: both superblocks are damaged");
                self.replace_by_empty(node);
                self.restart_after(node, 10 * MS);
            }
        }
    }

    fn heartbeat(&mut self) {
        let pairs = (0..self.nodes.len()).flat_map(|node| others(node, self.nodes.len()).map(move |to| (node, to)));
        for (node, to) in pairs.collect::<Vec<_>>() {
            let Some(view) = self.nodes[node].view(to).filter(|_| !self.is_paused(node)) else { continue };
            let lost = self.link_rng.chance(self.options.heartbeats_lost, 1000) || self.now < self.beats_cut_until;
            let delay = self.link_rng.wait(self.options.latency);
            if !lost && self.nodes[to].process.is_some() {
                let life = self.nodes[to].life;
                self.after(delay, Event::PeerSeen { node: to, life, from: node, view });
            }
        }
        self.after(300 * MS, Event::Heartbeat);
    }

    fn wake(&mut self, node: usize) {
        let clock = self.nodes[node].clock(self.now);
        let process = self.nodes[node].running();
        process.wake_at = None;
        if process.volume.next_deadline().is_some_and(|at| at <= clock) {
            self.step(node, Input::Wake);
        } else {
            self.set_alarm(node);
        }
    }

    /// One line that says how things are.
    pub(crate) fn summary(&self) -> String {
        (0..self.nodes.len())
            .map(|n| match self.nodes[n].snapshot(self.now) {
                None => format!("{}: down", letter(n)),
                Some(s) => format!(
                    "{}: {} {} gen {} term {} frozen {:?} requests {} unstable {} peer {:?}",
                    letter(n),
                    s.role,
                    s.disk,
                    s.generation,
                    s.term,
                    s.frozen,
                    s.requests,
                    s.unstable_writes,
                    s.peers
                ),
            })
            .collect::<Vec<_>>()
            .join("\n  ")
    }

    /// A host's operation for the machine.
    pub(crate) fn host_input(session: SessionId, tag: u64, op: HostOp, first: usize, len: usize, fua: bool) -> Input {
        let range = repblk::units::ByteRange::new(first as u64 * 512, len as u64 * 512);
        Input::Host { session, tag, op, range, fua }
    }
}

/// How long a run may take to converge when everything is healed.
pub(crate) const CONVERGE_MAX: u64 = 60 * SECOND;
