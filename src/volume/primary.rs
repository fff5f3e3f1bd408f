//! A client's request on the primary: admission, launch, counting copies, reply.
//!
//! ```text
//! write: cut into segments -> waiting -> (range free, log has room, extents acquired) -> warming? -> launched -> done
//!        all segments done -> [fua: stable] -> reply
//! ```
//! A launched segment has one *share* for each copy whose word the mode awaits: the local disk, each mirrored peer, and
//! each peer whose exclusion is not settled. The reply needs all of them; a copy that is lost gives its shares up, but only when
//! going on without it is allowed.

use crate::condition::{Mode, Role};
use crate::units::{BLOCK_SIZE, BufId, ByteRange, Moment, PeerNo, Seq, SessionId};
use crate::volume::hot_extents::Acquired;
use crate::volume::io::{BufSlice, DiskError, Effect, HostError, HostOp, SendBody};
use crate::volume::marks::Mark;
use crate::volume::peer::Sync;
use crate::volume::requests::{Change, Request, RequestId, Segment, SegmentId, Stage};
use crate::volume::transfer_log::Entry;
use crate::volume::{Effects, Op, Volume};
use crate::wire::Message;
use crate::wire::frame::BODY_LEN_MAX;

/// A piece of a read that a peer was asked for.
#[derive(Clone, Copy, Debug)]
pub(super) struct RemoteRead {
    /// Its name on the wire, never used again.
    pub(super) id: u64,
    pub(super) request: RequestId,
    pub(super) piece: u32,
    pub(super) peer: PeerNo,
    /// Bytes asked for.
    pub(super) len: u32,
}

/// Why a segment cannot start now.
enum Admission {
    Launched,
    Warming,
    Conflict,
    NoRoom,
}

impl Volume {
    pub(super) fn host(
        &mut self,
        now: Moment,
        (session, tag): (SessionId, u64),
        op: HostOp,
        range: ByteRange,
        fua: bool,
        out: &mut Effects,
    ) {
        assert!(range.end() <= self.data_len, "the shell has checked the range");
        self.host_active = now;
        let request =
            Request { session, tag, op, range, fua, pending: 0, failed: false, orphan: false, pieces: Vec::new() };
        let id = self.requests.insert(request);
        if self.role != Role::Primary {
            self.reply(id, Err(HostError::NotPrimary), None, out);
        } else if self.transition.holds_requests() {
            self.held.push_back(id);
        } else {
            self.start(now, id, out);
        }
    }

    /// Starts a request, or starts it again after a transition that was given up.
    pub(super) fn start(&mut self, now: Moment, id: RequestId, out: &mut Effects) {
        let request = self.requests.get(id);
        let range = request.range;
        match request.op {
            HostOp::Flush => {
                let needless = self.everything_stable_through(self.done);
                if needless {
                    self.mark(Mark::FlushNeedless);
                }
                self.foresight.flush(needless);
                self.flushes.push_back((id, self.done));
            }
            _ if range.is_empty() => self.reply(id, Ok(()), None, out),
            HostOp::Read if self.local_ok => {
                let op = self.begin(Op::HostRead(id));
                out.push(Effect::DiskRead { op, range });
            }
            HostOp::Read => self.read_remotely(id, out),
            HostOp::Write { .. } | HostOp::Trim | HostOp::Zero { .. } => self.cut(now, id, out),
        }
    }

