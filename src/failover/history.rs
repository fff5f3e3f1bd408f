//! The last changes of the writer, with the evidence of each: kept in the arbiter's record, so that no restart forgets them.

use serde::{Deserialize, Serialize};

/// How many changes are remembered.
pub const EPISODES_MAX: usize = 16;
/// Longest evidence kept, in bytes. What is longer is cut at a space.
pub const EVIDENCE_LEN_MAX: usize = 640;
/// Longest name of a node or a rule, in bytes.
pub const NAME_LEN_MAX: usize = 64;
/// The time over which automatic failovers are counted.
const HOUR_MS: u64 = 3_600_000;

/// What caused a change of the writer.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Cause {
    /// The machine, on its own.
    Automatic,
    /// An operator promoted.
    Operator,
    /// The role was handed over, or taken up again by the node that had it.
    Orderly,
}

/// One change of the writer.
#[derive(Clone, PartialEq, Eq, Hash, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Episode {
    /// When, in milliseconds since 1970, by the clock of the node that took over. For people, and for counting.
    pub at_unix_ms: u64,
    /// The new term.
    pub term: u64,
    /// The node that took over.
    pub to: String,
    /// What caused it.
    pub cause: Cause,
    /// The rule that allowed it.
    pub rule: String,
    /// What was known at that moment, as `key=value` words.
    pub evidence: String,
}

/// The last changes, oldest first.
#[derive(Clone, PartialEq, Eq, Hash, Debug, Default, Serialize, Deserialize)]
#[serde(transparent)]
pub struct History(Vec<Episode>);

impl History {
    /// The episodes, oldest first.
    #[must_use]
    pub fn episodes(&self) -> &[Episode] {
        &self.0
    }

    /// Adds one; the oldest goes when there are too many, and what is too long is cut.
    pub fn add(&mut self, mut episode: Episode) {
        for text in [&mut episode.to, &mut episode.rule] {
            cut(text, NAME_LEN_MAX);
        }
        cut(&mut episode.evidence, EVIDENCE_LEN_MAX);
        if self.0.len() >= EPISODES_MAX {
            self.0.remove(0);
        }
        self.0.push(episode);
    }

    /// Automatic failovers of the last hour. A time in the future counts: clocks differ, and the bound must not.
    #[must_use]
    pub fn automatic_within_an_hour(&self, now_unix_ms: u64) -> usize {
        let recent = |episode: &&Episode| now_unix_ms.saturating_sub(episode.at_unix_ms) < HOUR_MS;
        self.0.iter().filter(|episode| episode.cause == Cause::Automatic).filter(recent).count()
    }

    /// True when everything is within its bounds.
    #[must_use]
    pub fn is_bounded(&self) -> bool {
        let fits = |e: &Episode| {
            e.to.len() <= NAME_LEN_MAX && e.rule.len() <= NAME_LEN_MAX && e.evidence.len() <= EVIDENCE_LEN_MAX
        };
        self.0.len() <= EPISODES_MAX && self.0.iter().all(fits)
    }
}

fn cut(text: &mut String, max: usize) {
    if text.len() > max {
        let mut end = max;
        while !text.is_char_boundary(end) {
            end -= 1;
        }
        let word = text[..end].rfind(' ').unwrap_or(end);
        text.truncate(word);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn episode(at_unix_ms: u64, cause: Cause) -> Episode {
        let (to, rule, evidence) = ("a".into(), "take-over-handed".into(), "x=y ".repeat(400));
        Episode { at_unix_ms, term: 1, to, cause, rule, evidence }
    }

    #[test]
    fn the_list_is_bounded_and_keeps_the_youngest() {
        let mut history = History::default();
        for at in 0..40 {
            history.add(episode(at, Cause::Automatic));
        }
        assert!(history.is_bounded());
        assert_eq!(history.episodes().first().map(|e| e.at_unix_ms), Some(24));
        assert!(history.episodes()[0].evidence.ends_with("x=y"), "cut at a space");
    }

    #[test]
    fn only_automatic_ones_of_the_last_hour_count() {
        let mut history = History::default();
        for (at, cause) in [(0, Cause::Automatic), (HOUR_MS, Cause::Automatic), (HOUR_MS, Cause::Operator)] {
            history.add(episode(at, cause));
        }
        assert_eq!(history.automatic_within_an_hour(HOUR_MS), 1);
        assert_eq!(history.automatic_within_an_hour(HOUR_MS - 1), 2, "a clock that is behind counts more, never less");
        assert_eq!(history.automatic_within_an_hour(3 * HOUR_MS), 0);
    }
}
