//! Failover without an operator: two daemons and a real etcd, with the times of the example but for what keeps a young pair from
//! failing over at all.

use std::time::{Duration, Instant};

use serde_json::Value;

use crate::etcd::EtcdServer;
use crate::ledger::{BLOCK, Ledger};
use crate::node::Node;
use crate::pair::{Pair, Setup};
use crate::raw_nbd::FUA;
use crate::tools::{LONG, SHORT, signal, wait_for};

const WRITERS: u64 = 4;
const BLOCKS: usize = 64;
/// From the loss of the primary's host to the first write that the survivor acknowledges, as the documentation says.
const TAKE_OVER_TIME: Duration = Duration::from_secs(7);
/// The lease of the default configuration.
const LEASE: Duration = Duration::from_secs(5);

fn with_etcd(etcd: &EtcdServer) -> Setup {
    let arbiter = etcd.lines() + "settled_ms = 500\ndwell_ms = 0\n";
    Setup { volume_keys: "peer_timeout_ms = 1000\nping_interval_ms = 250", arbiter, ..Setup::default() }
}

/// A pair in sync with `alpha` primary, and counted so in the record for long enough to fail over.
#[track_caller]
fn up(etcd: &EtcdServer) -> Pair {
    let pair = Pair::up(&with_etcd(etcd));
    wait_recorded(etcd, 2);
    wait_ready(&pair.beta);
    pair
}

/// The record as it is at the arbiter.
fn record(etcd: &EtcdServer) -> Value {
    let text = etcd.ctl(&["get", "--print-value-only", "/repblk/test/mes"]);
    serde_json::from_str(&text).unwrap_or(Value::Null)
}

/// Waits until the record counts so many copies in sync.
#[track_caller]
fn wait_recorded(etcd: &EtcdServer, copies: usize) {
    wait_for(&format!("{copies} copies in the record"), SHORT, || {
        record(etcd)["in_sync"].as_array().is_some_and(|in_sync| in_sync.len() == copies).then_some(())
    });
}

/// Waits until the standby would take over.
#[track_caller]
fn wait_ready(node: &Node) {
    wait_for("a standby that is ready", SHORT, || {
        let plan = node.cli(&["plan", "--json"]).ok();
        let lost = plan.lines().map(|line| serde_json::from_str::<Value>(line).expect("a JSON object on each line"));
        let lost = lost.into_iter().find(|entry| entry["question"] == "peer-lost").expect("it is always answered");
        (lost["verdict"] == "take-over").then_some(())
    });
}

/// Waits for a text in `repblk history`: a standby reads the record now and then.
#[track_caller]
fn wait_history(node: &Node, text: &str) {
    wait_for(&format!("{text:?} in the history of {}", node.name), SHORT, || {
        node.cli(&["history"]).ok().contains(text).then_some(())
    });
}

fn is_primary(volume: &Value) -> bool {
    volume["role"] == "primary"
}

#[test]
fn the_standby_takes_over_when_the_primary_is_killed_and_nothing_acknowledged_is_lost() {
    let etcd = EtcdServer::with_tls(None);
    let mut pair = up(&etcd);
    let ledger = Ledger::start(&[pair.alpha.place(), pair.beta.place()], WRITERS, BLOCKS);
    ledger.wait_more(500, SHORT);
    let before = record(&etcd)["term"].as_u64().expect("a term");
    let began = Instant::now();
    pair.alpha.kill();
    // Each writer may have had one reply in its socket.
    ledger.wait_more(WRITERS + 1, TAKE_OVER_TIME + LEASE);
    let took = began.elapsed();
    println!("first write acknowledged {took:?} after the kill");
    assert!(took < TAKE_OVER_TIME, "it took {took:?}");
    assert!(is_primary(&pair.beta.status()));
    let taken = record(&etcd);
    assert_eq!(taken["writer_name"], "beta", "{taken:#}");
    assert!(taken["term"].as_u64() > Some(before), "{taken:#}");
    // The old primary comes back as what it now is, by itself.
    pair.alpha.start();
    let returned = pair.alpha.wait("the old primary to be a good copy", LONG, crate::pair::in_sync);
    assert_eq!(returned["role"], "secondary");
    wait_recorded(&etcd, 2);
    ledger.wait_more(100, SHORT);
    let book = ledger.stop();
    println!("{} writes acknowledged, longest stall {:?}", book.acked, book.gap);
    book.audit(&mut pair.beta.client());
    pair.assert_identical();
    for node in [&pair.alpha, &pair.beta] {
        wait_history(node, "automatic: beta became primary at term");
        wait_history(node, "by take-over-lease-over");
    }
    assert!(pair.beta.log_text().contains("take-over-lease-over"), "the rule is in the log, with its evidence");
}

