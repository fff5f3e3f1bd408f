//! What must be true, always or when it is quiet.

use repblk::condition::{DiskState, Mode, Role};
use repblk::units::{BLOCK_SIZE, Term};
use repblk::volume::io::Snapshot;

use crate::client::Orphan;
use crate::node::{PEER, letter};
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
    /// Each node counted the other in sync when last looked at.
    in_sync: [Option<bool>; 2],
    /// The highest term under which anything was acknowledged, and by whom.
    acknowledged: (Term, usize),
    /// Changes whose clients are gone, by node.
    pub(crate) orphans: [Vec<Orphan>; 2],
    /// Versions that a node's machine is done with without an acknowledgement.
    pub(crate) loose: [Vec<u32>; 2],
    /// A machine has reported a split brain.
    pub(crate) split_brain: bool,
    /// The operator has made two lines of data: what clients read is not checked any more.
    pub(crate) forked: bool,
}

impl Memory {
    /// A node's process is no more.
    pub(crate) fn forget(&mut self, node: usize) {
        self.in_sync[node] = None;
    }
}

impl World {
    /// A state of a machine changed.
    pub(crate) fn watch(&mut self, node: usize) {
        let Some(snapshot) = self.nodes[node].snapshot(self.now) else { return };
        if snapshot.disk == DiskState::Failed {
            self.history.disk_lost(node);
            // It does not know what it lacks when it comes back: only its peer may say that it is whole again.
            self.operator.excluded[node] = true;
        }
        let peer = &snapshot.peers[0];
        let in_sync = !peer.base.is_some() && peer.replication == "established" && peer.out_of_sync_bytes == 0;
        let was = self.memory.in_sync[node].replace(in_sync);
        if in_sync && was == Some(false) {
            self.mark("joined");
            self.history.joined(node, 1 - node, self.options.mode != Mode::Async);
            self.operator.excluded[1 - node] = false;
        }
    }

    /// Checker 2: acknowledgements follow the terms, and a term has one acknowledging node.
    pub(crate) fn acknowledging(&mut self, node: usize) {
        if self.memory.forked {
            return;
        }
        let snapshot = self.nodes[node].snapshot(self.now).expect("it has just answered");
        let (term, by) = self.memory.acknowledged;
        assert!(
            snapshot.term > term || snapshot.term == term && by == node,
            "node {} acknowledges at term {} after node {} did at term {term}",
            letter(node),
            snapshot.term,
            letter(by),
        );
        self.memory.acknowledged = (snapshot.term, node);
    }

    /// A client was given an error: some disk must have failed, in a way that leaves nobody to serve it.
    pub(crate) fn error_excused(&mut self, node: usize) {
        self.mark("client error");
        assert!(self.nodes[node].disk.ever_failed, "a client of node {} got EIO, and its disk is good", letter(node));
        let peer_good = self.nodes[1 - node].disk_is(DiskState::UpToDate, self.now);
        let linked = self.nodes[node].snapshot(self.now).is_some_and(|s| s.peers[0].connection == "connected");
        let peer_failed = self.nodes[1 - node].disk.ever_failed;
        assert!(
            !(peer_good && linked) || peer_failed,
            "a client of node {} got EIO while the peer is good",
            letter(node)
        );
    }

    /// The checkers that look at any time.
    pub(crate) fn check_now(&mut self) {
        for node in 0..2 {
            if self.nodes[node].snapshot(self.now).is_some_and(|s| s.requests == 0) {
                for orphan in std::mem::take(&mut self.memory.orphans[node]) {
                    self.history.loose(orphan.version());
                    self.memory.loose[node].push(orphan.version());
                }
            }
        }
        if let Some(why) = self.uncovered() {
            panic!("{why}\n  {}", self.summary());
        }
        if self.idle() {
            self.check_idle();
        }
    }

