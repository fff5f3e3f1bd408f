//! The table: evidence in, a named rule and what follows out. It changes nothing and knows no time, so that `plan` can ask it too.
//!
//! Read it from the top: the first rule that applies decides.

use crate::condition::{DiskState, Role};
use crate::failover::config::Arbiter;
use crate::failover::detector::Suspicion;
use crate::failover::rule::Rule;
use crate::failover::view::{Proof, Recorded, View, Wish, Writer};

/// What follows.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub enum Verdict {
    /// Nothing: everything stays as it is.
    Stay,
    /// Writes wait, and nothing else can be done now.
    Wait,
    /// Ask the fence or the agent.
    Prove,
    /// Change the record: take the peer out of the in-sync set, or back in.
    Record,
    /// The peer is excluded: go on alone.
    Allow,
    /// Stop serving at once.
    StandDown,
    /// Promise, claim, become primary.
    TakeOver,
    /// Give the role to the peer, in order.
    HandOver,
    /// Refuse what the operator asked.
    Refuse,
}

impl Verdict {
    /// The word in `status` and `plan`.
    #[must_use]
    pub fn word(self) -> &'static str {
        match self {
            Self::Stay => "stay",
            Self::Wait => "wait",
            Self::Prove => "prove",
            Self::Record => "record",
            Self::Allow => "allow",
            Self::StandDown => "stand-down",
            Self::TakeOver => "take-over",
            Self::HandOver => "hand-over",
            Self::Refuse => "refuse",
        }
    }
}

/// A rule, and what follows from it.
pub type Decision = (Rule, Verdict);

/// Decides.
#[must_use]
pub fn decide(view: &View) -> Decision {
    match view.role {
        Role::Primary => primary(view),
        Role::Secondary => standby(view),
    }
}

fn primary(view: &View) -> Decision {
    match (view.wish, view.arbiter) {
        (Wish::Promote | Wish::Force, _) => (Rule::AlreadyPrimary, Verdict::Refuse),
        // Where nobody but an operator promotes, it is for the operator to say which copy is kept.
        (_, Arbiter::Etcd | Arbiter::Fence | Arbiter::Agent) if view.overruled => (Rule::Overruled, Verdict::StandDown),
        (_, Arbiter::Etcd) => primary_by_record(view),
        (_, Arbiter::Fence) if view.waits => primary_by_fence(view),
        (_, Arbiter::Agent | Arbiter::None) if view.waits => {
            if view.peer_outdated {
                (Rule::ExclusionByPromise, Verdict::Allow)
            } else if view.accept_split_brain && view.gateway == Some(false) {
                (Rule::GatewayFrozen, Verdict::Wait)
            } else {
                (Rule::ExclusionFree, Verdict::Allow)
            }
        }
        _ => hand_over_or(view, view.peer_in_sync, (Rule::Serving, Verdict::Stay)),
    }
}