#[test]
fn a_primary_that_stood_still_acknowledges_nothing_of_its_old_term() {
    let etcd = EtcdServer::start();
    let pair = up(&etcd);
    let ledger = Ledger::start(&[pair.alpha.place()], WRITERS, BLOCKS);
    ledger.wait_more(200, SHORT);
    let mut reader = pair.alpha.client();
    signal(pair.alpha.pid(), "STOP");
    let asleep = ledger.acked();
    // Sent to a node that stands still, and lies in its socket when it wakes.
    reader.request(0, 0, 0, 4096).expect("the socket takes it");
    pair.beta.wait("the promotion", TAKE_OVER_TIME + LEASE, is_primary);
    // Beyond the ledger's area.
    let place = 16 << 20;
    assert_eq!(pair.beta.client().write(place, &[9; BLOCK], FUA).expect("is served"), 0);
    signal(pair.alpha.pid(), "CONT");
    assert!(reader.reply().is_err(), "what was asked of the old term is never answered");
    let returned = pair.alpha.wait("the old primary to be a good copy", LONG, crate::pair::in_sync);
    assert_eq!(returned["role"], "secondary");
    // What was on its way to the clients when it fell asleep came before.
    assert!(ledger.acked() <= asleep + WRITERS, "{} acknowledged, {asleep} before it slept", ledger.acked());
    let book = ledger.stop();
    book.audit(&mut pair.beta.client());
    pair.assert_identical();
    assert_eq!(pair.alpha.read_device(&pair.alpha.device, place, 1), [9]);
    for node in [&pair.alpha, &pair.beta] {
        assert!(!node.log_text().contains("split brain"), "{}", node.name);
        assert_eq!(node.status()["counters"]["errors"], 0, "{}", node.name);
    }
}

#[test]
fn the_loss_of_the_arbiter_alone_changes_nothing() {
    let mut etcd = EtcdServer::start();
    let pair = up(&etcd);
    let ledger = Ledger::start(&[pair.alpha.place()], WRITERS, BLOCKS);
    ledger.wait_more(100, SHORT);
    etcd.kill();
    // Longer than any lease or patience that could run out.
    let end = Instant::now() + 3 * LEASE;
    while Instant::now() < end {
        ledger.wait_more(20, Duration::from_secs(2));
        assert!(is_primary(&pair.alpha.status()) && !is_primary(&pair.beta.status()));
    }
    etcd.resume();
    pair.alpha.wait_log("the arbiter answers", SHORT);
    ledger.wait_more(100, SHORT);
    assert!(is_primary(&pair.alpha.status()) && !is_primary(&pair.beta.status()));
    let book = ledger.stop();
    println!("longest gap {:?}", book.gap);
    assert!(book.gap < Duration::from_secs(2), "a client waited {:?}", book.gap);
    book.audit(&mut pair.alpha.client());
    pair.assert_identical();
}

