//! Replies of the transmission phase, in the form the session agreed on.
//!
//! Fixed parts are encoded into a [`Head`] on the stack, so that a reply to a read or write allocates nothing: the shell
//! sends the head and, for a read, the payload behind it in one vectored write.
//!
//! Under [`Mode::Structured`] what returns data or an error is a chunk, and success without data a simple reply, as the protocol
//! allows: libnbd takes one receive for it where a chunk costs it two.

use super::constants::{self as c, EXTENDED_REPLY_LEN, STRING_MAX};
use super::error::NbdError;
use super::export::Mode;
use super::option_reply::clip;
use super::status::Extents;
use crate::units::ByteRange;

/// The request a reply belongs to, and the form of the reply.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct ReplyTo {
    /// The session's form.
    pub mode: Mode,
    /// The request's cookie.
    pub cookie: u64,
    /// The request's offset, which extended replies repeat.
    pub offset: u64,
}

/// The encoded start of a reply, or all of it.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct Head {
    bytes: [u8; Self::CAPACITY],
    len: usize,
}

impl Head {
    /// Longest head in bytes: an extended header with the fields of a hole.
    pub const CAPACITY: usize = EXTENDED_REPLY_LEN + 12;

    /// The bytes to send.
    #[must_use]
    pub fn as_slice(&self) -> &[u8] {
        &self.bytes[..self.len]
    }

    fn push(&mut self, field: &[u8]) {
        self.bytes[self.len..self.len + field.len()].copy_from_slice(field);
        self.len += field.len();
    }
}

impl std::fmt::Debug for Head {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Head({:02x?})", self.as_slice())
    }
}

/// Success of a request that is no read and has no data to return.
#[must_use]
pub fn success(to: ReplyTo) -> Head {
    match to.mode {
        Mode::Simple | Mode::Structured => simple(to, 0),
        Mode::Extended => nothing(to),
    }
}

/// Success of a request for no bytes. It may be a read, to which a client of structured replies awaits a chunk.
#[must_use]
pub fn nothing(to: ReplyTo) -> Head {
    match to.mode {
        Mode::Simple => simple(to, 0),
        Mode::Structured | Mode::Extended => chunk(to, c::REPLY_FLAG_DONE, c::REPLY_TYPE_NONE, 0),
    }
}

/// The head of a successful read, to be followed by the `range`'s bytes. Nothing else answers the request.
///
/// The data must be at hand: once the head is sent, no error can be told any more.
///
/// # Panics
/// When the range is empty or longer than any maximum payload.
#[must_use]
pub fn read(to: ReplyTo, range: ByteRange) -> Head {
    match to.mode {
        Mode::Simple => simple(to, 0),
        Mode::Structured | Mode::Extended => data_chunk(to, range, true),
    }
}

/// The head of one of several pieces of a read, to be followed by the `range`'s bytes; `last` ends the reply.
///
/// # Panics
/// When the session has simple replies, which cannot be divided; when the range is empty or longer than any maximum
/// payload.
#[must_use]
pub fn data_chunk(to: ReplyTo, range: ByteRange, last: bool) -> Head {
    assert!(!range.is_empty(), "a content chunk describes at least one byte");
    let length = piece_len(range).checked_add(8).expect("a read is bounded by the maximum payload");
    let mut head = chunk(to, done(last), c::REPLY_TYPE_OFFSET_DATA, length);
    head.push(&range.start().to_be_bytes());
    head
}

/// A piece of a read that is all zeroes and sent as such; `last` ends the reply. Not for a request with the flag `DF`
/// unless it covers the whole range.
///
/// # Panics
/// When the session has simple replies; when the range is empty or longer than any maximum payload.
#[must_use]
pub fn hole_chunk(to: ReplyTo, range: ByteRange, last: bool) -> Head {
    assert!(!range.is_empty(), "a content chunk describes at least one byte");
    let mut head = chunk(to, done(last), c::REPLY_TYPE_OFFSET_HOLE, 12);
    head.push(&range.start().to_be_bytes());
    head.push(&piece_len(range).to_be_bytes());
    head
}

