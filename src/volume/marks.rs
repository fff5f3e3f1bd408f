//! Coverage marks: subtle branches name themselves, so that a test can tell whether it ever went there.
//!
//! A mark is a bit that is set and never read by the machine. Nothing may depend on one.

macro_rules! marks {
    ($($variant:ident = $name:literal),* $(,)?) => {
        /// A branch that is easy to get wrong and hard to reach.
        #[derive(Clone, Copy, PartialEq, Eq, Debug)]
        pub(crate) enum Mark { $($variant),* }
        const ALL: &[(Mark, &str)] = &[$((Mark::$variant, $name)),*];
    };
}

marks! {
    RangeHeld = "a write waited for a range that another held",
    LogFull = "a write waited for room in the transfer log",
    BacklogFull = "a write waited for the backlog",
    HotFull = "a write waited for a slot of the activity log",
    FlushForeseen = "a flush was foreseen",
    FlushNeedless = "a flush found everything stable",
    EvictionWaited = "an eviction waited for bitmap pages",
    Cooled = "an extent nobody wrote to left the activity log",
    LogBlanked = "a damaged activity log was written anew",
    StreamWaited = "a write of the stream waited for one before it",
    StreamFenced = "a barrier held the stream back",
    StreamOutlived = "a stream was applied after its link was lost",
    NumbersPassed = "a barrier passed numbers that went to other peers",
    UnstableDirty = "what a lost peer had not made stable became dirty",
    Parked = "a write waited for nothing but an exclusion",
    Withdrawn = "a peer was in sync again before its exclusion was allowed",
    Overtaken = "an exclusion was allowed while its peer greeted",
    LostAgain = "a link was lost again during an exclusion",
    ResyncLost = "a block of a resync was under way when its target was lost",
    GenerationWaited = "a generation waited for the data before it",
    GreetedTooSoon = "a state changed while a node greeted",
    TargetDirty = "a target brought dirty blocks of its own",
    MintedSince = "a source minted a generation since it greeted",
    OldHeartbeat = "an old heartbeat was not believed",
    PromotedGreeting = "a promotion met a link that greeted",
    LostAtEnd = "a link was lost when the role was as good as given up",
    LostJudging = "a link was lost between the verdicts",
    LostPreparing = "a link was lost while a target prepared",
    LostClosing = "a link was lost while a resync closed on its source",
    LostConfirming = "a link was lost while a target confirmed",
    LostFinishing = "a link was lost while a target finished",
    PeerSilent = "a silent peer was dropped",
    PeerStuck = "a peer without progress was dropped",
    HeartbeatTold = "a heartbeat told that the primary went on alone",
    ClaimsCrossed = "two claims crossed",
    ClaimOverdue = "a claim was not answered in time",
    OfferDenied = "an offer was denied",
    OfferLost = "an offer was lost",
    DrainOverdue = "a role was kept since what was under way did not become stable",
    Forced = "a copy that lacks writes was promoted by force",
    Resumed = "a former primary asked for its role again",
    ResyncReadLate = "a block for a resync was read when the resync was gone",
    ResyncCrowded = "a resync went on though the host filled the log",
    ResyncYielded = "a resync stepped over a range that a writer held",
    PeerReadWaited = "a read for the peer waited for its stream",
    ReadElsewhere = "a read that failed was tried on the peer",
    Detached = "a primary went on without its disk",
    CacheLost = "a failed copy recorded that it may lack what was not flushed",
    Obituary = "a failed copy was written off on its own disk",
    DetachLost = "the peer of a primary without a disk was lost before it had recorded it",
    StoodDown = "a primary stood down",
    Abandoned = "a failed disk ended a change of role",
}

/// The marks reached so far.
#[derive(Clone, Copy, Default, Debug)]
pub(crate) struct Marks(u64);

const _: () = assert!(ALL.len() <= 64);

impl Marks {
    /// Reaches one.
    pub(crate) fn set(&mut self, mark: Mark) {
        self.0 |= 1 << mark as u32;
    }

    /// Names of those reached.
    pub(crate) fn names(self) -> impl Iterator<Item = &'static str> {
        ALL.iter().filter(move |(mark, _)| self.0 & (1 << *mark as u32) != 0).map(|&(_, name)| name)
    }
}
