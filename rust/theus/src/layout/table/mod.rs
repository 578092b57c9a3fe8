//! Tables and arrays as an Arrow IPC file, exact to the byte.
//!
//! ```text
//! 0        ARROW1, padded to 64 bytes
//! 64       Schema message
//!          RecordBatch messages        every buffer of a body on a multiple of 64
//!          DictionaryBatch messages    one for each dictionary, of all the batches' values
//!          end of stream, Footer, its length, ARROW1
//! ```
//!
//! An array is a table of one column. Our marks (kind, name) stand in the footer's custom metadata,
//! which belongs to the file and not to the schema. Readers find the footer from the end of the
//! file, and through it everything else: dictionaries may follow the batches that use them.
//!
//! Source: the Arrow columnar format, "IPC File Format", and File.fbs.

use arrow::buffer::Buffer;

use crate::error::{Error, Result};

mod blank;
mod check;
mod computed;
mod dictionary;
mod file;
mod prepare;
mod read;
mod types;

pub use blank::BlankColumn;
pub(crate) use file::TableWriter;
pub(crate) use read::{TableFile, Validation};

/// What a table or array is called, apart from what is in it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TableSpec {
    /// The entry's name.
    pub key: String,
    /// What it is to its readers.
    pub kind: TableKind,
}

/// What the file is to its readers.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum TableKind {
    /// A table.
    Table,
    /// One array, the table's only column.
    Array,
    /// An array in chunks, one for each batch.
    ChunkedArray,
}

const KINDS: [(TableKind, &str); 3] = [
    (TableKind::Table, "table"),
    (TableKind::Array, "array"),
    (TableKind::ChunkedArray, "chunked_array"),
];

impl TableKind {
    /// Its name in the marks and in descriptors.
    #[must_use]
    pub fn name(self) -> &'static str {
        let found = KINDS.iter().find(|(kind, _)| *kind == self);
        found.map_or("", |(_, name)| name)
    }

    /// The kind of that name.
    #[must_use]
    pub fn parse(name: &str) -> Option<Self> {
        let found = KINDS.iter().find(|(_, known)| *known == name);
        found.map(|(kind, _)| *kind)
    }
}

/// How a table is written.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct TableOptions {
    /// Whether string and binary views stay views. Otherwise they become large strings and
    /// binaries, which more libraries can filter, sort and join.
    pub views: bool,
}

/// A copy that writing a table made besides the one into the segment.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ExtraCopy {
    /// The column.
    pub column: String,
    /// The bytes that were copied.
    pub bytes: u64,
    /// Why.
    pub reason: &'static str,
}

const MAGIC: &[u8; 6] = b"ARROW1";
/// Whether a segment that begins with `head` is an IPC file.
pub(crate) fn is_table(head: &[u8]) -> bool {
    head.starts_with(MAGIC)
}

/// Looks at all of an IPC file: its metadata, and what every value says. The number of its batches.
///
/// Takes a time for each row, and no memory but for the metadata.
///
/// # Errors
/// [`Error::CorruptSegment`] naming the message, the column and the rule that does not hold.
pub fn validate(file: &Buffer) -> Result<usize> {
    let read = |range: std::ops::Range<usize>| file[range].to_vec();
    let batches = TableFile::open(file.len(), read)
        .and_then(|table| table.batches(file, Validation::Full))
        .map_err(|reason| Error::CorruptSegment {
            segment: "the file".to_owned(),
            reason,
        })?;
    Ok(batches.len())
}
