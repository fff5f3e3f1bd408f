//! The deterministic simulator: a third shell around the production machine. Only disk, network, time and people are faked.
//!
//! One seed is one world. `REPBLK_SEEDS=n` runs n of them, from `REPBLK_FIRST` on and on `REPBLK_THREADS` threads,
//! `REPBLK_SEED=s` one; `REPBLK_TRACE=1` prints every event, `REPBLK_KEEP_GOING=1` goes on after a failure. See `trace` for the
//! columns, `media`, `disk` and `net` for the fault model, `history` and `checkers` for what must hold, `marks` for what a run
//! must have met.

mod arbitrated;
mod arbitration;
mod checkers;
mod client;
mod crash_points;
mod disk;
mod faults;
mod history;
mod init_points;
mod lies;
mod links;
mod marks;
mod media;
mod net;
mod node;
mod operator;
mod orderings;
mod orders;
mod pool;
mod reconcile_space;
mod regressions;
mod rng;
mod runner;
mod scenarios;
mod shell;
mod stamp;
mod story;
mod swarm;
mod trace;
mod world;

/// Seeds of an ordinary run.
const SEEDS: u64 = 2000;
/// The first of them.
const FIRST: u64 = 1;

fn number(name: &str) -> Option<u64> {
    std::env::var(name).ok().map(|v| v.parse().unwrap_or_else(|_| panic!("{name} is a number")))
}

#[test]
fn seeds() {
    let (first, count) = match number("REPBLK_SEED") {
        Some(seed) => (seed, 1),
        None => (number("REPBLK_FIRST").unwrap_or(FIRST), number("REPBLK_SEEDS").unwrap_or(SEEDS)),
    };
    let cores = std::thread::available_parallelism().map_or(1, |n| n.get() as u64);
    let totals = runner::run(
        first,
        count,
        number("REPBLK_THREADS").unwrap_or(cores.min(8)),
        number("REPBLK_KEEP_GOING").is_some(),
    );
    if let Some(report) = &totals.report {
        println!("{report}");
    }
    println!("{}", totals.told());
    assert!(totals.failed.is_empty(), "{} seeds failed: {:?}", totals.failed.len(), totals.failed);
    if count >= SEEDS {
        let missing = totals.missing(marks::IMPORTANT);
        assert!(missing.is_empty(), "{count} seeds never met: {missing:?}");
    }
}

/// Checker 6: one seed, one trace.
#[test]
fn a_seed_has_one_trace() {
    for seed in 1..=8 {
        let hash = || {
            trace::start(true, false);
            runner::live(seed, runner::Draw::All);
            trace::hash()
        };
        assert_eq!(hash(), hash(), "seed {seed} gave two traces");
    }
}
