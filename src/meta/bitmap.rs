//! The dirty bitmap in memory: one bit for each block that a peer may not have.
//!
//! Setting rounds outwards and clearing rounds inwards: a block is clean only when all of it is. Three levels answer
//! quickly however long the device is: the bits, a summary bit for each word that has a bit, and the count. A flag for
//! each page on disk says whether its content may differ from what was last encoded.
//!
//! How the pages look, on disk and on the wire, is `bitmap_page.rs`.

use crate::meta::bitmap_page::PAGE_WORDS;
use crate::meta::{narrow, wide};
use crate::units::{BLOCK_SIZE, ByteRange};

const WORD_BITS: u64 = u64::BITS as u64;

/// One bit for each block of [`BLOCK_SIZE`] bytes; set: dirty.
#[derive(Debug, Clone)]
pub struct Bitmap {
    data_len: u64,
    words: Vec<u64>,
    /// Bit `i` is set exactly when word `i` is not zero.
    summary: Vec<u64>,
    count: u64,
    modified: Vec<bool>,
    modified_count: u64,
}

impl Bitmap {
    /// A bitmap with no bit set for `data_len` bytes. Every page counts as modified, since none was ever encoded.
    ///
    /// # Panics
    /// When `data_len` is not in whole blocks.
    #[must_use]
    pub fn new(data_len: u64) -> Self {
        assert!(data_len.is_multiple_of(BLOCK_SIZE), "the length of the data is checked on entry");
        let words = narrow((data_len / BLOCK_SIZE).div_ceil(WORD_BITS));
        let pages = words.div_ceil(PAGE_WORDS);
        Self {
            data_len,
            words: vec![0; words],
            summary: vec![0; words.div_ceil(64)],
            count: 0,
            modified: vec![true; pages],
            modified_count: wide(pages),
        }
    }

    /// Length of the device's data in bytes.
    #[must_use]
    pub fn data_len(&self) -> u64 {
        self.data_len
    }

    /// Number of blocks.
    #[must_use]
    pub fn blocks(&self) -> u64 {
        self.data_len / BLOCK_SIZE
    }

    /// Number of dirty blocks.
    #[must_use]
    pub fn count(&self) -> u64 {
        self.count
    }

