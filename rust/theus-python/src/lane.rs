//! `Lane`: a task of a function that a waiting worker knows, sent and answered in one step.

use std::sync::{Mutex, TryLockError};
use std::time::Duration;

use pyo3::IntoPyObjectExt;
use pyo3::intern;
use pyo3::prelude::*;
use pyo3::sync::PyOnceLock;
use pyo3::types::{PyAny, PyBytes, PyDict, PyList, PySet, PyString};
use theus::dispatch::{Frame, Kind};

use crate::channel::{Call, Channel, Exchange, duration, to_tuple};

/// What a call of one function in one state needs, for as long as nothing else happens.
///
/// Python's signal handlers see a call as one step. Other threads see the worker's queue, which has
/// the lane's task while that is sent and not answered.
#[pyclass(frozen, module = "theus._theus")]
pub(crate) struct Lane {
    channel: Py<Channel>,
    queue: Py<PyAny>,
    pending: Py<PyAny>,
    busy: Py<PySet>,
    most_busy: isize,
    numbers: Py<PyAny>,
    fields: (u64, u64, u64),
    /// None if the function has no code here.
    watched: Option<Watched>,
    /// Makes an object of a result's bytes.
    loads: Py<PyAny>,
    /// The bytes of None.
    none: Py<PyBytes>,
    failed: Py<PyAny>,
    limit: Duration,
    /// None once a call was not answered with a result in time.
    task: Mutex<Option<Py<PyAny>>>,
    epoch: u64,
}

/// What has to be as it was for a Python function to do the same.
#[derive(FromPyObject)]
struct Watched {
    function: Py<PyAny>,
    code: Py<PyAny>,
    /// The globals that the function reads: where, under which name, and what.
    bindings: Vec<(Py<PyDict>, Py<PyString>, Py<PyAny>)>,
    /// The modules it leans on, and how they were found.
    specs: Vec<(Py<PyString>, Py<PyAny>)>,
    path: Py<PyList>,
}

#[pymethods]
impl Lane {
    /// `channel` and `queue` are the worker's. No task may be in `pending`, and not more than
    /// `most_busy` workers be in `busy`. The task, which stands in the queue meanwhile, gets the next
    /// of `numbers` and the state for each call, and keeps the latter no longer; `fields` are the
    /// version, function and call of its frame. The version has to be as it was, and what `watched`
    /// says of a Python function: its code, globals and modules, and `sys.path`. `loads` makes an object
    /// of a result, whose bytes are `none` for None. `failed` is called with the task and its ERROR
    /// frame, or what came before its outcome, and what it returns is the call's. An outcome is polled
    /// for up to `limit_s`. `epoch` is the channel's of the moment in which the worker was seen to know
    /// the state and the function.
    #[new]
    #[expect(
        clippy::too_many_arguments,
        reason = "all of it has to be the same for a call"
    )]
    fn new(
        py: Python<'_>,
        channel: Py<Channel>,
        queue: Py<PyAny>,
        pending: Py<PyAny>,
        busy: Py<PySet>,
        most_busy: isize,
        numbers: Py<PyAny>,
        fields: (u64, u64, u64),
        watched: Option<Watched>,
        loads: Py<PyAny>,
        none: Py<PyBytes>,
        failed: Py<PyAny>,
        limit_s: f64,
        task: Py<PyAny>,
        epoch: u64,
    ) -> PyResult<Self> {
        task.setattr(py, intern!(py, "state"), py.None())?;
        Ok(Self {
            channel,
            queue,
            pending,
            busy,
            most_busy,
            numbers,
            fields,
            watched,
            loads,
            none,
            failed,
            limit: duration("limit_s", limit_s)?,
            task: Mutex::new(Some(task)),
            epoch,
        })
    }

    /// Run the function in a worker that polls, and poll for the outcome without the GIL: the result.
    ///
    /// `MISS` if nothing was sent, since something is not as it was. The task if it is sent and its
    /// outcome comes as that of others; the lane is closed then.
    fn call<'py>(
        &self,
        py: Python<'py>,
        state: &Bound<'py, PyAny>,
        inputs: &Bound<'py, PyBytes>,
    ) -> PyResult<Bound<'py, PyAny>> {
        // Another thread that has the lane waits for the GIL: it must not be waited for.
        let mut place = match self.task.try_lock() {
            Ok(place) => place,
            Err(TryLockError::Poisoned(poisoned)) => poisoned.into_inner(),
            Err(TryLockError::WouldBlock) => return miss(py),
        };
        let Some(task) = place.as_ref().map(|task| task.bind(py).clone()) else {
            return miss(py);
        };
        let (version, known, call) = self.fields;
        if state.getattr(intern!(py, "version"))?.extract::<u64>()? != version
            || self.pending.bind(py).is_truthy()?
            || self.busy.bind(py).len().cast_signed() > self.most_busy
            || !self.is_unchanged(py)?
        {
            return miss(py);
        }
        let number = self.numbers.call_method0(py, intern!(py, "__next__"))?;
        task.setattr(intern!(py, "number"), &number)?;
        task.setattr(intern!(py, "state"), state)?;
        let fields = [number.extract(py)?, version, known, call];
        let call = Call {
            queue: self.queue.bind(py),
            task: &task,
            fields,
            inputs: inputs.as_bytes(),
            limit: self.limit,
            epoch: self.epoch,
        };
        let channel = self.channel.get();
        let exchanged = channel.exchange(py, &call, |frame| self.answer(py, frame));
        let waits = matches!(
            exchanged,
            Ok(Exchange::Sent | Exchange::Answered(Answer::Early(_)))
        );
        if !waits {
            // It would keep the entries of the state after they were freed.
            task.setattr(intern!(py, "state"), py.None())?;
        }
        match exchanged? {
            Exchange::Busy => miss(py),
            Exchange::Sent => {
                *place = None;
                Ok(task)
            }
            Exchange::Answered(Answer::Result(value)) => Ok(value),
            Exchange::Answered(Answer::Error(frame) | Answer::Early(frame)) => {
                *place = None;
                drop(place);
                self.failed.bind(py).call1((task, frame))
            }
        }
    }
}

