//! Is the peer silent? One ear for each path, and what this node knows of its own health.
//!
//! # One path
//!
//! A two-window detector (2W-FD): the next beat is expected at the later of two means, a short one that follows bursts and a long one that
//! remembers them. That only makes a path *late*; a late path is probed four times as fast. It is *silent* when probing brought nothing for
//! [`Tuning::probing`], no earlier than [`Tuning::floor`] and no later than [`Tuning::cap`] after the last beat. `benches/detector` measures this
//! against the usual detectors over the same traces.
//!
//! # The node's own health
//!
//! A node that was not running for a while has heard nothing, and that says nothing of its peer. Silence that it slept through is
//! forgotten, and while it keeps oversleeping it is slower to judge (as in Lifeguard).
//!
//! # One-way loss
//!
//! Each beat tells what its sender heard last from its receiver. A peer that is heard and does not hear is *deaf*: it lives.

use std::collections::VecDeque;
use std::time::Duration;

use crate::units::Moment;

/// Beats of the short window.
const SHORT: usize = 4;
/// Beats of the long window.
const LONG: usize = 128;
/// Before so many beats were heard, only the floor counts.
const TRAINING: usize = 20;
/// A gap in the numbers that is longer than this begins a new history.
const GAP_MAX: u64 = 1_000;
/// Oversleeping can make this node slower by so many times its floor, in quarters.
const DOZE_MAX: u32 = 8;
/// One doze is forgiven after so long.
const DOZE_FORGIVEN: Duration = Duration::from_secs(10);

/// How a path is judged.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct Tuning {
    /// The peer sends so often.
    pub interval: Duration,
    /// Added to the expected arrival before a path is late.
    pub margin: Duration,
    /// A late path is probed for at least this long before it is silent.
    pub probing: Duration,
    /// No path is silent sooner after its last beat.
    pub floor: Duration,
    /// Every path is silent after this, whatever it was like before.
    pub cap: Duration,
}

impl Tuning {
    /// What fits an interval: late after about two of them, silent after about six.
    #[must_use]
    pub fn of_interval(interval: Duration) -> Self {
        Self {
            interval,
            margin: interval,
            probing: interval * 4,
            floor: interval * 6,
            cap: (interval * 15).max(Duration::from_secs(3)),
        }
    }
}

/// What a path says of the peer.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub enum Suspicion {
    /// Beats come.
    Heard,
    /// A beat is late; the peer is probed.
    Late,
    /// Nothing, for too long.
    Silent,
    /// Nothing since this node started.
    Unheard,
}

/// One path.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub struct Ear {
    tuning: Tuning,
    /// Arrival minus number times interval, in nanoseconds, youngest last.
    offsets: VecDeque<i128>,
    short_sum: i128,
    long_sum: i128,
    incarnation: u64,
    sequence: u64,
    /// The last beat, or the end of the last sleep of this node.
    heard: Option<Moment>,
    late_since: Option<Moment>,
}

fn nanos(duration: Duration) -> i128 {
    i128::try_from(duration.as_nanos()).unwrap_or(i128::MAX)
}

impl Ear {
    /// A path on which nothing was heard yet.
    #[must_use]
    pub fn new(tuning: Tuning) -> Self {
        Self {
            tuning,
            offsets: VecDeque::with_capacity(LONG + 1),
            short_sum: 0,
            long_sum: 0,
            incarnation: 0,
            sequence: 0,
            heard: None,
            late_since: None,
        }
    }

    /// A beat came. False when it is older than one already heard.
    pub fn hear(&mut self, now: Moment, incarnation: u64, sequence: u64) -> bool {
        let same = self.heard.is_some() && self.incarnation == incarnation;
        if same && sequence <= self.sequence {
            return false;
        }
        if !same || sequence - self.sequence > GAP_MAX {
            self.offsets.clear();
            (self.short_sum, self.long_sum) = (0, 0);
        }
        (self.incarnation, self.sequence) = (incarnation, sequence);
        self.heard = Some(now);
        self.late_since = None;
        let offset = i128::from(now.0) - i128::from(sequence) * nanos(self.tuning.interval);
        self.offsets.push_back(offset);
        self.long_sum += offset;
        self.short_sum += offset;
        let len = self.offsets.len();
        if len > SHORT {
            self.short_sum -= self.offsets[len - 1 - SHORT];
        }
        if len > LONG {
            self.long_sum -= self.offsets.pop_front().expect("more than the window");
        }
        true
    }

    /// An answer to a probe came: life, but no beat by the clock, so that it teaches nothing about arrivals.
    pub fn alive(&mut self, now: Moment) {
        self.heard = Some(now);
        self.late_since = None;
    }

