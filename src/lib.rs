//! repblk: a replicated block device in user space.

pub mod units;
