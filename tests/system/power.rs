//! Power losses of real daemons under load: of the primary, of the secondary, of both, in every order.
//!
//! What must survive is in the ledger's book: a write that was acknowledged, when one copy that was in sync kept its power;
//! what was flushed, when none did. Every round ends with an audit of every sector and a comparison of both disks.

use std::time::Duration;

use crate::ledger::{Book, Ledger};
use crate::pair::{MIB, Setup};
use crate::powered::{ALPHA, BETA, Parting, Powered};
use crate::tools::{LONG, SHORT};

const WRITERS: u64 = 3;
const BLOCKS: usize = 64;
/// Rounds and seed of the random course; a longer run sets other ones.
const ROUNDS: (&str, u64) = ("REPBLK_POWER_ROUNDS", 4);
const SEED: (&str, u64) = ("REPBLK_POWER_SEED", 1);

fn setup(mode: &'static str) -> Setup {
    Setup { size: 8 * MIB, mode, volume_keys: "peer_timeout_ms = 2000\nping_interval_ms = 250", ..Setup::default() }
}

/// What happens in a round, under load, with both in sync before.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Course {
    /// The secondary loses power; the primary goes on.
    Secondary(Parting),
    /// The primary loses power; the other one takes over.
    Failover(Parting),
    /// The primary loses power and comes back before anybody was promoted.
    PrimaryReturns,
    /// Both at once; this one starts first.
    Both(usize),
    /// Both at once; only the secondary comes back, and serves, before the other one returns.
    OnlySecondaryReturns,
    /// The secondary, then the primary, which had gone on alone.
    PrimaryLast { first: usize },
    /// The primary, then the secondary, which had taken over; this one starts first.
    SuccessorLast { first: usize },
    /// The daemon of the primary is killed, and then the power of the secondary goes.
    KillAndCut,
}

const COURSES: [Course; 12] = [
    Course::Secondary(Parting::Noticed),
    Course::Secondary(Parting::Silent),
    Course::Failover(Parting::Noticed),
    Course::Failover(Parting::Silent),
    Course::PrimaryReturns,
    Course::Both(ALPHA),
    Course::Both(BETA),
    Course::OnlySecondaryReturns,
    Course::PrimaryLast { first: ALPHA },
    Course::PrimaryLast { first: BETA },
    Course::SuccessorLast { first: ALPHA },
    Course::KillAndCut,
];

impl Course {
    #[track_caller]
    fn run(self, powered: &mut Powered, ledger: &Ledger) {
        let primary = powered.primary().expect("a round begins with a primary");
        let secondary = 1 - primary;
        ledger.wait_more(powered.rng.between(60, 200), LONG);
        match self {
            Self::Secondary(parting) => {
                powered.cut_power(secondary, parting);
                ledger.wait_more(60, LONG);
                powered.start(secondary);
            }
            Self::Failover(parting) => {
                powered.cut_power(primary, parting);
                powered.take_over(secondary);
                ledger.wait_more(60, LONG);
                powered.start(primary);
            }
            Self::PrimaryReturns => {
                powered.cut_power(primary, Parting::Noticed);
                powered.start(primary);
            }
            Self::Both(first) => {
                powered.cut_both();
                ledger.power_was_lost();
                powered.start(first);
                powered.start(1 - first);
            }
            Self::OnlySecondaryReturns => {
                powered.cut_both();
                ledger.power_was_lost();
                powered.start(secondary);
                powered.take_over(secondary);
                ledger.wait_more(60, LONG);
                powered.start(primary);
            }
            Self::PrimaryLast { first } => {
                powered.cut_power(secondary, Parting::Noticed);
                ledger.wait_more(60, LONG);
                powered.cut_power(primary, Parting::Noticed);
                ledger.power_was_lost();
                powered.start(first);
                powered.start(1 - first);
            }
            Self::SuccessorLast { first } => {
                powered.cut_power(primary, Parting::Noticed);
                powered.take_over(secondary);
                ledger.wait_more(60, LONG);
                powered.cut_power(secondary, Parting::Noticed);
                ledger.power_was_lost();
                powered.start(first);
                powered.start(1 - first);
            }
            Self::KillAndCut => {
                // The primary keeps its cache: nothing acknowledged may be lost.
                powered.kill(primary);
                powered.cut_power(secondary, Parting::Noticed);
                powered.start(secondary);
                powered.start(primary);
            }
        }
    }
}

