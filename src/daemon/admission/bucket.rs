//! A token bucket for each source. Pure: the clock is passed in.
//!
//! A bucket is one number, the moment at which it is full again. A token taken moves that moment on by the time in which one
//! token grows; a bucket is empty when the moment lies a whole burst ahead. What is full again is forgotten.

use std::collections::BTreeMap;
use std::time::Duration;

use super::source::Source;
use crate::units::Moment;

/// Sources that are told apart. When more are there, the one that took least is forgotten: who comes from so many addresses is not held
/// by a bucket for each.
const SOURCES_MAX: usize = 1024;

/// How fast tokens grow, and how many there are after a pause.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::daemon) struct Rate {
    /// The time in which one grows.
    pub(in crate::daemon) token: Duration,
    /// Most at a time; at least 1.
    pub(in crate::daemon) burst: u32,
}

/// One bucket.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(super) struct Bucket {
    full_at: Moment,
    /// The first refusal since it was full was told.
    told: bool,
}

/// What became of a wish for a token.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Taken {
    Yes,
    /// There is none. `first`: as not since the bucket was full.
    No {
        first: bool,
    },
}

impl Bucket {
    /// Takes a token, if there is one.
    pub(super) fn take(&mut self, rate: Rate, now: Moment) -> Taken {
        if self.full_at <= now {
            *self = Self { full_at: now, told: false };
        }
        let after = self.full_at.after(rate.token);
        if after.since(now) > rate.token.saturating_mul(rate.burst) {
            return Taken::No { first: !std::mem::replace(&mut self.told, true) };
        }
        self.full_at = after;
        Taken::Yes
    }
}

/// A bucket for each source.
#[derive(Debug)]
pub(super) struct Buckets {
    rate: Rate,
    open: BTreeMap<Source, Bucket>,
}

impl Buckets {
    pub(super) fn new(rate: Rate) -> Self {
        Self { rate, open: BTreeMap::new() }
    }

    /// Takes a token of `source`, if there is one.
    pub(super) fn take(&mut self, source: Source, now: Moment) -> Taken {
        if self.open.len() >= SOURCES_MAX && !self.open.contains_key(&source) {
            self.open.retain(|_, bucket| bucket.full_at > now);
            if self.open.len() >= SOURCES_MAX {
                let least = self.open.iter().min_by_key(|(_, bucket)| bucket.full_at).map(|(source, _)| *source);
                least.map(|source| self.open.remove(&source));
            }
        }
        self.open.entry(source).or_default().take(self.rate, now)
    }
}

#[cfg(test)]
mod tests {
    use std::net::IpAddr;

    use proptest::prelude::*;

    use super::*;

    fn source(n: u32) -> Source {
        Source::of(IpAddr::V4(n.into()))
    }

    proptest! {
        /// In any stretch of time there are at most a burst and what grows meanwhile; and who asks no faster is never refused.
        #[test]
        fn no_stretch_of_time_has_more_than_a_burst_and_what_grew(
            token_ms in 1u64..100,
            burst in 1u32..20,
            gaps_ms in proptest::collection::vec(0u64..200, 1..100),
        ) {
            let rate = Rate { token: Duration::from_millis(token_ms), burst };
            let (mut bucket, mut now, mut yes) = (Bucket::default(), 0, Vec::new());
            // What a bucket is in the books: tokens as thousandths, which grow with time and never above the burst.
            let mut tokens = u64::from(burst) * token_ms;
            for gap in &gaps_ms {
                now += gap;
                tokens = (tokens + gap).min(u64::from(burst) * token_ms);
                let taken = bucket.take(rate, Moment(now * 1_000_000)) == Taken::Yes;
                prop_assert_eq!(taken, tokens >= token_ms, "at {} ms", now);
                if taken {
                    tokens -= token_ms;
                    yes.push(now);
                }
            }
            for (i, start) in yes.iter().enumerate() {
                for (j, end) in yes.iter().enumerate().skip(i) {
                    let (count, most) = (j - i + 1, u64::from(burst) + (end - start) / token_ms);
                    prop_assert!(u64::try_from(count).expect("small") <= most);
                }
            }
        }

        /// What others do changes nothing, as long as they can be told apart.
        #[test]
        fn a_source_is_not_charged_for_another(asks in proptest::collection::vec((0u32..5, 0u64..30), 1..200)) {
            let rate = Rate { token: Duration::from_millis(20), burst: 3 };
            let mut all = Buckets::new(rate);
            let mut alone: BTreeMap<u32, Bucket> = BTreeMap::new();
            let mut now = 0;
            for (who, gap) in asks {
                now += gap * 1_000_000;
                let expected = alone.entry(who).or_default().take(rate, Moment(now));
                prop_assert_eq!(all.take(source(who), Moment(now)), expected);
            }
        }
    }

    #[test]
    fn a_refusal_is_told_once_until_there_was_peace() {
        let rate = Rate { token: Duration::from_secs(1), burst: 2 };
        let (mut bucket, mut now) = (Bucket::default(), Moment(5));
        assert_eq!([(); 2].map(|()| bucket.take(rate, now)), [Taken::Yes; 2]);
        assert_eq!(bucket.take(rate, now), Taken::No { first: true });
        assert_eq!(bucket.take(rate, now), Taken::No { first: false });
        now = now.after(Duration::from_secs(1));
        assert_eq!(bucket.take(rate, now), Taken::Yes, "one has grown");
        assert_eq!(bucket.take(rate, now), Taken::No { first: false });
        now = now.after(Duration::from_secs(2));
        assert_eq!([(); 2].map(|()| bucket.take(rate, now)), [Taken::Yes; 2]);
        assert_eq!(bucket.take(rate, now), Taken::No { first: true });
    }

    #[test]
    fn memory_is_bounded_and_the_greediest_are_remembered() {
        let rate = Rate { token: Duration::from_secs(1), burst: 2 };
        let mut buckets = Buckets::new(rate);
        let now = Moment(0);
        let greedy = source(0);
        assert_eq!([(); 2].map(|()| buckets.take(greedy, now)), [Taken::Yes; 2]);
        for n in 1..5000 {
            assert_eq!(buckets.take(source(n), now), Taken::Yes);
            assert!(buckets.open.len() <= SOURCES_MAX);
        }
        assert_eq!(buckets.take(greedy, now), Taken::No { first: true });
        // All are full again, and forgotten with the next newcomer.
        assert_eq!(buckets.take(source(9999), now.after(Duration::from_secs(9))), Taken::Yes);
        assert_eq!(buckets.open.len(), 1);
    }
}
