//! `Dispatcher`: the core's dispatcher, as the engine in Python uses it.

use std::ffi::OsString;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use pyo3::IntoPyObjectExt;
use pyo3::prelude::*;
use pyo3::types::{PyBytes, PyTuple};
use theus::dispatch::{
    self, Codec, Event, Launch, ProgramId, ProgramSpec, Progress, TaskSpec, Woken,
};

use crate::error::to_py;
use crate::function::{Function, Setup, StaleTask};
use crate::session::Session;
use crate::snapshot::Snapshot;
use crate::task::{Task, message, seconds};
use crate::transient::Transient;

/// A time that is as good as none.
const FOREVER: f64 = f64::INFINITY;

/// Sends tasks to the workers of an engine, and takes their outcomes.
#[pyclass(frozen, module = "theus._theus")]
pub(crate) struct Dispatcher(Arc<dispatch::Dispatcher>);

/// How a program is started: its path, its arguments, and all variables of its environment.
type PyLaunch = (PathBuf, Vec<OsString>, Vec<(OsString, OsString)>);

#[pymethods]
impl Dispatcher {
    /// `cores` is how many the workers and their callers share.
    #[new]
    fn new(py: Python<'_>, session: &Session, cores: usize) -> PyResult<Self> {
        dispatch::Dispatcher::new(session.core().clone(), cores)
            .map(|dispatcher| Self(Arc::new(dispatcher)))
            .map_err(|error| to_py(py, error))
    }

    /// Add a program, whose workers start when there is work for them; its number.
    #[pyo3(signature = (launch, *, plain, pinned, workers, threads, start_s, exit_s, max_tasks = None, max_rss = None))]
    #[expect(clippy::too_many_arguments, reason = "Python passes them by name")]
    fn add_program(
        &self,
        py: Python<'_>,
        launch: PyLaunch,
        plain: bool,
        pinned: bool,
        workers: usize,
        threads: usize,
        start_s: f64,
        exit_s: f64,
        max_tasks: Option<u64>,
        max_rss: Option<u64>,
    ) -> PyResult<Program> {
        let spec = ProgramSpec {
            launch: to_launch(launch),
            codec: codec(plain),
            pinned,
            workers,
            threads,
            start_time: seconds(start_s).unwrap_or(Duration::MAX),
            exit_time: seconds(exit_s).unwrap_or(Duration::MAX),
            max_tasks,
            max_rss,
        };
        let added = self.0.add_program(spec);
        added.map(Program).map_err(|error| to_py(py, error))
    }

    /// Have workers of a program that start from now on be started so.
    fn set_launch(&self, program: &Program, launch: PyLaunch) {
        self.0.set_launch(program.0, to_launch(launch));
    }

    /// Whether the next task of a program would have a worker started.
    fn would_start(&self, program: &Program) -> bool {
        self.0.would_start(program.0)
    }

    /// Have the first worker of a program started, which has `time_s` to say hello. The task that is
    /// returned ends when it has, or with the reason why it did not.
    fn start_first(&self, py: Python<'_>, program: &Program, time_s: f64) -> PyResult<Task> {
        let time = seconds(time_s).unwrap_or(Duration::MAX);
        let first = self.0.start_first(program.0, time);
        first
            .map(|first| Task::new(&self.0, program.0, first))
            .map_err(|error| to_py(py, error))
    }

    /// Have the workers of a program start that there are cores for.
    fn warm_up(&self, py: Python<'_>, program: &Program) -> PyResult<()> {
        self.0.warm_up(program.0).map_err(|error| to_py(py, error))
    }

    /// End the workers of a program that is not to be used.
    fn remove_program(&self, program: &Program) {
        self.0.remove_program(program.0);
    }

    /// (language, library, capabilities, tasks) of the first worker of a program; None before its hello.
    fn hello(&self, program: &Program) -> Option<(String, String, Vec<String>, Vec<String>)> {
        let hello = self.0.hello(program.0)?;
        Some((
            hello.language,
            hello.library,
            hello.capabilities,
            hello.tasks,
        ))
    }

    /// The process ids of the workers that run now, sorted.
    #[getter]
    fn worker_pids(&self) -> Vec<i32> {
        self.0.worker_pids()
    }

    /// How many bytes were sent to the workers that run now, and received from them.
    #[getter]
    fn traffic(&self) -> (u64, u64) {
        self.0.traffic()
    }

    /// How many seconds a call of this function takes; infinity if that was never measured.
    fn duration(&self, program: &Program, function: &Function) -> f64 {
        let duration = self.0.duration(program.0, &function.0);
        duration.map_or(FOREVER, |duration| duration.as_secs_f64())
    }

