//! What an operator sees, and what a test may ask.

use crate::condition::DiskState;
use crate::units::{BLOCK_SIZE, ByteRange, Moment, PeerNo};
use crate::volume::io::{DirtyRuns, PeerSnapshot, PeerView, Snapshot};
use crate::volume::peer::Sync;
use crate::volume::{FROZEN_AFTER, Volume};

impl Volume {
    /// How things are.
    #[must_use]
    pub fn snapshot(&self, now: Moment) -> Snapshot {
        let superblock = self.book.get();
        Snapshot {
            role: self.role,
            disk: superblock.disk,
            mode: self.config.mode,
            generation: superblock.lineage.current,
            history: superblock.lineage.history,
            term: superblock.term,
            whole_since: self.whole_since,
            peers: self.peer_numbers().map(|peer| self.peer_snapshot(now, peer)).collect(),
            resync: self.peer_numbers().find_map(|peer| self.resync_view(now, peer)),
            frozen: self
                .frozen_since
                .filter(|&since| now.since(since) >= FROZEN_AFTER)
                .map(|since| (self.frozen_reason(), now.since(since))),
            not_promotable: self.promotable(now).err(),
            requests: self.requests.len(),
            unstable_writes: self.log.len(),
            mirrored_bytes: self.mirrored_bytes,
            resynced_bytes: self.resynced_bytes,
        }
    }

    fn peer_snapshot(&self, now: Moment, peer: PeerNo) -> PeerSnapshot {
        let link = self.peer(peer);
        let seen = link.seen_within(now, super::roles::HEARTBEAT_FRESH, self.term()).map(|(_, view)| view);
        PeerSnapshot {
            name: link.name.clone(),
            connection: link.connection_word(),
            since: now.since(link.since),
            replication: link.replication_word(),
            disk: link.disk.filter(|_| link.connection().is_some()).or(seen.map(|view| view.disk)),
            role: link.role.or(seen.map(|view| view.role)),
            out_of_sync_bytes: self.out_of_sync_bytes(peer),
            base: self.view_for(peer).base_for_you,
            why: link.why.clone(),
        }
    }

    /// Blocks that this copy holds and a peer may lack: the first `runs_max` runs, each of at most `run_blocks_max` blocks,
    /// at or behind `from_block`. For whoever saves them before this copy is given up.
    #[must_use]
    pub fn dirty_runs(&self, from_block: u64, runs_max: usize, run_blocks_max: u64) -> DirtyRuns {
        let mut at = from_block;
        let next = || {
            let runs = self.peers.iter().filter_map(|peer| peer.bitmap.next_run(at, run_blocks_max));
            let (start, blocks) = runs.min_by_key(|&(start, blocks)| (start, std::cmp::Reverse(blocks)))?;
            at = start + blocks;
            Some(ByteRange::new(start * BLOCK_SIZE, blocks * BLOCK_SIZE))
        };
        let runs = std::iter::from_fn(next).take(runs_max).collect();
        DirtyRuns { role: self.role, generation: self.book.get().lineage.current, blocks: self.dirty_blocks(), runs }
    }

    /// Dirty blocks, counted for each peer.
    pub(super) fn dirty_blocks(&self) -> u64 {
        self.peers.iter().map(|peer| peer.bitmap.count()).sum()
    }

    /// A target knows how much is to come from the source, not from its own bitmap.
    fn out_of_sync_bytes(&self, peer: PeerNo) -> u64 {
        let link = self.peer(peer);
        match link.sync() {
            Some(Sync::TargetPreparing(incoming) | Sync::TargetRunning(incoming)) => {
                incoming.total.saturating_sub(incoming.done)
            }
            _ => link.bitmap.count() * BLOCK_SIZE,
        }
    }

