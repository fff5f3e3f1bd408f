//! `targets/meta_activity_log.rs` under libFuzzer.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| targets::meta_activity_log::run(data));
