//! Fuzzing on the stable toolchain: the targets of `cargo fuzz`, fed with the committed corpus and changed copies of it.
//!
//! A run is bounded and the same each time. A failure prints the smallest input found and the command that repeats it.
//! See `docs/testing.md`.

mod campaign;
mod mutate;
mod targets;

use campaign::{Target, campaign};

macro_rules! targets {
    ($($name:ident $(words $words:expr)?, $runs:expr;)*) => {
        $(
            #[test]
            fn $name() {
                let words: &[&str] = [$($words,)? &[][..]][0];
                campaign(&Target { name: stringify!($name), run: targets::$name::run, words, runs: $runs });
            }
        )*
    };
}

targets! {
    nbd_negotiation, 40_000;
    nbd_request, 80_000;
    wire_frame, 100_000;
    wire_hello, 150_000;
    tls_handshake, 2_000;
    certificate, 60_000;
    sealed, 4_000;
    beat, 150_000;
    agent_words words mutate::JSON, 100_000;
    meta_superblock, 60_000;
    meta_activity_log, 4_000;
    meta_bitmap, 3_000;
    meta_recovery, 5_000;
    config words mutate::TOML, 20_000;
    control_request words mutate::JSON, 120_000;
    control_answer words mutate::JSON, 60_000;
}
