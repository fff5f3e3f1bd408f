//! The rules that refuse, by name. A rule's name is the same in the log, on the command line, on the wire and in the docs.

macro_rules! rules {
    ($($(#[$doc:meta])* $variant:ident = $number:literal $name:literal),* $(,)?) => {
        /// Why something is refused.
        #[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, serde::Serialize, serde::Deserialize)]
        #[non_exhaustive]
        pub enum Rule { $($(#[$doc])* #[serde(rename = $name)] $variant),* }
        impl Rule {
            /// Every rule.
            pub const ALL: &'static [Self] = &[$(Self::$variant),*];
            /// The name.
            #[must_use]
            pub fn name(self) -> &'static str { match self { $(Self::$variant => $name),* } }
            /// The number on the wire.
            #[must_use]
            pub fn number(self) -> u16 { match self { $(Self::$variant => $number),* } }
            /// The rule of a number.
            #[must_use]
            pub fn of_number(number: u16) -> Option<Self> { match number { $($number => Some(Self::$variant),)* _ => None } }
        }
    };
}

rules! {
    /// The node is primary already.
    AlreadyPrimary = 1 "already-primary",
    /// The node is not primary.
    NotPrimary = 2 "not-primary",
    /// The peer is primary.
    PeerIsPrimary = 3 "peer-is-primary",
    /// The peer cannot be seen and might be primary.
    PeerUnseen = 4 "peer-unseen",
    /// The copy never held data.
    NoData = 5 "no-data",
    /// The copy is known to be behind.
    Outdated = 6 "outdated",
    /// The copy is a mix of old and new blocks.
    Inconsistent = 7 "inconsistent",
    /// The copy and the peer's went different ways.
    Diverged = 8 "diverged",
    /// The disk failed.
    DiskFailed = 9 "disk-failed",
    /// NBD clients are connected.
    ClientsConnected = 10 "clients-connected",
    /// The peer is not connected.
    NotConnected = 11 "not-connected",
    /// The peer does not hold everything.
    PeerNotInSync = 12 "peer-not-in-sync",
    /// Something else is being done.
    Busy = 13 "busy",
    /// Both nodes asked at once, and the other goes first.
    PeerGoesFirst = 14 "peer-goes-first",
    /// The peer did not answer in time.
    PeerSilent = 15 "peer-silent",
    /// The term asked for is not higher than one already promised.
    OldTerm = 16 "old-term",
    /// Nothing to resync with.
    NoResyncPartner = 17 "no-resync-partner",
    /// The node is shutting down.
    ShuttingDown = 18 "shutting-down",
    /// Both copies are equal.
    AlreadyInSync = 19 "already-in-sync",
    /// What is to be given up has changed since it was saved.
    NotSaved = 20 "not-saved",
    /// The term asked for is not the one that was promised.
    NotPromised = 21 "not-promised",
}

impl std::fmt::Display for Rule {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.pad(self.name())
    }
}

#[cfg(test)]
mod tests {
    use super::Rule;

    #[test]
    fn numbers_and_names_are_unique_and_known() {
        for (i, &rule) in Rule::ALL.iter().enumerate() {
            assert_eq!(Rule::of_number(rule.number()), Some(rule));
            assert!(Rule::ALL[i + 1..].iter().all(|&r| r.name() != rule.name() && r.number() != rule.number()));
        }
    }
}
