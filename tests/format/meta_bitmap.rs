//! The dirty bitmap against a set of numbers, and its pages on disk and on the wire.

use crate::meta_values::INSTANCE;
use proptest::prelude::*;
use repblk::meta::{Bitmap, BitmapError, Layout, PAGE_LEN, Page};
use repblk::units::{BLOCK_SIZE, ByteRange, DiskInstance, PeerNo};
use std::collections::BTreeSet;

const SLOT: PeerNo = PeerNo(1);
const BLOCKS_PER_DISK_PAGE: u64 = 32_256;

#[derive(Debug, Clone)]
enum Op {
    Set(u64, u64),
    Clear(u64, u64),
    SetAll,
    Merge(Vec<u64>),
    Wire(Vec<u64>),
    Encode(u64),
}

/// Devices from one block to a few pages, often with a ragged end.
fn lengths() -> impl Strategy<Value = u64> {
    prop_oneof![1u64..300, 4030u64..4200, 32_200u64..33_000, 60_000u64..100_000]
}

fn ops(blocks: u64) -> impl Strategy<Value = Vec<Op>> {
    let bytes = blocks * BLOCK_SIZE;
    let range = move || {
        prop_oneof![
            (0..bytes, 0..=bytes),
            (0..bytes, 0..70 * BLOCK_SIZE),
            (0..blocks).prop_map(|b| (b * BLOCK_SIZE, BLOCK_SIZE))
        ]
        .prop_map(move |(start, len): (u64, u64)| (start, len.min(bytes - start)))
    };
    let few = move || prop::collection::vec(0..blocks, 0..20);
    let op = prop_oneof![
        8 => range().prop_map(|(start, len)| Op::Set(start, len)),
        8 => range().prop_map(|(start, len)| Op::Clear(start, len)),
        1 => Just(Op::SetAll),
        2 => few().prop_map(Op::Merge),
        2 => few().prop_map(Op::Wire),
        2 => any::<u64>().prop_map(Op::Encode),
    ];
    prop::collection::vec(op, 0..24)
}

fn cases() -> impl Strategy<Value = (u64, Vec<Op>)> {
    lengths().prop_flat_map(|blocks| (Just(blocks), ops(blocks)))
}

fn of_blocks(len: u64, blocks: &[u64]) -> Bitmap {
    let mut bitmap = Bitmap::new(len);
    for &block in blocks {
        bitmap.set(ByteRange::new(block * BLOCK_SIZE, 1));
    }
    bitmap
}

fn send(from: &Bitmap, to: &mut Bitmap) {
    for index in 0..from.wire_pages() {
        if let Some(page) = from.wire_page(index) {
            to.merge_wire_page(index, &page).expect("both are of one length");
        }
    }
}

/// The model's runs of dirty blocks.
fn runs(model: &BTreeSet<u64>, blocks_max: u64) -> Vec<(u64, u64)> {
    let mut runs: Vec<(u64, u64)> = Vec::new();
    for &block in model {
        match runs.last_mut() {
            Some((start, blocks)) if *start + *blocks == block && *blocks < blocks_max => *blocks += 1,
            _ => runs.push((block, 1)),
        }
    }
    runs
}

fn found_runs(bitmap: &Bitmap, blocks_max: u64) -> Vec<(u64, u64)> {
    let mut at = 0;
    std::iter::from_fn(|| {
        let (start, blocks) = bitmap.next_run(at, blocks_max)?;
        at = start + blocks;
        Some((start, blocks))
    })
    .collect()
}

