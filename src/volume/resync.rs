//! The progress of a resync, on either side.

use std::time::Duration;

use crate::units::{BLOCK_SIZE, Moment};

/// How much of a resync may be under way: one run at most, and all that the target has not written yet.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
struct Portion {
    run_blocks: u64,
    unwritten: u64,
}

/// While the host is quiet.
const QUIET: Portion = Portion { run_blocks: 128, unwritten: 16 << 20 };
/// While the host works: a write never waits behind much of it.
const BUSY: Portion = Portion { run_blocks: 16, unwritten: 256 << 10 };
/// While the host works and resync falls below the rate that it is guaranteed.
const STARVING: Portion = Portion { run_blocks: 32, unwritten: 1 << 20 };
/// Bytes being read at most: what was read is sent while more is read.
const READING_MAX: u64 = 1 << 20;
/// Bytes that may wait for stability on both copies. It is asked for each time that a quarter of it was sent, so that the copies flush
/// while more is under way.
const UNSTABLE_MAX: u64 = 32 << 20;
/// The host counts as working this long after its last request.
const BUSY_FOR: Duration = Duration::from_millis(100);

/// The source's side.
#[derive(Clone, Debug)]
pub(crate) struct Outgoing {
    /// Where the next look for dirty blocks starts.
    pub(crate) from_block: u64,
    /// Bytes being read.
    pub(crate) reading: u64,
    /// Bytes sent and not yet stable on both copies.
    pub(crate) unstable: u64,
    /// Bytes sent since stability was asked for.
    unasked: u64,
    /// When it began.
    pub(crate) began: Moment,
    /// Dirty bytes when it began.
    pub(crate) total: u64,
    /// Bytes stable on both copies.
    pub(crate) done: u64,
    /// Bytes sent that the target has not written yet.
    pub(crate) unwritten: u64,
    /// A look over the whole bitmap has come to its end; what is left is on its way, or others hold it.
    pub(crate) round_ended: bool,
    pace: Pace,
}

impl Outgoing {
    /// A resync of `dirty_blocks` that begins now.
    pub(crate) fn new(now: Moment, dirty_blocks: u64, limits: PaceLimits) -> Self {
        Self {
            from_block: 0,
            reading: 0,
            unstable: 0,
            unasked: 0,
            began: now,
            total: dirty_blocks * BLOCK_SIZE,
            done: 0,
            unwritten: 0,
            round_ended: false,
            pace: Pace::new(now, limits),
        }
    }

    /// How many blocks the next run may have, if one may be read now.
    pub(crate) fn next_run(&mut self, now: Moment, host_active: Moment) -> Option<u64> {
        let busy = now.since(host_active) < BUSY_FOR && host_active != Moment(0);
        let portion = match busy {
            false => QUIET,
            true if self.is_starving(now) => STARVING,
            true => BUSY,
        };
        let room = self.reading < READING_MAX
            && self.reading + self.unwritten < portion.unwritten
            && self.reading + self.unstable < UNSTABLE_MAX;
        (room && self.pace.allows(now)).then_some(portion.run_blocks)
    }

    /// Less than the guaranteed rate was reached so far: the host must give way.
    fn is_starving(&self, now: Moment) -> bool {
        let elapsed_ms = u64::try_from(now.since(self.began).as_millis()).unwrap_or(u64::MAX);
        self.done + self.unstable + self.reading < self.pace.limits.rate_min.saturating_mul(elapsed_ms) / 1000
    }

    /// Takes `bytes` from the allowance.
    pub(crate) fn took(&mut self, bytes: u64) {
        self.reading += bytes;
        self.pace.take(bytes);
    }

    /// A run was sent.
    pub(crate) fn sent(&mut self, bytes: u64) {
        self.reading -= bytes;
        self.unwritten += bytes;
        self.unstable += bytes;
        self.unasked += bytes;
    }

    /// True when stability should be asked for, which the caller then does: much was sent since, or nothing else is left to do.
    pub(crate) fn asks_for_barrier(&mut self) -> bool {
        let last = self.unasked > 0 && self.reading == 0 && self.round_ended;
        let asks = last || self.unasked >= UNSTABLE_MAX / 4;
        if asks {
            self.unasked = 0;
        }
        asks
    }
}