/// Appends the failure of a request. `message` is for the client's user; simple replies cannot carry it, and it is cut
/// at [`STRING_MAX`] bytes.
pub fn error(to: ReplyTo, error: NbdError, message: &str, out: &mut Vec<u8>) {
    if to.mode == Mode::Simple {
        out.extend_from_slice(simple(to, error.code()).as_slice());
        return;
    }
    const _: () = assert!(STRING_MAX <= u16::MAX as usize);
    let message = clip(message).as_bytes();
    let message_len = u16::try_from(message.len()).expect("clipped to 4096 bytes");
    let mut head = chunk(to, c::REPLY_FLAG_DONE, c::REPLY_TYPE_ERROR, u32::from(message_len) + 6);
    head.push(&error.code().to_be_bytes());
    head.push(&message_len.to_be_bytes());
    out.extend_from_slice(head.as_slice());
    out.extend_from_slice(message);
}

/// Appends the answer to a block status request: `extents` in `base:allocation`, from the request's offset on.
///
/// # Panics
/// When the session has simple replies, under which no context can be selected; when there is no extent; when an extent
/// does not fit 32 bits outside of extended headers, which no request of such a session can ask for.
pub fn block_status(to: ReplyTo, extents: &Extents, out: &mut Vec<u8>) {
    const FEW: &str = "an answer has at most EXTENTS_MAX extents";
    let list = extents.as_slice();
    assert!(!list.is_empty(), "a block status needs at least one extent");
    let count = u32::try_from(list.len()).expect(FEW);
    let id = c::BASE_ALLOCATION_ID.to_be_bytes();
    if to.mode == Mode::Extended {
        let length = count.checked_mul(16).and_then(|bytes| bytes.checked_add(8)).expect(FEW);
        let mut head = chunk(to, c::REPLY_FLAG_DONE, c::REPLY_TYPE_BLOCK_STATUS_EXT, length);
        head.push(&id);
        head.push(&count.to_be_bytes());
        out.extend_from_slice(head.as_slice());
        for extent in list {
            out.extend_from_slice(&extent.len.to_be_bytes());
            out.extend_from_slice(&u64::from(extent.state.flags()).to_be_bytes());
        }
    } else {
        let length = count.checked_mul(8).and_then(|bytes| bytes.checked_add(4)).expect(FEW);
        let mut head = chunk(to, c::REPLY_FLAG_DONE, c::REPLY_TYPE_BLOCK_STATUS, length);
        head.push(&id);
        out.extend_from_slice(head.as_slice());
        for extent in list {
            let len = u32::try_from(extent.len).expect("a compact request asks for less than 4 GiB");
            out.extend_from_slice(&len.to_be_bytes());
            out.extend_from_slice(&extent.state.flags().to_be_bytes());
        }
    }
}

fn simple(to: ReplyTo, error: u32) -> Head {
    let mut head = Head { bytes: [0; Head::CAPACITY], len: 0 };
    head.push(&c::SIMPLE_REPLY_MAGIC.to_be_bytes());
    head.push(&error.to_be_bytes());
    head.push(&to.cookie.to_be_bytes());
    head
}

/// A chunk's header: structured or extended, with `length` bytes of payload.
fn chunk(to: ReplyTo, flags: u16, kind: u16, length: u32) -> Head {
    assert!(to.mode != Mode::Simple, "simple replies know no chunks");
    let extended = to.mode == Mode::Extended;
    let magic = if extended { c::EXTENDED_REPLY_MAGIC } else { c::STRUCTURED_REPLY_MAGIC };
    let mut head = Head { bytes: [0; Head::CAPACITY], len: 0 };
    head.push(&magic.to_be_bytes());
    head.push(&flags.to_be_bytes());
    head.push(&kind.to_be_bytes());
    head.push(&to.cookie.to_be_bytes());
    if extended {
        head.push(&to.offset.to_be_bytes());
        head.push(&u64::from(length).to_be_bytes());
    } else {
        head.push(&length.to_be_bytes());
    }
    head
}

fn done(last: bool) -> u16 {
    if last { c::REPLY_FLAG_DONE } else { 0 }
}

fn piece_len(range: ByteRange) -> u32 {
    u32::try_from(range.len()).expect("a read is bounded by the maximum payload")
}