fn at(n: u64) -> usize {
    usize::try_from(n).expect("tests use small devices")
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(96))]

    #[test]
    fn it_is_a_set_of_blocks((blocks, ops) in cases(), probe in any::<[u64; 4]>(), blocks_max in 1u64..200) {
        let len = blocks * BLOCK_SIZE;
        let layout = Layout::for_data_len(len);
        let (mut bitmap, mut model) = (Bitmap::new(len), BTreeSet::new());
        let mut zone = vec![0xeeu8; at(layout.bitmap_range(SLOT).len())];
        for op in ops {
            let before = model.len() as u64;
            match op {
                Op::Set(start, bytes) => {
                    let range = ByteRange::new(start, bytes);
                    if bytes > 0 {
                        model.extend(start / BLOCK_SIZE..(start + bytes).div_ceil(BLOCK_SIZE));
                        prop_assert_eq!(bitmap.set(range), model.len() as u64 - before);
                        prop_assert!(bitmap.any_in(range));
                    }
                }
                Op::Clear(start, bytes) => {
                    let first = start.div_ceil(BLOCK_SIZE);
                    let gone: Vec<u64> = model.range(first..first.max((start + bytes) / BLOCK_SIZE)).copied().collect();
                    for block in &gone {
                        model.remove(block);
                    }
                    prop_assert_eq!(bitmap.clear(ByteRange::new(start, bytes)), gone.len() as u64);
                }
                Op::SetAll => {
                    bitmap.set_all();
                    model.extend(0..blocks);
                }
                Op::Merge(more) => {
                    model.extend(&more);
                    prop_assert_eq!(bitmap.merge(&of_blocks(len, &more)), model.len() as u64 - before);
                }
                Op::Wire(more) => {
                    model.extend(&more);
                    send(&of_blocks(len, &more), &mut bitmap);
                }
                Op::Encode(index) => {
                    let page = bitmap.encode_page(index % bitmap.disk_pages(), SLOT, INSTANCE, &layout);
                    let offset = at(page.offset - layout.bitmap_range(SLOT).start());
                    zone[offset..offset + PAGE_LEN].copy_from_slice(&page.bytes[..]);
                }
            }
            prop_assert_eq!(bitmap.count(), model.len() as u64);
            prop_assert_eq!(bitmap.is_empty(), model.is_empty());
        }
        for block in probe.map(|p| p % blocks) {
            prop_assert_eq!(bitmap.is_set(block), model.contains(&block));
            let rest: BTreeSet<u64> = model.range(block..).copied().collect();
            prop_assert_eq!(bitmap.next_run(block, blocks_max), runs(&rest, blocks_max).first().copied());
        }
        prop_assert_eq!(found_runs(&bitmap, blocks_max), runs(&model, blocks_max));
        prop_assert_eq!(found_runs(&bitmap, u64::MAX), runs(&model, u64::MAX));

        // Pages that are not flagged as modified hold on disk what memory holds.
        let modified = bitmap.modified_in(ByteRange::new(0, len));
        prop_assert_eq!(modified.len() as u64, bitmap.modified_count());
        for index in modified {
            let page = bitmap.encode_page(index, SLOT, INSTANCE, &layout);
            let offset = at(page.offset - layout.bitmap_range(SLOT).start());
            zone[offset..offset + PAGE_LEN].copy_from_slice(&page.bytes[..]);
        }
        prop_assert_eq!(bitmap.modified_count(), 0);
        let (read, invalid) = Bitmap::decode_zone(len, &zone, SLOT, INSTANCE, &layout);
        prop_assert_eq!(&read, &bitmap);
        prop_assert_eq!((read.count(), read.modified_count(), invalid), (bitmap.count(), 0, vec![]));
        let mut received = Bitmap::new(len);
        send(&bitmap, &mut received);
        prop_assert_eq!(&received, &bitmap);
    }

    #[test]
    fn a_damaged_page_is_dirty_all_over(offset in 0..PAGE_LEN, bit in 0u8..8, dirty in 0u64..90_000) {
        let (mut zone, layout, len) = zone_of(&[dirty]);
        zone[PAGE_LEN + offset] ^= 1 << bit;
        let (read, invalid) = Bitmap::decode_zone(len, &zone, SLOT, INSTANCE, &layout);
        prop_assert_eq!(invalid, vec![1]);
        let page = BLOCKS_PER_DISK_PAGE..2 * BLOCKS_PER_DISK_PAGE;
        prop_assert_eq!(read.count(), BLOCKS_PER_DISK_PAGE + u64::from(!page.contains(&dirty)));
        prop_assert!(read.is_set(dirty));
        prop_assert_eq!(read.modified_in(ByteRange::new(0, len)), vec![1]);
    }

    #[test]
    fn a_torn_page_is_old_or_new_or_dirty_all_over(mask in 0u8..=0xff, before in 0u64..32_256, after in 0u64..32_256) {
        let ((mut zone, layout, len), (new, _, _)) = (zone_of(&[before]), zone_of(&[after]));
        for sector in (0..8).filter(|s| mask >> s & 1 == 1) {
            zone[sector * 512..(sector + 1) * 512].copy_from_slice(&new[sector * 512..(sector + 1) * 512]);
        }
        let (read, invalid) = Bitmap::decode_zone(len, &zone, SLOT, INSTANCE, &layout);
        let whole = [before, after].iter().any(|&b| read == of_blocks(len, &[b]));
        prop_assert!(whole && invalid.is_empty() || invalid == vec![0] && read.count() == BLOCKS_PER_DISK_PAGE);
        prop_assert!(mask != 0xff || read.is_set(after));
    }

    #[test]
    fn arbitrary_bytes_are_dirty(bytes in prop::collection::vec(any::<u8>(), 0..3 * PAGE_LEN)) {
        let len = 90_000 * BLOCK_SIZE;
        let (read, invalid) = Bitmap::decode_zone(len, &bytes, SLOT, INSTANCE, &Layout::for_data_len(len));
        prop_assert_eq!((read.count(), invalid.len()), (90_000, 3));
    }

    #[test]
    fn arbitrary_wire_pages_never_panic(bytes in prop::collection::vec(any::<u8>(), PAGE_LEN), index in 0u64..4) {
        let mut bitmap = Bitmap::new(40_000 * BLOCK_SIZE);
        let page: Page = bytes.try_into().expect("a page long");
        let merged = bitmap.merge_wire_page(index, &page);
        prop_assert_eq!(merged.unwrap_or(0), bitmap.count());
    }
}

