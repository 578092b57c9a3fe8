//! `Task`: a caller's hold on one task; `LoopQueue`: ended tasks on their way to an event loop.

use std::os::fd::{AsFd, AsRawFd, RawFd};
use std::sync::Arc;
use std::time::Duration;

use pyo3::prelude::*;
use pyo3::types::{PyBytes, PyList, PyTuple};
use theus::dispatch::{
    self, Completion, Dispatcher, Failure, Keepalive, Message, Outcome, Phase, ProgramId,
    Subscriber,
};

use crate::dispatcher::wait;
use crate::error::{of_core, to_py};
use crate::segment::Segment;
use crate::transient::Transient;

/// One task, until its outcome is taken.
#[pyclass(frozen, module = "theus._theus")]
pub(crate) struct Task {
    // Keeps the workers for as long as somebody may wait.
    dispatcher: Arc<Dispatcher>,
    program: ProgramId,
    completion: Arc<Completion>,
}

impl Task {
    pub(crate) fn new(
        dispatcher: &Arc<Dispatcher>,
        program: ProgramId,
        completion: Arc<Completion>,
    ) -> Self {
        Self {
            dispatcher: Arc::clone(dispatcher),
            program,
            completion,
        }
    }
}

#[pymethods]
impl Task {
    /// Whether the outcome is there. In a forked child a task of the parent's has one: an error, unless
    /// it had ended.
    #[getter]
    fn done(&self) -> bool {
        self.foreign() || self.completion.is_done()
    }

    /// Whether a worker has it, and no outcome is there.
    #[getter]
    fn running(&self) -> bool {
        !self.foreign() && self.completion.phase() == Phase::Sent
    }

    /// Whether it is the parent's, and this process a forked child: nothing is to be waited for.
    #[getter]
    fn foreign(&self) -> bool {
        self.dispatcher.is_foreign()
    }

    /// Wait without the GIL for up to `timeout` seconds, polling first if the task should be short;
    /// whether the outcome is there.
    #[pyo3(signature = (timeout = None))]
    fn wait(&self, py: Python<'_>, timeout: Option<f64>) -> PyResult<bool> {
        if self.foreign() || self.completion.is_done() {
            return Ok(true);
        }
        let timeout = timeout.and_then(seconds);
        if timeout != Some(Duration::ZERO) {
            py.detach(|| self.dispatcher.poll(self.program, &self.completion));
        }
        wait(py, timeout, |left| self.completion.wait(left))
    }

    /// Cancel it, unless it has ended: one that runs is stopped, unless `only_queued`. Whether this
    /// call did.
    fn cancel(&self, only_queued: bool) -> bool {
        self.dispatcher
            .cancel(self.program, &self.completion, only_queued)
    }

    /// Have an event loop told of the outcome, by this number.
    fn tell_loop(&self, queue: &LoopQueue, token: u64) {
        let subscriber = Subscriber::Loop(Arc::clone(&queue.0), token);
        self.completion.subscribe(subscriber);
    }

    /// Have an event tell of the outcome, by this number.
    fn tell_events(&self, token: u64) {
        if self.foreign() {
            return;
        }
        let events = Arc::clone(self.dispatcher.events());
        self.completion.subscribe(Subscriber::Events(events, token));
    }

    /// (done, total or None, message) of what the task last reported; None if it never did.
    #[getter]
    fn progress(&self) -> Option<(u64, Option<u64>, String)> {
        if self.foreign() {
            return None;
        }
        let progress = self.completion.progress()?;
        Some((progress.done, progress.total, progress.message))
    }

    /// Whether it was cancelled.
    #[getter]
    fn cancelled(&self) -> bool {
        !self.foreign() && self.completion.is_cancelled()
    }

