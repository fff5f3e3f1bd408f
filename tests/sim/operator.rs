//! People, the daemon and the arbiter, in one.
//!
//! An honest operator keeps the record that an arbiter would: which copy may no longer be promoted by itself. A primary that
//! wants to go on alone is told so only when the peer has not been promoted, and a peer is promoted unseen only when the
//! primary was not told so, is dead or out of its clients' reach, and stays so until it rejoins. A careless operator promotes what
//! it likes.

use std::collections::BTreeMap;

use repblk::condition::{DiskState, Role};
use repblk::units::Ticket;
use repblk::volume::io::{Command, Discard, Refusal};

use crate::disk::Health;
use crate::node::{NODES_MAX, others};
use crate::swarm::{MS, SECOND};
use crate::trace::trace;
use crate::world::{Event, World};

/// What the operator keeps in mind.
#[derive(Clone, Debug, Default)]
pub(crate) struct Operator {
    /// Copies that may not be promoted by themselves.
    pub(crate) excluded: [bool; NODES_MAX],
    /// Copies whose disk failed or was exchanged, and that have not rejoined. They do not know what they lack: only a peer may say that
    /// they are whole again, and in a split it is they that are given up.
    pub(crate) stale: [bool; NODES_MAX],
    /// Only does what it is told; answers exclusions and nothing else.
    pub(crate) passive: bool,
    /// Lets nobody go on alone.
    pub(crate) mute: bool,
    /// Commands under way, with their node.
    pending: BTreeMap<Ticket, (usize, Command)>,
    /// Exclusions wanted, by the node that wants them and the one that is to be excluded.
    wants: [[Option<u64>; NODES_MAX]; NODES_MAX],
    /// No primary was seen since.
    headless_since: Option<u64>,
    /// The first promotion was done.
    pub(crate) founded: bool,
    /// To be undone at that time.
    undo: Vec<(u64, usize, Command)>,
    /// A disk failed or hangs since.
    sick_since: [Option<u64>; NODES_MAX],
    tries: u64,
}

impl Operator {
    /// A node's process is no more.
    pub(crate) fn forget(&mut self, node: usize) {
        self.pending.retain(|_, (n, _)| *n != node);
        self.undo.retain(|(_, n, _)| *n != node);
        self.wants[node] = [None; NODES_MAX];
        self.sick_since[node] = None;
    }

    /// The volume holds data already.
    pub(crate) fn is_founded(&self) -> bool {
        self.founded
    }
}

impl World {
    /// The operator looks around.
    pub(crate) fn operator_tick(&mut self) {
        self.after(50 * MS, Event::OperatorTick);
        self.answer_exclusions();
        let due = self.now;
        let (undo, rest) = std::mem::take(&mut self.operator.undo).into_iter().partition(|(at, ..)| *at <= due);
        self.operator.undo = rest;
        let undo: Vec<(u64, usize, Command)> = undo;
        for (_, node, command) in undo {
            self.order(node, command);
        }
        if self.operator.passive {
            return;
        }
        self.nurse();
        if self.operator.pending.is_empty() {
            self.see_to_a_primary();
        }
    }

    /// Sends a command and remembers that it is under way.
    pub(crate) fn order(&mut self, node: usize, command: Command) -> Ticket {
        if let (Command::Shutdown, Some(process)) = (&command, &mut self.nodes[node].process) {
            process.ending = true;
        }
        let ticket = self.command(node, command.clone());
        if self.nodes[node].process.is_some() {
            self.operator.pending.insert(ticket, (node, command));
        }
        ticket
    }

    /// A primary wants to go on alone.
    pub(crate) fn exclusion_wanted(&mut self, node: usize, peer: usize, number: u64) {
        if self.nodes[node].disk_is(DiskState::Failed) && !self.operator.mute {
            // It gives its own copy up, in favour of one that it is linked to.
            self.command(node, Command::Exclude { number });
        } else {
            self.operator.wants[node][peer] = Some(number);
        }
    }

    /// A primary does not want to go on alone any more: the peer is in sync.
    pub(crate) fn exclusion_withdrawn(&mut self, node: usize, peer: usize) {
        self.operator.wants[node][peer] = None;
        self.operator.excluded[peer] = false;
    }

