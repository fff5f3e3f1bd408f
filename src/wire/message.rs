//! The messages of an established link.
//!
//! Each message has a fixed kind number, for ever. Numbers travel in the frame header's flags and arguments; only data,
//! bitmap pages and the greeting have a body. Adding a message: a kind here, its golden vector in `tests/format`, its arm
//! in `volume`, its row in `docs/protocol.md`.

use crate::condition::{Continuity, DiskState, Mode, Role};
use crate::generation::Lineage;
use crate::units::{ByteRange, DiskInstance, GenerationId, Seq, Term};
use crate::wire::frame::{BODY_LEN_MAX, FrameError};
use crate::wire::hello;

/// Bytes of bitmap in one [`Message::BitmapPage`]: 32,768 blocks, 128 MiB of device.
pub const BITMAP_PAGE_LEN: usize = 4096;

/// What a node says of its copy when a link starts; both compare the two greetings and must come to mirrored verdicts.
#[derive(Clone, Copy, PartialEq, Eq, Debug, serde::Serialize, serde::Deserialize)]
pub struct Greeting {
    /// Identity of this copy.
    pub instance: DiskInstance,
    /// Descent of this copy's data.
    pub lineage: Lineage,
    /// The generation since which the sender counts the receiver as behind; none when it counts it in sync.
    pub base_for_you: GenerationId,
    /// Blocks that the sender knows may differ.
    pub dirty_blocks: u64,
    /// The sender wants every block copied, whatever the lineages say.
    pub full: bool,
    /// Worth of the sender's copy.
    pub disk: DiskState,
    /// Role of the sender.
    pub role: Role,
    /// Highest term the sender has promised.
    pub term: Term,
    /// How the sender acknowledges writes as primary.
    pub mode: Mode,
    /// The sender was the last primary, as far as it knows.
    pub was_primary: bool,
    /// The sender's operator gives up its copy after a split brain.
    pub discard: bool,
    /// What may have been lost when the sender last stopped.
    pub continuity: Continuity,
}

/// A verdict on a link, sent for cross-checking: both nodes compute it, and a pair that disagrees closes the link.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Verdict {
    /// Number of the rule.
    pub rule: u16,
    /// Number of the sender's part in it.
    pub part: u16,
}

/// One message.
#[derive(Clone, PartialEq, Eq, Debug)]
#[non_exhaustive]
pub enum Message {
    /// First message each way.
    Greeting(Box<Greeting>),
    /// What the sender concluded from both greetings.
    Verdict(Verdict),
    /// A write; its payload is the body. `resync` marks a block sent because it was dirty.
    Write {
        /// Place in the primary's stream.
        seq: Seq,
        /// Bytes written; as long as the body.
        range: ByteRange,
        /// Sent by resync, not by the host.
        resync: bool,
    },
    /// Bytes become zero. `unmap` allows to free them.
    Zero {
        /// Place in the primary's stream.
        seq: Seq,
        /// Bytes zeroed.
        range: ByteRange,
        /// May deallocate.
        unmap: bool,
        /// Sent by resync, not by the host.
        resync: bool,
    },
    /// Bytes are not needed any more; they read as zeros afterwards, on both copies alike.
    Trim {
        /// Place in the primary's stream.
        seq: Seq,
        /// Bytes trimmed.
        range: ByteRange,
    },
    /// The sender mirrors its writes from here on; the first has a greater number than `after`.
    StreamStart {
        /// Last number not part of the stream.
        after: Seq,
    },
    /// Make everything up to `seq` stable. With `ordered`, apply nothing later before it is.
    Barrier {
        /// Last write covered.
        seq: Seq,
        /// Nothing later may be applied first.
        ordered: bool,
    },
    /// How far the receiver of a stream has come. Cumulative; each only grows.
    Ack {
        /// Everything to here is in the receiver's memory.
        received: Seq,
        /// Everything to here is written.
        written: Seq,
        /// Everything to here is stable.
        stable: Seq,
    },
    /// The sender's disk failed; it is out from here on.
    DiskFailed {
        /// Operating system's error number.
        errno: u32,
    },
    /// 4096 bytes of the sender's dirty bitmap; the body. Pages without a set bit are not sent.
    BitmapPage {
        /// Index of the page.
        index: u64,
    },
    /// All pages were sent.
    BitmapEnd {
        /// Dirty blocks in them.
        dirty_blocks: u64,
    },
    /// The source starts to send dirty blocks; the target becomes Inconsistent at the source's generation, durably.
    ResyncBegin {
        /// The source's generation.
        generation: GenerationId,
        /// Blocks to come.
        dirty_blocks: u64,
    },
    /// The target has made that durable.
    ResyncReady,
    /// Every block is stable on the target and every write is mirrored: become UpToDate at `generation`.
    ResyncFinish {
        /// The source's generation.
        generation: GenerationId,
    },
    /// The target has made that durable.
    ResyncFinished,
    /// The sender, primary, goes on without a disk of its own at a new generation.
    Detached {
        /// The new generation.
        generation: GenerationId,
    },
    /// The receiver of `Detached` has made that durable.
    DetachedDone {
        /// The generation it was told.
        generation: GenerationId,
    },
    /// Read for a primary without a disk.
    Read {
        /// Number of the question.
        id: u64,
        /// Bytes wanted, at most one segment.
        range: ByteRange,
    },
    /// The answer to `Read`; the data is the body, empty on error.
    ReadDone {
        /// Number of the question.
        id: u64,
        /// Length of the body; 0 on error.
        len: u32,
        /// 0, or the operating system's error number.
        errno: u32,
    },
    /// Consent to become primary at `term` is asked.
    Claim {
        /// The term wanted.
        term: Term,
    },
    /// The sender has promised `term` durably and is secondary.
    Grant {
        /// The term granted.
        term: Term,
    },
    /// The sender does not consent.
    Deny {
        /// The term that was asked for.
        term: Term,
        /// Number of the rule, see `volume::Rule`.
        rule: u16,
    },
    /// The sender was primary, is secondary durably, and asks the receiver to take over at `term`.
    Offer {
        /// The term to take.
        term: Term,
    },
    /// The sender's role or disk state is now this.
    State {
        /// Role.
        role: Role,
        /// Disk state.
        disk: DiskState,
    },
    /// Resync is paused or resumed by the sender's operator.
    Pause {
        /// Paused.
        on: bool,
    },
    /// Answer this.
    Ping,
    /// The answer to `Ping`.
    Pong,
    /// The sender leaves in order; all it received is stable.
    Goodbye,
}

