//! Clients: requests in flight, overlapping or not, and what their answers must be.

use repblk::units::{BufId, SessionId};
use repblk::volume::io::{HostError, HostOp, Input};

use crate::history::bit;
use crate::node::{others, peer_no};
use crate::stamp;
use crate::trace::trace;
use crate::world::World;
use repblk::condition::{DiskState, Mode};

/// One client.
#[derive(Clone, Debug, Default)]
pub(crate) struct Client {
    /// Where it is connected.
    pub(crate) at: Option<(usize, SessionId)>,
    /// Its requests under way, by tag.
    pub(crate) open: Vec<(u64, Request)>,
    /// What it lost with its session and may ask again.
    again: Vec<(usize, usize)>,
    /// After an error it asks nothing before this time.
    rests_until: u64,
    /// It has gone to sleep.
    pub(crate) quiet: bool,
    next_tag: u64,
}

/// What was asked.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Kind {
    /// Read.
    Read,
    /// Write, zero or trim: a version in the history. The buffer of a write.
    Change { version: u32, buf: Option<BufId>, fua: bool },
    /// Flush.
    Flush,
}

/// One request.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Request {
    kind: Kind,
    first: usize,
    len: usize,
    begun: u64,
}

/// A change whose client is gone while the machine may still be busy with it.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Orphan {
    version: u32,
    buf: Option<BufId>,
}

impl Orphan {
    /// The change.
    pub(crate) fn version(self) -> u32 {
        self.version
    }
}

impl World {
    /// A client looks for something to do.
    pub(crate) fn client_tick(&mut self, client: usize) {
        let next = self.client_rng.wait(self.options.think);
        self.after(next, crate::world::Event::ClientTick { client });
        if self.clients[client].quiet {
            return;
        }
        let Some((node, session)) = self.clients[client].at else {
            self.connect(client);
            return;
        };
        if self.is_paused(node) || self.clients[client].rests_until > self.now {
            return;
        }
        if self.client_rng.chance(1, 2000) {
            self.drop_session(node, session);
        } else if self.clients[client].open.len() < self.options.depth {
            self.ask(client);
        }
    }

    fn connect(&mut self, client: usize) {
        let nodes = self.nodes.len();
        let start = self.client_rng.index(nodes);
        for node in (start..nodes).chain(0..start) {
            let ready = self.nodes[node].process.as_ref().is_some_and(|p| !p.ending)
                && !self.unreachable[node]
                && !self.is_paused(node);
            if ready && self.nodes[node].is_primary() {
                let session = self.new_session();
                self.clients[client].at = Some((node, session));
                self.nodes[node].running().sessions.insert(session, client);
                self.step(node, Input::HostHere { session });
                return;
            }
        }
    }

    /// A client sends one random request.
    fn ask(&mut self, client: usize) {
        let rng = &mut self.client_rng;
        if rng.chance(1, self.options.flush_every) {
            self.request_flush(client);
            return;
        }
        let len = rng.between(1, self.options.request_sectors_max.min(self.options.span));
        let mut first = rng.below(self.options.span - len + 1);
        if rng.coin() {
            // As file systems do: whole blocks.
            first = first / 8 * 8;
        }
        let small = |n: u64| usize::try_from(n).expect("small");
        let (mut first, mut len) = (small(first), small(len));
        let kind = rng.below(16);
        let fua = rng.chance(1, 12);
        if rng.coin()
            && kind > 4
            && let Some(range) = self.clients[client].again.pop()
        {
            (first, len) = range;
        }
        match kind {
            0..=4 => self.request_read(client, first, len),
            5 => self.request_zero(client, first, len, fua, HostOp::Trim),
            6 => self.request_zero(client, first, len, fua, HostOp::Zero { unmap: fua }),
            _ => self.request_write(client, first, len, fua),
        }
    }

    /// A client writes.
    pub(crate) fn request_write(&mut self, client: usize, first: usize, len: usize, fua: bool) {
        let Some((node, _)) = self.clients[client].at else { return };
        let (version, stamps) = self.history.begin(first, len, false);
        let buf = self.nodes[node].running().pool.give(stamp::to_bytes(&stamps));
        let kind = Kind::Change { version, buf: Some(buf), fua };
        self.request(client, kind, first, len, HostOp::Write { buf }, fua);
    }

    fn request_zero(&mut self, client: usize, first: usize, len: usize, fua: bool, op: HostOp) {
        let (version, _) = self.history.begin(first, len, true);
        self.request(client, Kind::Change { version, buf: None, fua }, first, len, op, fua);
    }

    /// A client reads.
    pub(crate) fn request_read(&mut self, client: usize, first: usize, len: usize) {
        self.request(client, Kind::Read, first, len, HostOp::Read, false);
    }

    /// A client flushes.
    pub(crate) fn request_flush(&mut self, client: usize) {
        self.request(client, Kind::Flush, 0, 0, HostOp::Flush, false);
    }