    /// Checker 3: a block that differs, and that nobody is writing, has a record that says so.
    fn uncovered(&self) -> Option<String> {
        if self.memory.forked || !self.operator.is_founded() {
            return None;
        }
        let [a, b] = &self.nodes;
        let (va, vb) = (&a.process.as_ref()?.volume, &b.process.as_ref()?.volume);
        let (sa, sb) = (a.snapshot(self.now)?, b.snapshot(self.now)?);
        if sa.disk == DiskState::Failed || sb.disk == DiskState::Failed {
            return None;
        }
        // Neither is at the generation at which the other left it behind: when they meet, every block counts.
        let meets = |mine: &Snapshot, theirs: &Snapshot| mine.peers[0].base == theirs.generation;
        if sa.generation != sb.generation && !meets(&sa, &sb) && !meets(&sb, &sa) {
            return None;
        }
        let (da, db) = (a.disk.data.view(), b.disk.data.view());
        let mut busy: Option<Vec<usize>> = None;
        for (block, (x, y)) in da.chunks(BLOCK_SECTORS).zip(db.chunks(BLOCK_SECTORS)).enumerate() {
            if x == y {
                continue;
            }
            let number = block as u64;
            if va.covers(PEER, number) || vb.covers(PEER, number) {
                continue;
            }
            let busy = busy.get_or_insert_with(|| {
                let in_flight = a.disk.sectors_in_flight().chain(b.disk.sectors_in_flight());
                in_flight.map(|sector| sector / BLOCK_SECTORS).collect()
            });
            if !busy.contains(&block) {
                let show = |s: &[u64]| s.iter().map(|&s| stamp::show(s)).collect::<Vec<_>>().join(" ");
                return Some(format!("block {block} differs and nobody knows:\n  A: {}\n  B: {}", show(x), show(y)));
            }
        }
        None
    }

    /// Nothing is under way anywhere.
    pub(crate) fn idle(&self) -> bool {
        let quiet_link = self.links.last().is_none_or(|l| l.cut || l.streams.iter().all(|s| !s.in_flight()));
        quiet_link
            && self.nodes.iter().all(|n| {
                n.disk.busy() == 0
                    && n.process.as_ref().is_some_and(|p| !p.turn_pending)
                    && n.snapshot(self.now)
                        .is_some_and(|s| s.requests == 0 && s.unstable_writes == 0 && s.resync.is_none())
            })
    }

    /// Checkers 4 and 5: in sync and idle, the images are identical and nothing is kept.
    fn check_idle(&mut self) {
        let in_sync = (0..2).all(|n| {
            let snapshot = self.nodes[n].snapshot(self.now).expect("idle nodes run");
            let peer = &snapshot.peers[0];
            let linked = peer.replication == "established" && !peer.base.is_some() && peer.out_of_sync_bytes == 0;
            linked && snapshot.disk == DiskState::UpToDate
        });
        if in_sync {
            self.check_identical();
            let written = self.options.mode != Mode::Async;
            self.history.joined(0, 1, written);
            self.history.joined(1, 0, written);
        }
        for node in 0..2 {
            let owned: Vec<_> = self.nodes[node].running().pool.owned().collect();
            assert!(owned.is_empty(), "node {} is idle and keeps buffers {owned:?}", letter(node));
        }
    }

    fn check_identical(&self) {
        let [a, b] = [0, 1].map(|n: usize| self.nodes[n].disk.data.view());
        if let Some(sector) = (0..a.len()).find(|&s| a[s] != b[s]) {
            panic!(
                "both copies are up to date and idle, and sector {sector} is {} on A and {} on B",
                stamp::show(a[sector]),
                stamp::show(b[sector])
            );
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
        let [a, b] = [0, 1].map(|n: usize| self.nodes[n].snapshot(self.now));
        let (Some(a), Some(b)) = (a, b) else { return false };
        let fine = |s: &Snapshot| {
            let peer = &s.peers[0];
            s.disk == DiskState::UpToDate && peer.replication == "established" && peer.out_of_sync_bytes == 0
        };
        let primaries = usize::from(a.role == Role::Primary) + usize::from(b.role == Role::Primary);
        fine(&a) && fine(&b) && primaries == 1
    }

    /// Checker 7: everything is healed; it must come to rest in bounded time, identical, with nothing lost or kept.
    pub(crate) fn converge(&mut self) {
        self.heal();
        self.undo_all();
        let mut tries = 0;
        let settled = self.run_until(CONVERGE_MAX, |w| {
            tries += 1;
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
