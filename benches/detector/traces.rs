//! Seeded traces of heartbeats: when each was sent, whether it was lost, when it was taken in.

use std::time::Duration;

/// Nanoseconds.
pub(crate) const SECOND: u64 = 1_000_000_000;
/// A beat is sent so often.
pub(crate) const INTERVAL: u64 = SECOND / 5;
/// The lease is renewed so often.
const RENEW: u64 = 3 * SECOND / 2;

/// Intervals of time, sorted and apart.
type Spans = Vec<(u64, u64)>;

/// What a trace is like. Times in milliseconds; `every` is the mean time between two of a kind, in seconds, 0 for never.
#[derive(Clone, Copy, Default)]
pub(crate) struct Kind {
    /// Beats lost, each by itself, in permille.
    pub(crate) loss: u64,
    /// Bursts in which everything is lost, both ways: mean seconds between, shortest, longest.
    pub(crate) bursts: (u64, u64, u64),
    /// The sender stands still.
    pub(crate) sender: (u64, u64, u64),
    /// The receiver stands still.
    pub(crate) receiver: (u64, u64, u64),
    /// Both stand still at once.
    pub(crate) both: (u64, u64, u64),
    /// The delay goes from 1 ms to 50 ms and back, every so many seconds.
    pub(crate) steps: u64,
    /// Nothing of the receiver reaches the sender.
    pub(crate) one_way: bool,
}

/// A course of heartbeats.
pub(crate) struct Trace {
    kind: Kind,
    /// When each beat that was not lost was taken in, and its number.
    pub(crate) arrivals: Vec<(u64, u64)>,
    bursts: Spans,
    sender: Spans,
    receiver: Spans,
    end: u64,
}

/// Whole nanoseconds, none when there are less than none.
pub(crate) fn whole(nanos: f64) -> u64 {
    u64::try_from(Duration::from_secs_f64(nanos.max(0.0) / 1e9).as_nanos()).expect("a trace is short")
}

