//! A pair whose nodes can lose power: each has its disk on a [`Shim`], and a boot identity of its own that changes with every
//! power loss.

use crate::media::Loss;
use crate::node::Node;
use crate::pair::{MIB, Pair, Setup, in_sync};
use crate::rng::Rng;
use crate::shim::{Shim, new_boot};
use crate::tools::{LONG, SHORT, wait_for};

/// The two nodes, as indices.
pub(crate) const ALPHA: usize = 0;
pub(crate) const BETA: usize = 1;

/// How a power loss looks from the network.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Parting {
    /// The kernel has time to close the connections.
    Noticed,
    /// Connections end in silence, until the node is started again.
    Silent,
}

pub(crate) struct Powered {
    // Daemons end before their disks: fields are dropped in this order.
    pub(crate) pair: Pair,
    pub(crate) shims: [Shim; 2],
    pub(crate) rng: Rng,
    boots: u64,
}

impl Powered {
    /// In sync, `alpha` primary. What each disk keeps of its cache follows from `seed`.
    #[track_caller]
    pub(crate) fn up(setup: &Setup, seed: u64) -> Self {
        let mut pair = Pair::new(setup);
        let shims = [ALPHA, BETA].map(|which| {
            let node = node_mut(&mut pair, which);
            node.cli(&["init"]).ok();
            let boot = node.device.with_extension("boot");
            new_boot(&boot, which.try_into().expect("small"));
            let shim = Shim::start(&node.device, &node.device.with_extension("disk"));
            node.before = format!(
                "mount --bind {} /proc/sys/kernel/random/boot_id && {}",
                boot.display(),
                shim.mounting(&node.device)
            );
            shim
        });
        let mut powered = Self { pair, shims, rng: Rng::new(seed), boots: 1 };
        for which in [ALPHA, BETA] {
            powered.start(which);
        }
        powered.pair.wait_connected();
        powered.pair.alpha.cli(&["promote", "--force"]).ok();
        powered.pair.wait_in_sync();
        powered
    }

    pub(crate) fn node(&self, which: usize) -> &Node {
        [&self.pair.alpha, &self.pair.beta][which]
    }

    pub(crate) fn places(&self) -> [String; 2] {
        [self.pair.alpha.place(), self.pair.beta.place()]
    }

    /// The primary; none when there is none, or two.
    pub(crate) fn primary(&self) -> Option<usize> {
        let serves = |which| self.node(which).try_status().is_some_and(|v| v["role"] == "primary");
        match [serves(ALPHA), serves(BETA)] {
            [true, false] => Some(ALPHA),
            [false, true] => Some(BETA),
            _ => None,
        }
    }

    #[track_caller]
    pub(crate) fn start(&mut self, which: usize) {
        self.shims[which].settle();
        self.pair.proxy.mend();
        node_mut(&mut self.pair, which).start();
    }

    /// SIGKILL: the daemon dies, and its host's cache stays.
    pub(crate) fn kill(&mut self, which: usize) {
        node_mut(&mut self.pair, which).kill();
    }

    /// The power of one node goes: what its disk had not made stable is kept, lost or torn, sector by sector.
    pub(crate) fn cut_power(&mut self, which: usize, parting: Parting) {
        if parting == Parting::Silent {
            self.pair.proxy.stall();
        }
        self.shims[which].freeze();
        self.fall(which);
    }

    /// The power of both goes, in one moment.
    pub(crate) fn cut_both(&mut self) {
        for shim in &self.shims {
            shim.freeze();
        }
        self.fall(ALPHA);
        self.fall(BETA);
    }

    fn fall(&mut self, which: usize) {
        self.kill(which);
        let loss = self.rng.pick(&[Loss::Anything, Loss::Anything, Loss::Everything, Loss::Nothing]);
        self.shims[which].lose_power(loss, &mut self.rng);
        self.boots += 1;
        new_boot(&self.node(which).device.with_extension("boot"), self.boots);
    }

    /// Promotes on the operator's word that the other node is down, as soon as its heartbeats have faded.
    #[track_caller]
    pub(crate) fn take_over(&self, which: usize) {
        let node = self.node(which);
        wait_for(&format!("the promotion of {}", node.name), SHORT, || {
            let ran = node.cli(&["promote", "--peer-is-down"]);
            assert!(matches!(ran.code, Some(0 | 1)), "{ran:?}");
            (ran.code == Some(0) || node.status()["role"] == "primary").then_some(())
        });
    }

    /// Both are started: waits until they are in sync and one serves, if need be by a promotion without force.
    #[track_caller]
    pub(crate) fn recover(&self) -> usize {
        self.pair.wait_connected();
        self.recover_role();
        for which in [ALPHA, BETA] {
            self.node(which).wait("both in sync", LONG, in_sync);
        }
        self.primary().expect("one of them serves")
    }

    #[track_caller]
    fn recover_role(&self) {
        let mut turn = 0;
        wait_for("a primary", SHORT, || {
            if self.primary().is_some() {
                return Some(());
            }
            turn += 1;
            // Whoever was primary asks by itself, at once; what it may not have is for the operator to give.
            if turn > 10 {
                let _ = self.node(turn % 2).cli(&["promote"]);
            }
            None
        });
    }

    /// Compares what both disks show, and what both daemons see of them.
    #[track_caller]
    pub(crate) fn assert_identical(&self) {
        self.pair.assert_identical();
        let len = self.pair.alpha.data_len();
        for at in (0..len).step_by(usize::try_from(MIB).expect("small")) {
            let part = MIB.min(len - at);
            let [ours, theirs] = [ALPHA, BETA].map(|which| self.shims[which].view(at, part));
            assert!(ours == theirs, "the disks differ in the MiB at byte {at}");
        }
    }
}

pub(crate) fn node_mut(pair: &mut Pair, which: usize) -> &mut Node {
    if which == ALPHA { &mut pair.alpha } else { &mut pair.beta }
}
