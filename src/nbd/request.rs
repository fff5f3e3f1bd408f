//! Requests of the transmission phase: the header as bytes, and what a session's terms make of it.
//!
//! The order of checks is the protocol's: the magic number first; then how many bytes of payload follow, which are
//! consumed whatever becomes of the request; then flags, permission, lengths, bounds and alignment. A refusal leaves the
//! connection in step.

use super::constants::{self as c, EXTENDED_REQUEST_LEN, PAYLOAD_DRAIN_MAX, REQUEST_LEN};
use super::error::NbdError;
use super::export::{Mode, Terms};
use super::fields::Fields;
use super::reply::ReplyTo;
use crate::units::ByteRange;

/// A request's header, as sent: nothing in it has been checked but the magic number and the payload's length.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Header {
    /// Command flags.
    pub flags: u16,
    /// The command; perhaps none that is known.
    pub command: u16,
    /// The client's name for the request, returned in every reply to it.
    pub cookie: u64,
    /// First byte, from the start of the export.
    pub offset: u64,
    /// Length in bytes; 32 bits wide outside of [`Mode::Extended`].
    pub length: u64,
}

/// Length in bytes of a request's header under `mode`.
#[must_use]
pub fn header_len(mode: Mode) -> usize {
    match mode {
        Mode::Simple | Mode::Structured => REQUEST_LEN,
        Mode::Extended => EXTENDED_REQUEST_LEN,
    }
}

impl Header {
    /// Bytes that follow the header under `mode` and are to be consumed, also when the request is refused.
    ///
    /// A write always carries its data. The extension has clients say so by the flag `PAYLOAD_LEN`, but QEMU's client
    /// leaves the flag out and sends the data all the same, and its server takes both; so does this one.
    #[must_use]
    pub fn payload_len(&self, mode: Mode) -> u64 {
        let flagged = mode == Mode::Extended && self.flags & c::CMD_FLAG_PAYLOAD_LEN != 0;
        if flagged || self.command == c::CMD_WRITE { self.length } else { 0 }
    }

    /// Where a reply to this request goes.
    #[must_use]
    pub fn reply_to(&self, mode: Mode) -> ReplyTo {
        ReplyTo { mode, cookie: self.cookie, offset: self.offset }
    }
}

/// A header after which the connection can only be closed.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
pub enum Fatal {
    /// The bytes are no request; the client has lost step.
    #[error("the client sent {0:#010x} where a request begins; it has lost step")]
    BadMagic(u32),
    /// The announced payload is not worth draining.
    #[error("the client announced a payload of {length} bytes; at most {limit} are taken")]
    PayloadTooLong {
        /// Announced length in bytes.
        length: u64,
        /// Longest payload that is consumed, in bytes.
        limit: u64,
    },
}

/// Reads the header at the start of `bytes`, which is [`header_len`] bytes long. `None` when it has not arrived whole;
/// a wrong magic number is noticed as soon as it is there.
///
/// # Errors
/// When the connection must be closed. A compact `WRITE` may announce up to [`PAYLOAD_DRAIN_MAX`] to be consumed and
/// refused; under extended headers the announced maximum is final, as the extension asks, but never below the 32 MiB
/// that no server may call an attack.
pub fn parse_header(terms: &Terms, bytes: &[u8]) -> Result<Option<Header>, Fatal> {
    let mut fields = Fields(bytes);
    let Some(magic) = fields.u32() else { return Ok(None) };
    let extended = terms.mode == Mode::Extended;
    if magic != if extended { c::EXTENDED_REQUEST_MAGIC } else { c::REQUEST_MAGIC } {
        return Err(Fatal::BadMagic(magic));
    }
    let Some(header) = header_fields(fields, extended) else { return Ok(None) };
    let limit = if extended { u64::from(terms.max_payload.max(c::MAX_PAYLOAD)) } else { PAYLOAD_DRAIN_MAX };
    let length = header.payload_len(terms.mode);
    if length > limit { Err(Fatal::PayloadTooLong { length, limit }) } else { Ok(Some(header)) }
}

fn header_fields(mut fields: Fields<'_>, extended: bool) -> Option<Header> {
    Some(Header {
        flags: fields.u16()?,
        command: fields.u16()?,
        cookie: fields.u64()?,
        offset: fields.u64()?,
        length: if extended { fields.u64()? } else { u64::from(fields.u32()?) },
    })
}

/// A request that may be executed: its range is not empty and lies inside the export, and is aligned to the minimum
/// block.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Request {
    /// Read; at most the maximum payload.
    Read {
        /// What to read.
        range: ByteRange,
        /// At most one content chunk may answer (the flag `DF`).
        df: bool,
    },
    /// Write the payload, which is exactly as long as the range.
    Write {
        /// Where to write.
        range: ByteRange,
        /// Answer when stable.
        fua: bool,
    },
    /// Make stable what was answered before, on every connection.
    Flush,
    /// The content is no longer needed.
    Trim {
        /// What to discard; may be far longer than any payload.
        range: ByteRange,
        /// Answer when stable.
        fua: bool,
    },
    /// Write zeroes.
    WriteZeroes {
        /// What to zero; may be far longer than any payload.
        range: ByteRange,
        /// Answer when stable.
        fua: bool,
        /// The range must stay allocated.
        no_hole: bool,
        /// Answer [`NbdError::NotSupported`] at once, and change nothing, when a write would be as fast.
        fast: bool,
    },
    /// The range will soon be read.
    Cache {
        /// What to fetch.
        range: ByteRange,
    },
    /// Report the state of the range in the selected contexts.
    BlockStatus {
        /// What is of interest.
        range: ByteRange,
        /// Exactly one extent may answer.
        req_one: bool,
    },
    /// A read, write, trim, zeroing or cache request of no bytes: answer success.
    Nothing,
    /// Finish what is outstanding, then close. There is no reply.
    Disconnect,
}