#[test]
fn a_primary_goes_on_alone_only_when_the_record_says_so() {
    let mut etcd = EtcdServer::start();
    let mut pair = up(&etcd);
    let ledger = Ledger::start(&[pair.alpha.place()], WRITERS, BLOCKS);
    ledger.wait_more(100, SHORT);
    pair.beta.kill();
    ledger.wait_more(WRITERS + 1, SHORT);
    wait_recorded(&etcd, 1);
    ledger.wait_more(100, SHORT);
    pair.beta.start();
    pair.wait_in_sync();
    wait_recorded(&etcd, 2);
    // Now without anybody to ask: writes wait, and nobody sees an error.
    etcd.kill();
    pair.beta.kill();
    pair.alpha.wait("the writes to wait", SHORT, |volume| !volume["frozen"].is_null());
    let frozen = ledger.acked();
    std::thread::sleep(LEASE + Duration::from_secs(1));
    assert!(ledger.acked() <= frozen + WRITERS, "nothing is acknowledged alone before the record says so");
    etcd.resume();
    ledger.wait_more(100, SHORT);
    wait_recorded(&etcd, 1);
    pair.beta.start();
    pair.wait_in_sync();
    let book = ledger.stop();
    assert!(book.errors.is_empty(), "{:?}", book.errors);
    book.audit(&mut pair.alpha.client());
    pair.assert_identical();
}

#[test]
fn a_switchover_goes_through_the_record_and_maintenance_stops_what_is_automatic() {
    let etcd = EtcdServer::start();
    let mut pair = up(&etcd);
    let ledger = Ledger::start(&[pair.alpha.place(), pair.beta.place()], WRITERS, BLOCKS);
    ledger.wait_more(100, SHORT);
    for (from, to) in [(&pair.alpha, &pair.beta), (&pair.beta, &pair.alpha)] {
        let began = Instant::now();
        from.cli(&["switchover"]).ok();
        println!("switchover to {} took {:?}", to.name, began.elapsed());
        to.wait("the role", SHORT, is_primary);
        assert_eq!(record(&etcd)["writer_name"], to.name);
        ledger.wait_more(100, SHORT);
        pair.wait_in_sync();
        wait_recorded(&etcd, 2);
    }
    let refused = pair.alpha.cli(&["demote"]).exits(1);
    assert!(refused.contains("record-decides"), "{refused}");
    pair.beta.cli(&["maintenance", "on"]).ok();
    assert_eq!(record(&etcd)["maintenance"], true);
    pair.alpha.kill();
    pair.beta.wait("the rule", SHORT, |volume| volume["failover"]["rule"] == "maintenance");
    std::thread::sleep(TAKE_OVER_TIME);
    assert!(!is_primary(&pair.beta.status()), "nothing is automatic in maintenance");
    pair.beta.cli(&["maintenance", "off"]).ok();
    pair.beta.wait("the promotion", TAKE_OVER_TIME, is_primary);
    ledger.wait_more(100, SHORT);
    pair.alpha.start();
    let book = ledger.stop();
    println!("longest gap {:?}", book.gap);
    book.audit(&mut pair.beta.client());
    pair.assert_identical();
}

#[test]
fn a_primary_that_is_stopped_in_order_hands_its_role_over() {
    let etcd = EtcdServer::start();
    let mut pair = up(&etcd);
    let ledger = Ledger::start(&[pair.alpha.place(), pair.beta.place()], WRITERS, BLOCKS);
    ledger.wait_more(100, SHORT);
    assert_eq!(pair.alpha.terminate(Duration::from_secs(14)), Some(0), "{}", pair.alpha.log_end());
    assert!(is_primary(&pair.beta.status()), "{}", pair.alpha.log_end());
    ledger.wait_more(100, SHORT);
    pair.alpha.start();
    pair.wait_in_sync();
    let book = ledger.stop();
    println!("longest gap {:?}", book.gap);
    assert!(book.gap < Duration::from_secs(4), "a client waited {:?}, and not for a lease", book.gap);
    book.audit(&mut pair.beta.client());
    pair.assert_identical();
}

