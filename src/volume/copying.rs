//! What an operator wants of the copying: resync, suspend and go on, part.
//!
//! A wish never overrides what keeps copies apart: a disconnect ends by connect, a split brain by giving one copy up. Which copy
//! is copied to which is no wish either, see [`super::reconcile`].

use crate::condition::{DiskState, Role};
use crate::units::Moment;
use crate::volume::io::{Discard, Refusal};
use crate::volume::roles::refusal;
use crate::volume::rule::Rule;
use crate::volume::{Effects, Volume};
use crate::wire::Message;

impl Volume {
    pub(super) fn resync(
        &mut self,
        now: Moment,
        full: bool,
        discard: Option<Discard>,
        out: &mut Effects,
    ) -> Result<(), Refusal> {
        let discard_local = discard.is_some();
        if discard_local && self.role == Role::Primary {
            return Err(refusal(
                Rule::AlreadyPrimary,
                "this copy is being served",
                "Demote this node first, or give up the other copy",
            ));
        }
        if self.peers.is_empty() {
            return Err(refusal(Rule::NoResyncPartner, "this volume has no peer", "Configure one"));
        }
        if !discard_local {
            self.check_resync()?;
        }
        if discard_local && self.peers.iter().any(super::Peer::is_even) {
            return Err(refusal(
                Rule::AlreadyInSync,
                "this copy and the peer's are equal, so there is nothing to give up",
                "Use `repblk resync --full` on the primary to copy every block again",
            ));
        }
        if let Some(Discard::Saved { generation, blocks }) = discard
            && (generation, blocks) != (self.book.get().lineage.current, self.dirty_blocks())
        {
            return Err(refusal(
                Rule::NotSaved,
                "this copy has changed since its diverged blocks were saved",
                "Say it again, and they are saved again",
            ));
        }
        for peer in self.peer_numbers() {
            if discard_local {
                self.peer_mut(peer).discard = true;
                self.set_disk(DiskState::Outdated, "its operator gives this copy up", out);
            }
            if full {
                if self.role == Role::Secondary && self.peer(peer).role != Some(Role::Primary) && !discard_local {
                    let what = "without a primary it is not clear which copy is the good one";
                    return Err(refusal(
                        Rule::NoResyncPartner,
                        what,
                        "Promote the good one first, or use --discard-local here",
                    ));
                }
                let slot = self.slot(peer);
                self.peer_mut(peer).bitmap.set_all();
                self.book.change(|superblock| superblock.peers[slot].full = true);
            }
            self.peer_mut(peer).standalone = false;
            if std::mem::take(&mut self.peer_mut(peer).paused.0) {
                self.send(peer, Message::Pause { on: false }, None, out);
            }
            if self.peer(peer).is_copied() && full || discard_local {
                self.drop_link(now, peer, "the operator asked for a resync; both greet again".into(), out);
            }
        }
        Ok(())
    }

    /// A resync is no way around what keeps the copies apart. Without a link it begins when there is one.
    fn check_resync(&self) -> Result<(), Refusal> {
        if self.disk() == DiskState::Diverged {
            let what = "this copy and the peer's went different ways, and nothing is copied before one is given up";
            let way_out = "Say `repblk resync --discard-local` on the node whose copy is to be given up";
            return Err(refusal(Rule::Diverged, what, way_out));
        }
        match self.peers.iter().find(|peer| peer.standalone) {
            Some(peer) => Err(refusal(
                Rule::NotConnected,
                format!("there is no link to {} ({})", peer.name, peer.why),
                "Say `repblk connect` here; what differs is copied then",
            )),
            None => Ok(()),
        }
    }

    pub(super) fn pause(&mut self, on: bool, out: &mut Effects) -> Result<(), Refusal> {
        if self.peers.is_empty() {
            return Err(refusal(Rule::NoResyncPartner, "this volume has no peer", "Configure one"));
        }
        for peer in self.peer_numbers() {
            self.peer_mut(peer).paused.0 = on;
            self.send(peer, Message::Pause { on }, None, out);
        }
        Ok(())
    }

    pub(super) fn disconnect(&mut self, now: Moment, out: &mut Effects) -> Result<(), Refusal> {
        for peer in self.peer_numbers() {
            self.peer_mut(peer).standalone = true;
            self.drop_link(now, peer, "the operator disconnected it".into(), out);
            self.peer_mut(peer).why = "disconnected by the operator; `repblk connect` ends that".into();
        }
        Ok(())
    }
}
