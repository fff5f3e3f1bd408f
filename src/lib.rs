//! repblk: a replicated block device in user space.

pub mod cli;
pub mod condition;
pub mod daemon;
pub mod dataplane {
    //! Rank 4, shell: a volume's thread.
    pub mod mailbox;
}
pub mod generation;
pub mod meta;
pub mod nbd;
pub mod units;
pub mod volume {
    //! Rank 2, machine.
    pub mod io;
    pub mod rule;
}
pub mod wire;