    /// The outcome, until it is discarded; None before and after. (data, parts, outputs, keepalive) if
    /// the task returned; (data, parts, outputs, keepalive, cause, traceback) if it raised;
    /// (exception,) if it was given up; () if it was cancelled.
    fn outcome<'py>(&self, py: Python<'py>) -> PyResult<Option<Bound<'py, PyTuple>>> {
        let found = if self.foreign() {
            let lost = || (Outcome::Failed(Arc::new(theus::Error::ForkedTask)), None);
            Some(self.completion.try_outcome().unwrap_or_else(lost))
        } else {
            self.completion.outcome()
        };
        let Some((outcome, keepalive)) = found else {
            return Ok(None);
        };
        let keepalive = || object(py, keepalive.as_ref());
        let tuple = match outcome {
            Outcome::Returned(message) => {
                let (data, parts, outputs) = pieces(py, message)?;
                (data, parts, outputs, keepalive()).into_pyobject(py)?
            }
            Outcome::Raised(Failure {
                cause,
                message,
                traceback,
            }) => {
                let (data, parts, outputs) = pieces(py, message)?;
                let traceback = PyBytes::new(py, &traceback);
                (data, parts, outputs, keepalive(), cause, traceback).into_pyobject(py)?
            }
            Outcome::Failed(error) => (of_core(py, &error).into_value(py),).into_pyobject(py)?,
            Outcome::Foreign(exception) => (object(py, Some(&exception)),).into_pyobject(py)?,
            Outcome::Cancelled => PyTuple::empty(py),
        };
        Ok(Some(tuple))
    }

    /// Let go of the outcome, which was loaded.
    fn discard(&self) {
        if !self.foreign() {
            self.completion.discard();
        }
    }
}

/// Data, parts and outputs of a message.
type Pieces<'py> = (Bound<'py, PyBytes>, Option<Transient>, Bound<'py, PyList>);

fn pieces(py: Python<'_>, message: Message) -> PyResult<Pieces<'_>> {
    let outputs = message.outputs.into_iter().map(Segment::kept_by_views);
    let outputs: Vec<_> = outputs.map(|it| Py::new(py, it)).collect::<PyResult<_>>()?;
    Ok((
        PyBytes::new(py, &message.data),
        message.parts.map(Transient),
        PyList::new(py, outputs)?,
    ))
}

/// The Python object that was given to be kept.
pub(crate) fn object(py: Python<'_>, keepalive: Option<&Keepalive>) -> Py<PyAny> {
    let object = keepalive.and_then(|it| it.downcast_ref::<Py<PyAny>>());
    object.map_or_else(|| py.None(), |object| object.clone_ref(py))
}

/// A message of these bytes and parts.
pub(crate) fn message(data: &[u8], parts: Option<&Transient>) -> Message {
    Message {
        data: data.into(),
        parts: parts.map(|parts| Arc::clone(&parts.0)),
        outputs: Vec::new(),
    }
}

/// A time of the caller's: none if it is infinite, and no time if it is over already.
pub(crate) fn seconds(seconds: f64) -> Option<Duration> {
    if seconds == f64::INFINITY {
        return None;
    }
    Some(Duration::try_from_secs_f64(seconds.max(0.0)).unwrap_or(Duration::MAX))
}

/// The tasks that have ended for an event loop.
#[pyclass(frozen, module = "theus._theus")]
pub(crate) struct LoopQueue(Arc<dispatch::LoopQueue>);

#[pymethods]
impl LoopQueue {
    #[new]
    fn new(py: Python<'_>) -> PyResult<Self> {
        let queue = dispatch::LoopQueue::new().map_err(|error| to_py(py, error))?;
        Ok(Self(Arc::new(queue)))
    }

    /// A descriptor that is readable while there are some.
    fn fileno(&self) -> RawFd {
        self.0.as_fd().as_raw_fd()
    }

    /// Take the numbers of those that have ended.
    fn take(&self) -> Vec<u64> {
        self.0.take()
    }
}

pub(crate) fn register(module: &Bound<'_, PyModule>) -> PyResult<()> {
    module.add_class::<Task>()?;
    module.add_class::<LoopQueue>()
}
