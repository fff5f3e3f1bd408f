//! Both production machines on each node, and an arbiter: nobody promotes but they themselves.
//!
//! What is checked is what is checked in every world: acknowledged data survives, no two nodes acknowledge at once, and all that
//! ends in one primary with two equal copies when the faults end. Besides, nothing ends as a split brain.

use std::collections::BTreeMap;
use std::panic::{AssertUnwindSafe, catch_unwind};

use repblk::condition::{DiskState, Mode, Role};
use repblk::failover::io::Ask;

use crate::rng::Rng;
use crate::swarm::{MS, Options, SECOND};
use crate::trace;
use crate::world::{Event, World};

/// Seeds of an ordinary run.
const SEEDS: u64 = 80;

/// What an ordinary run must have met.
const IMPORTANT: &[&str] = &[
    "a peer was in sync again before its exclusion was allowed",
    "a primary stood down",
    "a reply was held for want of a lease",
    "an exclusion was allowed while its peer greeted",
    "failover: in-limbo",
    "failover: readmit",
    "failover: take-over-handed",
    "failover: take-over-lease-over",
    "failover: take-over-own-record",
    "failover: writer-is-alive",
];

fn options(rng: &mut Rng) -> Options {
    let often = |rng: &mut Rng| rng.pick(&[0, 0, 5 * SECOND, 20 * SECOND]);
    Options {
        arbitrated: true,
        mode: rng.pick(&[Mode::Sync, Mode::Sync, Mode::SemiSync]),
        clients: 2,
        think: 10 * MS,
        flush_every: rng.pick(&[5, 100]),
        busy_for: rng.between(30, 120) * SECOND,
        disk_delay: rng.pick(&[100_000, 2 * MS]),
        latency: rng.pick(&[100_000, 2 * MS]),
        loss: None,
        power_every: often(rng),
        both_every: rng.pick(&[0, 0, 20 * SECOND]),
        kill_every: often(rng),
        cut_every: often(rng),
        stall_every: often(rng),
        pause_every: often(rng),
        heartbeats_lost: rng.pick(&[0, 50]),
        drift_ppm_max: rng.pick(&[0, 15_000]),
        ..Options::calm()
    }
}

/// A founded pair with an arbiter, in sync; the primary is node A.
fn founded(seed: u64, options: Options) -> World {
    let mut w = World::new(seed, options);
    w.operator.passive = true;
    w.begin();
    let mut tries = 0;
    let up = w.run_until(30 * SECOND, |w| {
        tries += 1;
        if tries % 40 == 0 && !w.nodes[0].is_primary() {
            w.ask_deputy(0, Ask::Promote { force: true, peer_is_down: true });
        }
        w.operator.founded |= w.nodes[0].is_primary();
        w.settled()
    });
    assert!(up, "a new pair comes into being:\n  {}", w.summary());
    w.run_for(SECOND);
    w
}

fn live(seed: u64) -> World {
    let mut w = founded(seed, options(&mut Rng::new(seed ^ 0x0F0F_F0F0)));
    w.begin_trouble();
    w.after(SECOND, Event::Weather);
    w.run_for(w.options.busy_for);
    w.clear_weather();
    w.converge();
    assert!(!w.memory.split_brain, "a record leaves no split brain");
    w
}

#[test]
fn storms_are_survived_by_automatic_failover() {
    let number = |name: &str| std::env::var(name).ok().and_then(|v| v.parse::<u64>().ok());
    let (first, count) = match number("REPBLK_ARBITRATED_SEED") {
        Some(seed) => (seed, 1),
        None => (number("REPBLK_FIRST").unwrap_or(1), number("REPBLK_ARBITRATED_SEEDS").unwrap_or(SEEDS)),
    };
    let (mut automatic, mut acknowledged, mut failed) = (0, 0, Vec::new());
    let mut marks = BTreeMap::new();
    for seed in first..first + count {
        let attempt = |traced: bool| {
            trace::start(traced, std::env::var_os("REPBLK_TRACE").is_some());
            catch_unwind(AssertUnwindSafe(|| live(seed)))
        };
        match attempt(false) {
            Ok(w) => {
                automatic += w.arbiter.automatic as u64;
                acknowledged += w.history.acknowledgements();
                for (name, count) in w.marks {
                    *marks.entry(name).or_insert(0) += count;
                }
            }
            Err(_) => {
                failed.push(seed);
                let _ = attempt(true);
            }
        }
    }
    println!("{count} seeds: {automatic} automatic promotions, {acknowledged} acknowledged writes");
    assert!(failed.is_empty(), "failed: {failed:?}; one alone with REPBLK_ARBITRATED_SEED=N REPBLK_TRACE=1");
    if count >= SEEDS {
        let missing: Vec<_> = IMPORTANT.iter().filter(|&&name| !marks.contains_key(name)).collect();
        assert!(missing.is_empty(), "{count} seeds never met: {missing:?}");
        assert!(automatic > count / 4, "promotions happen by themselves");
    }
}

