//! Owns a table, and calls tasks over it: in Rust, which this very program serves, and in Python.
//!
//! ```sh
//! PYTHONPATH=. cargo run --release --example engine -- python3 module:function
//! ```
//!
//! The Python function gets a context and the input `column`, and returns a number: `def mean(ctx, column):
//! return float(ctx.heavy["trades"][column].to_numpy().mean())`.

use std::sync::Arc;

use arrow::array::{ArrayRef, AsArray, Float64Array, Int64Array, RecordBatch};
use arrow::datatypes::Float64Type;
use rayon::prelude::*;
use serde::Deserialize;
use serde_json::json;
use theus::worker::{Registry, TaskError, serve};
use theus::{Config, Engine, Python, Session};

const ROWS: i64 = 1_000_000;

#[derive(Deserialize)]
struct Column {
    column: String,
}

fn tasks(tasks: &mut Registry) {
    tasks.register("sum", |ctx| {
        let Column { column } = ctx.input()?;
        let batches = ctx.heavy("trades")?.batches()?;
        let sums = batches.par_iter().map(|batch| {
            let items = batch
                .column_by_name(&column)?
                .as_primitive_opt::<Float64Type>()?;
            Some(items.values().iter().sum::<f64>())
        });
        sums.sum::<Option<f64>>()
            .ok_or_else(|| TaskError::new("column", format!("no column {column} of floats")))
    });
}

fn main() -> Result<(), Box<dyn std::error::Error>> {
    if std::env::var_os("THEUS_WORKER").is_some() {
        return Ok(serve(tasks)?);
    }
    let session = Session::create(Config::default())?;
    let ids: ArrayRef = Arc::new(Int64Array::from_iter_values(0..ROWS));
    #[expect(
        clippy::cast_precision_loss,
        reason = "there are fewer rows than a float tells apart"
    )]
    let price = |n: i64| n as f64 / 2.0;
    let prices: ArrayRef = Arc::new(Float64Array::from_iter_values((0..ROWS).map(price)));
    let batch = RecordBatch::try_from_iter([("id", ids), ("price", prices)])?;
    session.put("trades", batch.schema(), [Ok(batch)])?;

    let mut arguments = std::env::args().skip(1);
    let (interpreter, function) = (arguments.next(), arguments.next());
    let mut builder = Engine::builder(&session).program(std::env::current_exe()?, 2);
    if let Some(interpreter) = &interpreter {
        builder = builder.python(interpreter, 1);
    }
    let engine = builder.start()?;
    let inputs = json!({"column": "price"});
    let sum = engine.call::<f64>("sum", &inputs)?;
    if let Some(function) = &function {
        let answer = engine.call::<f64>(Python(function), &inputs)?;
        println!("{function}: {}", answer.wait()?);
    }
    println!("sum: {}", sum.wait()?);
    engine.close();
    Ok(session.close()?)
}
