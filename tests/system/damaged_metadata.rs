//! Every zone of the metadata damaged after every kind of crash: no acknowledged write is lost for it, and the copies end
//! identical. What is damaged costs copying, never data.

use std::fs::File;
use std::os::unix::fs::FileExt;

use repblk::meta::{Layout, PAGE_LEN};
use repblk::units::{ByteRange, PeerNo};

use crate::failover::take_over;
use crate::ledger::{Book, Ledger};
use crate::node::Node;
use crate::pair::{Pair, Setup};
use crate::raw_nbd::Raw;
use crate::tools::{LONG, SHORT};

const WRITERS: u64 = 3;
const BLOCKS: usize = 48;
/// Neither zeros nor a valid anything.
const ROT: u8 = 0xbd;

/// What is overwritten.
#[derive(Clone, Copy, Debug)]
enum Zone {
    Superblock(usize),
    ActivityLog,
    /// Each third page of the activity log's ring.
    SomeOfActivityLog,
    Bitmap,
    AllButSuperblocks,
}

const ZONES: [Zone; 6] = [
    Zone::Superblock(0),
    Zone::Superblock(1),
    Zone::ActivityLog,
    Zone::SomeOfActivityLog,
    Zone::Bitmap,
    Zone::AllButSuperblocks,
];

/// A node's metadata area, which can be found only while its daemon runs.
struct Area {
    file: File,
    offset: u64,
    layout: Layout,
}

impl Area {
    #[track_caller]
    fn of(node: &Node, external: bool) -> Self {
        let data_len = node.data_len();
        let (path, offset) =
            if external { (node.device.with_extension("meta"), 0) } else { (node.device.clone(), data_len) };
        let file = File::options().write(true).open(path).expect("the test's files can be written");
        Self { file, offset, layout: Layout::for_data_len(data_len) }
    }

    fn damage(&self, zone: Zone) {
        let rot = |range: ByteRange| {
            let bytes = vec![ROT; usize::try_from(range.len()).expect("small")];
            self.file.write_all_at(&bytes, self.offset + range.start()).expect("writes");
        };
        let page = |start: u64| ByteRange::new(start, u64::try_from(PAGE_LEN).expect("small"));
        let log = self.layout.activity_log_range();
        match zone {
            Zone::Superblock(copy) => rot(page(Layout::superblock_offset(copy))),
            Zone::ActivityLog => rot(log),
            Zone::SomeOfActivityLog => {
                for start in (log.start()..log.end()).step_by(3 * PAGE_LEN) {
                    rot(page(start));
                }
            }
            Zone::Bitmap => rot(self.layout.bitmap_range(PeerNo(0))),
            Zone::AllButSuperblocks => {
                rot(log);
                rot(self.layout.bitmap_range(PeerNo(0)));
            }
        }
    }
}

/// Each zone, with metadata inside the device and beside it in turn.
fn each_zone(case: impl Fn(&mut Pair, Zone, bool) -> Book) {
    for (number, zone) in ZONES.into_iter().enumerate() {
        let external = number.is_multiple_of(2);
        let mut pair = Pair::up(&Setup { external, ..Setup::default() });
        let book = case(&mut pair, zone, external);
        pair.wait_in_sync();
        let primary = [&pair.alpha, &pair.beta].into_iter().find(|node| node.status()["role"] == "primary");
        let mut client: Raw = primary.unwrap_or_else(|| panic!("{zone:?}: nobody is primary")).client();
        book.audit(&mut client);
        pair.assert_identical();
        println!("{zone:?}, external {external}: {} writes acknowledged, longest stall {:?}", book.acked, book.gap);
    }
}

fn load(pair: &Pair) -> Ledger {
    let ledger = Ledger::start(&[pair.alpha.place(), pair.beta.place()], WRITERS, BLOCKS);
    ledger.wait_more(200, SHORT);
    ledger
}

#[test]
fn of_a_primary_that_was_killed() {
    each_zone(|pair, zone, external| {
        let area = Area::of(&pair.alpha, external);
        let ledger = load(pair);
        pair.alpha.kill();
        area.damage(zone);
        pair.alpha.start();
        ledger.wait_more(200, LONG);
        ledger.stop()
    });
}

#[test]
fn of_a_secondary_that_was_killed() {
    each_zone(|pair, zone, external| {
        let area = Area::of(&pair.beta, external);
        let ledger = load(pair);
        pair.beta.kill();
        area.damage(zone);
        pair.beta.start();
        ledger.wait_more(200, LONG);
        ledger.stop()
    });
}

#[test]
fn of_a_primary_that_had_gone_on_alone() {
    each_zone(|pair, zone, external| {
        let area = Area::of(&pair.alpha, external);
        let ledger = load(pair);
        pair.beta.kill();
        pair.alpha.wait("going on alone", SHORT, |v| v["peers"][0]["connection"] != "connected");
        ledger.wait_more(200, LONG);
        pair.alpha.kill();
        area.damage(zone);
        // The copy that lacks what was acknowledged alone is there first.
        pair.beta.start();
        pair.alpha.start();
        ledger.wait_more(100, LONG);
        ledger.stop()
    });
}

#[test]
fn of_a_node_that_had_taken_over() {
    each_zone(|pair, zone, external| {
        let area = Area::of(&pair.beta, external);
        let ledger = load(pair);
        pair.alpha.kill();
        take_over(&pair.beta, &["promote", "--peer-is-down"]);
        ledger.wait_more(200, LONG);
        pair.beta.kill();
        area.damage(zone);
        // The former primary lacks what was acknowledged since; it still believes that it is the last primary.
        pair.beta.start();
        pair.alpha.start();
        ledger.wait_more(100, LONG);
        ledger.stop()
    });
}