/// The primary's host dies: its peer takes over by itself, with everything that was acknowledged.
#[test]
fn a_dead_primary_is_replaced_and_comes_back_as_target() {
    for seed in 1..=4 {
        let mut w = founded(900 + seed, Options { arbitrated: true, clients: 2, ..Options::calm() });
        w.power_loss(0);
        let over = w.run_until(12 * SECOND, |w| w.nodes[1].is_primary());
        assert!(over, "B takes over by itself:\n  {}", w.summary());
        let before = w.history.acknowledgements();
        w.run_for(SECOND);
        assert!(w.history.acknowledgements() > before, "and serves");
        w.restart_after(0, MS);
        w.converge();
        assert_eq!(w.nodes[1].role(), Some(Role::Primary), "nothing fails back");
        assert_eq!(w.arbiter.automatic, 1);
    }
}

/// The primary is cut off from everything, and lives: it stops answering before the other begins, and stands down when it learns.
#[test]
fn an_isolated_primary_is_superseded() {
    for seed in 1..=4 {
        let mut w = founded(920 + seed, Options { arbitrated: true, clients: 2, ..Options::calm() });
        w.isolate(0, 15 * SECOND);
        let over = w.run_until(12 * SECOND, |w| w.nodes[1].is_primary());
        assert!(over && w.nodes[0].is_primary(), "B takes over, and A does not know:\n  {}", w.summary());
        // The arbiter is reached first.
        w.data_cut_until += 5 * SECOND;
        let down = w.run_until(12 * SECOND, |w| w.nodes[0].role() == Some(Role::Secondary));
        assert!(down && w.now < w.data_cut_until, "A stands down for the record:\n  {}", w.summary());
        assert!(w.nodes[0].disk_is(DiskState::Outdated), "and knows that it lacks what B is given");
        w.converge();
        assert!(!w.memory.split_brain, "and is behind, and no fork");
    }
}

/// The primary's disk fails and it serves on with B's copy. Then their data link is lost, and nothing else: A can serve nothing and gives the
/// role up although B hears it. No client is told an error meanwhile.
#[test]
fn a_primary_that_can_serve_nothing_gives_the_role_up() {
    for (seed, kind) in (1..=8).zip(["write", "flush"].into_iter().cycle()) {
        let mut w = founded(940 + seed, Options { arbitrated: true, clients: 2, ..Options::calm() });
        w.nodes[0].disk.fail_next(kind);
        let failed = w.run_until(5 * SECOND, |w| w.nodes[0].disk_is(DiskState::Failed));
        assert!(failed, "A uses its disk:\n  {}", w.summary());
        // Also before what follows from the failed disk is done.
        w.run_for(if seed <= 2 { SECOND } else { Rng::new(seed).between(0, 3 * MS) });
        w.data_cut_until = w.now + 20 * SECOND;
        w.cut_now("scenario");
        let over = w.run_until(3 * SECOND, |w| w.nodes[1].is_primary());
        assert!(over, "B takes over without a wait for the lease:\n  {}", w.summary());
        assert_eq!(w.nodes[0].role(), Some(Role::Secondary));
        let before = w.history.acknowledgements();
        w.run_for(SECOND);
        assert!(w.history.acknowledgements() > before, "and serves");
        assert!(!w.marks.contains_key("client error"), "no client is told an error");
        w.power_loss(0);
        w.restart_after(0, MS);
        w.converge();
        assert!(!w.memory.split_brain);
    }
}
