//! A peer's cursor: writes go out, acknowledgements come back, and one day the peer is gone.
//!
//! What was not stable on a lost peer becomes dirty. If the peer was in sync, its shares wait for its `exclusion`; a peer that was not
//! in sync, a target of resync for instance, could not be promoted by itself anyway: its shares are given up at once.

use crate::condition::{DiskState, Mode, Role};
use crate::units::{BufId, ByteRange, ConnectionId, Moment, PeerNo, Seq, Term};
use crate::volume::io::Effect;
use crate::volume::marks::Mark;
use crate::volume::peer::{Link, Sync};
use crate::volume::transfer_log::Cursor;
use crate::volume::{Effects, Op, Volume};
use crate::wire::Message;

/// A term that is further ahead than this is not believed: no pair is promoted so often while one node is away.
const TERM_LEAP_MAX: u64 = 1 << 20;
/// Reads of a peer without a disk that may be held back.
const PEER_READS_MAX: usize = 4096;

impl Volume {
    /// A message of an established or starting link.
    pub(super) fn peer_says(
        &mut self,
        now: Moment,
        (peer, connection): (PeerNo, ConnectionId),
        term: Term,
        message: Message,
        buf: Option<BufId>,
        out: &mut Effects,
    ) {
        if self.peer(peer).connection() != Some(connection) {
            Self::release(buf, out);
            return;
        }
        self.peer_mut(peer).heard = now;
        if term.0.saturating_sub(self.term().0) > TERM_LEAP_MAX {
            Self::release(buf, out);
            self.drop_link(now, peer, format!("protocol error: it speaks at term {term}, far beyond this node's"), out);
            return;
        }
        if term > self.term() && matches!(self.peer(peer).link, Link::Up { .. }) {
            self.book.change(|superblock| superblock.term = term);
        }
        let payload = message.carries_payload();
        assert!(payload || buf.is_none(), "the shell brings payload with messages that carry it");
        match message {
            Message::Greeting(theirs) => self.greeting_heard(now, peer, theirs, out),
            Message::Verdict(verdict) => self.verdict_heard(now, peer, verdict, out),
            Message::Write { .. } | Message::Zero { .. } | Message::Trim { .. } | Message::Barrier { .. } => {
                self.stream_says(now, peer, term, &message, buf, out);
            }
            Message::StreamStart { after } => self.stream_started(now, peer, term, after, out),
            Message::Ack { received, written, stable } => {
                self.acknowledged(now, peer, (received, written, stable), out)
            }
            Message::DiskFailed { errno } => {
                self.peer_mut(peer).disk = Some(DiskState::Failed);
                self.drop_link(now, peer, format!("its disk failed (error {errno})"), out);
            }
            Message::BitmapPage { .. } => unreachable!("the shell passes bitmap pages as Input::PeerPage"),
            Message::BitmapEnd { .. } => self.bitmap_end_heard(now, peer, out),
            Message::ResyncBegin { generation, dirty_blocks } => {
                self.resync_begins(now, peer, generation, dirty_blocks, out);
            }
            Message::ResyncReady => self.target_ready(now, peer, out),
            Message::ResyncFinish { generation } => self.resync_finishes(now, peer, generation, out),
            Message::ResyncFinished => self.target_finished(now, peer, out),
            Message::Detached { generation } => self.peer_detached(now, peer, generation, out),
            Message::DetachedDone { generation } => self.detached_done(peer, generation, out),
            Message::Read { id, range } => self.peer_reads(now, peer, connection, id, range, out),
            Message::ReadDone { id, len, errno } => self.peer_has_read(now, peer, (id, len, errno), buf, out),
            Message::Claim { term } => self.claimed(peer, term, out),
            Message::Grant { term } => self.granted(now, peer, term, out),
            Message::Deny { term, rule } => self.denied(now, peer, term, rule, out),
            Message::Offer { term } => self.offered(now, peer, term, out),
            Message::State { role, disk } => self.peer_state(now, peer, role, disk, out),
            Message::Pause { on } => self.peer_mut(peer).paused.1 = on,
            Message::Ping => self.send(peer, Message::Pong, None, out),
            Message::Pong => {}
            Message::Goodbye => self.drop_link(now, peer, "it was shut down in order".into(), out),
        }
    }

    /// Mirrors writes to the peer from here on.
    pub(super) fn open_stream(&mut self, now: Moment, peer: PeerNo, out: &mut Effects) {
        let last = self.log.last();
        let waits = self.config.mode != Mode::Async || !self.local_ok;
        self.done = last;
        let link = self.peer_mut(peer);
        assert!(link.cursor.is_none(), "a stream is opened once a link");
        link.cursor = Some(Cursor::joining(last));
        link.share_floor = waits.then_some(last);
        link.sent = last;
        link.barrier_sent = Seq(last.0 - 1);
        link.backlog_bytes = 0;
        link.progress = now;
        self.send(peer, Message::StreamStart { after: last }, None, out);
    }

