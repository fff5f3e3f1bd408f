//! Version 1 of each metadata page, byte for byte, for ever.

use crate::golden;
use crate::meta_values::{INSTANCE, rich_superblock};
use repblk::meta::activity_log::{blank_pages, recover};
use repblk::meta::layout::AL_PAGES;
use repblk::meta::{Bitmap, Layout, LogWriter, PAGE_LEN, Page, Superblock};
use repblk::units::{BLOCK_SIZE, ByteRange, ExtentNo, PeerNo};

#[test]
fn superblock() {
    let superblock = rich_superblock();
    let bytes = golden::check("meta_superblock_v1.hex", &superblock.encode().bytes[..]);
    let page: Page = bytes.try_into().expect("a page long");
    assert_eq!(Superblock::decode(&page, 1), Ok(superblock));
}

#[test]
fn activity_log() {
    let mut writer = LogWriter::new(INSTANCE, 5, 1000);
    let pages = [
        writer.transaction(&[(0, Some(ExtentNo(70_000))), (999, Some(ExtentNo(3)))]),
        writer.transaction(&[(0, None), (1, Some(ExtentNo(12)))]),
    ];
    let both: Vec<u8> = pages.iter().flat_map(|page| page.bytes.to_vec()).collect();
    let bytes = golden::check("meta_activity_log_v1.hex", &both);
    let mut zone: Vec<u8> = blank_pages(INSTANCE).flat_map(|page| page.bytes.to_vec()).collect();
    assert_eq!(zone.len(), AL_PAGES * PAGE_LEN);
    zone[PAGE_LEN..3 * PAGE_LEN].copy_from_slice(&bytes);
    let hot = [3, 12, 70_000].map(ExtentNo);
    assert_eq!(recover(&zone, INSTANCE, 5, 1000), Ok(hot.to_vec()));
}

#[test]
fn activity_log_blank() {
    let page = blank_pages(INSTANCE).nth(63).expect("the ring has 64 pages");
    golden::check("meta_activity_log_blank_v1.hex", &page.bytes[..]);
}

#[test]
fn bitmap() {
    let data_len = 40_000 * BLOCK_SIZE;
    let layout = Layout::for_data_len(data_len);
    let mut bitmap = Bitmap::new(data_len);
    for (start, blocks) in [(0, 1), (32_250, 20), (39_999, 1)] {
        bitmap.set(ByteRange::new(start * BLOCK_SIZE, blocks * BLOCK_SIZE));
    }
    let zone: Vec<u8> =
        (0..2).flat_map(|index| bitmap.encode_page(index, PeerNo(2), INSTANCE, &layout).bytes.to_vec()).collect();
    let bytes = golden::check("meta_bitmap_v1.hex", &zone);
    let (read, invalid) = Bitmap::decode_zone(data_len, &bytes, PeerNo(2), INSTANCE, &layout);
    assert_eq!((&read, invalid), (&bitmap, vec![]));
}

#[test]
fn bitmap_on_the_wire() {
    let mut bitmap = Bitmap::new(40_000 * BLOCK_SIZE);
    bitmap.set(ByteRange::new(32_760 * BLOCK_SIZE, 20 * BLOCK_SIZE));
    let page = bitmap.wire_page(1).expect("it has dirty blocks");
    let bytes: Page = golden::check("meta_bitmap_wire_v1.hex", &page[..]).try_into().expect("a page long");
    let mut received = Bitmap::new(40_000 * BLOCK_SIZE);
    assert_eq!(received.merge_wire_page(1, &bytes), Ok(12));
}
