//! Tables that are laid out first and filled in place.
//!
//! Every column has its place and every nullable one a bitmap that says that all values are there.
//! When the table is complete, the nulls are counted and entered into the record batch's metadata.

#![expect(unsafe_code, reason = "arrays are put together over stand-ins")]

use std::ops::Range;
use std::sync::Arc;

use arrow::array::{ArrayData, ArrayDataBuilder, ArrayRef, make_array};
use arrow::buffer::{BooleanBuffer, NullBuffer};
use arrow::datatypes::{DataType, Field};
use arrow_ipc::{Block, FieldNode, root_as_message};

use super::computed::Computed;
use crate::copy::{CHUNK_BYTES, Sink, Source, parts_of};
use crate::error::{Error, Result};
use crate::mapping::Mapping;

/// A column that is filled in place.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BlankColumn {
    /// Where its values lie in the segment, in bytes.
    pub values: Range<usize>,
    /// Where its bitmap lies, a bit for each row, set if the value is there; `None` if the schema says
    /// that the column has no nulls.
    pub validity: Option<Range<usize>>,
    rows: usize,
    /// Where the number of its nulls stands in the metadata.
    null_count: usize,
}

impl BlankColumn {
    /// Counts the column's nulls and enters their number.
    pub(crate) fn complete(&self, mapping: &Mapping) {
        let Some(validity) = &self.validity else {
            return;
        };
        let mut present = 0;
        for part in parts_of(validity.len(), CHUNK_BYTES) {
            let bytes = mapping.read(validity.start + part.start, part.len());
            // The last byte's bits past the last row count for nothing.
            let bits = (self.rows - 8 * part.start).min(8 * bytes.len());
            present += BooleanBuffer::new(bytes.into(), 0, bits).count_set_bits();
        }
        let nulls = (self.rows - present) as u64;
        mapping.write(self.null_count, &nulls.to_le_bytes());
    }
}

/// Bytes that all are `value`; zeros are there already.
struct Same {
    value: u8,
    length: usize,
}

impl Source for Same {
    fn length(&self) -> usize {
        self.length
    }

    fn parts(&self) -> Vec<Range<usize>> {
        let written = if self.value == 0 { 0 } else { self.length };
        parts_of(written, CHUNK_BYTES)
    }

    fn write(&self, part: Range<usize>, sink: &Sink<'_>) -> Result<()> {
        sink(part.start, &vec![self.value; part.len()])
    }
}

/// The column for the encoder.
pub(super) fn blank(field: &Field, rows: usize, computed: &mut Computed) -> Result<ArrayRef> {
    let data = data(field, field.data_type(), rows, computed)?;
    let nulls = if field.is_nullable() && rows > 0 {
        let length = rows.div_ceil(8);
        let ones = Arc::new(Same {
            value: 0xff,
            length,
        });
        let bits = BooleanBuffer::new(computed.stand_in(ones, 0_u8)?, 0, rows);
        // SAFETY: the number is entered when the table is complete; one makes the encoder write the
        // bitmap.
        Some(unsafe { NullBuffer::new_unchecked(bits, 1) })
    } else {
        None
    };
    // SAFETY: as in `data`.
    let data = unsafe { data.into_builder().nulls(nulls).build_unchecked() };
    Ok(make_array(data))
}

fn data(
    column: &Field,
    data_type: &DataType,
    rows: usize,
    computed: &mut Computed,
) -> Result<ArrayData> {
    let refused = |reason: String| Error::Column {
        column: column.name().clone(),
        reason,
    };
    let too_large = || refused(format!("{rows} rows are larger than any memory"));
    let built = ArrayDataBuilder::new(data_type.clone()).len(rows);
    let width = match data_type {
        DataType::Boolean => None,
        DataType::FixedSizeBinary(width) => Some(usize::try_from(*width).unwrap_or(0)),
        DataType::FixedSizeList(item, size) => {
            let items = usize::try_from(*size)
                .ok()
                .and_then(|size| rows.checked_mul(size));
            let items = data(
                column,
                item.data_type(),
                items.ok_or_else(too_large)?,
                computed,
            )?;
            // SAFETY: as below.
            return Ok(unsafe { built.add_child_data(items).build_unchecked() });
        }
        other => Some(other.primitive_width().ok_or_else(|| {
            let reason = "has no fixed width, so there is no place to fill: put the table instead";
            refused(format!("{other} {reason}"))
        })?),
    };
    let length = width.map_or_else(|| Some(rows.div_ceil(8)), |width| rows.checked_mul(width));
    let length = length.filter(|length| isize::try_from(*length).is_ok());
    let length = length.ok_or_else(too_large)?;
    let values = computed.stand_in(Arc::new(Same { value: 0, length }), 0_u8)?;
    // SAFETY: the buffer has the length that the type takes for the rows.
    Ok(unsafe { built.add_buffer(values).build_unchecked() })
}

/// Where the columns of a placed batch lie, given its message's metadata.
pub(super) fn places(
    fields: &[Field],
    block: &Block,
    metadata: &[u8],
) -> std::result::Result<Vec<BlankColumn>, String> {
    let message = root_as_message(metadata).map_err(|error| error.to_string())?;
    let batch = message.header_as_record_batch();
    let found = batch.and_then(|batch| Some((batch.nodes()?, batch.buffers()?)));
    let (nodes, buffers) = found.ok_or("the encoder's message is no record batch")?;
    let message = usize::try_from(block.offset()).unwrap_or(0);
    let body = message + usize::try_from(block.metaDataLength()).unwrap_or(0);
    let range = |buffer: usize| {
        let buffer = buffers.get(buffer);
        let start = body + usize::try_from(buffer.offset()).unwrap_or(0);
        start..start + usize::try_from(buffer.length()).unwrap_or(0)
    };
    let (mut node, mut buffer) = (0, 0);
    let mut columns = Vec::with_capacity(fields.len());
    for field in fields {
        let mut depth = 0;
        let mut data_type = field.data_type();
        while let DataType::FixedSizeList(item, _) = data_type {
            depth += 1;
            data_type = item.data_type();
        }
        let entry = nodes.bytes().as_ptr().addr() - metadata.as_ptr().addr();
        let entry = entry + node * size_of::<FieldNode>() + size_of::<i64>();
        let validity = range(buffer);
        columns.push(BlankColumn {
            values: range(buffer + depth + 1),
            validity: (!validity.is_empty()).then_some(validity),
            rows: usize::try_from(nodes.get(node).length()).unwrap_or(0),
            null_count: message + super::file::PREFIX_BYTES + entry,
        });
        node += depth + 1;
        buffer += depth + 2;
    }
    Ok(columns)
}
