//! Every number of the NBD protocol that this server uses, and the limits it sets itself.
//!
//! Names follow the protocol text without its `NBD_` prefix.

// Magic numbers (NBD, "Handshake" and "Transmission").

/// First eight bytes of the server's greeting, `NBDMAGIC`.
pub const INIT_MAGIC: u64 = 0x4e42_444d_4147_4943;
/// Second eight bytes of the greeting and the start of every option, `IHAVEOPT`.
pub const OPTION_MAGIC: u64 = 0x4948_4156_454f_5054;
/// Start of every option reply.
pub const OPTION_REPLY_MAGIC: u64 = 0x0003_e889_0455_65a9;
/// Start of a compact request.
pub const REQUEST_MAGIC: u32 = 0x2560_9513;
/// Start of an extended request.
pub const EXTENDED_REQUEST_MAGIC: u32 = 0x21e4_1c71;
/// Start of a simple reply.
pub const SIMPLE_REPLY_MAGIC: u32 = 0x6744_6698;
/// Start of a structured reply chunk.
pub const STRUCTURED_REPLY_MAGIC: u32 = 0x668e_33ef;
/// Start of an extended reply chunk.
pub const EXTENDED_REPLY_MAGIC: u32 = 0x6e8a_278c;

// Handshake flags (NBD, "Handshake flags" and "Client flags").

/// The server speaks fixed newstyle.
pub const FLAG_FIXED_NEWSTYLE: u16 = 1 << 0;
/// The server can leave out the zeroes after an `EXPORT_NAME` answer.
pub const FLAG_NO_ZEROES: u16 = 1 << 1;
/// The client speaks fixed newstyle.
pub const FLAG_C_FIXED_NEWSTYLE: u32 = 1 << 0;
/// The client wants no zeroes after an `EXPORT_NAME` answer.
pub const FLAG_C_NO_ZEROES: u32 = 1 << 1;

// Transmission flags (NBD, "Transmission flags").

/// The flags field is meaningful; always set.
pub const FLAG_HAS_FLAGS: u16 = 1 << 0;
/// Writes are refused.
pub const FLAG_READ_ONLY: u16 = 1 << 1;
/// `FLUSH` is understood.
pub const FLAG_SEND_FLUSH: u16 = 1 << 2;
/// The FUA flag is understood.
pub const FLAG_SEND_FUA: u16 = 1 << 3;
/// `TRIM` is understood.
pub const FLAG_SEND_TRIM: u16 = 1 << 5;
/// `WRITE_ZEROES` is understood.
pub const FLAG_SEND_WRITE_ZEROES: u16 = 1 << 6;
/// The DF flag of `READ` is understood; only with structured or extended replies.
pub const FLAG_SEND_DF: u16 = 1 << 7;
/// `FLUSH` and FUA hold across all connections to the export.
pub const FLAG_CAN_MULTI_CONN: u16 = 1 << 8;
/// `CACHE` is understood.
pub const FLAG_SEND_CACHE: u16 = 1 << 10;
/// The `FAST_ZERO` flag of `WRITE_ZEROES` is understood.
pub const FLAG_SEND_FAST_ZERO: u16 = 1 << 11;

// Options (NBD, "Option types").

/// Choose an export and enter transmission; has no error reply.
pub const OPT_EXPORT_NAME: u32 = 1;
/// Give up.
pub const OPT_ABORT: u32 = 2;
/// List the exports.
pub const OPT_LIST: u32 = 3;
/// Upgrade to TLS.
pub const OPT_STARTTLS: u32 = 5;
/// Describe an export.
pub const OPT_INFO: u32 = 6;
/// Describe an export and enter transmission.
pub const OPT_GO: u32 = 7;
/// Use structured replies.
pub const OPT_STRUCTURED_REPLY: u32 = 8;
/// List metadata contexts.
pub const OPT_LIST_META_CONTEXT: u32 = 9;
/// Select metadata contexts.
pub const OPT_SET_META_CONTEXT: u32 = 10;
/// Use 32-byte request and reply headers.
pub const OPT_EXTENDED_HEADERS: u32 = 11;

// Option replies (NBD, "Option reply types").

