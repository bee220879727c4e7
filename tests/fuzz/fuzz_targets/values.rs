#![no_main]

// Only the binary parses these, and a library cannot export them.
#[path = "../../../src/cli/values.rs"]
#[allow(dead_code)]
mod values;

libfuzzer_sys::fuzz_target!(|data: &[u8]| values::fuzz(data));
