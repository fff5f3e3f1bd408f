//! What `repblk status`, `plan` and `history` show of failover.

use serde::{Deserialize, Serialize};

use crate::daemon::status::millis;
use crate::failover::Failover;
use crate::failover::history::Episode;
use crate::failover::io::NEVER;
use crate::failover::{Plan, Question};
use crate::units::Moment;

/// In `repblk status`.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct FailoverStatus {
    /// The rule that applies now.
    pub rule: String,
    /// What is the case, and what can be done.
    pub sentence: String,
    /// What follows: `stay`, `wait`, `prove`, `record`, `allow`, `stand-down`, `take-over`, `hand-over`, `refuse`.
    pub verdict: String,
    /// What is known, as `key=value` words and flags.
    pub evidence: String,
    /// Milliseconds for which this node may still answer clients; null where no lease is needed.
    pub lease_ms: Option<u64>,
    /// Nothing is done automatically.
    pub maintenance: bool,
}

/// One line of `repblk plan`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PlanStatus {
    /// What is supposed: `now`, `peer-lost`, `reconnect`, `promote`, `switchover`.
    pub question: String,
    /// The rule that would decide.
    pub rule: String,
    /// What would be the case.
    pub sentence: String,
    /// What would follow; as [`FailoverStatus::verdict`].
    pub verdict: String,
    /// What would be done, in order.
    pub steps: Vec<String>,
    /// The evidence with what is supposed.
    pub evidence: String,
}

/// How failover is.
pub(in crate::daemon) fn status(failover: &Failover, now: Moment) -> FailoverStatus {
    let (rule, verdict) = failover.rule(now);
    let view = failover.view(now);
    let until = failover.lease_until();
    FailoverStatus {
        rule: rule.name().to_owned(),
        sentence: rule.sentence().to_owned(),
        verdict: verdict.word().to_owned(),
        evidence: view.to_string(),
        lease_ms: (until != NEVER).then(|| millis(until.since(now))),
        maintenance: view.maintenance,
    }
}

/// What would happen.
pub(in crate::daemon) fn plan(failover: &Failover, now: Moment) -> Vec<PlanStatus> {
    let questions = [
        ("now", Question::Now),
        ("peer-lost", Question::PeerLost),
        ("reconnect", Question::Reconnect),
        ("promote", Question::Promote { force: false, peer_is_down: false }),
        ("switchover", Question::HandOver),
    ];
    let answer = |(name, question): (&str, Question)| {
        let Plan { rule, verdict, steps, evidence } = failover.plan(now, question);
        PlanStatus {
            question: name.to_owned(),
            rule: rule.name().to_owned(),
            sentence: rule.sentence().to_owned(),
            verdict: verdict.word().to_owned(),
            steps: steps.into_iter().map(str::to_owned).collect(),
            evidence: evidence.to_string(),
        }
    };
    questions.into_iter().map(answer).collect()
}

/// The last changes of the primary, oldest first.
pub(in crate::daemon) fn history(failover: &Failover, _now: Moment) -> Vec<Episode> {
    failover.history().to_vec()
}

#[cfg(test)]
mod tests {
    use crate::failover::rule::Rule;

    /// Whoever reads a rule in the log looks it up there.
    #[test]
    fn the_manual_explains_every_rule_and_kind() {
        let manual = include_str!("../../../docs/failover.md");
        let row = |start: String| manual.lines().any(|line| line.starts_with(&start));
        for rule in Rule::ALL {
            let expected = format!("| `{rule}` | {} |", rule.sentence());
            assert!(row(expected), "docs/failover.md does not explain {rule} as `plan` does");
        }
        for kind in ["etcd", "fence", "agent", "none"] {
            assert!(row(format!("| `{kind}` |")), "docs/failover.md does not explain kind {kind}");
        }
    }
}
