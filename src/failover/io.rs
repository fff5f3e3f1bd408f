//! Every word the failover machine hears or says.
//!
//! - One input at a time; all its effects may run at once and in any order.
//! - [`Effect::Direct`] is idempotent, and repeated while what it asks for is not seen in the next [`VolumeView`]s.
//! - Each [`Effect::Arbiter`] is answered by at most one [`Input::Arbiter`] with its number; no answer counts as "unknown".
//! - A [`VolumeView`] says what is durable. The shell passes one on at every change of it, and directives in the order they were given.

use std::time::Duration;

use crate::condition::{DiskState, Role};
use crate::failover::history::Episode;
use crate::failover::record::Revision;
use crate::failover::rule::Rule;
use crate::units::{DiskInstance, Moment, Term, Ticket};

/// What the shell tells the machine.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub enum Input {
    /// The own volume is different from what it was.
    Volume(VolumeView),
    /// The own volume cannot do what a directive asks; it stays as it is.
    VolumeRefused {
        /// Why, for the log.
        why: String,
    },
    /// A beat of the peer, authenticated by the shell.
    Beat {
        /// On which path.
        path: usize,
        /// The beat.
        beat: Beat,
    },
    /// The arbiter answered.
    Arbiter {
        /// The number of the question.
        ask: u64,
        /// The answer.
        answer: ArbiterAnswer,
    },
    /// The arbiter told by itself that the record changed (a watch). Never older than what it told before.
    RecordSeen {
        /// The revision.
        revision: Revision,
        /// The text; none when there is no record.
        text: Option<String>,
    },
    /// The fence or the agent answered.
    Proof {
        /// The number of the question.
        ask: u64,
        /// What it can prove.
        word: ProofWord,
    },
    /// This node's network, as the shell sees it.
    Surroundings {
        /// A network interface that leads to the peer has a carrier.
        carrier: bool,
        /// The gateway answers; none when none is configured, or nothing is known yet.
        gateway: Option<bool>,
    },
    /// The time of day, for the history and its count of automatic failovers. At start, and every minute or so.
    TimeOfDay {
        /// Milliseconds since 1970.
        unix_ms: u64,
    },
    /// The clock may have stood still (a resumed virtual machine): the lease is void until it is renewed.
    ClockDoubted,
    /// An operator wants something; answered by [`Effect::Answer`].
    Operator {
        /// Comes back in the answer.
        ticket: Ticket,
        /// What.
        ask: Ask,
    },
    /// The deadline that the machine asked for has come.
    Wake,
}

/// What an operator can ask.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum Ask {
    /// Make this node primary.
    Promote {
        /// Also when acknowledged writes may be lost.
        force: bool,
        /// The operator vouches that the peer is off.
        peer_is_down: bool,
    },
    /// Hand the role to the peer.
    HandOver,
    /// Stop or allow what is done automatically. Safety never rests.
    Maintenance {
        /// Stop it.
        on: bool,
    },
}

/// The own volume, as far as failover needs to know it. Everything in it is durable.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct VolumeView {
    /// Its role.
    pub role: Role,
    /// Its disk.
    pub disk: DiskState,
    /// The disk answers nothing although something is due.
    pub disk_stalled: bool,
    /// Its term.
    pub term: Term,
    /// It has promised this term: it takes nothing of an older one, and no link until it is released or promoted.
    pub promised: Option<Term>,
    /// Nothing of an old stream is left to apply, and no change of role is under way.
    pub idle: bool,
    /// The data link is established.
    pub link: bool,
    /// The peer's copy, once it has been met.
    pub peer: Option<DiskInstance>,
    /// The peer holds everything, and every new write waits for it.
    pub peer_in_sync: bool,
    /// Primary: the number of the exclusion that it waits for. Writes wait too.
    pub exclusion: Option<u64>,
}

impl Default for VolumeView {
    /// A volume that has not said anything yet.
    fn default() -> Self {
        Self {
            role: Role::Secondary,
            disk: DiskState::Inconsistent,
            disk_stalled: false,
            term: Term(0),
            promised: None,
            idle: false,
            link: false,
            peer: None,
            peer_in_sync: false,
            exclusion: None,
        }
    }
}

/// What one node says of itself to the other, on every path. The shell authenticates and numbers nothing: the number is in here.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, serde::Serialize, serde::Deserialize)]
pub struct Beat {
    /// Drawn when the sender's daemon started.
    pub incarnation: u64,
    /// Counted from 1, in steps of the interval: the number tells when it was sent.
    pub sequence: u64,
    /// Sent out of turn: a probe, an answer to one, or news. It has the number of the last beat in turn.
    pub extra: bool,
    /// The beat of the receiver that the sender heard last on this path.
    pub echo: Option<Echo>,
    /// The sender will not claim the role before its full wait has passed since it heard the beat of `echo`.
    pub patient: bool,
    /// The sender wants to be answered at once.
    pub probe: bool,
    /// The sender changed the record in a way that concerns the receiver.
    pub look: bool,
    /// The sender goes on without the receiver as soon as the receiver has made durable that it is outdated.
    pub outdate: bool,
    /// The sender's copy.
    pub instance: DiskInstance,
    /// Its role.
    pub role: Role,
    /// Its disk, as it is durable.
    pub disk: DiskState,
    /// Its disk answers nothing.
    pub disk_stalled: bool,
    /// Its term.
    pub term: Term,
}

