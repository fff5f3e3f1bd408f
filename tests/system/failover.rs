//! The loss of a primary, its orderly end, the change of roles, and two primaries apart.

use std::time::{Duration, Instant};

use crate::ledger::{BLOCK, Ledger};
use crate::node::Node;
use crate::pair::{MIB, Pair, Setup};
use crate::raw_nbd::FUA;
use crate::tools::{LONG, SHORT, wait_for};

const WRITERS: u64 = 4;
const BLOCKS: usize = 64;
/// The ledger lies in the first MiB: four extents of the activity log, which cover so many bytes.
const COVERED: u64 = MIB;

/// Promotes with the operator's word that the peer is off, as soon as its heartbeats have faded.
#[track_caller]
pub(crate) fn take_over(node: &Node, args: &[&str]) -> Duration {
    let began = Instant::now();
    wait_for(&format!("the promotion of {}", node.name), SHORT, || {
        let ran = node.cli(args);
        assert!(matches!(ran.code, Some(0 | 1)), "{ran:?}");
        (ran.code == Some(0)).then_some(())
    });
    began.elapsed()
}

/// Ends and restarts the primary in order. The dirty bitmap that the first resync has emptied is written with delay; after an
/// orderly end it is on the disk for certain.
#[track_caller]
fn settle(pair: &mut Pair) {
    assert_eq!(pair.alpha.terminate(Duration::from_secs(14)), Some(0), "{}", pair.alpha.log_end());
    pair.alpha.start();
    pair.alpha.wait("the primary to be primary again", SHORT, |v| v["role"] == "primary");
    pair.wait_in_sync();
}

fn resynced(node: &Node) -> u64 {
    node.status()["resynced_bytes"].as_u64().expect("a number")
}

#[test]
fn the_loss_of_the_primary_loses_no_acknowledged_write() {
    let mut pair = Pair::up(&Setup::default());
    settle(&mut pair);
    let before = resynced(&pair.beta);
    let ledger = Ledger::start(&[pair.alpha.place(), pair.beta.place()], WRITERS, BLOCKS);
    ledger.wait_more(500, SHORT);
    pair.alpha.kill();
    let refused = pair.beta.cli(&["promote"]).exits(1);
    assert!(refused.contains("peer-unseen") || refused.contains("peer-is-primary"), "{refused}");
    println!("promoted after {:?}", take_over(&pair.beta, &["promote", "--peer-is-down"]));
    ledger.wait_more(500, SHORT);
    // The old primary comes back as what it now is, by itself.
    pair.alpha.start();
    let returned = pair.alpha.wait("the old primary to be a good copy", LONG, crate::pair::in_sync);
    assert_eq!(returned["role"], "secondary");
    ledger.wait_more(100, SHORT);
    let book = ledger.stop();
    println!("{} writes acknowledged, longest stall {:?}", book.acked, book.gap);
    book.audit(&mut pair.beta.client());
    let copied = resynced(&pair.beta) - before;
    println!("{copied} bytes were copied to the old primary");
    assert!((1..=COVERED).contains(&copied), "what both activity logs cover is copied again, not {copied} bytes");
    pair.assert_identical();
}

#[test]
fn a_primary_that_was_killed_resumes_with_a_small_resync() {
    let mut pair = Pair::up(&Setup::default());
    settle(&mut pair);
    let ledger = Ledger::start(&[pair.alpha.place()], WRITERS, BLOCKS);
    ledger.wait_more(500, SHORT);
    pair.alpha.kill();
    pair.alpha.start();
    pair.alpha.wait("the primary to be primary again", SHORT, |v| v["role"] == "primary");
    ledger.wait_more(200, SHORT);
    pair.wait_in_sync();
    let book = ledger.stop();
    book.audit(&mut pair.alpha.client());
    let copied = resynced(&pair.alpha);
    println!("{copied} bytes were copied after the kill");
    assert!(copied <= COVERED, "more than the activity log covers was copied: {copied} bytes");
    pair.assert_identical();
}