impl Lane {
    fn is_unchanged(&self, py: Python<'_>) -> PyResult<bool> {
        self.watched
            .as_ref()
            .map_or(Ok(true), |it| it.is_unchanged(py))
    }

    fn answer<'py>(&self, py: Python<'py>, frame: &Frame<'_>) -> PyResult<Answer<'py>> {
        if frame.kind() != Kind::Result {
            let parts = to_tuple(py, frame)?.into_bound_py_any(py)?;
            return Ok(match frame.kind() {
                Kind::Error => Answer::Error(parts),
                _ => Answer::Early(parts),
            });
        }
        let data = frame.attachments().next().unwrap_or_default();
        if data == self.none.as_bytes(py) {
            return Ok(Answer::Result(py.None().into_bound(py)));
        }
        let loads = self.loads.bind(py);
        loads.call1((PyBytes::new(py, data),)).map(Answer::Result)
    }
}

impl Watched {
    fn is_unchanged(&self, py: Python<'_>) -> PyResult<bool> {
        let code = self.function.bind(py).getattr(intern!(py, "__code__"))?;
        if !code.is(&self.code) {
            return Ok(false);
        }
        for (space, name, value) in &self.bindings {
            let found = space.bind(py).get_item(name)?;
            if !found.is_some_and(|found| found.is(value)) {
                return Ok(false);
            }
        }
        let sys = sys(py)?;
        let modules = sys.getattr(intern!(py, "modules"))?;
        let modules = modules.cast::<PyDict>()?;
        for (name, spec) in &self.specs {
            let Some(module) = modules.get_item(name)? else {
                return Ok(false);
            };
            if !module.getattr(intern!(py, "__spec__"))?.is(spec) {
                return Ok(false);
            }
        }
        sys.getattr(intern!(py, "path"))?.eq(&self.path)
    }
}

/// What came of a task, as far as Rust understands it.
enum Answer<'py> {
    Result(Bound<'py, PyAny>),
    Error(Bound<'py, PyAny>),
    /// Not its outcome: that is still to come.
    Early(Bound<'py, PyAny>),
}

fn sys(py: Python<'_>) -> PyResult<&Bound<'_, PyAny>> {
    static SYS: PyOnceLock<Py<PyAny>> = PyOnceLock::new();
    SYS.get_or_try_init(py, || py.import("sys").map(|sys| sys.into_any().unbind()))
        .map(|sys| sys.bind(py))
}

fn miss(py: Python<'_>) -> PyResult<Bound<'_, PyAny>> {
    static MISS: PyOnceLock<Py<PyAny>> = PyOnceLock::new();
    MISS.get_or_try_init(py, || {
        py.import("builtins")?
            .call_method0("object")
            .map(Bound::unbind)
    })
    .map(|miss| miss.bind(py).clone())
}

pub(crate) fn register(module: &Bound<'_, PyModule>) -> PyResult<()> {
    module.add("MISS", miss(module.py())?)?;
    module.add_class::<Lane>()
}
