//! Layout, format and recovery: what is believed of a whole metadata area.

use crate::meta_values::{Area, INSTANCE, params};
use proptest::prelude::*;
use repblk::condition::Continuity;
use repblk::meta::layout::{DATA_LEN_MAX, DEVICE_LEN_MIN};
use repblk::meta::{
    Bitmap, DeviceFacts, Layout, LayoutError, LogWriter, Note, PEER_SLOTS, PeerRecord, Recovered, RecoveryError,
    Superblock, Unrecovered,
};
use repblk::units::{BLOCK_SIZE, ByteRange, ExtentNo, GenerationId, PeerNo};

const BLOCKS: u64 = 40_000;
const DATA_LEN: u64 = BLOCKS * BLOCK_SIZE;
const EXTENT_BLOCKS: u64 = 64;
const BOOT: u128 = 77;

fn facts(area: &Area) -> DeviceFacts {
    DeviceFacts { data_len: DATA_LEN, metadata_len: area.0.len() as u64 }
}

fn read(area: &Area) -> Result<Unrecovered, RecoveryError> {
    let pages = [0, 1].map(|copy| area.page(Layout::superblock_offset(copy)));
    Unrecovered::read(pages[0], pages[1], facts(area))
}

fn recover(area: &Area) -> Recovered {
    let unrecovered = read(area).expect("a superblock is whole");
    let log = unrecovered.activity_log_range().map_or(&[][..], |range| area.read(range)).to_vec();
    let zones = unrecovered.bitmap_ranges().map(|range| range.map(|range| area.read(range).to_vec()));
    unrecovered.recover(&log, zones, BOOT)
}

fn peer(name: &str) -> PeerRecord {
    PeerRecord { name: name.into(), ..PeerRecord::default() }
}

/// An attached copy with two peers: "bob" in sync, "carol" behind by block 100. Two extents are hot.
fn attached() -> (Area, Superblock) {
    let mut area = Area::formatted(&params(DATA_LEN));
    let layout = Layout::for_data_len(DATA_LEN);
    for (slot, dirty) in [(0, None), (1, Some(100))] {
        let mut bitmap = Bitmap::new(DATA_LEN);
        if let Some(block) = dirty {
            bitmap.set(ByteRange::new(block * BLOCK_SIZE, 1));
        }
        for index in 0..bitmap.disk_pages() {
            area.write(&bitmap.encode_page(index, PeerNo(slot), INSTANCE, &layout));
        }
    }
    let carol = PeerRecord { base: GenerationId(4), ..peer("carol") };
    let superblock = Superblock {
        sequence: 3,
        al_epoch: 2,
        clean: false,
        boot: BOOT,
        peers: [peer("bob"), carol, PeerRecord::default()],
        ..params(DATA_LEN).superblock()
    };
    area.write(&superblock.encode());
    let mut log = LogWriter::new(INSTANCE, 2, superblock.al_slots);
    area.write(&log.transaction(&[(0, Some(ExtentNo(2)))]));
    area.write(&log.transaction(&[(1, Some(ExtentNo(624)))]));
    (area, superblock)
}

fn next(area: &mut Area, superblock: &Superblock, change: impl FnOnce(&mut Superblock)) {
    let mut superblock = Superblock { sequence: superblock.sequence + 1, ..superblock.clone() };
    change(&mut superblock);
    area.write(&superblock.encode());
}

fn counts(recovered: &Recovered) -> [Option<u64>; PEER_SLOTS] {
    recovered.bitmaps.each_ref().map(|bitmap| bitmap.as_ref().map(Bitmap::count))
}

#[test]
fn hot_extents_are_dirty_towards_every_peer() {
    let (area, superblock) = attached();
    let recovered = recover(&area);
    // Block 100 is not in extent 2 (128..192); extent 624 (39,936..40,000) ends with the data.
    assert_eq!(counts(&recovered), [Some(2 * EXTENT_BLOCKS), Some(2 * EXTENT_BLOCKS + 1), None]);
    let bob = recovered.bitmaps[0].as_ref().expect("bob's slot is used");
    assert!(bob.is_set(128) && bob.is_set(191) && !bob.is_set(192) && bob.is_set(BLOCKS - 1));
    assert_eq!(bob.modified_count(), 2, "the bits are not on disk yet");
    assert_eq!((recovered.continuity, recovered.hot_extents), (Continuity::SameBoot, 2));
    assert_eq!((recovered.notes, recovered.superblock), (vec![], superblock));
}

#[test]
fn another_boot_may_have_lost_what_was_not_flushed() {
    let (mut area, superblock) = attached();
    next(&mut area, &superblock, |s| s.boot = BOOT + 1);
    assert_eq!(recover(&area).continuity, Continuity::Lost);
    let (mut area, superblock) = attached();
    next(&mut area, &superblock, |s| s.boot = 0);
    assert_eq!(recover(&area).continuity, Continuity::Lost, "an unknown boot is nobody's");
}