    /// Ends the stream of a role that is given up. Everything in it is stable.
    pub(super) fn close_streams(&mut self) {
        for peer in &mut self.peers {
            peer.cursor = None;
            peer.share_floor = None;
        }
    }

    fn acknowledged(
        &mut self,
        now: Moment,
        peer: PeerNo,
        (received, written, stable): (Seq, Seq, Seq),
        out: &mut Effects,
    ) {
        let last = self.log.last();
        // Without a disk of its own this node counts on what the peer has on its disk, not in its memory.
        let counts_received = self.config.mode == Mode::SemiSync && self.local_ok;
        let link = self.peer_mut(peer);
        let Some(cursor) = &mut link.cursor else { return };
        let (old, floor) = (*cursor, link.share_floor);
        if received > last || received < old.received || written < old.written || stable < old.stable {
            let why = format!("protocol error: it acknowledges {received}/{written}/{stable} of {last} after {old:?}");
            self.drop_link(now, peer, why, out);
            return;
        }
        (cursor.received, cursor.written, cursor.stable) = (received, written, stable);
        if (received, written, stable) != (old.received, old.written, old.stable) {
            link.progress = now;
        }
        let through = if counts_received { received } else { written };
        if let Some(floor) = floor {
            link.share_floor = Some(through.max(floor));
            self.give_shares_up(floor, Some(through), out);
        }
        for number in old.written.0 + 1..=written.0 {
            let entry = *self.log.get(Seq(number)).expect("what is not written everywhere is in the log");
            if entry.resync == Some(peer) {
                self.release_range(entry.range);
                if let Some(Sync::SourceRunning(outgoing)) = self.peer_mut(peer).sync_mut() {
                    outgoing.unwritten -= entry.range.len();
                }
            } else if entry.went_to(peer) {
                let link = self.peer_mut(peer);
                link.backlog_bytes = link.backlog_bytes.saturating_sub(entry.range.len());
            }
        }
    }

    /// The shares of one copy in the segments above `floor`, up to `through`, are done.
    pub(super) fn give_shares_up(&mut self, floor: Seq, through: Option<Seq>, out: &mut Effects) {
        let last = through.unwrap_or(self.log.last());
        for number in floor.0 + 1..=last.0 {
            if let Some(segment) = self.log.get(Seq(number)).and_then(|entry| entry.segment) {
                self.share_done(segment, out);
            }
        }
    }

    /// Lets everything out of the log that is stable on every copy it went to.
    pub(super) fn pump_log(&mut self) {
        let mut stable = self.log.last();
        if self.local_ok {
            stable = stable.min(self.local.stable);
        }
        for cursor in self.peers.iter().filter_map(|peer| peer.cursor) {
            stable = stable.min(cursor.stable);
        }
        while let Some((seq, entry)) = self.log.pop_stable(stable) {
            if entry.logged {
                self.hot.release(entry.range);
            }
            for (number, peer) in (0..).map(PeerNo).zip(&mut self.peers) {
                let Some(cursor) = peer.cursor.filter(|cursor| seq > cursor.joined) else { continue };
                if !entry.went_to(number) {
                    continue;
                }
                debug_assert!(cursor.stable >= seq, "only what is stable is popped");
                if !peer.bitmap.is_empty() {
                    peer.bitmap.clear(entry.range);
                }
                if let (Some(_), Some(Sync::SourceRunning(outgoing))) = (entry.resync, peer.sync_mut()) {
                    outgoing.unstable -= entry.range.len();
                    outgoing.done += entry.range.len();
                }
            }
        }
    }

    /// Closes the link on this side's wish.
    pub(super) fn drop_link(&mut self, now: Moment, peer: PeerNo, why: String, out: &mut Effects) {
        if let Some(connection) = self.peer(peer).connection() {
            out.push(Effect::CloseLink { peer, connection, why: why.clone() });
            self.lose_link(now, peer, why, out);
        }
    }

