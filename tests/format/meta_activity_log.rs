//! The activity log against a naive model: a crash after any transaction, torn at any sector, and rot anywhere.

use crate::meta_values::{Area, INSTANCE, params};
use proptest::prelude::*;
use repblk::meta::activity_log::{AL_SLOTS_MAX, LogError, UPDATES_MAX, WINDOW_LEN, blank_pages, recover};
use repblk::meta::layout::AL_PAGES;
use repblk::meta::{Layout, LogWriter, MetaPage};
use repblk::units::{DiskInstance, ExtentNo};
use std::collections::BTreeSet;

const DATA_LEN: u64 = 1 << 20;

type Update = (u32, Option<ExtentNo>);

fn zone(area: &Area) -> &[u8] {
    area.read(Layout::for_data_len(DATA_LEN).activity_log_range())
}

fn set(table: &[Option<ExtentNo>]) -> BTreeSet<ExtentNo> {
    table.iter().copied().flatten().collect()
}

/// The model: the table, and the table one transaction ago.
#[derive(Clone)]
struct Model {
    now: Vec<Option<ExtentNo>>,
    before: Vec<Option<ExtentNo>>,
}

impl Model {
    fn new(slots: u32) -> Self {
        let empty = vec![None; slots as usize];
        Self { now: empty.clone(), before: empty }
    }

    fn apply(&mut self, updates: &[Update]) {
        self.before.clone_from(&self.now);
        for &(slot, extent) in updates {
            self.now[slot as usize] = extent;
        }
    }

    fn hot(&self) -> Vec<ExtentNo> {
        set(&self.now).union(&set(&self.before)).copied().collect()
    }
}

fn transactions(slots: u32, most: usize) -> impl Strategy<Value = Vec<Vec<Update>>> {
    let update = (0..slots, prop::option::weighted(0.8, (0u32..5000).prop_map(ExtentNo)));
    prop::collection::vec(prop::collection::vec(update, 0..6), 0..most)
}

/// A table size, and the transactions of several epochs over it.
fn histories() -> impl Strategy<Value = (u32, Vec<Vec<Vec<Update>>>)> {
    prop_oneof![Just(8u32), Just(WINDOW_LEN), Just(WINDOW_LEN + 1), Just(4096), Just(AL_SLOTS_MAX)]
        .prop_flat_map(|slots| (Just(slots), prop::collection::vec(transactions(slots, 150), 1..4)))
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]

    #[test]
    fn a_crash_after_any_transaction_loses_nothing((slots, epochs) in histories(), masks in any::<[u8; 4]>()) {
        let mut area = Area::formatted(&params(DATA_LEN));
        for (i, transactions) in epochs.iter().enumerate() {
            let epoch = i as u64 + 1;
            let (mut writer, mut model) = (LogWriter::new(INSTANCE, epoch, slots), Model::new(slots));
            prop_assert_eq!(recover(zone(&area), INSTANCE, epoch, slots), Ok(vec![]), "a new epoch is empty");
            for (k, updates) in transactions.iter().enumerate() {
                let page = writer.transaction(updates);
                let durable = model.clone();
                model.apply(updates);
                // The scan reads all of the ring: most crash points are tried with a table of few windows only.
                if slots <= 4096 || k % 16 == 0 || k + 1 == transactions.len() {
                    for mask in [masks[k % 4], 0, 0xff] {
                        let mut crashed = area.clone();
                        crashed.write_sectors(&page, mask);
                        let expected = if mask == 0xff { model.hot() } else { durable.hot() };
                        prop_assert_eq!(recover(zone(&crashed), INSTANCE, epoch, slots), Ok(expected));
                    }
                }
                let torn = k + 1 == transactions.len();
                area.write_sectors(&page, if torn { masks[i] } else { 0xff });
            }
        }
    }

    #[test]
    fn rot_is_an_error_or_harmless(
        slots in prop_oneof![Just(8u32), Just(1600)],
        transactions in transactions(1600, 140),
        page in 0..AL_PAGES,
        at in 0u64..4096,
        bit in 0u8..8,
    ) {
        let mut area = Area::formatted(&params(DATA_LEN));
        let (mut writer, mut model) = (LogWriter::new(INSTANCE, 1, slots), Model::new(slots));
        for updates in &transactions {
            let updates: Vec<Update> = updates.iter().map(|&(slot, extent)| (slot % slots, extent)).collect();
            area.write(&writer.transaction(&updates));
            model.apply(&updates);
        }
        area.rot(Layout::for_data_len(DATA_LEN).activity_log_range().start() + page as u64 * 4096 + at, bit);
        let newest = transactions.len() % AL_PAGES;
        match recover(zone(&area), INSTANCE, 1, slots) {
            Ok(hot) => {
                prop_assert_eq!(hot, model.hot());
                prop_assert!(transactions.is_empty() || page != newest, "the newest transaction is relied on");
            }
            Err(e) => prop_assert!(matches!(e, LogError::Damaged { .. }), "{}", e),
        }
    }

    #[test]
    fn arbitrary_bytes_are_no_log(seed in any::<[u8; 32]>(), magic in any::<bool>()) {
        let mut zone: Vec<u8> = seed.iter().cycle().take(AL_PAGES * 4096).copied().collect();
        if magic {
            for sector in zone.chunks_exact_mut(512) {
                sector[..8].copy_from_slice(b"RBA1\x01\0\0\0");
            }
        }
        prop_assert!(recover(&zone, INSTANCE, 1, 8).is_err());
    }
}

