//! Whether a node that offers the volume holds everything that was acknowledged to this client.
//!
//! What has been acknowledged lies under the *proven* standing: the last one under which an answer came. Why the rules suffice:
//!
//! - A primary ends a follower's connection before it acknowledges anything under a new generation. So every acknowledgement was
//!   given under the proven generation, or one before it that an earlier judgement has covered.
//! - In `sync` and `semisync` whatever is acknowledged under a generation is on every copy of that generation that
//!   is good. A copy whose present generation descends from it has it, too. A promotion by force of a copy that
//!   is not good breaks the descent.
//! - In `async` only the copy that acknowledged has it for certain. Another copy has it if the role was handed over in order,
//!   which mints no generation.
//! - A copy that lost its cache, or was filled from one that did, says so by `whole_since`. In `sync` and `semisync` nothing is
//!   missing of what a flush covered, since a flush covers both copies.

use crate::condition::Mode;
use crate::nbd::Standing;

/// What was acknowledged, and where.
#[derive(Clone, Copy, Debug)]
pub struct Claim<'a> {
    /// The standing of the last acknowledgement; none for a client that was given none.
    pub proven: Option<&'a Standing>,
    /// Size of the device as its user knows it, in bytes; none before there is one.
    pub size: Option<u64>,
    /// Changes were acknowledged that no flush covered since.
    pub exposed: bool,
    /// The cluster's name in the configuration.
    pub cluster: &'a str,
}

/// What becomes of an offer.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Judgement {
    /// It holds everything: go on with it.
    Good,
    /// An old primary that has not heard of its end, or the like. Look elsewhere.
    Stale(String),
    /// Acknowledged data may be missing, or it is something else altogether. Nothing is sent there.
    Doubt(String),
}

/// Judges an offer of `size` bytes.
#[must_use]
pub fn judge(claim: Claim<'_>, offered: &Standing, size: u64) -> Judgement {
    let node = &offered.node;
    if offered.cluster_name != claim.cluster {
        let theirs = &offered.cluster_name;
        let ours = claim.cluster;
        return Judgement::Doubt(format!("node {node} is of the cluster {theirs:?}, the configuration of {ours:?}"));
    }
    if let Some(ours) = claim.size.filter(|&ours| ours != size) {
        return Judgement::Doubt(format!("node {node} serves {size} bytes; the device here has {ours}"));
    }
    match claim.proven {
        Some(proven) => descent(proven, offered, claim.exposed),
        None => Judgement::Good,
    }
}

