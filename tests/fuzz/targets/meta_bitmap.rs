//! A dirty bitmap's zone on disk: pages written, damaged, misplaced and forged.
//!
//! Input: the length of the data, ranges that become dirty, and what happens to the pages.

use super::input::Input;
use super::notes::note;
use super::pages::{INSTANCE, patch, range, rot};
use repblk::meta::{Bitmap, Layout, PAGE_LEN, Page};
use repblk::units::{BLOCK_SIZE, PeerNo};

/// Blocks of one page on disk.
const PAGE_BLOCKS: u64 = 32_256;

/// What became of a page between writing and reading.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Fate {
    Untouched,
    Damaged,
    /// Changed, with a right checksum.
    Forged,
}

pub fn run(data: &[u8]) {
    let mut input = Input::new(data);
    let mut rng = input.rng();
    let blocks = input.pick(&[1, 63, 64, 4097, PAGE_BLOCKS, PAGE_BLOCKS + 1, 2 * PAGE_BLOCKS + 77]);
    let layout = Layout::for_data_len(blocks * BLOCK_SIZE);
    let slot = PeerNo(input.u8() % 3);
    let mut written = dirty(&mut input, blocks);
    let mut zone = Vec::new();
    for index in 0..written.disk_pages() {
        zone.extend(&written.encode_page(index, slot, INSTANCE, &layout).bytes[..]);
    }
    assert_eq!(written.modified_count(), 0);
    let mut fates = vec![Fate::Untouched; zone.len() / PAGE_LEN];
    for _ in 0..input.u8() & 3 {
        let index = input.index(fates.len());
        let page: &mut Page = zone.as_chunks_mut().0.get_mut(index).expect("the page is there");
        let before = *page;
        let fate = match input.u8() & 3 {
            0 => {
                rot(page, input.u8(), &mut rng);
                Fate::Damaged
            }
            1 => {
                patch(page, &mut input);
                Fate::Damaged
            }
            _ => {
                patch(page, &mut input);
                mend(page);
                Fate::Forged
            }
        };
        if *page != before {
            // Damage that makes its own checksum right cannot be told from a forgery.
            let mut mended = *page;
            mend(&mut mended);
            fates[index] = if mended == *page { Fate::Forged } else { fate };
        }
    }
    let cut = usize::from(input.u8().saturating_sub(240)) * 300;
    zone.truncate(zone.len().saturating_sub(cut));
    let other_place = input.u8() > 250;
    let (read_slot, read_layout) = if other_place { (PeerNo((slot.0 + 1) % 3), layout) } else { (slot, layout) };
    let (read, invalid) = Bitmap::decode_zone(blocks * BLOCK_SIZE, &zone, read_slot, INSTANCE, &read_layout);
    for (index, fate) in (0..).zip(&fates) {
        let page = zone.as_chunks::<PAGE_LEN>().0.get(usize::try_from(index).expect("few pages"));
        let fate = if page.is_none() || other_place { Fate::Damaged } else { *fate };
        judge(&written, &read, index, fate, invalid.contains(&index), page, slot, &layout);
    }
    counts(&read);
    wire(&read);
}

fn dirty(input: &mut Input<'_>, blocks: u64) -> Bitmap {
    let mut bitmap = Bitmap::new(blocks * BLOCK_SIZE);
    for _ in 0..input.u8() & 15 {
        let range = range(input, bitmap.data_len());
        if input.u8() & 3 == 0 {
            bitmap.clear(range)
        } else {
            bitmap.set(range)
        };
    }
    bitmap
}

/// Makes the checksum of a bitmap page right.
fn mend(page: &mut Page) {
    let mut hasher = crc32fast::Hasher::new();
    hasher.update(&page[..8]);
    hasher.update(&page[12..]);
    page[8..12].copy_from_slice(&hasher.finalize().to_le_bytes());
}

#[allow(clippy::too_many_arguments, reason = "all that is known of one page")]
fn judge(
    written: &Bitmap,
    read: &Bitmap,
    index: u64,
    fate: Fate,
    invalid: bool,
    page: Option<&Page>,
    slot: PeerNo,
    layout: &Layout,
) {
    let blocks = index * PAGE_BLOCKS..((index + 1) * PAGE_BLOCKS).min(read.blocks());
    note((fate == Fate::Untouched, fate == Fate::Forged, invalid));
    if invalid {
        assert!(fate != Fate::Untouched, "page {index} is refused though nothing happened to it");
        assert!(blocks.clone().all(|block| read.is_set(block)), "the blocks of a refused page are all dirty");
        return;
    }
    match fate {
        Fate::Untouched => {
            assert!(blocks.clone().all(|block| read.is_set(block) == written.is_set(block)), "page {index}");
        }
        Fate::Damaged => panic!("page {index} is damaged and believed"),
        Fate::Forged => {
            let again = read.clone().encode_page(index, slot, INSTANCE, layout);
            assert!(page == Some(&*again.bytes), "one page has one form: {index}");
        }
    }
}

/// The three levels of the bitmap agree.
fn counts(bitmap: &Bitmap) {
    let (mut at, mut runs) = (0, 0);
    while let Some((start, len)) = bitmap.next_run(at, 100) {
        assert!(start >= at && len > 0 && len <= 100 && start + len <= bitmap.blocks());
        runs += len;
        at = start + len;
    }
    assert_eq!(runs, bitmap.count());
    assert_eq!((0..bitmap.blocks()).filter(|&block| bitmap.is_set(block)).count(), usize::try_from(runs).expect("few"));
}

/// What goes over the wire is what arrives.
fn wire(bitmap: &Bitmap) {
    let mut theirs = Bitmap::new(bitmap.data_len());
    for index in 0..bitmap.wire_pages() {
        if let Some(page) = bitmap.wire_page(index) {
            theirs.merge_wire_page(index, &page).expect("the page is of a bitmap of the same length");
        }
    }
    assert_eq!(theirs, *bitmap);
}
