//! `targets/meta_superblock.rs` under libFuzzer.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| targets::meta_superblock::run(data));
