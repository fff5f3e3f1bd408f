//! What is known of one peer, and where the conversation with it stands.
//!
//! ```text
//!  Down --link--> Greeting --both greetings--> Judging --both verdicts--> Up(Wait | Even | Source.. | Target..)
//!
//!  Source: Collecting --target's bitmap--> Starting --ready--> Running --nothing dirty--> Closing --durable--> Confirming --> Even
//!  Target: Offering --begin--> Preparing --durable--> Running --finish--> Closing --durable--> Even
//! ```
//! A variant holds what is awaited in it, and nothing else.

use std::time::Duration;

use crate::condition::{DiskState, Role};
use crate::meta::Bitmap;
use crate::units::{ConnectionId, DiskInstance, Moment, PeerNo, Seq, Term};
use crate::volume::io::PeerView;
use crate::volume::reconcile::{SyncRule, Verdict};
use crate::volume::requests::SegmentId;
use crate::volume::resync::{Incoming, Outgoing};
use crate::volume::transfer_log::Cursor;
use crate::wire::message::Greeting;

/// The link to a peer.
#[derive(Clone, Debug)]
pub(crate) enum Link {
    /// None.
    Down,
    /// Agreed; greetings are exchanged.
    Greeting {
        /// Identity of the link.
        connection: ConnectionId,
        /// Identity of the peer's copy.
        instance: DiskInstance,
        /// What was said; none until this node is ready to speak.
        mine: Option<Box<Greeting>>,
        /// What was heard.
        theirs: Option<Box<Greeting>>,
    },
    /// The own verdict was sent; the peer's is awaited.
    Judging {
        /// Identity of the link.
        connection: ConnectionId,
        /// The rule.
        rule: SyncRule,
        /// The own verdict.
        verdict: Verdict,
        /// What was heard.
        theirs: Box<Greeting>,
    },
    /// In use.
    Up {
        /// Identity of the link.
        connection: ConnectionId,
        /// What it is used for.
        sync: Sync,
        /// What the peer said when it began.
        theirs: Box<Greeting>,
    },
}

/// What an established link is used for.
#[derive(Clone, Debug)]
pub(crate) enum Sync {
    /// Neither copy holds data.
    Wait,
    /// Both copies are equal; a primary's writes are mirrored.
    Even,
    /// Source: the target's bitmap is awaited.
    SourceCollecting,
    /// Source: the target's readiness is awaited.
    SourceStarting,
    /// Source: dirty blocks are sent, writes are mirrored.
    SourceRunning(Outgoing),
    /// Source: nothing is dirty; that the target is in sync is being made durable.
    SourceClosing,
    /// Source: the target was told; its word that it is durable there is awaited. It counts as in sync already.
    SourceConfirming,
    /// Target: the bitmap was sent, the source's begin is awaited.
    TargetOffering,
    /// Target: being Inconsistent is being made durable.
    TargetPreparing(Incoming),
    /// Target: blocks come in.
    TargetRunning(Incoming),
    /// Target: being UpToDate is being made durable.
    TargetClosing,
}

/// A peer that was in sync is gone, and this node, primary, wants to go on without it.
#[derive(Clone, Debug)]
pub(crate) struct Exclusion {
    /// Its number, for whoever decides.
    pub(crate) number: u64,
    /// It was allowed: the generation without the peer is being made durable.
    pub(crate) allowed: bool,
    /// When it was asked for last.
    pub(crate) asked: Moment,
    /// Segments that are on the local disk and wait for nothing else.
    pub(crate) parked: Vec<SegmentId>,
}

/// A peer.
#[derive(Clone, Debug)]
pub(crate) struct Peer {
    /// Its name.
    pub(crate) name: String,
    /// Its slot in the metadata.
    pub(crate) slot: PeerNo,
    /// Blocks that may differ from ours.
    pub(crate) bitmap: Bitmap,
    /// The link.
    pub(crate) link: Link,
    /// How far it has come, while writes are mirrored to it.
    pub(crate) cursor: Option<Cursor>,
    /// Segments numbered above this wait for the peer; none does when it is `None`.
    pub(crate) share_floor: Option<Seq>,
    /// Bytes sent that it has not written yet.
    pub(crate) backlog_bytes: u64,
    /// The last number sent to it. Numbers between two that were sent went to other peers.
    pub(crate) sent: Seq,
    /// Last write that a barrier was sent for.
    pub(crate) barrier_sent: Seq,
    /// Going on without it is under way.
    pub(crate) exclusion: Option<Exclusion>,
    /// The operator wants no link.
    pub(crate) standalone: bool,
    /// The operator wants resync to rest: own wish, and the peer's.
    pub(crate) paused: (bool, bool),
    /// Last known role.
    pub(crate) role: Option<Role>,
    /// Last known disk state.
    pub(crate) disk: Option<DiskState>,
    /// Last heartbeat.
    pub(crate) seen: Option<(Moment, PeerView)>,
    /// When something was last heard on the link.
    pub(crate) heard: Moment,
    /// When a ping was last sent.
    pub(crate) pinged: Moment,
    /// When it last made progress, or last had nothing to do.
    pub(crate) progress: Moment,
    /// When the link was last won or lost.
    pub(crate) since: Moment,
    /// Why there is no link or no replication.
    pub(crate) why: String,
    /// The operator gives this node's copy up in favour of the peer's.
    pub(crate) discard: bool,
}

