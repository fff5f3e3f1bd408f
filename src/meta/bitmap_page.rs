//! The dirty bitmap's pages, on disk and on the wire.
//!
//! A page on disk covers 32,256 blocks (126 MiB):
//!
//! ```text
//! offset size field
//!      0    4 magic "RBB1"
//!      4    4 version
//!      8    4 CRC-32 of all the other bytes
//!     12    4 peer slot
//!     16   16 disk instance
//!     32    8 offset of this page from the start of the metadata area
//!     40    8 first block
//!     48    4 number of set bits
//!     52   12 reserved, zero
//!     64 4032 bits, little-endian: block first + i is bit i % 8 of byte i / 8; bits behind the data are zero
//! ```
//! One checksum for the whole page is enough here: a page that is not whole, for whatever reason, makes all its blocks
//! dirty. A page on the wire is 4096 bytes of bits and nothing else, 32,768 blocks; the frame around it is checked.

use crate::meta::bitmap::Bitmap;
use crate::meta::layout::Layout;
use crate::meta::{MetaPage, PAGE_BYTES, PAGE_LEN, Page, narrow, wide};
use crate::units::{BLOCK_SIZE, ByteRange, DiskInstance, PeerNo};

/// Words of 64 bits in a page on disk.
pub(super) const PAGE_WORDS: usize = 504;
/// Blocks that a page on disk covers.
pub(super) const PAGE_BLOCKS: u64 = PAGE_WORDS as u64 * 64;
/// Words of 64 bits in a page on the wire.
const WIRE_WORDS: usize = PAGE_LEN / 8;

const MAGIC: u32 = u32::from_le_bytes(*b"RBB1");
const VERSION: u32 = 1;
const OFF_VERSION: usize = 4;
const OFF_CRC: usize = OFF_VERSION + 4;
const OFF_SLOT: usize = OFF_CRC + 4;
const OFF_INSTANCE: usize = OFF_SLOT + 4;
const OFF_OFFSET: usize = OFF_INSTANCE + 16;
const OFF_FIRST: usize = OFF_OFFSET + 8;
const OFF_COUNT: usize = OFF_FIRST + 8;
const OFF_RESERVED: usize = OFF_COUNT + 4;
const OFF_BITS: usize = OFF_RESERVED + 12;

const _: () = assert!(OFF_BITS + PAGE_WORDS * 8 == PAGE_LEN);

/// Why a bitmap page from the peer was refused. Nothing was merged.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum BitmapError {
    /// The page lies behind the data.
    #[error("the peer sent bitmap page {index}; this volume has {pages}: the copies are of different length")]
    Index {
        /// Index of the page.
        index: u64,
        /// Pages of this volume.
        pages: u64,
    },
    /// Bits behind the data are set.
    #[error("the peer's bitmap page {index} marks blocks behind the end of the data: the copies differ in length")]
    Excess {
        /// Index of the page.
        index: u64,
    },
}

impl Bitmap {
    /// Number of pages on disk.
    #[must_use]
    pub fn disk_pages(&self) -> u64 {
        self.blocks().div_ceil(PAGE_BLOCKS)
    }

    /// A page as it goes to the disk. From here on it counts as encoded.
    ///
    /// # Panics
    /// When there is no such page or slot, or the layout is of another length.
    pub fn encode_page(&mut self, index: u64, slot: PeerNo, instance: DiskInstance, layout: &Layout) -> MetaPage {
        assert!(index < self.disk_pages() && self.disk_pages() == layout.bitmap_pages(), "pages are of this bitmap");
        self.mark_encoded(index);
        let mut bytes = Box::new([0u8; PAGE_LEN]);
        let offset = page_offset(layout, slot, index);
        let words = self.page_words(index);
        let count: u32 = words.iter().map(|w| w.count_ones()).sum();
        bytes[..OFF_VERSION].copy_from_slice(&MAGIC.to_le_bytes());
        bytes[OFF_VERSION..OFF_CRC].copy_from_slice(&VERSION.to_le_bytes());
        bytes[OFF_SLOT..OFF_INSTANCE].copy_from_slice(&u32::from(slot.0).to_le_bytes());
        bytes[OFF_INSTANCE..OFF_OFFSET].copy_from_slice(&instance.0.to_le_bytes());
        bytes[OFF_OFFSET..OFF_FIRST].copy_from_slice(&offset.to_le_bytes());
        bytes[OFF_FIRST..OFF_COUNT].copy_from_slice(&(index * PAGE_BLOCKS).to_le_bytes());
        bytes[OFF_COUNT..OFF_RESERVED].copy_from_slice(&count.to_le_bytes());
        put_words(&mut bytes[OFF_BITS..], words);
        let crc = page_crc(&bytes);
        bytes[OFF_CRC..OFF_SLOT].copy_from_slice(&crc.to_le_bytes());
        MetaPage { offset, bytes }
    }

