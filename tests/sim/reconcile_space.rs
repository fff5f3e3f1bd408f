//! The reconcile table over its whole state space: every pair of greetings that two copies can come to say.
//!
//! A greeting is built along *axes*; a new field of the greeting is one more axis. The axes that tables decide by are crossed
//! completely; all axes together are crossed by chance. What must hold of every pair:
//!
//! 1. what A decides about B is the mirror of what B decides about A, by the same rule;
//! 2. a copy whose generation the other has never seen may hold what it acknowledged alone, and is not overwritten unless its operator
//!    gave it up;
//! 3. of two such copies neither becomes a target without an operator: a split brain is never resolved by a rule;
//! 4. a primary is not overwritten, and two primaries are never joined;
//! 5. nothing is copied from a copy that is failed, inconsistent, or never held data;
//! 6. equality is said of nothing dirty, of one generation, and of two good copies;
//! 7. a bitmap that does not count from where the other copy stands is not trusted: every block is copied;
//! 8. at one generation, a last primary that lost its cache does not overwrite a copy that kept its own, but in `async`.

use std::collections::BTreeSet;

use repblk::condition::{Continuity, DiskState, Mode, Role};
use repblk::generation::Lineage;
use repblk::units::{DiskInstance, GenerationId, Term};
use repblk::volume::reconcile::{SyncRule, Verdict, reconcile};
use repblk::wire::message::Greeting;

use crate::rng::Rng;

/// A field of the greeting: its name, how many values it takes, and how one is set.
struct Axis {
    name: &'static str,
    values: usize,
    /// Crossed completely with the others; else by chance only.
    core: bool,
    set: fn(&mut Greeting, usize),
}

/// Everything but the lineage and the base, which hang together.
const AXES: &[Axis] = &[
    Axis { name: "disk", values: 5, core: true, set: |g, v| g.disk = DISKS[v] },
    Axis { name: "role", values: 2, core: true, set: |g, v| g.role = [Role::Secondary, Role::Primary][v] },
    Axis { name: "was_primary", values: 2, core: true, set: |g, v| g.was_primary = v == 1 },
    Axis { name: "dirty_blocks", values: 2, core: true, set: |g, v| g.dirty_blocks = v as u64 * 7 },
    Axis {
        name: "continuity",
        values: 2,
        core: true,
        set: |g, v| g.continuity = [Continuity::Lost, Continuity::Clean][v],
    },
    Axis { name: "discard", values: 2, core: true, set: |g, v| g.discard = v == 1 },
    Axis { name: "full", values: 2, core: false, set: |g, v| g.full = v == 1 },
    Axis {
        name: "kept by",
        values: 2,
        core: false,
        set: |g, v| {
            if v == 1 && g.continuity == Continuity::Clean {
                g.continuity = Continuity::SameBoot;
            }
        },
    },
    Axis { name: "mode", values: 3, core: false, set: |g, v| g.mode = [Mode::Sync, Mode::SemiSync, Mode::Async][v] },
    Axis { name: "term", values: 2, core: false, set: |g, v| g.term = Term(1 + v as u64) },
];

const DISKS: [DiskState; 5] =
    [DiskState::UpToDate, DiskState::Outdated, DiskState::Diverged, DiskState::Inconsistent, DiskState::Failed];

/// Every descent that a copy can have beside another's, with every base that its own past allows. `own` tells what it minted itself.
fn descents(own: u64) -> Vec<(Lineage, GenerationId)> {
    let line = |steps: &[u64]| {
        let mut lineage = Lineage::default();
        for &step in steps {
            lineage.advance(GenerationId(step));
        }
        lineage
    };
    // 1 and 2 were common to both; what is above 10 was minted by one node alone; the peer may have taken it over since.
    let other = 30 - own;
    let lines: [&[u64]; 8] = [&[], &[1], &[1, 2], &[1, own], &[1, own, own + 1], &[1, 2, own], &[1, other], &[own + 5]];
    let mut all = Vec::new();
    for steps in lines {
        let lineage = line(steps);
        all.push((lineage, GenerationId::NONE));
        all.extend(steps.iter().map(|&base| (lineage, GenerationId(base))));
    }
    all
}

fn blank(instance: u128) -> Greeting {
    Greeting {
        instance: DiskInstance(instance),
        lineage: Lineage::default(),
        base_for_you: GenerationId::NONE,
        dirty_blocks: 0,
        full: false,
        disk: DiskState::UpToDate,
        role: Role::Secondary,
        term: Term(1),
        mode: Mode::Sync,
        was_primary: false,
        discard: false,
        continuity: Continuity::Clean,
    }
}

