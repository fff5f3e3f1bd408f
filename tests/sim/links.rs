//! How links come, carry and go: the part of the shell between the machines.

use repblk::meta::PAGE_LEN;
use repblk::units::{ConnectionId, Term};
use repblk::volume::io::Input;
use repblk::wire::Message;

use crate::net::Link;
use crate::node::{others, peer_no};
use crate::swarm::MS;
use crate::trace::trace;
use crate::world::{Event, OldFrame, World};

/// Bytes that a link takes in before the sender's shell would wait; more is a machine that does not limit itself.
const UNREAD_MAX: usize = 64 << 20;

impl World {
    /// The dialers try, if there is no link and one could be made.
    pub(crate) fn dial(&mut self) {
        let next = self.link_rng.between(20 * MS, 250 * MS);
        self.after(next, Event::Dial);
        for other in others(0, self.nodes.len()) {
            self.dial_pair([0, other]);
        }
    }

    /// The latest link between two nodes.
    fn link_of(&self, ends: [usize; 2]) -> Option<usize> {
        self.links.iter().rposition(|l| l.ends == ends)
    }

    /// The latest links of a node.
    fn links_of(&self, node: usize) -> Vec<usize> {
        let pairs = others(node, self.nodes.len()).map(|other| [node.min(other), node.max(other)]);
        pairs.filter_map(|ends| self.link_of(ends)).collect()
    }

    /// The latest link of each pair, oldest pair first.
    pub(crate) fn latest_links(&self) -> Vec<usize> {
        self.links_of(0)
    }

    fn dial_pair(&mut self, ends: [usize; 2]) {
        let alive = self.link_of(ends).is_some_and(|l| !self.links[l].cut);
        let running = ends.iter().all(|&n| self.nodes[n].process.as_ref().is_some_and(|p| !p.ending));
        if alive || !running || self.now < self.data_cut_until {
            return;
        }
        let connection = ConnectionId(self.link_rng.next() | 1);
        let link = self.links.len();
        self.links.push(Link::new(connection, ends));
        trace!(self, None, '*', "link {connection} is agreed");
        for node in ends {
            let life = self.nodes[node].life;
            let delay = self.link_rng.wait(self.options.latency);
            self.after(delay, Event::LinkUp { node, life, link });
        }
    }

    /// A node is given a link.
    pub(crate) fn link_up(&mut self, node: usize, link: usize) {
        if self.links[link].cut {
            return;
        }
        for older in (0..link).filter(|&older| self.links[older].ends == self.links[link].ends).collect::<Vec<_>>() {
            self.link_down(node, older, "another link has taken its place");
        }
        let l = &mut self.links[link];
        let (end, other) = (l.end(node), l.other(node));
        l.up[end] = true;
        let (connection, instance) = (l.connection, self.nodes[other].instance);
        self.step(node, Input::LinkUp { peer: peer_no(node, other), connection, instance });
        self.deliver(link, other);
    }

    /// A node learns that a link is down, once, and only of links that it was given.
    pub(crate) fn link_down(&mut self, node: usize, link: usize, why: &'static str) {
        let l = &mut self.links[link];
        let (end, other) = (l.end(node), l.other(node));
        if !l.up[end] || std::mem::replace(&mut l.down[end], true) {
            return;
        }
        let connection = l.connection;
        self.cut(link, why);
        if let Some(frame) = self.keepsakes[node].take() {
            let (life, delay) = (self.nodes[node].life, self.link_rng.between(MS, 2000 * MS));
            self.after(delay, Event::OldFrame { node, life, frame: Box::new(frame) });
        }
        self.step(node, Input::LinkDown { peer: peer_no(node, other), connection, why: why.to_owned() });
    }

    /// The machine sends a frame.
    pub(crate) fn send(&mut self, node: usize, connection: ConnectionId, term: Term, message: &Message, bytes: &[u8]) {
        let Some(link) = self.links.iter().rposition(|l| l.connection == connection) else {
            panic!("{connection} was never a link");
        };
        let arrives = self.now + self.link_rng.wait(self.options.latency);
        let l = &mut self.links[link];
        let end = l.end(node);
        assert!(l.up[end], "the machine does not know {connection} yet");
        if l.cut || l.down[end] {
            return;
        }
        let stream = &mut l.streams[end];
        let arrives = stream.send(term, message, bytes, arrives);
        assert!(stream.unread < UNREAD_MAX, "the machine sends without bound");
        self.at(arrives, Event::Deliver { link, from: node });
        self.frame_sent();
    }

