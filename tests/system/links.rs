//! What a bad link or a slow peer does, and what is copied when it is good again.

use std::time::{Duration, Instant};

use crate::clients::fio;
use crate::ledger::{BLOCK, Ledger};
use crate::pair::{MIB, PEER_TIMEOUT, Pair, Setup, in_sync};
use crate::proxy::Way;
use crate::tools::{LONG, Running, SHORT, signal};

const WRITERS: u64 = 4;
const BLOCKS: usize = 64;
/// Bytes that a ledger of this size can touch.
const LEDGER_AREA: u64 = WRITERS * BLOCKS as u64 * BLOCK as u64;
/// How much longer than its bound something may take on a machine with other work.
const SLACK: Duration = Duration::from_secs(2);

#[test]
fn after_a_cut_only_what_was_written_meanwhile_is_copied() {
    let pair = Pair::up(&Setup::default());
    let before = pair.alpha.status();
    assert!(before["resynced_bytes"].as_u64() >= Some(pair.alpha.data_len()), "the first resync was a full one");
    let mut command = std::process::Command::new("fio");
    command.args(fio(&pair.alpha.unix_uri(), 2, "4m", &["--rate_iops=250"]));
    let load = Running::start(command);
    let writes = |v: &serde_json::Value| v["counters"]["writes"].as_u64().expect("a number");
    let start = pair.alpha.wait("load", SHORT, |v| writes(v) > 100);
    pair.proxy.cut();
    let alone = pair.alpha.wait("the loss of the link", SHORT, |v| v["peers"][0]["connection"] != "connected");
    pair.alpha.wait("writes without the peer", SHORT, |v| writes(v) > writes(&alone) + 200);
    assert!(writes(&start) < writes(&alone) + 200);
    pair.proxy.mend();
    pair.alpha.wait("the resync to end", LONG, in_sync);
    load.finish(LONG).ok();
    let after = pair.alpha.status();
    let copied =
        after["resynced_bytes"].as_u64().expect("a number") - before["resynced_bytes"].as_u64().expect("a number");
    println!("{copied} bytes were copied after the cut");
    assert!(copied >= 200 * 4096 / 2, "what was written alone is copied, not only {copied} bytes");
    assert!(copied <= 8 * MIB, "no more than fio touched is copied, not {copied} bytes");
    assert_eq!(after["counters"]["errors"], 0, "no client saw an error");
    pair.assert_identical();
}

#[test]
fn a_peer_that_hangs_is_dropped_in_time_and_comes_back() {
    let pair = Pair::up(&Setup::default());
    let before = pair.alpha.status();
    let ledger = Ledger::start(&[pair.alpha.place()], WRITERS, BLOCKS);
    ledger.wait_more(200, SHORT);
    signal(pair.beta.pid(), "STOP");
    let stopped = Instant::now();
    loop {
        let asked = Instant::now();
        let status = pair.alpha.status();
        assert!(asked.elapsed() < Duration::from_secs(2), "status took {:?} while the peer hangs", asked.elapsed());
        if status["peers"][0]["connection"] != "connected" {
            break;
        }
        assert!(stopped.elapsed() < PEER_TIMEOUT + SLACK, "the peer is still connected: {status:#}");
    }
    println!("the peer was dropped after {:?}", stopped.elapsed());
    ledger.wait_more(200, PEER_TIMEOUT + SLACK);
    let asked = Instant::now();
    let refused = pair.alpha.cli(&["switchover"]).exits(1);
    assert!(refused.contains("not-connected"), "{refused}");
    assert!(asked.elapsed() < Duration::from_secs(2), "a refusal took {:?}", asked.elapsed());
    signal(pair.beta.pid(), "CONT");
    pair.wait_in_sync();
    ledger.wait_more(100, SHORT);
    let book = ledger.stop();
    println!("longest stall of a write: {:?}", book.gap);
    assert!(book.gap < PEER_TIMEOUT + SLACK, "a write waited {:?}", book.gap);
    assert_eq!(book.reconnects, 0, "no client was dropped");
    book.audit(&mut pair.alpha.client());
    let copied = pair.alpha.status()["resynced_bytes"].as_u64().expect("a number")
        - before["resynced_bytes"].as_u64().expect("a number");
    assert!((1..=LEDGER_AREA).contains(&copied), "{copied} bytes were copied");
    pair.assert_identical();
}