    fn answer_exclusions(&mut self) {
        let pairs = (0..self.nodes.len()).flat_map(|node| others(node, self.nodes.len()).map(move |peer| (node, peer)));
        for (node, peer) in pairs.collect::<Vec<_>>() {
            let Some(number) = self.operator.wants[node][peer] else { continue };
            let promoting =
                self.operator.pending.values().any(|(n, c)| *n == peer && matches!(c, Command::Promote { .. }));
            let refused = self.operator.excluded[node] || promoting || self.operator.mute;
            if refused && !self.options.careless {
                continue;
            }
            self.operator.wants[node][peer] = None;
            self.operator.excluded[peer] = true;
            self.command(node, Command::Exclude { number });
        }
    }

    /// A command was answered.
    pub(crate) fn answered(&mut self, node: usize, ticket: Ticket, result: Result<(), Refusal>) {
        self.mark_answer(&result);
        assert!(self.answers.insert(ticket, result.clone()).is_none(), "{ticket} is answered twice");
        self.directive_answered(node, ticket, &result);
        let Some((_, command)) = self.operator.pending.remove(&ticket) else { return };
        match (command, result.is_ok()) {
            (Command::Promote { force, peer_is_down }, true) => {
                self.operator.founded = true;
                if force || peer_is_down {
                    // Whoever promotes a copy unseen answers for what only the other has.
                    self.history.forgive_all_but(node);
                }
            }
            (Command::Promote { peer_is_down: true, .. }, false) => {
                for other in others(node, self.nodes.len()) {
                    self.operator.excluded[other] = false;
                }
            }
            (Command::Shutdown, true) => {
                let sessions: Vec<_> = self.nodes[node].running().sessions.keys().copied().collect();
                for session in sessions {
                    self.drop_session(node, session);
                }
                let life = self.nodes[node].life;
                self.after(2000, Event::Stop { node, life });
            }
            (Command::Shutdown, false) => self.nodes[node].running().ending = false,
            _ => {}
        }
    }

    /// Sick disks are exchanged for healthy ones with the same content: the daemon starts again.
    fn nurse(&mut self) {
        for node in 0..self.nodes.len() {
            if self.nodes[node].process.is_none() {
                continue;
            }
            let sick = self.nodes[node].disk_is(DiskState::Failed) || self.nodes[node].disk.health == Health::Hung;
            if !sick {
                self.operator.sick_since[node] = None;
                continue;
            }
            let since = *self.operator.sick_since[node].get_or_insert(self.now);
            let healthy_peer =
                others(node, self.nodes.len()).any(|other| self.nodes[other].disk_is(DiskState::UpToDate));
            if self.now - since > if healthy_peer { 2 * SECOND } else { 5 * SECOND } {
                trace!(self, Some(node), '!', "the disk is seen to");
                self.kill(node);
                self.nodes[node].disk.health = Health::Good;
                self.restart_after(node, 20 * MS);
            }
        }
    }

    fn see_to_a_primary(&mut self) {
        let roles: Vec<_> = self.nodes.iter().map(crate::node::Node::role).collect();
        for (node, role) in roles.iter().enumerate() {
            // Out of reach until it has rejoined, or has nothing to say any more.
            self.unreachable[node] &= *role == Some(Role::Primary) && self.operator.excluded[node];
        }
        if roles.contains(&Some(Role::Primary)) {
            self.operator.headless_since = None;
            return;
        }
        let since = *self.operator.headless_since.get_or_insert(self.now);
        let patience = if self.operator.founded { 300 * MS } else { 0 };
        if self.now < since + patience {
            return;
        }
        self.operator.tries += 1;
        let trio = self.nodes.len() > 2;
        let node = if trio { 0 } else { usize::from(self.operator.tries.is_multiple_of(2)) };
        if roles[node].is_none() {
            return;
        }
        if !self.operator.founded {
            if node == 0 {
                self.order(0, Command::Promote { force: true, peer_is_down: true });
            }
            return;
        }
        let alone = !trio && roles[1 - node].is_none();
        let complete = self.history.complete_on(node);
        if !alone {
            self.order(node, Command::Promote { force: false, peer_is_down: false });
        } else if !self.operator.excluded[node]
            && !self.operator.stale[node]
            && (complete || self.trouble && self.rng.chance(1, 40))
        {
            // The other is dead, and will find itself excluded when it comes back.
            self.operator.excluded[1 - node] = true;
            self.order(node, Command::Promote { force: false, peer_is_down: true });
        }
    }

