//! Crash points, enumerated: a workload runs once, and at every write, flush and commit of either node, when it begins and when it
//! ends, the world is forked. In each fork a crash falls on the primary, on the secondary or on both, and leaves a chosen
//! part of what was not stable; then everything is healed, and all checkers look.
//!
//! What a crash leaves of the sectors that were written and not flushed, those of operations in flight among them: none, all, each single
//! one alone, all but one, every other one, and seeded choices. A killed process leaves its operations undone, done or done in part.
//!
//! A run tries a share of all that, drawn by one seed, so that it fits the time; `REPBLK_CRASH_SEED=n` draws another share,
//! and `REPBLK_CRASH_ALL=1` tries everything. A failure prints the fork's name; `REPBLK_CRASH=name` lives through that one alone,
//! with its trace.

use std::cell::RefCell;
use std::collections::BTreeSet;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::rc::Rc;

use repblk::volume::io::Command;

use crate::disk::SimDisk;
use crate::rng::Rng;
use crate::story::Story;
use crate::swarm::{MS, Options, SECOND};
use crate::trace;
use crate::world::World;

const A: usize = 0;
const B: usize = 1;

/// Forks that a run tries of one workload.
const SHARE: u64 = 90;
/// Single sectors tried for one crash, unless everything is.
const SINGLES: usize = 4;

/// Whom a crash hits.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Victims {
    One(usize),
    Both,
}

/// What a crash leaves of what was not stable.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
enum Leaves {
    /// Power: nothing.
    Nothing,
    /// Power: everything.
    Everything,
    /// Power: this sector, and no other.
    Only(usize),
    /// Power: all but this sector.
    AllBut(usize),
    /// Power: the even sectors or the odd ones, so that every page is torn.
    Torn(usize),
    /// Power: each sector for itself.
    Any(u64),
    /// The process is killed, and nothing of what is in flight is done.
    Undone,
    /// The process is killed, and everything in flight is done.
    Done,
    /// The process is killed, and each sector in flight is done or not.
    Partly,
}

impl Leaves {
    /// Everything that a crash of a disk with `unflushed` sectors may leave, singles at most `singles`.
    fn choices(unflushed: usize, singles: usize) -> Vec<Self> {
        let mut all = vec![Self::Undone, Self::Done, Self::Partly, Self::Nothing];
        if unflushed > 0 {
            all.push(Self::Everything);
        }
        if unflushed > 1 {
            let step = unflushed.div_ceil(singles);
            all.extend((0..unflushed).step_by(step).flat_map(|i| [Self::Only(i), Self::AllBut(i)]));
            all.extend([Self::Torn(0), Self::Torn(1), Self::Any(1), Self::Any(2)]);
        }
        all
    }

    fn befall(self, w: &mut World, node: usize) {
        match self {
            Self::Undone => w.kill_with(node, SimDisk::abandon),
            Self::Done => w.kill_with(node, SimDisk::land),
            Self::Partly => w.kill(node),
            _ => w.power_loss_with(node, |disk| {
                disk.land();
                let (mut at, mut rng) = (0, Rng::new(if let Self::Any(seed) = self { seed } else { 0 }));
                disk.power_cut(|versions| {
                    let i = at;
                    at += 1;
                    let keep = match self {
                        Self::Everything => true,
                        Self::Only(one) => i == one,
                        Self::AllBut(one) => i != one,
                        Self::Torn(odd) => i % 2 == odd,
                        Self::Any(_) => return rng.index(versions + 1),
                        _ => false,
                    };
                    if keep { versions } else { 0 }
                });
            }),
        }
    }
}

/// One fork.
#[derive(Clone, Copy, Debug)]
struct Fork {
    point: u64,
    victims: Victims,
    leaves: Leaves,
    /// The victims are away for so long that the survivor is promoted.
    long: bool,
}

impl Fork {
    fn name(&self, workload: &str) -> String {
        let Self { point, victims, leaves, long } = self;
        format!("{workload}/{point}/{victims:?}/{leaves:?}/{}", if *long { "long" } else { "short" }).replace(' ', "")
    }

