//! Plans a file: where each message and each buffer goes, before a byte of it is copied.

use std::collections::HashMap;
use std::sync::Arc;

use arrow::array::{ArrayRef, RecordBatch, RecordBatchOptions};
use arrow::buffer::Buffer;
use arrow::datatypes::{Field, Schema, SchemaRef};
use arrow::error::ArrowError;
use arrow_ipc::convert::{IpcSchemaEncoder, metadata_to_fb};
use arrow_ipc::writer::{
    DictionaryTracker, IpcDataGenerator, IpcWriteOptions, StreamEncoder, write_message,
};
use arrow_ipc::{Block, FooterBuilder, MetadataVersion, root_as_message};
use flatbuffers::FlatBufferBuilder;

use super::blank::{BlankColumn, blank, places};
use super::prepare::Preparer;
use super::types::{encoded, stored};
use super::{ExtraCopy, MAGIC, TableOptions, TableSpec};
use crate::copy::Source;
use crate::error::{Error, Result};

const ALIGNMENT: usize = 64;
pub(super) const PREFIX_BYTES: usize = 8;
const END_OF_STREAM: [u8; PREFIX_BYTES] = [0xff, 0xff, 0xff, 0xff, 0, 0, 0, 0];

/// A piece of the file, and where it goes.
pub(crate) type Piece = (usize, Arc<dyn Source>);

/// A table on its way into a segment, batch by batch.
pub(crate) struct TableWriter {
    spec: TableSpec,
    schema: SchemaRef,
    /// The schema of batches as they are encoded: with keys for dictionaries.
    keyed: SchemaRef,
    encoder: StreamEncoder,
    preparer: Preparer,
    batches: Vec<Block>,
    pieces: Vec<Piece>,
    length: usize,
}

/// Bytes of an Arrow buffer that are copied as they are.
struct Plain(Buffer);

impl Source for Plain {
    fn length(&self) -> usize {
        self.0.len()
    }

    fn parts(&self) -> Vec<std::ops::Range<usize>> {
        self.0.as_slice().parts()
    }

    fn write(&self, part: std::ops::Range<usize>, sink: &crate::copy::Sink<'_>) -> Result<()> {
        self.0.as_slice().write(part, sink)
    }
}

impl TableWriter {
    /// Begins a file for batches of `schema`.
    pub(crate) fn new(spec: TableSpec, schema: &Schema, options: TableOptions) -> Result<Self> {
        let fields: Vec<Field> = schema.fields().iter().map(|f| stored(f, options)).collect();
        let inner: Vec<Field> = fields.iter().map(encoded).collect();
        let schema = Schema::new(fields).with_metadata(schema.metadata().clone());
        let keyed = Arc::new(Schema::new(inner));
        let refused = |error| refused(&spec, &error);
        let mut encoder = encoder_for(&keyed).map_err(refused)?;
        // The encoder begins with a schema of its own, that of the batches with bare keys.
        encoder
            .encode(&RecordBatch::new_empty(Arc::clone(&keyed)))
            .map_err(refused)?;
        let mut writer = Self {
            spec,
            schema: Arc::new(schema),
            keyed,
            encoder,
            preparer: Preparer::default(),
            batches: Vec::new(),
            pieces: Vec::new(),
            length: 0,
        };
        writer.push(Buffer::from(MAGIC.as_slice()));
        writer.length = ALIGNMENT;
        let message = schema_message(&writer.schema).map_err(|e| writer.refused(&e))?;
        writer.push(Buffer::from(message));
        Ok(writer)
    }

    /// Plans a further batch. Nothing is copied but offsets and bitmaps that a slice shifts.
    pub(crate) fn add(&mut self, batch: &RecordBatch) -> Result<()> {
        let schema = Arc::clone(&self.schema);
        if batch.num_columns() != schema.fields().len() {
            let found = batch.num_columns();
            let reason = format!(
                "a batch has {found} columns where its schema has {}",
                schema.fields().len()
            );
            return Err(self.refused(&ArrowError::SchemaError(reason)));
        }
        self.preparer.begin();
        let columns = batch.columns().iter().zip(schema.fields());
        let columns = columns.map(|(column, field)| self.preparer.column(column, field));
        let columns = columns.collect::<Result<Vec<_>>>()?;
        let batch = self.batch(&self.keyed, columns, batch.num_rows())?;
        let buffers = self.encoder.encode(&batch);
        let buffers = buffers.map_err(|error| self.refused(&error))?;
        let block = self.push_message(buffers)?;
        self.batches.push(block);
        Ok(())
    }

