//! The only place where the control plane and the data plane meet: letters in, news out.
//!
//! The daemon owns a [`Mailbox`] for each volume and reads its news from a bounded channel; the volume's thread owns the other ends. Nothing
//! here blocks the volume's thread: letters wake it through an event descriptor, news that find the channel full are kept and
//! tried again at the next turn.

use std::io;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, SyncSender, TrySendError};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;

use super::line::Negotiated;
use super::sys::EventFd;
use crate::units::{ConnectionId, DiskInstance, GenerationId, Moment, PeerNo, SessionId, Ticket};
use crate::volume::io::{Command, DirtyRuns, PeerView, Refusal, Report, Snapshot, Standing};

/// Runs in one answer to [`Letter::AskDirty`].
pub const DIRTY_RUNS_MAX: usize = 1024;
/// Blocks in one of these runs: 1 MiB.
pub const DIRTY_RUN_BLOCKS_MAX: u64 = 256;

/// How a negotiated NBD client wants to be spoken to.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct ClientManners {
    /// Structured replies were negotiated.
    pub structured: bool,
    /// Extended headers were negotiated; implies structured.
    pub extended: bool,
    /// `base:allocation` was selected, with this context number.
    pub allocation_context: Option<u32>,
    /// The client follows the volume: it was told this generation, and must be told of another before anything is
    /// acknowledged under that. Its connection ends instead, and it asks again.
    pub follows: Option<GenerationId>,
}

/// From the daemon to a volume's thread.
#[derive(Debug)]
pub enum Letter {
    /// A client has finished its negotiation and speaks requests from the next byte on.
    AdoptClient {
        /// Its number.
        session: SessionId,
        /// The connection (TCP or Unix).
        line: Negotiated,
        /// What was negotiated.
        manners: ClientManners,
        /// Bytes that were read beyond the negotiation.
        leftover: Vec<u8>,
        /// Where it comes from, for the log.
        from: String,
    },
    /// Both hellos fit: the socket carries frames from the next byte on.
    AdoptLink {
        /// The peer.
        peer: PeerNo,
        /// Identity of the link.
        connection: ConnectionId,
        /// Identity of the peer's copy.
        instance: DiskInstance,
        /// The connection.
        line: Negotiated,
    },
    /// An operator's or the daemon's command; its answer comes as [`News::Answer`].
    Command {
        /// Number of the question.
        ticket: Ticket,
        /// The command.
        command: Command,
    },
    /// A heartbeat.
    PeerSeen {
        /// The peer.
        peer: PeerNo,
        /// What it says.
        view: PeerView,
    },
    /// Say how things are; comes as [`News::State`].
    Ask {
        /// Number of the question.
        ticket: Ticket,
    },
    /// Name the blocks that this copy holds and a peer may lack; comes as [`News::Dirty`].
    AskDirty {
        /// Number of the question.
        ticket: Ticket,
        /// The first block of interest.
        from_block: u64,
    },
    /// End the thread now. Sent after [`Command::Shutdown`] was answered, or to give up on it.
    Stop,
}

/// From a volume's thread to the daemon.
#[derive(Debug)]
pub enum News {
    /// The answer to a command.
    Answer {
        /// The question.
        ticket: Ticket,
        /// How it went.
        result: Result<(), Refusal>,
    },
    /// The answer to `Ask`.
    State {
        /// The question.
        ticket: Ticket,
        /// How things are.
        state: Box<State>,
    },
    /// The answer to `AskDirty`.
    Dirty {
        /// The question.
        ticket: Ticket,
        /// Up to [`DIRTY_RUNS_MAX`] runs.
        dirty: DirtyRuns,
    },
    /// Something to log or act on.
    Report(Report),
    /// What failover needs to know is different from what was told last.
    Standing(Standing),
    /// A link is gone; the daemon may dial again.
    LinkClosed {
        /// The peer.
        peer: PeerNo,
        /// Which link.
        connection: ConnectionId,
        /// Why.
        why: String,
    },
    /// A client is gone.
    ClientGone {
        /// Which.
        session: SessionId,
        /// Why.
        why: String,
    },
    /// The thread ended.
    Stopped {
        /// Why, when it was not asked to.
        error: Option<String>,
    },
}

/// A volume's state with what only its thread knows.
#[derive(Clone, Debug)]
pub struct State {
    /// The machine's view.
    pub volume: Snapshot,
    /// NBD clients connected.
    pub clients: usize,
    /// Counters since start.
    pub counters: Counters,
    /// Time since the thread started.
    pub up: Duration,
}

