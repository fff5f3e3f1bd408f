//! How failover behaves, and the arithmetic that refuses what would be unsafe.

use std::time::Duration;

use crate::failover::detector::Tuning;
use crate::failover::lease::wait_for;
use crate::units::{ClusterId, DiskInstance, VolumeId};

/// Who decides whether a peer may be excluded or promoted.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum Arbiter {
    /// A record changed by compare-and-swap. At most one node acknowledges, whatever is delayed, lost, paused or cut.
    Etcd,
    /// A command that switches the peer off. At most one node acknowledges if what the command says is true.
    Fence,
    /// A small process on each host that can prove that host's daemon dead and demoted. No failover when the whole host is lost.
    Agent,
    /// An operator.
    None,
}

impl Arbiter {
    /// The word in the configuration and in `status`.
    #[must_use]
    pub fn word(self) -> &'static str {
        match self {
            Self::Etcd => "etcd",
            Self::Fence => "fence",
            Self::Agent => "agent",
            Self::None => "none",
        }
    }

    /// What it guarantees: for the start, `status` and the docs.
    #[must_use]
    pub fn guarantee(self) -> &'static str {
        match self {
            Self::Etcd => {
                "at most one node acknowledges writes, whatever is delayed, paused or cut; the standby takes over by itself when the \
                 primary's lease is over; without the arbiter a healthy pair goes on and nothing fails over"
            }
            Self::Fence => {
                "at most one node acknowledges writes if a fence that reports success has really switched the peer off; the standby takes \
                 over by itself after such a success, and nobody goes on alone without one"
            }
            Self::Agent => {
                "at most one node acknowledges writes; the standby takes over by itself when the primary's daemon is proved dead by the \
                 agent of its host, and never when the whole host is silent: then an operator promotes"
            }
            Self::None => {
                "no arbiter is configured: a primary that loses its peer goes on alone at once, and only an operator promotes; never \
                 promote a node while the other may still be primary, or both acknowledge writes"
            }
        }
    }
}

/// Times.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct Timing {
    /// The peer's beats.
    pub detector: Tuning,
    /// The writer's lease.
    pub lease: Duration,
    /// The lease is renewed in the record so often, and a standby reads it four times as often.
    pub renew: Duration,
    /// An arbiter that has not answered a question after this long is taken for unreachable; what it was asked is in doubt.
    pub arbiter_timeout: Duration,
    /// Clocks err by at most so many millionths.
    pub rate_error_ppm: u32,
    /// Added to the wait for the other's lease.
    pub guard: Duration,
    /// In mode `fence`, the standby gives the primary so long to fence first.
    pub fence_delay: Duration,
    /// A fence or an agent that could prove nothing is asked again after this long.
    pub proof_again: Duration,
    /// After an automatic failover, silence alone causes no other for this long.
    pub dwell: Duration,
    /// Silence alone promotes only a copy that was in sync for this long.
    pub settled: Duration,
    /// An orderly change of roles takes at most this long before it is undone.
    pub hand_over: Duration,
}

impl Default for Timing {
    fn default() -> Self {
        Self {
            detector: Tuning::of_interval(Duration::from_millis(200)),
            lease: Duration::from_secs(5),
            renew: Duration::from_millis(1500),
            arbiter_timeout: Duration::from_millis(1000),
            rate_error_ppm: 1_000,
            guard: Duration::from_millis(500),
            fence_delay: Duration::from_secs(10),
            proof_again: Duration::from_secs(5),
            dwell: Duration::from_secs(60),
            settled: Duration::from_secs(30),
            hand_over: Duration::from_secs(3),
        }
    }
}

/// A combination of times that could not be safe, or would fail over for nothing.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
#[error("{0}")]
pub struct Unsafe(String);

impl Timing {
    /// How long a standby waits after the writer's last sign of life before it may claim.
    #[must_use]
    pub fn claim_wait(&self) -> Duration {
        wait_for(self.lease, self.rate_error_ppm, self.guard)
    }

    /// Refuses unsafe combinations, with the arithmetic.
    ///
    /// # Errors
    /// The first combination that does not hold.
    pub fn check(&self) -> Result<(), Unsafe> {
        self.check_detector()?;
        self.check_lease()
    }

