//! `targets/wire_frame.rs` under libFuzzer.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| targets::wire_frame::run(data));