    /// The link is gone.
    pub(super) fn lose_link(&mut self, now: Moment, peer: PeerNo, why: String, out: &mut Effects) {
        let name = self.peer(peer).name.clone();
        let old_word = self.peer(peer).connection_word();
        let was_up = matches!(self.peer(peer).link, Link::Up { .. });
        self.forget_sync(peer);
        self.mark_loss(peer);
        let link = self.peer_mut(peer);
        link.link = Link::Down;
        link.since = now;
        link.role = None;
        // It says so again on the next link, if it still is.
        link.paused.1 = false;
        link.why.clone_from(&why);
        let cursor = link.cursor.take();
        if let Some(cursor) = cursor {
            self.unstable_becomes_dirty(peer, cursor);
        }
        if was_up {
            let new_word = self.peer(peer).connection_word();
            Self::changed(&format!("peer {name}"), old_word, new_word, why, out);
        }
        self.stream_lost(peer);
        self.fail_remote_reads(peer, out);
        self.detach_lost(peer, out);
        self.transition_lost(peer, out);
        if self.peer(peer).exclusion.is_some() {
            // Lost again before it was done: the shares stay until it is.
            self.mark(Mark::LostAgain);
            let last = self.log.last();
            self.peer_mut(peer).share_floor.get_or_insert(last);
            self.park_written(peer);
            return;
        }
        if self.transition.has_ended() {
            // Whoever still waits is not answered: this node says nothing more that the peer may not know.
            self.mark(Mark::LostAtEnd);
            self.peer_mut(peer).share_floor = None;
            return;
        }
        let in_sync = !self.record(peer).base.is_some();
        if self.role == Role::Primary && in_sync && self.local_ok && !self.book.get().lineage.is_fresh() {
            self.exclude(now, peer, out);
        } else if let Some(floor) = self.peer_mut(peer).share_floor.take() {
            self.give_shares_up(floor, None, out);
        }
    }

    /// Marks the moments in which a lost link is most dangerous.
    fn mark_loss(&mut self, peer: PeerNo) {
        let mark = match &self.peer(peer).link {
            Link::Judging { .. } => Mark::LostJudging,
            Link::Up { sync: Sync::TargetPreparing(_), .. } => Mark::LostPreparing,
            Link::Up { sync: Sync::SourceClosing, .. } => Mark::LostClosing,
            Link::Up { sync: Sync::SourceConfirming, .. } => Mark::LostConfirming,
            Link::Up { sync: Sync::TargetClosing, .. } => Mark::LostFinishing,
            _ => return,
        };
        self.mark(mark);
    }

    /// What the peer acknowledged but may not have made stable, and what it may not even have: dirty.
    fn unstable_becomes_dirty(&mut self, peer: PeerNo, cursor: Cursor) {
        let entries: Vec<(Seq, crate::volume::transfer_log::Entry)> =
            self.log.above(cursor.stable.max(cursor.joined)).map(|(seq, entry)| (seq, *entry)).collect();
        for (seq, entry) in entries {
            if !entry.went_to(peer) {
                continue;
            }
            self.mark(Mark::UnstableDirty);
            self.peer_mut(peer).bitmap.set(entry.range);
            if entry.resync == Some(peer) && seq > cursor.written {
                self.mark(Mark::ResyncLost);
                self.release_range(entry.range);
            }
            if let Some(segment) = entry.segment.filter(|_| seq > cursor.written) {
                self.copy_lost(segment);
            }
        }
        self.peer_mut(peer).backlog_bytes = 0;
    }

    /// Drops peers that are silent or make no progress; pings those that are idle.
    pub(super) fn check_peers(&mut self, now: Moment, out: &mut Effects) {
        for peer in self.peer_numbers() {
            self.ask_again(now, peer, out);
            if self.peer(peer).connection().is_none() {
                continue;
            }
            let timeout = self.config.peer_timeout;
            let link = self.peer(peer);
            if now.since(link.heard) > timeout {
                self.mark(Mark::PeerSilent);
                let why = format!("nothing was heard from it for {} ms (peer_timeout)", timeout.as_millis());
                self.drop_link(now, peer, why, out);
                continue;
            }
            if link.cursor.is_some() {
                if !link.owes() {
                    self.peer_mut(peer).progress = now;
                } else if now.since(link.progress) > timeout {
                    self.mark(Mark::PeerStuck);
                    let why = format!(
                        "it answers, but finished no write or flush for {} ms (peer_timeout); look at its disk",
                        timeout.as_millis()
                    );
                    self.drop_link(now, peer, why, out);
                    continue;
                }
            }
            let link = self.peer_mut(peer);
            if now.since(link.pinged) >= self.config.ping_interval {
                self.peer_mut(peer).pinged = now;
                self.send(peer, Message::Ping, None, out);
            }
        }
    }

