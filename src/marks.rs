//! Rank 0: coverage marks. A subtle branch names itself when it is taken, and a test asserts that it was.
//!
//! A test that passes because the branch it is about was never taken proves nothing. `tests/sim/coverage.rs` reads every mark's name
//! from the sources and fails for those that its seeds did not reach.
//!
//! Marks exist in builds with debug assertions, one record for each thread; in a release nothing is left of them. They are
//! written and never read by the program: no decision can come to depend on them.

use std::collections::BTreeMap;

#[cfg(debug_assertions)]
thread_local! {
    static REACHED: std::cell::RefCell<BTreeMap<&'static str, u64>> = const { std::cell::RefCell::new(BTreeMap::new()) };
}

/// A branch was taken. `name` is a literal, used once in the sources.
#[inline]
pub fn reached(name: &'static str) {
    #[cfg(debug_assertions)]
    REACHED.with_borrow_mut(|reached| *reached.entry(name).or_default() += 1);
    #[cfg(not(debug_assertions))]
    let _ = name;
}

/// What this thread has reached since it was last asked, and how often. Empty without debug assertions.
#[must_use]
pub fn take() -> BTreeMap<&'static str, u64> {
    #[cfg(debug_assertions)]
    return REACHED.take();
    #[cfg(not(debug_assertions))]
    BTreeMap::new()
}