    /// The part of [`check`](Self::check) that holds in every mode.
    ///
    /// # Errors
    /// The first combination that does not hold.
    pub fn check_detector(&self) -> Result<(), Unsafe> {
        let ms = |duration: Duration| duration.as_millis();
        let Tuning { interval, floor, cap, .. } = self.detector;
        let refuse = |text: String| Err(Unsafe(text));
        if interval < Duration::from_millis(20) {
            return refuse(format!("heartbeat_interval_ms is {} ms, and at least 20 ms are needed", ms(interval)));
        }
        if floor < interval * 4 {
            let (floor, need) = (ms(floor), ms(interval * 4));
            return refuse(format!(
                "heartbeat_timeout_ms is {floor} ms; four lost heartbeats must not look like a death: at least 4 x {} ms = {need} ms",
                ms(interval)
            ));
        }
        if cap < floor {
            return refuse(format!(
                "heartbeat_timeout_max_ms is {} ms, below heartbeat_timeout_ms, {} ms",
                ms(cap),
                ms(floor)
            ));
        }
        Ok(())
    }

    fn check_lease(&self) -> Result<(), Unsafe> {
        let ms = |duration: Duration| duration.as_millis();
        let Tuning { floor, .. } = self.detector;
        let refuse = |text: String| Err(Unsafe(text));
        let needed = self.renew * 2 + self.arbiter_timeout;
        if needed > self.lease {
            return refuse(format!(
                "lease_ms is {} ms; one renewal must be able to fail: 2 x renew_ms + arbiter_timeout_ms = 2 x {} ms + {} ms = {} ms",
                ms(self.lease),
                ms(self.renew),
                ms(self.arbiter_timeout),
                ms(needed)
            ));
        }
        if self.rate_error_ppm > 100_000 {
            return refuse(format!("clock_rate_error_ppm is {} ppm; at most 100000 are believed", self.rate_error_ppm));
        }
        if floor > self.lease {
            let (floor, lease) = (ms(floor), ms(self.lease));
            return refuse(format!("heartbeat_timeout_ms is {floor} ms, longer than the lease of {lease} ms"));
        }
        Ok(())
    }
}

/// How failover of one volume behaves.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub struct Config {
    /// This node's name.
    pub node: String,
    /// The peer's name.
    pub peer: String,
    /// The cluster.
    pub cluster: ClusterId,
    /// The volume.
    pub volume: VolumeId,
    /// This node's copy.
    pub instance: DiskInstance,
    /// Drawn when this daemon started.
    pub incarnation: u64,
    /// Heartbeat paths to the peer, the data link included when beats travel in it.
    pub paths: usize,
    /// Who decides.
    pub arbiter: Arbiter,
    /// Mode `etcd`: an agent runs on the peer's host and can prove its daemon dead. In mode `agent` one always does.
    pub agent: bool,
    /// Times; the shell has [checked](Timing::check) them.
    pub timing: Timing,
    /// This node takes over by itself.
    pub automatic: bool,
    /// Automatic failovers that an hour may see.
    pub automatic_per_hour: usize,
    /// A gateway must answer, or this node takes nothing over.
    pub gateway: bool,
    /// Mode `none` with a gateway: silence of the peer promotes. Two primaries are possible.
    pub accept_split_brain: bool,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_defaults_are_safe() {
        assert_eq!(Timing::default().check(), Ok(()));
        assert!(Timing::default().claim_wait() <= Duration::from_millis(5_600));
    }

    #[test]
    fn unsafe_times_are_refused_with_the_arithmetic() {
        let refused = |change: fn(&mut Timing)| {
            let mut timing = Timing::default();
            change(&mut timing);
            timing.check().expect_err("it is unsafe").to_string()
        };
        assert!(refused(|t| t.renew = Duration::from_secs(3)).contains("2 x 3000 ms + 1000 ms = 7000 ms"));
        assert!(refused(|t| t.detector.floor = Duration::from_millis(300)).contains("4 x 200 ms = 800 ms"));
        assert!(refused(|t| t.detector.interval = Duration::from_millis(5)).contains("at least 20 ms"));
        assert!(refused(|t| t.detector.cap = Duration::from_secs(1)).contains("below heartbeat_timeout_ms"));
        assert!(refused(|t| t.rate_error_ppm = 200_000).contains("100000"));
        assert!(
            refused(|t| (t.detector.floor, t.detector.cap) = (Duration::from_secs(9), Duration::from_secs(9)))
                .contains("lease")
        );
    }
}
