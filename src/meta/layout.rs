//! Where each zone of the metadata area stands.
//!
//! ```text
//! page of the area            zone
//! 0                           superblock, copy 0
//! 1 .. 1 + AL_PAGES           activity log
//! 1 + AL_PAGES                superblock, copy 1
//! then, for each peer slot    dirty bitmap, one page for each 126 MiB of data
//! ```
//! The two copies of the superblock stand 260 KiB apart, since media errors, and devices that rewrite units larger than
//! a page, damage neighbours together. Everything follows from the length of the data alone, so that a node can find
//! its metadata with nothing but the device in its hand.

use crate::meta::bitmap_page::PAGE_BLOCKS;
use crate::meta::{PAGE_BYTES, PEER_SLOTS, wide};
use crate::units::{BLOCK_SIZE, ByteRange, PeerNo};

/// Pages of the activity log's ring.
pub const AL_PAGES: usize = 64;
/// Smallest device that can hold a volume, in bytes.
pub const DEVICE_LEN_MIN: u64 = 1 << 20;
/// Largest length of a volume's data, in bytes: 64 TiB. The bitmaps, held in memory, then take 2 GiB for each peer.
pub const DATA_LEN_MAX: u64 = 1 << 46;

const AL_OFFSET: u64 = PAGE_BYTES;
const AL_LEN: u64 = AL_PAGES as u64 * PAGE_BYTES;
const SUPERBLOCK_OFFSETS: [u64; 2] = [0, AL_OFFSET + AL_LEN];
const BITMAPS_OFFSET: u64 = SUPERBLOCK_OFFSETS[1] + PAGE_BYTES;
const SLOTS: u64 = PEER_SLOTS as u64;

const _: () = assert!(BLOCK_SIZE == PAGE_BYTES, "an internal metadata area starts on a block");
const _: () = assert!(BITMAPS_OFFSET + SLOTS * PAGE_BYTES < DEVICE_LEN_MIN / 2, "the smallest device is mostly data");
const _: () = assert!(PEER_SLOTS <= u8::MAX as usize);

/// Why a device cannot hold a volume.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum LayoutError {
    /// The device is too small.
    #[error("the device has {found} bytes; a volume needs at least {min}")]
    TooSmall {
        /// Length of the device in bytes.
        found: u64,
        /// Least length in bytes.
        min: u64,
    },
    /// The device is too large.
    #[error("the device offers {found} bytes of data; this repblk handles at most {max}: use a smaller partition")]
    TooLarge {
        /// Length of the data in bytes.
        found: u64,
        /// Greatest length in bytes.
        max: u64,
    },
}

/// The zones of one metadata area. All offsets are in bytes from the start of the area and multiples of a page.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Layout {
    bitmap_len: u64,
}

impl Layout {
    /// The layout for `data_len` bytes of data.
    ///
    /// # Panics
    /// When `data_len` is no multiple of [`BLOCK_SIZE`] or above [`DATA_LEN_MAX`].
    #[must_use]
    pub fn for_data_len(data_len: u64) -> Self {
        assert!(
            data_len.is_multiple_of(BLOCK_SIZE) && data_len <= DATA_LEN_MAX,
            "the length of the data is checked on entry"
        );
        Self { bitmap_len: (data_len / BLOCK_SIZE).div_ceil(PAGE_BLOCKS) * PAGE_BYTES }
    }

    /// Metadata at the tail of a device of `device_len` bytes: the length of the data, which is also where the metadata
    /// area starts, and the layout. The data is as long as fits.
    ///
    /// # Errors
    /// When the device is too small or too large.
    pub fn internal(device_len: u64) -> Result<(u64, Self), LayoutError> {
        Self::bounds(device_len, 0)?;
        // The metadata grows with the data, so `fits` is true up to some length and false from there on. No device
        // offers more data than its own length; one far above the maximum is searched up to just above the maximum.
        let fits = |blocks: u64| {
            let data_len = blocks * BLOCK_SIZE;
            Self { bitmap_len: blocks.div_ceil(PAGE_BLOCKS) * PAGE_BYTES }.total_len() + data_len <= device_len
        };
        let (mut low, mut high) = (0, device_len.min(2 * DATA_LEN_MAX) / BLOCK_SIZE + 1);
        while high - low > 1 {
            let middle = low + (high - low) / 2;
            if fits(middle) {
                low = middle;
            } else {
                high = middle;
            }
        }
        let data_len = low * BLOCK_SIZE;
        Self::bounds(device_len, data_len)?;
        Ok((data_len, Self::for_data_len(data_len)))
    }

    /// Metadata on another device than the data's, which has `device_len` bytes: the length of the data (whole blocks)
    /// and the layout.
    ///
    /// # Errors
    /// When the device is too small or too large.
    pub fn external(device_len: u64) -> Result<(u64, Self), LayoutError> {
        let data_len = device_len / BLOCK_SIZE * BLOCK_SIZE;
        Self::bounds(device_len, data_len)?;
        Ok((data_len, Self::for_data_len(data_len)))
    }

    fn bounds(device_len: u64, data_len: u64) -> Result<(), LayoutError> {
        if device_len < DEVICE_LEN_MIN {
            return Err(LayoutError::TooSmall { found: device_len, min: DEVICE_LEN_MIN });
        }
        if data_len > DATA_LEN_MAX {
            return Err(LayoutError::TooLarge { found: data_len, max: DATA_LEN_MAX });
        }
        Ok(())
    }

    /// Offset of a copy of the superblock. The same in every layout: it must be found before anything is known.
    ///
    /// # Panics
    /// When `copy` is neither 0 nor 1.
    #[must_use]
    pub const fn superblock_offset(copy: usize) -> u64 {
        SUPERBLOCK_OFFSETS[copy]
    }

    /// The activity log's ring.
    #[must_use]
    pub fn activity_log_range(&self) -> ByteRange {
        ByteRange::new(AL_OFFSET, AL_LEN)
    }

    /// The dirty bitmap of a peer slot.
    ///
    /// # Panics
    /// When there is no such slot.
    #[must_use]
    pub fn bitmap_range(&self, slot: PeerNo) -> ByteRange {
        assert!(usize::from(slot.0) < PEER_SLOTS, "slots are counted from 0");
        ByteRange::new(BITMAPS_OFFSET + u64::from(slot.0) * self.bitmap_len, self.bitmap_len)
    }

    /// Pages of one dirty bitmap.
    #[must_use]
    pub fn bitmap_pages(&self) -> u64 {
        self.bitmap_len / PAGE_BYTES
    }

    /// Length of the whole area in bytes.
    #[must_use]
    pub fn total_len(&self) -> u64 {
        BITMAPS_OFFSET + SLOTS * self.bitmap_len
    }
}

/// Offset of a page of the activity log's ring.
pub(super) fn activity_log_page(index: usize) -> u64 {
    assert!(index < AL_PAGES);
    AL_OFFSET + wide(index) * PAGE_BYTES
}