/// All 256 subsets of the sectors of the page in flight, at each place of the ring's first and second lap.
#[test]
fn every_torn_page_recovers_to_old_or_new() {
    let mut area = Area::formatted(&params(DATA_LEN));
    let (mut writer, mut model) = (LogWriter::new(INSTANCE, 1, 8), Model::new(8));
    for k in 0..70u32 {
        let updates = [(k % 8, Some(ExtentNo(1000 + k)))];
        let page = writer.transaction(&updates);
        let durable = model.clone();
        model.apply(&updates);
        if [0, 1, 7, 62, 63, 64, 69].contains(&k) {
            for mask in 0..=0xff {
                let mut crashed = area.clone();
                crashed.write_sectors(&page, mask);
                let expected = if mask == 0xff { model.hot() } else { durable.hot() };
                assert_eq!(recover(zone(&crashed), INSTANCE, 1, 8), Ok(expected), "transaction {k}, mask {mask:08b}");
            }
        }
        area.write(&page);
    }
}

#[test]
fn full_transactions_and_the_largest_table_fit() {
    let mut area = Area::formatted(&params(DATA_LEN));
    let mut writer = LogWriter::new(INSTANCE, 1, AL_SLOTS_MAX);
    let all: Vec<Update> = (0..AL_SLOTS_MAX).map(|slot| (slot, Some(ExtentNo(slot * 2)))).collect();
    for updates in all.chunks(UPDATES_MAX) {
        area.write(&writer.transaction(updates));
    }
    let expected: Vec<ExtentNo> = all.iter().filter_map(|&(_, extent)| extent).collect();
    assert_eq!(recover(zone(&area), INSTANCE, 1, AL_SLOTS_MAX), Ok(expected));
}

fn written(transactions: u32) -> (Area, Vec<MetaPage>) {
    let mut area = Area::formatted(&params(DATA_LEN));
    let mut writer = LogWriter::new(INSTANCE, 3, 8);
    let pages: Vec<MetaPage> = (0..transactions).map(|k| writer.transaction(&[(k % 8, Some(ExtentNo(k)))])).collect();
    for page in &pages {
        area.write(page);
    }
    (area, pages)
}

#[test]
fn a_damaged_newest_page_is_told_from_a_torn_one() {
    let (mut area, pages) = written(5);
    area.rot(pages[4].offset + 600, 0);
    assert_eq!(recover(zone(&area), INSTANCE, 3, 8), Err(LogError::Damaged { page: 5, sequence: 5 }));
}

#[test]
fn a_damaged_older_page_matters_only_in_the_needed_run() {
    let (mut area, pages) = written(9);
    area.rot(pages[0].offset, 0);
    assert_eq!(recover(zone(&area), INSTANCE, 3, 8).map(|hot| hot.len()), Ok(9), "one window holds the whole table");
    area.rot(pages[7].offset, 0);
    assert_eq!(recover(zone(&area), INSTANCE, 3, 8), Err(LogError::Damaged { page: 8, sequence: 8 }));
}

#[test]
fn a_log_ahead_of_its_superblock_is_not_believed() {
    let (area, _) = written(5);
    assert_eq!(recover(zone(&area), INSTANCE, 2, 8), Err(LogError::Ahead { page: 1 }));
    assert_eq!(recover(zone(&area), INSTANCE, 4, 8), Ok(vec![]));
}

#[test]
fn pages_of_another_instance_place_or_table_are_refused() {
    let (area, pages) = written(5);
    assert!(recover(zone(&area), DiskInstance(1), 3, 8).is_err());
    let error = recover(zone(&area), INSTANCE, 3, 9).expect_err("the table has 8 slots");
    assert!(matches!(error, LogError::Malformed { .. }), "{error}");
    let mut area = area;
    area.write(&MetaPage { offset: pages[3].offset, ..pages[4].clone() });
    assert_eq!(recover(zone(&area), INSTANCE, 3, 8), Err(LogError::Damaged { page: 4, sequence: 4 }));
    let short = LogError::Length { found: 10, expected: AL_PAGES * 4096 };
    assert_eq!(recover(&zone(&area)[..10], INSTANCE, 3, 8), Err(short));
}

#[test]
fn blank_pages_heal_a_damaged_ring() {
    let (mut area, pages) = written(5);
    area.rot(pages[4].offset, 0);
    for page in blank_pages(INSTANCE) {
        area.write(&page);
    }
    assert_eq!(recover(zone(&area), INSTANCE, 4, 8), Ok(vec![]));
}

/// Found while the fuzz targets were written: the number of the transaction behind it overflowed.
#[test]
fn a_transaction_with_the_last_number_is_refused() {
    let (mut area, _) = written(3);
    let mut page = blank_pages(INSTANCE).last().expect("the ring has pages");
    for sector in page.bytes.chunks_exact_mut(512) {
        sector[32..48].copy_from_slice(&[3u64.to_le_bytes(), u64::MAX.to_le_bytes()].concat());
        let crc = crc32fast::hash(&sector[..508]);
        sector[508..].copy_from_slice(&crc.to_le_bytes());
    }
    area.write(&page);
    let recovered = recover(zone(&area), INSTANCE, 3, 8);
    assert!(matches!(recovered, Err(LogError::Malformed { page: 63, .. })), "{recovered:?}");
}
