//! Every word the volume machine hears or says.
//!
//! A shell turns system calls into [`Input`]s and [`Effect`]s into system calls. The rules between the two:
//!
//! - One input at a time; all its effects may run at once and in any order, but `Send`s to one peer keep their order.
//! - Each [`Input::HostHere`] is followed by exactly one [`Input::HostGone`].
//! - Each `op` of an effect is answered by exactly one [`Input::DiskDone`] or [`Input::MetaDone`].
//! - Each [`Input::Host`] is answered by exactly one [`Effect::Reply`], unless [`Input::HostGone`] came for its session.
//! - A buffer given to the machine is given back by exactly one [`Effect::Release`] or [`Effect::Reply`]. A `Send` or
//!   `DiskWrite` only borrows it: the shell counts its own references and frees the bytes when the last one is gone.
//! - [`Input::TurnEnd`] ends each turn of the shell's loop, in which anything else was said: what can be said once for many
//!   (acknowledgements, group flushes) is said then, and what follows from many at once is worked out.

use std::time::Duration;

use crate::condition::{DiskState, Mode, Role};
use crate::meta::{MetaPage, Page};
use crate::units::{BufId, ByteRange, ConnectionId, DiskInstance, GenerationId, OpId, PeerNo, SessionId, Term, Ticket};
use crate::volume::rule::Rule;
use crate::wire::Message;

/// A slice of a pool buffer: `len` bytes from `offset` on.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct BufSlice {
    /// The buffer.
    pub buf: BufId,
    /// First byte.
    pub offset: u32,
    /// Length in bytes.
    pub len: u32,
}

/// What an NBD client wants, validated against the export.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum HostOp {
    /// Read the range.
    Read,
    /// Write the buffer to the range.
    Write {
        /// The payload, exactly as long as the range.
        buf: BufId,
    },
    /// Make every answered write stable. The range is empty.
    Flush,
    /// The range is not needed any more; it reads as zeros afterwards, on both copies alike.
    Trim,
    /// The range becomes zero; `unmap` allows to free it.
    Zero {
        /// May deallocate.
        unmap: bool,
    },
}

/// What the shell tells the machine.
#[derive(Debug)]
pub enum Input {
    /// A client's request. `tag` is the shell's name for it and unique within the session.
    Host {
        /// The client's connection.
        session: SessionId,
        /// Comes back in the reply.
        tag: u64,
        /// What is wanted.
        op: HostOp,
        /// Where; inside the volume.
        range: ByteRange,
        /// The write, trim or zero must be stable when it is answered.
        fua: bool,
    },
    /// A client finished its negotiation. Comes before its first request.
    HostHere {
        /// The connection.
        session: SessionId,
    },
    /// A client's connection ended. What of its requests has not started is dropped; what has, finishes unanswered.
    HostGone {
        /// The connection.
        session: SessionId,
    },
    /// A link to a peer was agreed by both hellos.
    LinkUp {
        /// The peer's slot.
        peer: PeerNo,
        /// Identity of the link.
        connection: ConnectionId,
        /// Identity of the peer's copy, from its hello.
        instance: DiskInstance,
    },
    /// A message came in.
    Peer {
        /// From whom.
        peer: PeerNo,
        /// On which link; one that is not the current link is ignored.
        connection: ConnectionId,
        /// The term in its frame.
        term: Term,
        /// The message; never a [`Message::BitmapPage`].
        message: Message,
        /// Its payload, if it carries one.
        buf: Option<BufId>,
    },
    /// A [`Message::BitmapPage`] came in: it is no payload for the disk, so the machine takes its bytes.
    PeerPage {
        /// From whom.
        peer: PeerNo,
        /// On which link.
        connection: ConnectionId,
        /// Index of the page.
        index: u64,
        /// The page.
        page: Box<Page>,
    },
    /// A link ended, or never really began.
    LinkDown {
        /// To whom.
        peer: PeerNo,
        /// Which link.
        connection: ConnectionId,
        /// Why, for the log.
        why: String,
    },
    /// A disk operation ended. A read that succeeded brings its buffer, a sparse read that found only zeros none.
    DiskDone {
        /// Which.
        op: OpId,
        /// How.
        result: Result<Option<BufId>, DiskError>,
    },
    /// A metadata commit ended: all its pages are stable, or it failed.
    MetaDone {
        /// Which.
        op: OpId,
        /// How.
        result: Result<(), DiskError>,
    },
    /// An operator or the daemon wants something; answered by [`Effect::Answer`].
    Command {
        /// Comes back in the answer.
        ticket: Ticket,
        /// What.
        command: Command,
    },
    /// A heartbeat of the peer on the second channel.
    PeerSeen {
        /// Which peer.
        peer: PeerNo,
        /// What it says of itself.
        view: PeerView,
    },
    /// The turn of the loop ends.
    TurnEnd,
    /// The deadline that the machine asked for has come.
    Wake,
}

