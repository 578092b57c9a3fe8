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

use arrow_ipc::root_as_footer;

use crate::mapping::Mapping;

mod blank;
mod computed;
mod dictionary;
mod file;
mod prepare;
mod types;

pub use blank::BlankColumn;
pub(crate) use file::TableWriter;

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
const TRAILER_BYTES: usize = 4 + MAGIC.len();

/// Whether a segment that begins with `head` is an IPC file.
pub(crate) fn is_table(head: &[u8]) -> bool {
    head.starts_with(MAGIC)
}

/// What the marks in the file's footer say.
///
/// # Errors
/// The rule that does not hold.
pub(crate) fn read_spec(mapping: &Mapping) -> std::result::Result<TableSpec, String> {
    let length = mapping.len();
    let trailer = length
        .checked_sub(TRAILER_BYTES)
        .ok_or("it is too short for a footer")?;
    let end = mapping.read(trailer, TRAILER_BYTES);
    if !end.ends_with(MAGIC) {
        return Err("it does not end as an Arrow file does".to_owned());
    }
    let footer = u32::from_le_bytes([end[0], end[1], end[2], end[3]]) as usize;
    let start = trailer
        .checked_sub(footer)
        .ok_or_else(|| format!("its footer of {footer} bytes does not fit"))?;
    let footer = mapping.read(start, footer);
    let footer = root_as_footer(&footer).map_err(|error| format!("its footer: {error}"))?;
    let mut spec = TableSpec {
        key: String::new(),
        kind: TableKind::Table,
    };
    for pair in footer.custom_metadata().into_iter().flatten() {
        match (pair.key(), pair.value()) {
            (Some("theus.name"), Some(value)) => value.clone_into(&mut spec.key),
            (Some("theus.kind"), Some(value)) => {
                spec.kind = TableKind::parse(value)
                    .ok_or_else(|| format!("it is marked as a {value:?}"))?;
            }
            _ => {}
        }
    }
    Ok(spec)
}
