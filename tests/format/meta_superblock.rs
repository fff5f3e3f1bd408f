//! The superblock's two copies: round trips, every torn write, rot, and pages that are not superblocks.

use crate::meta_values::{Area, INSTANCE, params, rich_superblock, superblocks};
use proptest::prelude::*;
use repblk::meta::superblock::Choice;
use repblk::meta::{Layout, PAGE_LEN, Page, Superblock, SuperblockError};
use repblk::units::{DiskInstance, Term};

fn copy_of(superblock: &Superblock) -> usize {
    usize::from(superblock.sequence % 2 == 1)
}

fn choose(area: &Area) -> Result<Choice, SuperblockError> {
    Superblock::choose(area.page(Layout::superblock_offset(0)), area.page(Layout::superblock_offset(1)))
}

fn successor(superblock: &Superblock) -> Superblock {
    Superblock { sequence: superblock.sequence + 1, term: Term(superblock.term.0 + 1), ..superblock.clone() }
}

/// CRCs over changed bytes, so that a test reaches the checks behind the checksums.
fn reseal(page: &mut Page) {
    let payload: Vec<u8> = page.chunks_exact(512).flat_map(|sector| sector[52..508].to_vec()).collect();
    let page_crc = crc32fast::hash(&payload);
    for sector in page.chunks_exact_mut(512) {
        sector[48..52].copy_from_slice(&page_crc.to_le_bytes());
        let crc = crc32fast::hash(&sector[..508]);
        sector[508..].copy_from_slice(&crc.to_le_bytes());
    }
}

proptest! {
    #[test]
    fn every_valid_superblock_comes_back(superblock in superblocks()) {
        let page = superblock.encode();
        prop_assert_eq!(page.offset, Layout::superblock_offset(copy_of(&superblock)));
        prop_assert_eq!(Superblock::decode(&page.bytes, copy_of(&superblock)), Ok(superblock.clone()));
        prop_assert!(Superblock::decode(&page.bytes, 1 - copy_of(&superblock)).is_err(), "misdirected");
    }

    #[test]
    fn arbitrary_bytes_are_no_superblock(bytes in prop::collection::vec(any::<u8>(), PAGE_LEN), magic in any::<bool>()) {
        let mut page: Page = bytes.try_into().expect("a page long");
        if magic {
            page[..8].copy_from_slice(b"RBS1\x01\0\0\0");
        }
        prop_assert!(Superblock::decode(&page, 0).is_err());
    }

    #[test]
    fn arbitrary_payloads_never_panic(edits in prop::collection::vec((0usize..760, any::<u8>()), 1..6)) {
        let mut page = rich_superblock().encode().bytes;
        let copy = copy_of(&rich_superblock());
        for (at, byte) in edits {
            let (sector, share) = (at / 456, at % 456);
            page[sector * 512 + 52 + share] = byte;
        }
        reseal(&mut page);
        if let Ok(superblock) = Superblock::decode(&page, copy) {
            prop_assert_eq!(superblock.encode().bytes, page, "what is accepted is exactly what would be written");
        }
    }

    #[test]
    fn one_turned_bit_is_never_accepted(at in 0..PAGE_LEN, bit in 0u8..8) {
        let mut page = rich_superblock().encode().bytes;
        page[at] ^= 1 << bit;
        prop_assert!(Superblock::decode(&page, copy_of(&rich_superblock())).is_err());
    }
}

#[test]
fn a_formatted_area_has_both_copies() {
    let area = Area::formatted(&params(1 << 20));
    assert_eq!(choose(&area), Ok(Choice { superblock: params(1 << 20).superblock(), other_is_damaged: false }));
    for copy in [0, 1] {
        let page = area.page(Layout::superblock_offset(copy));
        assert_eq!(Superblock::decode(page, copy).map(|s| s.instance), Ok(INSTANCE));
    }
}