/// The part of a message that stands in the frame header.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Parts {
    /// Kind number.
    pub kind: u16,
    /// Flags.
    pub flags: u16,
    /// Arguments.
    pub args: [u64; 3],
}

const GREETING: u16 = 1;
const VERDICT: u16 = 2;
const WRITE: u16 = 3;
const ZERO: u16 = 4;
const TRIM: u16 = 5;
const BARRIER: u16 = 6;
const ACK: u16 = 7;
const DISK_FAILED: u16 = 8;
const BITMAP_PAGE: u16 = 9;
const BITMAP_END: u16 = 10;
const RESYNC_BEGIN: u16 = 11;
const RESYNC_READY: u16 = 12;
const RESYNC_FINISH: u16 = 13;
const RESYNC_FINISHED: u16 = 14;
const DETACHED: u16 = 15;
const DETACHED_DONE: u16 = 16;
const READ: u16 = 17;
const READ_DONE: u16 = 18;
const CLAIM: u16 = 19;
const GRANT: u16 = 20;
const DENY: u16 = 21;
const OFFER: u16 = 22;
const STATE: u16 = 23;
const PAUSE: u16 = 24;
const PING: u16 = 25;
const PONG: u16 = 26;
const GOODBYE: u16 = 27;
const STREAM_START: u16 = 28;

const FLAG_RESYNC: u16 = 1;
const FLAG_UNMAP: u16 = 2;
const FLAG_ORDERED: u16 = 1;
const FLAG_ON: u16 = 1;

/// Longest trim or zero in one message, in bytes.
pub const HOLE_LEN_MAX: u64 = 1 << 30;

impl Message {
    /// Largest body that a message of `kind` may have; `None` for an unknown kind.
    #[must_use]
    pub fn body_len_max(kind: u16) -> Option<usize> {
        match kind {
            WRITE | READ_DONE => Some(BODY_LEN_MAX),
            BITMAP_PAGE => Some(BITMAP_PAGE_LEN),
            GREETING => Some(hello::BODY_LEN_MAX),
            VERDICT | ZERO..=DISK_FAILED | BITMAP_END..=READ | CLAIM..=STREAM_START => Some(0),
            _ => None,
        }
    }

    /// True for the messages whose body is data from the buffer pool.
    #[must_use]
    pub fn carries_payload(&self) -> bool {
        matches!(self, Self::Write { .. } | Self::ReadDone { .. } | Self::BitmapPage { .. })
    }

    /// The body of a message that makes its own; `None` for the others.
    pub(crate) fn own_body(&self) -> Option<Vec<u8>> {
        match self {
            Self::Greeting(greeting) => Some(hello::encode_body(greeting.as_ref())),
            _ => None,
        }
    }