    /// True when no block is dirty.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.count == 0
    }

    /// True when `block` is dirty.
    ///
    /// # Panics
    /// When the block lies behind the data.
    #[must_use]
    pub fn is_set(&self, block: u64) -> bool {
        assert!(block < self.blocks(), "blocks are bounded where they enter");
        self.words[narrow(block / WORD_BITS)] >> (block % WORD_BITS) & 1 == 1
    }

    /// Makes every block dirty that `range` touches. Returns how many were clean.
    ///
    /// # Panics
    /// When the range reaches behind the data.
    pub fn set(&mut self, range: ByteRange) -> u64 {
        let before = self.count;
        for (word, mask) in self.masks(range.round_out(BLOCK_SIZE)) {
            self.put_word(word, self.words[word] | mask);
        }
        self.count - before
    }

    /// Makes every block clean that lies wholly in `range`. Returns how many were dirty.
    ///
    /// # Panics
    /// When the range reaches behind the data.
    pub fn clear(&mut self, range: ByteRange) -> u64 {
        let before = self.count;
        for (word, mask) in self.masks(range.round_in(BLOCK_SIZE)) {
            self.put_word(word, self.words[word] & !mask);
        }
        before - self.count
    }

    /// Makes every block dirty.
    pub fn set_all(&mut self) {
        self.set(ByteRange::new(0, self.data_len));
    }

    /// True when a block that `range` touches is dirty.
    ///
    /// # Panics
    /// When the range reaches behind the data.
    #[must_use]
    pub fn any_in(&self, range: ByteRange) -> bool {
        let range = range.round_out(BLOCK_SIZE);
        assert!(range.end() <= self.data_len, "ranges are bounded where they enter");
        self.next_set(range.start() / BLOCK_SIZE).is_some_and(|block| block < range.end() / BLOCK_SIZE)
    }

    /// The first run of dirty blocks at or behind `from_block`: its first block and its length, at most `max_blocks`.
    ///
    /// # Panics
    /// When `max_blocks` is 0.
    #[must_use]
    pub fn next_run(&self, from_block: u64, max_blocks: u64) -> Option<(u64, u64)> {
        assert!(max_blocks > 0, "a run has a length");
        let start = self.next_set(from_block)?;
        let end = start.saturating_add(max_blocks).min(self.blocks());
        let mut at = start;
        while at < end {
            let ones = u64::from((self.words[narrow(at / WORD_BITS)] >> (at % WORD_BITS)).trailing_ones());
            at += ones;
            if ones == 0 || at % WORD_BITS != 0 {
                break;
            }
        }
        Some((start, at.min(end) - start))
    }

    /// Makes every block dirty that is dirty in `other`. Returns how many were clean.
    ///
    /// # Panics
    /// When the bitmaps are of different length.
    pub fn merge(&mut self, other: &Self) -> u64 {
        assert_eq!(self.data_len, other.data_len, "both are of one volume");
        let before = self.count;
        for (word, &bits) in other.words.iter().enumerate().filter(|&(_, &bits)| bits != 0) {
            self.put_word(word, self.words[word] | bits);
        }
        self.count - before
    }

    /// Pages on disk that hold a block which `range` touches and may differ from what was last encoded, ascending.
    ///
    /// # Panics
    /// When the range reaches behind the data.
    #[must_use]
    pub fn modified_in(&self, range: ByteRange) -> Vec<u64> {
        assert!(range.end() <= self.data_len, "ranges are bounded where they enter");
        if range.is_empty() {
            return Vec::new();
        }
        let page_len = wide(PAGE_WORDS) * WORD_BITS * BLOCK_SIZE;
        (range.start() / page_len..range.end().div_ceil(page_len)).filter(|&p| self.modified[narrow(p)]).collect()
    }

    /// Number of pages on disk that may differ from what was last encoded.
    #[must_use]
    pub fn modified_count(&self) -> u64 {
        self.modified_count
    }

    /// Counts a page on disk as different from what was last encoded.
    ///
    /// # Panics
    /// When there is no such page.
    pub fn mark_modified(&mut self, index: u64) {
        let flag = &mut self.modified[narrow(index)];
        self.modified_count += u64::from(!*flag);
        *flag = true;
    }

    pub(super) fn mark_encoded(&mut self, index: u64) {
        let flag = &mut self.modified[narrow(index)];
        self.modified_count -= u64::from(*flag);
        *flag = false;
    }

    pub(super) fn words(&self) -> &[u64] {
        &self.words
    }

    /// Replaces a word and keeps count, summary and flags true. Bits behind the data must be zero.
    pub(super) fn put_word(&mut self, word: usize, bits: u64) {
        let old = std::mem::replace(&mut self.words[word], bits);
        if old == bits {
            return;
        }
        self.count = self.count + u64::from(bits.count_ones()) - u64::from(old.count_ones());
        let summary_bit = 1 << (word % 64);
        if bits == 0 {
            self.summary[word / 64] &= !summary_bit;
        } else {
            self.summary[word / 64] |= summary_bit;
        }
        self.mark_modified(wide(word / PAGE_WORDS));
    }

    /// The bits of a word that stand for blocks of the device.
    pub(super) fn valid_bits(&self, word: usize) -> u64 {
        let blocks = self.blocks() - (wide(word) * WORD_BITS).min(self.blocks());
        if blocks >= WORD_BITS { u64::MAX } else { (1 << blocks) - 1 }
    }

    /// The words that `range` (whole blocks) touches, each with the mask of its bits inside.
    fn masks(&self, range: ByteRange) -> impl Iterator<Item = (usize, u64)> + use<> {
        assert!(range.is_empty() || range.end() <= self.data_len, "ranges are bounded where they enter");
        let (start, end) = (range.start() / BLOCK_SIZE, range.end() / BLOCK_SIZE);
        let words = if start < end { start / WORD_BITS..end.div_ceil(WORD_BITS) } else { 0..0 };
        words.map(move |word| {
            let low = u64::MAX << (start.max(word * WORD_BITS) - word * WORD_BITS);
            let spare = (word + 1) * WORD_BITS - end.min((word + 1) * WORD_BITS);
            (narrow(word), low & (u64::MAX >> spare))
        })
    }

    /// First dirty block at or behind `from`.
    fn next_set(&self, from: u64) -> Option<u64> {
        if from >= self.blocks() {
            return None;
        }
        let word = narrow(from / WORD_BITS);
        let bits = self.words[word] & (u64::MAX << (from % WORD_BITS));
        if bits != 0 {
            return Some(first_bit(word, bits));
        }
        let word = self.next_word(word + 1)?;
        Some(first_bit(word, self.words[word]))
    }

    /// First word at or behind `from` that has a bit.
    fn next_word(&self, from: usize) -> Option<usize> {
        let first = from / 64;
        let masked = *self.summary.get(first)? & (u64::MAX << (from % 64));
        let found = |group: usize, bits: u64| Some(narrow(first_bit(group, bits)));
        if masked != 0 {
            return found(first, masked);
        }
        let (skipped, bits) = self.summary[first + 1..].iter().enumerate().find(|&(_, &bits)| bits != 0)?;
        found(first + 1 + skipped, *bits)
    }
}

/// Two bitmaps are equal when the same blocks are dirty.
impl PartialEq for Bitmap {
    fn eq(&self, other: &Self) -> bool {
        self.data_len == other.data_len && self.words == other.words
    }
}

impl Eq for Bitmap {}

fn first_bit(word: usize, bits: u64) -> u64 {
    wide(word) * WORD_BITS + u64::from(bits.trailing_zeros())
}
