//! What must be true, always or when it is quiet.

use std::collections::BTreeSet;

use repblk::condition::{DiskState, Mode, Role};
use repblk::units::{BLOCK_SIZE, Term};
use repblk::volume::io::{PeerSnapshot, PeerView};

use crate::client::Orphan;
use crate::node::{NODES_MAX, letter, others, peer_no};
use crate::stamp;
use crate::swarm::{MS, SECOND};
use crate::trace::trace;
use crate::world::{CONVERGE_MAX, World};

/// Sectors of one block.
const BLOCK_SECTORS: usize = 8;
const _: () = assert!(BLOCK_SIZE == 4096);

/// What checkers remember from one event to the next.
#[derive(Clone, Debug, Default)]
pub(crate) struct Memory {
    /// Each node counted each other in sync when last looked at.
    in_sync: [[Option<bool>; NODES_MAX]; NODES_MAX],
    /// The highest term under which anything was acknowledged, and by whom.
    acknowledged: (Term, usize),
    /// Changes whose clients are gone, by node.
    pub(crate) orphans: [Vec<Orphan>; NODES_MAX],
    /// Versions that a node's machine is done with without an acknowledgement.
    pub(crate) loose: [Vec<u32>; NODES_MAX],
    /// A machine has reported a split brain.
    pub(crate) split_brain: bool,
    /// Blocks in which each copy differs from node A's, as readers see them, at the last look.
    differing: [BTreeSet<usize>; NODES_MAX],
    /// The operator has made two lines of data: what clients read is not checked any more.
    pub(crate) forked: bool,
}

impl Memory {
    /// A node's process is no more.
    pub(crate) fn forget(&mut self, node: usize) {
        self.in_sync[node] = [None; NODES_MAX];
    }
}

/// True when a node counts a peer in sync and mirrors to it, or could.
fn equal(peer: &PeerSnapshot) -> bool {
    !peer.base.is_some() && peer.replication == "established" && peer.out_of_sync_bytes == 0
}

impl World {
    /// A state of a machine changed.
    pub(crate) fn watch(&mut self, node: usize) {
        let Some(snapshot) = self.nodes[node].snapshot(self.now) else { return };
        if snapshot.disk == DiskState::Failed {
            self.history.disk_lost(node);
            self.operator.stale[node] = true;
        }
        if snapshot.role == Role::Primary && snapshot.peers.iter().any(|peer| peer.connection == "connected") {
            // Whoever is linked to it has consented to what it has.
            self.operator.excluded[node] = false;
        }
        for other in others(node, self.nodes.len()) {
            let in_sync = equal(&snapshot.peers[usize::from(peer_no(node, other).0)]);
            let was = self.memory.in_sync[node][other].replace(in_sync);
            if in_sync && was == Some(false) {
                self.mark("joined");
                self.history.joined(node, other, self.options.mode != Mode::Async);
                self.operator.excluded[other] = false;
                self.operator.stale[other] = false;
            }
        }
    }

    /// Checker 2: acknowledgements follow the terms, and a term has one acknowledging node.
    pub(crate) fn acknowledging(&mut self, node: usize) {
        if self.memory.forked {
            return;
        }
        let present = self.nodes[node].term().expect("it has just answered");
        let (term, by) = self.memory.acknowledged;
        assert!(
            present > term || present == term && by == node,
            "node {} acknowledges at term {present} after node {} did at term {term}",
            letter(node),
            letter(by),
        );
        self.memory.acknowledged = (present, node);
    }

    /// A client was given an error: some disk must have failed, in a way that leaves nobody to serve it.
    pub(crate) fn error_excused(&mut self, node: usize) {
        self.mark("client error");
        assert!(self.nodes[node].disk.ever_failed, "a client of node {} got EIO, and its disk is good", letter(node));
        let mut near = others(node, self.nodes.len());
        let peer_good = near.clone().any(|other| self.nodes[other].disk_is(DiskState::UpToDate));
        let linked = self.nodes[node]
            .snapshot(self.now)
            .is_some_and(|s| s.peers.iter().any(|peer| peer.connection == "connected"));
        let peer_failed = near.any(|other| self.nodes[other].disk.ever_failed);
        assert!(
            !(peer_good && linked) || peer_failed,
            "a client of node {} got EIO while the peer is good",
            letter(node)
        );
    }

