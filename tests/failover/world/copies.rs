//! What the volumes of the world do: directives, writes, mirroring, and what happens when two copies meet.

use repblk::condition::{DiskState, Role};
use repblk::failover::io::{Directive, Input};
use repblk::units::Term;

use super::{COMMIT, Durable, Event, Fate, HOP, Node, RESYNC, WRITES, World};
use crate::volume::{Meeting, meet};

impl<F: Fate> World<F> {
    pub(super) fn later(&mut self, node: usize, what: Durable) {
        let life = self.nodes[node].life;
        self.at(COMMIT, Event::Durable { node, life, what });
    }

    pub(super) fn directed(&mut self, node: usize, directive: Directive) {
        let copy = &mut self.nodes[node].copy;
        match directive {
            Directive::Promise { term, part } => {
                if copy.role == Role::Primary {
                    return;
                }
                // Nothing is taken from here on, and durable it is a moment later.
                copy.promised = None;
                if part {
                    self.drop_link("promise");
                }
                self.later(node, Durable::Promise(term));
            }
            Directive::Release => copy.promised = None,
            Directive::TakeOver { term, force } if copy.promised == Some(term) => {
                self.later(node, Durable::Primary { term, force });
            }
            Directive::TakeOver { .. } => {
                self.give(node, Input::VolumeRefused { why: "nothing was promised".into() });
            }
            Directive::Exclude { number } if copy.exclusion == Some(number) => {
                self.drop_link("an exclusion was allowed");
                self.later(node, Durable::Alone { number });
            }
            Directive::Exclude { .. } => {}
            Directive::StandDown => {
                copy.pending.clear();
                (copy.role, copy.exclusion, copy.draining) = (Role::Secondary, None, false);
                if copy.disk == DiskState::UpToDate {
                    copy.disk = DiskState::Outdated;
                }
                self.drop_link("superseded");
            }
            Directive::Drain => {
                copy.draining = true;
                self.drained(node);
            }
            Directive::Outdate => self.later(node, Durable::Outdated),
            Directive::Promote { .. } | Directive::Switchover { .. } => {}
        }
        self.look(node);
    }

    pub(super) fn drained(&mut self, node: usize) {
        let copy = &self.nodes[node].copy;
        if copy.draining && copy.pending.is_empty() && copy.exclusion.is_none() && copy.role == Role::Primary {
            self.later(node, Durable::Secondary);
        }
    }

    pub(super) fn durable(&mut self, node: usize, what: Durable) {
        self.generations += 1;
        let generation = self.generations;
        let linked = self.link.is_some();
        let copy = &mut self.nodes[node].copy;
        match what {
            Durable::Promise(term) => {
                copy.term = copy.term.max(term);
                copy.promised = Some(term);
            }
            Durable::Primary { term, .. } if copy.promised != Some(term) => {}
            Durable::Primary { term, force } => {
                copy.promised = None;
                copy.role = Role::Primary;
                copy.term = term;
                if force {
                    copy.disk = DiskState::UpToDate;
                }
                if !linked {
                    copy.leave_behind(generation);
                }
                let lacks: Vec<u64> = self.acked.iter().copied().filter(|id| !copy.data.contains(id)).collect();
                self.say(format!("{} is primary at term {term}", ["a", "b"][node]));
                if !lacks.is_empty() && !self.forced {
                    self.failed(&format!("a copy was promoted that lacks {lacks:?}"));
                }
            }
            Durable::Alone { number } if copy.exclusion == Some(number) => {
                copy.exclusion = None;
                copy.leave_behind(generation);
                for id in std::mem::take(&mut copy.pending) {
                    self.acknowledge(node, id);
                }
                self.drained(node);
            }
            Durable::Alone { .. } => {}
            Durable::Secondary => {
                (copy.role, copy.draining, copy.was_primary) = (Role::Secondary, false, false);
            }
            Durable::Outdated => copy.disk = DiskState::Outdated,
        }
        self.look(node);
    }

