//! `cargo fuzz run server`: see the target's own text in the library.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| portcullis_fuzz::server(data));
