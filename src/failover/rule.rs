//! The rules of failover, by name. A rule's name is the same in the log, in `plan`, in the history and in the docs.

use std::fmt;

macro_rules! rules {
    ($($variant:ident $name:literal $sentence:literal),* $(,)?) => {
        /// Why something is done, or is not.
        #[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
        pub enum Rule { $(#[doc = $sentence] $variant),* }
        impl Rule {
            /// Every rule.
            pub const ALL: &'static [Self] = &[$(Self::$variant),*];
            /// The name.
            #[must_use]
            pub fn name(self) -> &'static str { match self { $(Self::$variant => $name),* } }
            /// What is the case when it applies, and what can be done, as a sentence for an operator.
            #[must_use]
            pub fn sentence(self) -> &'static str { match self { $(Self::$variant => $sentence),* } }
        }
    };
}

rules! {
    // The primary.
    Serving "serving" "This node is primary and nothing is missing.",
    NotTheWriter "not-the-writer" "The arbiter's record names another node or a newer term: this node stops serving and follows.",
    Overruled "overruled" "The peer is primary at a newer term: this node stops serving and follows.",
    InLimbo "in-limbo" "The outcome of the last change of the record is not known: nothing is decided until it is.",
    AskRecord "ask-record" "The peer is lost: the record must name this node alone before anything is acknowledged alone.",
    ArbiterSilentFrozen "arbiter-silent-frozen" "The peer is lost and the arbiter does not answer: writes wait. They go on when either is back.",
    ExclusionRecorded "exclusion-recorded" "The record does not count the peer any more: this node goes on alone.",
    ExclusionFenced "exclusion-fenced" "The fence says that the peer is off or outdated: this node goes on alone.",
    ExclusionByPromise "exclusion-by-promise" "The peer has made durable that it is outdated: this node goes on alone.",
    ExclusionFree "exclusion-free" "Nothing but an operator, or the testimony of this host's agent, promotes the peer: this node goes on alone.",
    FencePeer "fence-peer" "The peer is lost: it is fenced before anything is acknowledged alone, or before this node takes over.",
    FenceRunning "fence-running" "The fence has not answered yet: writes wait, and nobody is promoted.",
    FenceFailed "fence-failed" "The fence failed or could not prove anything: writes wait, and nobody is promoted. Look at the fence's log; it is tried again.",
    PeerWonFence "peer-won-fence" "The fence says that the peer is primary: this node stops serving and follows.",
    GatewayFrozen "gateway-frozen" "The gateway does not answer, so this node may be the one that is cut off: writes wait.",
    Readmit "readmit" "The peer holds everything again and every new write waits for it: the record counts it in sync again.",
    MendRecord "mend-record" "The arbiter was restored from a backup, and the peer follows this node: the record is written anew.",
    CannotServe "cannot-serve" "This node's disk failed and the link to the good copy is lost: it can serve nothing, and gives the role up to that copy.",
    HandOver "hand-over" "The operator hands the role to the peer.",

    // The standby: what takes over.
    TakeOverLeaseOver "take-over-lease-over" "The primary is silent on every path, its lease is over, and this copy is in sync: this node takes over.",
    TakeOverProvedDead "take-over-proved-dead" "The agent of the primary's host has proved its daemon dead and demoted: this node takes over.",
    TakeOverFenced "take-over-fenced" "The fence has proved the primary off: this node takes over.",
    TakeOverHanded "take-over-handed" "The primary gave its role up in order: this node takes over.",
    TakeOverOwnRecord "take-over-own-record" "The record names this node as writer: it takes its role up again, at a new term.",
    TakeBack "take-back" "This node gave its role up, and nobody took it: it takes it back.",
    TakeOverSplitBrainAccepted "take-over-split-brain-accepted" "The primary is silent, the gateway answers, and the configuration accepts a split brain: this node takes over.",
    TakeOverByOperator "take-over-by-operator" "An operator promotes this node.",
    AskAgent "ask-agent" "The data link is down: the agent of the primary's host is asked what has become of its daemon.",

    // The standby: what forbids it.
    StreamIsAlive "stream-is-alive" "The data link is up: the primary lives, whatever else is silent.",
    PeerIsHeard "peer-is-heard" "The primary is heard on a heartbeat path. Mend the data link; this node does not take over.",
    PeerNotSilentYet "peer-not-silent-yet" "The primary is late, and not yet late enough to be called silent.",
    Overslept "overslept" "This node itself was not running for a while: it listens anew before it judges its peer.",
    Isolated "isolated" "This node's own network is down: it suspects itself before its peer.",
    GatewayVeto "gateway-veto" "The gateway does not answer this node: it may be the one that is cut off, and does not take over.",
    OwnDiskBad "own-disk-bad" "This node's own disk failed or hangs: it does not take over. Promote the other node, then replace the disk.",
    OwnOutdated "own-outdated" "This copy is known to lack acknowledged writes: it never promotes itself. Bring the other node back; --force here gives up what only that one has.",
    OwnInconsistent "own-inconsistent" "This copy is a mix of old and new blocks: it never promotes itself. Bring the other node back.",
    OwnDiverged "own-diverged" "This copy and the peer's went different ways: it never promotes itself. Decide which copy is kept.",
    NotInSync "not-in-sync" "The record does not count this copy in sync: it may lack acknowledged writes and never promotes itself. Bring the node back that is named there.",
    NotMet "not-met" "This copy has not been in sync with its peer since this daemon started, so it cannot know what it missed: it does not promote itself.",
    LeftBehind "left-behind" "The primary's metadata says that it went on without this copy: it never promotes itself. Bring the other node back.",
    NoRecord "no-record" "The arbiter holds no record of this volume. The first `repblk promote --force` of an operator, on the node with the good copy, creates it.",
    ForeignRecord "foreign-record" "The record under this key belongs to another cluster or volume, or cannot be read. Nothing is changed; look at the arbiter.",
    RolledBack "rolled-back" "The record is older than what this node has promised: the arbiter was restored from a backup. Nobody is promoted until an operator looks.",
    ArbiterSilent "arbiter-silent" "The arbiter does not answer: a standby never takes over without it.",
    LeaseMayRun "lease-may-run" "The primary's lease may still run: this node waits until it is certainly over.",
    WriterIsAlive "writer-is-alive" "The record is being renewed: the primary lives, and only this node is cut off from it.",
    PeerGoesFirst "peer-goes-first" "The role was given up for the peer: it goes first, and this node waits a moment.",
    AgentSilent "agent-silent" "The agent of the primary's host does not answer: nothing proves the primary dead. An operator decides.",
    AgentSaysAlive "agent-says-alive" "The agent of the primary's host says that its daemon lives: this node does not take over.",
    OperatorOnly "operator-only" "No arbiter, fence or agent is configured: only an operator promotes.",
    Maintenance "maintenance" "Maintenance: nothing is done automatically. `repblk maintenance off` ends it.",
    AutomaticOff "automatic-off" "Automatic failover is switched off in the configuration, or the volume's mode is async: what the primary acknowledged last may not be here.",
    TooMany "too-many" "There were as many automatic failovers in the last hour as are allowed. An operator looks first.",
    TooSoon "too-soon" "The last change of roles was a moment ago: this node waits before it takes over on silence alone.",
    Busy "busy" "A change of role, or the last writes of the old primary, are still under way.",
    AlreadyPrimary "already-primary" "This node is primary already.",
    PeerIsPrimary "peer-is-primary" "The peer is primary and alive. Use `repblk switchover` on it.",
    PeerUnseen "peer-unseen" "Nobody can say that the peer is not primary. Make sure that it is off, then say --peer-is-down.",
    NothingToDo "nothing-to-do" "Both copies are in order, and the peer is primary.",
    PeerNotInSync "peer-not-in-sync" "The peer does not hold everything yet, so the role cannot be handed over. Wait for the resync.",
    HandOverLost "hand-over-lost" "The role was given up, and nobody took it in time.",
}

impl fmt::Display for Rule {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.name())
    }
}
