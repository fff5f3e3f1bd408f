//! The receiving side of a resync.
//!
//! The target sends its own dirty bitmap, becomes Inconsistent at the source's generation, durably, and then applies the
//! source's stream like any secondary. Its own bitmap towards the source stays as it is until the end: should the source
//! die, the union can be made again.

use crate::condition::{DiskState, Role};
use crate::units::{GenerationId, Moment, PeerNo};
use crate::volume::book::Then;
use crate::volume::io::SendBody;
use crate::volume::marks::Mark;
use crate::volume::peer::{Link, Sync};
use crate::volume::resync::Incoming;
use crate::volume::{Effects, Volume};
use crate::wire::Message;

impl Volume {
    pub(super) fn target_offers(&mut self, peer: PeerNo, full: bool, out: &mut Effects) {
        let name = self.peer(peer).name.clone();
        let own = self.peer(peer).bitmap.count();
        if own > 0 && !self.book.get().lineage.is_fresh() {
            self.mark(Mark::TargetDirty);
            let text = format!(
                "{own} blocks ({} MiB) that changed here since both copies were equal will be overwritten with {name}'s",
                own * 4 / 1024
            );
            Self::note(text, false, out);
        }
        let mut dirty_blocks = 0;
        if !full {
            for index in 0..self.peer(peer).bitmap.wire_pages() {
                if let Some(page) = self.peer(peer).bitmap.wire_page(index) {
                    self.send(peer, Message::BitmapPage { index }, Some(SendBody::Page(page)), out);
                }
            }
            dirty_blocks = own;
        }
        self.send(peer, Message::BitmapEnd { dirty_blocks }, None, out);
        self.set_sync(peer, Sync::TargetOffering);
        Self::changed(&format!("replication {name}"), "off", "target", "this copy is behind", out);
    }

    pub(super) fn resync_begins(
        &mut self,
        now: Moment,
        peer: PeerNo,
        generation: GenerationId,
        dirty_blocks: u64,
        out: &mut Effects,
    ) {
        let Link::Up { sync: Sync::TargetOffering, theirs, .. } = &self.peer(peer).link else {
            self.drop_link(now, peer, "protocol error: a resync begins that was not agreed".into(), out);
            return;
        };
        if self.role == Role::Primary {
            self.drop_link(now, peer, "this node became primary meanwhile".into(), out);
            return;
        }
        // A source that minted since its greeting says so here; its former generation is then its history.
        let mut lineage = theirs.lineage;
        if lineage.current != generation {
            if !generation.is_some() {
                self.drop_link(now, peer, "protocol error: a resync without a generation".into(), out);
                return;
            }
            self.mark(Mark::MintedSince);
            lineage.advance(generation);
        }
        let total = dirty_blocks.saturating_mul(crate::units::BLOCK_SIZE);
        self.set_sync(peer, Sync::TargetPreparing(Incoming { began: now, total, done: 0 }));
        let old = self.disk();
        self.book.change_then(Then::TargetReady(peer), |superblock| {
            superblock.lineage = lineage;
            superblock.disk = DiskState::Inconsistent;
        });
        Self::changed("disk", old, DiskState::Inconsistent, "blocks are being copied", out);
    }

    /// Being Inconsistent is durable.
    pub(super) fn target_is_ready(&mut self, now: Moment, peer: PeerNo, out: &mut Effects) {
        if let Some(&Sync::TargetPreparing(incoming)) = self.peer(peer).sync() {
            self.set_sync(peer, Sync::TargetRunning(incoming));
            self.send(peer, Message::ResyncReady, None, out);
            self.report_resync(now, peer, false, out);
        }
    }

    pub(super) fn resync_finishes(&mut self, now: Moment, peer: PeerNo, generation: GenerationId, out: &mut Effects) {
        let fits = matches!(self.peer(peer).sync(), Some(Sync::TargetRunning(_)));
        if !fits || generation != self.book.get().lineage.current {
            self.drop_link(now, peer, "protocol error: a resync ends that did not run".into(), out);
            return;
        }
        self.report_resync(now, peer, true, out);
        self.set_sync(peer, Sync::TargetClosing);
        let (slot, data_len) = (self.slot(peer), self.data_len);
        let link = self.peer_mut(peer);
        link.discard = false;
        link.bitmap.clear(crate::units::ByteRange::new(0, data_len));
        self.book.change_then(Then::TargetFinished(peer), |superblock| {
            superblock.disk = DiskState::UpToDate;
            superblock.was_primary = false;
            superblock.peers[slot].base = GenerationId::NONE;
        });
        // What the source was given in earlier terms and lost, this copy lacks now, too.
        self.whole_since = self.term();
        self.resolved();
    }

    /// Being UpToDate is durable.
    pub(super) fn target_is_finished(&mut self, now: Moment, peer: PeerNo, out: &mut Effects) {
        if matches!(self.peer(peer).sync(), Some(Sync::TargetClosing)) {
            let name = self.peer(peer).name.clone();
            self.set_sync(peer, Sync::Even);
            self.send(peer, Message::ResyncFinished, None, out);
            Self::changed("disk", DiskState::Inconsistent, DiskState::UpToDate, "resync is finished", out);
            Self::changed(
                &format!("replication {name}"),
                "target",
                "established",
                "every block is stable on both copies",
                out,
            );
            self.try_to_resume(now, out);
        }
    }

    /// What is known of a resync that a lost link interrupts is dropped; the bitmaps keep the truth.
    pub(super) fn forget_sync(&mut self, peer: PeerNo) {
        self.book.forget(|then| {
            matches!(then, Then::TargetReady(p) | Then::TargetFinished(p) | Then::SourceFinished(p)
                | Then::Granted(p, _) | Then::PeerDetached(p, _) if *p == peer)
        });
    }
}
