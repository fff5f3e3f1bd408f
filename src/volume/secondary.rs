//! The stream of a primary, applied on the secondary.
//!
//! ```text
//!  received --(range free, ordered barrier passed)--> writing --disk--> written --flush--> stable
//! ```
//! The stream is applied in the primary's order wherever order can be seen: overlapping writes one after the other, and in
//! async mode nothing behind a barrier before that barrier is stable. What was received is applied even when the link
//! is lost: the primary may have acknowledged it.
//!
//! Acknowledgements are cumulative and said once a turn.

use std::collections::VecDeque;

use crate::condition::Role;
use crate::units::{BufId, ByteRange, Moment, PeerNo, Seq, Term};
use crate::volume::io::{BufSlice, DiskError, Effect};
use crate::volume::marks::Mark;
use crate::volume::peer::Sync;
use crate::volume::requests::Change;
use crate::volume::{Effects, Op, Volume};
use crate::wire::Message;

/// One write of the stream.
#[derive(Clone, Copy, Debug)]
struct Item {
    seq: Seq,
    range: ByteRange,
    change: Change,
    stage: Applied,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Applied {
    Held,
    Writing,
    Written,
}

/// The stream.
#[derive(Clone, Debug)]
pub(super) struct Stream {
    peer: PeerNo,
    /// The link is still there: acknowledgements are wanted.
    live: bool,
    term: Term,
    items: VecDeque<Item>,
    held: usize,
    /// No write before this one is held: looking from the front each time would cost the square of a batch.
    held_from: Seq,
    received: Seq,
    written: Seq,
    stable: Seq,
    told: (Seq, Seq, Seq),
    /// Make everything up to here stable.
    barrier: Seq,
    /// Apply nothing above this before it is stable.
    fence: Option<Seq>,
    flushing: bool,
}

impl Stream {
    fn new(peer: PeerNo, term: Term, after: Seq) -> Self {
        let stable = Seq(after.0.saturating_sub(1));
        Self {
            peer,
            live: true,
            term,
            items: VecDeque::new(),
            held: 0,
            held_from: after,
            received: after,
            written: after,
            stable,
            told: (after, after, stable),
            barrier: stable,
            fence: None,
            flushing: false,
        }
    }

    /// Everything up to `seq` is stable.
    fn stable_through(&mut self, seq: Seq) {
        self.stable = self.stable.max(seq);
        if self.fence.is_some_and(|fence| self.stable >= fence) {
            self.fence = None;
        }
    }
}

impl Volume {
    /// True when nothing received is still to be applied.
    pub(super) fn stream_is_idle(&self) -> bool {
        self.stream.as_ref().is_none_or(|stream| stream.items.is_empty() && !stream.flushing)
    }

    /// True while the primary that sends the stream is linked.
    pub(super) fn stream_is_live(&self) -> bool {
        self.stream.as_ref().is_some_and(|stream| stream.live)
    }

    pub(super) fn stream_started(&mut self, now: Moment, peer: PeerNo, term: Term, after: Seq, out: &mut Effects) {
        let fits =
            matches!(self.peer(peer).sync(), Some(Sync::Even | Sync::TargetRunning(_) | Sync::TargetPreparing(_)));
        // A source that is not primary, and was granted a newer term while its word was under way, is no old primary.
        let old = term < self.term() && self.peer(peer).role != Some(Role::Secondary);
        if self.role == Role::Primary || !fits || !self.stream_is_idle() || old {
            let why =
                format!("protocol error: it starts a stream at term {term}, which does not fit this node's state");
            self.drop_link(now, peer, why, out);
            return;
        }
        self.stream = Some(Box::new(Stream::new(peer, term, after)));
    }

    /// True while a write of the stream to this range is still to be applied.
    pub(super) fn stream_will_change(&self, range: ByteRange) -> bool {
        let written = |item: &Item| item.stage == Applied::Written;
        self.stream
            .as_ref()
            .is_some_and(|stream| stream.items.iter().any(|item| !written(item) && item.range.overlaps(range)))
    }