#[test]
fn a_clean_copy_needs_no_log() {
    let (mut area, superblock) = attached();
    next(&mut area, &superblock, |s| s.clean = true);
    assert_eq!(read(&area).expect("whole").activity_log_range(), None);
    let recovered = recover(&area);
    assert_eq!(counts(&recovered), [Some(0), Some(1), None]);
    assert_eq!((recovered.continuity, recovered.hot_extents, recovered.notes), (Continuity::Clean, 0, vec![]));
}

#[test]
fn an_unusable_log_makes_everything_dirty() {
    let (mut area, _) = attached();
    area.rot(Layout::for_data_len(DATA_LEN).activity_log_range().start() + 2 * 4096, 0);
    let recovered = recover(&area);
    assert_eq!(counts(&recovered), [Some(BLOCKS), Some(BLOCKS), None]);
    assert!(matches!(recovered.notes[..], [Note::LogUnusable(_)]));
    assert!(recovered.notes[0].to_string().contains("every block counts as dirty"), "{}", recovered.notes[0]);
}

#[test]
fn an_unread_zone_counts_as_damaged() {
    let (area, _) = attached();
    let log = area.read(Layout::for_data_len(DATA_LEN).activity_log_range());
    let recovered = read(&area).expect("whole").recover(log, [None, None, None], BOOT);
    assert_eq!(counts(&recovered), [Some(BLOCKS), Some(BLOCKS), None]);
    assert_eq!(recovered.notes[0], Note::BitmapPages { peer: "bob".into(), invalid: 2, pages: 2 });
    let recovered = read(&area).expect("whole").recover(&[], [None, None, None], BOOT);
    assert!(matches!(recovered.notes[0], Note::LogUnusable(_)));
}

#[test]
fn a_log_that_names_extents_behind_the_data_is_not_believed() {
    let (mut area, superblock) = attached();
    next(&mut area, &superblock, |s| s.al_epoch = 3);
    area.write(&LogWriter::new(INSTANCE, 3, superblock.al_slots).transaction(&[(0, Some(ExtentNo(625)))]));
    let recovered = recover(&area);
    assert_eq!(recovered.notes, vec![Note::ExtentBehindData(ExtentNo(625))]);
    assert_eq!(counts(&recovered), [Some(BLOCKS), Some(BLOCKS), None]);
}

#[test]
fn a_damaged_bitmap_page_is_dirty_and_noted() {
    let (mut area, superblock) = attached();
    next(&mut area, &superblock, |s| s.clean = true);
    area.rot(Layout::for_data_len(DATA_LEN).bitmap_range(PeerNo(1)).start() + 4096, 0);
    let recovered = recover(&area);
    assert_eq!(counts(&recovered), [Some(0), Some(1 + BLOCKS - 32_256), None]);
    assert_eq!(recovered.notes, vec![Note::BitmapPages { peer: "carol".into(), invalid: 1, pages: 2 }]);
}

#[test]
fn a_full_record_is_dirty_whatever_its_pages_say() {
    let (mut area, superblock) = attached();
    next(&mut area, &superblock, |s| s.peers[0].full = true);
    assert_eq!(read(&area).expect("whole").bitmap_ranges()[0], None);
    let recovered = recover(&area);
    assert_eq!(counts(&recovered), [Some(BLOCKS), Some(2 * EXTENT_BLOCKS + 1), None]);
    assert_eq!(recovered.bitmaps[0].as_ref().map(Bitmap::modified_count), Some(2), "its pages are to be written");
}

#[test]
fn a_damaged_superblock_copy_is_noted_and_costs_nothing_else() {
    let (mut area, superblock) = attached();
    next(&mut area, &superblock, |s| s.clean = true);
    let superblock = Superblock { clean: true, sequence: superblock.sequence + 1, ..superblock };
    next(&mut area, &superblock, |_| {});
    area.rot(Layout::superblock_offset(usize::from(superblock.sequence.is_multiple_of(2))) + 99, 0);
    let recovered = recover(&area);
    assert_eq!((recovered.continuity, &recovered.notes[..]), (Continuity::Clean, &[Note::SuperblockCopy][..]));
    assert_eq!(recovered.superblock, superblock);
}

