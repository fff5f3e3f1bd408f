//! Disks that fail, hang or are slow under a running daemon, on a disk of the test's own.

use std::time::Duration;

use crate::ledger::Ledger;
use crate::pair::{MIB, Setup};
use crate::powered::{ALPHA, BETA, Parting, Powered};
use crate::shim::Faults;
use crate::tools::{LONG, SHORT};

const WRITERS: u64 = 3;
const BLOCKS: usize = 48;

fn up(seed: u64) -> Powered {
    let volume_keys = "peer_timeout_ms = 1000\nping_interval_ms = 250";
    Powered::up(&Setup { size: 8 * MIB, volume_keys, ..Setup::default() }, seed)
}

fn load(powered: &Powered, seed: u64) -> Ledger {
    let ledger = Ledger::mixed(&powered.places(), WRITERS, BLOCKS, seed);
    ledger.wait_more(60, LONG);
    ledger
}

#[track_caller]
fn audit(powered: &Powered, ledger: Ledger, serving: usize) {
    let book = ledger.stop();
    powered.assert_identical();
    book.audit(&mut powered.node(serving).client());
}

const FAULTS: [Faults; 2] =
    [Faults { writes_fail: true, ..Faults::NONE }, Faults { flushes_fail: true, ..Faults::NONE }];

/// The disk is bad for good; its daemon dies with its host, and what was not stable on it is gone.
#[test]
fn a_primary_whose_disk_fails_hands_over_and_loses_nothing() {
    for (seed, faults) in (31..).zip(FAULTS) {
        let mut powered = up(seed);
        let ledger = load(&powered, seed);
        powered.shims[ALPHA].set(faults);
        powered.pair.alpha.wait("the failed disk", LONG, |v| v["disk_state"] == "failed");
        ledger.wait_more(60, LONG);
        powered.cut_power(ALPHA, Parting::Noticed);
        powered.take_over(BETA);
        ledger.wait_more(60, LONG);
        powered.shims[ALPHA].set(Faults::NONE);
        // The same disk, as if the cable had been bad: it gets back every block that it may lack.
        powered.start(ALPHA);
        powered.recover();
        audit(&powered, ledger, BETA);
    }
}

#[test]
fn a_secondary_whose_disk_fails_is_left_behind_and_comes_back() {
    for (seed, faults) in (41..).zip(FAULTS) {
        let mut powered = up(seed);
        let ledger = load(&powered, seed);
        powered.shims[BETA].set(faults);
        powered.pair.beta.wait("the failed disk", LONG, |v| v["disk_state"] == "failed");
        ledger.wait_more(60, LONG);
        powered.cut_power(BETA, Parting::Noticed);
        powered.shims[BETA].set(Faults::NONE);
        powered.start(BETA);
        powered.recover();
        audit(&powered, ledger, ALPHA);
    }
}

#[test]
fn a_secondary_whose_disk_hangs_is_dropped_and_comes_back() {
    let powered = up(51);
    let ledger = load(&powered, 51);
    powered.shims[BETA].freeze();
    powered.pair.alpha.wait("the loss of the peer", SHORT, |v| v["peers"][0]["connection"] != "connected");
    ledger.wait_more(60, LONG);
    powered.shims[BETA].thaw();
    powered.recover();
    audit(&powered, ledger, ALPHA);
}

#[test]
fn a_primary_whose_disk_hangs_says_so_and_goes_on_when_it_can() {
    let powered = up(52);
    let ledger = load(&powered, 52);
    powered.shims[ALPHA].freeze();
    let told = powered.pair.alpha.wait("the trouble", SHORT, |v| !v["trouble"].is_null());
    println!("trouble: {}", told["trouble"]);
    powered.pair.beta.wait("the loss of the peer", SHORT, |v| v["peers"][0]["connection"] != "connected");
    powered.shims[ALPHA].thaw();
    powered.pair.alpha.wait("the end of the trouble", LONG, |v| v["trouble"].is_null());
    powered.recover();
    ledger.wait_more(60, LONG);
    audit(&powered, ledger, ALPHA);
}

#[test]
fn a_primary_whose_disk_cannot_be_read_reads_from_its_peer() {
    let powered = up(53);
    let ledger = load(&powered, 53);
    powered.shims[ALPHA].set(Faults { reads_fail: true, ..Faults::NONE });
    // Far from what the page cache has.
    let bytes = powered.pair.alpha.client().read(6 * MIB, 65_536).expect("is served");
    assert_eq!(bytes, [0; 65_536]);
    powered.shims[ALPHA].set(Faults::NONE);
    ledger.wait_more(20, LONG);
    audit(&powered, ledger, ALPHA);
}

#[test]
fn slow_disks_are_waited_for() {
    let powered = up(54);
    let slow = Faults { flush_time: Duration::from_millis(200), write_time: Duration::from_millis(2), ..Faults::NONE };
    powered.shims[BETA].set(slow);
    let ledger = load(&powered, 54);
    powered.shims[BETA].set(Faults::NONE);
    powered.recover();
    audit(&powered, ledger, ALPHA);
}
