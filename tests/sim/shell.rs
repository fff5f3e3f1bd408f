//! The shell proper: one step of a machine, and what becomes of its effects.

use std::rc::Rc;

use repblk::units::{BufId, ByteRange, ConnectionId, OpId, PeerNo, SessionId};
use repblk::volume::io::{DiskError, Effect, HostError, Input, Report, SendBody};
use repblk::wire::Message;

use crate::disk::DataOp;
use crate::node::node_of;
use crate::stamp;
use crate::trace::trace;
use crate::world::{Event, World};

/// Wakes at one moment that a machine may need.
const WAKES_AT_ONCE_MAX: u32 = 50;
/// Longest time from an input to the end of the turn.
const TURN_MAX: u64 = 20_000;

impl World {
    /// Gives one input to a machine and carries out what it wants.
    pub(crate) fn step(&mut self, node: usize, input: Input) {
        trace!(self, Some(node), '<', "{}", brief_input(&input));
        let ends_turn = matches!(input, Input::TurnEnd);
        let clock = self.nodes[node].clock(self.now);
        let life = self.nodes[node].life;
        let process = self.nodes[node].running();
        let mut effects = Vec::new();
        process.volume.step(clock, input, &mut effects);
        process.volume.assert_invariants();
        if ends_turn {
            process.turn_pending = false;
        } else if !std::mem::replace(&mut process.turn_pending, true) {
            let delay = self.rng.below(TURN_MAX);
            self.after(delay, Event::TurnEnd { node, life });
        }
        self.carry_out(node, effects);
        self.inform_deputy(node);
        self.set_alarm(node);
    }

    /// Sees to it that the machine is woken at its deadline. A shell looks for the deadline when its turn has ended.
    pub(crate) fn set_alarm(&mut self, node: usize) {
        let Some(process) = &self.nodes[node].process else { return };
        if process.turn_pending {
            return;
        }
        let Some(deadline) = process.volume.next_deadline() else { return };
        let at = self.nodes[node].when(deadline).max(self.now);
        let (now, life) = (self.now, self.nodes[node].life);
        let process = self.nodes[node].running();
        if process.wake_at.is_some_and(|planned| planned <= at) {
            return;
        }
        process.wake_at = Some(at);
        process.wakes_now = if at == now { process.wakes_now + 1 } else { 0 };
        assert!(process.wakes_now < WAKES_AT_ONCE_MAX, "the machine asks to be woken at {deadline:?} again and again");
        self.at(at, Event::Wake { node, life });
    }

    /// Effects may run in any order. Bytes are borrowed before anything is given back, as a real shell counts references.
    fn carry_out(&mut self, node: usize, effects: Vec<Effect>) {
        let mut later = Vec::new();
        let mut changed = false;
        for effect in effects {
            trace!(self, Some(node), '>', "{}", brief_effect(&effect));
            match effect {
                Effect::DiskRead { op, range } => self.submit(node, op, range, DataOp::Read),
                Effect::DiskReadSparse { op, range } => self.submit(node, op, range, DataOp::ReadSparse),
                Effect::DiskWrite { op, range, data } => {
                    let bytes = self.nodes[node].running().pool.borrow(data);
                    self.submit(node, op, range, DataOp::Write(stamp::of_bytes(&bytes)));
                }
                Effect::DiskZero { op, range, .. } => {
                    let sectors = usize::try_from(range.len() / 512).expect("small");
                    self.submit(node, op, range, DataOp::Write(vec![stamp::ZERO; sectors]));
                }
                Effect::DiskFlush { op } => self.submit(node, op, ByteRange::new(0, 0), DataOp::Flush),
                Effect::MetaCommit { op, pages } => {
                    let delay = self.nodes[node].disk.commit(op, pages);
                    let life = self.nodes[node].life;
                    if let Some(delay) = delay {
                        self.after(delay, Event::MetaDone { node, life, op });
                    }
                }
                Effect::Send { peer, connection, term, message, body } => {
                    self.goes_to(node, peer, connection);
                    match body {
                        None => self.send(node, connection, term, &message, &[]),
                        Some(SendBody::Slice(slice)) => {
                            let bytes = self.nodes[node].running().pool.borrow(slice);
                            self.send(node, connection, term, &message, &bytes);
                        }
                        Some(SendBody::Page(page)) => self.send(node, connection, term, &message, &*page),
                    }
                }
                Effect::CloseLink { peer, connection, why } => {
                    self.goes_to(node, peer, connection);
                    self.mark_close(&why);
                    self.close_link(node, connection);
                }
                Effect::Report(report @ Report::Changed { .. }) => {
                    self.mark_change(&report);
                    changed = true;
                }
                other => later.push(other),
            }
        }
        if changed {
            self.watch(node);
        }
        for effect in later {
            match effect {
                Effect::Reply { session, tag, result, buf, more } => {
                    let mut bytes = Vec::new();
                    for buf in buf.into_iter().chain(more) {
                        bytes.extend_from_slice(&self.give_back(node, buf));
                    }
                    self.reply(node, session, tag, result, &bytes);
                }
                Effect::Release(buf) => {
                    self.give_back(node, buf);
                }
                Effect::Answer { ticket, result } => self.answered(node, ticket, result),
                Effect::Report(report) => self.reported(node, report),
                _ => unreachable!("carried out above"),
            }
        }
    }

