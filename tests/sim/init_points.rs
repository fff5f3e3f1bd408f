//! Crash points of `repblk init`: it writes page after page and flushes once, so a power loss leaves any part of the sectors that
//! were written so far, in any order. What it leaves must be what was there before, refused, or a new copy that keeps its word.

use std::collections::BTreeSet;

use repblk::meta::{
    DeviceFacts, FormatParams, Layout, LogWriter, MetaPage, PAGE_LEN, Page, Recovered, Superblock, Unrecovered, format,
};
use repblk::units::{BLOCK_SIZE, ClusterId, DiskInstance, ExtentNo, VolumeId};

use crate::media::Media;
use crate::rng::Rng;
use crate::stamp::SECTOR;

const DATA_LEN: u64 = 1 << 20;
const EXTENT_LEN: u32 = 64 << 10;
const OLD: DiskInstance = DiskInstance(3);
const NEW: DiskInstance = DiskInstance(5);

type Area = Media<[u8; SECTOR]>;

fn params(instance: DiskInstance) -> FormatParams {
    FormatParams {
        cluster: ClusterId(7),
        cluster_name: "sim".to_owned(),
        volume: VolumeId(9),
        volume_name: "v".to_owned(),
        instance,
        data_len: DATA_LEN,
        extent_len: EXTENT_LEN,
        al_slots: 8,
    }
}

fn at(offset: u64) -> usize {
    usize::try_from(offset).expect("small") / SECTOR
}

fn write(area: &mut Area, page: &MetaPage) {
    for (i, sector) in page.bytes.chunks(SECTOR).enumerate() {
        area.write(at(page.offset) + i, sector.try_into().expect("a sector"));
    }
}

fn page(area: &Area, offset: u64) -> Box<Page> {
    area.view()[at(offset)..][..PAGE_LEN / SECTOR].concat().into_boxed_slice().try_into().expect("a page")
}

fn read(area: &Area) -> Result<Unrecovered, String> {
    let facts = DeviceFacts { data_len: DATA_LEN, metadata_len: Layout::for_data_len(DATA_LEN).total_len() };
    let [a, b] = [0, 1].map(|copy| page(area, Layout::superblock_offset(copy)));
    Unrecovered::read(&a, &b, facts).map_err(|e| e.to_string())
}

fn recover(area: &Area) -> Recovered {
    let unrecovered = read(area).expect("the caller has looked");
    let bytes = |range: repblk::units::ByteRange| area.view()[at(range.start())..][..at(range.len())].concat();
    let log = unrecovered.activity_log_range().map(bytes).unwrap_or_default();
    let bitmaps = unrecovered.bitmap_ranges().map(|range| range.map(bytes));
    unrecovered.recover(&log, bitmaps, 1)
}

/// A first life on `area`: attached, a peer met, extents made hot; then its power goes, in the middle of a transaction of
/// which every other sector is written. Gives what was hot and relied on.
fn live_and_die(area: &mut Area) -> Vec<ExtentNo> {
    let mut superblock = Superblock { clean: false, ..recover(area).superblock };
    superblock.al_epoch += 1;
    superblock.peers[0].name = "beta".to_owned();
    for _ in 0..2 {
        superblock.sequence += 1;
        write(area, &superblock.encode());
        area.flushed(area.mark());
    }
    let mut log = LogWriter::new(superblock.instance, superblock.al_epoch, superblock.al_slots);
    write(area, &log.transaction(&[(0, Some(ExtentNo(4))), (1, Some(ExtentNo(9)))]));
    area.flushed(area.mark());
    write(area, &log.transaction(&[(0, Some(ExtentNo(11)))]));
    let mut odd = false;
    area.power_cut(&mut |versions| {
        odd = !odd;
        if odd { versions } else { 0 }
    });
    vec![ExtentNo(4), ExtentNo(9)]
}

/// An area that an older copy was attached on and used.
fn used() -> Area {
    let mut area = Media::new(at(Layout::for_data_len(DATA_LEN).total_len()), [0; SECTOR]);
    for page in format(&params(OLD)) {
        write(&mut area, &page);
    }
    area.flushed(area.mark());
    live_and_die(&mut area);
    area
}

fn check(area: &Area, before: Option<&Superblock>, what: &str) -> &'static str {
    let Ok(found) = read(area) else { return "refused" };
    let mut area = area.clone();
    if found.superblock.instance == OLD {
        assert_eq!(Some(&found.superblock), before, "{what}: what is there is what was there");
    } else {
        assert!(found.superblock.instance == NEW && found.superblock.clean, "{what}: {:?}", found.superblock);
    }
    let fate = if found.superblock.instance == OLD { "old" } else { "new" };
    for hot in if fate == "old" { vec![ExtentNo(4), ExtentNo(9)] } else { live_and_die(&mut area) } {
        let recovered = recover(&area);
        let bitmap = recovered.bitmaps[0].as_ref().expect("a peer was met");
        let blocks = u64::from(EXTENT_LEN) / BLOCK_SIZE;
        let first = u64::from(hot.0) * blocks;
        assert!((first..first + blocks).all(|b| bitmap.is_set(b)), "{what}: extent {hot} was hot and is forgotten");
    }
    fate
}

#[test]
fn crash_points_of_init() {
    let sectors = at(Layout::for_data_len(DATA_LEN).total_len());
    let mut rng = Rng::new(1);
    let mut noise = Media::new(sectors, [0; SECTOR]);
    for sector in 0..sectors {
        noise.rot(sector, std::array::from_fn(|_| rng.next().to_le_bytes()[0]));
    }
    let pages = format(&params(NEW));
    let mut tried = 0;
    for (name, before) in [("zeros", Media::new(sectors, [0; SECTOR])), ("noise", noise), ("an older copy", used())] {
        let old = read(&before).ok().map(|u| u.superblock);
        let mut fates = BTreeSet::new();
        let mut area = before;
        for written in 0..=pages.len() {
            let n = area.unflushed();
            let singles = n.saturating_sub(24)..n;
            let seeds = 0..12;
            let mut leave = |what: String, keep: &mut dyn FnMut(usize) -> bool| {
                let mut left = area.clone();
                let mut i = 0;
                left.power_cut(&mut |versions| {
                    i += 1;
                    if keep(i - 1) { versions } else { 0 }
                });
                fates.insert(check(&left, old.as_ref(), &format!("over {name}, {written} pages written, {what}")));
                tried += 1;
            };
            leave("nothing kept".into(), &mut |_| false);
            leave("everything kept".into(), &mut |_| true);
            leave("even sectors kept".into(), &mut |i| i % 2 == 0);
            for one in singles {
                leave(format!("only {one} kept"), &mut |i| i == one);
                leave(format!("all but {one} kept"), &mut |i| i != one);
            }
            // Whole pages, in any choice: devices write back in units of a page or more.
            for seed in seeds {
                let mut rng = Rng::new(seed);
                let whole: Vec<bool> = (0..sectors / 8 + 1).map(|_| rng.coin()).collect();
                leave(format!("pages by seed {seed} kept"), &mut |i| whole[i / 8]);
            }
            if let Some(page) = pages.get(written) {
                write(&mut area, page);
            }
        }
        area.flushed(area.mark());
        assert_eq!(check(&area, None, "finished"), "new");
        assert!(fates.contains("new") && fates.contains("refused"), "over {name}: {fates:?}");
        assert_eq!(fates.contains("old"), old.is_some(), "over {name}: {fates:?}");
    }
    println!("init: {tried} crashes");
}