/// One round from in sync to in sync, with its audit; the book for the next.
#[track_caller]
fn round(powered: &mut Powered, course: Course, ledger: Ledger) -> Book {
    course.run(powered, &ledger);
    powered.recover();
    ledger.wait_more(30, LONG);
    let mut book = ledger.stop();
    let serving = powered.recover();
    powered.assert_identical();
    book.settle(&mut powered.node(serving).client());
    powered.assert_identical();
    println!("{course:?}: {} writes acknowledged, longest gap {:?}", book.acked, book.gap);
    book
}

/// The courses one after the other, on one pair.
#[track_caller]
fn rounds(mode: &'static str, seed: u64, courses: &[Course]) {
    println!("seed {seed}");
    let mut powered = Powered::up(&setup(mode), seed);
    let mut ledger = Ledger::mixed(&powered.places(), WRITERS, BLOCKS, seed);
    for (number, &course) in courses.iter().enumerate() {
        let book = round(&mut powered, course, ledger);
        ledger = Ledger::resume(&powered.places(), book, seed + u64::try_from(number).expect("small"));
    }
    ledger.stop();
}

#[test]
fn a_flush_reaches_the_disk_before_it_is_answered() {
    let powered = Powered::up(&setup("sync"), 1);
    let mut client = powered.pair.alpha.client();
    for round in 0..3 {
        assert_eq!(client.write(round * 4096, &[7; 4096], 0).expect("is served"), 0);
        let before = [ALPHA, BETA].map(|which| powered.shims[which].flushes());
        assert_eq!(client.flush().expect("is served"), 0);
        for which in [ALPHA, BETA] {
            assert!(powered.shims[which].flushes() > before[which], "the disk of node {which} was not flushed");
        }
    }
}

#[test]
fn one_node_without_power_costs_no_acknowledged_write() {
    rounds("sync", 11, &COURSES[..5]);
}

#[test]
fn both_nodes_without_power_keep_what_was_flushed() {
    rounds("sync", 12, &COURSES[5..8]);
}

#[test]
fn nodes_that_lose_power_one_after_the_other_keep_what_the_last_one_flushed() {
    rounds("sync", 13, &COURSES[8..12]);
}

#[test]
fn semisync_promises_the_same_for_flushes() {
    rounds("semisync", 14, &[Course::Both(BETA), Course::Failover(Parting::Noticed), Course::OnlySecondaryReturns]);
}

#[test]
fn a_random_course_of_power_losses() {
    let seed = crate::tools::from_environment(SEED);
    let mut rng = crate::rng::Rng::new(seed);
    let courses: Vec<_> = (0..crate::tools::from_environment(ROUNDS)).map(|_| rng.pick(&COURSES)).collect();
    rounds("sync", seed, &courses);
}

#[test]
fn a_disk_that_is_slow_to_flush_promises_no_less() {
    let mut powered = Powered::up(&setup("sync"), 15);
    for shim in &powered.shims {
        shim.set(crate::shim::Faults {
            flush_time: Duration::from_millis(40),
            write_time: Duration::from_millis(1),
            ..crate::shim::Faults::NONE
        });
    }
    let ledger = Ledger::mixed(&powered.places(), WRITERS, BLOCKS, 15);
    ledger.wait_more(50, SHORT);
    round(&mut powered, Course::Both(ALPHA), ledger);
}
