//! The sending side of a resync.
//!
//! A dirty run asks for its range like any write, is read, becomes an entry of the transfer log and goes out in the same stream as the
//! host's writes, so that nothing newer can be overtaken. Its dirty bits are cleared where every entry's are: when it is
//! stable on both copies. Writes of the host are mirrored from the start of the resync on, and clear bits too.
//!
//! # The end
//!
//! ```text
//!  nothing dirty, nothing unstable --> "in sync" durable here --> ResyncFinish --> UpToDate durable there --> ResyncFinished
//! ```
//! From the first durable step on the target counts as in sync: this node goes on without it only by an exclusion. So there is no moment
//! in which the target may be promoted while the source acknowledges alone.

use crate::condition::{DiskState, Role};
use crate::meta::Page;
use crate::units::{BLOCK_SIZE, BufId, ByteRange, ConnectionId, GenerationId, Moment, PeerNo};
use crate::volume::book::Then;
use crate::volume::io::{BufSlice, DiskError, Effect, Report, ResyncView, SendBody};
use crate::volume::marks::Mark;
use crate::volume::peer::Sync;
use crate::volume::resync::Outgoing;
use crate::volume::transfer_log::Entry;
use crate::volume::{Effects, Op, Volume};
use crate::wire::Message;

/// A resync that waits for its pace looks again this often.
const RESYNC_TICK: std::time::Duration = std::time::Duration::from_millis(20);

impl Volume {
    pub(super) fn source_begins(&mut self, peer: PeerNo, full: bool, out: &mut Effects) {
        if full {
            self.peer_mut(peer).bitmap.set_all();
            let slot = self.slot(peer);
            self.book.change(|superblock| superblock.peers[slot].full = true);
        }
        self.set_sync(peer, Sync::SourceCollecting);
        let name = self.peer(peer).name.clone();
        let why = if full { "every block is to be copied" } else { "its dirty blocks are collected" };
        Self::changed(&format!("replication {name}"), "off", "source", why, out);
    }

    pub(super) fn set_sync(&mut self, peer: PeerNo, to: Sync) {
        *self.peer_mut(peer).sync_mut().expect("the link is up") = to;
    }

    /// A page of the target's bitmap: what it may have changed counts too.
    pub(super) fn bitmap_page_heard(
        &mut self,
        now: Moment,
        (peer, connection): (PeerNo, ConnectionId),
        index: u64,
        page: &Page,
        out: &mut Effects,
    ) {
        if self.peer(peer).connection() != Some(connection) {
            return;
        }
        self.peer_mut(peer).heard = now;
        if !matches!(self.peer(peer).sync(), Some(Sync::SourceCollecting)) {
            self.drop_link(now, peer, "protocol error: a bitmap page that was not asked for".into(), out);
        } else if let Err(error) = self.peer_mut(peer).bitmap.merge_wire_page(index, page) {
            self.drop_link(now, peer, format!("protocol error: {error}"), out);
        }
    }

    pub(super) fn bitmap_end_heard(&mut self, now: Moment, peer: PeerNo, out: &mut Effects) {
        if !matches!(self.peer(peer).sync(), Some(Sync::SourceCollecting)) {
            self.drop_link(now, peer, "protocol error: an end of bitmap that was not asked for".into(), out);
            return;
        }
        self.set_sync(peer, Sync::SourceStarting);
        let generation = self.book.get().lineage.current;
        let dirty_blocks = self.peer(peer).bitmap.count();
        self.send(peer, Message::ResyncBegin { generation, dirty_blocks }, None, out);
    }

    pub(super) fn target_ready(&mut self, now: Moment, peer: PeerNo, out: &mut Effects) {
        if !matches!(self.peer(peer).sync(), Some(Sync::SourceStarting)) {
            self.drop_link(now, peer, "protocol error: a target is ready that was not asked".into(), out);
            return;
        }
        // It has left the generation it was behind at. Should a copy of that generation come back, it is an older one, and lacks
        // what this resync is about to call clean.
        let slot = self.slot(peer);
        let present = self.book.get().lineage.current;
        if self.record(peer).base != present {
            self.book.change(|superblock| superblock.peers[slot].base = present);
        }
        let dirty = self.peer(peer).bitmap.count();
        let outgoing = Outgoing::new(now, dirty, self.config.pace);
        self.set_sync(peer, Sync::SourceRunning(outgoing));
        self.peer_mut(peer).disk = Some(DiskState::Inconsistent);
        self.resync_reported = now;
        self.open_stream(now, peer, out);
        self.report_resync(now, peer, false, out);
        self.try_to_resume(now, out);
    }

