//! One line for each event, in fixed columns, and a hash over all of them.
//!
//! ```text
//! 1.234567 B< DiskDone       op 17 ok
//! |        || |
//! seconds  |+ < input, > effect, ! fault or operator, * checker and world
//!          +- node
//! ```
//! Lines cost more than the machines they describe, so they are only made while tracing is on: a failed seed is simply run
//! again with it.

use std::cell::RefCell;
use std::collections::VecDeque;

/// Lines kept for a failure's report.
const KEPT: usize = 140;
/// Longest line.
const WIDTH: usize = 260;

#[derive(Default)]
struct Trace {
    on: bool,
    print: bool,
    hash: u64,
    lines: VecDeque<String>,
}

thread_local! {
    static TRACE: RefCell<Trace> = RefCell::default();
}

/// Starts anew, off or on, and printing each line or not.
pub(crate) fn start(on: bool, print: bool) {
    TRACE.with_borrow_mut(|t| *t = Trace { on, print, hash: 0xCBF2_9CE4_8422_2325, lines: VecDeque::new() });
}

/// True while lines are wanted.
pub(crate) fn on() -> bool {
    TRACE.with_borrow(|t| t.on)
}

/// Adds a line.
pub(crate) fn line(now: u64, node: Option<usize>, mark: char, text: &str) {
    let name = node.map_or(' ', crate::node::letter);
    let mut line = format!("{:>4}.{:06} {name}{mark} {text}", now / 1_000_000_000, now / 1000 % 1_000_000);
    if line.len() > WIDTH {
        line = line.chars().take(WIDTH).collect::<String>() + "...";
    }
    TRACE.with_borrow_mut(|t| {
        for byte in line.bytes() {
            t.hash = (t.hash ^ u64::from(byte)).wrapping_mul(0x0000_0100_0000_01B3);
        }
        if t.print {
            println!("{line}");
        }
        if t.lines.len() == KEPT {
            t.lines.pop_front();
        }
        t.lines.push_back(line);
    });
}

/// The hash over every line so far.
pub(crate) fn hash() -> u64 {
    TRACE.with_borrow(|t| t.hash)
}

/// The last lines.
pub(crate) fn tail() -> String {
    TRACE.with_borrow(|t| t.lines.iter().map(|l| format!("{l}\n")).collect())
}

/// A line, if lines are wanted: `trace!(world, node, mark, "...", ...)`.
macro_rules! trace {
    ($world:expr, $node:expr, $mark:literal, $($text:tt)*) => {
        if $crate::trace::on() {
            $crate::trace::line($world.now, $node, $mark, &format!($($text)*));
        }
    };
}
pub(crate) use trace;
