//! The progress of a resync, on either side.

use std::time::Duration;

use crate::units::{BLOCK_SIZE, Moment};

/// Longest run of dirty blocks sent as one, in blocks: 512 KiB.
pub(crate) const RUN_BLOCKS_MAX: u64 = 128;
/// Resync data on its way while the host is quiet, in bytes.
const OUTSTANDING_IDLE: u64 = 16 << 20;
/// Resync data on its way while the host works, in bytes. Small, so that a write never waits behind much of it.
const OUTSTANDING_BUSY: u64 = 512 << 10;
/// The host counts as working this long after its last request.
const BUSY_FOR: Duration = Duration::from_millis(100);

/// The source's side.
#[derive(Debug)]
pub(crate) struct Outgoing {
    /// Where the next look for dirty blocks starts.
    pub(crate) from_block: u64,
    /// Bytes being read.
    pub(crate) reading: u64,
    /// Bytes sent and not yet stable on both copies.
    pub(crate) unstable: u64,
    /// When it began.
    pub(crate) began: Moment,
    /// Dirty bytes when it began.
    pub(crate) total: u64,
    /// Bytes stable on both copies.
    pub(crate) done: u64,
    /// Bytes that may be on their way, as of the last look.
    limit: u64,
    pace: Pace,
}

impl Outgoing {
    /// A resync of `dirty_blocks` that begins now.
    pub(crate) fn new(now: Moment, dirty_blocks: u64, limits: PaceLimits) -> Self {
        Self {
            from_block: 0,
            reading: 0,
            unstable: 0,
            began: now,
            total: dirty_blocks * BLOCK_SIZE,
            done: 0,
            limit: OUTSTANDING_IDLE,
            pace: Pace::new(now, limits),
        }
    }

    /// True when another run may be read now.
    pub(crate) fn may_read(&mut self, now: Moment, host_active: Moment) -> bool {
        let busy = now.since(host_active) < BUSY_FOR && host_active != Moment(0);
        let limit = if busy && !self.is_starving(now) { OUTSTANDING_BUSY } else { OUTSTANDING_IDLE };
        self.limit = limit;
        self.reading + self.unstable < limit && self.pace.allows(now)
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

    /// True when so much waits for stability that it should be asked for.
    pub(crate) fn wants_barrier(&self) -> bool {
        self.reading == 0 && self.unstable > 0 || self.unstable >= self.limit / 2
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
#[derive(Debug)]
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
            if out.may_read(now, Moment(0)) {
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
        out.unstable = 1 << 20;
        let now = Moment(1_000_000);
        assert!(!out.may_read(now, now), "outstanding data is bounded while the host works");
        assert!(out.may_read(now, Moment(0)), "an idle host leaves more room");
        let later = now.after(Duration::from_secs(1));
        assert!(out.may_read(later, later), "8 MiB should have been done by now, and nothing was");
    }
}