    /// Reads dirty runs while the pace allows, and ends a resync that has nothing left.
    pub(super) fn pump_sources(&mut self, now: Moment, out: &mut Effects) {
        for peer in self.peer_numbers() {
            if !matches!(self.peer(peer).sync(), Some(Sync::SourceRunning(_))) {
                continue;
            }
            self.resync_pumped = now;
            if !(self.peer(peer).paused.0 || self.peer(peer).paused.1) {
                while self.read_run(now, peer, out) {}
                self.finish_source(now, peer, out);
            }
            self.tick_report(now, peer, out);
        }
    }

    fn read_run(&mut self, now: Moment, peer: PeerNo, out: &mut Effects) -> bool {
        let host_active = self.host_active;
        if !self.log_has_room() || !self.local_ok || self.transition.holds_requests() {
            return false;
        }
        // Half of the log stays free for the host; one run at a time may go on even when the host fills it.
        let none_under_way =
            matches!(self.peer(peer).sync(), Some(Sync::SourceRunning(o)) if o.reading + o.unstable == 0);
        if self.log.is_crowded() {
            if !none_under_way {
                return false;
            }
            self.mark(Mark::ResyncCrowded);
        }
        let segment_blocks = (self.config.limits.segment_len / BLOCK_SIZE).max(1);
        let connection = self.peer(peer).connection().expect("the link is up");
        let link = &mut self.peers[usize::from(peer.0)];
        let super::peer::Link::Up { sync: Sync::SourceRunning(outgoing), .. } = &mut link.link else { return false };
        let Some(run_blocks) = outgoing.next_run(now, host_active) else { return false };
        let Some((block, blocks)) = link.bitmap.next_run(outgoing.from_block, run_blocks.min(segment_blocks)) else {
            outgoing.round_ended = true;
            // Around once more for what others held, when nothing of this round is still on its way: what was sent
            // stays dirty until it is stable.
            if outgoing.reading + outgoing.unstable == 0 {
                (outgoing.from_block, outgoing.round_ended) = (0, false);
            }
            return false;
        };
        let start = block * BLOCK_SIZE;
        let range = ByteRange::new(start, (blocks * BLOCK_SIZE).min(self.data_len - start));
        outgoing.from_block = block + blocks;
        if !self.in_flight.try_hold(range) {
            self.mark(Mark::ResyncYielded);
            return true;
        }
        outgoing.took(range.len());
        self.runs_reading += 1;
        let op = self.begin(Op::ResyncRead { peer, connection, range });
        out.push(Effect::DiskReadSparse { op, range });
        true
    }

    /// A dirty run was read.
    pub(super) fn resync_read_done(
        &mut self,
        now: Moment,
        (peer, connection): (PeerNo, ConnectionId),
        range: ByteRange,
        result: Result<Option<BufId>, DiskError>,
        out: &mut Effects,
    ) {
        self.runs_reading -= 1;
        let current = self.peer(peer).connection() == Some(connection);
        let running = matches!(self.peer(peer).sync(), Some(Sync::SourceRunning(_))) && current;
        let buf = match result {
            Ok(buf) if running => buf,
            Ok(buf) => {
                self.mark(Mark::ResyncReadLate);
                Self::release(buf, out);
                self.release_range(range);
                return;
            }
            Err(error) => {
                self.release_range(range);
                if running {
                    self.drop_link(
                        now,
                        peer,
                        format!("a block for its resync cannot be read at {range:?}: {error}"),
                        out,
                    );
                }
                return;
            }
        };
        let entry = Entry { range, segment: None, local_written: true, logged: false, resync: Some(peer) };
        let seq = self.log.push(entry);
        self.local_came_further();
        self.last_write = now;
        self.resynced_bytes += range.len();
        let link = self.peer_mut(peer);
        link.sent = seq;
        if let Some(Sync::SourceRunning(outgoing)) = link.sync_mut() {
            outgoing.sent(range.len());
        }
        // Zeros are said, not sent: a thin device stays thin, and a thin link has less to carry.
        match buf {
            Some(buf) => {
                let data = BufSlice { buf, offset: 0, len: u32::try_from(range.len()).expect("a segment") };
                self.send(peer, Message::Write { seq, range, resync: true }, Some(SendBody::Slice(data)), out);
                out.push(Effect::Release(buf));
            }
            None => self.send(peer, Message::Zero { seq, range, unmap: true, resync: true }, None, out),
        }
    }

