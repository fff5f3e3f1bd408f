//! What goes wrong by itself, and how it is made good again.

use repblk::condition::Mode;

use crate::disk::SimDisk;
use crate::media::Loss;
use crate::node::letter;
use crate::swarm::MS;
use crate::trace::trace;
use crate::world::{Event, Fault, World};

/// Every kind of fault.
const FAULTS: [Fault; 11] = [
    Fault::Power,
    Fault::Both,
    Fault::Kill,
    Fault::Cut,
    Fault::Stall,
    Fault::Damage,
    Fault::Whim,
    Fault::Rot,
    Fault::MetaDamage,
    Fault::Replace,
    Fault::Pause,
];

impl World {
    /// Faults begin to happen, as often as the options say.
    pub(crate) fn begin_trouble(&mut self) {
        self.trouble = true;
        for fault in FAULTS {
            self.plan(fault);
        }
    }

    fn plan(&mut self, fault: Fault) {
        let o = &self.options;
        let mean = match fault {
            Fault::Power => o.power_every,
            Fault::Both => o.both_every,
            Fault::Kill => o.kill_every,
            Fault::Cut => o.cut_every,
            Fault::Stall => o.stall_every,
            Fault::Damage => o.damage_every,
            Fault::Whim => o.whim_every,
            Fault::Rot => o.rot_every,
            Fault::MetaDamage => o.meta_damage_every,
            Fault::Replace => o.replace_every,
            Fault::Pause => o.pause_every,
        };
        if mean > 0 {
            let delay = self.rng.wait(mean);
            self.after(delay, Event::Fault(fault));
        }
    }

    /// A fault happens, and plans its next.
    pub(crate) fn fault(&mut self, fault: Fault) {
        if !self.trouble {
            return;
        }
        self.plan(fault);
        let mut node = self.rng.index(self.nodes.len());
        let trio = self.nodes.len() > 2;
        if trio && node == 0 && matches!(fault, Fault::Power | Fault::Both) {
            // What only its peers still hold cannot be told to them yet, see `docs/testing.md`.
            node = 1;
        }
        match fault {
            Fault::Power => {
                self.power_loss(node);
                self.restart_later(node);
            }
            Fault::Both => {
                let second = if trio { 3 - node } else { 1 - node };
                self.power_loss(node);
                self.power_loss(second);
                self.restart_later(node);
                self.restart_later(second);
            }
            Fault::Kill => {
                self.kill(node);
                self.restart_later(node);
            }
            Fault::Cut => {
                if self.rng.coin() {
                    let until = self.now + self.rng.between(MS, 4000 * MS);
                    self.data_cut_until = until;
                    if self.rng.coin() {
                        self.beats_cut_until = until;
                    }
                }
                self.cut_now("cut");
            }
            Fault::Stall => {
                let span = self.rng.between(MS, 5000 * MS);
                self.stall(node, span);
            }
            Fault::Damage => self.damage(node),
            Fault::Whim => self.whim(),
            Fault::Rot => self.rot(node),
            Fault::MetaDamage => self.damage_metadata(node),
            Fault::Replace => self.replace(node),
            Fault::Pause => {
                let span = self.rng.between(MS, 8000 * MS);
                self.pause(node, span);
            }
        }
    }

    /// The present link breaks.
    pub(crate) fn cut_now(&mut self, why: &'static str) {
        let links = self.latest_links();
        if links.len() > 1 {
            let link = self.rng.pick(&links);
            self.cut(link, why);
        } else if let Some(&link) = links.first() {
            self.cut(link, why);
        }
    }

    /// Nothing that `from` sends arrives for a while.
    pub(crate) fn stall(&mut self, from: usize, span: u64) {
        let Some(link) = self.links.iter().rposition(|l| l.ends.contains(&from)) else { return };
        trace!(self, Some(from), '!', "stall for {} ms", span / MS);
        let end = self.links[link].end(from);
        self.links[link].streams[end].stalled = true;
        self.after(span, Event::Unstall { link, from });
    }

    /// One bit under way from a node flips.
    pub(crate) fn damage(&mut self, from: usize) {
        let at = self.link_rng.next();
        let Some(link) = self.links.iter_mut().rfind(|l| l.ends.contains(&from)) else { return };
        let end = link.end(from);
        if link.streams[end].damage(at) {
            trace!(self, Some(from), '!', "a bit flips under way");
        }
    }