/// Success, and the end of the answer.
pub const REP_ACK: u32 = 1;
/// One listed export.
pub const REP_SERVER: u32 = 2;
/// One item of information about an export.
pub const REP_INFO: u32 = 3;
/// One metadata context.
pub const REP_META_CONTEXT: u32 = 4;
/// Bit that marks an error reply.
pub const REP_FLAG_ERROR: u32 = 1 << 31;
/// The option is unknown.
pub const REP_ERR_UNSUP: u32 = REP_FLAG_ERROR | 1;
/// The option is known and forbidden.
pub const REP_ERR_POLICY: u32 = REP_FLAG_ERROR | 2;
/// The option's data is wrong.
pub const REP_ERR_INVALID: u32 = REP_FLAG_ERROR | 3;
/// TLS must be spoken first.
pub const REP_ERR_TLS_REQD: u32 = REP_FLAG_ERROR | 5;
/// The export is not available.
pub const REP_ERR_UNKNOWN: u32 = REP_FLAG_ERROR | 6;
/// The server is shutting down.
pub const REP_ERR_SHUTDOWN: u32 = REP_FLAG_ERROR | 7;
/// The request is too large to process.
pub const REP_ERR_TOO_BIG: u32 = REP_FLAG_ERROR | 9;
/// Extended headers are in force, so the option cannot be had.
pub const REP_ERR_EXT_HEADER_REQD: u32 = REP_FLAG_ERROR | 10;

// Information types of `INFO` and `GO` (NBD, "Option reply types").

/// Size and transmission flags.
pub const INFO_EXPORT: u16 = 0;
/// Canonical name.
pub const INFO_NAME: u16 = 1;
/// Description for humans.
pub const INFO_DESCRIPTION: u16 = 2;
/// Size constraints.
pub const INFO_BLOCK_SIZE: u16 = 3;

// Commands (NBD, "Request types").

/// Read.
pub const CMD_READ: u16 = 0;
/// Write.
pub const CMD_WRITE: u16 = 1;
/// Finish what is outstanding and close.
pub const CMD_DISC: u16 = 2;
/// Make answered writes stable.
pub const CMD_FLUSH: u16 = 3;
/// The content is no longer needed.
pub const CMD_TRIM: u16 = 4;
/// The range will soon be read.
pub const CMD_CACHE: u16 = 5;
/// Write zeroes.
pub const CMD_WRITE_ZEROES: u16 = 6;
/// Query metadata.
pub const CMD_BLOCK_STATUS: u16 = 7;

// Command flags (NBD, "Command flags").

/// Answer only when this request's writes are stable; accepted on every command.
pub const CMD_FLAG_FUA: u16 = 1 << 0;
/// `WRITE_ZEROES` must not leave a hole.
pub const CMD_FLAG_NO_HOLE: u16 = 1 << 1;
/// `READ` must be answered by at most one content chunk.
pub const CMD_FLAG_DF: u16 = 1 << 2;
/// `BLOCK_STATUS` wants one extent.
pub const CMD_FLAG_REQ_ONE: u16 = 1 << 3;
/// `WRITE_ZEROES` must be faster than a write, or fail at once.
pub const CMD_FLAG_FAST_ZERO: u16 = 1 << 4;
/// The length of an extended request is a payload's.
pub const CMD_FLAG_PAYLOAD_LEN: u16 = 1 << 5;

// Reply chunks (NBD, "Structured reply flags" and "Structured reply types").

/// The chunk is its reply's last.
pub const REPLY_FLAG_DONE: u16 = 1 << 0;
/// No payload.
pub const REPLY_TYPE_NONE: u16 = 0;
/// Offset and data.
pub const REPLY_TYPE_OFFSET_DATA: u16 = 1;
/// Offset and length of a hole.
pub const REPLY_TYPE_OFFSET_HOLE: u16 = 2;
/// Extents with 32-bit lengths.
pub const REPLY_TYPE_BLOCK_STATUS: u16 = 5;
/// Extents with 64-bit lengths.
pub const REPLY_TYPE_BLOCK_STATUS_EXT: u16 = 6;
/// Error code and message.
pub const REPLY_TYPE_ERROR: u16 = (1 << 15) | 1;

// Flags of `base:allocation` (NBD, "`base:allocation` metadata context").

/// The extent occupies no storage.
pub const STATE_HOLE: u32 = 1 << 0;
/// The extent reads as zeroes.
pub const STATE_ZERO: u32 = 1 << 1;