/// The target's side.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Incoming {
    /// When it began.
    pub(crate) began: Moment,
    /// Bytes to come, as the source said.
    pub(crate) total: u64,
    /// Bytes written.
    pub(crate) done: u64,
}

/// Bounds of the rate.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct PaceLimits {
    /// Bytes a second at most; 0 for no bound.
    pub rate_max: u64,
    /// Bytes a second that the host cannot push resync below.
    pub rate_min: u64,
}

/// A token bucket that may go into debt by one run.
#[derive(Clone, Debug)]
struct Pace {
    limits: PaceLimits,
    tokens: u64,
    debt: u64,
    filled: Moment,
}

impl Pace {
    fn new(now: Moment, limits: PaceLimits) -> Self {
        Self { limits, tokens: 0, debt: 0, filled: now }
    }

    fn allows(&mut self, now: Moment) -> bool {
        if self.limits.rate_max == 0 {
            return true;
        }
        let earned = u128::from(self.limits.rate_max) * now.since(self.filled).as_nanos() / 1_000_000_000;
        let earned = u64::try_from(earned).unwrap_or(u64::MAX);
        if earned > 0 {
            self.filled = now;
            let paid = earned.min(self.debt);
            self.debt -= paid;
            // At most a tenth of a second's worth is saved up.
            self.tokens = (self.tokens + earned - paid).min(self.limits.rate_max / 10 + 1);
        }
        self.debt == 0
    }

    fn take(&mut self, bytes: u64) {
        if self.limits.rate_max > 0 {
            let covered = bytes.min(self.tokens);
            self.tokens -= covered;
            self.debt += bytes - covered;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_rate_is_bounded() {
        let mut out = Outgoing::new(Moment(0), 1 << 20, PaceLimits { rate_max: 10 << 20, rate_min: 0 });
        let (mut now, mut sent) = (Moment(0), 0u64);
        while now < Moment(2_000_000_000) {
            if out.next_run(now, Moment(0)).is_some() {
                out.took(512 << 10);
                out.reading = 0;
                sent += 512 << 10;
            }
            now = now.after(Duration::from_millis(1));
        }
        assert!((19 << 20..=22 << 20).contains(&sent), "{sent} bytes in two seconds at 10 MiB/s");
    }

    #[test]
    fn a_busy_host_is_given_way_until_resync_starves() {
        let mut out = Outgoing::new(Moment(0), 1 << 20, PaceLimits { rate_max: 0, rate_min: 8 << 20 });
        (out.unwritten, out.unstable) = (512 << 10, 512 << 10);
        let now = Moment(1_000_000);
        assert_eq!(out.next_run(now, now), None, "what is on its way is bounded while the host works");
        assert_eq!(out.next_run(now, Moment(0)), Some(QUIET.run_blocks), "a quiet host leaves more room");
        let later = now.after(Duration::from_secs(1));
        assert_eq!(out.next_run(later, later), Some(STARVING.run_blocks), "8 MiB should have been done by now");
        (out.unwritten, out.done) = (0, 16 << 20);
        assert_eq!(out.next_run(later, later), Some(BUSY.run_blocks));
    }

    #[test]
    fn stability_is_asked_for_seldom_and_at_the_end() {
        let mut out = Outgoing::new(Moment(0), 1 << 20, PaceLimits { rate_max: 0, rate_min: 0 });
        out.took(64 << 10);
        out.sent(64 << 10);
        assert!(!out.asks_for_barrier(), "more is to come");
        out.round_ended = true;
        assert!(out.asks_for_barrier(), "nothing else is left");
        assert!(!out.asks_for_barrier(), "once is enough");
        out.round_ended = false;
        out.took(UNSTABLE_MAX / 4);
        assert_eq!(out.next_run(Moment(0), Moment(0)), None, "what was read is sent first");
        out.sent(UNSTABLE_MAX / 4);
        assert!(out.asks_for_barrier() && !out.asks_for_barrier());
        (out.unwritten, out.unstable) = (0, UNSTABLE_MAX);
        assert_eq!(out.next_run(Moment(0), Moment(0)), None);
    }
}
