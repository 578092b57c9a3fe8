//! Tasks in Rust for a Theus engine, which starts this program:
//!
//! ```python
//! engine.native_worker("target/release/native-worker")
//! await engine.execute(theus.native("tasks.sum"), column="price")
//! ```

mod query1;

use rayon::prelude::*;
use serde::Deserialize;
use theus::worker::{Context, Handle, Result, TaskError, serve};

/// The inputs of a call, by their names.
#[derive(Deserialize)]
struct Column {
    column: String,
}

/// The sum of an array of the heavy zone, read in place.
fn sum(ctx: &Context<'_>) -> Result<f64> {
    let Column { column } = ctx.input()?;
    let prices = ctx.heavy(&column)?.tensor::<f64>()?;
    Ok(prices.view().iter().sum())
}

/// An array of square roots, made in shared memory: the caller gets it without a copy.
fn roots(ctx: &Context<'_>) -> Result<Handle> {
    let Column { column } = ctx.input()?;
    let prices = ctx.heavy(&column)?.tensor::<f64>()?;
    let mut roots = ctx.alloc_tensor::<f64>("roots", prices.shape())?;
    let items = prices.as_slice();
    let items = items.ok_or_else(|| TaskError::new("roots", "it takes arrays in C order"))?;
    let pairs = roots.as_mut_slice().par_iter_mut().zip(items);
    pairs.for_each(|(root, price)| *root = price.sqrt());
    Ok(roots.finish())
}

fn main() -> theus::Result<()> {
    serve(|tasks| {
        tasks.register("tasks.sum", sum);
        tasks.register("tasks.roots", roots);
        tasks.register("tasks.query1", query1::query1);
    })
}
