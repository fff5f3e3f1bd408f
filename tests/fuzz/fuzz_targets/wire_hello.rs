//! `targets/wire_hello.rs` under libFuzzer.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| targets::wire_hello::run(data));