/// Which beat was heard last.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, serde::Serialize, serde::Deserialize)]
pub struct Echo {
    /// The incarnation in it.
    pub incarnation: u64,
    /// The number in it.
    pub sequence: u64,
    /// How long ago, in milliseconds.
    pub age_ms: u64,
}

/// An answer of the arbiter.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub enum ArbiterAnswer {
    /// A linearizable read.
    Is {
        /// The revision of the record; 0 when there is none.
        revision: Revision,
        /// The text.
        text: Option<String>,
    },
    /// The swap was done.
    Swapped {
        /// The new revision.
        revision: Revision,
    },
    /// The swap was not done: the record was at another revision.
    Refused,
    /// Nothing was sent, so nothing was done.
    Unreachable,
    /// It was sent, and what became of it is not known (a time-out, a broken connection, any error that is not one of the above).
    Unknown,
}

/// What a fence or an agent can prove.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum ProofWord {
    /// Fence: the peer is off (exit code 7).
    Off,
    /// Fence: the peer is reached and is now outdated or inconsistent, durably (exit codes 3 and 4).
    PeerOutdated,
    /// Fence: the peer is primary (exit code 6).
    PeerPrimary,
    /// Agent: the peer's daemon is dead, its device closed, its services stopped, its role durably secondary.
    DaemonDead {
        /// Its metadata counts this node's copy in sync.
        in_sync: bool,
    },
    /// Agent: the peer's daemon lives.
    DaemonAlive,
    /// Nothing is proved: failed, timed out, unreachable (exit code 5 and every other).
    Nothing,
}

/// What the machine wants done.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub enum Effect {
    /// Send the beat on the path now.
    Beat {
        /// The path.
        path: usize,
        /// The beat.
        beat: Beat,
    },
    /// Ask the arbiter.
    Arbiter {
        /// The number of the question.
        ask: u64,
        /// The question.
        request: ArbiterRequest,
    },
    /// Run the fence command against the peer, or ask the agent of the peer's host to prove its daemon dead, stopping it if it hangs.
    Prove {
        /// The number of the question.
        ask: u64,
    },
    /// Tell the own volume.
    Direct(Directive),
    /// The node may answer clients until then, on the clock that counts suspend. Checked after the work and before the reply.
    Lease {
        /// The end.
        until: Moment,
    },
    /// Answer an operator.
    Answer {
        /// The question.
        ticket: Ticket,
        /// How it went; the rule that forbids it carries its sentence.
        result: Result<(), Rule>,
    },
    /// Something was decided: one line in the log.
    Decided {
        /// The rule.
        rule: Rule,
        /// The whole evidence, as `key=value` words.
        evidence: String,
        /// Somebody should look.
        alarm: bool,
    },
    /// The writer changed: for `history`. With an arbiter's record it is also in there.
    Happened(Episode),
    /// Keep this term durably, and give it to [`Failover::new`](crate::failover::Failover::new) at the next start: a record of an older term
    /// comes from a backup.
    Remember {
        /// The highest term seen in the record.
        term: Term,
    },
}

/// A question to the arbiter.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub enum ArbiterRequest {
    /// Read the record, linearizably.
    Read,
    /// Write the text if the record is still at this revision (0: if there is none).
    Swap {
        /// The revision.
        expected: Revision,
        /// The text.
        text: String,
    },
}

/// What the own volume has to do. Each ends in a [`VolumeView`] that shows it, or in [`Input::VolumeRefused`].
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum Directive {
    /// Make the term durable, refuse everything of older terms, and take no link until released or promoted. A primary ignores it.
    Promise {
        /// The term.
        term: Term,
        /// Drop the link: the peer may be the old primary. Otherwise the link stays.
        part: bool,
    },
    /// The promise is not needed any more: links are taken again. The term stays.
    Release,
    /// Become primary at the promised term. Ignored while that is under way; refused when another term, or none, was promised.
    TakeOver {
        /// The term.
        term: Term,
        /// Also with a copy that is not UpToDate: an operator forces it.
        force: bool,
    },
    /// The exclusion is allowed: mint a generation without the peer, make it durable, then go on alone.
    Exclude {
        /// Its number, from [`VolumeView::exclusion`]; another one is ignored.
        number: u64,
    },
    /// Stop at once: answer nothing any more, disconnect the clients without a reply, become secondary, be outdated.
    StandDown,
    /// Finish, flush on both copies and become secondary, to hand the role over.
    Drain,
    /// Make durable that this copy is outdated: the primary goes on without it.
    Outdate,
    /// Promote by the volume's own rules: there is no record to ask.
    Promote {
        /// Comes back in the volume's answer.
        ticket: Ticket,
        /// As the operator said.
        force: bool,
        /// As the operator said.
        peer_is_down: bool,
    },
    /// Hand over by the volume's own rules: there is no record to ask.
    Switchover {
        /// Comes back in the volume's answer.
        ticket: Ticket,
    },
}

/// A deadline that is never reached.
pub const NEVER: Moment = Moment(u64::MAX);

/// A repeated directive is given again after this long.
pub(crate) const DIRECT_AGAIN: Duration = Duration::from_secs(1);
