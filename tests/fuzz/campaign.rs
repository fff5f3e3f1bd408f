//! One target's runs: the corpus, then changed copies of what has proved interesting.

use crate::mutate::mutate;
use crate::targets::{notes, rng::Rng};
use std::cell::Cell;
use std::collections::BTreeSet;
use std::panic::{self, AssertUnwindSafe};
use std::path::{Path, PathBuf};
use std::sync::Once;
use std::time::{Duration, Instant};

/// Tries to make a failing input smaller.
const SHRINKS_MAX: usize = 4000;
/// Seed of the bounded runs.
const SEED: u64 = 1;

/// One fuzz target.
pub(crate) struct Target {
    /// Its name, which is also the name of its test and of its corpus.
    pub(crate) name: &'static str,
    /// Panics when a promise is broken.
    pub(crate) run: fn(&[u8]),
    /// What changed inputs may be made of.
    pub(crate) words: &'static [&'static str],
    /// Changed inputs of a bounded run.
    pub(crate) runs: u64,
}

thread_local! {
    static QUIET: Cell<bool> = const { Cell::new(false) };
}

/// Runs `target`: bounded, or for `REPBLK_FUZZ_SECONDS` from the seed `REPBLK_FUZZ_SEED`, or only on the input in
/// `REPBLK_FUZZ_INPUT` (hexadecimal digits, or `@FILE`).
pub(crate) fn campaign(target: &Target) {
    hush();
    if let Some(input) = std::env::var_os("REPBLK_FUZZ_INPUT") {
        return (target.run)(&given(&input.into_string().expect("digits or a name")));
    }
    let number = |name: &str| std::env::var(name).ok().map(|text| text.parse::<u64>().expect("a number"));
    let mut rng = Rng::new(number("REPBLK_FUZZ_SEED").unwrap_or(SEED));
    let end = number("REPBLK_FUZZ_SECONDS").map(|seconds| Instant::now() + Duration::from_secs(seconds));
    let mut pool = corpus(target.name);
    assert!(!pool.is_empty(), "{} has no corpus", target.name);
    let mut reached = BTreeSet::new();
    for input in &pool {
        reached.extend(attempt(target, input).unwrap_or_else(|()| fail(target, input)));
    }
    let known = pool.len();
    let mut runs = 0;
    while end.map_or(runs < target.runs, |end| Instant::now() < end) {
        runs += 1;
        // What was found last has been tried least.
        let fresh = pool.len().min(16);
        let base = if rng.coin() { pool.len() - 1 - rng.index(fresh) } else { rng.index(pool.len()) };
        let other = rng.index(pool.len());
        let input = mutate(&mut rng, &pool[base], &pool[other], target.words);
        let found = attempt(target, &input).unwrap_or_else(|()| fail(target, &input));
        if !found.is_subset(&reached) {
            reached.extend(found);
            pool.push(input);
        }
    }
    println!(
        "{}: {runs} runs, {} outcomes, {known} inputs of the corpus, {} new ones",
        target.name,
        reached.len(),
        pool.len() - known
    );
}

/// What the input reached, unless a promise is broken.
fn attempt(target: &Target, input: &[u8]) -> Result<BTreeSet<u64>, ()> {
    notes::take();
    QUIET.set(true);
    let outcome = panic::catch_unwind(AssertUnwindSafe(|| (target.run)(input)));
    QUIET.set(false);
    outcome.map(|()| notes::take()).map_err(drop)
}

/// Inputs fail often while one is made smaller; only the last failure is told.
fn hush() {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        let usual = panic::take_hook();
        panic::set_hook(Box::new(move |info| {
            if !QUIET.get() {
                usual(info);
            }
        }));
    });
}

fn fail(target: &Target, input: &[u8]) -> ! {
    let input = shrink(target, input.to_vec());
    let digits: String = input.iter().map(|byte| format!("{byte:02x}")).collect();
    eprintln!("{} bytes: {}", input.len(), input.escape_ascii());
    eprintln!("repeat with: REPBLK_FUZZ_INPUT={digits} cargo test --test fuzz -- --exact {}", target.name);
    (target.run)(&input);
    panic!("{} failed once and not again: it depends on more than its input", target.name);
}

/// A smaller input that fails too: pieces are taken out, then bytes become zero.
fn shrink(target: &Target, mut input: Vec<u8>) -> Vec<u8> {
    let mut tries = 0;
    let mut fails = |input: &[u8]| {
        tries += 1;
        tries < SHRINKS_MAX && attempt(target, input).is_err()
    };
    let mut len = input.len().div_ceil(2);
    while len > 0 {
        let mut at = 0;
        while at < input.len() {
            let mut less = input.clone();
            drop(less.drain(at..(at + len).min(input.len())));
            if fails(&less) {
                input = less;
            } else {
                at += len;
            }
        }
        len /= 2;
    }
    for at in 0..input.len() {
        let mut less = input.clone();
        less[at] = 0;
        if less != input && fails(&less) {
            input = less;
        }
    }
    input
}

fn given(input: &str) -> Vec<u8> {
    if let Some(file) = input.strip_prefix('@') {
        return std::fs::read(file).unwrap_or_else(|error| panic!("{file}: {error}"));
    }
    let digit = |at: usize| u8::from_str_radix(input.get(at..at + 2).expect("pairs of digits"), 16).expect("digits");
    (0..input.len()).step_by(2).map(digit).collect()
}

/// The committed inputs of a target, in the order of their names.
fn corpus(name: &str) -> Vec<Vec<u8>> {
    let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fuzz/corpus").join(name);
    let entries = std::fs::read_dir(&dir).unwrap_or_else(|error| panic!("{}: {error}", dir.display()));
    let mut files: Vec<PathBuf> = entries.map(|entry| entry.expect("a directory entry").path()).collect();
    files.sort();
    files.iter().map(|file| std::fs::read(file).unwrap_or_else(|error| panic!("{}: {error}", file.display()))).collect()
}