    /// Links are known by their identity; a machine must not confuse its peers.
    fn goes_to(&self, node: usize, peer: PeerNo, connection: ConnectionId) {
        let to = self.links.iter().rev().find(|l| l.connection == connection).map(|l| l.other(node));
        assert_eq!(to, Some(node_of(node, peer)), "{connection} is another peer's link");
    }

    /// The machine gives a buffer back; a write whose client is gone is then done with here.
    fn give_back(&mut self, node: usize, buf: BufId) -> Rc<[u8]> {
        let bytes = self.nodes[node].running().pool.take(buf);
        self.buffer_returned(node, buf);
        bytes
    }

    fn submit(&mut self, node: usize, op: OpId, range: ByteRange, data: DataOp) {
        let life = self.nodes[node].life;
        if let Some(delay) = self.nodes[node].disk.submit(op, range, data) {
            self.after(delay, Event::DiskDone { node, life, op });
        }
    }

    /// A data operation ends.
    pub(crate) fn disk_done(&mut self, node: usize, op: OpId) {
        let Some(end) = self.nodes[node].disk.finish(op) else { return };
        self.learn_lies(node);
        let result = match end {
            Ok(None) => Ok(None),
            Ok(Some(stamps)) => Ok(Some(self.nodes[node].running().pool.give(stamp::to_bytes(&stamps)))),
            Err(errno) => Err(DiskError { errno }),
        };
        self.step(node, Input::DiskDone { op, result });
    }

    /// A commit ends.
    pub(crate) fn meta_done(&mut self, node: usize, op: OpId) {
        let Some(end) = self.nodes[node].disk.finish_commit(op) else { return };
        self.step(node, Input::MetaDone { op, result: end.map_err(|errno| DiskError { errno }) });
    }

    fn reported(&mut self, node: usize, report: Report) {
        match report {
            Report::ExclusionWanted { .. } if self.options.arbitrated => {}
            Report::ExclusionWanted { peer, number } => self.exclusion_wanted(node, node_of(node, peer), number),
            Report::ExclusionWithdrawn { peer, .. } => self.exclusion_withdrawn(node, node_of(node, peer)),
            Report::DisconnectClients => {
                self.drop_held(node);
                let sessions: Vec<SessionId> = self.nodes[node].running().sessions.keys().copied().collect();
                for session in sessions {
                    self.drop_session(node, session);
                }
            }
            Report::SplitBrain { .. } => {
                self.mark("split brain");
                self.memory.split_brain = true;
            }
            Report::Changed { .. } | Report::Note { .. } | Report::Resync(_) => {}
        }
    }

    /// The client's answer has the fate of its connection in it.
    pub(crate) fn reply(
        &mut self,
        node: usize,
        session: SessionId,
        tag: u64,
        result: Result<(), HostError>,
        bytes: &[u8],
    ) {
        if self.holds_reply(node, session, tag, result, bytes) {
            return;
        }
        self.request_answered(node, session, tag, result, bytes);
        if result == Err(HostError::NotPrimary) {
            self.drop_session(node, session);
        }
    }

    /// The shell will tell the machine that a client is gone.
    pub(crate) fn drop_session(&mut self, node: usize, session: SessionId) {
        self.drop_session_after(1000, node, session);
    }

    /// The same, so many nanoseconds from now.
    pub(crate) fn drop_session_after(&mut self, delay: u64, node: usize, session: SessionId) {
        let life = self.nodes[node].life;
        self.after(delay, Event::HostGone { node, life, session });
    }
}

fn brief_input(input: &Input) -> String {
    match input {
        Input::Peer { connection, term, message, buf, .. } => {
            format!("Peer           {connection} term {term} {} {buf:?}", brief_message(message))
        }
        Input::PeerPage { connection, index, .. } => format!("PeerPage       {connection} {index}"),
        Input::Host { session, tag, op, range, fua } => {
            format!("Host           {session}/{tag} {op:?} {range:?} fua {fua}")
        }
        Input::DiskDone { op, result } => format!("DiskDone       {op:?} {result:?}"),
        Input::MetaDone { op, result } => format!("MetaDone       {op:?} {result:?}"),
        other => format!("{other:?}"),
    }
}

fn brief_message(message: &Message) -> String {
    format!("{message:?}")
}

fn brief_effect(effect: &Effect) -> String {
    match effect {
        Effect::MetaCommit { op, pages } => {
            format!("MetaCommit     {op:?} pages at {:?}", pages.iter().map(|p| p.offset).collect::<Vec<_>>())
        }
        Effect::Send { connection, term, message, .. } => {
            format!("Send           {connection} term {term} {}", brief_message(message))
        }
        other => format!("{other:?}"),
    }
}