/// Every combination of the core axes.
fn core(instance: u128) -> Vec<Greeting> {
    let mut all = vec![blank(instance)];
    for axis in AXES.iter().filter(|axis| axis.core) {
        all = all
            .into_iter()
            .flat_map(|g| {
                (0..axis.values).map(move |v| {
                    let mut g = g;
                    (axis.set)(&mut g, v);
                    g
                })
            })
            .collect();
    }
    all
}

/// True when this copy was at the other's generation, now or before.
fn knows(one: &Greeting, other: &Greeting) -> bool {
    let current = other.lineage.current;
    one.lineage.current == current || one.lineage.remembers(current)
}

fn good(disk: DiskState) -> bool {
    !matches!(disk, DiskState::Failed | DiskState::Inconsistent)
}

fn check(mine: &Greeting, theirs: &Greeting) -> SyncRule {
    let (rule, verdict) = reconcile(mine, theirs);
    let say = || format!("rule {}: {verdict:?}\n  mine:   {mine:?}\n  theirs: {theirs:?}", rule.name());
    let mirror = reconcile(theirs, mine);
    assert!(mirror == (rule, verdict.mirrored()), "1: the peer says {mirror:?} to {}", say());
    let (source, target, full) = match verdict {
        Verdict::Source { full } => (mine, theirs, full),
        Verdict::Target { full } => (theirs, mine, full),
        Verdict::Even => {
            let clean = mine.dirty_blocks + theirs.dirty_blocks == 0 && !mine.full && !theirs.full;
            let one = mine.lineage.current == theirs.lineage.current && !mine.lineage.is_fresh();
            assert!(clean && one && good(mine.disk) && good(theirs.disk), "6: {}", say());
            assert!(mine.role == Role::Secondary || theirs.role == Role::Secondary, "4: {}", say());
            return rule;
        }
        Verdict::Wait | Verdict::SplitBrain | Verdict::Refuse => return rule,
    };
    let given_up = target.discard && !source.discard;
    assert!(given_up || target.lineage.is_fresh() || knows(source, target), "2: {}", say());
    assert!(given_up || target.lineage.is_fresh() || knows(mine, theirs) || knows(theirs, mine), "3: {}", say());
    assert!(target.role == Role::Secondary, "4: {}", say());
    assert!(good(source.disk) && !source.lineage.is_fresh() && target.disk != DiskState::Failed, "5: {}", say());
    let same = source.lineage.current == target.lineage.current;
    let counts = same || source.base_for_you == target.lineage.current;
    let agreed = given_up && source.base_for_you.is_some() && source.base_for_you == target.base_for_you;
    assert!(full || counts || agreed, "7: {}", say());
    assert!(full || !(mine.full || theirs.full), "7: {}", say());
    let kept = |g: &Greeting| g.continuity != Continuity::Lost;
    let equally_good = good(target.disk) && same && (source.disk == target.disk);
    if equally_good && !given_up && source.role == target.role && source.was_primary && !target.was_primary {
        assert!(kept(source) || !kept(target) || source.mode == Mode::Async, "8: {}", say());
    }
    rule
}

#[test]
fn reconcile_over_its_whole_state_space() {
    let (left, right) = (core(1), core(2));
    let mut rules = BTreeSet::new();
    let mut pairs = 0u64;
    for (my_line, my_base) in descents(10) {
        for (their_line, their_base) in descents(20) {
            for mine in &left {
                let mine = Greeting { lineage: my_line, base_for_you: my_base, ..*mine };
                for theirs in &right {
                    let theirs = Greeting { lineage: their_line, base_for_you: their_base, ..*theirs };
                    pairs += 1;
                    rules.insert(check(&mine, &theirs).name());
                }
            }
        }
    }
    println!("reconcile: {pairs} pairs");
    assert_eq!(rules.len(), 17, "every rule but same-copy is reached: {rules:?}");
}

#[test]
fn reconcile_over_all_fields_by_chance() {
    let mut rng = Rng::new(1);
    let mut draw = |instance: u128, own: u64| {
        let mut g = blank(instance);
        (g.lineage, g.base_for_you) = rng.pick(&descents(own));
        for axis in AXES {
            assert!(axis.values > 1, "{} is an axis", axis.name);
            (axis.set)(&mut g, rng.index(axis.values));
        }
        g
    };
    for _ in 0..400_000 {
        let (mine, theirs) = (draw(1, 10), draw(2, 20));
        check(&mine, &theirs);
    }
    let (mine, theirs) = (draw(1, 10), draw(1, 20));
    assert_eq!(check(&mine, &theirs), SyncRule::SameCopy);
}
