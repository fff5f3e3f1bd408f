//! `targets/meta_bitmap.rs` under libFuzzer.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| targets::meta_bitmap::run(data));
