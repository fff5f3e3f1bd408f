//! When two copies meet: who holds what the other lacks.
//!
//! A pure table over the two greetings, evaluated from the top; the first rule that applies decides and names itself in the log.
//! Both nodes evaluate it, each from its own side, and send each other the result: `reconcile(a, b)` is the mirror of
//! `reconcile(b, a)`, which a property test checks over the whole state space. An asymmetry here would be silent data loss.
//!
//! No rule ever says "equal" of two copies while a dirty bit is set: equality is earned by copying.

use crate::condition::{Continuity, DiskState, Mode, Role};
use crate::units::GenerationId;
use crate::wire::message::Greeting;

/// What follows for the node that evaluates.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum Verdict {
    /// Both copies are equal.
    Even,
    /// This node sends.
    Source {
        /// Every block, not only the dirty ones.
        full: bool,
    },
    /// This node receives.
    Target {
        /// Every block, not only the dirty ones.
        full: bool,
    },
    /// Connected, and nothing to copy yet.
    Wait,
    /// Both hold acknowledged writes that the other lacks.
    SplitBrain,
    /// These copies cannot be brought together as they are.
    Refuse,
}

impl Verdict {
    /// What the other node must have come to.
    #[must_use]
    pub fn mirrored(self) -> Self {
        match self {
            Self::Source { full } => Self::Target { full },
            Self::Target { full } => Self::Source { full },
            Self::Even | Self::Wait | Self::SplitBrain | Self::Refuse => self,
        }
    }

    /// Number on the wire.
    #[must_use]
    pub fn number(self) -> u16 {
        match self {
            Self::Even => 1,
            Self::Source { full: false } => 2,
            Self::Source { full: true } => 3,
            Self::Target { full: false } => 4,
            Self::Target { full: true } => 5,
            Self::Wait => 6,
            Self::SplitBrain => 7,
            Self::Refuse => 8,
        }
    }
}

