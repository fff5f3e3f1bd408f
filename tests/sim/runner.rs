//! Lives through seeds: one with its trace, or many on several threads, and sums up what they met.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Instant;

use crate::rng::Rng;
use crate::swarm::{Options, SECOND};
use crate::trace;
use crate::world::World;

/// Which faults a seed may draw.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Draw {
    /// Those that the first seeds had.
    First,
    /// All.
    All,
}

/// Lives through the world of one seed.
pub(crate) fn live(seed: u64, draw: Draw) -> World {
    let mut options = Options::draw(&mut Rng::new(seed ^ 0xA5A5_5A5A));
    if draw == Draw::All {
        options = options.harden(&mut Rng::new(seed ^ 0x5A5A_A5A5));
    }
    let mut world = World::new(seed, options);
    world.begin();
    let founded = world.run_until(20 * SECOND, |w| w.operator.is_founded());
    assert!(founded, "the first promotion was never granted:\n  {}", world.summary());
    world.begin_trouble();
    world.run_for(world.options.busy_for);
    if !world.options.unbounded {
        world.converge();
    }
    world.gather_marks();
    world
}

/// Lives through a seed; a failure is lived through again, with its trace.
pub(crate) fn check(seed: u64, draw: Draw) -> Result<World, String> {
    let attempt = |traced: bool, print: bool| {
        trace::start(traced, print);
        catch_unwind(AssertUnwindSafe(|| live(seed, draw))).map_err(|panic| {
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

/// What many seeds came to.
#[derive(Debug, Default)]
pub(crate) struct Totals {
    seeds: u64,
    events: u64,
    acknowledged: u64,
    simulated_ns: u64,
    /// How often each mark was reached.
    pub(crate) marks: BTreeMap<String, u64>,
    /// Seeds that failed, and the first line of why.
    pub(crate) failed: BTreeMap<u64, String>,
    /// The report of the first failure.
    pub(crate) report: Option<String>,
    real: std::time::Duration,
}

impl Totals {
    fn add(&mut self, seed: u64, outcome: Result<World, String>) {
        self.seeds += 1;
        match outcome {
            Ok(world) => {
                self.events += world.handled();
                self.simulated_ns += world.now;
                self.acknowledged += u64::try_from(world.history.acknowledgements()).expect("a count");
                for (name, n) in world.marks {
                    *self.marks.entry(name).or_default() += n;
                }
            }
            Err(report) => {
                let line = report.lines().next().unwrap_or_default().to_owned();
                println!("FAILED {line}\n{}", report.lines().last().unwrap_or_default());
                self.failed.insert(seed, line);
                self.report.get_or_insert(report);
            }
        }
    }

    /// Marks of `wanted` that no seed has reached.
    pub(crate) fn missing(&self, wanted: &[&'static str]) -> BTreeSet<&'static str> {
        wanted.iter().copied().filter(|&name| !self.marks.contains_key(name)).collect()
    }

    /// What is said at the end of a run; the last line is for programs.
    pub(crate) fn told(&self) -> String {
        let (simulated, real) = (self.simulated_ns / SECOND, self.real.as_secs_f64().max(0.001));
        let mut text = String::new();
        for (name, n) in &self.marks {
            writeln!(text, "{n:>10}  {name}").expect("a string takes everything");
        }
        let rate = simulated as f64 / real;
        writeln!(
            text,
            "{} seeds, {} events, {} acknowledged writes, {} marks; {simulated} s simulated in {real:.1} s: {rate:.0} times as fast",
            self.seeds,
            self.events,
            self.acknowledged,
            self.marks.len(),
        )
        .expect("a string takes everything");
        write!(
            text,
            r#"{{"seeds":{},"failures":{},"events":{},"simulated_s":{simulated},"real_s":{real:.1}}}"#,
            self.seeds,
            self.failed.len(),
            self.events,
        )
        .expect("a string takes everything");
        text
    }
}

/// Lives through `count` seeds from `first` on, on `threads` threads. Ends early after a failure unless `keep_going`.
pub(crate) fn run(first: u64, count: u64, threads: u64, keep_going: bool) -> Totals {
    let began = Instant::now();
    let (next, stop) = (AtomicU64::new(first), AtomicBool::new(false));
    let totals = Mutex::new(Totals::default());
    std::thread::scope(|scope| {
        for _ in 0..threads.max(1) {
            scope.spawn(|| {
                while !stop.load(Ordering::Relaxed) {
                    let seed = next.fetch_add(1, Ordering::Relaxed);
                    if seed >= first + count {
                        break;
                    }
                    let outcome = check(seed, Draw::All);
                    if outcome.is_err() && !keep_going {
                        stop.store(true, Ordering::Relaxed);
                    }
                    totals.lock().expect("nobody panics while it is held").add(seed, outcome);
                }
            });
        }
    });
    let mut totals = totals.into_inner().expect("nobody panics while it is held");
    totals.real = began.elapsed();
    totals
}
