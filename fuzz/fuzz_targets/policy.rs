//! `cargo fuzz run policy`: see the target's own text in the library.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| portcullis_fuzz::policy(data));
