//! Rank 1, format: what a copy keeps on its disk besides the data.
//!
//! Bytes to values and back, nothing else: no file, no clock, no decision. The room knows which bytes stand where and
//! what can be believed of them after a power loss; it must never know when they are written or who asks.
//!
//! Four zones make up the metadata area ([`layout`]): the two copies of the [`superblock`], the ring of the
//! [`activity_log`], and one dirty [`bitmap`] for each peer slot. [`mod@format`] makes the pages of a new area, [`recovery`]
//! reads an old one. The format is documented in `docs/disk_format.md` and pinned by golden images in `tests/format`.
//!
//! A page is the unit of writing and may be torn by a power loss: each of its 512-byte sectors is then old or new.

pub mod activity_log;
pub mod bitmap;
mod bitmap_page;
mod cursor;
pub mod format;
pub mod layout;
pub mod recovery;
mod sectors;
pub mod superblock;

pub use activity_log::{LogError, LogWriter};
pub use bitmap::Bitmap;
pub use bitmap_page::BitmapError;
pub use format::{FormatParams, format};
pub use layout::{Layout, LayoutError};
pub use recovery::{DeviceFacts, Note, Recovered, RecoveryError, Unrecovered};
pub use superblock::{PeerRecord, Superblock, SuperblockError};

/// Length of a metadata page in bytes.
pub const PAGE_LEN: usize = 4096;
/// [`PAGE_LEN`] where device offsets are reckoned.
pub(crate) const PAGE_BYTES: u64 = 4096;
/// Peers that a copy can keep a record and a dirty bitmap for.
pub const PEER_SLOTS: usize = 3;

/// The bytes of one metadata page.
pub type Page = [u8; PAGE_LEN];

/// A page and where it belongs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MetaPage {
    /// Bytes from the start of the metadata area; a multiple of [`PAGE_LEN`].
    pub offset: u64,
    /// What stands there.
    pub bytes: Box<Page>,
}

/// Length or count as a device offset.
pub(crate) fn wide(n: usize) -> u64 {
    u64::try_from(n).expect("usize has at most 64 bits")
}

/// Device offset or count as an index into memory.
pub(crate) fn narrow(n: u64) -> usize {
    usize::try_from(n).expect("the device's length bounds it, and the address space has 64 bits")
}