    /// Submit a task, and send it if a worker should have it now. With `poll`, poll for its outcome for
    /// a moment without the GIL, if it was measured to be short. `keepalive` lives until the outcome
    /// was taken.
    #[pyo3(signature = (program, function, snapshot, call, data, keepalive, *, parts = None, setup = None, weight = 1, timeout = None, progress = None, poll = false))]
    #[expect(clippy::too_many_arguments, reason = "Python passes them by name")]
    fn submit(
        &self,
        py: Python<'_>,
        program: &Program,
        function: &Function,
        snapshot: &Snapshot,
        call: u64,
        data: &Bound<'_, PyBytes>,
        keepalive: Py<PyAny>,
        parts: Option<&Transient>,
        setup: Option<&Setup>,
        weight: u32,
        timeout: Option<f64>,
        progress: Option<u64>,
        poll: bool,
    ) -> PyResult<Task> {
        let spec = TaskSpec {
            program: program.0,
            function: Arc::clone(&function.0),
            snapshot: Arc::clone(&snapshot.0),
            setup: setup.map(|setup| Arc::clone(&setup.0)),
            call,
            inputs: message(data.as_bytes(), parts),
            weight,
            timeout: timeout.and_then(seconds),
            progress,
            keepalive: Some(Arc::new(keepalive)),
        };
        let completion = if poll {
            py.detach(|| self.0.submit_polling(spec))
        } else {
            self.0.submit(spec)
        };
        let completion = completion.map_err(|error| to_py(py, error))?;
        Ok(Task::new(&self.0, program.0, completion))
    }

    /// Let idle workers see a state before a task needs it.
    fn announce(&self, snapshot: &Snapshot, plain: bool) {
        self.0.announce(&snapshot.0, codec(plain));
    }

    /// Tell the workers that this segment is gone.
    fn release(&self, number: u64) {
        self.0.release(&[number]);
    }

    /// Whether a task that was submitted has no outcome yet.
    #[getter]
    fn busy(&self) -> bool {
        self.0.is_busy()
    }

    /// Whether the dispatcher is closed, or was made before this process was forked.
    #[getter]
    fn closed(&self) -> bool {
        self.0.is_closed()
    }

    /// Wait without the GIL until every task that was submitted has its outcome.
    fn wait_idle(&self, py: Python<'_>) -> PyResult<()> {
        wait(py, None, |left| self.0.wait_idle(left)).map(drop)
    }

    /// Have an event tell when every task that was submitted has its outcome; False if that is so now.
    fn tell_when_idle(&self) -> bool {
        self.0.tell_when_idle()
    }

    /// The next event, waited for without the GIL: None if the dispatcher is closed and there is none.
    fn next_event<'py>(&self, py: Python<'py>) -> PyResult<Option<Bound<'py, PyTuple>>> {
        let events = Arc::clone(self.0.events());
        loop {
            if let Some(event) = py.detach(|| events.take(None)) {
                return to_tuple(py, event).map(Some);
            }
            if events.is_closed() {
                return Ok(None);
            }
            py.check_signals()?;
        }
    }

    /// Begin to end the workers; tasks that have not ended fail.
    fn close(&self) {
        self.0.close();
    }

    /// Wait without the GIL until no worker is left: less than a second, which no signal handler ends.
    fn wait_closed(&self, py: Python<'_>) -> PyResult<()> {
        py.detach(|| while self.0.wait_closed(None) != Woken::Set {});
        py.check_signals()
    }
}

/// A program of a dispatcher.
#[pyclass(frozen, module = "theus._theus")]
pub(crate) struct Program(pub(crate) ProgramId);

/// Waits without the GIL, and lets Python run its signal handlers; whether it is there in time.
pub(crate) fn wait(
    py: Python<'_>,
    timeout: Option<Duration>,
    wait: impl Fn(Option<Duration>) -> Woken + Sync,
) -> PyResult<bool> {
    let since = std::time::Instant::now();
    loop {
        let left = timeout.map(|timeout| timeout.saturating_sub(since.elapsed()));
        match py.detach(|| wait(left)) {
            Woken::Set => return Ok(true),
            Woken::TimedOut => return Ok(false),
            Woken::Interrupted => py.check_signals()?,
        }
    }
}

fn to_tuple(py: Python<'_>, event: Event) -> PyResult<Bound<'_, PyTuple>> {
    match event {
        Event::Done(token) => ("done", token).into_pyobject(py),
        Event::Log {
            pid,
            task,
            level,
            text,
        } => ("log", pid, task, level, text).into_pyobject(py),
        Event::Progress(
            token,
            Progress {
                done,
                total,
                message,
            },
        ) => ("progress", token, done, total, message).into_pyobject(py),
        Event::Stale(task) => {
            let task = StaleTask::new(task).into_bound_py_any(py)?;
            ("stale", task).into_pyobject(py)
        }
        Event::Idle => ("idle",).into_pyobject(py),
    }
}

fn to_launch((program, arguments, environment): PyLaunch) -> Launch {
    Launch {
        program,
        arguments,
        environment,
    }
}

fn codec(plain: bool) -> Codec {
    if plain { Codec::Plain } else { Codec::Pickle }
}

pub(crate) fn register(module: &Bound<'_, PyModule>) -> PyResult<()> {
    module.add_class::<Dispatcher>()?;
    module.add_class::<Program>()
}