    /// What a heartbeat to `peer` says of this node.
    #[must_use]
    pub fn view_for(&self, peer: PeerNo) -> PeerView {
        let superblock = self.book.get();
        let settled = self.peer(peer).exclusion.is_none();
        PeerView {
            instance: superblock.instance,
            role: self.role,
            disk: superblock.disk,
            term: superblock.term,
            generation: superblock.lineage.current,
            base_for_you: if settled { self.record(peer).base } else { crate::units::GenerationId::NONE },
        }
    }

    /// Notes since when requests wait.
    pub(super) fn watch_frozen(&mut self, now: Moment) {
        let stuck = self.requests.len() > 0
            && (self.peers.iter().any(|peer| peer.exclusion.is_some())
                || self.detaching.is_some()
                || self.transition.holds_requests()
                || !self.waiting.is_empty());
        if !stuck {
            self.frozen_since = None;
        } else if self.frozen_since.is_none() {
            self.frozen_since = Some(now);
        }
    }

    fn frozen_reason(&self) -> String {
        let lost = |peer: &super::Peer| Some((peer.name.clone(), peer.exclusion.as_ref()?.allowed));
        if let Some((name, allowed)) = self.peers.iter().find_map(lost) {
            let waits = if allowed { "the metadata disk" } else { "the arbiter" };
            return format!("{name} is lost; before this node goes on alone, {waits} must confirm it");
        }
        if self.detaching.is_some() {
            return "the local disk failed; the peer is recording it".into();
        }
        if self.transition.holds_requests() {
            return "the role is being given up".into();
        }
        "writes wait for room in the activity log, the transfer log or the backlog".into()
    }

    /// True when this node knows that `block` may differ from the peer's: it is dirty, hot, or in the transfer log.
    #[must_use]
    pub fn covers(&self, peer: PeerNo, block: u64) -> bool {
        let range = ByteRange::new(block * BLOCK_SIZE, BLOCK_SIZE);
        self.peer(peer).bitmap.is_set(block)
            || self.hot.covers(range.start())
            || self.log.above(crate::units::Seq(0)).any(|(_, entry)| entry.range.overlaps(range))
    }

    /// True when nothing is under way and nothing waits.
    #[must_use]
    pub fn is_idle(&self) -> bool {
        self.ops.len() == 0
            && self.remote_reads.is_empty()
            && self.peer_reads.is_empty()
            && self.requests.len() == 0
            && self.segments.len() == 0
            && self.log.len() == 0
            && self.stream_is_idle()
            && self.book.is_settled()
    }

    /// Names of the subtle branches that this machine has been through.
    pub fn marks(&self) -> impl Iterator<Item = &'static str> {
        self.marks.names()
    }

    /// Checks what must hold between two steps.
    ///
    /// # Panics
    /// When it does not.
    pub fn assert_invariants(&self) {
        let last = self.log.last();
        for peer in &self.peers {
            if let Some(cursor) = peer.cursor {
                assert!(cursor.stable <= cursor.written && cursor.written <= cursor.received, "{cursor:?}");
                assert!(cursor.received <= last, "{cursor:?} of {last}");
                assert!(peer.connection().is_some(), "writes are mirrored over a link");
            }
            if let Some(exclusion) = &peer.exclusion {
                assert!(peer.share_floor.is_some() || peer.cursor.is_some(), "an exclusion holds shares");
                assert!(!exclusion.allowed || peer.cursor.is_none(), "an excluded peer is not mirrored to");
                assert_eq!(self.role, crate::condition::Role::Primary, "only a primary goes on alone");
            }
        }
        assert!(self.local.stable <= self.local.written && self.local.written <= last, "{:?}", self.local);
        if self.disk() == DiskState::Failed {
            assert!(!self.local_ok, "a failed disk is not used");
        }
        if self.is_idle() {
            assert_eq!(self.in_flight.len(), 0, "nobody holds a range when nothing is under way");
            assert_eq!(self.hot.pinned(), 0, "no extent is referenced when nothing is under way");
            assert!(
                self.waiting.is_empty() && self.conflicted.is_empty() && self.warming.is_empty(),
                "no segment is forgotten"
            );
        }
    }
}
