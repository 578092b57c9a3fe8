#![no_main]

#[path = "../harness.rs"]
#[allow(dead_code, reason = "each target uses its part")]
mod harness;

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| harness::catalog(bytes));