    pub(super) fn peer_deadline(&self, peer: &super::Peer) -> Option<Moment> {
        let ask = peer.exclusion.as_ref().and_then(super::exclusion::asked_again_at);
        if peer.connection().is_none() {
            return ask;
        }
        let silent = peer.heard.after(self.config.peer_timeout);
        let ping = peer.pinged.after(self.config.ping_interval);
        let stalled = peer.owes().then(|| peer.progress.after(self.config.peer_timeout));
        // One nanosecond later, since "longer than" is asked.
        let later = |moment: Moment| Moment(moment.0.saturating_add(1));
        Some([Some(later(silent)), Some(ping), stalled.map(later), ask].into_iter().flatten().min().unwrap_or(ping))
    }

    fn peer_reads(
        &mut self,
        now: Moment,
        peer: PeerNo,
        connection: ConnectionId,
        id: u64,
        range: ByteRange,
        out: &mut Effects,
    ) {
        if range.end() > self.data_len {
            self.drop_link(now, peer, "protocol error: it reads past the end".into(), out);
        } else if self.local_ok {
            if self.peer_reads.len() >= PEER_READS_MAX {
                self.drop_link(now, peer, "protocol error: it asks for more reads than a node has".into(), out);
                return;
            }
            self.peer_reads.push_back((peer, connection, id, range));
        } else {
            self.send(peer, Message::ReadDone { id, len: 0, errno: 5 }, None, out);
        }
    }

    /// Starts the reads of a peer that no write of its stream is still to come before.
    pub(super) fn pump_peer_reads(&mut self, out: &mut Effects) {
        for _ in 0..self.peer_reads.len() {
            let read = self.peer_reads.pop_front().expect("counted");
            let (peer, connection, id, range) = read;
            if self.peer(peer).connection() != Some(connection) || !self.local_ok {
                continue;
            }
            if self.stream_will_change(range) {
                self.mark(Mark::PeerReadWaited);
                self.peer_reads.push_back(read);
                continue;
            }
            let len = u32::try_from(range.len()).expect("the format bounds a read");
            let op = self.begin(Op::PeerRead { peer, connection, id, len });
            out.push(Effect::DiskRead { op, range });
        }
    }

    fn peer_has_read(
        &mut self,
        now: Moment,
        peer: PeerNo,
        (id, len, errno): (u64, u32, u32),
        buf: Option<BufId>,
        out: &mut Effects,
    ) {
        let at = self.remote_reads.iter().position(|read| read.id == id && read.peer == peer);
        let read = at.map(|at| self.remote_reads.swap_remove(at));
        match read {
            Some(read) if errno != 0 || (len == read.len && buf.is_some()) => {
                let result = if errno == 0 { buf.ok_or(()) } else { Err(()) };
                if errno != 0 {
                    Self::release(buf, out);
                }
                self.remote_read_done(read.request, read.piece, result, out);
            }
            read => {
                Self::release(buf, out);
                self.remote_reads.extend(read);
                self.drop_link(now, peer, "protocol error: its answer fits no read".into(), out);
            }
        }
    }

    /// The peer's role or disk changed.
    fn peer_state(&mut self, now: Moment, peer: PeerNo, role: Role, disk: DiskState, out: &mut Effects) {
        let link = self.peer_mut(peer);
        let (old_role, name) = (link.role, link.name.clone());
        link.role = Some(role);
        link.disk = Some(disk);
        if old_role != Some(role) {
            let old = old_role.map_or("unknown", Role::word);
            Self::changed(&format!("role of {name}"), old, role, "it says so", out);
        }
        if role == Role::Primary {
            self.peer_became_primary(now, peer, out);
        }
    }

    /// A heartbeat came. A secondary that learns that the other node went on without it knows that it is Outdated.
    pub(super) fn peer_seen(
        &mut self,
        now: Moment,
        peer: PeerNo,
        view: crate::volume::io::PeerView,
        out: &mut Effects,
    ) {
        // A datagram that was long on its way must not contradict what the link has told since.
        let known = self.term();
        if view.role == Role::Primary && view.term < known {
            self.mark(Mark::OldHeartbeat);
            return;
        }
        self.peer_mut(peer).seen = Some((now, view));
        let lineage = self.book.get().lineage;
        // Whether it still serves is of no matter: what it acknowledged alone, only its copy has.
        let left_behind =
            view.base_for_you.is_some() && view.base_for_you == lineage.current && view.generation != lineage.current;
        if left_behind && self.role == Role::Secondary && self.disk() == DiskState::UpToDate {
            self.mark(Mark::HeartbeatTold);
            let goes = if view.role == Role::Primary { "is primary and goes" } else { "was primary and went" };
            let why = format!("{} {goes} on without this node", self.peer(peer).name);
            self.set_disk(DiskState::Outdated, &why, out);
        }
    }
}