    /// When the next beat is late; nothing is late that was never heard.
    fn late_at(&self) -> Option<Moment> {
        let heard = self.heard?;
        let soonest = heard.after(self.tuning.interval + self.tuning.margin);
        let len = self.offsets.len();
        if len < TRAINING {
            return Some(soonest);
        }
        let windows = [(self.short_sum, len.min(SHORT)), (self.long_sum, len.min(LONG))];
        let means = windows.map(|(sum, count)| sum / i128::try_from(count).expect("a small window"));
        let expected = means[0].max(means[1]) + (i128::from(self.sequence) + 1) * nanos(self.tuning.interval);
        let expected = Moment(u64::try_from(expected.max(0)).unwrap_or(u64::MAX));
        Some(expected.after(self.tuning.margin).max(soonest))
    }

    /// When the path is silent, if nothing is heard until then. `patience` in quarters of the floor is added to it.
    fn silent_at(&self, patience: u32) -> Option<Moment> {
        let heard = self.heard?;
        let more = self.tuning.floor * patience / 4;
        let probed = self.late_at()?.after(self.tuning.probing).max(heard.after(self.tuning.floor));
        Some(probed.min(heard.after(self.tuning.cap)).after(more))
    }

    /// What the path says now.
    #[must_use]
    pub fn suspicion(&self, now: Moment, patience: u32) -> Suspicion {
        match (self.late_at(), self.silent_at(patience)) {
            (Some(_), Some(silent)) if now >= silent => Suspicion::Silent,
            (Some(late), Some(_)) if now >= late => Suspicion::Late,
            (Some(_), Some(_)) => Suspicion::Heard,
            _ => Suspicion::Unheard,
        }
    }

    /// When [`suspicion`](Self::suspicion) changes, if nothing is heard.
    #[must_use]
    pub fn deadline(&self, now: Moment, patience: u32) -> Option<Moment> {
        let silent = self.silent_at(patience)?;
        let late = self.late_at().filter(|&late| late > now && late < silent);
        late.or((silent > now).then_some(silent))
    }

    /// This node slept: the silence until `now` does not count.
    fn forget_silence(&mut self, now: Moment) {
        if self.heard.is_some() {
            self.heard = Some(now);
        }
    }

    /// The last number heard, of which incarnation.
    #[must_use]
    pub fn last(&self) -> Option<(u64, u64)> {
        self.heard.map(|_| (self.incarnation, self.sequence))
    }
}

/// Every path to the peer, and this node's own health.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub struct Sentry {
    tuning: Tuning,
    ears: Vec<Ear>,
    /// When each path last told that the peer hears this node on it.
    heard_back: Vec<Option<Moment>>,
    /// How often this node overslept lately, in quarters of the floor.
    doze: u32,
    dozed: Moment,
}

impl Sentry {
    /// Over `paths` paths, nothing heard.
    #[must_use]
    pub fn new(tuning: Tuning, paths: usize) -> Self {
        let (ears, heard_back) = (vec![Ear::new(tuning); paths], vec![None; paths]);
        Self { tuning, ears, heard_back, doze: 0, dozed: Moment(0) }
    }

    /// This node wanted to run at `due` and runs only `now`. True when that was too late to judge anybody.
    pub fn woke(&mut self, now: Moment, due: Moment) -> bool {
        if self.doze > 0 && now.since(self.dozed) >= DOZE_FORGIVEN {
            self.doze -= 1;
            self.dozed = now;
        }
        let overslept = now.since(due) > self.tuning.interval * 2;
        if overslept {
            self.doze = (self.doze + 1).min(DOZE_MAX);
            self.dozed = now;
            for ear in &mut self.ears {
                ear.forget_silence(now);
            }
        }
        overslept
    }

    /// A beat came on a path; `hears_us`: its sender hears this node on it. False when it is older than one already heard.
    pub fn hear(&mut self, now: Moment, path: usize, incarnation: u64, sequence: u64, hears_us: bool) -> bool {
        let Some(ear) = self.ears.get_mut(path) else { return false };
        let news = ear.hear(now, incarnation, sequence);
        if news && hears_us {
            self.heard_back[path] = Some(now);
        }
        news
    }

    /// The answer to a probe came.
    pub fn alive(&mut self, now: Moment, path: usize) {
        if let Some(ear) = self.ears.get_mut(path) {
            ear.alive(now);
        }
    }

