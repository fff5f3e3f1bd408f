//! Coverage: what a run has met, by name. Product code marks its subtle branches; the world adds faults, rules and refusals.

use repblk::volume::io::{Refusal, Report};

use crate::world::World;

/// What an ordinary run of all seeds must have met at least once, or it proves less than it claims.
pub(crate) const IMPORTANT: &[&str] = &[];

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