/// A request that is refused: answer the error once its payload is consumed.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
#[error("{error}: {message}")]
pub struct Reject {
    /// What the client is told.
    pub error: NbdError,
    /// Why, for the client's user.
    pub message: &'static str,
}

/// Decides whether `header` may be executed under `terms`.
///
/// May be called before the payload has arrived; the decision does not depend on it.
///
/// # Errors
/// The refusal the protocol demands (NBD, "Request types" and "Error values").
pub fn validate(terms: &Terms, header: &Header) -> Result<Request, Reject> {
    if header.command == c::CMD_DISC {
        return Ok(Request::Disconnect);
    }
    check_flags(terms, header)?;
    let writes = matches!(header.command, c::CMD_WRITE | c::CMD_TRIM | c::CMD_WRITE_ZEROES);
    if writes && terms.read_only {
        return reject(NbdError::NotPermitted, "the export is read-only");
    }
    if header.command == c::CMD_FLUSH {
        // Offset and length should be 0; what they are changes nothing.
        return Ok(Request::Flush);
    }
    if header.command == c::CMD_WRITE && header.length > u64::from(terms.max_payload) {
        return reject(NbdError::Invalid, "the write is longer than the maximum payload");
    }
    if header.command == c::CMD_BLOCK_STATUS && !terms.contexts.allocation {
        return reject(NbdError::Invalid, "no metadata context was selected for this export");
    }
    let range = check_range(terms, header)?;
    let flag = |flag: u16| header.flags & flag != 0;
    let fua = flag(c::CMD_FLAG_FUA);
    if header.command == c::CMD_BLOCK_STATUS {
        if range.is_empty() {
            // Success would need an extent, and an extent must not be empty.
            return reject(NbdError::Invalid, "the status of no bytes cannot be told");
        }
        return Ok(Request::BlockStatus { range, req_one: flag(c::CMD_FLAG_REQ_ONE) });
    }
    if range.is_empty() {
        return Ok(Request::Nothing);
    }
    match header.command {
        c::CMD_READ if range.len() > u64::from(terms.max_payload) => {
            // Only chunked replies give EOVERFLOW a meaning here.
            let error = if terms.mode == Mode::Simple { NbdError::Invalid } else { NbdError::Overflow };
            reject(error, "the read is longer than the maximum payload; ask for less at a time")
        }
        c::CMD_READ => Ok(Request::Read { range, df: flag(c::CMD_FLAG_DF) }),
        c::CMD_WRITE => Ok(Request::Write { range, fua }),
        c::CMD_TRIM => Ok(Request::Trim { range, fua }),
        c::CMD_WRITE_ZEROES => Ok(Request::WriteZeroes {
            range,
            fua,
            no_hole: flag(c::CMD_FLAG_NO_HOLE),
            fast: flag(c::CMD_FLAG_FAST_ZERO),
        }),
        c::CMD_CACHE => Ok(Request::Cache { range }),
        _ => unreachable!("check_flags refuses unknown commands"),
    }
}

/// Refuses unknown commands, flags that do not belong to the command, and a payload where none belongs.
fn check_flags(terms: &Terms, header: &Header) -> Result<(), Reject> {
    let own = match header.command {
        c::CMD_READ if terms.mode == Mode::Simple => 0,
        c::CMD_READ => c::CMD_FLAG_DF,
        c::CMD_WRITE if terms.mode == Mode::Extended => c::CMD_FLAG_PAYLOAD_LEN,
        c::CMD_WRITE | c::CMD_FLUSH | c::CMD_TRIM | c::CMD_CACHE => 0,
        c::CMD_WRITE_ZEROES if terms.fast_zero => c::CMD_FLAG_NO_HOLE | c::CMD_FLAG_FAST_ZERO,
        c::CMD_WRITE_ZEROES => c::CMD_FLAG_NO_HOLE,
        c::CMD_BLOCK_STATUS => c::CMD_FLAG_REQ_ONE,
        _ => return reject(NbdError::Invalid, "the command is unknown"),
    };
    if header.flags & !(own | c::CMD_FLAG_FUA) != 0 {
        return reject(NbdError::Invalid, "a flag is unknown, not announced, or not for this command");
    }
    Ok(())
}

/// The range, when it lies inside the export and is aligned.
fn check_range(terms: &Terms, header: &Header) -> Result<ByteRange, Reject> {
    let inside = ByteRange::checked(header.offset, header.length).filter(|range| range.end() <= terms.size);
    let Some(range) = inside else {
        let grows = matches!(header.command, c::CMD_WRITE | c::CMD_WRITE_ZEROES);
        let error = if grows { NbdError::NoSpace } else { NbdError::Invalid };
        return reject(error, "the range goes past the end of the export");
    };
    let block = u64::from(terms.min_block);
    if !range.start().is_multiple_of(block) || !range.len().is_multiple_of(block) {
        return reject(NbdError::Invalid, "the range is not aligned to the minimum block size");
    }
    Ok(range)
}

fn reject<T>(error: NbdError, message: &'static str) -> Result<T, Reject> {
    Err(Reject { error, message })
}
