//! What both binaries make their measurements of.

use std::sync::Arc;

use arrow::array::{ArrayRef, Int64Array, RecordBatch};
use theus::Session;
use theus::dispatch::Channel;

/// A TASK's integers and its pickle, of about the size that a call with a few values has.
pub(crate) const TASK: [u64; 4] = [7, 3, 2, 0];
pub(crate) const PICKLE: [u8; 200] = [0x5a; 200];

/// Both ends of a channel.
pub(crate) fn connected() -> (Channel, Channel) {
    let (owner, theirs) = Channel::pair().unwrap();
    (owner, Channel::from_fd(theirs).unwrap())
}

/// Integers in as many columns.
pub(crate) fn table(columns: u32, rows: i64) -> RecordBatch {
    let column: ArrayRef = Arc::new(Int64Array::from_iter_values(0..rows));
    let named = (0..columns).map(|number| (format!("column {number}"), Arc::clone(&column)));
    RecordBatch::try_from_iter(named).unwrap()
}

pub(crate) fn put(session: &Session, name: &str, batch: &RecordBatch) {
    session
        .put(name, batch.schema(), [Ok(batch.clone())])
        .unwrap();
}

/// A session of as many entries, all of them small.
pub(crate) fn crowded(entries: usize) -> Session {
    let session = Session::create(theus::Config::default()).unwrap();
    for number in 0..entries {
        let tensor = session.alloc_tensor::<u8>(&key(number), &[16]).unwrap();
        tensor.publish().unwrap();
    }
    session
}

pub(crate) fn key(number: usize) -> String {
    format!("entry {number}")
}