/// Counters of a volume's thread since its start.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counters {
    /// Reads answered.
    pub reads: u64,
    /// Bytes read by clients.
    pub read_bytes: u64,
    /// Writes answered.
    pub writes: u64,
    /// Bytes written by clients.
    pub write_bytes: u64,
    /// Flushes answered.
    pub flushes: u64,
    /// Trims and zeroes answered.
    pub holes: u64,
    /// Requests answered with an error.
    pub errors: u64,
    /// Frames sent to peers.
    pub frames_sent: u64,
    /// Frames received from peers.
    pub frames_received: u64,
    /// Bytes sent to peers.
    pub link_bytes_sent: u64,
    /// Bytes received from peers.
    pub link_bytes_received: u64,
    /// Metadata commits.
    pub metadata_commits: u64,
    /// Flushes of the local disk.
    pub disk_flushes: u64,
}

/// Why a letter was not taken.
#[derive(Debug, thiserror::Error)]
pub enum PostError {
    /// The volume's thread is behind; the letter is lost, its socket closed.
    #[error("the volume does not keep up with its letters; it may be stuck on its disk")]
    Full,
    /// The volume's thread has ended.
    #[error("the volume is not running")]
    Closed,
}

/// The daemon's end of a volume. Clones write to the same volume.
#[derive(Clone, Debug)]
pub struct Mailbox {
    letters: SyncSender<Letter>,
    wake: Arc<EventFd>,
    lease: Arc<AtomicU64>,
    thread: Arc<Mutex<Option<JoinHandle<()>>>>,
}

impl Mailbox {
    /// Puts a letter in the box and wakes the volume. Never waits.
    ///
    /// # Errors
    /// When the box is full, or nobody reads it any more.
    pub fn post(&self, letter: Letter) -> Result<(), PostError> {
        let result = self.letters.try_send(letter);
        self.wake.signal();
        result.map_err(|e| match e {
            TrySendError::Full(_) => PostError::Full,
            TrySendError::Disconnected(_) => PostError::Closed,
        })
    }

    /// Until when the volume may answer clients, on the clock of [`now`](super::now); it needs no lease until this was said once. What is
    /// ready later is held, and goes out when a later end is told; a volume that stands down drops it. Never waits.
    pub fn set_lease(&self, until: Moment) {
        self.lease.store(until.0, Ordering::Release);
        self.wake.signal();
    }

    /// Waits until the volume's thread has ended, as it does after [`Letter::Stop`] (and after [`News::Stopped`]). Blocks:
    /// not for an async task.
    pub fn join(&self) {
        let thread = self.thread.lock().unwrap_or_else(PoisonError::into_inner).take();
        if let Some(thread) = thread {
            // A panic of the thread was already told.
            let _ = thread.join();
        }
    }

    /// Notes the thread to wait for.
    pub(super) fn attend(&self, thread: JoinHandle<()>) {
        *self.thread.lock().unwrap_or_else(PoisonError::into_inner) = Some(thread);
    }
}

/// The volume's end of its mailbox.
#[derive(Debug)]
pub(super) struct Letters {
    letters: Receiver<Letter>,
    wake: Arc<EventFd>,
    lease: Arc<AtomicU64>,
}

impl Letters {
    /// Becomes readable when a letter came.
    pub(super) fn wake(&self) -> &EventFd {
        &self.wake
    }

    /// Until when clients may be answered.
    pub(super) fn lease(&self) -> Moment {
        Moment(self.lease.load(Ordering::Acquire))
    }

    /// The next letter.
    pub(super) fn next(&mut self) -> Option<Letter> {
        self.letters.try_recv().ok()
    }
}

/// Letters that may wait.
const LETTERS_MAX: usize = 256;

/// Both ends of a new mailbox.
pub(super) fn mailbox() -> io::Result<(Mailbox, Letters)> {
    let (sender, receiver) = std::sync::mpsc::sync_channel(LETTERS_MAX);
    let wake = Arc::new(EventFd::new()?);
    let lease = Arc::new(AtomicU64::new(u64::MAX));
    let mailbox =
        Mailbox { letters: sender, wake: Arc::clone(&wake), lease: Arc::clone(&lease), thread: Arc::default() };
    Ok((mailbox, Letters { letters: receiver, wake, lease }))
}
