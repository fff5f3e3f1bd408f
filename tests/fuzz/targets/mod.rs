//! What is fuzzed: one file for each target, each with `pub fn run(data: &[u8])`, which panics when a promise is broken.
//!
//! Two programs drive them: `tests/fuzz/main.rs` on the stable toolchain, and `cargo fuzz`. A target reads its input as
//! a recipe (see [`input::Input`]) and makes bytes with right checksums of it, so that a changed input gets past them.
#![allow(unreachable_pub, reason = "the same files are a library for `cargo fuzz` and a module here")]
#![allow(missing_docs, reason = "tests")]

pub mod agent_words;
pub mod beat;
pub mod certificate;
pub mod config;
pub mod control_answer;
pub mod control_request;
pub mod input;
pub mod meta_activity_log;
pub mod meta_bitmap;
pub mod meta_recovery;
pub mod meta_superblock;
pub mod nbd_negotiation;
pub mod nbd_request;
pub mod notes;
mod pages;
#[allow(dead_code, reason = "the simulator's generator, of which only a part is needed here")]
#[path = "../../sim/rng.rs"]
pub(crate) mod rng;
pub mod sealed;
pub mod tls_handshake;
pub mod wire_frame;
pub mod wire_hello;
