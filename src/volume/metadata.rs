//! Commits of the metadata: superblock, activity log, bitmap pages; and the routing of what completes.
//!
//! At most one commit of each kind is under way, so that no page is ever written twice at once. Orders that matter:
//!
//! - attach: modified bitmap pages, then the superblock with a new activity-log epoch; only then the first transaction;
//! - eviction from the activity log: the bitmap pages of what is evicted, then the transaction;
//! - a new generation: the data is flushed, then the superblock that names it;
//! - a record's `full` mark is taken away when every page of its bitmap is durable.

use std::time::Duration;

use crate::condition::{Continuity, DiskState};
use crate::meta::{MetaPage, activity_log};
use crate::units::{Moment, OpId};
use crate::volume::book::Then;
use crate::volume::io::{DiskError, Effect};
use crate::volume::marks::Mark;
use crate::volume::peer::Link;
use crate::volume::{Effects, Op, Volume};

/// The activity log's commit.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum LogCommit {
    /// None.
    Idle,
    /// A transaction is being written.
    Writing,
}

/// Bitmap pages in one commit.
const PAGES_MAX: usize = 64;
/// Modified bitmap pages of a connected peer are written this often.
const BITMAP_INTERVAL: Duration = Duration::from_secs(2);

/// Extents leave in groups, this far apart.
const COOL_INTERVAL: Duration = Duration::from_millis(100);

impl Volume {
    /// Makes durable that this node has the disk, before anything else happens.
    pub(super) fn attach(&mut self, now: Moment, out: &mut Effects) {
        if self.attached || self.attaching || !self.local_ok {
            return;
        }
        if self.bitmap_commit.is_some() || self.commit_bitmaps(now, self.modified_pages(|_| true), out) {
            return;
        }
        if std::mem::take(&mut self.blank_log) {
            self.mark(Mark::LogBlanked);
            let pages = activity_log::blank_pages(self.book.get().instance).collect();
            self.start_page_commit(pages, out);
            return;
        }
        self.attaching = true;
        for peer in &mut self.peers {
            peer.since = now;
        }
        for text in std::mem::take(&mut self.notes) {
            Self::note(text, true, out);
        }
        // Until a peer has made good what may have been lost, an orderly end in between must not hide it.
        let boot = if self.continuity == Continuity::Lost { 0 } else { self.config.boot };
        self.book.change_then(Then::Attached, |superblock| {
            superblock.al_epoch += 1;
            superblock.clean = false;
            superblock.boot = boot;
        });
    }

    /// Starts the commits that are due.
    pub(super) fn pump_metadata(&mut self, now: Moment, out: &mut Effects) {
        if !self.local_ok {
            self.pump_without_disk(now, out);
            return;
        }
        if self.attached {
            self.pump_log_commit(now, out);
            self.pump_bitmaps(now, out);
        }
        self.pump_superblock(out);
    }

    /// Without a disk nothing becomes durable, and an operator's wish must not wait for it: the role is given up, or the
    /// end comes, as it is. Whatever would promise something to a peer was dropped with the link to it.
    fn pump_without_disk(&mut self, now: Moment, out: &mut Effects) {
        for then in self.book.abandon() {
            if matches!(then, Then::Demoted | Then::ShutDown | Then::Excluded(_)) {
                self.mark(Mark::Abandoned);
                self.durable(now, then, out);
            }
            if let Then::Promised(ticket, _) | Then::Done(ticket) = then {
                let what = "this node's disk failed meanwhile";
                let way_out = "Promote the other node, then replace the disk";
                let result = Err(super::roles::refusal(super::rule::Rule::DiskFailed, what, way_out));
                out.push(Effect::Answer { ticket, result });
            }
        }
        self.pump_obituary(out);
    }

    fn pump_superblock(&mut self, out: &mut Effects) {
        if self.book.is_settled() {
            return;
        }
        // One at a time: a flush under way may have begun before what the newest generation vouches for was written.
        if self.lineage_flush.is_none() && self.book.begin_flush() {
            self.mark(Mark::GenerationWaited);
            let op = self.begin(Op::LineageFlush);
            self.lineage_flush = Some(op);
            out.push(Effect::DiskFlush { op });
        }
        let ops = &mut self.ops;
        if let Some((op, page)) = self.book.next_commit(|| OpId(u64::from(ops.insert(Op::Superblock)))) {
            out.push(Effect::MetaCommit { op, pages: vec![page] });
        }
    }

