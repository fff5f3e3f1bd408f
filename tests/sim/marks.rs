//! Coverage: what a run has met, by name. Product code marks its subtle branches; the world adds faults, rules and refusals.

use repblk::volume::io::{Refusal, Report};

use crate::world::World;

/// What an ordinary run of all seeds must have met at least once, or it proves less than it claims.
pub(crate) const IMPORTANT: &[&str] = &[
    "a barrier held the stream back",
    "a barrier passed numbers that went to other peers",
    "a block for a resync was read when the resync was gone",
    "a block of a resync was under way when its target was lost",
    "a damaged activity log was written anew",
    "a failed copy recorded that it may lack what was not flushed",
    "a failed copy was written off on its own disk",
    "a flush was foreseen",
    "a flush found everything stable",
    "a failed disk ended a change of role",
    "a former primary asked for its role again",
    "a generation waited for the data before it",
    "a heartbeat told that the primary went on alone",
    "a link was lost between the verdicts",
    "a link was lost when the role was as good as given up",
    "a link was lost while a target confirmed",
    "a link was lost while a target prepared",
    "a peer was in sync again before its exclusion was allowed",
    "a primary went on without its disk",
    "a promotion met a link that greeted",
    "a read for the peer waited for its stream",
    "a read that failed was tried on the peer",
    "a resync stepped over a range that a writer held",
    "a resync went on though the host filled the log",
    "a silent peer was dropped",
    "a state changed while a node greeted",
    "a stream was applied after its link was lost",
    "a target brought dirty blocks of its own",
    "a write of the stream waited for one before it",
    "a write waited for a range that another held",
    "a write waited for a slot of the activity log",
    "a write waited for nothing but an exclusion",
    "a write waited for room in the transfer log",
    "a write waited for the backlog",
    "an answer that nobody heard",
    "an eviction waited for bitmap pages",
    "an exclusion was allowed while its peer greeted",
    "an extent nobody wrote to left the activity log",
    "an old heartbeat was not believed",
    "attach: bitmap pages are damaged",
    "attach: continuity Clean",
    "attach: continuity Lost",
    "attach: continuity SameBoot",
    "attach: one superblock is damaged",
    "attach: the activity log is unusable",
    "client error",
    "fault: a disk was replaced by an empty one",
    "fault: a disk was replaced by an older copy",
    "fault: a process stopped for a while",
    "fault: damage to a bitmap",
    "fault: damage to a page of the activity log",
    "fault: damage to superblock A",
    "fault: damage to superblock B",
    "fault: the disk lied about a sector",
    "frame refused",
    "joined",
    "old frame",
    "refused: already-primary",
    "refused: busy",
    "refused: clients-connected",
    "refused: disk-failed",
    "refused: diverged",
    "refused: inconsistent",
    "refused: no-data",
    "refused: not-connected",
    "refused: not-primary",
    "refused: outdated",
    "refused: peer-is-primary",
    "refused: peer-not-in-sync",
    "refused: peer-unseen",
    "rule behind",
    "rule better-disk",
    "rule both-fresh",
    "rule equal",
    "rule equal-last-primary",
    "rule equal-survivor",
    "rule far-behind",
    "rule one-fresh",
    "split brain",
    "what a lost peer had not made stable became dirty",
];

impl World {
    /// Something happened that runs should reach.
    pub(crate) fn mark(&mut self, name: &str) {
        match self.marks.get_mut(name) {
            Some(n) => *n += 1,
            None => {
                self.marks.insert(name.to_owned(), 1);
            }
        }
    }

    /// Takes the marks of a machine whose process ends, or of all at the end of a run.
    pub(crate) fn gather_marks_of(&mut self, node: usize) {
        let Some(process) = &self.nodes[node].process else { return };
        let names: Vec<_> = process.volume.marks().collect();
        for name in names {
            self.mark(name);
        }
    }

    /// The run is over.
    pub(crate) fn gather_marks(&mut self) {
        for node in 0..self.nodes.len() {
            self.gather_marks_of(node);
        }
    }

    /// A state changed: by which rule two copies met.
    pub(crate) fn mark_change(&mut self, report: &Report) {
        if let Report::Changed { why, .. } = report
            && let Some(rule) = why.strip_prefix("rule ").and_then(|rest| rest.split(':').next())
        {
            self.mark(&format!("rule {rule}"));
        }
    }

    /// A machine closes a link.
    ///
    /// # Panics
    /// When it accuses its peer of breaking the protocol: both are correct.
    pub(crate) fn mark_close(&mut self, why: &str) {
        assert!(!why.starts_with("protocol error"), "a correct peer is accused: {why}");
        let name: String = why.chars().filter(|c| !c.is_ascii_digit()).take(60).collect();
        self.mark(&format!("parted: {name}"));
    }

    /// A command was answered.
    pub(crate) fn mark_answer(&mut self, result: &Result<(), Refusal>) {
        if let Err(refused) = result {
            self.mark(&format!("refused: {}", refused.rule));
        }
    }
}