/// What a heartbeat says of its sender.
#[derive(Clone, Copy, PartialEq, Eq, Debug, serde::Serialize, serde::Deserialize)]
pub struct PeerView {
    /// Its copy.
    pub instance: DiskInstance,
    /// Its role.
    pub role: Role,
    /// Its disk.
    pub disk: DiskState,
    /// Its term.
    pub term: Term,
    /// Its current generation.
    pub generation: GenerationId,
    /// The generation since which it goes on without the receiver; none while it counts the receiver in sync.
    pub base_for_you: GenerationId,
}

/// A failed disk operation. The disk is not used any more.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
#[error("{}", std::io::Error::from_raw_os_error(self.errno))]
pub struct DiskError {
    /// The operating system's error number.
    pub errno: i32,
}

/// What operators and the daemon can ask.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Command {
    /// Become primary.
    Promote {
        /// Also when data may be lost: an Outdated, Inconsistent or Diverged copy, or a fresh one.
        force: bool,
        /// The operator vouches that the peer, which cannot be seen, is off.
        peer_is_down: bool,
    },
    /// Become secondary, everything flushed on both copies.
    Demote {
        /// Also while clients are connected: they are disconnected without an error.
        disconnect_clients: bool,
    },
    /// Hand the role to the peer without loss.
    Switchover,
    /// Copy again what may differ; `full`: everything.
    Resync {
        /// Everything.
        full: bool,
        /// After a split brain, on the copy to be given up: overwrite its diverged blocks with the peer's.
        discard: Option<Discard>,
    },
    /// Suspend resync.
    Pause,
    /// Go on with resync.
    Resume,
    /// Close the links and take none until `Connect`.
    Disconnect,
    /// Take links again.
    Connect,
    /// Settle the daemon's end: finish, flush, record that everything is in order, say goodbye.
    Shutdown,
    /// The exclusion of this number is allowed: mint the generation, make it durable, go on alone. Said by the daemon in answer to
    /// [`Report::ExclusionWanted`]; another number than the present one is ignored.
    Exclude {
        /// The number.
        number: u64,
    },
    /// Make the term durable, and take nothing of an older one. A primary refuses.
    Promise {
        /// The term; newer than any this node knows.
        term: Term,
        /// Drop the links and take none until released or promoted. Otherwise a link to a secondary stays.
        part: bool,
    },
    /// The promise is not needed any more: links are taken again. The term stays.
    Release,
    /// Become primary at the promised term. Refused when another, or none, was promised.
    TakeOver {
        /// The term.
        term: Term,
        /// Also with a copy that is not UpToDate.
        force: bool,
    },
    /// Stop at once: answer nothing any more, disconnect the clients without a reply, become secondary, and durably Outdated.
    StandDown,
    /// Finish, flush on both copies and become secondary: the first half of a handover, of which `TakeOver` on the peer is the second.
    Drain,
    /// Make durable that this copy is Outdated: the primary goes on without it.
    Outdate,
}

/// What became of the blocks that only this copy holds, before it is given up.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Discard {
    /// They were saved, as [`Volume::dirty_runs`](super::Volume::dirty_runs) named them.
    Saved {
        /// The generation at which they were.
        generation: GenerationId,
        /// How many there were.
        blocks: u64,
    },
    /// The operator does not want them.
    Unsaved,
}