    fn cut(&mut self, now: Moment, id: RequestId, out: &mut Effects) {
        let request = self.requests.get(id);
        let (op, mut rest) = (request.op, request.range);
        let limit = match op {
            HostOp::Write { .. } => self.config.limits.segment_len,
            _ => self.config.limits.hole_len,
        };
        let unit = limit.min(self.hot.span_max());
        let start = rest.start();
        let mut count = 0;
        while !rest.is_empty() {
            let (range, tail) = rest.split_at(unit - rest.start() % unit);
            let change = match op {
                HostOp::Write { buf } => {
                    Change::Write(BufSlice { buf, offset: narrow(range.start() - start), len: narrow(range.len()) })
                }
                HostOp::Zero { unmap } => Change::Zero { unmap },
                HostOp::Trim | HostOp::Read | HostOp::Flush => Change::Trim,
            };
            let segment = self.segments.insert(Segment { request: id, range, change, stage: Stage::Waiting });
            self.waiting.push_back(segment);
            count += 1;
            rest = tail;
        }
        self.requests.get_mut(id).pending = count;
        self.pump_waiting(now, out);
    }

    /// Starts what waits and can, oldest first.
    pub(super) fn pump_waiting(&mut self, now: Moment, out: &mut Effects) {
        // A launch may end at once and bring others back to the front: the one that is asked for is taken out first.
        while let Some(segment) = self.waiting.pop_front() {
            match self.admit(now, segment, out) {
                Admission::NoRoom => {
                    self.waiting.push_front(segment);
                    break;
                }
                Admission::Launched => {}
                Admission::Warming => self.warming.push_back(segment),
                Admission::Conflict => {
                    self.conflicted.push_back(segment);
                }
            }
        }
    }

    fn admit(&mut self, now: Moment, id: SegmentId, out: &mut Effects) -> Admission {
        let segment = *self.segments.get(id);
        let held = self.held_range(segment.range);
        if self.in_flight.is_held(held) {
            self.mark(Mark::RangeHeld);
            return Admission::Conflict;
        }
        if self.detaching.is_some() {
            // The disk has failed and no longer takes note of what may differ; whoever has the good copy does not yet.
            return Admission::NoRoom;
        }
        let log_full = !self.log_has_room_for_host();
        if log_full || !self.backlog_has_room(now, segment.range.len()) {
            self.mark(if log_full { Mark::LogFull } else { Mark::BacklogFull });
            self.stable_goal = self.log.last();
            return Admission::NoRoom;
        }
        if !self.local_ok {
            self.in_flight.try_hold(held);
            self.launch(now, id, out);
            return Admission::Launched;
        }
        match self.hot.acquire(segment.range) {
            Acquired::Full => {
                self.mark(Mark::HotFull);
                self.stable_goal = self.log.last();
                Admission::NoRoom
            }
            Acquired::Hot => {
                self.in_flight.try_hold(held);
                self.launch(now, id, out);
                Admission::Launched
            }
            Acquired::Warming => {
                self.in_flight.try_hold(held);
                self.segments.get_mut(id).stage = Stage::Warming;
                Admission::Warming
            }
        }
    }

    /// True when one more write, or block of a resync, finds a place in the log.
    pub(super) fn log_has_room(&self) -> bool {
        self.log.len() + self.warming.len() + self.runs_reading < self.config.limits.log_entries
    }

    /// The same for a write of the host: a resync always finds one place, or a busy host would starve it.
    fn log_has_room_for_host(&self) -> bool {
        let resync = self.peers.iter().any(|peer| matches!(peer.sync(), Some(Sync::SourceRunning(_))));
        self.log.len() + self.warming.len() + self.runs_reading + usize::from(resync) < self.config.limits.log_entries
    }

    /// What a writer of `range` keeps others out of: whole blocks, since a disk without smaller writes reads and
    /// rewrites the rest of a block.
    pub(super) fn held_range(&self, range: ByteRange) -> ByteRange {
        let outer = range.round_out(BLOCK_SIZE);
        ByteRange::new(outer.start(), outer.end().min(self.data_len) - outer.start())
    }

    /// Starts the segments whose extents have become hot.
    pub(super) fn launch_warmed(&mut self, now: Moment, out: &mut Effects) {
        if self.detaching.is_some() {
            return;
        }
        for _ in 0..self.warming.len() {
            let id = self.warming.pop_front().expect("counted");
            if !self.local_ok || self.hot.is_hot(self.segments.get(id).range) {
                self.launch(now, id, out);
            } else {
                self.warming.push_back(id);
            }
        }
    }