fn mixed(mut z: u64) -> u64 {
    z = z.wrapping_add(0x9e37_79b9_7f4a_7c15);
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

/// A fraction below one, from a seed.
fn chance(seed: u64) -> f64 {
    (mixed(seed) >> 11) as f64 / (1u64 << 53) as f64
}

fn spans(seed: u64, (every, shortest, longest): (u64, u64, u64), end: u64) -> Spans {
    let mut spans = vec![];
    // Nothing happens in the first minute: detectors learn.
    let (mut at, mut roll) = (60 * SECOND, seed << 32);
    if every == 0 {
        return spans;
    }
    loop {
        roll += 2;
        let gap = -(1.0 - chance(roll)).ln() * (every * SECOND) as f64;
        let length = shortest as f64 * (longest as f64 / shortest as f64).powf(chance(roll + 1));
        at += whole(gap) + SECOND;
        let until = at + whole(length * 1e6);
        if until > end {
            return spans;
        }
        spans.push((at, until));
        at = until;
    }
}

fn within(spans: &Spans, at: u64) -> Option<(u64, u64)> {
    let next = spans.partition_point(|span| span.0 <= at);
    spans[..next].last().copied().filter(|span| at < span.1)
}

fn merged(a: Spans, b: &Spans) -> Spans {
    let mut all: Spans = a.into_iter().chain(b.iter().copied()).collect();
    all.sort_unstable();
    let mut merged: Spans = vec![];
    for (from, until) in all {
        match merged.last_mut().filter(|last| from <= last.1) {
            Some(last) => last.1 = last.1.max(until),
            None => merged.push((from, until)),
        }
    }
    merged
}

impl Trace {
    /// The trace of a kind, `end` nanoseconds long; always the same one.
    pub(crate) fn new(kind: Kind, end: u64) -> Self {
        let both = spans(4, kind.both, end);
        let mut trace = Self {
            kind,
            arrivals: vec![],
            bursts: spans(1, kind.bursts, end),
            sender: merged(spans(2, kind.sender, end), &both),
            receiver: merged(spans(3, kind.receiver, end), &both),
            end,
        };
        let mut last = 0;
        for sequence in 1..end / INTERVAL {
            let sent = sequence * INTERVAL;
            if within(&trace.sender, sent).is_some() || trace.lost(sent, 5) {
                continue;
            }
            // One path does not overtake itself here; a stopped receiver takes in what has come when it goes on.
            last = trace.awake_at(sent + trace.delay(sent)).max(last + 1);
            trace.arrivals.push((last, sequence));
        }
        trace
    }

    fn lost(&self, at: u64, salt: u64) -> bool {
        within(&self.bursts, at).is_some() || chance(at ^ (salt << 50)) * 1000.0 < self.kind.loss as f64
    }

    /// Lognormal around 50 us, with a tail of milliseconds.
    fn delay(&self, at: u64) -> u64 {
        let normal = (-2.0 * (1.0 - chance(at ^ 77)).ln()).sqrt() * (std::f64::consts::TAU * chance(at ^ 78)).cos();
        let base = match self.kind.steps {
            0 => 0,
            every if (at / SECOND / every).is_multiple_of(2) => SECOND / 1000,
            _ => SECOND / 20,
        };
        base + whole(50_000.0 * (normal * 0.8).exp())
    }

    /// `at`, or when the receiver goes on if it stands still then.
    pub(crate) fn awake_at(&self, at: u64) -> u64 {
        within(&self.receiver, at).map_or(at, |span| span.1)
    }

    /// A time between two moments in which the receiver stood still.
    pub(crate) fn receiver_stopped(&self, from: u64, until: u64) -> Option<(u64, u64)> {
        let next = self.receiver.partition_point(|span| span.0 <= until);
        self.receiver[..next].last().copied().filter(|span| span.1 > from)
    }

    /// When the answer to a probe comes, if it does.
    pub(crate) fn answered(&self, probe: u64) -> Option<u64> {
        let there = probe + self.delay(probe);
        let back = there + self.delay(there);
        let dead = self.kind.one_way || within(&self.sender, there).is_some();
        (!dead && !self.lost(probe, 6) && !self.lost(there, 7)).then_some(back)
    }

    /// When the receiver last saw a renewal before `at`. Renewals do not travel on the heartbeat path.
    pub(crate) fn renewal_seen_before(&self, at: u64) -> u64 {
        let mut renewal = at / RENEW * RENEW;
        while renewal > 0 && within(&self.sender, renewal).is_some() {
            renewal -= RENEW;
        }
        renewal
    }

    /// Moments of supposed deaths, one about every ten seconds.
    pub(crate) fn deaths(&self) -> impl Iterator<Item = u64> + use<> {
        let (end, sender, receiver) = (self.end, self.sender.clone(), self.receiver.clone());
        (7..end / SECOND / 10)
            .map(|i| i * 10 * SECOND + whole(chance(i ^ 99) * 9.0 * SECOND as f64))
            // Who stands still already cannot be seen to die.
            .filter(move |&at| within(&sender, at).is_none() && within(&receiver, at).is_none())
    }
}

/// The kinds of traces, by name.
pub(crate) fn kinds() -> Vec<(&'static str, Kind)> {
    let loss = |loss| Kind { loss, ..Kind::default() };
    let every = 600;
    vec![
        ("LAN, no loss", loss(0)),
        ("1 % loss", loss(10)),
        ("5 % loss", loss(50)),
        ("10 % loss", loss(100)),
        ("20 % loss", loss(200)),
        ("5 % loss, bursts of 500 ms once a minute", Kind { bursts: (60, 500, 500), ..loss(50) }),
        ("1 % loss, bursts of 0.2 to 5 s every ten minutes", Kind { bursts: (every, 200, 5_000), ..loss(10) }),
        ("1 % loss, the sender stands still for 0.5 to 10 s", Kind { sender: (every, 500, 10_000), ..loss(10) }),
        ("1 % loss, the receiver stands still for 0.5 to 10 s", Kind { receiver: (every, 500, 10_000), ..loss(10) }),
        ("1 % loss, both stand still for 0.5 to 30 s", Kind { both: (every, 500, 30_000), ..loss(10) }),
        ("1 % loss, delay between 1 and 50 ms, a step every 10 s", Kind { steps: 10, ..loss(10) }),
        ("5 % loss, and the other direction is dead", Kind { one_way: true, ..loss(50) }),
    ]
}