    pub(super) fn write(&mut self) {
        self.at(WRITES, Event::Write);
        for node in 0..2 {
            if !self.may_answer(node) || !self.is_awake(node) || self.nodes[node].copy.draining {
                continue;
            }
            let (id, link) = (self.next_write, self.link);
            self.next_write += 1;
            let copy = &mut self.nodes[node].copy;
            let term = copy.term;
            copy.data.insert(id);
            copy.pending.push(id);
            match (copy.base, link) {
                (Some(_), _) if !copy.in_sync => self.acknowledge(node, id),
                (_, Some(link)) => {
                    self.at(HOP, Event::Mirrored { to: 1 - node, link, id, term });
                }
                _ => {}
            }
        }
    }

    pub(super) fn mirrored(&mut self, to: usize, link: u64, id: u64, term: Term) {
        let fits = self.link == Some(link) && self.is_awake(to);
        let copy = &mut self.nodes[to].copy;
        if fits && copy.role == Role::Secondary && term >= copy.term {
            copy.data.insert(id);
            self.at(HOP, Event::Acked { to: 1 - to, link, id });
        }
    }

    /// A client is told that its write is done.
    pub(super) fn acknowledge(&mut self, node: usize, id: u64) {
        let copy = &mut self.nodes[node].copy;
        copy.pending.retain(|&pending| pending != id);
        if copy.role != Role::Primary || !self.may_answer(node) {
            return;
        }
        let term = self.nodes[node].copy.term;
        if term < self.acked_term && !self.forced {
            self.failed(&format!("an acknowledgement at term {term} after one at {}", self.acked_term));
        }
        self.acked_term = term;
        self.acked.push(id);
        self.last_ack[node] = self.now;
    }

    pub(super) fn try_link(&mut self) {
        let cut = self.cut_link || self.now < self.cut_until;
        if self.link.is_some() && cut {
            self.link_dies();
        }
        let holds = |node: &Node| {
            let idle = node.copy.promised.is_none() && !node.copy.draining;
            idle && node.failover.is_some() && node.paused_until.is_none_or(|until| until <= self.now)
        };
        if self.link.is_some() || cut || !self.nodes.iter().all(holds) {
            return;
        }
        match meet([&self.nodes[0].copy, &self.nodes[1].copy]) {
            Meeting::SplitBrain => {
                self.split_brains += 1;
                if self.split_brains == 1 {
                    self.say("split brain".into());
                }
            }
            Meeting::Wait => {}
            meeting @ (Meeting::Even | Meeting::From(_)) => {
                self.links += 1;
                self.link = Some(self.links);
                self.say(format!("link up: {meeting:?}"));
                let term = self.nodes[0].copy.term.max(self.nodes[1].copy.term);
                for node in &mut self.nodes {
                    (node.copy.term, node.copy.met_peer) = (term, true);
                }
                let link = self.links;
                match meeting {
                    Meeting::From(source) => {
                        self.nodes[1 - source].copy.disk = DiskState::Inconsistent;
                        self.at(RESYNC, Event::Resynced { link, source });
                    }
                    Meeting::Even | Meeting::Wait | Meeting::SplitBrain => self.even(),
                }
                (0..2).for_each(|node| self.look(node));
            }
        }
    }

    pub(super) fn resynced(&mut self, link: u64, source: usize) {
        if self.link != Some(link) || self.dying {
            return;
        }
        let from = self.nodes[source].copy.clone();
        let copy = &mut self.nodes[1 - source].copy;
        (copy.data, copy.lineage, copy.disk) = (from.data, from.lineage, DiskState::UpToDate);
        self.even();
        (0..2).for_each(|node| self.look(node));
    }

    /// Both copies are equal; an exclusion that was not allowed yet is withdrawn, and what waited is on both.
    fn even(&mut self) {
        for node in 0..2 {
            let copy = &mut self.nodes[node].copy;
            (copy.base, copy.in_sync, copy.exclusion) = (None, true, None);
            for id in copy.pending.clone() {
                self.acknowledge(node, id);
            }
        }
    }
}
