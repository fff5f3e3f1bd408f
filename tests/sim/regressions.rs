//! Seeds that once failed, each with the name of its fault. What it taught is a scenario of that name.

/// A seed and what was wrong.
const SEEDS: &[(u64, &str)] = &[];

#[test]
fn what_once_failed_does_not_fail_again() {
    for &(seed, name) in SEEDS {
        if let Err(why) = crate::check(seed) {
            panic!("{name}: {why}");
        }
    }
}