fn descent(proven: &Standing, offered: &Standing, exposed: bool) -> Judgement {
    let node = &offered.node;
    if (offered.cluster, offered.volume) != (proven.cluster, proven.volume) {
        return Judgement::Doubt(format!(
            "node {node} serves another volume of that name (identity {}, not {})",
            offered.volume, proven.volume
        ));
    }
    if offered.term < proven.term {
        let (old, new) = (offered.term, proven.term);
        return Judgement::Stale(format!("node {node} serves under term {old}, which term {new} has ended"));
    }
    let (now, then) = (offered.lineage.current, proven.lineage.current);
    if now != then && !offered.lineage.remembers(then) {
        return Judgement::Doubt(format!(
            "the data of node {node} (generation {now}) does not descend from what was acknowledged here under generation \
             {then}: it was promoted by force, or without having everything"
        ));
    }
    let same_copy = offered.instance == proven.instance;
    if offered.term == proven.term {
        return match same_copy {
            true => Judgement::Good,
            false => Judgement::Doubt(format!(
                "node {node} claims term {}, under which node {} has served",
                offered.term, proven.node
            )),
        };
    }
    if proven.mode == Mode::Async && now != then && !same_copy {
        return Judgement::Doubt(format!(
            "node {node} was promoted while node {} was away, and in mode async it may lack what that one acknowledged",
            proven.node
        ));
    }
    if offered.whole_since > proven.term && (exposed || proven.mode == Mode::Async) {
        return Judgement::Doubt(format!(
            "the copy of node {node} lost its cache after term {}, and with it perhaps acknowledged writes that no flush had \
             covered",
            proven.term
        ));
    }
    Judgement::Good
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;
    use crate::generation::Lineage;
    use crate::units::{ClusterId, DiskInstance, GenerationId, Term, VolumeId};

    pub(in crate::attach) fn standing(instance: u128, term: u64, generations: &[u64]) -> Standing {
        let mut lineage = Lineage::default();
        for &generation in generations.iter().rev() {
            lineage.advance(GenerationId(generation));
        }
        Standing {
            cluster_name: "plant7".into(),
            node: if instance == 1 { "alpha" } else { "beta" }.into(),
            cluster: ClusterId(1),
            volume: VolumeId(2),
            instance: DiskInstance(instance),
            lineage,
            term: Term(term),
            whole_since: Term(0),
            mode: Mode::Sync,
        }
    }

    fn verdict(proven: &Standing, offered: &Standing, exposed: bool) -> &'static str {
        let claim = Claim { proven: Some(proven), size: Some(100), exposed, cluster: "plant7" };
        match judge(claim, offered, 100) {
            Judgement::Good => "good",
            Judgement::Stale(_) => "stale",
            Judgement::Doubt(_) => "doubt",
        }
    }

    #[test]
    fn failovers_that_lose_nothing_are_good() {
        let before = standing(1, 5, &[10]);
        for (offered, what) in [
            (standing(1, 5, &[10]), "the network blinked"),
            (standing(1, 5, &[11, 10]), "it goes on alone"),
            (standing(1, 6, &[10]), "its daemon restarted"),
            (standing(2, 7, &[10]), "switchover"),
            (standing(2, 6, &[11, 10]), "it died and the peer was promoted"),
            (standing(2, 9, &[12, 11, 10]), "and that one goes on alone"),
            (standing(1, 8, &[11, 10]), "and back"),
        ] {
            assert_eq!(verdict(&before, &offered, true), "good", "{what}");
        }
    }

    #[test]
    fn what_may_lack_something_is_doubtful() {
        // The primary went on alone under generation 11, then died.
        let alone = standing(1, 5, &[11, 10]);
        for (offered, what) in [
            (standing(2, 6, &[12, 10]), "the peer that was left behind was promoted"),
            (standing(2, 6, &[12]), "the same by force"),
            (standing(2, 6, &[10]), "it serves what it had"),
            (standing(2, 5, &[11, 10]), "two nodes claim one term"),
            (Standing { volume: VolumeId(9), ..standing(2, 6, &[12, 11, 10]) }, "another volume"),
            (Standing { cluster_name: "plant8".into(), ..standing(2, 6, &[12, 11, 10]) }, "another cluster"),
        ] {
            assert_eq!(verdict(&alone, &offered, false), "doubt", "{what}");
        }
        assert_eq!(verdict(&alone, &standing(2, 4, &[10]), true), "stale");
    }

    #[test]
    fn a_lost_cache_matters_only_for_what_no_flush_covered() {
        let before = standing(1, 5, &[10]);
        let lost = |instance| Standing { whole_since: Term(6), ..standing(instance, 6, &[11, 10]) };
        for instance in [1, 2] {
            assert_eq!(verdict(&before, &lost(instance), true), "doubt");
            assert_eq!(verdict(&before, &lost(instance), false), "good");
        }
        let unharmed = Standing { whole_since: Term(5), ..standing(2, 6, &[11, 10]) };
        assert_eq!(verdict(&before, &unharmed, true), "good");
    }

    #[test]
    fn in_async_only_the_same_copy_or_an_orderly_handover_will_do() {
        let asynchronous = |standing| Standing { mode: Mode::Async, ..standing };
        let before = asynchronous(standing(1, 5, &[10]));
        assert_eq!(verdict(&before, &asynchronous(standing(2, 7, &[10])), true), "good");
        assert_eq!(verdict(&before, &asynchronous(standing(1, 6, &[11, 10])), true), "good");
        assert_eq!(verdict(&before, &asynchronous(standing(2, 6, &[11, 10])), true), "doubt");
        // There and back again: the copy is the same, and was filled from the other one.
        let back = Standing { whole_since: Term(6), ..asynchronous(standing(1, 8, &[11, 10])) };
        assert_eq!(verdict(&before, &back, false), "doubt");
        assert_eq!(verdict(&before, &standing(2, 6, &[11, 10]), true), "doubt", "the mode at the time counts");
    }

    #[test]
    fn a_size_must_not_change_and_a_newcomer_takes_what_there_is() {
        let offered = standing(2, 6, &[12]);
        let claim = Claim { proven: None, size: None, exposed: false, cluster: "plant7" };
        assert_eq!(judge(claim, &offered, 100), Judgement::Good);
        for size in [99, 101] {
            assert!(matches!(judge(Claim { size: Some(100), ..claim }, &offered, size), Judgement::Doubt(_)));
        }
        assert!(matches!(judge(Claim { cluster: "plant8", ..claim }, &offered, 100), Judgement::Doubt(_)));
    }
}
