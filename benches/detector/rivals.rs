//! Detectors of the literature, each with the settings that its users have.

use std::collections::VecDeque;

use crate::traces::{INTERVAL, SECOND, whole};

/// Suspects from [`deadline`](Detector::deadline) on, unless it hears something before.
pub(crate) trait Detector {
    /// A beat came.
    fn hear(&mut self, at: u64, sequence: u64);
    /// From when on the peer is suspected; nanoseconds.
    fn deadline(&self) -> u64;
}

/// A constant time after the last beat.
struct Fixed {
    timeout: u64,
    heard: u64,
}

impl Detector for Fixed {
    fn hear(&mut self, at: u64, _: u64) {
        self.heard = at;
    }
    fn deadline(&self) -> u64 {
        self.heard + self.timeout
    }
}

/// Mean of the arrivals of a window, shifted to the next number.
struct Window {
    len: usize,
    offsets: VecDeque<f64>,
    sum: f64,
    sequence: u64,
}

impl Window {
    fn new(len: usize) -> Self {
        Self { len, offsets: VecDeque::new(), sum: 0.0, sequence: 0 }
    }

    fn hear(&mut self, at: u64, sequence: u64) {
        let offset = at as f64 - (sequence * INTERVAL) as f64;
        self.sequence = sequence;
        self.offsets.push_back(offset);
        self.sum += offset;
        if self.offsets.len() > self.len {
            self.sum -= self.offsets.pop_front().expect("longer than the window");
        }
    }

    fn expected(&self) -> f64 {
        self.sum / self.offsets.len().max(1) as f64 + ((self.sequence + 1) * INTERVAL) as f64
    }
}

/// Chen, Toueg, Aguilera: the expected arrival and a constant margin.
struct Chen {
    window: Window,
    margin: u64,
}

impl Detector for Chen {
    fn hear(&mut self, at: u64, sequence: u64) {
        self.window.hear(at, sequence);
    }
    fn deadline(&self) -> u64 {
        whole(self.window.expected()) + self.margin
    }
}

/// Bertier, Marin, Sens: Chen's estimate with Jacobson's margin.
struct Bertier {
    window: Window,
    delay: f64,
    deviation: f64,
    expected: f64,
}

impl Detector for Bertier {
    fn hear(&mut self, at: u64, sequence: u64) {
        if self.expected > 0.0 {
            let error = at as f64 - self.expected - self.delay;
            self.delay += 0.1 * error;
            self.deviation += 0.1 * (error.abs() - self.deviation);
        }
        self.window.hear(at, sequence);
        self.expected = self.window.expected();
    }
    fn deadline(&self) -> u64 {
        whole(self.window.expected() + self.delay + 4.0 * self.deviation)
    }
}

/// Hayashibara's phi over the gaps between beats, with a normal or an exponential tail.
struct Phi {
    gaps: VecDeque<f64>,
    sum: f64,
    squares: f64,
    heard: u64,
    threshold: f64,
    exponential: bool,
    /// Least standard deviation, and a pause that is acceptable.
    least: f64,
    pause: f64,
}

impl Phi {
    fn new(threshold: f64, exponential: bool, pause: f64) -> Self {
        let (gaps, least) = (VecDeque::new(), 0.1 * SECOND as f64);
        Self { gaps, sum: 0.0, squares: 0.0, heard: 0, threshold, exponential, least, pause }
    }
}

impl Detector for Phi {
    fn hear(&mut self, at: u64, _: u64) {
        if self.heard > 0 {
            let gap = (at - self.heard) as f64;
            self.gaps.push_back(gap);
            self.sum += gap;
            self.squares += gap * gap;
            if self.gaps.len() > 1000 {
                let old = self.gaps.pop_front().expect("longer than the window");
                self.sum -= old;
                self.squares -= old * old;
            }
        }
        self.heard = at;
    }
    fn deadline(&self) -> u64 {
        let count = self.gaps.len().max(1) as f64;
        let mean = if self.gaps.is_empty() { INTERVAL as f64 } else { self.sum / count } + self.pause;
        let after = if self.exponential {
            // phi = t / (mean ln 10)
            self.threshold * mean * std::f64::consts::LN_10
        } else {
            let variance = (self.squares / count - (self.sum / count).powi(2)).max(0.0);
            let deviation = variance.sqrt().max(self.least);
            // The logistic approximation of the normal tail that its users compute; phi = threshold solved by bisection.
            let phi = |y: f64| (1.0 + (y * (1.5976 + 0.070_566 * y * y)).exp()).log10();
            let (mut low, mut high) = (0.0, 20.0);
            for _ in 0..40 {
                let middle = (low + high) / 2.0;
                if phi(middle) < self.threshold { low = middle } else { high = middle }
            }
            mean + high * deviation
        };
        self.heard + whole(after)
    }
}

/// Tomsic and others: the later of a short and a long window, and a constant margin.
struct TwoWindows {
    short: Window,
    long: Window,
    margin: u64,
}

impl Detector for TwoWindows {
    fn hear(&mut self, at: u64, sequence: u64) {
        self.short.hear(at, sequence);
        self.long.hear(at, sequence);
    }
    fn deadline(&self) -> u64 {
        whole(self.short.expected().max(self.long.expected())) + self.margin
    }
}

/// All of them, by name.
pub(crate) fn rivals() -> Vec<(String, Box<dyn Detector>)> {
    let ms = SECOND / 1000;
    let mut all: Vec<(String, Box<dyn Detector>)> = vec![];
    for timeout in [600, 1000, 1200, 1400] {
        all.push((format!("fixed {timeout} ms"), Box::new(Fixed { timeout: timeout * ms, heard: u64::MAX / 2 })));
    }
    for margin in [400, 800, 1000] {
        all.push((
            format!("Chen, margin {margin} ms"),
            Box::new(Chen { window: Window::new(1000), margin: margin * ms }),
        ));
    }
    let window = Window::new(1000);
    all.push(("Bertier".into(), Box::new(Bertier { window, delay: 0.0, deviation: 0.0, expected: 0.0 })));
    all.push(("phi normal 8".into(), Box::new(Phi::new(8.0, false, 0.0))));
    all.push(("phi normal 12".into(), Box::new(Phi::new(12.0, false, 0.0))));
    all.push(("phi exponential 2.5".into(), Box::new(Phi::new(2.5, true, 0.0))));
    all.push(("phi exponential 8".into(), Box::new(Phi::new(8.0, true, 0.0))));
    for margin in [400, 1000] {
        let (short, long) = (Window::new(4), Window::new(1000));
        let detector = TwoWindows { short, long, margin: margin * ms };
        all.push((format!("two windows, margin {margin} ms"), Box::new(detector)));
    }
    all
}