    /// The best that any path says: the peer is silent when it is silent everywhere.
    #[must_use]
    pub fn suspicion(&self, now: Moment) -> Suspicion {
        self.ears.iter().map(|ear| ear.suspicion(now, self.doze)).min().unwrap_or(Suspicion::Unheard)
    }

    /// True when the peer is heard and does not hear this node on any path.
    #[must_use]
    pub fn deaf(&self, now: Moment) -> bool {
        let hears_us = |at: &Option<Moment>| at.is_some_and(|at| now.since(at) <= self.tuning.cap);
        self.suspicion(now) <= Suspicion::Late && !self.heard_back.iter().any(hears_us)
    }

    /// What was heard last on a path.
    #[must_use]
    pub fn last(&self, path: usize) -> Option<(u64, u64)> {
        self.ears.get(path)?.last()
    }

    /// When something of this changes, if nothing is heard.
    #[must_use]
    pub fn deadline(&self, now: Moment) -> Option<Moment> {
        self.ears.iter().filter_map(|ear| ear.deadline(now, self.doze)).min()
    }

    /// How many paths there are.
    #[must_use]
    pub fn paths(&self) -> usize {
        self.ears.len()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const INTERVAL: Duration = Duration::from_millis(200);

    fn at(ms: u64) -> Moment {
        Moment(ms * 1_000_000)
    }

    fn trained() -> Sentry {
        let mut sentry = Sentry::new(Tuning::of_interval(INTERVAL), 2);
        for number in 1..=50 {
            assert!(sentry.hear(at(number * 200), 0, 7, number, true));
        }
        sentry
    }

    #[test]
    fn silence_is_late_then_silent_and_never_before_the_floor() {
        let sentry = trained();
        let said = |ms: u64| sentry.suspicion(at(10_000 + ms));
        assert_eq!((said(399), said(400)), (Suspicion::Heard, Suspicion::Late));
        assert_eq!((said(1_199), said(1_200)), (Suspicion::Late, Suspicion::Silent));
        assert_eq!(sentry.deadline(at(10_000)), Some(at(10_400)));
    }

    #[test]
    fn one_path_that_lives_is_life() {
        let mut sentry = trained();
        assert!(sentry.hear(at(11_500), 1, 7, 3, false));
        assert_eq!(sentry.suspicion(at(11_600)), Suspicion::Heard);
        assert!(!sentry.deaf(at(11_600)), "it heard this node 1.6 s ago on the other path");
        assert!(sentry.hear(at(14_000), 1, 7, 15, false));
        assert!(sentry.deaf(at(14_000)), "it speaks, and hears nothing");
    }

    #[test]
    fn a_node_that_overslept_blames_nobody_and_is_slower_for_a_while() {
        let mut sentry = trained();
        assert!(!sentry.woke(at(10_300), at(10_200)));
        assert!(sentry.woke(at(40_000), at(10_400)));
        assert_eq!(sentry.suspicion(at(40_000)), Suspicion::Heard);
        assert_eq!(sentry.suspicion(at(41_499)), Suspicion::Late, "a quarter slower than 1.2 s");
        assert_eq!(sentry.suspicion(at(41_600)), Suspicion::Silent);
        assert!(!sentry.woke(at(50_100), at(50_100)));
        assert!(sentry.hear(at(50_100), 0, 7, 51, true));
        assert_eq!(sentry.suspicion(at(51_300)), Suspicion::Silent, "forgiven");
    }

    #[test]
    fn an_older_beat_is_not_news_and_a_restarted_peer_is() {
        let mut sentry = trained();
        assert!(!sentry.hear(at(10_100), 0, 7, 50, true));
        assert!(sentry.hear(at(10_100), 0, 8, 1, true));
        assert!(!sentry.hear(at(10_100), 9, 8, 1, true), "no such path");
    }

    proptest! {
        /// Whatever came before: a path is silent between the floor and the cap after its last beat, and the deadline leads there.
        #[test]
        fn silence_is_bounded(gaps in proptest::collection::vec((1u64..4_000, 1u64..20), 1..200)) {
            let tuning = Tuning::of_interval(INTERVAL);
            let mut ear = Ear::new(tuning);
            let (mut now, mut number) = (Moment(1), 0);
            for (ms, skip) in gaps {
                now = now.after(Duration::from_millis(ms));
                number += skip;
                prop_assert!(ear.hear(now, 1, number));
            }
            let mut look = now;
            while let Some(next) = ear.deadline(look, 0) {
                look = next;
            }
            prop_assert_eq!(ear.suspicion(look, 0), Suspicion::Silent);
            prop_assert!(look >= now.after(tuning.floor) && look <= now.after(tuning.cap));
        }
    }
}