fn primary_by_record(view: &View) -> Decision {
    match view.record {
        Recorded::Known(Writer::Me) => {}
        Recorded::Known(_) => return (Rule::NotTheWriter, Verdict::StandDown),
        // Nobody can have become primary since but the peer, and that one follows.
        Recorded::RolledBack if view.link && view.peer_in_sync => return (Rule::MendRecord, Verdict::Record),
        // What this node holds it holds; but nothing may be changed over such a record.
        Recorded::RolledBack => return (Rule::RolledBack, if view.waits { Verdict::Wait } else { Verdict::Stay }),
        Recorded::Foreign => return (Rule::ForeignRecord, if view.waits { Verdict::Wait } else { Verdict::Stay }),
        Recorded::Unread | Recorded::Missing => return (Rule::NotTheWriter, Verdict::StandDown),
    }
    if view.disk == DiskState::Failed && !view.link && view.peer_recorded {
        // What was acknowledged is on the other copy, and nothing more can be: whatever waits here, that one must be able to go on.
        return (Rule::CannotServe, Verdict::StandDown);
    }
    if view.waits && view.disk == DiskState::Failed {
        // This copy is lost, and the node goes on with the peer's: it is this copy that must not be promoted any more.
        return match (view.me_recorded, view.peer_recorded) {
            (false, _) => (Rule::ExclusionRecorded, Verdict::Allow),
            (true, true) => (Rule::AskRecord, Verdict::Record),
            (true, false) => (Rule::OwnDiskBad, Verdict::Wait),
        };
    }
    if view.waits {
        return match (view.peer_recorded, view.answers) {
            (false, _) => (Rule::ExclusionRecorded, Verdict::Allow),
            (true, true) => (Rule::AskRecord, Verdict::Record),
            (true, false) => (Rule::ArbiterSilentFrozen, Verdict::Record),
        };
    }
    if view.limbo {
        // The same change is tried again at the same revision: one of the two comes to nothing.
        return (Rule::InLimbo, Verdict::Record);
    }
    let readmit = view.peer_in_sync && !view.peer_recorded;
    let usual = if readmit { (Rule::Readmit, Verdict::Record) } else { (Rule::Serving, Verdict::Stay) };
    hand_over_or(view, view.peer_in_sync && view.peer_recorded && view.answers, usual)
}

fn primary_by_fence(view: &View) -> Decision {
    if view.peer_outdated {
        return (Rule::ExclusionByPromise, Verdict::Allow);
    }
    if view.disk == DiskState::Failed {
        // It is this copy that is given up, and without a record nothing promotes it before it has met its peer.
        return (Rule::ExclusionFree, Verdict::Allow);
    }
    match view.proof {
        Proof::Off | Proof::Outdated => (Rule::ExclusionFenced, Verdict::Allow),
        Proof::Primary => (Rule::PeerWonFence, Verdict::StandDown),
        Proof::Asked => (Rule::FenceRunning, Verdict::Wait),
        Proof::None => (Rule::FencePeer, Verdict::Prove),
        Proof::Failed | Proof::Dead | Proof::DeadAhead | Proof::Alive => (Rule::FenceFailed, Verdict::Wait),
    }
}

fn hand_over_or(view: &View, ready: bool, usual: Decision) -> Decision {
    match view.wish {
        Wish::HandOver if view.busy => (Rule::Busy, Verdict::Refuse),
        Wish::HandOver if !ready => (Rule::PeerNotInSync, Verdict::Refuse),
        Wish::HandOver => (Rule::HandOver, Verdict::HandOver),
        Wish::None | Wish::Promote | Wish::Force => usual,
    }
}

/// Why this copy must not be promoted, whatever the peer is.
fn unfit(view: &View) -> Option<Rule> {
    match view.disk {
        DiskState::Failed => Some(Rule::OwnDiskBad),
        _ if view.disk_stalled => Some(Rule::OwnDiskBad),
        DiskState::Inconsistent => Some(Rule::OwnInconsistent),
        DiskState::Diverged => Some(Rule::OwnDiverged),
        DiskState::Outdated => Some(Rule::OwnOutdated),
        DiskState::UpToDate => None,
    }
}

/// Why this node should suspect itself before its peer.
fn doubtful_of_itself(view: &View) -> Option<Rule> {
    if view.overslept {
        Some(Rule::Overslept)
    } else if !view.carrier {
        Some(Rule::Isolated)
    } else if view.gateway == Some(false) {
        Some(Rule::GatewayVeto)
    } else {
        None
    }
}

/// Why nothing is done without an operator.
fn not_automatic(view: &View) -> Option<Rule> {
    if view.maintenance {
        Some(Rule::Maintenance)
    } else if !view.automatic {
        Some(Rule::AutomaticOff)
    } else if view.spent {
        Some(Rule::TooMany)
    } else {
        None
    }
}

/// Why the peer is not known to be silent.
fn not_silent(view: &View) -> Option<Rule> {
    match view.peer {
        Suspicion::Heard => Some(Rule::PeerIsHeard),
        Suspicion::Late => Some(Rule::PeerNotSilentYet),
        Suspicion::Silent | Suspicion::Unheard => None,
    }
}