/// Each subset of sectors of an update, once over a whole older copy and once over what an earlier torn update left.
#[test]
fn a_torn_update_leaves_the_old_or_the_new() {
    let old = params(1 << 20).superblock();
    let (torn, new) = (successor(&old), Superblock { term: Term(99), ..successor(&old) });
    for first_mask in [0, 0b1, 0b1000_0000, 0b0110_1001, 0b1111_1110] {
        for mask in 0..=0xff {
            let mut area = Area::formatted(&params(1 << 20));
            area.write_sectors(&torn.encode(), first_mask);
            area.write_sectors(&new.encode(), mask);
            let choice = choose(&area).expect("the other copy is whole");
            let expected = if mask == 0xff { &new } else { &old };
            assert_eq!(&choice.superblock, expected, "masks {first_mask:08b} {mask:08b}");
        }
    }
}

#[test]
fn rot_in_one_copy_leaves_the_other_and_is_told() {
    for damaged in [0, 1] {
        for at in (0..4096).step_by(37) {
            let mut area = Area::formatted(&params(1 << 20));
            area.rot(Layout::superblock_offset(damaged) + at, 3);
            let choice = choose(&area).expect("the other copy is whole");
            assert!(choice.other_is_damaged, "copy {damaged}, byte {at}");
            assert_eq!(choice.superblock.sequence, if damaged == 0 { 1 } else { 2 }, "copy {damaged}, byte {at}");
        }
    }
}

#[test]
fn an_overwritten_copy_is_told() {
    let mut area = Area::formatted(&params(1 << 20));
    area.0[..PAGE_LEN].fill(0);
    let choice = choose(&area).expect("the other copy is whole");
    assert!(choice.other_is_damaged && choice.superblock.sequence == 1);
}

#[test]
fn what_cannot_be_used_says_why() {
    let mut blank = Area(vec![0; 1 << 19]);
    assert_eq!(choose(&blank), Err(SuperblockError::NotFormatted));
    blank.0.fill(0xff);
    assert_eq!(choose(&blank), Err(SuperblockError::NotFormatted));

    let mut area = Area::formatted(&params(1 << 20));
    for copy in [0, 1] {
        area.rot(Layout::superblock_offset(copy) + 700, 0);
    }
    assert_eq!(choose(&area), Err(SuperblockError::Damaged));

    let mut area = Area::formatted(&params(1 << 20));
    let stranger = Superblock { instance: DiskInstance(1), ..params(1 << 20).superblock() };
    area.write(&stranger.encode());
    assert_eq!(choose(&area), Err(SuperblockError::DifferentInstances(DiskInstance(1), INSTANCE)));

    let mut area = Area::formatted(&params(1 << 20));
    let mut newer = successor(&params(1 << 20).superblock()).encode();
    for sector in newer.bytes.chunks_exact_mut(512) {
        sector[4] = 2;
    }
    reseal(&mut newer.bytes);
    area.write(&newer);
    let error = choose(&area).expect_err("an older program must not touch a newer format");
    assert_eq!(error, SuperblockError::TooNew { found: 2, known: 1 });
    assert!(error.to_string().contains("version 2"), "{error}");
}

#[test]
#[should_panic(expected = "only valid superblocks are written")]
fn an_invalid_superblock_is_never_written() {
    let _ = Superblock { al_slots: 1, ..rich_superblock() }.encode();
}

/// Found by fuzzing: the checksum of the payload was compared between the sectors, and not with the payload.
#[test]
fn a_payload_that_is_not_the_one_of_the_checksum_is_refused() {
    let superblock = rich_superblock();
    let mut page = superblock.encode().bytes;
    for sector in page.chunks_exact_mut(512) {
        sector[48] ^= 1;
        let crc = crc32fast::hash(&sector[..508]);
        sector[508..].copy_from_slice(&crc.to_le_bytes());
    }
    assert_eq!(Superblock::decode(&page, copy_of(&superblock)), Err(SuperblockError::Damaged));
}

/// Found while the fuzz targets were written: such a superblock was believed, and the next one, or the next epoch, did not exist.
#[test]
fn a_count_at_its_end_is_refused() {
    for at in [40, 52 + 176] {
        let mut page = rich_superblock().encode().bytes;
        for sector in page.chunks_exact_mut(512).take(if at == 40 { 8 } else { 1 }) {
            sector[at..at + 8].copy_from_slice(&u64::MAX.to_le_bytes());
        }
        reseal(&mut page);
        let decoded = Superblock::decode(&page, 1);
        assert!(
            matches!(decoded, Err(SuperblockError::Malformed { why }) if why.contains("at its end")),
            "{decoded:?}"
        );
    }
}
