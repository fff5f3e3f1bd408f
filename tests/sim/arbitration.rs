//! The shell of the failover machine, and the arbiter that it asks: one record, changed by compare-and-swap.
//!
//! Everything between the two production machines of a node goes through here, as the daemon has it: what the volume's standing is comes
//! late, directives come late, both in their order. Questions to the arbiter may be lost before or after they were carried out.

use std::time::Duration;

use repblk::failover::Failover;
use repblk::failover::config::{Arbiter as Kind, Config, Timing};
use repblk::failover::history::{Cause, History};
use repblk::failover::io::{ArbiterAnswer, ArbiterRequest, Ask, Directive, Effect, Input, ProofWord, VolumeView};
use repblk::failover::record::Revision;
use repblk::units::{ClusterId, Moment, SessionId, Term, Ticket, VolumeId};
use repblk::volume::io::{Command, HostError, Refusal, Standing};

use crate::node::letter;
use crate::swarm::{MS, SECOND};
use crate::trace::trace;
use crate::world::{Event, World};

/// From one room of the daemon to the next.
const HOP: u64 = 200_000;

/// The record and the way to it, and what each node keeps of it on its disk.
#[derive(Clone, Debug, Default)]
pub(crate) struct Arbiter {
    revision: u64,
    text: Option<String>,
    /// A node cannot reach it before.
    cut_until: [u64; 2],
    floors: [Term; 2],
    pasts: [History; 2],
    incarnations: u64,
    /// Promotions that nobody asked for.
    pub(crate) automatic: usize,
}

/// A reply that waits for a lease.
#[derive(Clone, Debug)]
struct Held {
    session: SessionId,
    tag: u64,
    result: Result<(), HostError>,
    bytes: Vec<u8>,
}

/// The failover machine of a running daemon.
#[derive(Clone, Debug)]
pub(crate) struct Deputy {
    failover: Failover,
    standing: Option<Standing>,
    lease: Moment,
    held: Vec<Held>,
    directed: Vec<Ticket>,
    wake_at: Option<u64>,
    /// When the last news of the volume, and the last directive to it, arrive.
    news_at: u64,
    orders_at: u64,
}

fn view(standing: Standing) -> VolumeView {
    let Standing { role, disk, disk_stalled, term, promised, idle, link, peer, peer_in_sync, exclusion } = standing;
    VolumeView { role, disk, disk_stalled, term, promised, idle, link, peer, peer_in_sync, exclusion }
}

fn command(directive: Directive) -> Command {
    match directive {
        Directive::Promise { term, part } => Command::Promise { term, part },
        Directive::Release => Command::Release,
        Directive::TakeOver { term, force } => Command::TakeOver { term, force },
        Directive::Exclude { number } => Command::Exclude { number },
        Directive::StandDown => Command::StandDown,
        Directive::Drain => Command::Drain,
        Directive::Outdate => Command::Outdate,
        Directive::Promote { force, peer_is_down, .. } => Command::Promote { force, peer_is_down },
        Directive::Switchover { .. } => Command::Switchover,
    }
}

impl World {
    /// A daemon starts: so does its failover, in a world with an arbiter.
    pub(crate) fn appoint(&mut self, node: usize) {
        if !self.options.arbitrated {
            return;
        }
        self.arbiter.incarnations += 1;
        let timing =
            Timing { settled: Duration::ZERO, dwell: Duration::ZERO, rate_error_ppm: 20_000, ..Timing::default() };
        timing.check().expect("safe times");
        let config = Config {
            node: letter(node).into(),
            peer: letter(1 - node).into(),
            cluster: ClusterId(7),
            volume: VolumeId(9),
            instance: self.nodes[node].instance,
            incarnation: self.arbiter.incarnations,
            paths: 1,
            arbiter: Kind::Etcd,
            agent: false,
            timing,
            automatic: true,
            automatic_per_hour: 1000,
            gateway: false,
            accept_split_brain: false,
        };
        let now = self.nodes[node].clock(self.now);
        let failover = Failover::new(now, config, self.arbiter.pasts[node].clone(), self.arbiter.floors[node]);
        self.nodes[node].running().deputy = Some(Box::new(Deputy {
            failover,
            standing: None,
            lease: Moment(0),
            held: Vec::new(),
            directed: Vec::new(),
            wake_at: None,
            news_at: 0,
            orders_at: 0,
        }));
        self.tell_deputy(node, Input::TimeOfDay { unix_ms: 1_700_000_000_000 + self.now / MS });
    }

    /// An operator asks a node.
    pub(crate) fn ask_deputy(&mut self, node: usize, ask: Ask) {
        if self.nodes[node].process.is_some() {
            self.tell_deputy(node, Input::Operator { ticket: Ticket(0), ask });
        }
    }

