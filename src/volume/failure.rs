//! The local disk is lost.
//!
//! A failed write or flush, of data or metadata, is a failed disk; it is never tried again (after a failed fsync the
//! kernel may have dropped what was dirty). What follows depends on the role:
//!
//! - A primary with an equal peer goes on with the peer's disk. First that is allowed, as any other exclusion is, with this copy as the one
//!   given up. Then the peer records, durably, a new generation and that this copy needs every block; until it says so, nothing more
//!   is acknowledged, and nothing more is sent: neither copy would know that it differs there. So the failed copy can never pass for a good one.
//! - A primary without such a peer answers errors: no copy is left that could serve.
//! - A secondary tells the primary and parts.
//!
//! What became of the copy is recorded on its own metadata too, if that can still be written: the *obituary*. At first it says that what was not
//! flushed may be missing, as after a power loss: the kernel may have dropped it. Where another copy goes on as the good one, it
//! says that this one is Inconsistent. So a daemon that is started again, when space was freed or a cable plugged in, does not take it for a
//! better copy than it is, even if no peer is there to say so. The only copy left is never written off.

use crate::condition::{DiskState, Role};
use crate::units::{BufId, ConnectionId, GenerationId, Moment, PeerNo, Seq};
use crate::volume::book::{Obituary, Then};
use crate::volume::io::{BufSlice, DiskError, Effect, Report, SendBody};
use crate::volume::marks::Mark;
use crate::volume::peer::Sync;
use crate::volume::{Effects, Op, Volume};
use crate::wire::Message;

/// A primary without a disk is about to go on with its peer's.
#[derive(Clone, Copy, Debug)]
pub(super) struct Detaching {
    /// The peer with the good copy.
    pub(super) peer: PeerNo,
    /// Number of the exclusion of the own copy.
    pub(super) number: u64,
    /// When it was asked for last.
    pub(super) asked: Moment,
    /// It was allowed; the peer records this.
    generation: Option<GenerationId>,
}

impl Detaching {
    /// It was not allowed yet.
    pub(super) fn is_asked(&self) -> bool {
        self.generation.is_none()
    }
}

/// What to do about a failed disk, in words.
fn cure(error: DiskError) -> &'static str {
    const NO_SPACE: i32 = 28;
    if error.errno == NO_SPACE {
        "free room where the device lies, then restart this daemon: the peer fills it again"
    } else {
        "mend the disk and restart this daemon, or replace it and run `repblk init --force`: the peer fills it again"
    }
}

/// The superblock has two.
const SUPERBLOCK_COPIES: u8 = 2;

impl Volume {
    pub(super) fn fail_local(&mut self, now: Moment, what: &str, error: DiskError, out: &mut Effects) {
        if !self.local_ok {
            return;
        }
        self.local_ok = false;
        let old = self.disk();
        // The metadata may be on the failed disk, and a commit may be under way; nothing is written to it any more.
        self.book.change(|superblock| superblock.disk = DiskState::Failed);
        Self::changed("disk", old, DiskState::Failed, format!("{what} failed: {error}; {}", cure(error)), out);
        self.give_stream_up(out);
        // What it has written and nobody was told yet must not count on it.
        let written: Vec<_> = self
            .log
            .above(Seq(0))
            .filter(|(_, entry)| entry.local_written)
            .filter_map(|(_, entry)| entry.segment)
            .collect();
        let parked =
            self.peers.iter().filter_map(|peer| peer.exclusion.as_ref()).flat_map(|e| e.parked.iter().copied());
        for segment in parked.chain(written).collect::<Vec<_>>() {
            self.copy_lost(segment);
        }
        let errno = u32::try_from(error.errno).unwrap_or(0);
        self.metadata_ok = what != "metadata";
        self.bury(Obituary::CacheLost);
        match self.role {
            Role::Secondary => {
                if self
                    .peers
                    .iter()
                    .any(|peer| peer.role == Some(Role::Primary) && peer.disk == Some(DiskState::UpToDate))
                {
                    self.bury(Obituary::NoGoodCopy);
                }
                for peer in self.peer_numbers() {
                    self.send(peer, Message::DiskFailed { errno }, None, out);
                    self.drop_link(now, peer, "this node's disk failed".into(), out);
                }
                self.abort_transition(out);
            }
            Role::Primary => self.detach(now, out),
        }
    }

    fn abort_transition(&mut self, out: &mut Effects) {
        use super::roles::Transition;
        // An end in order still comes to its end; only what would have made this node primary is off.
        let (Transition::Claiming { ticket, .. } | Transition::Promoting { ticket }) = self.transition else { return };
        self.transition = Transition::None;
        let refused = super::io::Refusal {
            rule: super::rule::Rule::DiskFailed,
            what: "this node's disk failed meanwhile".into(),
            way_out: "Promote the other node, then replace the disk".into(),
        };
        out.extend(ticket.map(|ticket| Effect::Answer { ticket, result: Err(refused) }));
    }

    /// A primary goes on without its own disk, or ends.
    fn detach(&mut self, now: Moment, out: &mut Effects) {
        for peer in self.peer_numbers() {
            if !self.peer(peer).holds_everything() || self.detaching.is_some() {
                self.drop_link(now, peer, "this node's disk failed before the peer had everything".into(), out);
                continue;
            }
            // From here on a write counts when the peer has it, in every mode.
            let last = self.log.last();
            self.peer_mut(peer).share_floor.get_or_insert(last);
            let number = self.next_exclusion();
            self.detaching = Some(Detaching { peer, number, asked: now, generation: None });
            out.push(Effect::Report(Report::ExclusionWanted { peer, number }));
        }
        if self.detaching.is_none() {
            Self::note("no copy is left that can serve: clients get errors until a disk is back", true, out);
        }
    }