/// Blocks that this copy holds and a peer may lack.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct DirtyRuns {
    /// This copy's role.
    pub role: Role,
    /// This copy's generation.
    pub generation: GenerationId,
    /// How many such blocks there are towards all peers.
    pub blocks: u64,
    /// The first runs from where it was asked on.
    pub runs: Vec<ByteRange>,
}

/// What the machine wants done.
#[derive(Debug)]
pub enum Effect {
    /// Read the range into a buffer of the shell's choice.
    DiskRead {
        /// Answered by `DiskDone`.
        op: OpId,
        /// Bytes to read.
        range: ByteRange,
    },
    /// As `DiskRead`, but a range that reads as zeros throughout brings no buffer.
    DiskReadSparse {
        /// Answered by `DiskDone`.
        op: OpId,
        /// Bytes to read.
        range: ByteRange,
    },
    /// Write the slice to the range.
    DiskWrite {
        /// Answered by `DiskDone`.
        op: OpId,
        /// Bytes to write.
        range: ByteRange,
        /// The data.
        data: BufSlice,
    },
    /// Make the range read as zeros.
    DiskZero {
        /// Answered by `DiskDone`.
        op: OpId,
        /// Bytes to zero.
        range: ByteRange,
        /// May deallocate.
        unmap: bool,
    },
    /// Make everything written and completed so far stable.
    DiskFlush {
        /// Answered by `DiskDone`.
        op: OpId,
    },
    /// Write the pages and then make them stable. No other commit is outstanding for the same pages.
    MetaCommit {
        /// Answered by `MetaDone`.
        op: OpId,
        /// Pages, in no order.
        pages: Vec<MetaPage>,
    },
    /// Send on the current link. FIFO per link.
    Send {
        /// To whom.
        peer: PeerNo,
        /// On which link; dropped when that link is gone.
        connection: ConnectionId,
        /// The term for the frame.
        term: Term,
        /// The message.
        message: Message,
        /// Its payload.
        body: Option<SendBody>,
    },
    /// Close a link after what was sent on it before.
    CloseLink {
        /// To whom.
        peer: PeerNo,
        /// Which link.
        connection: ConnectionId,
        /// Why, for the log.
        why: String,
    },
    /// Answer a client's request.
    Reply {
        /// The client's connection.
        session: SessionId,
        /// The request.
        tag: u64,
        /// How it went.
        result: Result<(), HostError>,
        /// The data of a read.
        buf: Option<BufId>,
        /// The rest of it, in order, when it was read from a peer piece by piece.
        more: Vec<BufId>,
    },
    /// The machine does not need the buffer any more.
    Release(BufId),
    /// Answer a command.
    Answer {
        /// The command.
        ticket: Ticket,
        /// How it went.
        result: Result<(), Refusal>,
    },
    /// Something happened that the daemon or the log should know.
    Report(Report),
}

/// Payload of a `Send`.
#[derive(Debug)]
pub enum SendBody {
    /// From the pool.
    Slice(BufSlice),
    /// A bitmap page.
    Page(Box<Page>),
}

/// Why a client's request failed.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum HostError {
    /// No copy could serve it.
    Io,
    /// The node is not primary; the shell closes the connection instead of saying so.
    NotPrimary,
}

/// A command was refused.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error, serde::Serialize, serde::Deserialize)]
#[error("{rule}: {what}. {way_out}")]
pub struct Refusal {
    /// The rule that forbids it.
    pub rule: Rule,
    /// What is the case.
    pub what: String,
    /// What can be done.
    pub way_out: String,
}

/// What happened.
#[derive(Clone, PartialEq, Debug)]
pub enum Report {
    /// A state changed; one line in the log.
    Changed {
        /// Which state: `role`, `disk`, `peer NAME`, `replication NAME`, `generation`, `frozen`.
        what: String,
        /// Before.
        old: String,
        /// After.
        new: String,
        /// Because.
        why: String,
    },
    /// The peer is gone and could be promoted with what it has: ask the arbiter, then say [`Command::Exclude`]. When the own disk has
    /// failed, it is this node's copy that shall not be promoted any more, and the peer's that goes on. Said again while it waits.
    ExclusionWanted {
        /// The peer.
        peer: PeerNo,
        /// Counted up while the volume lives.
        number: u64,
    },
    /// The peer was in sync again before its exclusion was allowed: there is nothing to decide.
    ExclusionWithdrawn {
        /// The peer.
        peer: PeerNo,
        /// The number.
        number: u64,
    },
    /// Both copies hold acknowledged writes that the other lacks. Nothing is overwritten.
    SplitBrain {
        /// The peer.
        peer: PeerNo,
        /// What each side has.
        detail: String,
    },
    /// Clients must be disconnected without an answer: the node is not primary any more.
    DisconnectClients,
    /// Something an operator should read.
    Note {
        /// The sentence.
        text: String,
        /// It is a problem.
        warning: bool,
    },
    /// A resync began, went on or ended; for progress in the log.
    Resync(ResyncView),
}

