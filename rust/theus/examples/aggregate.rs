//! Sums the numeric columns of a table that another process, Python's for example, has in its session:
//! by rayon, over the very bytes.
//!
//! ```sh
//! cargo run --release --example aggregate -- <session> <table>
//! ```

use arrow::array::{Array, RecordBatch, cast::AsArray};
use arrow::compute::{cast, sum};
use arrow::datatypes::{DataType, Float64Type};
use rayon::prelude::*;
use theus::{Result, Session, SessionId};

/// The name and the sum of each numeric column.
///
/// # Errors
/// If the session has no such table.
pub(crate) fn sums(session: SessionId, table: &str) -> Result<Vec<(String, f64)>> {
    let segment = Session::attach(session)?.get(table)?;
    let batches = segment.batches()?;
    let schema = segment.schema()?;
    let numeric = schema.fields().iter().enumerate();
    let numeric = numeric.filter(|(_, field)| field.data_type().is_numeric());
    let sums = numeric.map(|(place, field)| {
        let total: f64 = batches.par_iter().map(|batch| sum_of(batch, place)).sum();
        (field.name().clone(), total)
    });
    Ok(sums.collect())
}

/// The sum of a part of a column is found in pieces of this many rows, so that a single batch keeps
/// all threads busy.
const ROWS: usize = 1 << 16;

fn sum_of(batch: &RecordBatch, column: usize) -> f64 {
    let column = batch.column(column);
    let starts: Vec<usize> = (0..column.len()).step_by(ROWS).collect();
    let pieces = starts.into_par_iter().map(|start| {
        let piece = column.slice(start, ROWS.min(column.len() - start));
        let piece = cast(&piece, &DataType::Float64);
        piece.map_or(f64::NAN, |piece| {
            sum(piece.as_primitive::<Float64Type>()).unwrap_or(0.0)
        })
    });
    pieces.sum()
}

fn main() -> std::result::Result<(), Box<dyn std::error::Error>> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [session, table] = &arguments[..] else {
        return Err("usage: aggregate <session> <table>".into());
    };
    for (name, total) in sums(session.parse()?, table)? {
        println!("{name} {total}");
    }
    Ok(())
}
