//! The frame: a fixed 72-byte header, then a body.
//!
//! ```text
//! offset size field
//!      0    4 magic "RBF1"
//!      4    2 kind of the message
//!      6    2 flags of the message
//!      8    8 connection: names this link; frames of an older link are refused
//!     16    8 term under which the sender speaks
//!     24    8 frame number, counted from 0 per direction: finds lost, doubled and reordered frames
//!     32   24 three arguments of the message
//!     56    4 length of the body in bytes, at most BODY_LEN_MAX
//!     60    4 CRC-32 of the body
//!     64    4 reserved, zero
//!     68    4 CRC-32 of bytes 0..68
//! ```
//! All numbers are little-endian. A header is checked before its body is awaited, so that a broken length never makes a
//! receiver wait or allocate.

use crate::units::{ConnectionId, Term};
use crate::wire::message::Message;

/// First four bytes of each frame.
pub const MAGIC: u32 = u32::from_le_bytes(*b"RBF1");
/// Length of a frame header in bytes.
pub const HEADER_LEN: usize = 72;
/// Largest body: one segment of a write.
pub const BODY_LEN_MAX: usize = 1 << 20;

/// Why a frame was refused. The link is closed; nothing was applied.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum FrameError {
    /// The bytes are not a frame header at all.
    #[error(
        "the peer's bytes are not a frame (magic {found:08x}); the stream is out of step or the port is not repblk's"
    )]
    Magic {
        /// What stood there.
        found: u32,
    },
    /// The header's checksum is wrong.
    #[error("frame header damaged in transit (CRC {found:08x}, computed {computed:08x})")]
    HeaderChecksum {
        /// CRC in the frame.
        found: u32,
        /// CRC of the bytes.
        computed: u32,
    },
    /// The body's checksum is wrong.
    #[error("frame body damaged in transit (frame {number}, CRC {found:08x}, computed {computed:08x})")]
    BodyChecksum {
        /// Frame number.
        number: u64,
        /// CRC in the frame.
        found: u32,
        /// CRC of the bytes.
        computed: u32,
    },
    /// The frame belongs to another link.
    #[error("frame of another connection ({found} on {expected}); it is refused")]
    Connection {
        /// Connection in the frame.
        found: ConnectionId,
        /// This link.
        expected: ConnectionId,
    },
    /// A frame is missing, doubled or out of order.
    #[error("frame {found} where {expected} was due; the stream lost its order")]
    Number {
        /// Number in the frame.
        found: u64,
        /// Number that was due.
        expected: u64,
    },
    /// The body is longer than allowed for the message.
    #[error("frame announces a body of {len} bytes; at most {max} are allowed for this message")]
    BodyLength {
        /// Announced length.
        len: usize,
        /// Allowed length.
        max: usize,
    },
    /// The message is unknown or its fields make no sense.
    #[error("frame of kind {kind} is not valid: {why}")]
    Malformed {
        /// Kind in the frame.
        kind: u16,
        /// What is wrong.
        why: &'static str,
    },
}

/// A checked header: its body follows in the stream.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct FrameHeader {
    /// Kind of message.
    pub kind: u16,
    /// Flags of the message.
    pub flags: u16,
    /// Term under which the sender speaks.
    pub term: Term,
    /// Frame number on this link and direction.
    pub number: u64,
    /// Arguments of the message.
    pub args: [u64; 3],
    /// Bytes of body that follow.
    pub body_len: usize,
    body_crc: u32,
}

impl FrameHeader {
    /// Checks a received body against this header and makes the message of both.
    ///
    /// # Errors
    /// [`FrameError::BodyChecksum`] or [`FrameError::Malformed`].
    pub fn decode(&self, body: &[u8]) -> Result<Message, FrameError> {
        assert_eq!(body.len(), self.body_len, "the shell reads exactly the announced body");
        let computed = crc32fast::hash(body);
        if computed != self.body_crc {
            return Err(FrameError::BodyChecksum { number: self.number, found: self.body_crc, computed });
        }
        Message::decode(self.kind, self.flags, self.args, body)
    }
}

/// Writes the frames of one direction of one link.
#[derive(Clone, Debug)]
pub struct FrameWriter {
    connection: ConnectionId,
    next_number: u64,
}

impl FrameWriter {
    /// A writer for a new link.
    #[must_use]
    pub fn new(connection: ConnectionId) -> Self {
        Self { connection, next_number: 0 }
    }