/// Progress of a resync.
#[derive(Clone, PartialEq, Debug)]
pub struct ResyncView {
    /// The peer.
    pub peer: PeerNo,
    /// This node sends.
    pub source: bool,
    /// Bytes copied.
    pub done: u64,
    /// Bytes to copy in all, as known when it began.
    pub total: u64,
    /// Since it began.
    pub elapsed: Duration,
    /// It is over.
    pub finished: bool,
    /// It is paused.
    pub paused: bool,
}

/// What failover needs to know of a volume. Everything in it is durable.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct Standing {
    /// Its role. Secondary: nobody is answered any more.
    pub role: Role,
    /// Its disk.
    pub disk: DiskState,
    /// The disk has answered nothing for as long as a silent peer would be dropped, although something is due.
    pub disk_stalled: bool,
    /// Its term.
    pub term: Term,
    /// It has promised this term, in this life.
    pub promised: Option<Term>,
    /// Nothing of an old stream or an old role is left to be applied, and no change of role is under way.
    pub idle: bool,
    /// A link is established.
    pub link: bool,
    /// The first peer's copy, once it has been met.
    pub peer: Option<DiskInstance>,
    /// The first peer's copy and this one are equal and linked; on a primary, every new write waits for the peer as the mode says.
    pub peer_in_sync: bool,
    /// Primary: the number of the exclusion that it waits for. Writes wait too.
    pub exclusion: Option<u64>,
}

/// A peer as `status` shows it.
#[derive(Clone, PartialEq, Debug)]
pub struct PeerSnapshot {
    /// Its name.
    pub name: String,
    /// `connected`, `connecting`, `negotiating`, `standalone`.
    pub connection: &'static str,
    /// For how long.
    pub since: Duration,
    /// `established`, `source`, `target`, `paused`, `off`.
    pub replication: &'static str,
    /// Its disk, as last heard.
    pub disk: Option<DiskState>,
    /// Its role, as last heard.
    pub role: Option<Role>,
    /// Blocks that may differ from ours, in bytes.
    pub out_of_sync_bytes: u64,
    /// The generation it was left behind at; none when in sync.
    pub base: GenerationId,
    /// Why it is not connected or not replicating, if it is not.
    pub why: String,
}

/// The volume as `status` shows it.
#[derive(Clone, PartialEq, Debug)]
pub struct Snapshot {
    /// Role.
    pub role: Role,
    /// Own disk.
    pub disk: DiskState,
    /// Mode.
    pub mode: Mode,
    /// Current generation.
    pub generation: GenerationId,
    /// Former generations, youngest first.
    pub history: [GenerationId; crate::generation::HISTORY_LEN],
    /// Term.
    pub term: Term,
    /// Every write acknowledged from this term on is on this copy; of earlier ones that no flush covered some may be missing.
    pub whole_since: Term,
    /// Peers, by slot.
    pub peers: Vec<PeerSnapshot>,
    /// Running resync.
    pub resync: Option<ResyncView>,
    /// Requests wait, and why; with the time since when.
    pub frozen: Option<(String, Duration)>,
    /// Why it could not be promoted now; none when it could.
    pub not_promotable: Option<Refusal>,
    /// Requests in the machine.
    pub requests: usize,
    /// Writes not yet stable on every copy.
    pub unstable_writes: usize,
    /// Writes mirrored, in bytes, since start.
    pub mirrored_bytes: u64,
    /// Resync data sent or received since start, in bytes.
    pub resynced_bytes: u64,
}