    /// Plans a batch of zeros that is filled later; where its columns lie.
    pub(crate) fn add_blank(&mut self, rows: usize) -> Result<Vec<BlankColumn>> {
        let fields = self.schema.fields().iter();
        let fields: Vec<Field> = fields.map(|field| field.as_ref().clone()).collect();
        let computed = &mut self.preparer.computed;
        let columns = fields.iter().map(|field| blank(field, rows, computed));
        let columns = columns.collect::<Result<Vec<_>>>()?;
        let batch = self.batch(&self.keyed, columns, rows)?;
        let buffers = self.encoder.encode(&batch);
        let buffers = buffers.map_err(|error| self.refused(&error))?;
        let metadata = buffers.get(1).cloned().unwrap_or_default();
        let block = self.push_message(buffers)?;
        let columns = places(&fields, &block, &metadata);
        self.batches.push(block);
        columns.map_err(|reason| self.refused(&ArrowError::IpcError(reason)))
    }

    /// Plans what comes after the last batch: the dictionaries and the footer.
    pub(crate) fn finish(&mut self) -> Result<()> {
        let dictionaries = self.push_dictionaries()?;
        self.push(Buffer::from(END_OF_STREAM.as_slice()));
        let footer = self.footer(&dictionaries);
        let length = i32::try_from(footer.len()).map_err(|_| {
            self.refused(&ArrowError::IpcError(
                "the footer is larger than 2 GiB".to_owned(),
            ))
        })?;
        self.push(Buffer::from(footer));
        self.push(Buffer::from(length.to_le_bytes().as_slice()));
        self.push(Buffer::from(MAGIC.as_slice()));
        Ok(())
    }

    /// The bytes that the file has so far.
    pub(crate) fn length(&self) -> usize {
        self.length
    }

    /// What was planned since the last time, to be copied.
    pub(crate) fn take_pieces(&mut self) -> Vec<Piece> {
        std::mem::take(&mut self.pieces)
    }

    /// What had to be copied besides.
    pub(crate) fn take_copies(&mut self) -> Vec<ExtraCopy> {
        std::mem::take(&mut self.preparer.copies)
    }

    /// What is written.
    pub(crate) fn spec(&self) -> &TableSpec {
        &self.spec
    }

    fn push(&mut self, buffer: Buffer) {
        let length = buffer.len();
        let source = self.preparer.computed.behind(&buffer);
        if length > 0 {
            let source = source.unwrap_or_else(|| Arc::new(Plain(buffer)));
            self.pieces.push((self.length, source));
        }
        self.length += length;
    }

    /// Places a message that comes as its prefix, its metadata and its body's buffers.
    fn push_message(&mut self, buffers: Vec<Buffer>) -> Result<Block> {
        let start = self.length;
        let metadata = match buffers.first().map(Buffer::as_slice) {
            Some([0xff, 0xff, 0xff, 0xff, length @ ..]) if length.len() == 4 => {
                i32::from_le_bytes([length[0], length[1], length[2], length[3]])
            }
            _ => {
                let reason = "the encoder's message has no prefix".to_owned();
                return Err(self.refused(&ArrowError::IpcError(reason)));
            }
        };
        for buffer in buffers {
            self.push(buffer);
        }
        let header = PREFIX_BYTES + usize::try_from(metadata).unwrap_or(0);
        let body = (self.length - start - header) as u64;
        let header = i32::try_from(header).unwrap_or(i32::MAX);
        Ok(Block::new(
            (start as u64).cast_signed(),
            header,
            body.cast_signed(),
        ))
    }

    fn push_dictionaries(&mut self) -> Result<Vec<Block>> {
        self.preparer.begin();
        let schema = Arc::clone(&self.schema);
        let fields = schema.fields().iter();
        let columns = fields.map(|field| self.preparer.empty_column(field));
        let columns = columns.collect::<Result<Vec<_>>>()?;
        let batch = self.batch(&schema, columns, 0)?;
        let refused = |error: ArrowError| refused(&self.spec, &error);
        let mut encoder = encoder_for(&schema).map_err(refused)?;
        let buffers = encoder.encode(&batch).map_err(refused)?;
        let mut messages = split_messages(buffers).map_err(refused)?;
        // The first is the schema, the last the batch without rows.
        messages.pop();
        messages.drain(..1.min(messages.len()));
        messages
            .into_iter()
            .map(|message| self.push_message(message))
            .collect()
    }

