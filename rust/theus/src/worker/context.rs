//! What a task is given.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use arrow::array::RecordBatch;
use arrow::datatypes::SchemaRef;
use arrow::error::ArrowError;
use serde::Deserialize;

use super::entry::{Entry, Segments};
use super::failure::{Cause, Result, TaskError, carried};
use super::output::OutputTensor;
use super::scope::Scope;
use super::state::State;
use super::value::{self, Handle, Target};
use crate::dispatch::{Control, Kind, Sender};
use crate::error::Error;
use crate::fill::{self, NewTable};
use crate::layout::tensor::{Order, TensorSpec};
use crate::output::Output;
use crate::tensor::Element;
use crate::zone::Zone;

/// So many names are told to who asks for another one.
const MAX_NAMED: usize = 20;

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
    pub(super) inputs: &'a [u8],
    pub(super) state: &'a State,
    pub(super) shared: &'a Shared,
    pub(super) scope: Scope,
}

impl Context<'_> {
    /// The inputs of the call: a struct with a field for each, or a map. Texts and bytes may be
    /// borrowed.
    ///
    /// # Errors
    /// If they are not what `T` takes. The caller gets a `NativeInputError`.
    pub fn input<'i, T: Deserialize<'i>>(&'i self) -> Result<T> {
        self.scope
            .enter(|| value::decode(self.inputs))
            .map_err(|error| {
                let reason = self
                    .scope
                    .enter(|| value::explain::<T>(self.inputs, &error));
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
        self.scope.enter(|| value::decode(value)).map_err(|error| {
            if let Some(what) = value::opaque(value) {
                return failed(format!(
                    "domain value {key:?} is no plain value: it is {what}"
                ));
            }
            let why = self.scope.enter(|| value::explain::<T>(value, &error));
            failed(format!("domain value {key:?} does not fit: {why}"))
        })
    }

    /// The names of the domain state's values, in no order.
    pub fn domain_names(&self) -> impl Iterator<Item = &str> {
        self.state.domain.keys().map(String::as_str)
    }

    /// An entry of the heavy zone in the state of the call. It is mapped when it is first looked at,
    /// and stays for later tasks.
    ///
    /// # Errors
    /// If there is none of this name: the caller gets an `EntryNotFoundError`. Or one of the machine's
    /// limits.
    pub fn heavy(&self, name: &str) -> Result<Entry> {
        if let Some(descriptor) = self.state.entries.get(name) {
            return Ok(self.shared.segments.open(descriptor, self.scope.task())?);
        }
        let mut known: Vec<&str> = self.heavy_names().collect();
        known.sort_unstable();
        known.truncate(MAX_NAMED);
        let key = name.to_owned();
        let error = TaskError::from(Error::EntryNotFound { key });
        Err(error.saying(format!("the state has no entry {name:?}; it has {known:?}")))
    }

    /// The names of all entries, in no order.
    pub fn heavy_names(&self) -> impl Iterator<Item = &str> {
        self.state.entries.keys().map(String::as_str)
    }

    /// What the caller gave as an input from its heavy zone.
    ///
    /// # Errors
    /// For what this task makes itself, which it has as it made it; for a handle that was kept from
    /// another task; or one of the machine's limits.
    pub fn open(&self, handle: &Handle) -> Result<Entry> {
        if handle.task != self.scope.task() {
            return Err(TaskError::new(
                "handle",
                "it is another task's: what it names may be gone, so have the caller pass it again",
            ));
        }
        match &handle.target {
            Target::Entry(entry) => Ok(self.shared.segments.open(entry, self.scope.task())?),
            Target::Output(_) => Err(TaskError::new(
                "output",
                "a task cannot open what it makes: it is the caller's when the task has ended",
            )),
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
        Ok(OutputTensor::new(output, self.scope.task()))
    }

    /// Writes an array into shared memory, with one copy, in row-major order, to be returned.
    ///
    /// # Errors
    /// As of [`alloc_tensor`](Self::alloc_tensor).
    #[cfg(feature = "ndarray")]
    pub fn put_tensor<T: Element, D: ndarray::Dimension>(
        &self,
        name: &str,
        array: &ndarray::ArrayView<'_, T, D>,
    ) -> crate::Result<Handle> {
        let shape: Vec<u64> = array.shape().iter().map(|&size| size as u64).collect();
        let mut tensor = self.alloc_tensor(name, &shape)?;
        for (item, value) in tensor.as_mut_slice().iter_mut().zip(array) {
            *item = *value;
        }
        Ok(tensor.finish())
    }

    /// Writes a table into shared memory, with one copy, to be returned: the caller gets a
    /// `pyarrow.Table` over it. Batches are taken one at a time. A [`TaskError`] ends the stream by `?`,
    /// as by [`check_cancelled`](Self::check_cancelled), and is what this returns.
    ///
    /// # Errors
    /// As of [`Session::put`](crate::Session::put).
    pub fn put<I>(&self, name: &str, schema: SchemaRef, batches: I) -> Result<Handle>
    where
        I: IntoIterator<Item = std::result::Result<RecordBatch, ArrowError>>,
        I::IntoIter: Send,
    {
        let mut ended = None;
        let batches = batches.into_iter().inspect(|batch| {
            if let Err(error) = batch {
                ended = carried(error);
            }
        });
        let output = fill::with_batches(batches, |batches| {
            Output::put(
                &self.shared.zone,
                NewTable::of_stream(name, schema, batches),
            )
        });
        let output = output.map_err(|error| ended.unwrap_or_else(|| error.into()))?;
        Ok(Handle::of_output(Arc::new(output), self.scope.task()))
    }

    /// Writes a line to the caller's log: Python's logger `theus.worker`.
    pub fn log(&self, level: Level, message: &str) {
        self.tell(Kind::Log, &[self.scope.task(), level as u64], message);
    }

    /// Says how far the task is, of how much if that is known and not 0, and what it does now. Each takes
    /// some microseconds, so not for each row.
    pub fn progress(&self, done: u64, total: Option<u64>, message: &str) {
        let fields = [self.scope.task(), done, total.unwrap_or(0)];
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
        self.shared.control.cancel() == self.scope.task()
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

    /// How many threads rayon's pool has: this worker's share of the cores, unless the program or
    /// `RAYON_NUM_THREADS` says otherwise.
    #[must_use]
    pub fn threads(&self) -> usize {
        rayon::current_num_threads()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_context_and_what_it_gives_may_be_shared_by_threads() {
        fn shared<T: Send + Sync>() {}

        shared::<Context<'static>>();
        shared::<Entry>();
        shared::<Handle>();
        shared::<OutputTensor<f64>>();
        shared::<TaskError>();
    }
}
