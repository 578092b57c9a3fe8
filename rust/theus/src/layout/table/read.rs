//! Reads an IPC file in place: its footer when it is opened, its batches when they are asked for.

use std::collections::HashMap;
use std::ops::Range;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;

use arrow::array::RecordBatch;
use arrow::buffer::Buffer;
use arrow::datatypes::{DataType, Field, Fields, SchemaRef};
use arrow_ipc::convert::fb_to_schema;
use arrow_ipc::reader::FileDecoder;
use arrow_ipc::{Block, MetadataVersion, root_as_footer};

use super::check::{check_batch, check_schema, message_at};
use super::types::children;
use super::{MAGIC, TableKind, TableSpec};

const TRAILER_BYTES: usize = 4 + MAGIC.len();

/// How much of the data is looked at before it is handed out.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Validation {
    /// None of it: it was written by this session. Takes a time for each column and batch.
    Trusted,
    /// All of it: metadata, offsets, keys, UTF-8.
    Full,
}

/// An IPC file as its footer tells it.
#[derive(Debug, Clone)]
pub(crate) struct TableFile {
    pub(crate) spec: TableSpec,
    schema: SchemaRef,
    dictionaries: Vec<Block>,
    batches: Vec<Block>,
}

impl TableFile {
    /// Reads the footer of a file of `length` bytes, which `read` copies parts of. Everything that it
    /// says of the file is checked against its length.
    pub(crate) fn open(
        length: usize,
        read: impl Fn(Range<usize>) -> Vec<u8>,
    ) -> Result<Self, String> {
        let trailer = length.checked_sub(TRAILER_BYTES);
        let trailer = trailer.ok_or("it is too short for a footer")?;
        let end = read(trailer..length);
        if !end.ends_with(MAGIC) {
            return Err("it does not end as an Arrow file does".to_owned());
        }
        let footer = u32::from_le_bytes([end[0], end[1], end[2], end[3]]) as usize;
        let start = trailer
            .checked_sub(footer)
            .filter(|start| *start >= MAGIC.len());
        let start = start.ok_or_else(|| format!("its footer of {footer} bytes does not fit"))?;
        Self::parse(&read(start..trailer), start as u64)
    }