    fn pump_log_commit(&mut self, now: Moment, out: &mut Effects) {
        if self.log_commit != LogCommit::Idle {
            return;
        }
        self.cool_extents(now);
        if !self.hot.has_waiting() {
            return;
        }
        let evicted: Vec<_> =
            self.hot.waiting(activity_log::UPDATES_MAX).iter().filter_map(|change| change.old).collect();
        let ranges: Vec<_> = evicted.into_iter().map(|extent| self.hot.range_of(extent, self.data_len)).collect();
        let peers = self.peers.iter().enumerate();
        let needed: Vec<(usize, u64)> = peers
            .flat_map(|(at, peer)| {
                let pages = ranges.iter().flat_map(|&range| peer.bitmap.modified_in(range));
                pages.map(move |page| (at, page))
            })
            .collect();
        if self.bitmap_commit.is_some() || self.commit_bitmaps(now, needed, out) {
            self.mark(Mark::EvictionWaited);
            return;
        }
        let updates: Vec<_> =
            self.hot.begin_commit(activity_log::UPDATES_MAX).iter().map(|change| (change.slot, change.new)).collect();
        let page = self.log_writer.transaction(&updates);
        self.log_commit = LogCommit::Writing;
        let op = self.begin(Op::LogCommit);
        out.push(Effect::MetaCommit { op, pages: vec![page] });
    }

    /// Lets extents go that nobody has written to for a while, a few at a time.
    fn cool_extents(&mut self, now: Moment) {
        if now.since(self.cooled) < COOL_INTERVAL || !self.hot.is_used() {
            return;
        }
        self.cooled = now;
        if now.since(self.swept) >= self.config.cool_after {
            self.swept = now;
            self.hot.sweep();
        }
        if !self.hot.has_waiting() {
            self.hot.cool(activity_log::UPDATES_MAX);
            if self.hot.has_waiting() {
                self.mark(Mark::Cooled);
            }
        }
    }

    /// When to look for extents to cool.
    pub(super) fn cool_due(&self) -> Option<Moment> {
        let idle = self.attached && self.local_ok && self.log_commit == LogCommit::Idle && self.hot.is_used();
        idle.then(|| self.cooled.after(COOL_INTERVAL))
    }

    /// Writes modified bitmap pages of the peers for which it is worth it now.
    fn pump_bitmaps(&mut self, now: Moment, out: &mut Effects) {
        if self.bitmap_commit.is_some() {
            return;
        }
        if self.peer_numbers().any(|peer| self.wants_bitmap(peer, now)) {
            let urgent: Vec<bool> = self.peer_numbers().map(|peer| self.wants_bitmap(peer, now)).collect();
            self.commit_bitmaps(now, self.modified_pages(|peer| urgent[peer]), out);
        }
        self.drop_full_marks();
    }

    fn wants_bitmap(&self, peer: crate::units::PeerNo, now: Moment) -> bool {
        let link = self.peer(peer);
        if link.bitmap.modified_count() == 0 {
            return false;
        }
        let up = matches!(link.link, Link::Up { .. });
        self.transition.is_final()
            || (up && self.record(peer).full)
            || (up && now.since(self.bitmaps_flushed) >= BITMAP_INTERVAL)
    }

    pub(super) fn bitmap_flush_due(&self) -> Option<Moment> {
        let due = self.peers.iter().any(|p| p.bitmap.modified_count() > 0 && matches!(p.link, Link::Up { .. }));
        (due && self.attached && self.bitmap_commit.is_none() && self.local_ok)
            .then(|| self.bitmaps_flushed.after(BITMAP_INTERVAL))
    }

    fn drop_full_marks(&mut self) {
        for peer in self.peer_numbers() {
            let slot = self.slot(peer);
            let known = matches!(self.peer(peer).link, Link::Up { .. });
            if known
                && self.record(peer).full
                && self.bitmap_commit.is_none()
                && self.peer(peer).bitmap.modified_count() == 0
            {
                self.book.change(|superblock| superblock.peers[slot].full = false);
            }
        }
    }

    /// True when every change of every bitmap is durable.
    pub(super) fn bitmaps_are_durable(&self) -> bool {
        !self.local_ok || self.bitmap_commit.is_none() && self.peers.iter().all(|p| p.bitmap.modified_count() == 0)
    }

    /// The first [`PAGES_MAX`] modified pages of the peers (by index) that `wanted` names.
    fn modified_pages(&self, wanted: impl Fn(usize) -> bool) -> Vec<(usize, u64)> {
        let whole = crate::units::ByteRange::new(0, self.data_len);
        let mut pages = Vec::new();
        for (at, peer) in self.peers.iter().enumerate().filter(|&(at, _)| wanted(at)) {
            if peer.bitmap.modified_count() > 0 {
                pages.extend(peer.bitmap.modified_in(whole).into_iter().map(|page| (at, page)));
            }
        }
        pages
    }

