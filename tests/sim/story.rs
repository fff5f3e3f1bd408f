//! How scenarios are told: a world that has been founded, and verbs.

use repblk::condition::{DiskState, Role};
use repblk::units::Ticket;
use repblk::volume::io::{Command, Refusal};

use crate::swarm::{MS, Options, SECOND};
use crate::world::World;

/// A founded pair: node A is primary, both copies are in sync, the clients rest and the operator does what it is told.
pub(crate) struct Story {
    /// The world.
    pub(crate) w: World,
}

/// Something that is to happen at a point that is counted, not timed.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Blow {
    /// The link is cut.
    Cut,
    /// A process is killed.
    Kill(usize),
    /// A host loses power.
    Power(usize),
}

/// A blow that waits for a frame.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Trap {
    /// How many more frames, of either node, are let by.
    pub(crate) left: u64,
    /// What happens then.
    pub(crate) blow: Blow,
}

impl Story {
    /// With calm options and two clients.
    pub(crate) fn begin(seed: u64) -> Self {
        Self::with(seed, Options { clients: 2, ..Options::calm() })
    }

    /// With other options.
    pub(crate) fn with(seed: u64, options: Options) -> Self {
        crate::trace::start(std::env::var_os("REPBLK_TRACE").is_some(), true);
        let mut w = World::new(seed, options);
        w.begin();
        let mut story = Self { w };
        story.rest();
        let founded = story.w.run_until(20 * SECOND, |w| w.operator.is_founded() && w.settled());
        assert!(founded, "a new pair comes into being:\n  {}", story.w.summary());
        assert!(story.w.nodes[0].is_primary());
        story.w.operator.passive = true;
        story
    }

    /// Clients work for a while, and go on.
    pub(crate) fn load(&mut self, span: u64) -> &mut Self {
        for client in &mut self.w.clients {
            client.quiet = false;
        }
        self.w.run_for(span);
        self
    }

    /// Clients send nothing more.
    pub(crate) fn rest(&mut self) -> &mut Self {
        for client in &mut self.w.clients {
            client.quiet = true;
        }
        self
    }

    /// Time passes.
    pub(crate) fn wait(&mut self, span: u64) -> &mut Self {
        self.w.run_for(span);
        self
    }

    /// Both copies come to be in sync with some primary.
    pub(crate) fn settles(&mut self) -> &mut Self {
        let settled = self.w.run_until(30 * SECOND, |w| w.settled());
        assert!(settled, "it settles:\n  {}", self.w.summary());
        self
    }

    /// Every request is answered and nothing is under way.
    pub(crate) fn idles(&mut self) -> &mut Self {
        self.rest();
        let idle = self.w.run_until(30 * SECOND, |w| w.clients.iter().all(|c| c.open.is_empty()) && w.idle());
        assert!(idle, "it comes to rest:\n  {}", self.w.summary());
        self
    }

    /// The link is cut and stays so.
    pub(crate) fn cut_for(&mut self, span: u64) -> &mut Self {
        self.w.data_cut_until = self.w.now + span;
        self.w.cut_now("scenario");
        self
    }

    /// A command, answered within 2 s.
    pub(crate) fn tell(&mut self, node: usize, command: Command) -> Result<(), Refusal> {
        let ticket: Ticket = self.w.order(node, command);
        let answered = self.w.run_until(15 * SECOND, |w| w.answers.contains_key(&ticket));
        assert!(answered, "every command is answered:\n  {}", self.w.summary());
        self.w.answers[&ticket].clone()
    }

    /// The peer is dead, and `node` takes over; the other may not be promoted by itself any more.
    pub(crate) fn take_over(&mut self, node: usize) -> &mut Self {
        self.w.operator.excluded[1 - node] = true;
        let mut answer = self.promote_unseen(node);
        for _ in 0..20 {
            // A power loss says no farewell: until the peer has been silent for long enough, it counts as alive.
            if answer.is_ok() {
                break;
            }
            answer = self.wait(250 * MS).promote_unseen(node);
        }
        assert_eq!(answer, Ok(()), "the survivor takes over:\n  {}", self.w.summary());
        self
    }

    /// An operator vouches that the peer of `node` is off.
    pub(crate) fn promote_unseen(&mut self, node: usize) -> Result<(), Refusal> {
        self.tell(node, Command::Promote { force: false, peer_is_down: true })
    }

    /// The two nodes hear nothing of each other for a while.
    pub(crate) fn part_for(&mut self, span: u64) -> &mut Self {
        self.w.beats_cut_until = self.w.now + span;
        self.cut_for(span)
    }

    /// The daemon of a node that is down starts.
    pub(crate) fn start(&mut self, node: usize) -> &mut Self {
        self.w.restart_after(node, MS);
        self
    }

    /// The end of every story: healed, the pair converges, and everything holds.
    pub(crate) fn ends(&mut self) {
        for client in &mut self.w.clients {
            client.quiet = false;
        }
        self.w.operator.passive = false;
        self.w.run_for(300 * MS);
        self.w.converge();
    }

    /// Role of a node.
    pub(crate) fn role(&self, node: usize) -> Option<Role> {
        self.w.nodes[node].snapshot(self.w.now).map(|s| s.role)
    }

    /// Disk state of a node.
    pub(crate) fn disk(&self, node: usize) -> Option<DiskState> {
        self.w.nodes[node].snapshot(self.w.now).map(|s| s.disk)
    }

    /// Bytes of resync a node has sent or received since it started.
    pub(crate) fn resynced(&self, node: usize) -> u64 {
        self.w.nodes[node].snapshot(self.w.now).map_or(0, |s| s.resynced_bytes)
    }

    /// Sets a trap.
    pub(crate) fn trap(&mut self, left: u64, blow: Blow) -> &mut Self {
        self.w.trap = Some(Trap { left, blow });
        self
    }
}

impl World {
    /// A frame was sent: a trap may wait for it.
    pub(crate) fn frame_sent(&mut self) {
        let Some(trap) = self.trap.as_mut() else { return };
        if trap.left > 0 {
            trap.left -= 1;
            return;
        }
        let blow = trap.blow;
        self.trap = None;
        self.after(0, crate::world::Event::Blow(blow));
    }

    /// A blow falls. What it brings down is started again.
    pub(crate) fn fall(&mut self, blow: Blow) {
        match blow {
            Blow::Cut => self.cut_now("trap"),
            Blow::Kill(node) => {
                self.kill(node);
                self.restart_after(node, 200 * MS);
            }
            Blow::Power(node) => {
                self.power_loss(node);
                self.restart_after(node, 200 * MS);
            }
        }
    }
}