#[test]
fn an_orderly_end_under_load_needs_no_resync() {
    let mut pair = Pair::up(&Setup::default());
    let ledger = Ledger::start(&[pair.alpha.place()], WRITERS, BLOCKS);
    ledger.wait_more(300, SHORT);
    let began = Instant::now();
    assert_eq!(pair.alpha.terminate(Duration::from_secs(14)), Some(0), "{}", pair.alpha.log_end());
    println!("ended in order after {:?}", began.elapsed());
    assert!(pair.alpha.log_text().contains("everything is flushed and recorded"), "{}", pair.alpha.log_end());
    pair.alpha.start();
    pair.alpha.wait("the primary to be primary again", SHORT, |v| v["role"] == "primary");
    ledger.wait_more(300, SHORT);
    pair.wait_in_sync();
    for node in [&pair.alpha, &pair.beta] {
        let log = node.log_text();
        let after = log.rsplit("repblk started").next().expect("at least one part");
        assert!(node.name == "beta" || !after.contains("resync started"), "{}: {after}", node.name);
    }
    assert_eq!(pair.alpha.status()["resynced_bytes"], 0, "nothing is copied after an orderly end");
    let book = ledger.stop();
    book.audit(&mut pair.alpha.client());
    // The secondary, too.
    assert_eq!(pair.beta.terminate(Duration::from_secs(14)), Some(0), "{}", pair.beta.log_end());
    pair.beta.start();
    pair.assert_identical();
    assert_eq!(pair.alpha.status()["resynced_bytes"], 0, "nothing was written while the secondary was away");
}

#[test]
fn a_switchover_under_load_is_seen_by_no_client() {
    let pair = Pair::up(&Setup::default());
    let ledger = Ledger::start(&[pair.alpha.place(), pair.beta.place()], WRITERS, BLOCKS);
    ledger.wait_more(300, SHORT);
    for (from, to) in [(&pair.alpha, &pair.beta), (&pair.beta, &pair.alpha)] {
        let began = Instant::now();
        from.cli(&["switchover"]).ok();
        println!("switchover to {} took {:?}", to.name, began.elapsed());
        assert_eq!(to.status()["role"], "primary");
        assert_eq!(from.status()["role"], "secondary");
        ledger.wait_more(300, SHORT);
        pair.wait_in_sync();
    }
    let book = ledger.stop();
    println!("{} writes acknowledged, longest gap {:?}, {} reconnections", book.acked, book.gap, book.reconnects);
    assert!(book.gap < Duration::from_secs(5), "a client waited {:?}", book.gap);
    book.audit(&mut pair.alpha.client());
    for node in [&pair.alpha, &pair.beta] {
        assert_eq!(node.status()["counters"]["errors"], 0);
    }
    pair.assert_identical();
}