    pub(super) fn stream_lost(&mut self, peer: PeerNo) {
        if let Some(stream) = self.stream.as_mut().filter(|stream| stream.peer == peer) {
            stream.live = false;
            stream.fence = None;
        }
        if self.stream_is_idle() {
            self.stream = None;
        } else {
            self.mark(Mark::StreamOutlived);
        }
    }

    /// A write, trim, zero or barrier of the stream.
    pub(super) fn stream_says(
        &mut self,
        now: Moment,
        peer: PeerNo,
        term: Term,
        message: &Message,
        buf: Option<BufId>,
        out: &mut Effects,
    ) {
        let data_len = self.data_len;
        let room = self.config.limits.log_entries;
        let fits = |stream: &Stream, seq: Seq, range: ByteRange| {
            stream.peer == peer
                && stream.live
                && term >= stream.term
                && seq > stream.received
                && range.end() <= data_len
                && stream.items.len() < room
        };
        let slice = |buf: BufId, range: ByteRange| {
            Change::Write(BufSlice { buf, offset: 0, len: u32::try_from(range.len()).expect("a segment") })
        };
        let (seq, range, change, resync) = match (message, buf) {
            (&Message::Write { seq, range, resync }, Some(buf)) => (seq, range, slice(buf, range), resync),
            (&Message::Zero { seq, range, unmap, resync }, _) => (seq, range, Change::Zero { unmap }, resync),
            (&Message::Trim { seq, range }, _) => (seq, range, Change::Trim, false),
            (&Message::Barrier { seq, ordered }, _) => {
                self.barrier_heard(now, peer, seq, ordered, out);
                return;
            }
            _ => unreachable!("the caller passes the stream's messages, writes with their payload"),
        };
        match &mut self.stream {
            Some(stream) if fits(stream, seq, range) => {
                stream.items.push_back(Item { seq, range, change, stage: Applied::Held });
                stream.held += 1;
                stream.received = seq;
                stream.term = term;
            }
            _ => {
                Self::release(buf, out);
                let why = format!("protocol error: write {seq} of term {term} at {range:?} does not fit the stream");
                self.drop_link(now, peer, why, out);
                return;
            }
        }
        if resync {
            self.resynced_bytes += range.len();
            if let Some(Sync::TargetRunning(incoming)) = self.peer_mut(peer).sync_mut() {
                incoming.done += range.len();
            }
        } else {
            self.mirrored_bytes += range.len();
        }
    }

    fn barrier_heard(&mut self, now: Moment, peer: PeerNo, seq: Seq, ordered: bool, out: &mut Effects) {
        let mut passed = false;
        match &mut self.stream {
            Some(stream) if stream.peer == peer && seq >= stream.received => {
                // Numbers that did not come here are a resync's of another peer.
                passed = seq > stream.received;
                stream.received = seq;
                stream.barrier = seq;
                if ordered && stream.stable < seq {
                    stream.fence = Some(seq);
                }
            }
            _ => self.drop_link(now, peer, format!("protocol error: barrier {seq} does not fit the stream"), out),
        }
        if passed {
            self.mark(Mark::NumbersPassed);
        }
    }

    /// Applies what can be applied, and flushes when a barrier is reached.
    pub(super) fn pump_stream(&mut self, out: &mut Effects) {
        let Some(mut stream) = self.stream.take() else { return };
        while stream.items.front().is_some_and(|item| item.stage == Applied::Written) {
            stream.written = stream.items.pop_front().expect("looked at").seq;
        }
        if stream.items.is_empty() {
            stream.written = stream.received;
        }
        if self.config.write_through && self.local_ok {
            stream.stable_through(stream.written);
        }
        if stream.held > 0 {
            self.apply_held(&mut stream, out);
        }
        let wants_flush = stream.barrier > stream.stable && stream.written >= stream.barrier.min(stream.received);
        if wants_flush && !stream.flushing && self.local_ok {
            let op = self.begin(Op::StreamFlush { covers: stream.written });
            stream.flushing = true;
            out.push(Effect::DiskFlush { op });
        }
        let idle = stream.items.is_empty() && !stream.flushing;
        if stream.live || !idle {
            self.stream = Some(stream);
        }
    }