    /// Tells the failover machine how the volume is, if that is news.
    pub(crate) fn inform_deputy(&mut self, node: usize) {
        let Some(process) = &mut self.nodes[node].process else { return };
        let Some(deputy) = &mut process.deputy else { return };
        let standing = process.volume.standing();
        if deputy.standing.replace(standing) == Some(standing) {
            return;
        }
        let at = (self.now + self.link_rng.wait(HOP)).max(deputy.news_at + 1);
        deputy.news_at = at;
        let (life, input) = (self.nodes[node].life, Box::new(Input::Volume(view(standing))));
        self.at(at, Event::Tell { node, life, input });
    }

    /// One input for the failover machine.
    pub(crate) fn tell_deputy(&mut self, node: usize, input: Input) {
        let clock = self.nodes[node].clock(self.now);
        let Some(deputy) = &mut self.nodes[node].running().deputy else { return };
        let mut effects = Vec::new();
        deputy.failover.step(clock, input, &mut effects);
        let due = deputy.failover.next_deadline(clock);
        for effect in effects {
            self.deputy_wants(node, effect);
        }
        let at = self.nodes[node].when(due.min(clock.after(Duration::from_secs(60)))).max(self.now + 10_000);
        let (now, life) = (self.now, self.nodes[node].life);
        let Some(deputy) = &mut self.nodes[node].running().deputy else { return };
        if deputy.wake_at.is_none_or(|planned| planned <= now || at < planned) {
            deputy.wake_at = Some(at);
            self.at(at, Event::DeputyWake { node, life });
        }
    }

    fn deputy_wants(&mut self, node: usize, effect: Effect) {
        let life = self.nodes[node].life;
        match effect {
            Effect::Beat { path, beat } => {
                let lost = self.link_rng.chance(self.options.heartbeats_lost, 1000) || self.now < self.beats_cut_until;
                let (to, delay) = (1 - node, self.link_rng.wait(self.options.latency));
                if !lost && self.nodes[to].process.is_some() {
                    let (life, input) = (self.nodes[to].life, Box::new(Input::Beat { path, beat }));
                    self.after(delay, Event::Tell { node: to, life, input });
                }
            }
            Effect::Arbiter { ask, request } => {
                trace!(self, Some(node), '>', "arbiter {ask}: {}", brief(&request));
                let mut delay = MS + self.link_rng.wait(2 * MS);
                let (mut lost, mut answered) = (false, true);
                if self.now < self.arbiter.cut_until[node] {
                    lost = true;
                } else if self.trouble {
                    match self.link_rng.below(24) {
                        0 => lost = true,
                        1 => answered = false,
                        2 => delay += (100 * MS) << self.link_rng.below(7),
                        _ => {}
                    }
                }
                if !lost {
                    self.after(delay, Event::AskArbiter { node, life, ask, request, answered });
                }
            }
            Effect::Prove { ask } => {
                let input = Box::new(Input::Proof { ask, word: ProofWord::Nothing });
                self.after(MS, Event::Tell { node, life, input });
            }
            Effect::Direct(directive) => self.direct(node, directive),
            Effect::Lease { until } => self.leased(node, until),
            Effect::Answer { .. } => {}
            Effect::Decided { rule, evidence, .. } => {
                trace!(self, Some(node), '*', "{} ({evidence})", rule.name());
                self.mark(&format!("failover: {}", rule.name()));
            }
            Effect::Happened(episode) => {
                self.arbiter.automatic += usize::from(episode.cause == Cause::Automatic);
                self.arbiter.pasts[node].add(episode);
            }
            Effect::Remember { term } => self.arbiter.floors[node] = term,
        }
    }

    fn direct(&mut self, node: usize, directive: Directive) {
        let ticket = self.new_ticket();
        let command = command(directive);
        trace!(self, Some(node), '!', "directive {ticket} {command:?}");
        let (now, life, delay) = (self.now, self.nodes[node].life, self.link_rng.wait(HOP));
        let Some(deputy) = &mut self.nodes[node].running().deputy else { return };
        deputy.directed.push(ticket);
        deputy.orders_at = (now + delay).max(deputy.orders_at + 1);
        let at = deputy.orders_at;
        self.at(at, Event::Command { node, life, ticket, command });
    }

    /// The volume answered a directive.
    pub(crate) fn directive_answered(&mut self, node: usize, ticket: Ticket, result: &Result<(), Refusal>) {
        let Some(deputy) = &mut self.nodes[node].running().deputy else { return };
        let Some(at) = deputy.directed.iter().position(|&directed| directed == ticket) else { return };
        deputy.directed.swap_remove(at);
        if let Err(refused) = result {
            let input = Box::new(Input::VolumeRefused { why: refused.to_string() });
            let arrives = (self.now + HOP).max(deputy.news_at + 1);
            deputy.news_at = arrives;
            let life = self.nodes[node].life;
            self.at(arrives, Event::Tell { node, life, input });
        }
    }