macro_rules! rules {
    ($($(#[$doc:meta])* $variant:ident = $number:literal $name:literal),* $(,)?) => {
        /// Why the verdict is what it is.
        #[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
        pub enum SyncRule { $($(#[$doc])* $variant),* }
        impl SyncRule {
            /// Name in the log and the docs.
            #[must_use]
            pub fn name(self) -> &'static str { match self { $(Self::$variant => $name),* } }
            /// Number on the wire.
            #[must_use]
            pub fn number(self) -> u16 { match self { $(Self::$variant => $number),* } }
        }
    };
}

rules! {
    /// Both greetings come from the same copy.
    SameCopy = 1 "same-copy",
    /// A disk has failed.
    DiskFailed = 2 "disk-failed",
    /// Neither copy ever held data.
    BothFresh = 3 "both-fresh",
    /// One copy never held data.
    OneFresh = 4 "one-fresh",
    /// Neither copy is consistent.
    NoGoodCopy = 5 "no-good-copy",
    /// Both nodes are primary.
    BothPrimary = 6 "both-primary",
    /// An operator gave one copy up.
    Discarded = 7 "discarded",
    /// Same generation, one copy worth more than the other.
    BetterDisk = 8 "better-disk",
    /// Same generation, nothing dirty.
    Equal = 9 "equal",
    /// Same generation, something dirty; the primary decides.
    EqualPrimary = 10 "equal-primary",
    /// Same generation, something dirty; the last primary's host kept its cache, or the mode lets it know more.
    EqualLastPrimary = 11 "equal-last-primary",
    /// Same generation, something dirty; the last primary's host lost its cache, the other did not.
    EqualSurvivor = 12 "equal-survivor",
    /// Same generation, something dirty, nobody was primary; a fixed choice.
    EqualTie = 13 "equal-tie",
    /// One copy is at the generation at which the other went on without it.
    Behind = 14 "behind",
    /// One copy is at a former generation of the other.
    FarBehind = 15 "far-behind",
    /// The copy that is behind is primary.
    PrimaryBehind = 16 "primary-behind",
    /// Both went on from a common generation.
    Forked = 17 "forked",
    /// No common generation is known.
    Unrelated = 18 "unrelated",
}

/// Decides, from the side of `mine`.
#[must_use]
pub fn reconcile(mine: &Greeting, theirs: &Greeting) -> (SyncRule, Verdict) {
    let full = mine.full || theirs.full;
    if mine.instance == theirs.instance {
        return (SyncRule::SameCopy, Verdict::Refuse);
    }
    if mine.disk == DiskState::Failed || theirs.disk == DiskState::Failed {
        return (SyncRule::DiskFailed, Verdict::Refuse);
    }
    match (mine.lineage.is_fresh(), theirs.lineage.is_fresh()) {
        (true, true) => return (SyncRule::BothFresh, Verdict::Wait),
        (true, false) => return toward(SyncRule::OneFresh, false, true, mine, theirs),
        (false, true) => return toward(SyncRule::OneFresh, true, true, mine, theirs),
        (false, false) => {}
    }
    if mine.role == Role::Primary && theirs.role == Role::Primary {
        return (SyncRule::BothPrimary, Verdict::SplitBrain);
    }
    if mine.discard != theirs.discard {
        return toward(SyncRule::Discarded, theirs.discard, full || !same_base(mine, theirs), mine, theirs);
    }
    if mine.lineage.current == theirs.lineage.current {
        return equal_generation(mine, theirs, full);
    }
    different_generation(mine, theirs, full)
}

/// Both bitmaps count from the same generation, so that their union names every block that may differ.
fn same_base(mine: &Greeting, theirs: &Greeting) -> bool {
    mine.base_for_you.is_some() && mine.base_for_you == theirs.base_for_you
}

fn equal_generation(mine: &Greeting, theirs: &Greeting, full: bool) -> (SyncRule, Verdict) {
    let (my_worth, their_worth) = (worth(mine.disk), worth(theirs.disk));
    if my_worth != their_worth {
        return toward(SyncRule::BetterDisk, my_worth > their_worth, full, mine, theirs);
    }
    if my_worth == 0 {
        return (SyncRule::NoGoodCopy, Verdict::Refuse);
    }
    if mine.dirty_blocks == 0 && theirs.dirty_blocks == 0 && !full {
        return (SyncRule::Equal, Verdict::Even);
    }
    if mine.role != theirs.role {
        return toward(SyncRule::EqualPrimary, mine.role == Role::Primary, full, mine, theirs);
    }
    if mine.was_primary != theirs.was_primary {
        let (last, other) = if mine.was_primary { (mine, theirs) } else { (theirs, mine) };
        // In async mode only the last primary may hold acknowledged writes that the other lacks. In the other modes the
        // copy that kept its cache holds every acknowledged write, and the one that lost it may lack unflushed ones.
        let survivor_knows_more =
            last.mode != Mode::Async && last.continuity == Continuity::Lost && other.continuity != Continuity::Lost;
        let rule = if survivor_knows_more { SyncRule::EqualSurvivor } else { SyncRule::EqualLastPrimary };
        return toward(rule, mine.was_primary != survivor_knows_more, full, mine, theirs);
    }
    toward(SyncRule::EqualTie, mine.instance < theirs.instance, full, mine, theirs)
}

fn different_generation(mine: &Greeting, theirs: &Greeting, full: bool) -> (SyncRule, Verdict) {
    let at = |base: GenerationId, current: GenerationId| base.is_some() && base == current;
    let they_are_behind = at(mine.base_for_you, theirs.lineage.current);
    let i_am_behind = at(theirs.base_for_you, mine.lineage.current);
    if they_are_behind != i_am_behind {
        return toward(SyncRule::Behind, they_are_behind, full, mine, theirs);
    }
    let they_are_far_behind = mine.lineage.remembers(theirs.lineage.current);
    let i_am_far_behind = theirs.lineage.remembers(mine.lineage.current);
    if !they_are_behind && they_are_far_behind != i_am_far_behind {
        return toward(SyncRule::FarBehind, they_are_far_behind, true, mine, theirs);
    }
    if mine.lineage.common_ancestor(&theirs.lineage).is_some() {
        return (SyncRule::Forked, Verdict::SplitBrain);
    }
    (SyncRule::Unrelated, Verdict::Refuse)
}

/// A direction, unless the source has nothing good to give or the target serves clients.
fn toward(rule: SyncRule, i_am_source: bool, full: bool, mine: &Greeting, theirs: &Greeting) -> (SyncRule, Verdict) {
    let (source, target) = if i_am_source { (mine, theirs) } else { (theirs, mine) };
    if target.role == Role::Primary {
        return (SyncRule::PrimaryBehind, Verdict::SplitBrain);
    }
    if worth(source.disk) == 0 {
        return (SyncRule::NoGoodCopy, Verdict::Refuse);
    }
    (rule, if i_am_source { Verdict::Source { full } } else { Verdict::Target { full } })
}

/// How good a copy is as a source. Diverged is as good as UpToDate: the lineages decide about it.
fn worth(disk: DiskState) -> u8 {
    match disk {
        DiskState::Failed | DiskState::Inconsistent => 0,
        DiskState::Outdated => 1,
        DiskState::Diverged | DiskState::UpToDate => 2,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::generation::Lineage;
    use crate::units::{DiskInstance, Term};

    fn greeting(instance: u128, current: u64) -> Greeting {
        Greeting {
            instance: DiskInstance(instance),
            lineage: if current == 0 { Lineage::default() } else { Lineage::starting_with(GenerationId(current)) },
            base_for_you: GenerationId::NONE,
            dirty_blocks: 0,
            full: false,
            disk: if current == 0 { DiskState::Inconsistent } else { DiskState::UpToDate },
            role: Role::Secondary,
            term: Term(1),
            mode: Mode::Sync,
            was_primary: false,
            discard: false,
            continuity: Continuity::Clean,
        }
    }

    fn check(mine: &Greeting, theirs: &Greeting) -> (SyncRule, Verdict) {
        let (result, mirror) = (reconcile(mine, theirs), reconcile(theirs, mine));
        assert_eq!((result.0, result.1.mirrored()), mirror, "{mine:?} / {theirs:?}");
        result
    }

    /// The whole state space of two copies, each in every lineage position, disk state, role and history of stops.
    #[test]
    fn both_sides_always_come_to_mirrored_verdicts() {
        let mut seen = std::collections::BTreeSet::new();
        let lineages = |first: u64| {
            let mut child = Lineage::starting_with(GenerationId(1));
            child.advance(GenerationId(first));
            let mut grandchild = child;
            grandchild.advance(GenerationId(first + 1));
            [
                Lineage::default(),
                Lineage::starting_with(GenerationId(1)),
                child,
                grandchild,
                Lineage::starting_with(GenerationId(first + 50)),
            ]
        };
        let mut sides = [Vec::new(), Vec::new()];
        for (side, out) in sides.iter_mut().enumerate() {
            for lineage in lineages(10 + 10 * side as u64) {
                for base in [0, 1, 10, 20] {
                    for disk in [DiskState::Failed, DiskState::Inconsistent, DiskState::Outdated, DiskState::UpToDate] {
                        for bits in 0..32u32 {
                            let mut g = greeting(side as u128 + 1, 1);
                            g.lineage = lineage;
                            g.base_for_you = GenerationId(base);
                            g.disk = disk;
                            g.role = if bits & 1 == 0 { Role::Secondary } else { Role::Primary };
                            g.was_primary = bits & 2 != 0;
                            g.continuity = if bits & 4 == 0 { Continuity::Clean } else { Continuity::Lost };
                            g.dirty_blocks = u64::from(bits & 8 != 0);
                            g.discard = bits & 16 != 0;
                            out.push(g);
                        }
                    }
                }
            }
        }
        let [left, right] = sides;
        for mine in &left {
            for theirs in &right {
                let (rule, verdict) = check(mine, theirs);
                seen.insert(rule.name());
                let dirty = mine.dirty_blocks + theirs.dirty_blocks > 0;
                assert!(!(dirty && verdict == Verdict::Even), "{} forgets dirty blocks", rule.name());
                let target = match verdict {
                    Verdict::Target { .. } => Some((mine, theirs)),
                    Verdict::Source { .. } => Some((theirs, mine)),
                    _ => None,
                };
                if let Some((target, source)) = target {
                    assert_eq!(target.role, Role::Secondary, "{} would overwrite a primary", rule.name());
                    assert!(worth(source.disk) > 0, "{} would copy from a bad disk", rule.name());
                }
            }
        }
        assert_eq!(seen.len(), 17, "every rule but same-copy is reached: {seen:?}");
    }

    #[test]
    fn named_cases() {
        let (fresh_a, fresh_b) = (greeting(1, 0), greeting(2, 0));
        assert_eq!(check(&fresh_a, &fresh_b), (SyncRule::BothFresh, Verdict::Wait));
        assert_eq!(check(&greeting(1, 1), &fresh_b), (SyncRule::OneFresh, Verdict::Source { full: true }));
        assert_eq!(check(&greeting(1, 1), &greeting(2, 1)), (SyncRule::Equal, Verdict::Even));
        assert_eq!(check(&greeting(1, 1), &greeting(2, 2)), (SyncRule::Unrelated, Verdict::Refuse));

        let mut ahead = greeting(1, 1);
        ahead.lineage.advance(GenerationId(2));
        ahead.base_for_you = GenerationId(1);
        assert_eq!(check(&ahead, &greeting(2, 1)), (SyncRule::Behind, Verdict::Source { full: false }));
        ahead.base_for_you = GenerationId::NONE;
        assert_eq!(check(&ahead, &greeting(2, 1)), (SyncRule::FarBehind, Verdict::Source { full: true }));

        let (mut a, mut b) = (ahead, ahead);
        a.lineage.advance(GenerationId(3));
        (b.instance, b.lineage) = (DiskInstance(2), ahead.lineage);
        b.lineage.advance(GenerationId(4));
        assert_eq!(check(&a, &b), (SyncRule::Forked, Verdict::SplitBrain));
        b.discard = true;
        (a.base_for_you, b.base_for_you) = (GenerationId(2), GenerationId(2));
        assert_eq!(check(&a, &b), (SyncRule::Discarded, Verdict::Source { full: false }));
    }

    #[test]
    fn a_crashed_primary_that_lost_its_cache_learns_from_the_survivor() {
        let mut last = greeting(1, 1);
        (last.was_primary, last.continuity, last.dirty_blocks) = (true, Continuity::Lost, 7);
        let other = greeting(2, 1);
        assert_eq!(check(&last, &other), (SyncRule::EqualSurvivor, Verdict::Target { full: false }));
        last.continuity = Continuity::SameBoot;
        assert_eq!(check(&last, &other), (SyncRule::EqualLastPrimary, Verdict::Source { full: false }));
        (last.continuity, last.mode) = (Continuity::Lost, Mode::Async);
        assert_eq!(check(&last, &other), (SyncRule::EqualLastPrimary, Verdict::Source { full: false }));
    }
}
