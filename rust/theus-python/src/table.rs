//! Tables from whatever speaks the Arrow C data interface.

use std::ops::Range;
use std::sync::Arc;

use arrow::array::{Array, ArrayRef, AsArray, RecordBatch};
use arrow::datatypes::{DataType, FieldRef, Schema, SchemaRef};
use arrow::error::ArrowError;
use pyo3::exceptions::PyTypeError;
use pyo3::prelude::*;
use theus::NewTable;
use theus::layout::table::{BlankColumn, TableKind, TableOptions, TableSpec};

use crate::c_data::Arrays;

const HOLD_BYTES: usize = 64 << 20;

/// The table that `source` is: one of structs is a table of their fields, unless it is to be an array.
pub(crate) fn new_table(
    key: &str,
    source: Arrays,
    as_array: bool,
    views: bool,
    streamed: bool,
) -> NewTable<'static> {
    let single = source.is_single();
    let field = Arc::clone(&source.field);
    let (kind, schema) = match field.data_type() {
        DataType::Struct(fields) if !as_array => {
            let schema = Schema::new(fields.clone()).with_metadata(field.metadata().clone());
            (TableKind::Table, Arc::new(schema))
        }
        _ if single => (TableKind::Array, one_column(&field)),
        _ => (TableKind::ChunkedArray, one_column(&field)),
    };
    let batches = Batches {
        arrays: source,
        schema: Arc::clone(&schema),
        kind,
    };
    NewTable {
        spec: TableSpec {
            key: key.to_owned(),
            kind,
        },
        schema,
        batches: Box::new(batches),
        options: TableOptions { views },
        hold: if streamed { HOLD_BYTES } else { usize::MAX },
    }
}

fn one_column(field: &FieldRef) -> SchemaRef {
    Arc::new(Schema::new(vec![Arc::clone(field)]))
}

struct Batches {
    arrays: Arrays,
    schema: SchemaRef,
    kind: TableKind,
}

impl Batches {
    fn batch(&self, array: ArrayRef) -> Result<RecordBatch, ArrowError> {
        if self.kind != TableKind::Table {
            // The field says of a column what the array cannot: that it has no nulls.
            let nullable = self.schema.field(0).clone().with_nullable(true);
            return RecordBatch::try_new(Arc::new(Schema::new(vec![nullable])), vec![array]);
        }
        if array.null_count() > 0 {
            let reason = "rows that are null as a whole are not a table's: put it as an array";
            return Err(ArrowError::InvalidArgumentError(reason.to_owned()));
        }
        Ok(RecordBatch::from(array.as_struct()))
    }
}

impl Iterator for Batches {
    type Item = Result<RecordBatch, ArrowError>;

    fn next(&mut self) -> Option<Self::Item> {
        let array = self.arrays.next()?;
        Some(array.and_then(|array| self.batch(array)))
    }
}

/// What a table that is filled in place is called.
pub(crate) fn table_spec(key: &str) -> TableSpec {
    TableSpec {
        key: key.to_owned(),
        kind: TableKind::Table,
    }
}

/// A place in a segment: the offset of the first byte, and how many.
pub(crate) type Span = (usize, usize);

/// Where the columns lie of a table that is filled in place: the bitmap, and the values.
pub(crate) fn spans(columns: &[BlankColumn]) -> Vec<(Option<Span>, Span)> {
    let span = |range: &Range<usize>| (range.start, range.len());
    let column = |c: &BlankColumn| (c.validity.as_ref().map(span), span(&c.values));
    columns.iter().map(column).collect()
}

/// The tensor in a segment, for what only tensors have.
pub(crate) fn tensor(spec: &theus::layout::Spec) -> PyResult<&theus::layout::tensor::TensorSpec> {
    match spec {
        theus::layout::Spec::Tensor(spec) => Ok(spec),
        theus::layout::Spec::Table(spec) => Err(PyTypeError::new_err(format!(
            "entry {:?} is a {}, not a tensor",
            spec.key,
            spec.kind.name()
        ))),
    }
}

/// What an entry is, as descriptors say it.
pub(crate) fn kind(spec: &theus::layout::Spec) -> &'static str {
    spec.kind()
}
