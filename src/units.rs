//! Rank 0: the units every room speaks.
//!
//! Raw integers do not cross a room's edge: a byte count, an extent number, a term and a buffer are different types, so
//! that the compiler refuses to mix them. Nothing here knows any other room.

use std::fmt;
use std::time::Duration;

/// Granularity of the dirty bitmap and of resync, in bytes.
pub const BLOCK_SIZE: u64 = 4096;

/// Smallest unit a disk writes atomically, in bytes: a crash leaves each sector old or new, never mixed.
pub const SECTOR_SIZE: u64 = 512;

macro_rules! number {
    ($(#[$doc:meta])* $name:ident($inner:ty)) => {
        $(#[$doc])*
        #[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default, serde::Serialize, serde::Deserialize)]
        pub struct $name(pub $inner);
        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, concat!(stringify!($name), "({})"), self.0)
            }
        }
        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, "{}", self.0)
            }
        }
    };
}

macro_rules! identity {
    ($(#[$doc:meta])* $name:ident($inner:ty), $width:literal) => {
        $(#[$doc])*
        #[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default, serde::Serialize, serde::Deserialize)]
        pub struct $name(pub $inner);
        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, concat!("{:0", $width, "x}"), self.0)
            }
        }
        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, concat!("{:0", $width, "x}"), self.0)
            }
        }
        impl $name {
            /// The value that names nothing.
            pub const NONE: Self = Self(0);
            /// True when this names something.
            #[must_use]
            pub fn is_some(self) -> bool {
                self.0 != 0
            }
        }
    };
}

number!(
    /// Fencing number of one period of primaryship. Grows with every promotion and never falls.
    Term(u64)
);
number!(
    /// Position of one mirrored write in the primary's stream of one term. 0 means "before the first".
    Seq(u64)
);
number!(
    /// One outstanding disk or metadata operation of a volume.
    OpId(u64)
);
number!(
    /// Number of an activity-log extent, counted from the start of the device.
    ExtentNo(u32)
);
number!(
    /// A payload in the shell's buffer pool. The machine never sees the bytes.
    BufId(u32)
);
number!(
    /// One NBD connection, numbered by the shell; never reused while the daemon lives.
    SessionId(u64)
);
number!(
    /// A peer's index on this node: its slot in the metadata, from 0.
    PeerNo(u8)
);
number!(
    /// One operator's question that waits for an answer.
    Ticket(u64)
);

identity!(
    /// Identity of a cluster, chosen once.
    ClusterId(u128), "32"
);
identity!(
    /// Identity of a volume within a cluster; both copies carry the same.
    VolumeId(u128), "32"
);
identity!(
    /// Identity of one copy on one disk, drawn when its metadata is formatted. A replaced disk has another.
    DiskInstance(u128), "32"
);
identity!(
    /// Identity of one established link, agreed in the hello. A frame of an older link carries another and is refused.
    ConnectionId(u64), "16"
);
identity!(
    /// Identity of a data lineage. See [`crate::generation`].
    GenerationId(u64), "16"
);

impl Term {
    /// The term after this one.
    #[must_use]
    pub fn next(self) -> Self {
        Self(self.0.saturating_add(1))
    }
}

impl Seq {
    /// The sequence number after this one.
    #[must_use]
    pub fn next(self) -> Self {
        Self(self.0 + 1)
    }
}

/// A point on the node's monotonic clock, in nanoseconds. Only shells read the clock.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Debug)]
pub struct Moment(pub u64);

impl Moment {
    /// This moment plus `duration`, saturating.
    #[must_use]
    pub fn after(self, duration: Duration) -> Self {
        Self(self.0.saturating_add(u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX)))
    }

    /// Time from `earlier` to this moment; zero when `earlier` is later.
    #[must_use]
    pub fn since(self, earlier: Self) -> Duration {
        Duration::from_nanos(self.0.saturating_sub(earlier.0))
    }
}

/// Bytes `start .. start + len` of a device. `start + len` never overflows.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Default)]
pub struct ByteRange {
    start: u64,
    len: u64,
}

impl fmt::Debug for ByteRange {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}+{}", self.start, self.len)
    }
}

impl ByteRange {
    /// The range of `len` bytes at `start`.
    ///
    /// # Panics
    /// When `start + len` overflows; values from outside go through [`ByteRange::checked`].
    #[must_use]
    pub fn new(start: u64, len: u64) -> Self {
        Self::checked(start, len).expect("the caller has bounded start + len")
    }

    /// The range of `len` bytes at `start`, or `None` when its end overflows.
    #[must_use]
    pub fn checked(start: u64, len: u64) -> Option<Self> {
        start.checked_add(len).map(|_| Self { start, len })
    }

    /// First byte.
    #[must_use]
    pub fn start(self) -> u64 {
        self.start
    }

    /// Length in bytes.
    #[must_use]
    pub fn len(self) -> u64 {
        self.len
    }

    /// First byte after the range.
    #[must_use]
    pub fn end(self) -> u64 {
        self.start + self.len
    }

    /// True for a range of no bytes.
    #[must_use]
    pub fn is_empty(self) -> bool {
        self.len == 0
    }

    /// True when both ranges share a byte.
    #[must_use]
    pub fn overlaps(self, other: Self) -> bool {
        self.start < other.end() && other.start < self.end()
    }

    /// The smallest range of whole `unit`s that covers this one. Setting dirty bits rounds this way.
    #[must_use]
    pub fn round_out(self, unit: u64) -> Self {
        let start = self.start / unit * unit;
        Self { start, len: self.end().div_ceil(unit) * unit - start }
    }

    /// The largest range of whole `unit`s inside this one, perhaps empty. Clearing dirty bits rounds this way.
    #[must_use]
    pub fn round_in(self, unit: u64) -> Self {
        let start = self.start.div_ceil(unit) * unit;
        let end = self.end() / unit * unit;
        Self { start, len: end.saturating_sub(start) }
    }

    /// The first `len` bytes and the rest.
    #[must_use]
    pub fn split_at(self, len: u64) -> (Self, Self) {
        let len = len.min(self.len);
        (Self { start: self.start, len }, Self { start: self.start + len, len: self.len - len })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn rounding_brackets_the_range(start in 0u64..1 << 40, len in 0u64..1 << 30) {
            let range = ByteRange::new(start, len);
            let (outer, inner) = (range.round_out(BLOCK_SIZE), range.round_in(BLOCK_SIZE));
            prop_assert!(outer.start() <= start && outer.end() >= range.end());
            prop_assert!(outer.start() + BLOCK_SIZE > start && outer.end() < range.end() + BLOCK_SIZE);
            prop_assert!(inner.is_empty() || (inner.start() >= start && inner.end() <= range.end()));
            prop_assert!(outer.start() % BLOCK_SIZE == 0 && outer.end() % BLOCK_SIZE == 0);
        }

        #[test]
        fn overlap_is_symmetric(a in 0u64..64, b in 0u64..64, m in 0u64..16, n in 0u64..16) {
            let (x, y) = (ByteRange::new(a, m), ByteRange::new(b, n));
            let shared = (a..a + m).any(|i| i >= b && i < b + n);
            prop_assert_eq!(x.overlaps(y) && m > 0 && n > 0, shared);
            prop_assert_eq!(x.overlaps(y), y.overlaps(x));
        }
    }

    #[test]
    fn an_overflowing_range_is_refused() {
        assert_eq!(ByteRange::checked(u64::MAX, 1), None);
        assert_eq!(ByteRange::new(u64::MAX, 0).end(), u64::MAX);
    }
}