    fn launch(&mut self, now: Moment, id: SegmentId, out: &mut Effects) {
        assert!(self.detaching.is_none(), "what may differ is on record before it does");
        let Segment { range, change, request, stage } = *self.segments.get(id);
        // What waited for the activity log holds its references, even if the disk has failed meanwhile.
        let logged = self.local_ok || stage == Stage::Warming;
        let entry = Entry { range, segment: Some(id), local_written: !self.local_ok, logged, resync: None };
        let seq = self.log.push(entry);
        let mut shares = u32::from(self.local_ok);
        let mut copies = u32::from(self.local_ok);
        for peer in self.peer_numbers() {
            let link = &mut self.peers[usize::from(peer.0)];
            if link.share_floor.is_some() {
                shares += 1;
            }
            if link.cursor.is_some() {
                if !link.owes() {
                    link.progress = now;
                }
                link.sent = seq;
                copies += 1;
                link.backlog_bytes += range.len();
                self.mirrored_bytes += range.len();
                self.send_change(peer, seq, range, change, out);
            } else {
                link.bitmap.set(range);
            }
        }
        self.last_write = now;
        if self.requests.get(request).fua {
            // It will wait for stability as soon as it is written everywhere: the peer is told at once.
            self.stable_goal = seq;
        } else {
            self.foresight.write();
        }
        if self.local_ok {
            let op = self.begin(Op::SegmentWrite(id));
            out.push(match change {
                Change::Write(data) => Effect::DiskWrite { op, range, data },
                Change::Trim => Effect::DiskZero { op, range, unmap: true },
                Change::Zero { unmap } => Effect::DiskZero { op, range, unmap },
            });
        }
        self.segments.get_mut(id).stage = Stage::Launched { seq, pending: shares, copies };
        if copies == 0 {
            self.requests.get_mut(request).failed = true;
        }
        if shares == 0 {
            self.segment_done(id, out);
        }
    }

    fn send_change(&self, peer: PeerNo, seq: Seq, range: ByteRange, change: Change, out: &mut Effects) {
        let (message, body) = match change {
            Change::Write(data) => (Message::Write { seq, range, resync: false }, Some(SendBody::Slice(data))),
            Change::Trim => (Message::Trim { seq, range }, None),
            Change::Zero { unmap } => (Message::Zero { seq, range, unmap, resync: false }, None),
        };
        self.send(peer, message, body, out);
    }

    /// The local disk has written a segment, or failed to.
    pub(super) fn segment_written(
        &mut self,
        now: Moment,
        id: SegmentId,
        result: Result<(), DiskError>,
        out: &mut Effects,
    ) {
        let Stage::Launched { seq, .. } = self.segments.get(id).stage else {
            unreachable!("only a launched segment is written");
        };
        if result.is_err() || !self.local_ok {
            // A disk that has failed meanwhile holds nothing that can be relied on, whatever it says of this write.
            self.copy_lost(id);
        }
        if let Err(error) = result {
            self.fail_local(now, "write", error, out);
        }
        self.log.get_mut(seq).expect("a segment keeps its entry").local_written = true;
        self.local_came_further();
        if self.detaching.is_some() {
            self.detach_waiting.push(id);
        } else if !self.parks(id, seq) {
            self.share_done(id, out);
        }
    }

    /// One copy's word is in, or is not awaited any more.
    pub(super) fn share_done(&mut self, id: SegmentId, out: &mut Effects) {
        let Stage::Launched { pending, .. } = &mut self.segments.get_mut(id).stage else {
            unreachable!("only a launched segment has shares");
        };
        *pending -= 1;
        if *pending == 0 {
            self.segment_done(id, out);
        }
    }

