//! What goes wrong by itself, and how it is made good again.

use repblk::condition::Mode;

use crate::disk::SimDisk;
use crate::media::Loss;
use crate::node::letter;
use crate::swarm::MS;
use crate::trace::trace;
use crate::world::{Event, Fault, World};

/// Every kind of fault.
const FAULTS: [Fault; 7] =
    [Fault::Power, Fault::Both, Fault::Kill, Fault::Cut, Fault::Stall, Fault::Damage, Fault::Whim];

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
        let node = self.rng.index(2);
        match fault {
            Fault::Power => {
                self.power_loss(node);
                self.restart_later(node);
            }
            Fault::Both => {
                self.power_loss(node);
                self.power_loss(1 - node);
                self.restart_later(node);
                self.restart_later(1 - node);
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
        }
    }

    /// The present link breaks.
    pub(crate) fn cut_now(&mut self, why: &'static str) {
        if let Some(link) = self.links.len().checked_sub(1) {
            self.cut(link, why);
        }
    }

    /// Nothing that `from` sends arrives for a while.
    pub(crate) fn stall(&mut self, from: usize, span: u64) {
        let Some(link) = self.links.len().checked_sub(1) else { return };
        trace!(self, Some(from), '!', "stall for {} ms", span / MS);
        self.links[link].streams[from].stalled = true;
        self.after(span, Event::Unstall { link, from });
    }

    /// One bit under way from a node flips.
    pub(crate) fn damage(&mut self, from: usize) {
        let at = self.link_rng.next();
        let Some(link) = self.links.last_mut() else { return };
        if link.streams[from].damage(at) {
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
            self.clients_lose(node);
            self.nodes[node].process = None;
        }
        self.nodes[node].life += 1;
        self.keepsakes[node] = None;
        self.operator.forget(node);
        self.memory.forget(node);
    }

    fn restart_later(&mut self, node: usize) {
        let span = if self.rng.coin() { 30 * MS } else { 4000 * MS };
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
        self.unreachable = [false; 2];
        for link in 0..self.links.len() {
            for from in 0..2 {
                self.links[link].streams[from].stalled = false;
                self.deliver(link, from);
            }
        }
        for node in 0..2 {
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