    fn live(&self, w: &World) {
        let mut w = w.clone();
        w.probe = None;
        let away = if self.long { 2 * SECOND } else { 60 * MS };
        let fallen = match self.victims {
            Victims::One(node) => vec![node],
            Victims::Both => vec![A, B],
        };
        for &node in &fallen {
            self.leaves.befall(&mut w, node);
            // Of two, the one that goes second returns first, every other time.
            let later = if node == A && self.point.is_multiple_of(2) { 700 * MS } else { 0 };
            w.restart_after(node, away + later);
        }
        w.operator.passive = false;
        for client in &mut w.clients {
            client.quiet = false;
        }
        w.run_for(away + 900 * MS);
        w.converge();
    }
}

/// Looks at each event of one workload's run.
struct Prober {
    workload: &'static str,
    only: Option<String>,
    odds: (u64, u64),
    singles: usize,
    rng: Rng,
    seen: u64,
    forks: u64,
    tried: u64,
    failures: Vec<String>,
}

impl Prober {
    fn look(&mut self, w: &World) {
        let point = w.nodes[A].disk.touched + w.nodes[B].disk.touched;
        if point == self.seen {
            return;
        }
        self.seen = point;
        for victims in [Victims::One(A), Victims::One(B), Victims::Both] {
            let node = if victims == Victims::One(B) { B } else { A };
            if w.nodes[node].process.is_none() {
                continue;
            }
            let mut landed = w.nodes[node].disk.clone();
            landed.land();
            let choices: BTreeSet<Leaves> = Leaves::choices(landed.unflushed(), self.singles).into_iter().collect();
            for leaves in choices {
                let long = self.rng.coin();
                self.forks += 1;
                let drawn = self.rng.chance(self.odds.0, self.odds.1);
                self.try_one(w, Fork { point, victims, leaves, long }, drawn);
            }
        }
    }

    fn try_one(&mut self, w: &World, fork: Fork, drawn: bool) {
        let name = fork.name(self.workload);
        match &self.only {
            Some(only) if *only == name => trace::start(true, true),
            None if drawn => trace::start(false, false),
            _ => return,
        }
        self.tried += 1;
        let live = || catch_unwind(AssertUnwindSafe(|| fork.live(w)));
        let good = live().is_ok();
        trace::start(false, false);
        if good {
            return;
        }
        trace::start(true, false);
        let why = live().expect_err("a fork is deterministic");
        let why = why.downcast_ref::<String>().cloned().unwrap_or_default();
        self.failures.push(format!("{}{name}: {why}", trace::tail()));
    }
}

/// Runs a workload twice: to count its forks, and to live through a share of them.
fn enumerate(workload: &'static str, run: impl Fn(&mut dyn FnMut(&mut World))) {
    let everything = std::env::var_os("REPBLK_CRASH_ALL").is_some();
    let only = std::env::var("REPBLK_CRASH").ok();
    if only.as_ref().is_some_and(|only| !only.starts_with(&format!("{workload}/"))) {
        return;
    }
    let seed = std::env::var("REPBLK_CRASH_SEED").map_or(1, |s| s.parse().expect("REPBLK_CRASH_SEED is a number"));
    let pass = |odds: (u64, u64), only: Option<String>| {
        let singles = if everything { usize::MAX } else { SINGLES };
        let rng = Rng::new(seed);
        let prober = Prober { workload, only, odds, singles, rng, seen: 0, forks: 0, tried: 0, failures: Vec::new() };
        let prober = Rc::new(RefCell::new(prober));
        let shared = Rc::clone(&prober);
        run(&mut |w| {
            let shared = Rc::clone(&shared);
            w.probe = Some(Rc::new(move |w: &World| shared.borrow_mut().look(w)));
        });
        drop(shared);
        Rc::into_inner(prober).expect("the run is over").into_inner()
    };
    let counted = pass((0, 1), None);
    let odds = if everything { (1, 1) } else { (SHARE, counted.forks.max(SHARE)) };
    let done = pass(odds, only);
    println!("{workload}: {} crash points, {} forks, {} tried", done.seen, done.forks, done.tried);
    for failure in &done.failures {
        println!("FAILED {failure}");
        println!("replay: REPBLK_CRASH='{}' cargo test --test sim crash_points -- --nocapture", first_word(failure));
    }
    assert!(done.failures.is_empty(), "{workload}: {} of {} forks failed", done.failures.len(), done.tried);
    assert!(done.tried > 0, "{workload}: no fork was tried");
}