    /// A copy will never hold this segment.
    pub(super) fn copy_lost(&mut self, id: SegmentId) {
        let segment = self.segments.get_mut(id);
        let request = segment.request;
        let (Stage::Launched { copies, .. } | Stage::Parked { copies }) = &mut segment.stage else {
            unreachable!("only a launched segment has copies");
        };
        *copies -= 1;
        if *copies == 0 {
            self.requests.get_mut(request).failed = true;
        }
    }

    fn segment_done(&mut self, id: SegmentId, out: &mut Effects) {
        let Segment { request, range, stage, .. } = self.segments.remove(id);
        let Stage::Launched { seq, copies, .. } = stage else {
            unreachable!("only a launched segment is done");
        };
        if copies == 0 {
            self.requests.get_mut(request).failed = true;
        }
        self.log.get_mut(seq).expect("a segment keeps its entry").segment = None;
        self.done = self.done.max(seq);
        self.release_range(range);
        self.request_part_done(request, out);
    }

    /// Gives a range back and lets those that wait for ranges try again, in their order.
    pub(super) fn release_range(&mut self, range: ByteRange) {
        self.in_flight.release(self.held_range(range));
        while let Some(segment) = self.conflicted.pop_back() {
            self.waiting.push_front(segment);
        }
    }

    pub(super) fn request_part_done(&mut self, id: RequestId, out: &mut Effects) {
        let request = self.requests.get_mut(id);
        request.pending -= 1;
        if request.pending > 0 {
            return;
        }
        if request.failed {
            self.reply(id, Err(HostError::Io), None, out);
        } else if request.fua {
            self.flushes.push_back((id, self.done));
        } else {
            self.reply(id, Ok(()), None, out);
        }
    }

    /// The local disk has read, or failed to.
    pub(super) fn host_read_done(
        &mut self,
        id: RequestId,
        result: Result<Option<BufId>, DiskError>,
        out: &mut Effects,
    ) {
        match result {
            Ok(buf) => self.reply(id, Ok(()), buf, out),
            Err(error) => {
                Self::note(
                    format!(
                        "the local disk cannot be read at {:?}: {error}; the peer is asked instead",
                        self.requests.get(id).range
                    ),
                    true,
                    out,
                );
                self.mark(Mark::ReadElsewhere);
                self.read_remotely(id, out);
            }
        }
    }

    /// Reads from a peer that holds everything.
    fn read_remotely(&mut self, id: RequestId, out: &mut Effects) {
        let Some(peer) =
            self.peer_numbers().find(|&peer| self.peer(peer).holds_everything() && self.peer(peer).cursor.is_some())
        else {
            self.reply(id, Err(HostError::Io), None, out);
            return;
        };
        let mut rest = self.requests.get(id).range;
        let mut piece = 0;
        while !rest.is_empty() {
            let (range, tail) = rest.split_at(BODY_LEN_MAX as u64);
            self.next_remote_read += 1;
            let len = narrow(range.len());
            let read = RemoteRead { id: self.next_remote_read, request: id, piece, peer, len };
            self.send(peer, Message::Read { id: read.id, range }, None, out);
            self.remote_reads.push(read);
            rest = tail;
            piece += 1;
        }
        let request = self.requests.get_mut(id);
        request.pending = piece;
        request.pieces = vec![None; piece as usize];
    }

    /// A peer has read a piece, or cannot.
    pub(super) fn remote_read_done(&mut self, id: RequestId, piece: u32, result: Result<BufId, ()>, out: &mut Effects) {
        let request = self.requests.get_mut(id);
        match result {
            Ok(buf) => request.pieces[piece as usize] = Some(buf),
            Err(()) => request.failed = true,
        }
        request.pending -= 1;
        if request.pending > 0 {
            return;
        }
        let mut pieces = std::mem::take(&mut request.pieces).into_iter().flatten();
        if request.failed {
            out.extend(pieces.map(Effect::Release));
            self.reply(id, Err(HostError::Io), None, out);
        } else {
            let first = pieces.next();
            self.reply_with(id, Ok(()), first, pieces.collect(), out);
        }
    }

