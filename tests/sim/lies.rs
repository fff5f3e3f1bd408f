//! Disks that lie, rot, are damaged or exchanged, and processes that stop for a while.
//!
//! What can be promised: metadata is checksummed, so damage to it makes blocks dirty and never clean. Data has no checksums
//! of its own, so a sector that rots, or a write that a disk drops or misdirects and confirms, stays wrong until it is
//! written again; what is checked then is that no *other* sector is affected, and that the machine does not stumble. A disk
//! that comes back empty or older is known by its instance or its generation, and is never taken for up to date.

use repblk::condition::DiskState;
use repblk::meta::Layout;
use repblk::units::{ByteRange, DiskInstance, PeerNo};

use crate::node::blank;
use crate::stamp;
use crate::swarm::MS;
use crate::trace::trace;
use crate::world::World;

/// Length of a page of the metadata.
const PAGE: u64 = repblk::meta::PAGE_LEN as u64;

impl World {
    /// True while a node's process is stopped.
    pub(crate) fn is_paused(&self, node: usize) -> bool {
        self.nodes[node].paused_until > self.now
    }

    /// A process is stopped for a while; its host goes on.
    pub(crate) fn pause(&mut self, node: usize, span: u64) {
        if self.nodes[node].process.is_none() || self.is_paused(node) {
            return;
        }
        trace!(self, Some(node), '!', "stopped for {} ms", span / MS);
        self.mark("fault: a process stopped for a while");
        self.nodes[node].paused_until = self.now + span;
    }

    /// Takes note of what a disk has not done as it said.
    pub(crate) fn learn_lies(&mut self, node: usize) {
        for (sector, stamp) in std::mem::take(&mut self.nodes[node].disk.lies) {
            trace!(self, Some(node), '!', "the disk lied: sector {sector} holds {}", stamp::show(stamp));
            self.mark("fault: the disk lied about a sector");
            self.history.excuse(sector, stamp);
        }
    }

    /// A sector of the data rots.
    pub(crate) fn rot(&mut self, node: usize) {
        let sector = usize::try_from(self.rng.below(self.options.span)).expect("small");
        let number = self.rng.below(1 << 30);
        self.nodes[node].disk.rot(sector, stamp::rot(number, sector));
        self.learn_lies(node);
    }

    /// One zone of the metadata is damaged, whether the daemon runs or not.
    pub(crate) fn damage_metadata(&mut self, node: usize) {
        let layout = Layout::for_data_len(self.options.data_len);
        let (range, name) = match self.rng.below(5) {
            copy @ 0..=1 => {
                // Never both: the fault model has one damage at a time between two starts.
                if self.nodes[node].superblock_damaged {
                    return;
                }
                self.nodes[node].superblock_damaged = true;
                let copy = usize::try_from(copy).expect("small");
                (ByteRange::new(Layout::superblock_offset(copy), PAGE), ["superblock A", "superblock B"][copy])
            }
            2 => {
                let log = layout.activity_log_range();
                let page = self.rng.below(log.len() / PAGE);
                (ByteRange::new(log.start() + page * PAGE, PAGE), "a page of the activity log")
            }
            3 => {
                // The first transactions of an epoch stand here.
                (ByteRange::new(layout.activity_log_range().start(), 4 * PAGE), "the activity log's first pages")
            }
            _ => (layout.bitmap_range(PeerNo(0)), "a bitmap"),
        };
        trace!(self, Some(node), '!', "damage to {name}");
        self.mark(&format!("fault: damage to {name}"));
        self.nodes[node].disk.damage_meta(range);
        if self.rng.coin() {
            self.kill(node);
            self.restart_after(node, 10 * MS);
        }
    }

    /// A disk is exchanged, when the other copy holds everything: two lost disks are nobody's to save.
    pub(crate) fn replace(&mut self, node: usize) {
        let other = 1 - node; // only pairs exchange disks
        let safe = self.nodes[other].disk_is(DiskState::UpToDate)
            && !self.operator.excluded[other]
            && !self.nodes[other].disk.ever_failed
            && !self.memory.forked
            && self.history.complete_on(other);
        let snapshot_now = self.rng.coin();
        if snapshot_now || !safe {
            let image = self.nodes[node].disk.image();
            self.nodes[node].snapshot = Some((self.nodes[node].instance, image));
            return;
        }
        self.kill(node);
        let older = self.rng.coin() && self.replace_by_older(node);
        if !older {
            self.replace_by_empty(node);
        }
        let delay = self.rng.between(MS, 2000 * MS);
        self.restart_after(node, delay);
    }

    /// The disk is gone; a formatted one takes its place.
    pub(crate) fn replace_by_empty(&mut self, node: usize) {
        trace!(self, Some(node), '!', "the disk is replaced by an empty one");
        self.mark("fault: a disk was replaced by an empty one");
        let instance = DiskInstance(u128::from(self.rng.next()) << 32 | (node as u128 + 1));
        let n = &mut self.nodes[node];
        n.instance = instance;
        n.superblock_damaged = false;
        n.snapshot = None;
        n.disk.replace(&blank(instance, &self.options));
        self.lost_disk(node);
    }

    /// An earlier snapshot of the disk takes its place. False when there is none that could be told from the disk: a snapshot
    /// of the generation that is in force on either node cannot (see `docs/testing.md`).
    pub(crate) fn replace_by_older(&mut self, node: usize) -> bool {
        let Some((instance, image)) = self.nodes[node].snapshot.take() else { return false };
        if instance != self.nodes[node].instance {
            return false;
        }
        let generation = |w: &Self, node: usize| {
            let read = w.nodes[node].read_superblock(w.options.data_len);
            read.map(|u| u.superblock.lineage.current).ok()
        };
        let in_force = [generation(self, node), generation(self, 1 - node)];
        let present = self.nodes[node].disk.image();
        self.nodes[node].disk.restore(image);
        let older = generation(self, node);
        if older.is_none() || in_force.contains(&older) {
            self.nodes[node].disk.restore(present);
            return false;
        }
        trace!(self, Some(node), '!', "the disk is replaced by an older copy of itself");
        self.mark("fault: a disk was replaced by an older copy");
        self.lost_disk(node);
        true
    }

    fn lost_disk(&mut self, node: usize) {
        self.history.disk_lost(node);
        // It does not know what it lacks: only its peer may say that it is whole again.
        self.operator.excluded[node] = true;
        self.operator.stale[node] = true;
    }

    /// The clients of a node hear nothing of it any more and turn away; the machine will be told when it can listen.
    pub(crate) fn clients_turn_away(&mut self, node: usize) {
        let sessions: Vec<_> = self.nodes[node].running().sessions.iter().map(|(&s, &c)| (s, c)).collect();
        for (session, client) in sessions {
            if self.clients[client].at == Some((node, session)) {
                self.leave(client);
            }
            // What disks and peers had answered by then is heard first.
            self.drop_session_after(MS, node, session);
        }
    }
}