#[test]
fn a_link_that_carries_nothing_is_dropped_in_time() {
    let pair = Pair::up(&Setup::default());
    let ledger = Ledger::start(&[pair.alpha.place()], WRITERS, BLOCKS);
    ledger.wait_more(100, SHORT);
    pair.proxy.stall();
    ledger.wait_more(400, PEER_TIMEOUT + SLACK);
    // The other side, too, finds out that nobody speaks.
    pair.beta.wait("the loss of the link", PEER_TIMEOUT + SLACK, |v| v["peers"][0]["connection"] != "connected");
    pair.proxy.mend();
    pair.proxy.reset();
    pair.wait_in_sync();
    let book = ledger.stop();
    assert!(book.gap < PEER_TIMEOUT + SLACK, "a write waited {:?}", book.gap);
    book.audit(&mut pair.alpha.client());
    pair.assert_identical();
}

#[test]
fn a_flipped_bit_costs_the_link_and_nothing_else() {
    let pair = Pair::up(&Setup::default());
    let ledger = Ledger::start(&[pair.alpha.place()], WRITERS, BLOCKS);
    ledger.wait_more(100, SHORT);
    // A chunk that long holds the payload of a write; in the other direction there are only headers.
    for (way, len_min, notices) in [(Way::Forth, 4096, &pair.beta), (Way::Back, 72, &pair.alpha)] {
        let damages = || {
            let log = notices.log_text();
            // The second is what a damaged magic looks like.
            log.matches("damaged in transit").count() + log.matches("bytes are not a frame").count()
        };
        let (before, links) = (damages(), pair.alpha.log_text().matches("link established").count());
        pair.proxy.damage(way, len_min);
        crate::tools::wait_for("the damage to be seen", SHORT, || (damages() > before).then_some(()));
        assert!(pair.proxy.has_damaged());
        crate::tools::wait_for("a new link", SHORT, || {
            (pair.alpha.log_text().matches("link established").count() > links).then_some(())
        });
        pair.wait_in_sync();
        ledger.wait_more(100, SHORT);
    }
    let book = ledger.stop();
    assert_eq!(book.reconnects, 0, "no client was dropped");
    book.audit(&mut pair.alpha.client());
    pair.assert_identical();
}

#[test]
fn a_resync_survives_cuts_and_the_death_of_either_side() {
    let setup = Setup { volume_keys: "resync_rate_max_mib_s = 16\nresync_rate_min_mib_s = 16", ..Setup::default() };
    let mut pair = Pair::fresh(&setup);
    pair.alpha.cli(&["promote", "--force"]).ok();
    let ledger = Ledger::start(&[pair.alpha.place()], WRITERS, BLOCKS);
    let running = |at_least: u64| {
        move |v: &serde_json::Value| v["resync"]["bytes_done"].as_u64().is_some_and(|done| done >= at_least)
    };
    pair.alpha.wait("the resync to run", SHORT, running(2 * MIB));
    pair.proxy.reset();
    pair.alpha.wait("the resync to go on", SHORT, running(2 * MIB));
    let left = |v: &serde_json::Value| v["peers"][0]["out_of_sync_bytes"].as_u64().expect("a number");
    assert!(left(&pair.alpha.status()) < setup.size - 2 * MIB, "what was copied before the cut is not copied again");
    // The target is no copy to serve from before it is whole.
    let refused = pair.beta.cli(&["promote", "--force"]).exits(1);
    assert!(refused.contains("peer-is-primary") || refused.contains("inconsistent"), "{refused}");
    pair.beta.kill();
    pair.beta.start();
    pair.alpha.wait("the resync to go on", SHORT, running(MIB));
    pair.alpha.cli(&["pause"]).ok();
    let paused = pair.alpha.wait("the pause", SHORT, |v| v["peers"][0]["replication"] == "paused");
    pair.alpha.kill();
    pair.alpha.start();
    pair.alpha.wait("the primary to be primary again", LONG, |v| v["role"] == "primary");
    assert!(left(&paused) > 0, "the resync was not over before the primary was killed");
    pair.alpha.cli(&["resume"]).ok();
    ledger.wait_more(100, SHORT);
    pair.wait_in_sync();
    let book = ledger.stop();
    book.audit(&mut pair.alpha.client());
    pair.assert_identical();
}
