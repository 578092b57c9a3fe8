//! A live table of another process's session as a Polars frame, by the Arrow C data interface.
//!
//! ```sh
//! cargo run --release -- <session> <table>
//! ```
//!
//! Numbers are the segment's own bytes; texts become Polars' views, over characters that it copies.

use std::error::Error;

use arrow::array::{Array, RecordBatch};
use arrow::ffi::{FFI_ArrowArray, FFI_ArrowSchema, to_ffi};
use polars_arrow::ffi::{self, import_array_from_c, import_field_from_c};
use polars_core::prelude::{Column, DataFrame, PlSmallStr, Series};
use theus::{Segment, Session};

type Chunk = Box<dyn polars_arrow::array::Array>;

/// The columns of `batches`, chunk by chunk.
fn to_polars(batches: &[RecordBatch]) -> Result<DataFrame, Box<dyn Error>> {
    let Some(first) = batches.first() else {
        return Ok(DataFrame::default());
    };
    let mut columns: Vec<Column> = Vec::new();
    for (place, field) in first.schema().fields().iter().enumerate() {
        let chunks = batches
            .iter()
            .map(|batch| hand_over(batch.column(place).as_ref()));
        let chunks: Vec<Chunk> = chunks.collect::<Result<_, _>>()?;
        let name = PlSmallStr::from(field.name().as_str());
        columns.push(Series::try_from((name, chunks))?.into());
    }
    Ok(DataFrame::new_infer_height(columns)?)
}

/// The array on the other side of the C data interface; both sides lay out its structures alike.
fn hand_over(array: &dyn Array) -> Result<Chunk, Box<dyn Error>> {
    let (array, schema) = to_ffi(&array.to_data())?;
    // SAFETY: the interface defines both structures, and they are moved, not copied.
    let schema = unsafe { std::mem::transmute::<FFI_ArrowSchema, ffi::ArrowSchema>(schema) };
    // SAFETY: as above.
    let array = unsafe { std::mem::transmute::<FFI_ArrowArray, ffi::ArrowArray>(array) };
    // SAFETY: arrow-rs has just exported a valid schema.
    let field = unsafe { import_field_from_c(&schema) }?;
    // SAFETY: and a valid array of that type.
    Ok(unsafe { import_array_from_c(array, field.dtype) }?)
}

/// Whether a column's numbers are the segment's own bytes; `None` if it has none.
fn lies_in(segment: &Segment, column: &Column) -> Option<bool> {
    let series = column.as_materialized_series();
    let start = segment.mapping().ok()?.address();
    let inside = |address: usize| (start..start + segment.length()).contains(&address);
    let chunk = series.chunks().first()?.as_any();
    if let Some(numbers) = chunk.downcast_ref::<polars_arrow::array::PrimitiveArray<f64>>() {
        return Some(inside(numbers.values().as_ptr().addr()));
    }
    let numbers = chunk.downcast_ref::<polars_arrow::array::PrimitiveArray<i64>>()?;
    Some(inside(numbers.values().as_ptr().addr()))
}

fn main() -> Result<(), Box<dyn Error>> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [session, table] = &arguments[..] else {
        return Err("usage: theus-polars <session> <table>".into());
    };
    let segment = Session::attach(session.parse()?)?.get(table)?;
    let frame = to_polars(&segment.batches()?)?;
    println!("{} rows", frame.height());
    for column in frame.columns() {
        let place = match lies_in(&segment, column) {
            Some(true) => "in place",
            Some(false) => "copied",
            None => "of a type that is not looked at here",
        };
        let total = column.as_materialized_series().sum::<f64>();
        let total = total.map_or_else(|_| "-".to_owned(), |total| total.to_string());
        println!("{} {} {place} {total}", column.name(), column.dtype());
    }
    Ok(())
}