    /// The checkers that look at any time.
    pub(crate) fn check_now(&mut self) {
        for node in 0..self.nodes.len() {
            if self.nodes[node].snapshot(self.now).is_some_and(|s| s.requests == 0) {
                for orphan in std::mem::take(&mut self.memory.orphans[node]) {
                    self.history.loose(orphan.version());
                    self.memory.loose[node].push(orphan.version());
                }
            }
        }
        self.compare();
        for other in others(0, self.nodes.len()) {
            if let Some(why) = self.uncovered(other) {
                panic!("{why}\n  {}", self.summary());
            }
        }
        if self.idle() {
            self.check_idle();
        }
    }

    /// Keeps account of the blocks that differ: only what was touched is compared again.
    fn compare(&mut self) {
        let touched: Vec<usize> = self.nodes.iter_mut().flat_map(|n| n.disk.data.take_touched()).collect();
        let (first, rest) = self.nodes.split_first().expect("there are nodes");
        let a = first.disk.data.view();
        let mut last = usize::MAX;
        for sector in touched {
            let block = sector / BLOCK_SECTORS;
            if block == last {
                continue;
            }
            last = block;
            let sectors = block * BLOCK_SECTORS..((block + 1) * BLOCK_SECTORS).min(a.len());
            for (other, node) in rest.iter().enumerate() {
                let differing = &mut self.memory.differing[other + 1];
                if a[sectors.clone()] == node.disk.data.view()[sectors.clone()] {
                    differing.remove(&block);
                } else {
                    differing.insert(block);
                }
            }
        }
    }

    /// Checker 3: a block that differs, and that nobody is writing, has a record that says so.
    fn uncovered(&self, other: usize) -> Option<String> {
        let differing = &self.memory.differing[other];
        if self.memory.forked || !self.operator.is_founded() || differing.is_empty() {
            return None;
        }
        let (a, b) = (&self.nodes[0], &self.nodes[other]);
        let (va, vb) = (&a.process.as_ref()?.volume, &b.process.as_ref()?.volume);
        let (sa, sb) = (a.view(other)?, b.view(0)?);
        if sa.disk == DiskState::Failed || sb.disk == DiskState::Failed {
            return None;
        }
        // Neither is at the generation at which the other left it behind: when they meet, every block counts.
        let meets = |mine: &PeerView, theirs: &PeerView| mine.base_for_you == theirs.generation;
        if sa.generation != sb.generation && !meets(&sa, &sb) && !meets(&sb, &sa) {
            return None;
        }
        let (da, db) = (a.disk.data.view(), b.disk.data.view());
        let mut busy: Option<BTreeSet<usize>> = None;
        let (to_b, to_a) = (peer_no(0, other), peer_no(other, 0));
        for &block in differing {
            let number = block as u64;
            if va.covers(to_b, number) || vb.covers(to_a, number) {
                continue;
            }
            let busy = busy.get_or_insert_with(|| {
                let in_flight = a.disk.sectors_in_flight().chain(b.disk.sectors_in_flight());
                in_flight.map(|sector| sector / BLOCK_SECTORS).collect()
            });
            let sectors = block * BLOCK_SECTORS..((block + 1) * BLOCK_SECTORS).min(da.len());
            let unexplained = sectors.clone().any(|s| self.differ_unexcused(s, da[s], db[s]));
            if unexplained && !busy.contains(&block) {
                let show = |s: &[u64]| s.iter().map(|&s| stamp::show(s)).collect::<Vec<_>>().join(" ");
                return Some(format!(
                    "block {block} differs and nobody knows:\n  A: {}\n  {}: {}",
                    show(&da[sectors.clone()]),
                    letter(other),
                    show(&db[sectors])
                ));
            }
        }
        None
    }

    /// Nothing is under way anywhere.
    pub(crate) fn idle(&self) -> bool {
        let quiet = |&link: &usize| {
            let l = &self.links[link];
            l.cut || l.streams.iter().all(|s| !s.in_flight())
        };
        self.latest_links().iter().all(quiet)
            && self.nodes.iter().all(|n| {
                n.disk.busy() == 0
                    && n.process.as_ref().is_some_and(|p| !p.turn_pending)
                    && n.snapshot(self.now)
                        .is_some_and(|s| s.requests == 0 && s.unstable_writes == 0 && s.resync.is_none())
            })
    }

