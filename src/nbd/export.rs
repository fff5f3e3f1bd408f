//! What the server offers, and what a client and it have agreed on.

use super::constants::{self, PREFERRED_BLOCK};

/// One export as a client sees it. Both nodes of a volume must offer equal ones, or a failover changes the device under
/// its user.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct ExportInfo {
    /// Canonical name, at most [`constants::STRING_MAX`] bytes, without NUL.
    pub name: String,
    /// Description for humans; cut at [`constants::STRING_MAX`] bytes.
    pub description: String,
    /// Size in bytes; a multiple of `min_block`.
    pub size: u64,
    /// Writes are refused with `EPERM`.
    pub read_only: bool,
    /// `FLUSH` and FUA hold across all connections.
    pub multi_conn: bool,
    /// `FAST_ZERO` is understood.
    pub fast_zero: bool,
    /// Smallest unit of offset and length, in bytes; a power of two up to 65,536.
    pub min_block: u32,
    /// Smallest efficient unit, in bytes; a power of two, at least 512 and `min_block`.
    pub preferred_block: u32,
    /// Longest payload of one request or reply, in bytes; at least `preferred_block`.
    pub max_payload: u32,
}

impl ExportInfo {
    /// A writable export of `size` bytes with this server's usual properties.
    #[must_use]
    pub fn new(name: impl Into<String>, size: u64) -> Self {
        Self {
            name: name.into(),
            description: String::new(),
            size,
            read_only: false,
            multi_conn: true,
            fast_zero: true,
            min_block: 1,
            preferred_block: PREFERRED_BLOCK,
            max_payload: constants::MAX_PAYLOAD,
        }
    }

    /// The transmission flags under `mode` (NBD, "Transmission flags"); the same for every way into transmission.
    #[must_use]
    pub fn transmission_flags(&self, mode: Mode) -> u16 {
        let mut flags = constants::FLAG_HAS_FLAGS
            | constants::FLAG_SEND_FLUSH
            | constants::FLAG_SEND_FUA
            | constants::FLAG_SEND_CACHE;
        if self.read_only {
            flags |= constants::FLAG_READ_ONLY;
        } else {
            flags |= constants::FLAG_SEND_TRIM | constants::FLAG_SEND_WRITE_ZEROES;
            if self.fast_zero {
                flags |= constants::FLAG_SEND_FAST_ZERO;
            }
        }
        if self.multi_conn {
            flags |= constants::FLAG_CAN_MULTI_CONN;
        }
        if mode != Mode::Simple {
            flags |= constants::FLAG_SEND_DF;
        }
        flags
    }
}

/// One line of a listing.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct ExportListing {
    /// The export's name.
    pub name: String,
    /// What a human should know of it, such as the role of this node.
    pub description: String,
}

/// Why an export is not to be had, in a code for the client and a sentence for its user.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
#[error("{message}")]
pub struct ExportRefusal {
    /// The kind of refusal.
    pub code: RefusalCode,
    /// What is wrong and what to do; for instance which node is primary. Cut at [`constants::STRING_MAX`] bytes.
    pub message: String,
}

/// Kinds of refusal, each with its option reply (NBD, "Option reply types").
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum RefusalCode {
    /// There is no such export here.
    Unknown,
    /// The export exists and is not served here now: this node is not primary, or the client is not allowed.
    Policy,
    /// The server is shutting down.
    Shutdown,
}

impl RefusalCode {
    /// The option reply's type.
    #[must_use]
    pub fn reply_type(self) -> u32 {
        match self {
            Self::Unknown => constants::REP_ERR_UNKNOWN,
            Self::Policy => constants::REP_ERR_POLICY,
            Self::Shutdown => constants::REP_ERR_SHUTDOWN,
        }
    }
}

/// The server's exports, as the negotiation asks for them.
///
/// Between two options an answer may change (a node is promoted), but within one call it must hold.
pub trait Exports {
    /// The export a client calls `name`. Names are the client's bytes: perhaps no UTF-8, perhaps with NUL, perhaps
    /// empty, which asks for a default export.
    ///
    /// # Errors
    /// The reason why a client cannot have it.
    fn find(&self, name: &[u8]) -> Result<ExportInfo, ExportRefusal>;

    /// All exports that may be listed, also those that this node would refuse now.
    fn list(&self) -> Vec<ExportListing>;

    /// True when every option but `ABORT` is to be refused because the server is going away.
    fn shutting_down(&self) -> bool;
}

/// How requests and replies look, as negotiated.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug, Default)]
pub enum Mode {
    /// Compact requests, simple replies.
    #[default]
    Simple,
    /// Compact requests, structured replies.
    Structured,
    /// Extended requests, extended replies.
    Extended,
}

/// The metadata contexts a client has selected.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct MetaContexts {
    /// `base:allocation`, under the id [`constants::BASE_ALLOCATION_ID`].
    pub allocation: bool,
}

/// What the negotiation hands to the data plane, together with the socket.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Handover {
    /// The chosen export.
    pub export: ExportInfo,
    /// The agreed form of requests and replies.
    pub mode: Mode,
    /// The contexts selected for this export.
    pub contexts: MetaContexts,
}

impl Handover {
    /// The part of the agreement that each request is judged by.
    #[must_use]
    pub fn terms(&self) -> Terms {
        Terms {
            mode: self.mode,
            contexts: self.contexts,
            size: self.export.size,
            read_only: self.export.read_only,
            fast_zero: self.export.fast_zero,
            min_block: self.export.min_block,
            max_payload: self.export.max_payload,
        }
    }
}

/// What each request of a session is judged by.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Terms {
    /// The agreed form of requests and replies.
    pub mode: Mode,
    /// The selected metadata contexts.
    pub contexts: MetaContexts,
    /// Size of the export in bytes.
    pub size: u64,
    /// Writes are refused.
    pub read_only: bool,
    /// `FAST_ZERO` was announced.
    pub fast_zero: bool,
    /// Smallest unit of offset and length, in bytes; a power of two.
    pub min_block: u32,
    /// Longest payload of one request or reply, in bytes.
    pub max_payload: u32,
}