    fn batch(
        &self,
        schema: &SchemaRef,
        columns: Vec<ArrayRef>,
        rows: usize,
    ) -> Result<RecordBatch> {
        // Without a check for nulls in fields that say they have none: the data is the caller's.
        let nullable = schema
            .fields()
            .iter()
            .map(|f| f.as_ref().clone().with_nullable(true));
        let schema = Arc::new(Schema::new(nullable.collect::<Vec<_>>()));
        let options = RecordBatchOptions::new().with_row_count(Some(rows));
        RecordBatch::try_new_with_options(schema, columns, &options)
            .map_err(|error| self.refused(&error))
    }

    fn footer(&self, dictionaries: &[Block]) -> Vec<u8> {
        let mut builder = FlatBufferBuilder::new();
        let mut tracker = DictionaryTracker::new(true);
        let mut schemas = IpcSchemaEncoder::new().with_dictionary_tracker(&mut tracker);
        let schema = schemas.schema_to_fb_offset(&mut builder, &self.schema);
        let dictionaries = builder.create_vector(dictionaries);
        let batches = builder.create_vector(&self.batches);
        let marks: HashMap<String, String> = [
            ("theus.kind", self.spec.kind.name()),
            ("theus.name", &self.spec.key),
        ]
        .map(|(key, value)| (key.to_owned(), value.to_owned()))
        .into();
        let marks = metadata_to_fb(&mut builder, &marks);
        let mut footer = FooterBuilder::new(&mut builder);
        footer.add_version(MetadataVersion::V5);
        footer.add_schema(schema);
        footer.add_dictionaries(dictionaries);
        footer.add_recordBatches(batches);
        footer.add_custom_metadata(marks);
        let root = footer.finish();
        builder.finish(root, None);
        builder.finished_data().to_vec()
    }

    fn refused(&self, error: &ArrowError) -> Error {
        refused(&self.spec, error)
    }
}

fn refused(spec: &TableSpec, error: &ArrowError) -> Error {
    Error::Table {
        key: spec.key.clone(),
        reason: error.to_string(),
    }
}

fn options() -> std::result::Result<IpcWriteOptions, ArrowError> {
    IpcWriteOptions::try_new(ALIGNMENT, false, MetadataVersion::V5)
}

fn encoder_for(schema: &Schema) -> std::result::Result<StreamEncoder, ArrowError> {
    StreamEncoder::try_new_with_options(schema, options()?)
}

fn schema_message(schema: &Schema) -> std::result::Result<Vec<u8>, ArrowError> {
    let options = options()?;
    let mut tracker = DictionaryTracker::new(true);
    let generator = IpcDataGenerator::default();
    let message = generator.schema_to_bytes_with_dictionary_tracker(schema, &mut tracker, &options);
    let mut bytes = Vec::new();
    write_message(&mut bytes, message, &options)?;
    Ok(bytes)
}

/// Cuts an encoder's buffers where messages begin.
fn split_messages(buffers: Vec<Buffer>) -> std::result::Result<Vec<Vec<Buffer>>, ArrowError> {
    let mut messages: Vec<Vec<Buffer>> = Vec::new();
    let mut left = 0;
    let not_empty = |buffer: &Buffer| !buffer.is_empty();
    let mut buffers = buffers.into_iter().filter(not_empty).peekable();
    while let Some(buffer) = buffers.next() {
        if left == 0 {
            let [.., a, b, c, d] = *buffer.as_slice() else {
                return Err(ArrowError::IpcError("a message has no prefix".to_owned()));
            };
            left = usize::try_from(i32::from_le_bytes([a, b, c, d])).unwrap_or(0);
            let metadata = buffers.peek().map(Buffer::as_slice).unwrap_or_default();
            let message = root_as_message(metadata)
                .map_err(|error| ArrowError::IpcError(error.to_string()))?;
            left += usize::try_from(message.bodyLength()).unwrap_or(0);
            messages.push(vec![buffer]);
        } else if let Some(message) = messages.last_mut() {
            left = left.saturating_sub(buffer.len());
            message.push(buffer);
        }
    }
    Ok(messages)
}