    /// The reads asked of a lost peer end here.
    pub(super) fn fail_remote_reads(&mut self, lost: PeerNo, out: &mut Effects) {
        let all = std::mem::take(&mut self.remote_reads).into_iter();
        let (failed, kept): (Vec<_>, Vec<_>) = all.partition(|read| read.peer == lost);
        self.remote_reads = kept;
        for read in failed {
            self.remote_read_done(read.request, read.piece, Err(()), out);
        }
    }

    pub(super) fn reply(
        &mut self,
        id: RequestId,
        result: Result<(), HostError>,
        buf: Option<BufId>,
        out: &mut Effects,
    ) {
        self.reply_with(id, result, buf, Vec::new(), out);
    }

    fn reply_with(
        &mut self,
        id: RequestId,
        result: Result<(), HostError>,
        buf: Option<BufId>,
        more: Vec<BufId>,
        out: &mut Effects,
    ) {
        let request = self.requests.remove(id);
        // Something was answered: whatever else waits, the volume is not frozen.
        self.frozen_since = None;
        Self::release(request.payload(), out);
        if request.orphan || (result == Err(HostError::Io) && self.is_bereft()) {
            Self::release(buf, out);
            out.extend(more.into_iter().map(Effect::Release));
        } else {
            out.push(Effect::Reply { session: request.session, tag: request.tag, result, buf, more });
        }
    }

    /// True for a primary without a disk that lost the good copy, where whoever decides lets that one go on: its clients are not told an
    /// error that a database would take for the end. They hear nothing, and ask the other node when this one stands down.
    fn is_bereft(&self) -> bool {
        let left = |peer: PeerNo| self.peer(peer).cursor.is_none() && !self.record(peer).base.is_some();
        let linked = self.peers.iter().any(|peer| peer.cursor.is_some());
        self.config.arbitrated && !self.local_ok && !linked && self.peer_numbers().any(left)
    }

    /// A client is gone: what of its requests has not started never will. A copy of such a write, sent again on another
    /// connection, must not be overtaken by the old one.
    pub(super) fn host_gone(&mut self, now: Moment, session: SessionId, out: &mut Effects) {
        self.clients -= 1;
        let requests: Vec<RequestId> =
            self.requests.iter().filter(|(_, r)| r.session == session).map(|(id, _)| id).collect();
        for &id in &requests {
            self.requests.get_mut(id).orphan = true;
        }
        let mut dropped = Vec::new();
        for queue in [&mut self.waiting, &mut self.conflicted] {
            queue.retain(|&segment| {
                let keep = !requests.contains(&self.segments.get(segment).request);
                if !keep {
                    dropped.push(segment);
                }
                keep
            });
        }
        for segment in dropped {
            let request = self.segments.remove(segment).request;
            self.requests.get_mut(request).failed = true;
            self.request_part_done(request, out);
        }
        let held = std::mem::take(&mut self.held);
        for id in held {
            if requests.contains(&id) {
                self.reply(id, Err(HostError::NotPrimary), None, out);
            } else {
                self.held.push_back(id);
            }
        }
        self.pump_waiting(now, out);
    }

    /// `async`: true while the backlog leaves room for `len` more bytes.
    fn backlog_has_room(&self, now: Moment, len: u64) -> bool {
        self.config.mode != Mode::Async
            || self.peers.iter().all(|peer| {
                let Some(cursor) = peer.cursor else { return true };
                // An empty backlog takes any write, so that one longer than the bound passes too.
                cursor.written == self.log.last()
                    || (peer.backlog_bytes + len <= self.config.backlog_bytes_max
                        && now.since(peer.progress) <= self.config.backlog_age_max)
            })
    }
}

fn narrow(len: u64) -> u32 {
    u32::try_from(len).expect("a payload is at most 32 MiB")
}