    /// Something that operators do.
    pub(crate) fn whim(&mut self) {
        if !self.operator.founded || !self.operator.pending.is_empty() {
            return;
        }
        let node = self.rng.index(self.nodes.len());
        if self.nodes[node].process.is_none() {
            return;
        }
        if self.nodes.len() > 2 {
            self.whim_of_three(node);
            return;
        }
        if self.options.careless && self.rng.chance(1, 3) {
            trace!(self, Some(node), '!', "a careless promotion");
            self.memory.forked = true;
            let force = self.rng.coin();
            self.order(node, Command::Promote { force, peer_is_down: true });
            return;
        }
        let later = self.now + self.rng.between(10 * MS, 3 * SECOND);
        match self.rng.below(10) {
            0..=2 => {
                self.order(node, Command::Switchover);
            }
            3 => {
                let disconnect_clients = self.rng.coin();
                self.order(node, Command::Demote { disconnect_clients });
            }
            4 => {
                self.order(node, Command::Disconnect);
                self.operator.undo.push((later, node, Command::Connect));
            }
            5 => {
                self.order(node, Command::Pause);
                self.operator.undo.push((later, node, Command::Resume));
            }
            6 => {
                let full = self.rng.coin();
                self.order(node, Command::Resync { full, discard: None });
            }
            7 => {
                self.order(node, Command::Shutdown);
            }
            8 => {
                self.order(node, Command::Promote { force: false, peer_is_down: false });
            }
            _ => self.fail_over_in_a_partition(node),
        }
    }

    /// With two secondaries only what keeps the primary's role.
    fn whim_of_three(&mut self, node: usize) {
        let later = self.now + self.rng.between(10 * MS, 3 * SECOND);
        match self.rng.below(3) {
            0 => {
                self.order(node, Command::Disconnect);
                self.operator.undo.push((later, node, Command::Connect));
            }
            1 => {
                self.order(node, Command::Pause);
                self.operator.undo.push((later, node, Command::Resume));
            }
            _ => {
                let full = self.rng.coin();
                self.order(node, Command::Resync { full, discard: None });
            }
        }
    }

    /// The primary cannot be seen by anybody: its clients are kept from it and the peer takes over.
    fn fail_over_in_a_partition(&mut self, node: usize) {
        let peer = 1 - node;
        let unfit = self.operator.excluded[node] || self.operator.stale[node];
        if self.nodes[node].is_primary() || !self.nodes[peer].is_primary() || unfit {
            return;
        }
        trace!(self, Some(node), '!', "a partition, and this side takes over");
        let until = self.now + self.rng.between(SECOND, 5 * SECOND);
        self.data_cut_until = until;
        self.beats_cut_until = until;
        self.cut_now("partition");
        self.unreachable[peer] = true;
        self.clients_turn_away(peer);
        self.operator.excluded[peer] = true;
        self.order(node, Command::Promote { force: false, peer_is_down: true });
    }

    /// A primary that waits for an exclusion it will never get cannot be demoted, and does not greet: its daemon is ended.
    pub(crate) fn end_excluded_primaries(&mut self) {
        for node in 0..self.nodes.len() {
            let waits = self.operator.wants[node].iter().any(Option::is_some);
            if waits && self.operator.excluded[node] && self.nodes[node].is_primary() {
                self.mark("an excluded primary was ended");
                self.kill(node);
                self.restart_after(node, 10 * MS);
            }
        }
    }

    /// After a split brain: the copy to be given up is given up.
    pub(crate) fn resolve_split(&mut self) {
        let primaries = [0, 1].map(|n: usize| self.nodes[n].is_primary());
        let loser = match self.operator.stale {
            [true, false, _] => 0,
            [false, true, _] => 1,
            _ => match self.operator.excluded {
                // A primary that nobody told to stop has acknowledged nothing since it was excluded.
                [true, false, _] => 0,
                [false, true, _] => 1,
                _ => usize::from(primaries[0]),
            },
        };
        if primaries[loser] {
            self.order(loser, Command::Demote { disconnect_clients: true });
        } else {
            self.order(loser, Command::Resync { full: false, discard: Some(Discard::Unsaved) });
        }
    }

    /// Everything that was put off or stopped goes on.
    pub(crate) fn undo_all(&mut self) {
        for (at, ..) in &mut self.operator.undo {
            *at = self.now;
        }
    }
}
