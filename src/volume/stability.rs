//! Flushes and barriers: who has made what stable.
//!
//! A flush or FUA write waits until the local disk *and* each mirrored peer have made everything up to a number stable (`async`:
//! the local disk alone). A flush covers the writes that were answered before it came, as NBD asks, and not those under way.
//! All that wait in one turn share one flush of the disk and one barrier to each peer. The same
//! mechanism keeps the transfer log short: when it is half full, when hot extents run short, or when nothing was written
//! for a while, stability is asked for though no client did.
//!
//! On a disk without a volatile cache (`write_through`) what is written is stable, and says so: a flush that finds everything
//! written on such copies waits for nobody.

use std::time::Duration;

use crate::condition::Mode;
use crate::units::{Moment, Seq};
use crate::volume::io::{DiskError, Effect};
use crate::volume::marks::Mark;
use crate::volume::{Effects, Op, Volume};
use crate::wire::Message;

/// An unstable log is made stable when nothing was written for this long.
const IDLE: Duration = Duration::from_millis(300);

impl Volume {
    /// End of the shell's turn: say once what can be said once.
    pub(super) fn turn_end(&mut self, now: Moment, out: &mut Effects) {
        self.ask_for_room(now);
        if self.foresight.turn_end() {
            self.mark(Mark::FlushForeseen);
            self.stable_goal = self.log.last();
        }
        self.flush_local(out);
        self.send_barriers(out);
        self.acknowledge_stream(out);
    }

    /// Asks for stability where it is needed to make room.
    fn ask_for_room(&mut self, now: Moment) {
        let idle = self.idle_barrier_due().is_some_and(|due| due <= now);
        let mut resync_asks = false;
        for peer in &mut self.peers {
            if let Some(super::peer::Sync::SourceRunning(outgoing)) = peer.sync_mut() {
                resync_asks |= outgoing.asks_for_barrier();
            }
        }
        let crowded =
            self.log.is_crowded() || self.hot.is_crowded() || self.log.bytes() > self.config.limits.unstable_bytes;
        // While an earlier wish is still open, a later one would only move the goal away.
        if (crowded && self.everything_stable_through(self.stable_goal)) || idle || resync_asks {
            self.stable_goal = self.log.last();
        }
    }

    /// When an idle log is due to be made stable.
    pub(super) fn idle_barrier_due(&self) -> Option<Moment> {
        (self.log.len() > 0 && self.stable_goal < self.log.last()).then(|| self.last_write.after(IDLE))
    }

    /// The highest number that something waits to become stable.
    fn wanted(&self) -> Seq {
        self.flushes.back().map_or(self.stable_goal, |&(_, through)| through.max(self.stable_goal))
    }

    pub(super) fn everything_stable_through(&self, seq: Seq) -> bool {
        (!self.local_ok || self.local.stable >= seq)
            && self.peers.iter().filter_map(|peer| peer.cursor).all(|cursor| cursor.stable >= seq)
    }

    fn flush_local(&mut self, out: &mut Effects) {
        if !self.local_ok || self.local_flush.is_some() || self.wanted() <= self.local.stable {
            return;
        }
        // A flush covers what was written before it began. Waiting for the oldest wish, and not for the newest, keeps
        // steady writers from putting the flush off for ever.
        let oldest = [self.flushes.front().map(|&(_, through)| through), Some(self.stable_goal)]
            .into_iter()
            .flatten()
            .filter(|&through| through > self.local.stable)
            .min();
        if oldest.is_some_and(|oldest| oldest <= self.local.written) {
            let op = self.begin(Op::LocalFlush { covers: self.local.written });
            self.local_flush = Some(op);
            out.push(Effect::DiskFlush { op });
        }
    }

    fn send_barriers(&mut self, out: &mut Effects) {
        let (wanted, last) = (self.wanted(), self.log.last());
        let ordered = self.config.mode == Mode::Async;
        for peer in self.peer_numbers() {
            let link = self.peer_mut(peer);
            if link.cursor.is_some() && link.barrier_sent < wanted {
                (link.barrier_sent, link.sent) = (last, last);
                self.send(peer, Message::Barrier { seq: last, ordered }, None, out);
            }
        }
    }

    /// An entry of the log is written on the local disk: how far everything is.
    pub(super) fn local_came_further(&mut self) {
        self.local.written = self.log.local_written_through(self.local.written);
        self.local.received = self.local.written;
        if self.config.write_through && self.local_ok {
            self.local.stable = self.local.written;
        }
    }

    /// The local disk has flushed, or failed to.
    pub(super) fn local_flushed(&mut self, now: Moment, covers: Seq, result: Result<(), DiskError>, out: &mut Effects) {
        self.local_flush = None;
        match result {
            Ok(()) => self.local.stable = self.local.stable.max(covers),
            Err(error) => self.fail_local(now, "flush", error, out),
        }
    }

    /// Answers the flushes whose writes are stable where the mode wants it.
    pub(super) fn check_flushes(&mut self, out: &mut Effects) {
        while let Some(&(request, through)) = self.flushes.front() {
            let local = self.local_ok && self.local.stable >= through;
            let mut copies = usize::from(local);
            let mut open = self.local_ok && !local || self.detaching.is_some();
            for peer in &self.peers {
                let awaited = self.config.mode != Mode::Async || !self.local_ok;
                match peer.cursor {
                    Some(cursor) if cursor.stable >= through => copies += 1,
                    Some(_) => open |= awaited,
                    None => {}
                }
                open |= peer.exclusion.is_some();
            }
            if open {
                break;
            }
            self.flushes.pop_front();
            let result = if copies > 0 { Ok(()) } else { Err(super::io::HostError::Io) };
            self.reply(request, result, None, out);
        }
    }
}