#[test]
fn two_primaries_apart_are_detected_and_nothing_is_overwritten() {
    let mut pair = Pair::up(&Setup::default());
    let block = |byte: u8| vec![byte; BLOCK];
    assert_eq!(pair.alpha.client().write(0, &block(1), FUA).expect("writes"), 0);
    pair.alpha.kill();
    take_over(&pair.beta, &["promote", "--peer-is-down"]);
    assert_eq!(pair.beta.client().write(MIB, &block(2), FUA).expect("writes"), 0);
    pair.beta.kill();
    pair.alpha.start();
    take_over(&pair.alpha, &["promote", "--peer-is-down"]);
    assert_eq!(pair.alpha.client().write(2 * MIB, &block(3), FUA).expect("writes"), 0);
    pair.beta.start();
    for node in [&pair.alpha, &pair.beta] {
        node.wait_log("split brain", SHORT);
    }
    let state = pair.alpha.status();
    assert_eq!(state["role"], "primary", "who serves goes on");
    assert_ne!(state["peers"][0]["replication"], "established");
    assert_eq!(pair.alpha.client().write(3 * MIB, &block(4), FUA).expect("writes"), 0);
    let on = |node: &Node, at: u64| node.read_device(&node.device, at, 1)[0];
    assert_eq!([on(&pair.alpha, MIB), on(&pair.alpha, 2 * MIB)], [0, 3], "nothing came over");
    assert_eq!([on(&pair.beta, MIB), on(&pair.beta, 2 * MIB)], [2, 0], "nothing came over");
    // Nobody promotes the loser by accident, and the winner cannot be given up while it serves.
    let refused = pair.beta.cli(&["promote"]).exits(1);
    assert!(refused.contains("refused by the rule"), "{refused}");
    let refused = pair.alpha.cli(&["resync", "--discard-local"]).exits(1);
    assert!(refused.contains("already-primary"), "{refused}");
    // What only the loser has is saved before it is overwritten, and kept when that cannot be done.
    let saved = pair.beta.device.with_extension("saved");
    std::fs::write(&saved, "in the way").expect("the test's folder can be written");
    let failed = pair.beta.cli(&["resync", "--discard-local"]).exits(5);
    assert!(failed.contains("nothing was given up") && failed.contains("--unsaved"), "{failed}");
    assert_eq!(on(&pair.beta, MIB), 2, "nothing was overwritten");
    std::fs::remove_file(&saved).expect("it is there");
    pair.beta.cli(&["resync", "--discard-local"]).ok();
    pair.wait_in_sync();
    assert_saved(&saved, MIB, 2);
    assert_eq!(
        [on(&pair.beta, 0), on(&pair.beta, MIB), on(&pair.beta, 2 * MIB), on(&pair.beta, 3 * MIB)],
        [1, 0, 3, 4]
    );
    pair.assert_identical();
}

/// The one image in `directory` holds `byte` in the block at `at`, which its list of ranges names.
#[track_caller]
fn assert_saved(directory: &std::path::Path, at: u64, byte: u8) {
    let files = std::fs::read_dir(directory).expect("it was made").map(|entry| entry.expect("can be read").path());
    let image = files.into_iter().find(|path| path.extension().is_some_and(|end| end == "img")).expect("an image");
    let ranges = std::fs::read_to_string(image.with_extension("ranges")).expect("lies beside the image");
    let listed = ranges.lines().any(|line| {
        let (start, len) = line.split_once(' ').expect("two numbers");
        let (start, len): (u64, u64) = (start.parse().expect("a number"), len.parse().expect("a number"));
        (start..start + len).contains(&at)
    });
    assert!(listed, "{at} is not in {ranges}");
    let mut block = [0; BLOCK];
    let file = std::fs::File::open(&image).expect("can be read");
    std::os::unix::fs::FileExt::read_exact_at(&file, &mut block, at).expect("is as long as the volume");
    assert_eq!(block, [byte; BLOCK]);
    let left = std::fs::read_dir(directory).expect("is there").count();
    assert_eq!(left, 2, "an image and its list, and nothing unfinished");
}

#[test]
fn a_large_volume_is_served_again_soon_after_a_kill() {
    let setup = Setup { size: 100 << 30, ..Setup::default() };
    let mut pair = Pair::fresh(&setup);
    pair.alpha.cli(&["promote", "--force"]).ok();
    // The first resync of so much is not what this is about.
    pair.alpha.cli(&["pause"]).ok();
    let ledger = Ledger::start(&[pair.alpha.place()], WRITERS, BLOCKS);
    ledger.wait_more(300, SHORT);
    let peak = pair.alpha.memory_peak_kib();
    let began = Instant::now();
    pair.alpha.kill();
    pair.alpha.start();
    // Each writer may have had one reply in its socket when the daemon died; one more than that is of the new one.
    ledger.wait_more(WRITERS + 1, SHORT);
    let took = began.elapsed();
    println!("100 GiB: served again {took:?} after the kill; resident at most {peak} KiB");
    assert!(took < Duration::from_secs(10), "it took {took:?}");
    assert!(peak < (96 << 10) + 100 * 32, "{peak} KiB resident are above the bound");
    let book = ledger.stop();
    book.audit(&mut pair.alpha.client());
}