    /// Bytes arrive; whole frames go to the machine.
    pub(crate) fn deliver(&mut self, link: usize, from: usize) {
        let to = self.links[link].other(from);
        let (sender, receiver) = (self.links[link].end(from), self.links[link].end(to));
        if self.is_paused(to) {
            let resumes = self.nodes[to].paused_until;
            self.at(resumes, Event::Deliver { link, from });
            return;
        }
        self.links[link].streams[sender].arrive(self.now);
        loop {
            let l = &mut self.links[link];
            if self.nodes[to].process.is_none() || !l.up[receiver] || l.down[receiver] {
                return;
            }
            let frame = match l.streams[sender].next() {
                None => return,
                Some(Ok(frame)) => frame,
                Some(Err(why)) => {
                    trace!(self, Some(to), '*', "refused: {why}");
                    self.mark("frame refused");
                    self.link_down(to, link, "a frame was refused");
                    return;
                }
            };
            let connection = l.connection;
            if self.link_rng.chance(1, 40) {
                self.keepsakes[to] = Some(OldFrame {
                    connection,
                    term: frame.term,
                    message: frame.message.clone(),
                    payload: frame.payload.clone(),
                });
            }
            self.hear(
                (to, from),
                OldFrame { connection, term: frame.term, message: frame.message, payload: frame.payload },
            );
        }
    }

    fn hear(&mut self, (to, from): (usize, usize), frame: OldFrame) {
        let peer = peer_no(to, from);
        let OldFrame { connection, term, message, payload } = frame;
        if let (&Message::BitmapPage { index }, Some(page)) = (&message, &payload) {
            let page: [u8; PAGE_LEN] = page.as_slice().try_into().expect("the format has checked its length");
            self.step(to, Input::PeerPage { peer, connection, index, page: Box::new(page) });
            return;
        }
        let buf = payload.map(|bytes| self.nodes[to].running().pool.give(bytes));
        self.step(to, Input::Peer { peer, connection, term, message, buf });
    }

    /// A frame of an older link turns up. The machine must not care.
    pub(crate) fn old_frame(&mut self, node: usize, frame: OldFrame) {
        let of = self.links.iter().find(|l| l.connection == frame.connection);
        if let Some(from) = of.filter(|l| l.down[l.end(node)]).map(|l| l.other(node)) {
            self.mark("old frame");
            self.hear((node, from), frame);
        }
    }

    /// The machine closes a link: what it sent before still arrives.
    pub(crate) fn close_link(&mut self, node: usize, connection: ConnectionId) {
        let Some(link) = self.links.iter().rposition(|l| l.connection == connection) else {
            panic!("{connection} was never a link");
        };
        let l = &mut self.links[link];
        let (at, peer) = (l.end(node), l.other(node));
        if l.cut || l.down[at] {
            return;
        }
        l.cut = true;
        let end = l.streams[at].last_arrival + 1;
        let (life, delay) = (self.nodes[peer].life, self.link_rng.wait(self.options.latency));
        self.at(end.max(self.now + delay), Event::LinkDown { node: peer, life, link, why: "closed by the peer" });
        if self.options.echo_close {
            let life = self.nodes[node].life;
            self.after(delay, Event::LinkDown { node, life, link, why: "closed" });
        } else {
            self.links[link].down[at] = true;
        }
    }

    /// The link breaks: a part of what is under way still arrives, then both learn of it.
    pub(crate) fn cut(&mut self, link: usize, why: &'static str) {
        if std::mem::replace(&mut self.links[link].cut, true) {
            return;
        }
        trace!(self, None, '!', "link {} breaks: {why}", self.links[link].connection);
        for from in 0..2 {
            let at = self.link_rng.next();
            let last = self.links[link].streams[from].cut(at);
            let (node, delay) = (self.links[link].ends[1 - from], self.link_rng.wait(self.options.latency.max(MS)));
            let life = self.nodes[node].life;
            self.at(last.max(self.now) + delay, Event::LinkDown { node, life, link, why: "the connection broke" });
        }
    }

    /// A node's end of its link vanishes: without a word when the host lost power.
    pub(crate) fn hang_up(&mut self, node: usize, silently: bool) {
        for link in self.links_of(node) {
            let end = self.links[link].end(node);
            self.links[link].down[end] = true;
            if !silently {
                self.cut(link, "the process ended");
                continue;
            }
            // Nobody tells the peer: it finds out by itself, or when the next link comes. Dialers may dial.
            self.links[link].cut = true;
            for stream in &mut self.links[link].streams {
                let at = self.link_rng.next();
                stream.cut(at);
            }
        }
    }
}