    fn parse(footer: &[u8], end: u64) -> Result<Self, String> {
        let footer = root_as_footer(footer).map_err(|error| format!("its footer: {error}"))?;
        if footer.version() != MetadataVersion::V5 {
            return Err(format!("its version is {:?}, not V5", footer.version()));
        }
        let schema = footer.schema().ok_or("its footer has no schema")?;
        check_schema(&schema)?;
        let blocks = |blocks: Option<flatbuffers::Vector<'_, Block>>, what: &str| {
            let blocks: Vec<Block> = blocks.into_iter().flatten().copied().collect();
            for (number, block) in blocks.iter().enumerate() {
                let inside = lies_before(block, end);
                inside.ok_or_else(|| format!("its {what} {number} lies outside the file"))?;
            }
            Ok::<_, String>(blocks)
        };
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
        let file = Self {
            spec,
            // What it would panic at has been refused.
            schema: guarded(|| Ok(Arc::new(fb_to_schema(schema))))?,
            dictionaries: blocks(footer.dictionaries(), "dictionary")?,
            batches: blocks(footer.recordBatches(), "record batch")?,
        };
        file.check_kind()?;
        Ok(file)
    }

    fn check_kind(&self) -> Result<(), String> {
        let (columns, batches) = (self.schema.fields().len(), self.batches.len());
        let fits = match self.spec.kind {
            TableKind::Table => true,
            TableKind::Array => columns == 1 && batches == 1,
            TableKind::ChunkedArray => columns == 1,
        };
        if fits {
            return Ok(());
        }
        let kind = self.spec.kind.name();
        Err(format!(
            "it is marked as {kind} and has {columns} columns in {batches} batches"
        ))
    }

    /// The schema of its batches.
    pub(crate) fn schema(&self) -> &SchemaRef {
        &self.schema
    }

    /// Its batches, over the bytes of `file`.
    pub(crate) fn batches(
        &self,
        file: &Buffer,
        validation: Validation,
    ) -> Result<Vec<RecordBatch>, String> {
        if validation == Validation::Full {
            self.check(file)?;
        }
        guarded(|| self.decode(file, validation))
    }

    /// Holds the metadata of every message against the schema.
    fn check(&self, file: &[u8]) -> Result<(), String> {
        let mut values = HashMap::new();
        dictionary_values(self.schema.fields(), &mut values);
        for (number, block) in self.dictionaries.iter().enumerate() {
            let at = |reason: String| format!("dictionary {number}: {reason}");
            let message = message_at(file, block).map_err(at)?;
            let batch = message.header_as_dictionary_batch();
            let batch = batch.ok_or_else(|| at("its message is none".to_owned()))?;
            if batch.isDelta() {
                return Err(at(
                    "it is a delta, which cannot be read without a copy".to_owned()
                ));
            }
            let known = values.remove(&batch.id());
            let known = known.ok_or_else(|| at(format!("no column has its id {}", batch.id())))?;
            let field = Fields::from(vec![Field::new("values", known, true)]);
            let data = batch
                .data()
                .ok_or_else(|| at("it has no values".to_owned()))?;
            check_batch(&data, &field, body(block)).map_err(at)?;
        }
        for (number, block) in self.batches.iter().enumerate() {
            let at = |reason: String| format!("record batch {number}: {reason}");
            let message = message_at(file, block).map_err(at)?;
            let batch = message.header_as_record_batch();
            let batch = batch.ok_or_else(|| at("its message is none".to_owned()))?;
            check_batch(&batch, self.schema.fields(), body(block)).map_err(at)?;
        }
        Ok(())
    }

    #[expect(
        unsafe_code,
        reason = "what this session wrote need not be looked at again"
    )]
    fn decode(&self, file: &Buffer, validation: Validation) -> Result<Vec<RecordBatch>, String> {
        let decoder = FileDecoder::new(Arc::clone(&self.schema), MetadataVersion::V5);
        // Without this it would copy what is not aligned, and say nothing.
        let decoder = decoder.with_require_alignment(true);
        let trusted = validation == Validation::Trusted;
        // SAFETY: only what this session's own code wrote, and nobody can have changed, is trusted.
        let mut decoder = unsafe { decoder.with_skip_validation(trusted) };
        for (number, block) in self.dictionaries.iter().enumerate() {
            decoder
                .read_dictionary(block, &cut(file, block))
                .map_err(|error| format!("dictionary {number}: {error}"))?;
        }
        let batches = self.batches.iter().enumerate();
        batches
            .map(|(number, block)| {
                let batch = decoder.read_record_batch(block, &cut(file, block));
                let batch = batch.map_err(|error| format!("record batch {number}: {error}"))?;
                batch.ok_or_else(|| format!("record batch {number}: it is none"))
            })
            .collect()
    }
}

/// Whether the block lies before `end`, aligned, with lengths that are none below zero.
fn lies_before(block: &Block, end: u64) -> Option<()> {
    let offset = u64::try_from(block.offset()).ok()?;
    let header = u64::try_from(block.metaDataLength()).ok()?;
    let body = u64::try_from(block.bodyLength()).ok()?;
    let reach = offset.checked_add(header)?.checked_add(body)?;
    let aligned = offset.is_multiple_of(8) && header.is_multiple_of(8) && header >= 8;
    (reach <= end && aligned).then_some(())
}

fn body(block: &Block) -> u64 {
    u64::try_from(block.bodyLength()).unwrap_or(0)
}

/// The message of a block that was found to lie inside the file.
fn cut(file: &Buffer, block: &Block) -> Buffer {
    let length = i64::from(block.metaDataLength()) + block.bodyLength();
    let place = |value: i64| usize::try_from(value).unwrap_or(0);
    file.slice_with_length(place(block.offset()), place(length))
}

/// The types of the values of all dictionaries, by their ids.
fn dictionary_values(fields: &Fields, found: &mut HashMap<i64, DataType>) {
    for field in fields {
        if let DataType::Dictionary(_, values) = field.data_type() {
            #[expect(deprecated, reason = "arrow-ipc keeps the ids of what it reads there")]
            let id = field.dict_id().unwrap_or(0);
            found.insert(id, values.as_ref().clone());
            dictionary_values(&children(values).into(), found);
        } else {
            dictionary_values(&children(field.data_type()).into(), found);
        }
    }
}

/// Runs Arrow's code, which panics at what it does not expect.
fn guarded<T>(work: impl FnOnce() -> Result<T, String>) -> Result<T, String> {
    let gave_up = |_| Err("Arrow's decoder gave up on it".to_owned());
    catch_unwind(AssertUnwindSafe(work)).unwrap_or_else(gave_up)
}
