//! The `repblk` command.

fn main() {}