    /// The bitmap in a zone read from a slot's place, and the indexes of the pages that were not valid. All blocks of
    /// those are dirty, and they count as modified; so does a page that is missing because the zone was not read whole.
    ///
    /// # Panics
    /// When the layout is of another length than `data_len`.
    #[must_use]
    pub fn decode_zone(
        data_len: u64,
        zone: &[u8],
        slot: PeerNo,
        instance: DiskInstance,
        layout: &Layout,
    ) -> (Self, Vec<u64>) {
        let mut bitmap = Self::new(data_len);
        assert_eq!(bitmap.disk_pages(), layout.bitmap_pages(), "the layout is of this volume");
        let (pages, _) = zone.as_chunks::<PAGE_LEN>();
        let mut invalid = Vec::new();
        for index in 0..bitmap.disk_pages() {
            let page = pages.get(narrow(index));
            if page.is_some_and(|p| bitmap.load_page(index, p, slot, instance, layout)) {
                bitmap.mark_encoded(index);
            } else {
                let start = index * PAGE_BLOCKS * BLOCK_SIZE;
                let end = (start + PAGE_BLOCKS * BLOCK_SIZE).min(data_len);
                bitmap.set(ByteRange::new(start, end - start));
                invalid.push(index);
            }
        }
        (bitmap, invalid)
    }

    /// Number of pages on the wire.
    #[must_use]
    pub fn wire_pages(&self) -> u64 {
        wide(self.words().len().div_ceil(WIRE_WORDS))
    }

    /// A page as it goes to the peer; `None` when none of its blocks is dirty.
    ///
    /// # Panics
    /// When there is no such page.
    #[must_use]
    pub fn wire_page(&self, index: u64) -> Option<Box<Page>> {
        assert!(index < self.wire_pages(), "pages are of this bitmap");
        let first = narrow(index) * WIRE_WORDS;
        let words = &self.words()[first..self.words().len().min(first + WIRE_WORDS)];
        words.iter().any(|&w| w != 0).then(|| {
            let mut bytes = Box::new([0u8; PAGE_LEN]);
            put_words(&mut bytes[..], words);
            bytes
        })
    }

    /// Makes the blocks dirty that a page from the peer names. Returns how many were clean.
    ///
    /// # Errors
    /// When the page, or a bit in it, lies behind the data. Nothing was merged then.
    pub fn merge_wire_page(&mut self, index: u64, page: &Page) -> Result<u64, BitmapError> {
        if index >= self.wire_pages() {
            return Err(BitmapError::Index { index, pages: self.wire_pages() });
        }
        let first = narrow(index) * WIRE_WORDS;
        if get_words(page).enumerate().any(|(i, bits)| bits & !self.valid_bits(first + i) != 0) {
            return Err(BitmapError::Excess { index });
        }
        let before = self.count();
        for (i, bits) in get_words(page).enumerate().filter(|&(_, bits)| bits != 0) {
            self.put_word(first + i, self.words()[first + i] | bits);
        }
        Ok(self.count() - before)
    }

    /// Takes a page's bits when it is valid for its place.
    fn load_page(&mut self, index: u64, page: &Page, slot: PeerNo, instance: DiskInstance, layout: &Layout) -> bool {
        let valid = u32::from_le_bytes(field(page, 0)) == MAGIC
            && u32::from_le_bytes(field(page, OFF_VERSION)) == VERSION
            && u32::from_le_bytes(field(page, OFF_CRC)) == page_crc(page)
            && u32::from_le_bytes(field(page, OFF_SLOT)) == u32::from(slot.0)
            && u128::from_le_bytes(field(page, OFF_INSTANCE)) == instance.0
            && u64::from_le_bytes(field(page, OFF_OFFSET)) == page_offset(layout, slot, index)
            && u64::from_le_bytes(field(page, OFF_FIRST)) == index * PAGE_BLOCKS
            && page[OFF_RESERVED..OFF_BITS].iter().all(|&b| b == 0);
        if !valid {
            return false;
        }
        let first = narrow(index) * PAGE_WORDS;
        let words = || get_words(&page[OFF_BITS..]).enumerate();
        let count: u32 = words().map(|(_, bits)| bits.count_ones()).sum();
        if count != u32::from_le_bytes(field(page, OFF_COUNT))
            || words().any(|(i, bits)| bits & !self.valid_bits(first + i) != 0)
        {
            return false;
        }
        for (i, bits) in words().filter(|&(_, bits)| bits != 0) {
            self.put_word(first + i, bits);
        }
        true
    }

    fn page_words(&self, index: u64) -> &[u64] {
        let first = narrow(index) * PAGE_WORDS;
        &self.words()[first..self.words().len().min(first + PAGE_WORDS)]
    }
}

fn page_offset(layout: &Layout, slot: PeerNo, index: u64) -> u64 {
    layout.bitmap_range(slot).start() + index * PAGE_BYTES
}

fn page_crc(page: &Page) -> u32 {
    let mut hasher = crc32fast::Hasher::new();
    hasher.update(&page[..OFF_CRC]);
    hasher.update(&page[OFF_SLOT..]);
    hasher.finalize()
}

fn put_words(bytes: &mut [u8], words: &[u64]) {
    for (bytes, word) in bytes.chunks_exact_mut(8).zip(words) {
        bytes.copy_from_slice(&word.to_le_bytes());
    }
}

fn get_words(bytes: &[u8]) -> impl Iterator<Item = u64> {
    bytes.as_chunks::<8>().0.iter().map(|word| u64::from_le_bytes(*word))
}

fn field<const N: usize>(page: &Page, at: usize) -> [u8; N] {
    page[at..at + N].try_into().expect("the layout is fixed")
}