    /// Appends the header of `message` to `out`. `payload` is the body of a message that carries data; a message with a
    /// body of its own is given an empty `payload` and its body is appended too. The caller
    /// sends `payload` right behind.
    ///
    /// # Panics
    /// When the body is longer than [`BODY_LEN_MAX`], or a message without data is given a payload.
    pub fn encode(&mut self, term: Term, message: &Message, payload: &[u8], out: &mut Vec<u8>) {
        let parts = message.parts();
        let own_body = message.own_body();
        assert!(own_body.is_none() || payload.is_empty(), "a message has one body");
        assert!(message.carries_payload() || payload.is_empty(), "only data messages carry payload");
        let body = own_body.as_deref().unwrap_or(payload);
        assert!(body.len() <= BODY_LEN_MAX, "segments bound the body");
        let mut header = [0u8; HEADER_LEN];
        header[0..4].copy_from_slice(&MAGIC.to_le_bytes());
        header[4..6].copy_from_slice(&parts.kind.to_le_bytes());
        header[6..8].copy_from_slice(&parts.flags.to_le_bytes());
        header[8..16].copy_from_slice(&self.connection.0.to_le_bytes());
        header[16..24].copy_from_slice(&term.0.to_le_bytes());
        header[24..32].copy_from_slice(&self.next_number.to_le_bytes());
        for (i, arg) in parts.args.iter().enumerate() {
            header[32 + 8 * i..40 + 8 * i].copy_from_slice(&arg.to_le_bytes());
        }
        let body_len = u32::try_from(body.len()).expect("bounded above");
        header[56..60].copy_from_slice(&body_len.to_le_bytes());
        header[60..64].copy_from_slice(&crc32fast::hash(body).to_le_bytes());
        let crc = crc32fast::hash(&header[..68]);
        header[68..72].copy_from_slice(&crc.to_le_bytes());
        out.extend_from_slice(&header);
        if let Some(body) = own_body {
            out.extend_from_slice(&body);
        }
        self.next_number += 1;
    }
}

/// Checks the frames of one direction of one link.
#[derive(Clone, Debug)]
pub struct FrameReader {
    connection: ConnectionId,
    next_number: u64,
}

impl FrameReader {
    /// A reader for a new link.
    #[must_use]
    pub fn new(connection: ConnectionId) -> Self {
        Self { connection, next_number: 0 }
    }

    /// Checks a header. Each header is given once, in stream order.
    ///
    /// # Errors
    /// Any [`FrameError`] but `BodyChecksum`. The link must then be closed.
    pub fn header(&mut self, bytes: &[u8; HEADER_LEN]) -> Result<FrameHeader, FrameError> {
        let magic = le_u32(bytes, 0);
        if magic != MAGIC {
            return Err(FrameError::Magic { found: magic });
        }
        let (found, computed) = (le_u32(bytes, 68), crc32fast::hash(&bytes[..68]));
        if found != computed {
            return Err(FrameError::HeaderChecksum { found, computed });
        }
        let connection = ConnectionId(le_u64(bytes, 8));
        if connection != self.connection {
            return Err(FrameError::Connection { found: connection, expected: self.connection });
        }
        let number = le_u64(bytes, 24);
        if number != self.next_number {
            return Err(FrameError::Number { found: number, expected: self.next_number });
        }
        let kind = u16::from_le_bytes([bytes[4], bytes[5]]);
        if le_u32(bytes, 64) != 0 {
            return Err(FrameError::Malformed { kind, why: "reserved bytes are not zero" });
        }
        let body_len = usize::try_from(le_u32(bytes, 56)).expect("usize has at least 32 bits");
        let max = Message::body_len_max(kind).ok_or(FrameError::Malformed { kind, why: "unknown kind" })?;
        if body_len > max {
            return Err(FrameError::BodyLength { len: body_len, max });
        }
        self.next_number += 1;
        Ok(FrameHeader {
            kind,
            flags: u16::from_le_bytes([bytes[6], bytes[7]]),
            term: Term(le_u64(bytes, 16)),
            number,
            args: [le_u64(bytes, 32), le_u64(bytes, 40), le_u64(bytes, 48)],
            body_len,
            body_crc: le_u32(bytes, 60),
        })
    }
}

fn le_u32(bytes: &[u8; HEADER_LEN], at: usize) -> u32 {
    u32::from_le_bytes(bytes[at..at + 4].try_into().expect("four bytes"))
}

fn le_u64(bytes: &[u8; HEADER_LEN], at: usize) -> u64 {
    u64::from_le_bytes(bytes[at..at + 8].try_into().expect("eight bytes"))
}
