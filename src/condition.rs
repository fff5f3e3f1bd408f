//! Rank 0: the words for the condition of a copy, spoken by the formats, the machines and the operator alike.

use serde::{Deserialize, Serialize};

/// Whether a node serves the volume.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Role {
    /// Holds a copy, serves nobody.
    #[default]
    Secondary,
    /// Serves the volume to NBD clients.
    Primary,
}

/// What a copy is worth.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum DiskState {
    /// The disk gave an error and is not used any more.
    Failed,
    /// A mix of old and new blocks: a fresh disk, or a resync that has not finished.
    #[default]
    Inconsistent,
    /// Holds acknowledged writes that no other copy has, while another copy went on without them.
    Diverged,
    /// Consistent, and known to be behind.
    Outdated,
    /// Holds every acknowledged write, as far as this node can know.
    UpToDate,
}

/// When a write is acknowledged. Section 2 of the contract (`docs/architecture.md`).
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Mode {
    /// Written locally and by every in-sync peer.
    #[default]
    Sync,
    /// Written locally and received by every in-sync peer.
    SemiSync,
    /// Written locally, while the backlog is under its bound.
    Async,
}

/// What may have been lost of writes that were not flushed when this copy was last attached.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Serialize, Deserialize)]
pub enum Continuity {
    /// Nothing: detached in order, everything flushed.
    Clean,
    /// Nothing: the process ended, the host went on and kept its cache.
    SameBoot,
    /// Anything not flushed: the host restarted.
    Lost,
}

macro_rules! word {
    ($type:ident { $($variant:ident => $text:literal),* $(,)? }) => {
        impl $type {
            /// The word as operators read it and as it stands in `status --json`.
            #[must_use]
            pub fn word(self) -> &'static str {
                match self { $(Self::$variant => $text),* }
            }
        }
        impl std::fmt::Display for $type {
            fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                f.pad(self.word())
            }
        }
    };
}

word!(Role { Secondary => "secondary", Primary => "primary" });
word!(DiskState {
    Failed => "failed", Inconsistent => "inconsistent", Diverged => "diverged", Outdated => "outdated", UpToDate => "uptodate",
});
word!(Mode { Sync => "sync", SemiSync => "semisync", Async => "async" });