fn standby(view: &View) -> Decision {
    match view.wish {
        Wish::HandOver => return (Rule::NothingToDo, Verdict::Refuse),
        Wish::Promote | Wish::Force if view.arbiter == Arbiter::Etcd => return operator_by_record(view),
        Wish::Promote | Wish::Force => return (Rule::TakeOverByOperator, Verdict::TakeOver),
        Wish::None => {}
    }
    let (rule, verdict) = match view.arbiter {
        Arbiter::Etcd => standby_by_record(view),
        Arbiter::Fence => standby_by_fence(view),
        Arbiter::Agent => standby_by_agent(view),
        Arbiter::None => standby_alone(view),
    };
    // A change of role that is under way is left to end; why nothing is done is told all the same.
    if verdict != Verdict::Stay && view.busy { (Rule::Busy, Verdict::Stay) } else { (rule, verdict) }
}

fn stay(rule: Rule) -> Decision {
    (rule, Verdict::Stay)
}

/// Rules that need no look at the peer: what the record and the own copy say.
fn record_forbids(view: &View) -> Option<Rule> {
    match view.record {
        Recorded::Unread => Some(Rule::ArbiterSilent),
        Recorded::Missing => Some(Rule::NoRecord),
        Recorded::Foreign => Some(Rule::ForeignRecord),
        Recorded::RolledBack => Some(Rule::RolledBack),
        Recorded::Known(_) if !view.me_recorded => Some(Rule::NotInSync),
        Recorded::Known(_) => None,
    }
}

fn standby_by_record(view: &View) -> Decision {
    if let Some(rule) = record_forbids(view).or(unfit(view)) {
        return stay(rule);
    }
    if view.limbo {
        return stay(Rule::InLimbo);
    }
    let healthy = view.link && view.record == Recorded::Known(Writer::Other);
    if !view.answers && !healthy {
        return stay(Rule::ArbiterSilent);
    }
    match view.record {
        Recorded::Known(Writer::Me | Writer::MeBefore) => return (Rule::TakeOverOwnRecord, Verdict::TakeOver),
        Recorded::Known(Writer::LeftByPeer) => return (Rule::TakeOverHanded, Verdict::TakeOver),
        Recorded::Known(Writer::LeftByMe) if view.my_turn => return (Rule::TakeBack, Verdict::TakeOver),
        Recorded::Known(Writer::LeftByMe) => return stay(Rule::PeerGoesFirst),
        _ => {}
    }
    if healthy {
        return stay(if view.peer_primary { Rule::NothingToDo } else { Rule::StreamIsAlive });
    }
    if let Some(rule) = not_automatic(view) {
        return stay(rule);
    }
    if view.proof == Proof::Dead {
        return (Rule::TakeOverProvedDead, Verdict::TakeOver);
    }
    let hindered = not_silent(view).or(doubtful_of_itself(view));
    if view.agent && view.proof == Proof::None && view.peer > Suspicion::Heard {
        return (Rule::AskAgent, Verdict::Prove);
    }
    if let Some(rule) = hindered {
        return stay(rule);
    }
    if view.renewing {
        return stay(Rule::WriterIsAlive);
    }
    if !view.claim_open {
        return stay(Rule::LeaseMayRun);
    }
    if !view.dwelt {
        return stay(Rule::TooSoon);
    }
    (Rule::TakeOverLeaseOver, Verdict::TakeOver)
}

/// What holds in every mode without a record before the peer is looked at.
fn without_record(view: &View) -> Option<Rule> {
    if view.link {
        return Some(if view.peer_primary { Rule::NothingToDo } else { Rule::StreamIsAlive });
    }
    unfit(view)
}