    /// A question reaches the arbiter, whoever still waits for the answer.
    pub(crate) fn ask_arbiter(&mut self, node: usize, life: u64, ask: u64, request: ArbiterRequest, answered: bool) {
        let arbiter = &mut self.arbiter;
        let answer = match request {
            ArbiterRequest::Read => {
                ArbiterAnswer::Is { revision: Revision(arbiter.revision), text: arbiter.text.clone() }
            }
            ArbiterRequest::Swap { expected, text } if expected == Revision(arbiter.revision) => {
                arbiter.revision += 1;
                arbiter.text = Some(text);
                trace!(self, Some(node), '*', "the record is at revision {}", self.arbiter.revision);
                ArbiterAnswer::Swapped { revision: Revision(self.arbiter.revision) }
            }
            ArbiterRequest::Swap { .. } => ArbiterAnswer::Refused,
        };
        if answered && self.now >= self.arbiter.cut_until[node] {
            let delay = MS + self.link_rng.wait(2 * MS);
            self.after(delay, Event::Tell { node, life, input: Box::new(Input::Arbiter { ask, answer }) });
        }
    }

    /// Keeps a reply for which there is no lease. True when it is kept.
    pub(crate) fn holds_reply(
        &mut self,
        node: usize,
        session: SessionId,
        tag: u64,
        result: Result<(), HostError>,
        bytes: &[u8],
    ) -> bool {
        let clock = self.nodes[node].clock(self.now);
        let Some(deputy) = &mut self.nodes[node].running().deputy else { return false };
        let held = clock >= deputy.lease && result != Err(HostError::NotPrimary);
        if held {
            deputy.held.push(Held { session, tag, result, bytes: bytes.to_vec() });
            self.mark("a reply was held for want of a lease");
        }
        held
    }

    /// The role is gone: so is what was held.
    pub(crate) fn drop_held(&mut self, node: usize) {
        if let Some(deputy) = &mut self.nodes[node].running().deputy {
            deputy.held.clear();
        }
    }

    fn leased(&mut self, node: usize, until: Moment) {
        let process = self.nodes[node].running();
        let Some(deputy) = &mut process.deputy else { return };
        deputy.lease = until;
        let held = std::mem::take(&mut deputy.held);
        for Held { session, tag, result, bytes } in held {
            if self.nodes[node].running().sessions.contains_key(&session) {
                self.reply(node, session, tag, result, &bytes);
            }
        }
    }

    /// Cuts of all kinds, each for a while.
    pub(crate) fn weather(&mut self) {
        if !self.trouble {
            return;
        }
        let span = self.rng.pick(&[200 * MS, 2 * SECOND, 8 * SECOND, 20 * SECOND]);
        let until = self.now + self.rng.between(span / 2, span);
        // Some come one after the other, some in the middle of the last.
        let next = self.rng.between(SECOND / 2, 4 * SECOND);
        let from = if self.rng.chance(3, 4) { until } else { self.now };
        self.at(from + next, Event::Weather);
        if self.rng.chance(1, 3) {
            let node = self.rng.index(2);
            self.ask_deputy(node, Ask::HandOver);
        }
        match self.rng.below(8) {
            0 => self.beats_cut_until = until,
            1 | 2 => {
                (self.beats_cut_until, self.data_cut_until) = (until, until);
                self.cut_now("partition");
            }
            3 => self.arbiter.cut_until = [until; 2],
            4 => {
                let node = self.rng.index(2);
                self.isolate(node, until - self.now);
            }
            _ => {
                // The primary, the more often, since otherwise nothing has to be decided.
                let node = usize::from(self.nodes[1].is_primary());
                self.isolate(node, until - self.now);
            }
        }
    }

    /// A node is cut off from its peer and from the arbiter.
    pub(crate) fn isolate(&mut self, node: usize, span: u64) {
        let until = self.now + span;
        (self.beats_cut_until, self.data_cut_until) = (until, until);
        self.arbiter.cut_until[node] = until;
        self.cut_now("isolated");
    }

    /// The arbiter is reached again.
    pub(crate) fn clear_weather(&mut self) {
        self.trouble = false;
        self.arbiter.cut_until = [0; 2];
    }
}

fn brief(request: &ArbiterRequest) -> String {
    match request {
        ArbiterRequest::Read => "read".to_owned(),
        ArbiterRequest::Swap { expected, text } => format!("swap at {expected:?}: {text}"),
    }
}