    /// Checkers 4 and 5: in sync and idle, the images are identical and nothing is kept.
    fn check_idle(&mut self) {
        let in_sync = self.nodes.iter().all(|n| {
            let snapshot = n.snapshot(self.now).expect("idle nodes run");
            snapshot.disk == DiskState::UpToDate && snapshot.peers.iter().all(equal)
        });
        if in_sync {
            self.check_identical();
            let written = self.options.mode != Mode::Async;
            for other in others(0, self.nodes.len()) {
                self.history.joined(0, other, written);
                self.history.joined(other, 0, written);
            }
        }
        for node in 0..self.nodes.len() {
            let owned: Vec<_> = self.nodes[node].running().pool.owned().collect();
            assert!(owned.is_empty(), "node {} is idle and keeps buffers {owned:?}", letter(node));
        }
    }

    /// True when two copies of a sector differ and no disk has lied about either.
    fn differ_unexcused(&self, sector: usize, a: u64, b: u64) -> bool {
        a != b && !self.history.is_excused(sector, a) && !self.history.is_excused(sector, b)
    }

    fn check_identical(&self) {
        let a = self.nodes[0].disk.data.view();
        for other in others(0, self.nodes.len()) {
            let b = self.nodes[other].disk.data.view();
            if let Some(sector) = (0..a.len()).find(|&s| self.differ_unexcused(s, a[s], b[s])) {
                panic!(
                    "the copies are up to date and idle, and sector {sector} is {} on A and {} on {}",
                    stamp::show(a[sector]),
                    stamp::show(b[sector]),
                    letter(other)
                );
            }
        }
    }

    /// Checker 1 on a whole copy: it holds nothing that it must not.
    pub(crate) fn check_copy(&mut self, node: usize) {
        if self.memory.forked {
            return;
        }
        let now = self.history.tick();
        let seen = self.nodes[node].disk.data.view();
        if let Err(why) = self.history.check(0, seen, now) {
            panic!("on node {} {why}", letter(node));
        }
    }

    /// Both nodes run, one is primary, both copies are up to date and equal as far as the machines say.
    pub(crate) fn settled(&self) -> bool {
        let fine = |n: &crate::node::Node| {
            n.disk_is(DiskState::UpToDate)
                && n.snapshot(self.now).is_some_and(|s| {
                    s.peers.iter().all(|peer| peer.replication == "established" && peer.out_of_sync_bytes == 0)
                })
        };
        let primaries = self.nodes.iter().filter(|n| n.is_primary()).count();
        primaries == 1 && self.nodes.iter().all(fine)
    }

    /// Checker 7: everything is healed; it must come to rest in bounded time, identical, with nothing lost or kept.
    pub(crate) fn converge(&mut self) {
        self.heal();
        self.undo_all();
        let mut tries = 0;
        let settled = self.run_until(CONVERGE_MAX, |w| {
            tries += 1;
            if tries % 400 == 0 {
                w.end_excluded_primaries();
            }
            // A primary that minted a generation to go on alone, and died before it was allowed to, splits from a peer that
            // is promoted in its place, although it acknowledged nothing alone. That is safe, and takes an operator.
            if (w.memory.forked || w.memory.split_brain) && tries % 2000 == 0 {
                w.resolve_split();
            }
            w.settled()
        });
        assert!(settled, "healed, and not settled after {} s:\n  {}", CONVERGE_MAX / SECOND, self.summary());
        for client in &mut self.clients {
            client.quiet = true;
        }
        let done = self.run_until(20 * SECOND, |w| w.clients.iter().all(|c| c.open.is_empty()));
        assert!(done, "healed, and requests are not answered:\n  {}", self.summary());
        let idle = self.run_until(20 * SECOND, |w| w.idle() && w.settled());
        assert!(idle, "healed, and never idle:\n  {}", self.summary());
        self.check_now();
        self.check_identical();
        self.check_copy(0);
        self.run_for(100 * MS);
        trace!(self, None, '*', "converged");
    }
}