    /// Commits up to [`PAGES_MAX`] of these pages. False when there are none.
    fn commit_bitmaps(&mut self, now: Moment, mut wanted: Vec<(usize, u64)>, out: &mut Effects) -> bool {
        wanted.sort_unstable();
        wanted.dedup();
        wanted.truncate(PAGES_MAX);
        if wanted.is_empty() {
            return false;
        }
        let instance = self.book.get().instance;
        let mut pages = Vec::with_capacity(wanted.len());
        for (at, page) in wanted {
            let peer = &mut self.peers[at];
            pages.push(peer.bitmap.encode_page(page, peer.slot, instance, &self.layout));
        }
        self.bitmaps_flushed = now;
        self.start_page_commit(pages, out);
        true
    }

    fn start_page_commit(&mut self, pages: Vec<MetaPage>, out: &mut Effects) {
        let op = self.begin(Op::BitmapCommit);
        self.bitmap_commit = Some(op);
        out.push(Effect::MetaCommit { op, pages });
    }

    pub(super) fn meta_done(&mut self, now: Moment, done: Op, result: Result<(), DiskError>, out: &mut Effects) {
        match done {
            Op::LogCommit => self.log_commit = LogCommit::Idle,
            Op::BitmapCommit => self.bitmap_commit = None,
            Op::Obituary(what) => {
                self.obituary_written(what, result);
                return;
            }
            _ => {}
        }
        if let Err(error) = result {
            // Also when the disk had failed before: see `obituary_written`.
            (self.metadata_ok, self.obituary) = (false, None);
            self.fail_local(now, "metadata", error, out);
            return;
        }
        if !self.local_ok {
            return;
        }
        match done {
            Op::LogCommit => {
                self.hot.commit_done();
                self.launch_warmed(now, out);
            }
            Op::BitmapCommit => {}
            Op::Superblock => {
                for then in self.book.committed() {
                    self.durable(now, then, out);
                }
            }
            _ => unreachable!("only metadata commits are answered by MetaDone"),
        }
    }

    fn durable(&mut self, now: Moment, then: Then, out: &mut Effects) {
        match then {
            Then::Attached => self.attached = true,
            Then::Excluded(peer) => self.excluded_durably(peer, out),
            Then::Promoted => self.promoted(now, out),
            Then::Granted(peer, term) => self.send(peer, crate::wire::Message::Grant { term }, None, out),
            Then::Demoted => self.demoted(now, out),
            Then::TargetReady(peer) => self.target_is_ready(now, peer, out),
            Then::TargetFinished(peer) => self.target_is_finished(now, peer, out),
            Then::SourceFinished(peer) => self.source_finished(peer, out),
            Then::PeerDetached(peer, generation) => {
                self.send(peer, crate::wire::Message::DetachedDone { generation }, None, out);
            }
            Then::ShutDown => self.shut_down(out),
            Then::Promised(ticket, term) => {
                self.promise_is_durable(term);
                out.push(Effect::Answer { ticket, result: Ok(()) });
            }
            Then::Done(ticket) => out.push(Effect::Answer { ticket, result: Ok(()) }),
        }
    }

    /// A disk operation ended.
    pub(super) fn disk_done(
        &mut self,
        now: Moment,
        op: OpId,
        done: Op,
        result: Result<Option<crate::units::BufId>, DiskError>,
        out: &mut Effects,
    ) {
        let plain = result.map(|_| ());
        match done {
            Op::SegmentWrite(segment) => self.segment_written(now, segment, plain, out),
            Op::HostRead(request) => self.host_read_done(request, result, out),
            Op::LocalFlush { covers } => self.local_flushed(now, covers, plain, out),
            Op::ResyncRead { peer, connection, range } => {
                self.resync_read_done(now, (peer, connection), range, result, out);
            }
            Op::StreamWrite { seq } => self.stream_written(now, seq, plain, out),
            Op::LineageFlush => self.lineage_flushed(now, plain, out),
            Op::StreamFlush { covers } => self.stream_flushed(now, covers, plain, out),
            Op::PeerRead { peer, connection, id, len } => {
                self.answer_peer_read((peer, connection), (id, len), result, out)
            }
            Op::Superblock | Op::Obituary(_) | Op::LogCommit | Op::BitmapCommit => {
                unreachable!("{op:?} is no disk operation")
            }
        }
    }

    /// What a new generation vouches for is stable, or the disk has failed.
    fn lineage_flushed(&mut self, now: Moment, result: Result<(), DiskError>, out: &mut Effects) {
        self.lineage_flush = None;
        match result {
            Ok(()) => self.book.flushed(),
            Err(error) => self.fail_local(now, "flush", error, out),
        }
    }

    /// Changes the disk state, durably where it can.
    pub(super) fn set_disk(&mut self, to: DiskState, why: &str, out: &mut Effects) {
        let old = self.disk();
        self.book.change(|superblock| superblock.disk = to);
        Self::changed("disk", old, to, why, out);
        self.tell_state(out);
    }
}
