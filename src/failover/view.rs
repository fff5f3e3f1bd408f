//! Everything that is known at one moment, as plain words: what [`decide`](crate::failover::decision::decide) decides upon, what the log
//! shows as evidence, and what the scenario files of the tests say.

use std::fmt;

use crate::condition::{DiskState, Role};
use crate::failover::config::Arbiter;
use crate::failover::detector::Suspicion;

/// Who is the writer, by the record.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub enum Writer {
    /// This copy, at the term that this node holds.
    Me,
    /// This copy, at a term of an earlier life.
    MeBefore,
    /// The peer, or a copy that this node does not know.
    Other,
    /// Nobody: the peer gave the role up.
    LeftByPeer,
    /// Nobody: this node gave the role up.
    LeftByMe,
}

/// What is known of the record.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub enum Recorded {
    /// Never read.
    Unread,
    /// There is none.
    Missing,
    /// It cannot be read, or belongs to something else.
    Foreign,
    /// It is older than what this node has seen.
    RolledBack,
    /// Read.
    Known(Writer),
}

/// What a fence or an agent has said about the peer.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub enum Proof {
    /// Not asked.
    None,
    /// Asked, no answer yet.
    Asked,
    /// The host is off.
    Off,
    /// The copy is durably outdated.
    Outdated,
    /// It is primary.
    Primary,
    /// The daemon is dead, and counted this copy in sync.
    Dead,
    /// The daemon is dead, and went on without this copy before.
    DeadAhead,
    /// The daemon lives.
    Alive,
    /// Nothing could be proved.
    Failed,
}

/// What an operator waits for.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub enum Wish {
    /// Nothing.
    None,
    /// That this node becomes primary.
    Promote,
    /// The same, and loss of data is accepted.
    Force,
    /// That the peer becomes primary.
    HandOver,
}

/// The evidence.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct View {
    /// Who decides.
    pub arbiter: Arbiter,
    /// Own role.
    pub role: Role,
    /// Own disk.
    pub disk: DiskState,
    /// Own disk answers nothing.
    pub disk_stalled: bool,
    /// A change of role, or the rest of an old stream, is under way.
    pub busy: bool,
    /// This copy was in sync with its peer since the daemon started.
    pub met: bool,
    /// This node was not running for a while, a moment ago.
    pub overslept: bool,
    /// Own network is up.
    pub carrier: bool,
    /// The gateway answers; none when none is configured.
    pub gateway: Option<bool>,
    /// Automatic failover is on in the configuration.
    pub automatic: bool,
    /// The configuration accepts a split brain.
    pub accept_split_brain: bool,
    /// The data link is up.
    pub link: bool,
    /// What the heartbeat paths say of the peer.
    pub peer: Suspicion,
    /// The peer is heard, and does not hear this node.
    pub deaf: bool,
    /// The peer says that its disk answers nothing.
    pub peer_stalled: bool,
    /// The peer said lately that it is primary.
    pub peer_primary: bool,
    /// The peer is primary at a newer term than this node knew.
    pub overruled: bool,
    /// The peer holds everything, and every write waits for it.
    pub peer_in_sync: bool,
    /// The peer has made durable that it is outdated, since it was asked to.
    pub peer_outdated: bool,
    /// Writes wait until the peer is excluded.
    pub waits: bool,
    /// The arbiter answered lately.
    pub answers: bool,
    /// A change of the record may still happen that this node does not know of.
    pub limbo: bool,
    /// The record.
    pub record: Recorded,
    /// The record counts this copy in sync, or a change of this node may yet make it so.
    pub me_recorded: bool,
    /// The record counts the peer's copy in sync, or a change of this node may yet make it so.
    pub peer_recorded: bool,
    /// The record was renewed lately by another.
    pub renewing: bool,
    /// The other's lease is certainly over.
    pub claim_open: bool,
    /// The peer had its time to take the role that this node gave up.
    pub my_turn: bool,
    /// The record says maintenance.
    pub maintenance: bool,
    /// There were as many automatic failovers in the last hour as are allowed.
    pub spent: bool,
    /// Silence alone may promote: the last change is long enough ago.
    pub dwelt: bool,
    /// An agent runs on the peer's host.
    pub agent: bool,
    /// What fence or agent said.
    pub proof: Proof,
    /// The primary had its time to fence first.
    pub fence_turn: bool,
    /// What an operator waits for.
    pub wish: Wish,
    /// The operator vouches that the peer is off.
    pub vouched: bool,
}