    /// What stands in the frame header.
    #[must_use]
    pub fn parts(&self) -> Parts {
        let of = |kind, flags, args| Parts { kind, flags, args };
        let if_set = |on: bool, flag: u16| if on { flag } else { 0 };
        match *self {
            Self::Greeting(_) => of(GREETING, 0, [0; 3]),
            Self::Verdict(v) => of(VERDICT, 0, [v.rule.into(), v.part.into(), 0]),
            Self::Write { seq, range, resync } => {
                of(WRITE, if_set(resync, FLAG_RESYNC), [seq.0, range.start(), range.len()])
            }
            Self::Zero { seq, range, unmap, resync } => {
                let flags = if_set(resync, FLAG_RESYNC) | if_set(unmap, FLAG_UNMAP);
                of(ZERO, flags, [seq.0, range.start(), range.len()])
            }
            Self::Trim { seq, range } => of(TRIM, 0, [seq.0, range.start(), range.len()]),
            Self::Barrier { seq, ordered } => of(BARRIER, if_set(ordered, FLAG_ORDERED), [seq.0, 0, 0]),
            Self::Ack { received, written, stable } => of(ACK, 0, [received.0, written.0, stable.0]),
            Self::DiskFailed { errno } => of(DISK_FAILED, 0, [errno.into(), 0, 0]),
            Self::BitmapPage { index } => of(BITMAP_PAGE, 0, [index, 0, 0]),
            Self::BitmapEnd { dirty_blocks } => of(BITMAP_END, 0, [dirty_blocks, 0, 0]),
            Self::ResyncBegin { generation, dirty_blocks } => of(RESYNC_BEGIN, 0, [generation.0, dirty_blocks, 0]),
            Self::ResyncReady => of(RESYNC_READY, 0, [0; 3]),
            Self::ResyncFinish { generation } => of(RESYNC_FINISH, 0, [generation.0, 0, 0]),
            Self::ResyncFinished => of(RESYNC_FINISHED, 0, [0; 3]),
            Self::Detached { generation } => of(DETACHED, 0, [generation.0, 0, 0]),
            Self::DetachedDone { generation } => of(DETACHED_DONE, 0, [generation.0, 0, 0]),
            Self::Read { id, range } => of(READ, 0, [id, range.start(), range.len()]),
            Self::ReadDone { id, len, errno } => of(READ_DONE, 0, [id, errno.into(), len.into()]),
            Self::Claim { term } => of(CLAIM, 0, [term.0, 0, 0]),
            Self::Grant { term } => of(GRANT, 0, [term.0, 0, 0]),
            Self::Deny { term, rule } => of(DENY, 0, [term.0, rule.into(), 0]),
            Self::Offer { term } => of(OFFER, 0, [term.0, 0, 0]),
            Self::State { role, disk } => of(STATE, 0, [role_number(role), disk_number(disk), 0]),
            Self::Pause { on } => of(PAUSE, if_set(on, FLAG_ON), [0; 3]),
            Self::Ping => of(PING, 0, [0; 3]),
            Self::Pong => of(PONG, 0, [0; 3]),
            Self::Goodbye => of(GOODBYE, 0, [0; 3]),
            Self::StreamStart { after } => of(STREAM_START, 0, [after.0, 0, 0]),
        }
    }

    /// The message of a frame whose checksums are right.
    ///
    /// # Errors
    /// [`FrameError::Malformed`] when fields make no sense together. Whether a range lies on the device is for the
    /// machine to judge: it alone knows the size.
    pub(crate) fn decode(kind: u16, flags: u16, args: [u64; 3], body: &[u8]) -> Result<Self, FrameError> {
        let message = Self::decode_fields(kind, flags, args, body)?;
        // One message has one form: what it does not use must be zero, so that a later version can use it.
        if message.parts() != (Parts { kind, flags, args }) {
            return Err(FrameError::Malformed {
                kind,
                why: "a field does not fit the others, or is not zero though unused",
            });
        }
        Ok(message)
    }

