//! repblk: a replicated block device in user space.

pub mod condition;
pub mod daemon;
pub mod generation;
pub mod meta;
pub mod units;
pub mod wire;