#[test]
fn a_primary_that_was_killed_and_is_back_within_its_lease_goes_on() {
    let etcd = EtcdServer::start();
    let mut pair = up(&etcd);
    let ledger = Ledger::start(&[pair.alpha.place(), pair.beta.place()], WRITERS, BLOCKS);
    ledger.wait_more(100, SHORT);
    let before = record(&etcd)["term"].as_u64().expect("a term");
    pair.alpha.kill();
    pair.alpha.start();
    pair.alpha.wait("the role", SHORT, is_primary);
    assert!(record(&etcd)["term"].as_u64() > Some(before), "each start of a primary has a term of its own");
    ledger.wait_more(100, SHORT);
    pair.wait_in_sync();
    wait_recorded(&etcd, 2);
    let book = ledger.stop();
    println!("longest gap {:?}", book.gap);
    book.audit(&mut pair.alpha.client());
    pair.assert_identical();
    wait_history(&pair.beta, "orderly: alpha became primary");
}

#[test]
fn a_data_link_that_breaks_moves_no_role() {
    let etcd = EtcdServer::start();
    let mut pair = up(&etcd);
    let ledger = Ledger::start(&[pair.alpha.place()], WRITERS, BLOCKS);
    ledger.wait_more(100, SHORT);
    pair.proxy.cut();
    wait_recorded(&etcd, 1);
    ledger.wait_more(100, SHORT);
    // The one that was left behind knows it, and stays where it is when the other one dies, too.
    pair.beta.wait("the copy to be outdated", SHORT, |volume| volume["disk_state"] == "outdated");
    pair.alpha.kill();
    std::thread::sleep(TAKE_OVER_TIME);
    let left_behind = pair.beta.status();
    assert_eq!(left_behind["failover"]["rule"], "not-in-sync", "{left_behind:#}");
    assert!(!is_primary(&left_behind));
    pair.proxy.mend();
    pair.alpha.start();
    pair.alpha.wait("the role", SHORT, is_primary);
    ledger.wait_more(100, SHORT);
    pair.wait_in_sync();
    let book = ledger.stop();
    book.audit(&mut pair.alpha.client());
    pair.assert_identical();
}

/// In mode `fence`, what the command says is what happens.
#[test]
fn a_fence_decides_by_its_exit_code() {
    let folder = crate::tools::folder();
    let verdict = folder.path().join("verdict");
    let say = |code: i32| std::fs::write(&verdict, code.to_string()).expect("the test's folder can be written");
    say(1);
    let arbiter = format!(
        "kind = \"fence\"\ncommand = [\"/bin/sh\", \"-c\", \"exit $(cat {})\"]\nfence_delay_ms = 500\nfence_again_ms = 300\n\
         settled_ms = 500\ndwell_ms = 0\n",
        verdict.display()
    );
    let mut pair =
        Pair::up(&Setup { volume_keys: "peer_timeout_ms = 1000\nping_interval_ms = 250", arbiter, ..Setup::default() });
    wait_ready_to_fence(&pair.beta);
    let refused = pair.beta.cli(&["maintenance", "on"]).exits(1);
    assert!(refused.contains("record-missing"), "{refused}");
    let ledger = Ledger::start(&[pair.alpha.place(), pair.beta.place()], WRITERS, BLOCKS);
    ledger.wait_more(100, SHORT);
    pair.alpha.kill();
    pair.beta.wait("a fence that failed", SHORT, |volume| volume["failover"]["rule"] == "fence-failed");
    assert!(!is_primary(&pair.beta.status()), "nothing was proved");
    say(7);
    pair.beta.wait("the promotion", SHORT, is_primary);
    ledger.wait_more(WRITERS + 1, SHORT);
    pair.alpha.start();
    pair.wait_in_sync();
    let book = ledger.stop();
    book.audit(&mut pair.beta.client());
    pair.assert_identical();
    wait_history(&pair.beta, "by take-over-fenced");
}

#[track_caller]
fn wait_ready_to_fence(node: &Node) {
    node.wait("a standby that is settled", SHORT, |volume| {
        volume["failover"]["evidence"]
            .as_str()
            .is_some_and(|evidence| ["met", "dwelt"].iter().all(|word| evidence.split(' ').any(|known| known == *word)))
    });
}