    fn decode_fields(kind: u16, flags: u16, args: [u64; 3], body: &[u8]) -> Result<Self, FrameError> {
        let bad = |why| FrameError::Malformed { kind, why };
        let range = |len_max: u64| {
            let range = ByteRange::checked(args[1], args[2]).ok_or(bad("the range overflows"))?;
            if range.is_empty() || range.len() > len_max {
                return Err(bad("the range is empty or too long"));
            }
            Ok(range)
        };
        let segment = BODY_LEN_MAX as u64;
        let allowed_flags = match kind {
            WRITE | BARRIER | PAUSE => 1,
            ZERO => FLAG_RESYNC | FLAG_UNMAP,
            _ => 0,
        };
        if flags & !allowed_flags != 0 {
            return Err(bad("unknown flag"));
        }
        let small = |value: u64| u16::try_from(value).map_err(|_| bad("an argument is too large"));
        let errno = |value: u64| u32::try_from(value).map_err(|_| bad("an argument is too large"));
        Ok(match kind {
            GREETING => Self::Greeting(Box::new(hello::decode_body(body).map_err(|_| bad("unreadable greeting"))?)),
            VERDICT => Self::Verdict(Verdict { rule: small(args[0])?, part: small(args[1])? }),
            WRITE => {
                let range = range(segment)?;
                if range.len() != body.len() as u64 {
                    return Err(bad("the range is not as long as the data"));
                }
                Self::Write { seq: Seq(args[0]), range, resync: flags & FLAG_RESYNC != 0 }
            }
            ZERO => Self::Zero {
                seq: Seq(args[0]),
                range: range(HOLE_LEN_MAX)?,
                unmap: flags & FLAG_UNMAP != 0,
                resync: flags & FLAG_RESYNC != 0,
            },
            TRIM => Self::Trim { seq: Seq(args[0]), range: range(HOLE_LEN_MAX)? },
            BARRIER => Self::Barrier { seq: Seq(args[0]), ordered: flags & FLAG_ORDERED != 0 },
            ACK => {
                let [received, written, stable] = args;
                if stable > written || written > received {
                    return Err(bad("stable, written and received are not in order"));
                }
                Self::Ack { received: Seq(received), written: Seq(written), stable: Seq(stable) }
            }
            DISK_FAILED => Self::DiskFailed { errno: errno(args[0])? },
            BITMAP_PAGE if body.len() == BITMAP_PAGE_LEN => Self::BitmapPage { index: args[0] },
            BITMAP_PAGE => return Err(bad("a bitmap page is 4096 bytes")),
            BITMAP_END => Self::BitmapEnd { dirty_blocks: args[0] },
            RESYNC_BEGIN => Self::ResyncBegin { generation: GenerationId(args[0]), dirty_blocks: args[1] },
            RESYNC_READY => Self::ResyncReady,
            RESYNC_FINISH => Self::ResyncFinish { generation: GenerationId(args[0]) },
            RESYNC_FINISHED => Self::ResyncFinished,
            DETACHED => Self::Detached { generation: GenerationId(args[0]) },
            DETACHED_DONE => Self::DetachedDone { generation: GenerationId(args[0]) },
            READ => Self::Read { id: args[0], range: range(segment)? },
            READ_DONE => {
                let len = u32::try_from(body.len()).expect("the frame bounds the body");
                Self::ReadDone { id: args[0], len, errno: errno(args[1])? }
            }
            CLAIM => Self::Claim { term: Term(args[0]) },
            GRANT => Self::Grant { term: Term(args[0]) },
            DENY => Self::Deny { term: Term(args[0]), rule: small(args[1])? },
            OFFER => Self::Offer { term: Term(args[0]) },
            STATE => Self::State {
                role: role_of(args[0]).ok_or(bad("unknown role"))?,
                disk: disk_of(args[1]).ok_or(bad("unknown disk state"))?,
            },
            PAUSE => Self::Pause { on: flags & FLAG_ON != 0 },
            PING => Self::Ping,
            PONG => Self::Pong,
            GOODBYE => Self::Goodbye,
            STREAM_START => Self::StreamStart { after: Seq(args[0]) },
            _ => return Err(bad("unknown kind")),
        })
    }
}

fn role_number(role: Role) -> u64 {
    match role {
        Role::Secondary => 0,
        Role::Primary => 1,
    }
}

fn role_of(number: u64) -> Option<Role> {
    [Role::Secondary, Role::Primary].into_iter().find(|&r| role_number(r) == number)
}

fn disk_number(disk: DiskState) -> u64 {
    match disk {
        DiskState::Failed => 0,
        DiskState::Inconsistent => 1,
        DiskState::Diverged => 2,
        DiskState::Outdated => 3,
        DiskState::UpToDate => 4,
    }
}

fn disk_of(number: u64) -> Option<DiskState> {
    use DiskState::{Diverged, Failed, Inconsistent, Outdated, UpToDate};
    [Failed, Inconsistent, Diverged, Outdated, UpToDate].into_iter().find(|&d| disk_number(d) == number)
}