    /// A host loses power.
    pub(crate) fn power_loss(&mut self, node: usize) {
        let loss =
            self.options.loss.unwrap_or_else(|| self.rng.pick(&[Loss::Everything, Loss::Nothing, Loss::Anything]));
        self.power_loss_with(node, |disk| disk.power_loss(loss));
    }

    /// A host loses power, which leaves of its disk what `leave` leaves.
    pub(crate) fn power_loss_with(&mut self, node: usize, leave: impl FnOnce(&mut SimDisk)) {
        trace!(self, Some(node), '!', "power loss");
        self.hang_up(node, true);
        self.end_process(node);
        leave(&mut self.nodes[node].disk);
        self.nodes[node].boot = u128::from(self.rng.next()) | 1;
        self.history.power_lost(node);
    }

    /// A process is killed; its host and the host's cache go on.
    pub(crate) fn kill(&mut self, node: usize) {
        self.kill_with(node, SimDisk::kill);
    }

    /// A process is killed, which leaves of what is in flight what `leave` leaves.
    pub(crate) fn kill_with(&mut self, node: usize, leave: impl FnOnce(&mut SimDisk)) {
        trace!(self, Some(node), '!', "kill");
        self.hang_up(node, false);
        self.end_process(node);
        leave(&mut self.nodes[node].disk);
        if self.options.mode == Mode::SemiSync {
            // What was received and not written was in the process's memory.
            self.history.power_lost(node);
        }
    }

    /// A process is no more, whatever the reason.
    pub(crate) fn end_process(&mut self, node: usize) {
        if self.nodes[node].process.is_some() {
            self.gather_marks_of(node);
            self.clients_lose(node);
            self.nodes[node].process = None;
        }
        self.nodes[node].life += 1;
        self.nodes[node].paused_until = 0;
        self.keepsakes[node] = None;
        self.operator.forget(node);
        self.memory.forget(node);
    }

    fn restart_later(&mut self, node: usize) {
        // With an arbiter, longer than it takes to be replaced.
        let long = if self.options.arbitrated { 20_000 * MS } else { 4000 * MS };
        let span = if self.rng.coin() { 30 * MS } else { long };
        let delay = self.rng.between(MS, span);
        self.restart_after(node, delay);
    }

    /// The daemon of a node that is down starts again.
    pub(crate) fn restart_after(&mut self, node: usize, delay: u64) {
        let life = self.nodes[node].life;
        self.after(delay, Event::Start { node, life });
    }

    /// The process was told to end in order, and has said that it has.
    pub(crate) fn stop_in_order(&mut self, node: usize) {
        let busy = self.nodes[node].disk.busy();
        let owned: Vec<_> = self.nodes[node].running().pool.owned().collect();
        let hung = self.nodes[node].disk.health == crate::disk::Health::Hung;
        assert!(busy == 0 || hung, "node {} says it has ended with {busy} operations in flight", letter(node));
        assert!(owned.is_empty(), "node {} ends and keeps buffers {owned:?}", letter(node));
        trace!(self, Some(node), '!', "stopped");
        self.hang_up(node, false);
        self.end_process(node);
        self.nodes[node].disk.kill();
        let delay = self.rng.between(MS, 2000 * MS);
        self.restart_after(node, delay);
    }

    /// No more faults, and what is down comes up.
    pub(crate) fn heal(&mut self) {
        trace!(self, None, '!', "everything is healed");
        self.trouble = false;
        self.data_cut_until = 0;
        self.beats_cut_until = 0;
        self.options.heartbeats_lost = 0;
        for (unreachable, excluded) in self.unreachable.iter_mut().zip(self.operator.excluded) {
            // An old primary is kept from its clients until it has rejoined.
            *unreachable &= excluded;
        }
        for link in 0..self.links.len() {
            for end in 0..2 {
                self.links[link].streams[end].stalled = false;
                self.deliver(link, self.links[link].ends[end]);
            }
        }
        for node in 0..self.nodes.len() {
            let hung = self.nodes[node].disk.health == crate::disk::Health::Hung;
            if hung && self.nodes[node].process.is_some() {
                self.kill(node);
            }
            self.nodes[node].disk.heal();
            if self.nodes[node].process.is_none() {
                self.restart_after(node, 10 * MS);
            }
        }
    }
}
