//! What a task is given.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use arrow::array::RecordBatch;
use arrow::datatypes::SchemaRef;
use arrow::error::ArrowError;
use serde::Deserialize;

use super::entry::{Entry, Segments};
use super::failure::{Cause, Result, TaskError};
use super::output::{Made, OutputTensor, Referred};
use super::state::State;
use super::value::{self, Handle, Target};
use crate::dispatch::{Control, Kind, Sender};
use crate::error::Error;
use crate::fill::NewTable;
use crate::layout::table::{TableKind, TableOptions, TableSpec};
use crate::layout::tensor::{Order, TensorSpec};
use crate::output::Output;
use crate::tensor::Element;
use crate::zone::Zone;

/// How much of a stream of batches is planned before it is written.
const HOLD_BYTES: usize = 64 << 20;

/// How much a line of the log matters: as Python's `logging` counts it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
#[expect(missing_docs, reason = "the names say it")]
pub enum Level {
    Debug = 10,
    Info = 20,
    Warning = 30,
    Error = 40,
}

/// What tasks of one worker have in common.
#[derive(Debug)]
pub(super) struct Shared {
    pub(super) sender: Mutex<Sender>,
    pub(super) control: Control,
    pub(super) segments: Segments,
    pub(super) zone: Zone,
    pub(super) threads: usize,
}

impl Shared {
    pub(super) fn sender(&self) -> MutexGuard<'_, Sender> {
        self.sender.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// What a task is given: its inputs, the state it was called in, and ways to answer. All of it may be
/// used by several threads at once.
#[derive(Debug)]
pub struct Context<'a> {
    pub(super) task: u64,
    pub(super) inputs: &'a [u8],
    pub(super) state: &'a State,
    pub(super) shared: &'a Shared,
    pub(super) referred: Referred,
}

impl Context<'_> {
    /// The inputs of the call: a struct with a field for each, or a map. Texts and bytes may be
    /// borrowed.
    ///
    /// # Errors
    /// If they are not what `T` takes. The caller gets a `NativeInputError`.
    pub fn input<'i, T: Deserialize<'i>>(&'i self) -> Result<T> {
        value::decode(self.inputs).map_err(|error| {
            let reason = format!("the inputs do not fit: {error}");
            TaskError::of(Cause::Inputs, std::any::type_name::<T>(), reason)
        })
    }

    /// A value of the domain state.
    ///
    /// # Errors
    /// If there is none of this name, it is no plain value, or not a `T`.
    pub fn domain<'i, T: Deserialize<'i>>(&'i self, key: &str) -> Result<T> {
        let failed = |reason: String| TaskError::new("domain", reason);
        let value = self.state.domain.get(key);
        let value = value.ok_or_else(|| failed(format!("the domain has no {key:?}")))?;
        value::decode(value).map_err(|error| match value::opaque(value) {
            Some(what) => failed(format!(
                "domain value {key:?} is no plain value: it is {what}"
            )),
            None => failed(format!("domain value {key:?} does not fit: {error}")),
        })
    }

    /// An entry of the heavy zone in the state of the call. It is mapped when it is first looked at,
    /// and stays for later tasks.
    ///
    /// # Errors
    /// [`Error::EntryNotFound`], or one of the machine's limits.
    pub fn heavy(&self, name: &str) -> crate::Result<Entry> {
        let found = self.state.entries.get(name);
        let descriptor = found.ok_or_else(|| Error::EntryNotFound {
            key: name.to_owned(),
        })?;
        self.shared.segments.open(descriptor)
    }

    /// The names of all entries, in no order.
    pub fn heavy_names(&self) -> impl Iterator<Item = &str> {
        self.state.entries.keys().map(String::as_str)
    }

    /// What the caller gave as an input from its heavy zone.
    ///
    /// # Errors
    /// [`Error::Unpublished`] for what this task makes itself, or one of the machine's limits.
    pub fn open(&self, handle: &Handle) -> crate::Result<Entry> {
        match &handle.0 {
            Target::Entry(descriptor) => self.shared.segments.open(descriptor),
            Target::Output(_) => Err(Error::Unpublished {
                key: "an output of this task".to_owned(),
            }),
        }
    }

    /// Reserves a tensor of zeros in row-major order, to be filled and returned. Its name is for
    /// messages, and this task's alone.
    ///
    /// # Errors
    /// [`Error::HeavyZoneFull`], [`Error::ShapeOverflow`], [`Error::KeyTooLong`] or [`Error::Os`].
    pub fn alloc_tensor<T: Element>(
        &self,
        name: &str,
        shape: &[u64],
    ) -> crate::Result<OutputTensor<T>> {
        let spec = TensorSpec::dense(name, T::TYPE, shape, Order::C)?;
        let output = Output::create(&self.shared.zone, spec, None)?;
        Ok(OutputTensor::new(Made::new(output, &self.referred)))
    }

    /// Writes a table into shared memory, with one copy, to be returned: the caller gets a
    /// `pyarrow.Table` over it. Batches are taken one at a time.
    ///
    /// # Errors
    /// As of [`Session::put`](crate::Session::put).
    pub fn put<I>(&self, name: &str, schema: SchemaRef, batches: I) -> crate::Result<Handle>
    where
        I: IntoIterator<Item = std::result::Result<RecordBatch, ArrowError>>,
        I::IntoIter: Send,
    {
        let table = NewTable {
            spec: TableSpec {
                key: name.to_owned(),
                kind: TableKind::Table,
            },
            schema,
            batches: Box::new(batches.into_iter()),
            options: TableOptions::default(),
            hold: HOLD_BYTES,
        };
        let output = Output::put(&self.shared.zone, table)?;
        let made = Made::new(output, &self.referred);
        Ok(Handle(Target::Output(Arc::new(made))))
    }

    /// Writes a line to the caller's log: Python's logger `theus.worker`.
    pub fn log(&self, level: Level, message: &str) {
        self.tell(Kind::Log, &[self.task, level as u64], message);
    }

    /// Says how far the task is, of how much if that is known, and what it does now. Each takes some
    /// microseconds, so not for each row.
    pub fn progress(&self, done: u64, total: Option<u64>, message: &str) {
        let fields = [self.task, done, total.unwrap_or(0)];
        self.tell(Kind::Progress, &fields, message);
    }

    fn tell(&self, kind: Kind, fields: &[u64], message: &str) {
        let mut sender = self.shared.sender();
        // An owner that is gone ends this process soon; there is nobody to tell of it.
        let _ = sender.send_aside(kind, fields, &[message.as_bytes()]);
    }

    /// Whether the task is to stop: its caller cancelled it, or its time is over. It is killed with its
    /// process 100 ms after that.
    #[must_use]
    pub fn is_cancelled(&self) -> bool {
        self.shared.control.cancel() == self.task
    }

    /// An error if the task is to stop, for `?` between two steps.
    ///
    /// # Errors
    /// If [it is cancelled](Self::is_cancelled). The caller has stopped waiting for it.
    pub fn check_cancelled(&self) -> Result<()> {
        if self.is_cancelled() {
            return Err(TaskError::stopped());
        }
        Ok(())
    }

    /// How many threads the task may use: this worker's share of the cores, and the size of rayon's
    /// pool.
    #[must_use]
    pub fn threads(&self) -> usize {
        self.shared.threads
    }
}
