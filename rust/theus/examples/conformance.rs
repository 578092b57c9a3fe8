//! The worker in Rust of the conformance suite, `tests/conformance`: tasks of the names and meanings
//! that every implementation has there.

use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;
use std::path::PathBuf;
use std::process;
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use arrow::array::{ArrayRef, Int64Array, RecordBatch};
use rayon::prelude::*;
use serde::Deserialize;
use theus::worker::{Context, Handle, Level, Registry, Result, TaskError, Value, serve};

#[derive(Deserialize)]
struct One<T> {
    value: T,
}

#[derive(Deserialize)]
struct Item {
    item: i64,
}

#[derive(Deserialize)]
struct Column {
    column: String,
}

#[derive(Deserialize)]
struct Count {
    count: u64,
}

#[derive(Deserialize)]
struct Array {
    array: Handle,
}

#[derive(Deserialize)]
struct Message<'a> {
    message: &'a str,
}

#[derive(Deserialize)]
struct Code {
    code: i32,
}

#[derive(Deserialize)]
struct Sleep {
    seconds: f64,
    /// Whether it looks if it is to stop.
    polite: bool,
}

fn total(items: impl Iterator<Item = f64>) -> f64 {
    items.sum()
}

fn values(tasks: &mut Registry) {
    tasks.register("nothing", |_| Ok(()));
    tasks.register("echo", |ctx| Ok(ctx.input::<One<Value>>()?.value));
    tasks.register("double", |ctx| Ok(2 * ctx.input::<Item>()?.item));
    tasks.register("domain", |ctx| {
        let One { value } = ctx.input::<One<String>>()?;
        ctx.domain::<Value>(&value)
    });
    tasks.register("entries", |ctx| {
        let mut names: Vec<String> = ctx.heavy_names().map(str::to_owned).collect();
        names.sort();
        Ok(names)
    });
    tasks.register("pid", |_| Ok(process::id()));
    tasks.register("threads", |ctx| {
        Ok((ctx.threads(), rayon::current_num_threads()))
    });
}

fn entries(tasks: &mut Registry) {
    tasks.register("sum", |ctx| {
        let Column { column } = ctx.input()?;
        let items = ctx.heavy(&column)?.tensor::<f64>()?;
        Ok(total(items.view().iter().copied()))
    });
    tasks.register("sum_of", |ctx| {
        let Array { array } = ctx.input()?;
        let items = ctx.open(&array)?.tensor::<f64>()?;
        Ok(total(items.view().iter().copied()))
    });
    tasks.register("rows_of", |ctx| {
        let Array { array } = ctx.input()?;
        let table = ctx.open(&array)?;
        let rows: usize = table.batches()?.iter().map(RecordBatch::num_rows).sum();
        let schema = table.schema()?;
        let names = schema.fields().iter().map(|field| field.name().clone());
        Ok((rows, names.collect::<Vec<_>>()))
    });
    tasks.register("same", |ctx| Ok(ctx.input::<Array>()?.array));
    tasks.register("squares", |ctx| {
        let Count { count } = ctx.input()?;
        let mut squares = ctx.alloc_tensor::<u64>("squares", &[count])?;
        let items = squares.as_mut_slice().par_iter_mut().enumerate();
        items.for_each(|(n, item)| *item = (n * n) as u64);
        Ok(squares.finish())
    });
    tasks.register("numbers", |ctx| {
        let Count { count } = ctx.input()?;
        let last = i64::try_from(count)?;
        let numbers: ArrayRef = Arc::new(Int64Array::from_iter_values(0..last));
        let batch = RecordBatch::try_from_iter([("n", numbers)])?;
        let table = ctx.put("numbers", batch.schema(), [Ok(batch)])?;
        Ok(BTreeMap::from([("table", table)]))
    });
    tasks.register("forgets", |ctx| {
        let Count { count } = ctx.input()?;
        ctx.alloc_tensor::<u8>("forgotten", &[count])?;
        Ok(())
    });
}

fn sleep(ctx: &Context<'_>) -> Result<()> {
    let Sleep { seconds, polite } = ctx.input()?;
    let until = Instant::now() + Duration::from_secs_f64(seconds);
    while Instant::now() < until {
        thread::sleep(Duration::from_millis(1));
        if polite {
            ctx.check_cancelled()?;
        }
    }
    Ok(())
}

fn ends(tasks: &mut Registry) {
    tasks.register("fail", |ctx| -> Result<()> {
        Err(TaskError::new(
            "Failed",
            ctx.input::<Message<'_>>()?.message,
        ))
    });
    tasks.register("panic", |ctx| -> Result<()> {
        panic!("{}", ctx.input::<Message<'_>>()?.message);
    });
    tasks.register("panic_in_parallel", |ctx| -> Result<()> {
        let message = ctx.input::<Message<'_>>()?.message;
        (0..100)
            .into_par_iter()
            .for_each(|n| assert!(n != 50, "{message}"));
        Ok(())
    });
    tasks.register("unsendable", |_| {
        Ok(PathBuf::from(OsStr::from_bytes(b"no UTF-8: \xff")))
    });
    tasks.register("kill", |_| -> Result<()> {
        // SAFETY: it ends this process, which is what is asked for.
        #[expect(unsafe_code, reason = "there is no other way to die of a signal")]
        unsafe {
            libc::raise(libc::SIGKILL)
        };
        Ok(())
    });
    tasks.register("exit", |ctx| -> Result<()> {
        process::exit(ctx.input::<Code>()?.code);
    });
    tasks.register("abort", |_| -> Result<()> { process::abort() });
    tasks.register("sleep", sleep);
}

fn tells(tasks: &mut Registry) {
    tasks.register("log", |ctx| {
        let Message { message } = ctx.input()?;
        for level in [Level::Debug, Level::Info, Level::Warning, Level::Error] {
            ctx.log(level, message);
        }
        Ok(())
    });
    tasks.register("progress", |ctx| {
        let Count { count } = ctx.input()?;
        for done in 1..=count {
            ctx.progress(done, Some(count), "counting");
        }
        ctx.progress(count, None, "");
        Ok(count)
    });
}

fn main() -> theus::Result<()> {
    serve(|tasks| {
        values(tasks);
        entries(tasks);
        ends(tasks);
        tells(tasks);
    })
}