    fn finish_source(&mut self, now: Moment, peer: PeerNo, out: &mut Effects) {
        let Some(Sync::SourceRunning(outgoing)) = self.peer(peer).sync() else { return };
        if outgoing.reading + outgoing.unstable > 0 || !self.peer(peer).bitmap.is_empty() {
            return;
        }
        self.report_resync(now, peer, true, out);
        self.set_sync(peer, Sync::SourceClosing);
        let slot = self.slot(peer);
        self.book.change_then(Then::SourceFinished(peer), |superblock| {
            superblock.peers[slot].base = GenerationId::NONE;
            if superblock.disk == DiskState::Diverged {
                superblock.disk = DiskState::UpToDate;
            }
        });
    }

    /// That the target is in sync is durable here: tell it.
    pub(super) fn source_finished(&mut self, peer: PeerNo, out: &mut Effects) {
        if matches!(self.peer(peer).sync(), Some(Sync::SourceClosing)) {
            self.set_sync(peer, Sync::SourceConfirming);
            let generation = self.book.get().lineage.current;
            self.send(peer, Message::ResyncFinish { generation }, None, out);
        }
    }

    pub(super) fn target_finished(&mut self, now: Moment, peer: PeerNo, out: &mut Effects) {
        if !matches!(self.peer(peer).sync(), Some(Sync::SourceConfirming)) {
            self.drop_link(now, peer, "protocol error: a resync ends that did not run".into(), out);
            return;
        }
        let name = self.peer(peer).name.clone();
        self.set_sync(peer, Sync::Even);
        self.peer_mut(peer).disk = Some(DiskState::UpToDate);
        if self.role == Role::Secondary {
            self.close_stream_when_idle(peer);
        }
        self.resolved();
        self.withdraw_exclusion(peer, out);
        Self::changed(
            &format!("replication {name}"),
            "source",
            "established",
            "every block is stable on both copies",
            out,
        );
        self.try_to_resume(now, out);
    }

    /// A stream that only carried a resync between two secondaries ends with it.
    fn close_stream_when_idle(&mut self, peer: PeerNo) {
        let link = self.peer_mut(peer);
        link.cursor = None;
        link.share_floor = None;
    }

    /// When to look again whether the pace, the host or a held range lets a resync go on.
    pub(super) fn resync_due(&self) -> Option<Moment> {
        let running = self.peers.iter().any(|peer| matches!(peer.sync(), Some(Sync::SourceRunning(_))));
        running.then(|| self.resync_pumped.after(RESYNC_TICK))
    }

    fn tick_report(&mut self, now: Moment, peer: PeerNo, out: &mut Effects) {
        if now.since(self.resync_reported) >= std::time::Duration::from_secs(1) {
            self.resync_reported = now;
            self.report_resync(now, peer, false, out);
        }
    }

    pub(super) fn report_resync(&self, now: Moment, peer: PeerNo, finished: bool, out: &mut Effects) {
        if let Some(mut view) = self.resync_view(now, peer) {
            view.finished = finished;
            out.push(Effect::Report(Report::Resync(view)));
        }
    }

    pub(super) fn resync_view(&self, now: Moment, peer: PeerNo) -> Option<ResyncView> {
        let link = self.peer(peer);
        let (source, began, total, done) = match link.sync()? {
            Sync::SourceRunning(o) => {
                let left = link.bitmap.count() * BLOCK_SIZE;
                (true, o.began, o.total, o.total.saturating_sub(left))
            }
            Sync::TargetRunning(i) | Sync::TargetPreparing(i) => (false, i.began, i.total, i.done.min(i.total)),
            _ => return None,
        };
        let paused = link.paused.0 || link.paused.1;
        Some(ResyncView { peer, source, done, total, elapsed: now.since(began), finished: false, paused })
    }
}