impl View {
    /// A standby in order, with a primary in order.
    #[must_use]
    pub fn healthy(arbiter: Arbiter, role: Role) -> Self {
        let writer = if role == Role::Primary { Writer::Me } else { Writer::Other };
        Self {
            arbiter,
            role,
            disk: DiskState::UpToDate,
            disk_stalled: false,
            busy: false,
            met: true,
            overslept: false,
            carrier: true,
            gateway: None,
            automatic: true,
            accept_split_brain: false,
            link: true,
            peer: Suspicion::Heard,
            deaf: false,
            peer_stalled: false,
            peer_primary: role == Role::Secondary,
            overruled: false,
            peer_in_sync: true,
            peer_outdated: false,
            waits: false,
            answers: arbiter == Arbiter::Etcd,
            limbo: false,
            record: if arbiter == Arbiter::Etcd { Recorded::Known(writer) } else { Recorded::Unread },
            me_recorded: arbiter == Arbiter::Etcd,
            peer_recorded: arbiter == Arbiter::Etcd,
            renewing: role == Role::Secondary,
            claim_open: false,
            my_turn: false,
            maintenance: false,
            spent: false,
            dwelt: true,
            agent: arbiter == Arbiter::Agent,
            proof: Proof::None,
            fence_turn: false,
            wish: Wish::None,
            vouched: false,
        }
    }
}

impl fmt::Display for Recorded {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Unread => "unread",
            Self::Missing => "missing",
            Self::Foreign => "foreign",
            Self::RolledBack => "rolled-back",
            Self::Known(Writer::Me) => "me",
            Self::Known(Writer::MeBefore) => "me-before",
            Self::Known(Writer::Other) => "other",
            Self::Known(Writer::LeftByPeer) => "left-by-peer",
            Self::Known(Writer::LeftByMe) => "left-by-me",
        })
    }
}

impl fmt::Display for Proof {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::None => "none",
            Self::Asked => "asked",
            Self::Off => "off",
            Self::Outdated => "outdated",
            Self::Primary => "primary",
            Self::Dead => "dead",
            Self::DeadAhead => "dead-ahead",
            Self::Alive => "alive",
            Self::Failed => "failed",
        })
    }
}

impl fmt::Display for Suspicion {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Heard => "heard",
            Self::Late => "late",
            Self::Silent => "silent",
            Self::Unheard => "unheard",
        })
    }
}

impl fmt::Display for Wish {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::None => "none",
            Self::Promote => "promote",
            Self::Force => "force",
            Self::HandOver => "hand-over",
        })
    }
}

impl fmt::Display for View {
    /// The evidence as `key=value` words; a flag stands there only when it is set.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let gateway = match self.gateway {
            None => "unused",
            Some(true) => "answers",
            Some(false) => "silent",
        };
        write!(
            f,
            "mode={} role={} disk={} peer={} record={} proof={} gateway={gateway} wish={}",
            self.arbiter.word(),
            self.role,
            self.disk,
            self.peer,
            self.record,
            self.proof,
            self.wish
        )?;
        self.flags().into_iter().filter(|(_, set)| *set).try_for_each(|(name, _)| write!(f, " {name}"))
    }
}

impl View {
    /// The flags, by name.
    #[must_use]
    pub fn flags(&self) -> [(&'static str, bool); 27] {
        [
            ("link", self.link),
            ("carrier", self.carrier),
            ("busy", self.busy),
            ("met", self.met),
            ("disk-stalled", self.disk_stalled),
            ("overslept", self.overslept),
            ("automatic", self.automatic),
            ("accept-split-brain", self.accept_split_brain),
            ("deaf", self.deaf),
            ("peer-stalled", self.peer_stalled),
            ("peer-primary", self.peer_primary),
            ("overruled", self.overruled),
            ("peer-in-sync", self.peer_in_sync),
            ("peer-outdated", self.peer_outdated),
            ("waits", self.waits),
            ("answers", self.answers),
            ("limbo", self.limbo),
            ("me-recorded", self.me_recorded),
            ("peer-recorded", self.peer_recorded),
            ("renewing", self.renewing),
            ("claim-open", self.claim_open),
            ("my-turn", self.my_turn),
            ("maintenance", self.maintenance),
            ("spent", self.spent),
            ("dwelt", self.dwelt),
            ("fence-turn", self.fence_turn),
            ("agent", self.agent),
        ]
    }
}
