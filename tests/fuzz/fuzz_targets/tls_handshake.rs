//! `targets/tls_handshake.rs` under libFuzzer.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| targets::tls_handshake::run(data));