fn standby_by_fence(view: &View) -> Decision {
    let first = without_record(view).or((!view.met).then_some(Rule::NotMet)).or(not_automatic(view));
    if let Some(rule) = first.or(not_silent(view)).or(doubtful_of_itself(view)) {
        return stay(rule);
    }
    if !view.dwelt {
        return stay(Rule::TooSoon);
    }
    match view.proof {
        Proof::Off => (Rule::TakeOverFenced, Verdict::TakeOver),
        Proof::Asked => stay(Rule::FenceRunning),
        Proof::None if view.fence_turn => (Rule::FencePeer, Verdict::Prove),
        Proof::None => stay(Rule::PeerGoesFirst),
        Proof::Outdated | Proof::Primary | Proof::Dead | Proof::DeadAhead | Proof::Alive | Proof::Failed => {
            stay(Rule::FenceFailed)
        }
    }
}

fn standby_by_agent(view: &View) -> Decision {
    if let Some(rule) = without_record(view).or(not_automatic(view)) {
        return stay(rule);
    }
    match view.proof {
        Proof::Dead => (Rule::TakeOverProvedDead, Verdict::TakeOver),
        Proof::DeadAhead => stay(Rule::LeftBehind),
        _ if view.peer == Suspicion::Heard => stay(Rule::PeerIsHeard),
        Proof::Alive => stay(Rule::AgentSaysAlive),
        Proof::None => (Rule::AskAgent, Verdict::Prove),
        Proof::Asked | Proof::Failed | Proof::Off | Proof::Outdated | Proof::Primary => stay(Rule::AgentSilent),
    }
}

fn standby_alone(view: &View) -> Decision {
    if let Some(rule) = without_record(view) {
        return stay(rule);
    }
    // A gateway alone permits nothing: both sides of a cut may reach it. Only who accepts that gets a failover from it.
    if !view.accept_split_brain || view.gateway.is_none() {
        return stay(Rule::OperatorOnly);
    }
    let first = (!view.met).then_some(Rule::NotMet).or(not_automatic(view));
    if let Some(rule) = first.or(not_silent(view)).or(doubtful_of_itself(view)) {
        return stay(rule);
    }
    if !view.dwelt {
        return stay(Rule::TooSoon);
    }
    (Rule::TakeOverSplitBrainAccepted, Verdict::TakeOver)
}

/// An operator promotes, and the record decides whether that can be.
fn operator_by_record(view: &View) -> Decision {
    let refuse = |rule| (rule, Verdict::Refuse);
    let force = view.wish == Wish::Force;
    if view.busy {
        return refuse(Rule::Busy);
    }
    match unfit(view) {
        Some(Rule::OwnDiskBad) => return refuse(Rule::OwnDiskBad),
        Some(rule) if !force => return refuse(rule),
        _ => {}
    }
    if !view.answers || view.record == Recorded::Unread {
        return refuse(Rule::ArbiterSilent);
    }
    if view.limbo {
        return refuse(Rule::InLimbo);
    }
    let sure = view.vouched || view.proof == Proof::Dead;
    match view.record {
        Recorded::Foreign => refuse(Rule::ForeignRecord),
        // Nobody decides this for the operator: both words are needed.
        Recorded::RolledBack if !(force && view.vouched) => refuse(Rule::RolledBack),
        Recorded::Missing if !force => refuse(Rule::NoRecord),
        _ if view.link && view.peer_primary => refuse(Rule::PeerIsPrimary),
        Recorded::Known(_) if !view.me_recorded && !force => refuse(Rule::NotInSync),
        // A primary alone in the record needs no lease to go on: only the operator can say that it is off.
        Recorded::Known(Writer::Other) if !view.me_recorded && !view.vouched => refuse(Rule::PeerUnseen),
        Recorded::Known(Writer::Other) if !sure && view.peer == Suspicion::Heard => refuse(Rule::PeerIsHeard),
        Recorded::Known(Writer::Other) if !sure && view.renewing => refuse(Rule::WriterIsAlive),
        Recorded::Known(Writer::Other) if !sure && !view.claim_open => refuse(Rule::LeaseMayRun),
        _ => (Rule::TakeOverByOperator, Verdict::TakeOver),
    }
}
