//! `Calls`: a worker's waiting for frames, and the tasks that it knows how to run.

use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use pyo3::prelude::*;
use pyo3::types::PyBytes;
use theus::dispatch::{Frame, Kind, Pace};

use crate::channel::{Channel, PyFrame, duration, to_tuple};
use crate::control::Control;

/// Version, function and call of TASK frames.
type Key = [u64; 3];

/// What pickle makes of None, in protocol 5: what most tasks return that return nothing.
const PICKLED_NONE: &[u8] = b"\x80\x05N.";

/// What a worker asks for its next frame. Tasks that it has *learned* are run in here, and cross from
/// Rust to Python and back once.
#[pyclass(frozen, module = "theus._theus")]
pub(crate) struct Calls {
    channel: Py<Channel>,
    control: Py<Control>,
    /// The pickle of no inputs.
    nothing: Py<PyBytes>,
    ended: Py<PyAny>,
    flush: Py<PyAny>,
    steps: Mutex<HashMap<Key, Py<PyAny>>>,
    pace: Mutex<Pace>,
    interruptible: AtomicBool,
}

#[pymethods]
impl Calls {
    /// `ended` is called with a task's number, the nanoseconds that it took, and what came of it: an
    /// exception, what a step returned that is neither None nor bytes, or None for a task that was to
    /// stop before it began. `flush` is called after each task. A frame is polled for up to `spin_s`
    /// before this sleeps, if they have been coming at that pace.
    #[new]
    fn new(
        channel: Py<Channel>,
        control: Py<Control>,
        nothing: Py<PyBytes>,
        ended: Py<PyAny>,
        flush: Py<PyAny>,
        spin_s: f64,
    ) -> PyResult<Self> {
        Ok(Self {
            channel,
            control,
            nothing,
            ended,
            flush,
            steps: Mutex::default(),
            pace: Mutex::new(Pace::new(duration("spin_s", spin_s)?)),
            interruptible: AtomicBool::new(false),
        })
    }

    /// Have tasks of this version, function and call run by `step`, which is given their inputs, a
    /// pickle or None for no inputs, and returns the pickle of the result or None for None.
    fn learn(&self, version: u64, function: u64, call: u64, step: Py<PyAny>) {
        lock(&self.steps).insert([version, function, call], step);
    }

    /// Forget what was learned.
    fn forget(&self) {
        lock(&self.steps).clear();
    }

    /// Whether a task runs that may be interrupted.
    #[getter]
    fn interruptible(&self) -> bool {
        self.interruptible.load(Ordering::Relaxed)
    }

    #[setter]
    fn set_interruptible(&self, interruptible: bool) {
        self.interruptible.store(interruptible, Ordering::Relaxed);
    }

    /// Run tasks until a frame comes that is for others. Waits without the GIL.
    fn next<'py>(&self, py: Python<'py>) -> PyResult<PyFrame<'py>> {
        let channel = self.channel.get();
        loop {
            let since = Instant::now();
            let spin = lock(&self.pace).spin();
            let known = channel.next(py, spin, |frame| self.known(py, frame))?;
            lock(&self.pace).note(since);
            match known {
                Known::Task(task, step, inputs) => self.run(py, task, &step, inputs)?,
                Known::Other(frame) => return Ok(frame),
            }
        }
    }
}

/// What a frame is to a worker.
enum Known<'py> {
    /// A task's number, what runs it, and its inputs if it has some.
    Task(u64, Py<PyAny>, Option<Bound<'py, PyBytes>>),
    Other(PyFrame<'py>),
}

impl Calls {
    fn known<'py>(&self, py: Python<'py>, frame: &Frame<'_>) -> PyResult<Known<'py>> {
        let mut fields = frame.fields();
        if frame.kind() == Kind::Task
            && let (Some(task), Some(version), Some(function), Some(call)) =
                (fields.next(), fields.next(), fields.next(), fields.next())
            && let Some(step) = lock(&self.steps).get(&[version, function, call])
            && let Some(inputs) = frame.attachments().next().filter(|data| !data.is_empty())
        {
            let inputs = (inputs != self.nothing.as_bytes(py)).then(|| PyBytes::new(py, inputs));
            return Ok(Known::Task(task, step.clone_ref(py), inputs));
        }
        to_tuple(py, frame).map(Known::Other)
    }

    fn run(
        &self,
        py: Python<'_>,
        task: u64,
        step: &Py<PyAny>,
        inputs: Option<Bound<'_, PyBytes>>,
    ) -> PyResult<()> {
        let control = &self.control.get().0;
        control.set_running(task);
        let since = Instant::now();
        self.set_interruptible(true);
        // A task that was taken back runs elsewhere.
        let stopped = control.cancel() == task || control.recalled() >= task;
        let result = if stopped {
            Ok(py.None().into_bound(py))
        } else {
            step.bind(py).call1((inputs,))
        };
        self.set_interruptible(false);
        let took = u64::try_from(since.elapsed().as_nanos()).unwrap_or(u64::MAX);
        let plain = match &result {
            _ if stopped => None,
            Ok(value) if value.is_none() => Some(PICKLED_NONE),
            Ok(value) => value.cast::<PyBytes>().ok().map(PyBytesMethods::as_bytes),
            Err(_) => None,
        };
        if let Some(data) = plain {
            self.channel.get().send_result(py, task, took, data)?;
        } else {
            let value = match result {
                Ok(value) => value.unbind(),
                Err(error) => error.into_value(py).into_any(),
            };
            self.ended.bind(py).call1((task, took, value))?;
        }
        control.set_running(0);
        self.flush.bind(py).call0()?;
        Ok(())
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

pub(crate) fn register(module: &Bound<'_, PyModule>) -> PyResult<()> {
    module.add_class::<Calls>()
}
