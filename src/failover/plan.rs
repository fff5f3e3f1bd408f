//! What would happen now, and why, changing nothing: the same table over the same evidence, with one thing supposed.

use crate::condition::Role;
use crate::failover::Failover;
use crate::failover::decision::{Verdict, decide};
use crate::failover::detector::Suspicion;
use crate::failover::rule::Rule;
use crate::failover::view::{View, Wish};
use crate::units::Moment;

/// What is supposed.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum Question {
    /// Nothing: what follows from how things are.
    Now,
    /// The peer's host is lost, and every wait is over.
    PeerLost,
    /// The peer is back, and its link with it.
    Reconnect,
    /// An operator promotes this node.
    Promote {
        /// As on the command line.
        force: bool,
        /// As on the command line.
        peer_is_down: bool,
    },
    /// An operator hands the role over.
    HandOver,
}

/// The answer.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub struct Plan {
    /// The rule that would decide.
    pub rule: Rule,
    /// What would follow.
    pub verdict: Verdict,
    /// The steps, in order; none when nothing would be done.
    pub steps: Vec<&'static str>,
    /// The evidence, with what was supposed.
    pub evidence: View,
}

impl Failover {
    /// Answers a question; nothing is sent, written or remembered.
    #[must_use]
    pub fn plan(&self, now: Moment, question: Question) -> Plan {
        let mut view = self.view(now);
        (view.wish, view.vouched) = (Wish::None, false);
        let primary = view.role == Role::Primary;
        match question {
            Question::Now => {}
            Question::PeerLost => {
                (view.link, view.peer, view.peer_primary, view.deaf) = (false, Suspicion::Silent, false, false);
                (view.renewing, view.claim_open, view.fence_turn, view.my_turn) = (false, true, true, true);
                view.waits = primary && view.peer_in_sync;
                view.peer_in_sync = false;
            }
            Question::Reconnect => {
                (view.link, view.peer, view.peer_primary) = (true, Suspicion::Heard, !primary);
                view.waits = false;
            }
            Question::Promote { force, peer_is_down } => {
                view.wish = if force { Wish::Force } else { Wish::Promote };
                view.vouched = peer_is_down;
            }
            Question::HandOver => view.wish = Wish::HandOver,
        }
        let (rule, verdict) = decide(&view);
        Plan { rule, verdict, steps: steps(verdict, view.record_counts()), evidence: view }
    }
}

impl View {
    /// Somebody outside both nodes keeps a record.
    fn record_counts(&self) -> bool {
        self.arbiter == crate::failover::config::Arbiter::Etcd
    }
}

fn steps(verdict: Verdict, by_record: bool) -> Vec<&'static str> {
    match verdict {
        Verdict::Stay | Verdict::Refuse => vec![],
        Verdict::Wait => vec!["writes wait; clients see no error"],
        Verdict::Prove => vec!["ask the fence or the agent; everything else waits for its answer"],
        Verdict::Record => {
            vec!["change the in-sync set in the arbiter's record", "writes that need it wait until it is done"]
        }
        Verdict::Allow => {
            vec!["make a new generation durable", "go on alone; what the peer lacks is recorded as dirty"]
        }
        Verdict::StandDown => {
            vec!["stop answering, disconnect the clients without a reply", "become secondary and outdated"]
        }
        Verdict::HandOver => vec![
            "hold new requests, finish and flush what is under way on both copies",
            "make being secondary durable",
            "take this node out of the record as writer; the peer claims it",
        ],
        Verdict::TakeOver if by_record => vec![
            "make the promise of a newer term durable; refuse everything older",
            "claim the arbiter's record at the revision that was read",
            "become primary at the new term",
        ],
        Verdict::TakeOver => vec!["make the promise of a newer term durable", "become primary at the new term"],
    }
}
