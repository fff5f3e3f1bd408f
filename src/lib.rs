//! repblk: a replicated block device in user space.

pub mod cli;
pub mod condition;
pub mod daemon;
pub mod dataplane;
pub mod generation;
pub mod meta;
pub mod nbd;
pub mod units;
pub mod volume;
pub mod wire;
