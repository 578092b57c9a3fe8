//! Owns a session, for other processes to read: Python's by `theus.open("<session>/matrix")`.
//!
//! ```sh
//! cargo run --release --example owner
//! ```
//!
//! It prints the session's id, and ends with its standard input, when nothing of the session stays.

use std::io::{self, Read};
use std::sync::Arc;

use arrow::array::{ArrayRef, Float64Array, Int64Array, RecordBatch};
use rayon::prelude::*;
use theus::{Config, Session};

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let session = Session::create(Config::default())?;

    let mut matrix = session.alloc_tensor::<f32>("matrix", &[1000, 1000])?;
    let items = matrix.as_mut_slice().par_iter_mut().enumerate();
    items.for_each(|(n, item)| *item = if n % 1001 == 0 { 1.0 } else { 0.0 });
    matrix.publish()?;

    // As many batches as there are days, each made when it is written.
    let day = |number: i64| {
        let ids: ArrayRef = Arc::new(Int64Array::from_iter_values(
            number * 100..(number + 1) * 100,
        ));
        let price = |n| f64::from(n) / 2.0;
        let prices: ArrayRef = Arc::new(Float64Array::from_iter_values((0..100).map(price)));
        RecordBatch::try_from_iter([("id", ids), ("price", prices)])
    };
    session.put("trades", day(0)?.schema(), (0..250).map(day))?;

    println!("{}", session.id());
    io::stdin().read_to_end(&mut Vec::new())?;
    Ok(session.close()?)
}
