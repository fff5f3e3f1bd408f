//! Random faults, for long: whatever happens, nothing that must not be is; and when the faults end, somebody serves.

use std::time::Duration;

use repblk::condition::Role;
use repblk::failover::config::{Arbiter, Timing};
use repblk::failover::io::Ask;

use crate::world::{Fate, Fault, Place, World};

/// SplitMix64.
#[derive(Clone)]
pub(crate) struct Dice(u64);

impl Dice {
    fn roll(&mut self, sides: u64) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        (z ^ (z >> 31)) % sides
    }
}

struct Storm {
    dice: Dice,
    /// One in so many places is struck.
    rarity: u64,
}

impl Fate for Storm {
    fn strikes(&mut self, place: Place) -> Fault {
        let often = if place == Place::Beat { self.rarity * 20 } else { self.rarity };
        if self.rarity == 0 || self.dice.roll(often) != 0 {
            return Fault::None;
        }
        let length = Duration::from_millis(100 << self.dice.roll(8));
        match (place, self.dice.roll(7)) {
            (Place::Arbiter, 0 | 1) => Fault::AskLost,
            (Place::Arbiter, 2 | 3) => Fault::AnswerLost,
            (Place::Arbiter | Place::Directive, 4) => Fault::Late(length),
            (_, 5) => Fault::Kill(length),
            (_, 6) => Fault::Cut(length),
            _ => Fault::Pause(length),
        }
    }
}

/// Runs one seed; returns how many steps the machines took.
fn run(seed: u64) -> u64 {
    let mut dice = Dice(seed);
    let rarity = [3, 10, 40][usize::try_from(dice.roll(3)).expect("small")];
    let timing = Timing { settled: Duration::ZERO, dwell: Duration::ZERO, rate_error_ppm: 20_000, ..Timing::default() };
    let mut world = World::healthy(Arbiter::Etcd, timing, Storm { dice: dice.clone(), rarity });
    for node in 0..2 {
        let ppm = i64::try_from(dice.roll(40_001)).expect("small") - 20_000;
        world.set_rate(node, ppm);
    }
    for _ in 0..40 {
        world.run(Duration::from_millis(500 + dice.roll(5_000)));
        let node = usize::try_from(dice.roll(2)).expect("small");
        match dice.roll(12) {
            0 => world.cut_link = true,
            1 => world.cut_beats[node] = true,
            2 | 3 => (world.cut_link, world.cut_beats) = (false, [false; 2]),
            4 => world.arbiter_up[node] = false,
            5 | 6 => world.arbiter_up = [true; 2],
            7 => world.arbiter_delay = Duration::from_millis(1 << dice.roll(11)),
            8 => world.ask(node, Ask::HandOver),
            9 => world.kill(node, dice.roll(2) == 0),
            10 => world.start(node),
            _ => world.ask(node, Ask::Promote { force: false, peer_is_down: false }),
        }
    }
    world.calm();
    world.run(Duration::from_secs(90));
    let primaries = world.nodes.iter().filter(|node| node.copy.role == Role::Primary).count();
    if primaries != 1 || !world.nodes.iter().all(|node| node.copy.in_sync) {
        world.failed(&format!("seed {seed}: everything is healed, and {primaries} nodes are primary"));
    }
    let serving = world.nodes.iter().position(|node| node.copy.role == Role::Primary).expect("counted");
    if world.now - world.last_ack[serving] > 500_000_000 {
        world.failed(&format!("seed {seed}: everything is healed, and nobody is answered"));
    }
    assert_eq!(world.split_brains, 0, "seed {seed}: with a record there is no split brain");
    world.steps
}

impl World<Storm> {
    fn calm(&mut self) {
        self.fate().rarity = 0;
        (self.cut_link, self.cut_beats, self.arbiter_up) = (false, [false; 2], [true; 2]);
        self.arbiter_delay = Duration::from_millis(1);
        (0..2).for_each(|node| self.start(node));
    }
}

#[test]
fn storms_never_make_two_writers_and_end_with_one() {
    let first: u64 = std::env::var("REPBLK_SEED").ok().and_then(|seed| seed.parse().ok()).unwrap_or(1);
    let runs: u64 = std::env::var("REPBLK_RUNS").ok().and_then(|runs| runs.parse().ok()).unwrap_or(300);
    let steps: u64 = (first..first + runs).map(run).sum();
    println!("{runs} seeds from {first}: {steps} steps");
}
