//! `targets/nbd_negotiation.rs` under libFuzzer.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| targets::nbd_negotiation::run(data));