impl Peer {
    /// A peer never heard of since start.
    pub(crate) fn new(name: String, slot: PeerNo, bitmap: Bitmap) -> Self {
        Self {
            name,
            slot,
            bitmap,
            link: Link::Down,
            cursor: None,
            share_floor: None,
            backlog_bytes: 0,
            sent: Seq(0),
            barrier_sent: Seq(0),
            exclusion: None,
            standalone: false,
            paused: (false, false),
            role: None,
            disk: None,
            seen: None,
            heard: Moment(0),
            pinged: Moment(0),
            progress: Moment(0),
            since: Moment(0),
            why: "no link yet".into(),
            discard: false,
        }
    }

    /// The current link.
    pub(crate) fn connection(&self) -> Option<ConnectionId> {
        match self.link {
            Link::Down => None,
            Link::Greeting { connection, .. } | Link::Judging { connection, .. } | Link::Up { connection, .. } => {
                Some(connection)
            }
        }
    }

    /// What an established link is used for.
    pub(crate) fn sync(&self) -> Option<&Sync> {
        match &self.link {
            Link::Up { sync, .. } => Some(sync),
            Link::Down | Link::Greeting { .. } | Link::Judging { .. } => None,
        }
    }

    /// The same, to change it.
    pub(crate) fn sync_mut(&mut self) -> Option<&mut Sync> {
        match &mut self.link {
            Link::Up { sync, .. } => Some(sync),
            Link::Down | Link::Greeting { .. } | Link::Judging { .. } => None,
        }
    }

    /// True when the peer has every block, whether or not it knows that it counts: it can be read from, and gone on with.
    pub(crate) fn holds_everything(&self) -> bool {
        matches!(self.sync(), Some(Sync::Even | Sync::SourceConfirming))
    }

    /// True when both copies are known equal and the peer knows it too.
    pub(crate) fn is_even(&self) -> bool {
        matches!(self.sync(), Some(Sync::Even))
    }

    /// True when the copies are equal, or about to be called so: nobody looks for dirty blocks.
    pub(crate) fn is_copied(&self) -> bool {
        let sync = self.sync();
        matches!(sync, Some(Sync::Even | Sync::SourceClosing | Sync::SourceConfirming | Sync::TargetClosing))
    }

    /// True while the peer is a target of this node.
    pub(crate) fn is_target(&self) -> bool {
        matches!(
            self.sync(),
            Some(
                Sync::SourceCollecting
                    | Sync::SourceStarting
                    | Sync::SourceRunning(_)
                    | Sync::SourceClosing
                    | Sync::SourceConfirming
            )
        )
    }

    /// True while this node is a target of the peer.
    pub(crate) fn is_source(&self) -> bool {
        matches!(
            self.sync(),
            Some(Sync::TargetOffering | Sync::TargetPreparing(_) | Sync::TargetRunning(_) | Sync::TargetClosing)
        )
    }

    /// True while writes or barriers are on their way of which the peer has not said that they are done.
    pub(crate) fn owes(&self) -> bool {
        self.cursor.is_some_and(|cursor| cursor.written < self.sent || cursor.stable < self.barrier_sent)
    }

    /// A heartbeat not older than `age`, and when it came. One of a primary at an earlier term than `known` tells nothing any more.
    pub(crate) fn seen_within(&self, now: Moment, age: Duration, known: Term) -> Option<(Moment, PeerView)> {
        self.seen.filter(|&(at, view)| now.since(at) <= age && (view.role == Role::Secondary || view.term >= known))
    }

    /// State of the link for `status`.
    pub(crate) fn connection_word(&self) -> &'static str {
        match self.link {
            Link::Down if self.standalone => "standalone",
            Link::Down => "connecting",
            Link::Greeting { .. } | Link::Judging { .. } => "negotiating",
            Link::Up { .. } => "connected",
        }
    }

    /// State of the replication for `status`.
    pub(crate) fn replication_word(&self) -> &'static str {
        match self.sync() {
            None | Some(Sync::Wait) => "off",
            Some(Sync::Even | Sync::SourceConfirming) => "established",
            Some(_) if self.paused.0 || self.paused.1 => "paused",
            Some(Sync::SourceCollecting | Sync::SourceStarting | Sync::SourceRunning(_) | Sync::SourceClosing) => {
                "source"
            }
            Some(Sync::TargetOffering | Sync::TargetPreparing(_) | Sync::TargetRunning(_) | Sync::TargetClosing) => {
                "target"
            }
        }
    }
}
