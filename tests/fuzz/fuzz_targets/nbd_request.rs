//! `targets/nbd_request.rs` under libFuzzer.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| targets::nbd_request::run(data));
