//! Rank 4, shell.

pub mod config;
