//! Daemons that are killed or stand still at any moment, again and again: no power is lost here, so nothing acknowledged may be.

use std::time::Duration;

use crate::ledger::{BLOCK, Ledger};
use crate::node::Node;
use crate::pair::{MIB, Pair, Setup};
use crate::raw_nbd::FUA;
use crate::rng::Rng;
use crate::tools::{LONG, SHORT, from_environment, signal, wait_for};

const WRITERS: u64 = 3;
const BLOCKS: usize = 48;
/// Turns and seed of each loop; a longer run sets other ones.
const TURNS: (&str, u64) = ("REPBLK_KILL_TURNS", 8);
const SEED: (&str, u64) = ("REPBLK_KILL_SEED", 1);

fn setup() -> Setup {
    Setup { size: 8 * MIB, volume_keys: "peer_timeout_ms = 600\nping_interval_ms = 200", ..Setup::default() }
}

/// Waits until one node serves; one that may be primary again asks by itself, else the operator does, without force.
#[track_caller]
fn primary(pair: &Pair) -> &Node {
    let mut turn = 0;
    wait_for("a primary", LONG, || {
        let nodes = [&pair.alpha, &pair.beta];
        if let Some(node) = nodes.into_iter().find(|n| n.try_status().is_some_and(|v| v["role"] == "primary")) {
            return Some(node);
        }
        turn += 1;
        if turn > 20 {
            let _ = nodes[turn % 2].cli(&["promote"]);
        }
        None
    })
}

/// Kills the primary while both are in sync, promotes the other one, and starts the killed one again.
#[track_caller]
fn take_over(pair: &mut Pair, ledger: &Ledger) {
    pair.wait_in_sync();
    let alpha = primary(pair).name == pair.alpha.name;
    let (dies, lives) = if alpha { (&mut pair.alpha, &pair.beta) } else { (&mut pair.beta, &pair.alpha) };
    dies.kill();
    crate::failover::take_over(lives, &["promote", "--peer-is-down"]);
    println!("{} has taken over", lives.name);
    ledger.wait_more(10, LONG);
    dies.start();
}

#[track_caller]
fn end(pair: &Pair, ledger: Ledger) {
    let serving = primary(pair);
    ledger.wait_more(50, LONG);
    pair.wait_in_sync();
    let book = ledger.stop();
    println!("{} writes acknowledged, {} reconnections, longest gap {:?}", book.acked, book.reconnects, book.gap);
    book.audit(&mut serving.client());
    pair.assert_identical();
}

#[test]
fn daemons_that_are_killed_again_and_again_lose_nothing() {
    let seed = from_environment(SEED);
    println!("seed {seed}");
    let mut rng = Rng::new(seed);
    let mut pair = Pair::up(&setup());
    let ledger = Ledger::mixed(&[pair.alpha.place(), pair.beta.place()], WRITERS, BLOCKS, seed);
    for turn in 0..from_environment(TURNS) {
        ledger.wait_more(rng.between(1, 80), LONG);
        if rng.chance(1, 3) {
            take_over(&mut pair, &ledger);
            continue;
        }
        let both = rng.chance(1, 3);
        let first = rng.coin();
        for alpha in [first, !first].into_iter().take(1 + usize::from(both)) {
            let node = if alpha { &mut pair.alpha } else { &mut pair.beta };
            node.kill();
        }
        // Back in either order, and without waiting until what the last kill left behind is copied.
        let first = rng.coin();
        for alpha in [first, !first] {
            let node = if alpha { &mut pair.alpha } else { &mut pair.beta };
            if !node.is_running() {
                node.start();
            }
        }
        let serving = primary(&pair);
        println!("turn {turn}: both {both}, {} serves", serving.name);
    }
    end(&pair, ledger);
}

#[test]
fn daemons_that_stand_still_again_and_again_lose_nothing() {
    let seed = from_environment(SEED);
    println!("seed {seed}");
    let mut rng = Rng::new(seed);
    let pair = Pair::up(&setup());
    let ledger = Ledger::mixed(&[pair.alpha.place(), pair.beta.place()], WRITERS, BLOCKS, seed);
    for _ in 0..from_environment(TURNS) {
        ledger.wait_more(rng.between(1, 80), LONG);
        let node = if rng.coin() { &pair.alpha } else { &pair.beta };
        signal(node.pid(), "STOP");
        // Shorter and longer than the time after which a peer is given up.
        std::thread::sleep(Duration::from_millis(rng.between(20, 1200)));
        signal(node.pid(), "CONT");
    }
    end(&pair, ledger);
}

#[test]
fn a_primary_that_slept_while_its_peer_was_promoted_overwrites_nothing() {
    let pair = Pair::up(&setup());
    let ledger = Ledger::mixed(&[pair.alpha.place()], WRITERS, BLOCKS, 5);
    ledger.wait_more(100, LONG);
    signal(pair.alpha.pid(), "STOP");
    let asleep = ledger.acked();
    wait_for("the promotion", LONG, || (pair.beta.cli(&["promote", "--force"]).code == Some(0)).then_some(()));
    // Beyond the ledger's area.
    assert_eq!(pair.beta.client().write(4 * MIB, &[9; BLOCK], FUA).expect("is served"), 0);
    // What was on its way to the clients when it fell asleep came before.
    assert!(ledger.acked() <= asleep + WRITERS, "a node that stands still acknowledges nothing");
    signal(pair.alpha.pid(), "CONT");
    for node in [&pair.alpha, &pair.beta] {
        node.wait_log("split brain", LONG);
    }
    let book = ledger.stop();
    let on = |node: &Node, at: u64| node.read_device(&node.device, at, 1)[0];
    assert_eq!([on(&pair.alpha, 4 * MIB), on(&pair.beta, 4 * MIB)], [0, 9], "nothing came over");
    // Whatever the sleeper acknowledged, before and after, it has; and it is the operator's to decide about.
    book.audit(&mut pair.alpha.client());
    let refused = pair.alpha.cli(&["promote", "--force"]).fails();
    assert!(refused.contains("already-primary"), "{refused}");
    pair.alpha.cli(&["demote", "--disconnect-clients"]).ok();
    pair.alpha.cli(&["resync", "--discard-local"]).ok();
    pair.assert_identical();
    assert_eq!([on(&pair.alpha, 4 * MIB), on(&pair.beta, 4 * MIB)], [9, 9]);
    pair.beta.wait("the role", SHORT, |v| v["role"] == "primary");
}
