//! The deterministic simulator: a third shell around the production machine. Only disk, network, time and people are faked.
//!
//! One seed is one world. `REPBLK_SEEDS=n` runs n of them, `REPBLK_SEED=s` one, `REPBLK_TRACE=1` prints every event; see
//! `trace` for the columns, `media`, `disk` and `net` for the fault model, `history` and `checkers` for what must hold.

mod checkers;
mod client;
mod coverage;
mod crash_points;
mod disk;
mod faults;
mod history;
mod init_points;
mod links;
mod media;
mod net;
mod node;
mod operator;
mod orderings;
mod pool;
mod reconcile_space;
mod regressions;
mod rng;
mod scenarios;
mod shell;
mod stamp;
mod story;
mod swarm;
mod trace;
mod world;

use std::panic::{AssertUnwindSafe, catch_unwind};

use rng::Rng;
use swarm::Options;
use world::World;

/// Seeds of an ordinary run.
const SEEDS: u64 = 300;
/// The first of them.
const FIRST: u64 = 1;

/// Lives through the world of one seed.
fn live(seed: u64) -> World {
    let options = Options::draw(&mut Rng::new(seed ^ 0xA5A5_5A5A));
    let mut world = World::new(seed, options);
    world.begin();
    let founded = world.run_until(20 * swarm::SECOND, |w| w.operator.is_founded());
    assert!(founded, "the first promotion was never granted:\n  {}", world.summary());
    world.begin_trouble();
    world.run_for(world.options.busy_for);
    if !world.options.unbounded {
        world.converge();
    }
    world
}

/// Lives through a seed; a failure is lived through again, with its trace.
fn check(seed: u64) -> Result<World, String> {
    let attempt = |traced: bool, print: bool| {
        trace::start(traced, print);
        catch_unwind(AssertUnwindSafe(|| live(seed))).map_err(|panic| {
            let text = panic.downcast_ref::<String>().cloned();
            text.or_else(|| panic.downcast_ref::<&str>().map(|s| (*s).to_owned())).unwrap_or_default()
        })
    };
    if std::env::var_os("REPBLK_TRACE").is_some() {
        return attempt(true, true);
    }
    attempt(false, false).map_err(|first| {
        let again = attempt(true, false).map_or_else(|e| e, |_| "nothing: the run is not deterministic".to_owned());
        let same = if again == first { String::new() } else { format!("\n(the second time: {again})") };
        format!(
            "seed {seed}: {first}{same}\n{}\nseed {seed}: {first}\nreplay: REPBLK_SEED={seed} REPBLK_TRACE=1 cargo test --test sim seeds -- --nocapture",
            trace::tail()
        )
    })
}

fn number(name: &str) -> Option<u64> {
    std::env::var(name).ok().map(|v| v.parse().unwrap_or_else(|_| panic!("{name} is a number")))
}

#[test]
fn seeds() {
    let (first, count) = match number("REPBLK_SEED") {
        Some(seed) => (seed, 1),
        None => (number("REPBLK_FIRST").unwrap_or(FIRST), number("REPBLK_SEEDS").unwrap_or(SEEDS)),
    };
    let mut events = 0;
    let mut marks = std::collections::BTreeMap::<&str, u64>::new();
    let mut acknowledged = 0;
    let mut failures = Vec::new();
    for seed in first..first + count {
        match check(seed) {
            Ok(world) => {
                events += world.handled();
                acknowledged += world.history.acknowledgements();
                for (name, n) in world.marks {
                    *marks.entry(name).or_default() += n;
                }
            }
            Err(why) if number("REPBLK_KEEP_GOING").is_some() => {
                let line = why.lines().next().unwrap_or_default().to_owned();
                println!("FAILED {line}");
                failures.push(seed);
            }
            Err(why) => panic!("{why}"),
        }
    }
    println!("{count} seeds from {first}: {events} events, {acknowledged} acknowledged writes, {marks:?}");
    assert!(failures.is_empty(), "{} seeds failed: {failures:?}", failures.len());
}

/// Checker 6: one seed, one trace.
#[test]
fn a_seed_has_one_trace() {
    for seed in 1..=8 {
        let hash = || {
            trace::start(true, false);
            live(seed);
            trace::hash()
        };
        assert_eq!(hash(), hash(), "seed {seed} gave two traces");
    }
}