#[test]
fn a_shrunken_device_is_refused() {
    let (area, _) = attached();
    let pages = [0, 1].map(|copy| area.page(Layout::superblock_offset(copy)));
    let metadata_len = Layout::for_data_len(DATA_LEN).total_len();
    let try_with = |data_len, metadata_len| {
        Unrecovered::read(pages[0], pages[1], DeviceFacts { data_len, metadata_len }).map(|u| u.layout)
    };
    assert_eq!(try_with(DATA_LEN, metadata_len), Ok(Layout::for_data_len(DATA_LEN)));
    let found = DATA_LEN - BLOCK_SIZE;
    assert_eq!(try_with(found, metadata_len), Err(RecoveryError::DataLen { found, expected: DATA_LEN }));
    let (found, expected) = (metadata_len - 1, metadata_len);
    assert_eq!(try_with(DATA_LEN, found), Err(RecoveryError::MetadataLen { found, expected }));
}

#[test]
fn a_fresh_area_recovers_clean_and_empty() {
    let recovered = recover(&Area::formatted(&params(DATA_LEN)));
    assert_eq!((counts(&recovered), recovered.continuity), ([None; PEER_SLOTS], Continuity::Clean));
    assert!(recovered.superblock.lineage.is_fresh() && recovered.notes.is_empty());
}

/// An `init` that stopped after each of its pages, over an older area: never an area that is attached and wrong.
#[test]
fn an_interrupted_format_is_old_or_refused_or_new() {
    let (old, superblock) = attached();
    let new = repblk::meta::FormatParams { instance: repblk::units::DiskInstance(5), ..params(DATA_LEN) };
    let pages = repblk::meta::format(&new);
    for written in 0..=pages.len() {
        let mut area = old.clone();
        for page in &pages[..written] {
            area.write(page);
        }
        match read(&area) {
            Ok(found) if found.superblock.instance == INSTANCE => {
                let recovered = recover(&area);
                let whole = recovered.superblock == superblock && written <= pages.len() - 2;
                assert!(whole && (written == 0 || counts(&recovered)[0] >= Some(2 * EXTENT_BLOCKS)));
            }
            Ok(found) => assert_eq!((found.superblock, written), (new.superblock(), pages.len())),
            Err(e) => assert!(written == pages.len() - 1, "{written}: {e}"),
        }
    }
}

proptest! {
    #[test]
    fn internal_metadata_fits_and_leaves_the_most(device_len in prop_oneof![
        DEVICE_LEN_MIN..1 << 24, DEVICE_LEN_MIN..1 << 34, DEVICE_LEN_MIN..1 << 46
    ]) {
        let (data_len, layout) = Layout::internal(device_len).expect("in bounds");
        prop_assert_eq!(layout, Layout::for_data_len(data_len));
        prop_assert!(data_len % BLOCK_SIZE == 0 && data_len + layout.total_len() <= device_len);
        let more = data_len + BLOCK_SIZE;
        prop_assert!(more + Layout::for_data_len(more).total_len() > device_len);
    }

    #[test]
    fn zones_neither_overlap_nor_leave_the_area(blocks in 1..DATA_LEN_MAX / BLOCK_SIZE) {
        let layout = Layout::for_data_len(blocks * BLOCK_SIZE);
        let mut zones: Vec<ByteRange> = (0..3).map(|slot| layout.bitmap_range(PeerNo(slot))).collect();
        zones.extend([0, 1].map(|copy| ByteRange::new(Layout::superblock_offset(copy), 4096)));
        zones.push(layout.activity_log_range());
        zones.sort_by_key(|zone| zone.start());
        prop_assert!(zones.windows(2).all(|pair| pair[0].end() == pair[1].start()));
        prop_assert_eq!((zones[0].start(), zones[5].end()), (0, layout.total_len()));
        prop_assert!(layout.bitmap_pages() * 32_256 >= blocks && (layout.bitmap_pages() - 1) * 32_256 < blocks);
    }

    #[test]
    fn no_device_length_panics(device_len in any::<u64>()) {
        let _ = (Layout::internal(device_len), Layout::external(device_len));
    }
}

#[test]
fn devices_out_of_bounds_are_refused() {
    let found = DEVICE_LEN_MIN - 1;
    let small = LayoutError::TooSmall { found, min: DEVICE_LEN_MIN };
    assert_eq!(Layout::internal(found).map(|l| l.0), Err(small.clone()));
    assert_eq!(Layout::external(found).map(|l| l.0), Err(small));
    assert_eq!(Layout::external(DATA_LEN_MAX + 5).map(|l| l.0), Ok(DATA_LEN_MAX));
    assert!(matches!(Layout::external(DATA_LEN_MAX + BLOCK_SIZE), Err(LayoutError::TooLarge { .. })));
    assert!(matches!(Layout::internal(u64::MAX), Err(LayoutError::TooLarge { .. })));
    let full = DATA_LEN_MAX + Layout::for_data_len(DATA_LEN_MAX).total_len();
    assert_eq!(Layout::internal(full).map(|l| l.0), Ok(DATA_LEN_MAX));
    assert!(matches!(Layout::internal(full + BLOCK_SIZE), Err(LayoutError::TooLarge { .. })));
}