/// An encoded zone of three pages with the given blocks dirty.
fn zone_of(dirty: &[u64]) -> (Vec<u8>, Layout, u64) {
    let len = 90_000 * BLOCK_SIZE;
    let layout = Layout::for_data_len(len);
    let mut bitmap = of_blocks(len, dirty);
    let pages = (0..bitmap.disk_pages()).flat_map(|i| bitmap.encode_page(i, SLOT, INSTANCE, &layout).bytes.to_vec());
    (pages.collect(), layout, len)
}

#[test]
fn pages_of_another_place_slot_or_instance_are_refused() {
    let (zone, layout, len) = zone_of(&[5]);
    let invalid = |zone: &[u8], slot, instance| Bitmap::decode_zone(len, zone, slot, instance, &layout).1;
    assert_eq!(invalid(&zone, SLOT, INSTANCE), Vec::<u64>::new());
    assert_eq!(invalid(&zone, PeerNo(0), INSTANCE), vec![0, 1, 2]);
    assert_eq!(invalid(&zone, SLOT, DiskInstance(1)), vec![0, 1, 2]);
    let mut swapped = zone.clone();
    swapped.copy_within(PAGE_LEN..2 * PAGE_LEN, 0);
    assert_eq!(invalid(&swapped, SLOT, INSTANCE), vec![0]);
    assert_eq!(invalid(&zone[..PAGE_LEN], SLOT, INSTANCE), vec![1, 2]);
}

#[test]
fn only_changed_pages_are_modified() {
    let len = 90_000 * BLOCK_SIZE;
    let layout = Layout::for_data_len(len);
    let mut bitmap = Bitmap::new(len);
    assert_eq!(bitmap.modified_count(), 3, "nothing was ever encoded");
    for index in 0..3 {
        let _ = bitmap.encode_page(index, SLOT, INSTANCE, &layout);
    }
    let last_byte = ByteRange::new(BLOCKS_PER_DISK_PAGE * BLOCK_SIZE - 1, 2);
    assert_eq!(bitmap.set(last_byte), 2);
    assert_eq!(bitmap.modified_in(ByteRange::new(0, len)), vec![0, 1]);
    assert_eq!(bitmap.modified_in(ByteRange::new(0, 1)), vec![0]);
    assert_eq!(bitmap.modified_in(ByteRange::new(len, 0)), Vec::<u64>::new());
    for index in 0..2 {
        let _ = bitmap.encode_page(index, SLOT, INSTANCE, &layout);
    }
    assert_eq!((bitmap.set(last_byte), bitmap.modified_count()), (0, 0), "set again: nothing changed");
    bitmap.mark_modified(2);
    bitmap.mark_modified(2);
    assert_eq!(bitmap.modified_count(), 1);
}

#[test]
fn bits_behind_the_end_are_refused() {
    let mut bitmap = Bitmap::new(40_000 * BLOCK_SIZE);
    let mut page = [0u8; PAGE_LEN];
    page[(40_000 - 32_768) / 8] = 1;
    assert_eq!(bitmap.merge_wire_page(1, &page), Err(BitmapError::Excess { index: 1 }));
    assert_eq!(bitmap.merge_wire_page(0, &page), Ok(1));
    assert_eq!(bitmap.merge_wire_page(2, &page), Err(BitmapError::Index { index: 2, pages: 2 }));
    assert_eq!(bitmap.count(), 1);
}

#[test]
fn a_lonely_block_of_a_large_device_is_found() {
    let len = 1u64 << 40;
    let mut bitmap = Bitmap::new(len);
    assert_eq!(bitmap.next_run(0, 1024), None);
    bitmap.set(ByteRange::new(len - 1, 1));
    assert_eq!(bitmap.next_run(0, 1024), Some((len / BLOCK_SIZE - 1, 1)));
    assert!(bitmap.any_in(ByteRange::new(0, len)) && !bitmap.any_in(ByteRange::new(0, len - BLOCK_SIZE)));
}
