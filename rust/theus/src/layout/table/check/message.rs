//! Record batches and dictionary batches: nodes and buffers as the schema has them, inside the body.

use arrow::datatypes::{DataType, Field, Fields, UnionMode};
use arrow_ipc::{Block, Buffer, FieldNode, Message, MetadataVersion, RecordBatch, root_as_message};
use flatbuffers::Vector;

use super::{Finding, unsigned};

const PREFIX_BYTES: usize = 8;
const CONTINUATION: [u8; 4] = [0xff; 4];

/// The message at `block`, its metadata verified and its version and body's length checked.
pub(in super::super) fn message_at<'a>(file: &'a [u8], block: &Block) -> Finding<Message<'a>> {
    let start = usize::try_from(block.offset()).map_err(|_| "its offset is negative")?;
    let length = usize::try_from(block.metaDataLength()).map_err(|_| "its length is negative")?;
    let end = start.checked_add(length).ok_or("its length overflows")?;
    let header = file.get(start..end).ok_or("it lies outside the file")?;
    let (prefix, metadata) = header
        .split_at_checked(PREFIX_BYTES)
        .ok_or("it has no prefix")?;
    let [a, b, c, d] = [prefix[4], prefix[5], prefix[6], prefix[7]];
    let claimed = usize::try_from(i32::from_le_bytes([a, b, c, d])).ok();
    if prefix[..4] != CONTINUATION || claimed != Some(metadata.len()) {
        return Err("its prefix does not say how long it is".to_owned());
    }
    let message = root_as_message(metadata).map_err(|error| format!("its metadata: {error}"))?;
    if message.version() != MetadataVersion::V5 {
        return Err(format!("its version is {:?}, not V5", message.version()));
    }
    if message.bodyLength() != block.bodyLength() {
        return Err("its body has another length in the footer".to_owned());
    }
    Ok(message)
}

/// Checks a batch of `fields` whose body has `body` bytes.
pub(in super::super) fn check_batch(
    batch: &RecordBatch<'_>,
    fields: &Fields,
    body: u64,
) -> Finding<()> {
    if batch.compression().is_some() {
        return Err("it is compressed, so that no view of it can be made".to_owned());
    }
    let rows = unsigned(batch.length(), "its number of rows")?;
    let variadic = batch.variadicBufferCounts();
    let variadic = variadic.map_or_else(Vec::new, |counts| counts.iter().collect());
    let mut walk = Walk {
        nodes: batch.nodes().ok_or("it has no nodes")?,
        buffers: batch.buffers().ok_or("it has no buffers")?,
        variadic,
        body,
        node: 0,
        buffer: 0,
        views: 0,
    };
    for field in fields {
        let column = walk.column(field, Rows::Exactly(rows));
        column.map_err(|reason| format!("column {:?}: {reason}", field.name()))?;
    }
    walk.finish()
}

/// How many rows a child has to have.
#[derive(Clone, Copy)]
enum Rows {
    Exactly(u64),
    AtLeast(u64),
    Any,
}

/// Takes nodes and buffers in the order of the schema.
struct Walk<'a> {
    nodes: Vector<'a, FieldNode>,
    buffers: Vector<'a, Buffer>,
    variadic: Vec<i64>,
    body: u64,
    node: usize,
    buffer: usize,
    views: usize,
}

