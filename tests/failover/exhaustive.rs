//! Every placement of up to two faults.
//!
//! A run without faults is counted: each question to the arbiter, each directive to a volume and each heartbeat is a place where a fault
//! may strike. Then every run is made that differs from it in one place, and every run that differs in two, with every kind of fault that
//! fits: a question or an answer lost (the outcome unknown to the asker), done late, the node stopped, killed, the pair cut. So small
//! depths are searched completely; with `REPBLK_FAULTS=2` pairs of faults are placed in every story, and otherwise around a lost host only;
//! with the production machines on both sides and clocks at the ends of their bound.

use std::time::Duration;

use repblk::failover::config::{Arbiter, Timing};
use repblk::failover::detector::Tuning;
use repblk::failover::io::Ask;

use crate::world::{Fate, Fault, Place, World};

/// What is done in a run, besides the faults.
#[derive(Clone, Copy, Debug)]
enum Story {
    /// The primary's host is lost.
    HostLost,
    /// The data link and all heartbeats are cut, and heal.
    Partition,
    /// The standby is lost and returns.
    StandbyLost,
    /// The operator hands over.
    HandOver,
}

/// Faults at given places.
struct Planned {
    at: u32,
    plan: Vec<(u32, Fault)>,
    places: Vec<Place>,
    open: bool,
}

impl Fate for Planned {
    fn strikes(&mut self, place: Place) -> Fault {
        if !self.open {
            return Fault::None;
        }
        let at = self.at;
        self.at += 1;
        self.places.push(place);
        self.plan.iter().find(|(number, _)| *number == at).map_or(Fault::None, |(_, fault)| *fault)
    }
}

fn faults(place: Place) -> &'static [Fault] {
    const LATE: Fault = Fault::Late(Duration::from_millis(2_500));
    const PAUSE: Fault = Fault::Pause(Duration::from_secs(8));
    const BLINK: Fault = Fault::Pause(Duration::from_secs(2));
    const KILL: Fault = Fault::Kill(Duration::from_secs(1));
    const CUT: Fault = Fault::Cut(Duration::from_secs(4));
    match place {
        Place::Arbiter => &[Fault::AskLost, Fault::AnswerLost, LATE, PAUSE, KILL, CUT],
        Place::Directive => &[LATE, PAUSE, KILL],
        Place::Beat => &[BLINK, PAUSE, CUT],
    }
}

/// Slow beats and short leases: few places, and all that can go wrong between them.
fn timing() -> Timing {
    let interval = Duration::from_millis(500);
    Timing {
        detector: Tuning { floor: interval * 4, probing: interval, ..Tuning::of_interval(interval) },
        lease: Duration::from_millis(3_000),
        renew: Duration::from_millis(1_000),
        arbiter_timeout: Duration::from_millis(800),
        rate_error_ppm: 20_000,
        guard: Duration::from_millis(100),
        dwell: Duration::ZERO,
        settled: Duration::ZERO,
        hand_over: Duration::from_secs(2),
        ..Timing::default()
    }
}

fn run(story: Story, plan: Vec<(u32, Fault)>) -> Vec<Place> {
    let fate = Planned { at: 0, plan, places: vec![], open: false };
    let mut world = World::healthy(Arbiter::Etcd, timing(), fate);
    // The holder's clock is slow, the waiter's fast: the worst case of the lease.
    world.set_rate(0, -20_000);
    world.set_rate(1, 20_000);
    world.run(Duration::from_secs(6));
    assert!(world.acked() > 10, "the pair works");
    world.fate().open = true;
    match story {
        Story::HostLost => world.kill(0, true),
        Story::Partition => (world.cut_link, world.cut_beats) = (true, [true; 2]),
        Story::StandbyLost => world.kill(1, false),
        Story::HandOver => world.ask(0, Ask::HandOver),
    }
    world.run(Duration::from_secs(5));
    world.fate().open = !matches!(story, Story::HandOver | Story::StandbyLost);
    (world.cut_link, world.cut_beats) = (false, [false; 2]);
    world.run(Duration::from_secs(2));
    world.fate().open = false;
    (0..2).for_each(|node| world.start(node));
    world.run(Duration::from_secs(25));
    assert_eq!(world.split_brains, 0, "{story:?}: a split brain");
    let served = world.last_ack.iter().max().expect("two nodes");
    if world.now - served > 500_000_000 || !world.nodes.iter().all(|node| node.copy.in_sync) {
        let plan = world.fate().plan.clone();
        world.failed(&format!("{story:?} with {plan:?}: healed, and not served by an equal pair"));
    }
    std::mem::take(&mut world.fate().places)
}

/// Every run with one fault, and with two; how many there were.
fn search(story: Story, pairs: bool) -> u64 {
    let mut runs = 1;
    let calm = run(story, vec![]);
    for (first, place) in (0u32..).zip(&calm) {
        for &fault in faults(*place) {
            let after = run(story, vec![(first, fault)]);
            runs += 1;
            if !pairs {
                continue;
            }
            let rest = (0u32..).zip(&after).skip(usize::try_from(first).expect("small") + 1);
            for (second, place) in rest {
                for &other in faults(*place) {
                    run(story, vec![(first, fault), (second, other)]);
                    runs += 1;
                }
            }
        }
    }
    println!("{story:?}: {} places, {runs} runs", calm.len());
    runs
}

fn pairs() -> bool {
    std::env::var("REPBLK_FAULTS").is_ok_and(|faults| faults == "2")
}

#[test]
fn faults_around_a_lost_host() {
    assert!(search(Story::HostLost, true) > 1_000);
}

#[test]
fn faults_around_a_partition() {
    assert!(search(Story::Partition, pairs()) > 50);
}

#[test]
fn faults_around_a_lost_standby() {
    assert!(search(Story::StandbyLost, pairs()) > 50);
}

#[test]
fn faults_around_a_hand_over() {
    assert!(search(Story::HandOver, pairs()) > 50);
}
