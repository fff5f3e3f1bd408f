//! The lease: until when the writer may answer, and from when on another may claim the role.
//!
//! Both sides measure durations, each on its own clock, and both clocks run within `1 ± rate_error` of real time:
//!
//! ```text
//!  holder  |-- sends renewal ------------------- stops at send + term ---|
//!  waiter        |-- sees it ------------------------------------------------- claims at seen + wait --|
//! ```
//! The holder stops, in real time, no later than `send + term / (1 - r)`; the waiter claims no earlier than `seen + wait / (1 + r)`, and it
//! sees after the holder sends. So with `wait >= term * (1 + r) / (1 - r) + guard` the two never overlap. This covers reads, services
//! and addresses. Acknowledged writes do not depend on it: they are settled by the record alone.

use std::time::Duration;

use crate::units::Moment;

/// The holder's side.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub(crate) struct Lease {
    length: Duration,
    until: Moment,
    /// Renewals sent before this moment do not count: the clock may have stood still.
    valid_from: Moment,
}

impl Lease {
    pub(crate) fn new(length: Duration) -> Self {
        Self { length, until: Moment(0), valid_from: Moment(0) }
    }

    /// A renewal that was sent at `sent` has been confirmed. True when the lease is longer now.
    pub(crate) fn renewed(&mut self, sent: Moment) -> bool {
        let until = sent.after(self.length);
        let longer = sent >= self.valid_from && until > self.until;
        if longer {
            self.until = until;
        }
        longer
    }

    /// The clock cannot be trusted about the time before `now`: only what is sent from here on renews.
    pub(crate) fn void(&mut self, now: Moment) {
        self.valid_from = now;
        self.until = Moment(0);
    }

    pub(crate) fn until(&self) -> Moment {
        self.until
    }
}

/// The waiter's side.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub(crate) struct Patience {
    wait: Duration,
    since: Moment,
}

impl Patience {
    /// Begins to wait: what an earlier life has seen or promised is not known.
    pub(crate) fn starting(now: Moment, wait: Duration) -> Self {
        Self { wait, since: now }
    }

    /// The holder gave a sign of life, or was promised patience, at `now`.
    pub(crate) fn again(&mut self, now: Moment) {
        self.since = self.since.max(now);
    }

    /// From when on the role may be claimed.
    pub(crate) fn over_at(&self) -> Moment {
        self.since.after(self.wait)
    }
}

/// How long a waiter waits for a lease of `term`, with clocks that err by at most `rate_error_ppm`.
///
/// # Panics
/// When the rate error is a million or more; the configuration bounds it.
#[must_use]
pub fn wait_for(term: Duration, rate_error_ppm: u32, guard: Duration) -> Duration {
    assert!(rate_error_ppm < 1_000_000, "the configuration bounds the rate error");
    let (error, whole) = (u128::from(rate_error_ppm), 1_000_000u128);
    let nanos = (term.as_nanos() * (whole + error)).div_ceil(whole - error);
    Duration::from_nanos(u64::try_from(nanos).unwrap_or(u64::MAX)).saturating_add(guard)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn a_late_confirmation_extends_only_from_its_sending() {
        let mut lease = Lease::new(Duration::from_secs(5));
        assert!(lease.renewed(Moment(1_000)));
        assert_eq!(lease.until(), Moment(5_000_001_000));
        assert!(!lease.renewed(Moment(500)), "an older one");
        lease.void(Moment(2_000));
        assert!(!lease.renewed(Moment(1_999)), "sent before the clock was doubted");
        assert!(lease.renewed(Moment(2_000)));
    }

    proptest! {
        /// The holder's last moment and the waiter's first, in real time, for every pair of clocks within the bound.
        #[test]
        fn they_never_overlap(term_ms in 500u64..60_000, ppm in 0u32..50_000, holder in -1i64..=1, waiter in -1i64..=1, late in 0u64..1000) {
            let term = Duration::from_millis(term_ms);
            let wait = wait_for(term, ppm, Duration::ZERO);
            let rate = |side: i64| 1.0 + f64::from(ppm) * 1e-6 * if side < 0 { -1.0 } else if side > 0 { 1.0 } else { 0.0 };
            // A clock of rate q shows a duration d after d / q of real time.
            let stops = term.as_secs_f64() / rate(holder);
            let claims = f64::from(u32::try_from(late).expect("small")) * 1e-3 + wait.as_secs_f64() / rate(waiter);
            prop_assert!(claims >= stops - 1e-9, "{claims} < {stops}");
        }
    }
}
