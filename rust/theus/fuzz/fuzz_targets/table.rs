//! Any bytes as an Arrow IPC file: an error or valid batches, never a crash.

#![no_main]

use arrow::buffer::Buffer;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| {
    let _ = theus::layout::table::validate(&Buffer::from(bytes));
});