impl Walk<'_> {
    fn column(&mut self, field: &Field, rows: Rows) -> Finding<()> {
        let data_type = field.data_type();
        let (length, nulls) = self.next_node(rows)?;
        if matches!(data_type, DataType::Null) {
            return if nulls == length {
                Ok(())
            } else {
                Err(format!("{nulls} of {length} nulls are null"))
            };
        }
        if !matches!(data_type, DataType::Union(..) | DataType::RunEndEncoded(..)) {
            let bits = if nulls > 0 { length.div_ceil(8) } else { 0 };
            self.items("bitmap", bits, 1)?;
        }
        match data_type {
            DataType::Boolean => self.items("values", length.div_ceil(8), 1),
            DataType::Utf8 | DataType::Binary => self.texts(length, 4),
            DataType::LargeUtf8 | DataType::LargeBinary => self.texts(length, 8),
            DataType::Utf8View | DataType::BinaryView => self.views(length),
            DataType::List(item) | DataType::Map(item, _) => self.list(item, length, 4),
            DataType::LargeList(item) => self.list(item, length, 8),
            DataType::ListView(item) => self.list_view(item, length, 4),
            DataType::LargeListView(item) => self.list_view(item, length, 8),
            DataType::FixedSizeList(item, size) => {
                let size = unsigned(i64::from(*size), "its list size")?;
                self.child(item, Rows::AtLeast(times(length, size)?))
            }
            DataType::Struct(fields) => {
                let mut children = fields.iter();
                children.try_for_each(|field| self.child(field, Rows::Exactly(length)))
            }
            DataType::Union(fields, mode) => {
                self.items("type ids", length, 1)?;
                let rows = match mode {
                    UnionMode::Sparse => Rows::Exactly(length),
                    UnionMode::Dense => Rows::Any,
                };
                if *mode == UnionMode::Dense {
                    self.items("offsets", length, 4)?;
                }
                let mut children = fields.iter();
                children.try_for_each(|(_, field)| self.child(field, rows))
            }
            DataType::RunEndEncoded(ends, values) => {
                self.child(ends, Rows::Any)?;
                self.child(values, Rows::Any)
            }
            DataType::Dictionary(key, _) => self.fixed(length, key),
            other => self.fixed(length, other),
        }
    }

    fn child(&mut self, field: &Field, rows: Rows) -> Finding<()> {
        let child = self.column(field, rows);
        child.map_err(|reason| format!("child {:?}: {reason}", field.name()))
    }

    fn fixed(&mut self, length: u64, data_type: &DataType) -> Finding<()> {
        if let DataType::FixedSizeBinary(width) = data_type {
            let width = unsigned(i64::from(*width), "its width")?;
            return self.items("values", times(length, width)?, 1);
        }
        let width = data_type.primitive_width();
        let width = width.ok_or_else(|| format!("values of type {data_type} have no width"))?;
        self.items("values", length, width as u64)
    }

    fn texts(&mut self, length: u64, width: u64) -> Finding<()> {
        self.offsets(length, width)?;
        self.items("values", 0, 1)
    }

    fn views(&mut self, length: u64) -> Finding<()> {
        self.items("views", length, 16)?;
        let count = *self
            .variadic
            .get(self.views)
            .ok_or("its views have no count of buffers")?;
        self.views += 1;
        let count = unsigned(count, "the count of its views' buffers")?;
        if count > self.buffers.len() as u64 {
            return Err(format!(
                "its views have {count} buffers, more than the batch"
            ));
        }
        (0..count).try_for_each(|_| self.items("data", 0, 1))
    }

    fn list(&mut self, item: &Field, length: u64, width: u64) -> Finding<()> {
        self.offsets(length, width)?;
        self.child(item, Rows::Any)
    }

    fn list_view(&mut self, item: &Field, length: u64, width: u64) -> Finding<()> {
        self.items("offsets", length, width)?;
        self.items("sizes", length, width)?;
        self.child(item, Rows::Any)
    }

    fn offsets(&mut self, length: u64, width: u64) -> Finding<()> {
        // Some writers leave them out where there are no rows.
        let count = if length == 0 { 0 } else { length + 1 };
        self.items("offsets", count, width)
    }

    fn next_node(&mut self, rows: Rows) -> Finding<(u64, u64)> {
        if self.node >= self.nodes.len() {
            return Err("the batch has no node for it".to_owned());
        }
        let node = self.nodes.get(self.node);
        self.node += 1;
        let length = unsigned(node.length(), "its length")?;
        let nulls = unsigned(node.null_count(), "its number of nulls")?;
        if nulls > length {
            return Err(format!("{nulls} nulls in {length} rows"));
        }
        match rows {
            Rows::Exactly(rows) if rows != length => {
                Err(format!("it has {length} rows where there are {rows}"))
            }
            Rows::AtLeast(rows) if rows > length => {
                Err(format!("it has {length} items where there are {rows}"))
            }
            _ => Ok((length, nulls)),
        }
    }

    /// Takes the buffer of `count` items of `width` bytes, which have to lie as such items do.
    fn items(&mut self, what: &str, count: u64, width: u64) -> Finding<()> {
        self.next_buffer(what, times(count, width)?, width)
    }

    fn next_buffer(&mut self, what: &str, least: u64, width: u64) -> Finding<()> {
        if self.buffer >= self.buffers.len() {
            return Err(format!("the batch has no buffer for its {what}"));
        }
        let buffer = self.buffers.get(self.buffer);
        self.buffer += 1;
        let offset = unsigned(buffer.offset(), "a buffer's offset")?;
        let length = unsigned(buffer.length(), "a buffer's length")?;
        if offset.checked_add(length).is_none_or(|end| end > self.body) {
            return Err(format!("its {what} end outside the batch"));
        }
        if !offset.is_multiple_of(8) || !offset.is_multiple_of(alignment_of(width)) {
            return Err(format!(
                "its {what} begin at {offset}, which is not aligned"
            ));
        }
        if !length.is_multiple_of(width.max(1)) {
            return Err(format!(
                "its {what} have {length} bytes, not items of {width}"
            ));
        }
        if length < least {
            return Err(format!("its {what} take {least} bytes and have {length}"));
        }
        Ok(())
    }

    fn finish(&self) -> Finding<()> {
        let left = (
            self.nodes.len() - self.node,
            self.buffers.len() - self.buffer,
            self.variadic.len().saturating_sub(self.views),
        );
        match left {
            (0, 0, 0) => Ok(()),
            (nodes, buffers, _) => Err(format!(
                "it has {nodes} nodes and {buffers} buffers that no column has"
            )),
        }
    }
}

/// Where items of this width have to begin; binaries of a fixed size are bytes.
fn alignment_of(width: u64) -> u64 {
    match width {
        1 | 2 | 4 | 8 => width,
        16 | 32 => 16,
        _ => 1,
    }
}

fn times(count: u64, width: u64) -> Finding<u64> {
    let bytes = count.checked_mul(width);
    bytes.ok_or_else(|| format!("{count} items of {width} bytes are larger than any memory"))
}
