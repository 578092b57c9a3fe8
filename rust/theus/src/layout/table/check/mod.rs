//! A walk over the metadata of an IPC file before Arrow's own code sees it.
//!
//! arrow-rs trusts what it reads: a flipped bit makes it panic, abort, or allocate what a length
//! claims. Here every type, count and place is held against the schema and against the file, in a time
//! for each column and batch. What the values themselves say (offsets, keys, UTF-8) is left to Arrow's
//! validation, which is safe once the shapes are right.
//!
//! Source: Schema.fbs, Message.fbs and File.fbs of the Arrow columnar format.

mod message;
mod schema;

pub(super) use message::{check_batch, message_at};
pub(super) use schema::check_schema;

/// What does not hold, and where.
pub(super) type Finding<T> = Result<T, String>;

/// Integers of the format that cannot be negative.
fn unsigned(value: i64, what: &str) -> Finding<u64> {
    u64::try_from(value).map_err(|_| format!("{what} is negative ({value})"))
}