    fn apply_held(&mut self, stream: &mut Stream, out: &mut Effects) {
        let mut blocked: Vec<ByteRange> = Vec::new();
        let mut first_left = None;
        let first = stream.items.partition_point(|item| item.seq < stream.held_from);
        for at in first..stream.items.len() {
            let Item { seq, range, change, stage } = stream.items[at];
            if stage != Applied::Held {
                continue;
            }
            if stream.fence.is_some_and(|fence| seq > fence) {
                self.mark(Mark::StreamFenced);
                first_left.get_or_insert(seq);
                break;
            }
            let held = self.held_range(range);
            // An earlier write that waits must not be overtaken by a later one of the same bytes.
            if blocked.iter().any(|earlier| earlier.overlaps(held)) || !self.in_flight.try_hold(held) {
                self.mark(Mark::StreamWaited);
                first_left.get_or_insert(seq);
                blocked.push(held);
                continue;
            }
            stream.items[at].stage = Applied::Writing;
            stream.held -= 1;
            let op = self.begin(Op::StreamWrite { seq });
            out.push(match change {
                Change::Write(data) => Effect::DiskWrite { op, range, data },
                Change::Trim => Effect::DiskZero { op, range, unmap: true },
                Change::Zero { unmap } => Effect::DiskZero { op, range, unmap },
            });
        }
        stream.held_from = first_left.unwrap_or(stream.received.next());
    }

    /// The disk has written a part of the stream, or failed to.
    pub(super) fn stream_written(&mut self, now: Moment, seq: Seq, result: Result<(), DiskError>, out: &mut Effects) {
        let stream = self.stream.as_mut().expect("a stream outlives its writes");
        let at = stream.items.partition_point(|item| item.seq < seq);
        let item = &mut stream.items[at];
        assert_eq!((item.seq, item.stage), (seq, Applied::Writing), "each write is answered once");
        item.stage = Applied::Written;
        let (range, change) = (item.range, item.change);
        if let Change::Write(data) = change {
            out.push(Effect::Release(data.buf));
        }
        self.in_flight.release(self.held_range(range));
        if let Err(error) = result {
            self.fail_local(now, "write", error, out);
        }
    }

    /// The disk has flushed the stream, or failed to.
    pub(super) fn stream_flushed(
        &mut self,
        now: Moment,
        covers: Seq,
        result: Result<(), DiskError>,
        out: &mut Effects,
    ) {
        let stream = self.stream.as_mut().expect("a stream outlives its flush");
        stream.flushing = false;
        match result {
            Ok(()) => stream.stable_through(covers),
            Err(error) => self.fail_local(now, "flush", error, out),
        }
    }

    /// Says how far the stream has come, if there is news.
    pub(super) fn acknowledge_stream(&mut self, out: &mut Effects) {
        let Some(stream) = self.stream.as_mut().filter(|stream| stream.live) else { return };
        let now = (stream.received, stream.written, stream.stable);
        if now == stream.told {
            return;
        }
        stream.told = now;
        let (peer, (received, written, stable)) = (stream.peer, now);
        self.send(peer, Message::Ack { received, written, stable }, None, out);
    }

    /// The disk has failed: what waits to be applied is given up.
    pub(super) fn give_stream_up(&mut self, out: &mut Effects) {
        let Some(stream) = &mut self.stream else { return };
        stream.live = false;
        stream.held = 0;
        stream.items.retain(|item| {
            if let (Applied::Held, Change::Write(data)) = (item.stage, item.change) {
                out.push(Effect::Release(data.buf));
            }
            item.stage != Applied::Held
        });
    }

    /// Flushes what came before, for an end in order: everything received becomes stable.
    pub(super) fn ask_stream_stable(&mut self) {
        if let Some(stream) = &mut self.stream {
            stream.barrier = stream.received;
        }
    }

    /// True when everything received is stable.
    pub(super) fn stream_is_stable(&self) -> bool {
        self.stream.as_ref().is_none_or(|stream| {
            stream.items.is_empty() && !stream.flushing && (stream.stable >= stream.received || !self.local_ok)
        })
    }
}