fn first_word(failure: &str) -> &str {
    let line = failure.lines().find(|l| l.contains("/One(") || l.contains("/Both/")).unwrap_or_default();
    line.split(": ").next().unwrap_or_default()
}

fn options() -> Options {
    Options {
        data_len: 1 << 20,
        clients: 1,
        depth: 3,
        think: 10 * MS,
        request_sectors_max: 16,
        flush_every: 6,
        ..Options::calm()
    }
}

/// A workload that starts from a founded pair, both in sync.
fn founded(arm: &mut dyn FnMut(&mut World)) -> Story {
    let mut s = Story::with(1, options());
    s.w.operator.passive = true;
    arm(&mut s.w);
    s
}

#[test]
fn crash_points_of_a_new_pair() {
    enumerate("a-new-pair", |arm| {
        let mut w = World::new(1, Options { data_len: 256 << 10, span: 512, ..options() });
        arm(&mut w);
        w.begin();
        let founded = w.run_until(20 * SECOND, |w| w.operator.is_founded() && w.settled());
        assert!(founded, "a new pair comes into being:\n  {}", w.summary());
    });
}

#[test]
fn crash_points_of_writes_that_evict_extents() {
    enumerate("eviction", |arm| {
        founded(arm).load(400 * MS);
    });
}

#[test]
fn crash_points_of_a_link_lost_and_found_again() {
    enumerate("alone-and-back", |arm| {
        founded(arm).load(50 * MS).cut_for(300 * MS).load(280 * MS).settles().idles();
    });
}

#[test]
fn crash_points_of_a_full_resync() {
    enumerate("full-resync", |arm| {
        let mut s = founded(arm);
        assert_eq!(s.tell(B, Command::Resync { full: true, discard: None }), Ok(()));
        s.load(100 * MS).settles();
    });
}

#[test]
fn crash_points_of_a_switchover() {
    enumerate("switchover", |arm| {
        let mut s = founded(arm);
        assert_eq!(s.load(30 * MS).tell(A, Command::Switchover), Ok(()));
        assert_eq!(s.load(50 * MS).tell(B, Command::Switchover), Ok(()));
        s.settles();
    });
}

#[test]
fn crash_points_of_a_demotion_and_a_promotion() {
    enumerate("demote-promote", |arm| {
        let mut s = founded(arm);
        assert_eq!(s.load(30 * MS).tell(A, Command::Demote { disconnect_clients: true }), Ok(()));
        assert_eq!(s.tell(B, Command::Promote { force: false, peer_is_down: false }), Ok(()));
        s.load(50 * MS).settles();
    });
}

#[test]
fn crash_points_of_a_failover_and_a_return() {
    enumerate("failover", |arm| {
        let mut s = founded(arm);
        s.load(100 * MS).w.power_loss(A);
        s.take_over(B).load(100 * MS).start(A).settles();
    });
}

#[test]
fn crash_points_of_daemons_that_start_again() {
    enumerate("restarts", |arm| {
        let mut s = founded(arm);
        s.load(100 * MS).w.kill(B);
        s.load(200 * MS).start(B).settles().w.kill(A);
        s.start(A);
        s.w.operator.passive = false;
        s.settles();
    });
}

#[test]
fn crash_points_of_ends_in_order() {
    enumerate("ends-in-order", |arm| {
        let mut s = founded(arm);
        s.load(100 * MS).rest();
        assert_eq!(s.tell(B, Command::Shutdown), Ok(()));
        s.wait(SECOND).settles();
        assert_eq!(s.tell(A, Command::Shutdown), Ok(()));
        s.w.operator.passive = false;
        s.wait(SECOND).settles();
    });
}