    fn request(&mut self, client: usize, kind: Kind, first: usize, len: usize, op: HostOp, fua: bool) {
        let Some((node, session)) = self.clients[client].at else { return };
        let begun = self.history.tick();
        let c = &mut self.clients[client];
        c.next_tag += 1;
        let tag = c.next_tag;
        c.open.push((tag, Request { kind, first, len, begun }));
        self.step(node, Self::host_input(session, tag, op, first, len, fua));
    }

    /// The shell tells the machine that a session is gone.
    pub(crate) fn host_gone(&mut self, node: usize, session: SessionId) {
        let Some(client) = self.nodes[node].running().sessions.remove(&session) else { return };
        if self.clients[client].at == Some((node, session)) {
            self.leave(client);
        }
        self.step(node, Input::HostGone { session });
    }

    /// A client's connection is no more; its requests may still be going on.
    pub(crate) fn leave(&mut self, client: usize) {
        let c = &mut self.clients[client];
        c.again.clear();
        let Some((node, _)) = c.at.take() else { return };
        for (_, request) in std::mem::take(&mut c.open) {
            if let Kind::Change { version, buf, .. } = request.kind {
                c.again.push((request.first, request.len));
                self.memory.orphans[node].push(Orphan { version, buf });
            }
        }
    }

    /// The machine has given a buffer back: if its write has lost its client, it is done with.
    pub(crate) fn buffer_returned(&mut self, node: usize, buf: BufId) {
        let orphans = &mut self.memory.orphans[node];
        if let Some(i) = orphans.iter().position(|o| o.buf == Some(buf)) {
            let orphan = orphans.swap_remove(i);
            self.history.loose(orphan.version);
            self.memory.loose[node].push(orphan.version);
        }
    }

    /// A node's process has ended: nothing of what it was doing goes on.
    pub(crate) fn clients_lose(&mut self, node: usize) {
        for client in 0..self.clients.len() {
            if self.clients[client].at.is_some_and(|(n, _)| n == node) {
                self.leave(client);
            }
        }
        for orphan in std::mem::take(&mut self.memory.orphans[node]) {
            self.history.over(orphan.version);
        }
        for version in std::mem::take(&mut self.memory.loose[node]) {
            self.history.over(version);
        }
    }

    /// The nodes that must have what is acknowledged now.
    pub(crate) fn in_sync(&self, node: usize) -> u8 {
        let Some(snapshot) = self.nodes[node].snapshot(self.now) else { return 0 };
        let own = if snapshot.disk == DiskState::Failed { 0 } else { bit(node) };
        let mut held = own;
        for other in others(node, self.nodes.len()) {
            let peer = &snapshot.peers[usize::from(peer_no(node, other).0)];
            let established = peer.replication == "established";
            let mirrored = established && !peer.base.is_some() && peer.out_of_sync_bytes == 0;
            if own == 0 && established || self.options.mode != Mode::Async && mirrored {
                held |= bit(other);
            }
        }
        held
    }

    /// A request was answered.
    pub(crate) fn request_answered(
        &mut self,
        node: usize,
        session: SessionId,
        tag: u64,
        result: Result<(), HostError>,
        bytes: &[u8],
    ) {
        let client = self.nodes[node].running().sessions.get(&session).copied();
        let client = client.unwrap_or_else(|| panic!("{session}/{tag} was answered after its session was gone"));
        if self.clients[client].at != Some((node, session)) {
            // The client has turned away already; the machine does not know it yet, and nobody hears the answer.
            self.mark("an answer that nobody heard");
            return;
        }
        let open = &mut self.clients[client].open;
        let at = open.iter().position(|(t, _)| *t == tag);
        let at = at.unwrap_or_else(|| panic!("{session}/{tag} was answered twice, or never asked"));
        let (_, request) = open.swap_remove(at);
        if result.is_ok() {
            self.acknowledging(node);
        } else if result == Err(HostError::Io) {
            self.error_excused(node);
            self.clients[client].rests_until = self.now + 50 * crate::swarm::MS;
        }
        match request.kind {
            Kind::Change { version, .. } if result.is_err() => {
                self.history.loose(version);
                self.memory.loose[node].push(version);
            }
            Kind::Change { version, fua, .. } => {
                let held = self.in_sync(node);
                self.history.acknowledged(version, held, if fua { held } else { 0 });
            }
            Kind::Flush if result.is_ok() => {
                let stable = self.in_sync(node);
                self.history.flushed(request.begun, stable);
            }
            Kind::Read if result.is_ok() => {
                let stamps = stamp::of_bytes(bytes);
                assert_eq!(stamps.len(), request.len, "a read gives as much as was asked");
                if let Err(why) = self.history.check(request.first, &stamps, request.begun) {
                    if !self.memory.forked {
                        panic!("a client of node {} read {why}", crate::node::letter(node));
                    }
                    trace!(self, Some(node), '*', "after a split: {why}");
                }
                let held = self.in_sync(node);
                self.history.seen(request.first, &stamps, request.begun, held);
            }
            Kind::Read | Kind::Flush => {}
        }
    }
}
