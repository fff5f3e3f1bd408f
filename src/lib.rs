//! repblk: a replicated block device in user space.

pub mod nbd;
pub mod units;
