//! Programs whose tasks an engine calls beside those of its Python workers.
//!
//! A worker is an executable that registers functions by name and [serves](serve) them:
//!
//! ```no_run
//! use rayon::prelude::*;
//! use serde::Deserialize;
//!
//! #[derive(Deserialize)]
//! struct Input {
//!     column: String,
//! }
//!
//! fn main() -> theus::Result<()> {
//!     theus::worker::serve(|tasks| {
//!         tasks.register("tasks.sum", |ctx| {
//!             let Input { column } = ctx.input()?;
//!             let prices = ctx.heavy(&column)?.tensor::<f64>()?;
//!             Ok(prices.view().iter().sum::<f64>())
//!         });
//!         tasks.register("tasks.squares", |ctx| {
//!             let mut squares = ctx.alloc_tensor::<u64>("squares", &[1000])?;
//!             let items = squares.as_mut_slice().par_iter_mut().enumerate();
//!             items.for_each(|(n, item)| *item = (n * n) as u64);
//!             Ok(squares.finish())
//!         });
//!     })
//! }
//! ```
//!
//! The engine starts it, `engine.native_worker("target/release/tasks", count=2)`, and calls
//! `await engine.execute(theus.native("tasks.sum"), column="price")`.
//!
//! * **Inputs and results** are plain values: whatever `serde` makes numbers, strings, [`Bytes`], lists and
//!   maps of, or any [`Value`]. Entries of the heavy zone go in and out as [`Handle`]s, whatever their size.
//! * **A panic** ends the task, not the worker. What ends the process fails the one task that ran; the
//!   engine starts another process.
//! * **A task that is to stop** is [told](Context::is_cancelled), and killed with its process if it does
//!   not end within 100 ms.
//! * **Threads:** rayon's pool has as many as the worker's share of the cores.
//! * **The owner's end:** a thread that watches the owner's process removes what its session left and
//!   ends this one, whatever a task is doing.
//!
//! The protocol is `schemas/frames.json`; `docs/worker-protocol.md` tells it step by step.

mod context;
mod descriptor;
mod entry;
mod failure;
mod launch;
mod narrow;
mod output;
mod panics;
mod registry;
mod scope;
mod server;
mod state;
mod task;
mod value;

pub use context::{Context, Level};
pub use entry::Entry;
pub use failure::{Result, TaskError};
pub use output::OutputTensor;
pub use registry::Registry;
pub use serde_bytes::ByteBuf as Bytes;
pub use server::serve;
pub use value::{Handle, Value};