// Error values (NBD, "Error values").

/// Operation not permitted.
pub const EPERM: u32 = 1;
/// Input/output error.
pub const EIO: u32 = 5;
/// Invalid argument.
pub const EINVAL: u32 = 22;
/// No space left on device.
pub const ENOSPC: u32 = 28;
/// Value too large.
pub const EOVERFLOW: u32 = 75;
/// Operation not supported; only for a `FAST_ZERO` that would be slow.
pub const ENOTSUP: u32 = 95;
/// The server is shutting down.
pub const ESHUTDOWN: u32 = 108;

// Metadata contexts (NBD, "The `base:` metadata namespace").

/// The one namespace this server knows, with its colon.
pub const BASE_NAMESPACE: &[u8] = b"base:";
/// The one context this server offers.
pub const BASE_ALLOCATION: &str = "base:allocation";
/// The id under which `base:allocation` is selected.
pub const BASE_ALLOCATION_ID: u32 = 1;

// Lengths in bytes, fixed by the protocol.

/// The client's flags.
pub const CLIENT_FLAGS_LEN: usize = 4;
/// An option's header.
pub const OPTION_HEADER_LEN: usize = 16;
/// A compact request header.
pub const REQUEST_LEN: usize = 28;
/// An extended request header.
pub const EXTENDED_REQUEST_LEN: usize = 32;
/// A simple reply header.
pub const SIMPLE_REPLY_LEN: usize = 16;
/// A structured reply chunk's header.
pub const STRUCTURED_REPLY_LEN: usize = 20;
/// An extended reply chunk's header.
pub const EXTENDED_REPLY_LEN: usize = 32;
/// Zeroes after an `EXPORT_NAME` answer, unless the client declined them.
pub const EXPORT_NAME_ZEROES: usize = 124;
/// Longest string: names, queries, messages (NBD, "Conventions").
pub const STRING_MAX: usize = 4096;

// Limits this server sets.

/// Longest option data that is kept and read; longer data is drained and answered `ERR_TOO_BIG`. This is all the memory
/// a connection can claim before it has chosen an export.
pub const OPTION_DATA_MAX: usize = 64 * 1024;
/// Longest option data that is drained; an option that announces more ends the connection.
pub const OPTION_DRAIN_MAX: usize = 1024 * 1024;
/// Options a client may send on one connection. Leaves room for a client that lists and then asks about every export.
pub const OPTIONS_MAX: u32 = 256;

/// Most bytes that all options of one negotiation may announce, headers included. What a client says before it has an export
/// is a few hundred bytes; this bounds what a stranger can make a server read.
pub const NEGOTIATION_BYTES_MAX: usize = 2 * OPTION_DRAIN_MAX;
/// Preferred block size announced by default: the unit of the dirty bitmap.
pub const PREFERRED_BLOCK: u32 = 4096;
/// Largest payload announced by default, and the least that must be carried (NBD, "Size constraints").
pub const MAX_PAYLOAD: u32 = 32 * 1024 * 1024;
/// Largest compact `WRITE` payload that is drained and answered `EINVAL`; a larger one ends the connection.
pub const PAYLOAD_DRAIN_MAX: u64 = 64 * 1024 * 1024;
/// Extents in one block status answer; a client asks on from where the answer ends. Far below the 2^20 of the protocol,
/// so that an answer stays within 64 KiB.
pub const EXTENTS_MAX: usize = 4000;

/// The name of option `code` in the protocol text, for messages and logs.
#[must_use]
pub fn option_name(code: u32) -> &'static str {
    match code {
        OPT_EXPORT_NAME => "EXPORT_NAME",
        OPT_ABORT => "ABORT",
        OPT_LIST => "LIST",
        OPT_STARTTLS => "STARTTLS",
        OPT_INFO => "INFO",
        OPT_GO => "GO",
        OPT_STRUCTURED_REPLY => "STRUCTURED_REPLY",
        OPT_LIST_META_CONTEXT => "LIST_META_CONTEXT",
        OPT_SET_META_CONTEXT => "SET_META_CONTEXT",
        OPT_EXTENDED_HEADERS => "EXTENDED_HEADERS",
        _ => "of an unknown kind",
    }
}