    /// Whoever decides has agreed that this copy is given up.
    pub(super) fn detach_allowed(&mut self, out: &mut Effects) {
        let generation = self.mint();
        let Some(detaching) = self.detaching.as_mut().filter(|detaching| detaching.is_asked()) else { return };
        detaching.generation = Some(generation);
        let peer = detaching.peer;
        self.book.change(|superblock| superblock.lineage.advance(generation));
        self.mark(Mark::Detached);
        self.send(peer, Message::Detached { generation }, None, out);
    }

    /// The primary lost its disk: what it had is recorded as behind, and this copy as the newest.
    pub(super) fn peer_detached(&mut self, now: Moment, peer: PeerNo, generation: GenerationId, out: &mut Effects) {
        // The primary counts this copy as equal from the moment it says that the resync is finished.
        let equal = matches!(self.peer(peer).sync(), Some(Sync::Even | Sync::TargetClosing));
        if !equal || self.role == Role::Primary || !generation.is_some() {
            self.drop_link(now, peer, "protocol error: it lost a disk that did not count".into(), out);
            return;
        }
        let slot = self.slot(peer);
        self.peer_mut(peer).disk = Some(DiskState::Failed);
        self.peer_mut(peer).bitmap.set_all();
        let old = self.book.get().lineage.current;
        if generation == old {
            return;
        }
        self.book.change_then(Then::PeerDetached(peer, generation), |superblock| {
            superblock.peers[slot].base = old;
            superblock.peers[slot].full = true;
            superblock.lineage.advance(generation);
        });
        let name = self.peer(peer).name.clone();
        Self::changed("generation", old, generation, format!("{name} lost its disk and goes on with this one"), out);
    }

    /// The peer has recorded it: what waited for the lost disk needs to wait no more.
    pub(super) fn detached_done(&mut self, peer: PeerNo, generation: GenerationId, out: &mut Effects) {
        if self.detaching.is_some_and(|detaching| (detaching.peer, detaching.generation) == (peer, Some(generation))) {
            self.detaching = None;
            self.bury(Obituary::NoGoodCopy);
            self.release_detached(out);
        }
    }

    /// What is to be recorded of this copy.
    fn bury(&mut self, what: Obituary) {
        self.obituary = self.metadata_ok.then_some((what, SUPERBLOCK_COPIES));
    }

    /// Writes what is left of the obituary, one copy of the superblock after the other. Nobody waits for it.
    pub(super) fn pump_obituary(&mut self, out: &mut Effects) {
        let under_way = self.ops.iter().any(|(_, op)| matches!(op, Op::Superblock | Op::Obituary(_)));
        if let Some((what, _)) = self.obituary.filter(|_| !under_way) {
            self.mark(match what {
                Obituary::CacheLost => Mark::CacheLost,
                Obituary::NoGoodCopy => Mark::Obituary,
            });
            let page = self.book.obituary(what);
            let op = self.begin(Op::Obituary(what));
            out.push(Effect::MetaCommit { op, pages: vec![page] });
        }
    }

    pub(super) fn obituary_written(&mut self, what: Obituary, result: Result<(), DiskError>) {
        // A page that is not stable may be torn by the next power loss: the other copy must not be put at stake as well.
        self.metadata_ok &= result.is_ok();
        self.obituary = match self.obituary {
            _ if result.is_err() => None,
            // Another one has taken its place meanwhile.
            Some((now, copies)) if now != what => Some((now, copies)),
            Some((_, copies)) if copies > 1 => Some((what, copies - 1)),
            Some(_) | None => None,
        };
    }

    fn release_detached(&mut self, out: &mut Effects) {
        for segment in std::mem::take(&mut self.detach_waiting) {
            self.share_done(segment, out);
        }
    }

    /// The peer is lost before it has recorded it: no copy is left that this node may count on.
    pub(super) fn detach_lost(&mut self, peer: PeerNo, out: &mut Effects) {
        if self.detaching.is_some_and(|detaching| detaching.peer == peer) {
            self.mark(Mark::DetachLost);
            self.detaching = None;
            for &segment in &self.detach_waiting {
                let request = self.segments.get(segment).request;
                self.requests.get_mut(request).failed = true;
            }
            self.release_detached(out);
        }
    }

    /// Answers a read of a primary without a disk.
    pub(super) fn answer_peer_read(
        &mut self,
        (peer, connection): (PeerNo, ConnectionId),
        (id, len): (u64, u32),
        result: Result<Option<BufId>, DiskError>,
        out: &mut Effects,
    ) {
        let (errno, buf) = match result {
            Ok(buf) => (0, buf),
            Err(error) => (u32::try_from(error.errno).unwrap_or(5).max(1), None),
        };
        if self.peer(peer).connection() == Some(connection) {
            let body = buf.map(|buf| SendBody::Slice(BufSlice { buf, offset: 0, len }));
            let len = if buf.is_some() { len } else { 0 };
            self.send(peer, Message::ReadDone { id, len, errno }, body, out);
        }
        Self::release(buf, out);
    }
}
