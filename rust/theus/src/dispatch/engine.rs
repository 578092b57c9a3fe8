//! The engine of an owner in Rust: tasks of native programs, and Python functions, over its session.

use std::collections::HashMap;
use std::ffi::OsString;
use std::marker::PhantomData;
use std::path::PathBuf;
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll};
use std::thread;
use std::time::Duration;

use serde::Serialize;
use serde::de::DeserializeOwned;

use super::completion::{Completion, Failure, Outcome, Progress, Subscriber};
use super::dispatcher::Dispatcher;
use super::function::Function;
use super::message::Message;
use super::program::{Codec, Launch, ProgramId, ProgramSpec};
use super::signal::Woken;
use super::snapshot::{Change, Snapshot};
use super::task::TaskSpec;
use crate::error::{Error, Result};
use crate::segment::Segment;
use crate::session::Session;

/// How a task is called by name with plain values, in TASK frames.
const CALL_BY_NAME: u64 = 4;
const START: Duration = Duration::from_secs(60);
const FIRST_HELLO: Duration = Duration::from_secs(10);
const EXIT: Duration = Duration::from_secs(5);

/// Runs tasks in worker processes, over the entries of a session.
///
/// Inputs and results are plain values by serde: numbers, texts, lists, maps and what serde makes of
/// them. A task sees the entries that the session had when it was called, for as long as it runs.
/// Dropping the engine ends its workers; calls that have not ended fail.
///
/// # Examples
///
/// ```no_run
/// use serde_json::json;
/// use theus::{Config, Engine, Python, Session};
///
/// let session = Session::create(Config::default())?;
/// let mut prices = session.alloc_tensor::<f64>("price", &[1_000_000])?;
/// prices.as_mut_slice().fill(0.5);
/// prices.publish()?;
///
/// let engine = Engine::builder(&session)
///     .program("target/release/tasks", 4)
///     .python("python3", 2)
///     .start()?;
/// let total: f64 = engine.call("tasks.sum", &json!({"column": "price"}))?.wait()?;
/// let score: f64 = engine.call(Python("model:score"), &json!({"total": total}))?.wait()?;
/// # Ok::<(), theus::Error>(())
/// ```
#[derive(Debug)]
pub struct Engine {
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    dispatcher: Dispatcher,
    session: Session,
    /// The program of each task by name.
    natives: HashMap<String, ProgramId>,
    python: Option<ProgramId>,
    told: Mutex<Told>,
}

/// The entries of the session as tasks were last told them.
#[derive(Debug, Default)]
struct Told {
    version: u64,
    snapshot: Arc<Snapshot>,
    entries: Arc<HashMap<String, Arc<Segment>>>,
}

/// The programs of an engine that is to be started.
#[derive(Debug)]
pub struct EngineBuilder {
    session: Session,
    native: Vec<(PathBuf, Vec<OsString>, usize)>,
    python: Option<(PathBuf, usize)>,
}

/// A Python function by its module and name, such as `Python("package.module:function")`.
#[derive(Debug, Clone, Copy)]
pub struct Python<'a>(pub &'a str);

/// The function that a call runs.
#[derive(Debug, Clone)]
pub struct TaskName {
    name: String,
    is_python: bool,
}

impl From<&str> for TaskName {
    fn from(name: &str) -> Self {
        Self {
            name: name.to_owned(),
            is_python: false,
        }
    }
}

impl From<Python<'_>> for TaskName {
    fn from(function: Python<'_>) -> Self {
        Self {
            name: function.0.to_owned(),
            is_python: true,
        }
    }
}

/// How a call is run, apart from its inputs.
#[derive(Debug, Clone, Copy, Default)]
pub struct CallOptions {
    /// When the task is stopped; never without one.
    pub timeout: Option<Duration>,
    /// How often it is run again when its worker dies: a promise that this does no harm.
    pub retries: u32,
}

impl EngineBuilder {
    /// Adds a native program and how many workers of it there are at most: an executable that calls
    /// `worker::serve`, or speaks the protocol of `schemas/` otherwise.
    #[must_use]
    pub fn program(self, path: impl Into<PathBuf>, workers: usize) -> Self {
        self.program_with(path, Vec::<OsString>::new(), workers)
    }

    /// As [`program`](Self::program), with arguments.
    #[must_use]
    pub fn program_with(
        mut self,
        path: impl Into<PathBuf>,
        arguments: impl IntoIterator<Item = impl Into<OsString>>,
        workers: usize,
    ) -> Self {
        let arguments = arguments.into_iter().map(Into::into).collect();
        self.native.push((path.into(), arguments, workers));
        self
    }

    /// Has Python functions run by workers of this interpreter, in which the `theus` package and the
    /// modules of the functions can be imported.
    #[must_use]
    pub fn python(mut self, interpreter: impl Into<PathBuf>, workers: usize) -> Self {
        self.python = Some((interpreter.into(), workers));
        self
    }

    /// Starts the engine, and the first worker of each native program: it says which tasks it has.
    ///
    /// # Errors
    /// [`Error::NativeWorker`] if a program is no worker, or has a task that another one has;
    /// [`Error::Os`] and the like if the machine has no room.
    pub fn start(self) -> Result<Engine> {
        let cores = thread::available_parallelism().map_or(1, usize::from);
        let dispatcher = Dispatcher::new(self.session.clone(), cores)?;
        let mut natives: HashMap<String, ProgramId> = HashMap::new();
        for (path, arguments, workers) in self.native {
            let program = dispatcher.add_program(spec(&path, arguments, workers, cores, true))?;
            let first = dispatcher.start_first(program, FIRST_HELLO)?;
            while first.wait(None) != Woken::Set {}
            if let Some((Outcome::Failed(error), _)) = first.outcome() {
                first.discard();
                return Err(Arc::try_unwrap(error).unwrap_or_else(Error::Shared));
            }
            let hello = dispatcher.hello(program).ok_or(Error::EngineClosed)?;
            for name in hello.tasks {
                if natives.contains_key(&name) {
                    return Err(Error::NativeWorker {
                        program: path,
                        reason: format!("it has a task {name:?}, which another program has too"),
                        version: None,
                        source: None,
                    });
                }
                natives.insert(name, program);
            }
        }
        let python = self.python.map(|(interpreter, workers)| {
            let arguments = ["-P", "-m", "theus._worker"].map(OsString::from).to_vec();
            dispatcher.add_program(spec(&interpreter, arguments, workers, cores, false))
        });
        Ok(Engine {
            shared: Arc::new(Shared {
                dispatcher,
                session: self.session,
                natives,
                python: python.transpose()?,
                told: Mutex::default(),
            }),
        })
    }
}

fn spec(
    path: &std::path::Path,
    arguments: Vec<OsString>,
    workers: usize,
    cores: usize,
    pinned: bool,
) -> ProgramSpec {
    ProgramSpec {
        launch: Launch {
            program: path.to_owned(),
            arguments,
            environment: std::env::vars_os().collect(),
        },
        codec: Codec::Plain,
        pinned,
        workers,
        start_time: START,
        exit_time: EXIT,
        threads: (cores / workers.max(1)).max(1),
        max_tasks: None,
        max_rss: None,
    }
}

impl Engine {
    /// Begins an engine over the entries of `session`.
    #[must_use]
    pub fn builder(session: &Session) -> EngineBuilder {
        EngineBuilder {
            session: session.clone(),
            native: Vec::new(),
            python: None,
        }
    }

    /// The names of the tasks that the native programs have, sorted.
    #[must_use]
    pub fn tasks(&self) -> Vec<&str> {
        let mut names: Vec<&str> = self.shared.natives.keys().map(String::as_str).collect();
        names.sort_unstable();
        names
    }

    /// The process ids of the workers that run now, sorted.
    #[must_use]
    pub fn worker_pids(&self) -> Vec<i32> {
        self.shared.dispatcher.worker_pids()
    }

    /// Calls a task with inputs by name: a struct, a map, or `serde_json::json!({...})`.
    ///
    /// # Errors
    /// [`Error::TaskNotFound`] if no program has it, [`Error::PlainValue`] if the inputs are no plain
    /// values by name, [`Error::EngineClosed`].
    pub fn call<T: DeserializeOwned>(
        &self,
        task: impl Into<TaskName>,
        inputs: &impl Serialize,
    ) -> Result<Call<T>> {
        self.call_with(task, inputs, CallOptions::default())
    }

    /// As [`call`](Self::call), with options.
    ///
    /// # Errors
    /// As [`call`](Self::call).
    pub fn call_with<T: DeserializeOwned>(
        &self,
        task: impl Into<TaskName>,
        inputs: &impl Serialize,
        options: CallOptions,
    ) -> Result<Call<T>> {
        let TaskName { name, is_python } = task.into();
        let program = if is_python {
            self.shared.python
        } else {
            self.shared.natives.get(&name).copied()
        };
        let program = program.ok_or_else(|| self.missing(&name, is_python))?;
        let data = rmp_serde::to_vec_named(inputs).map_err(|error| Error::PlainValue {
            what: format!("the inputs of {name}"),
            reason: error.to_string(),
        })?;
        let (snapshot, entries) = self.shared.snapshot();
        let spec = TaskSpec {
            program,
            function: Arc::new(Function::by_name(&name, options.retries)),
            snapshot,
            setup: None,
            call: CALL_BY_NAME,
            inputs: Message::inline(data),
            weight: 1,
            timeout: options.timeout,
            progress: None,
            // A task sees its entries for as long as it runs, also when they are replaced.
            keepalive: Some(entries),
        };
        let completion = self.shared.dispatcher.submit(spec)?;
        Ok(Call {
            shared: Arc::clone(&self.shared),
            program,
            name,
            completion,
            result: PhantomData,
        })
    }

    fn missing(&self, name: &str, is_python: bool) -> Error {
        Error::TaskNotFound {
            task: name.to_owned(),
            known: if is_python {
                "it is a Python function, and the engine has no interpreter: EngineBuilder::python"
                    .to_owned()
            } else {
                format!("there are {}", self.tasks().join(", "))
            },
        }
    }

    /// Ends the workers and waits for them, less than a second; calls that have not ended fail.
    pub fn close(self) {
        self.shared.dispatcher.close();
        while self.shared.dispatcher.wait_closed(None) != Woken::Set {}
    }
}

impl Shared {
    /// The state of this moment, and the segments that it refers to.
    fn snapshot(&self) -> (Arc<Snapshot>, Arc<HashMap<String, Arc<Segment>>>) {
        let mut told = self.told();
        if let Some((version, entries)) = self.session.entries_unless(told.version) {
            let mut changes: Vec<Change<[u8]>> = Vec::new();
            for key in told
                .entries
                .keys()
                .filter(|key| !entries.contains_key(*key))
            {
                changes.push((key.as_str().into(), None));
            }
            for (key, segment) in &entries {
                let known = told.entries.get(key);
                if known.is_none_or(|known| !Arc::ptr_eq(known, segment)) {
                    let descriptor = describe(key, segment);
                    changes.push((key.as_str().into(), Some(descriptor.into())));
                }
            }
            told.snapshot = Arc::new(told.snapshot.changed(version, &changes, &[]));
            told.version = version;
            told.entries = Arc::new(entries);
        }
        (Arc::clone(&told.snapshot), Arc::clone(&told.entries))
    }

    fn told(&self) -> MutexGuard<'_, Told> {
        self.told.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The descriptor of a whole entry, as `schemas/descriptor.json` has it.
fn describe(key: &str, segment: &Segment) -> Vec<u8> {
    let descriptor = serde_json::json!({
        "key": key,
        "segment": segment.name().to_string(),
        "kind": segment.spec().kind(),
        "length": segment.length(),
    });
    descriptor.to_string().into_bytes()
}

/// A call on its way: [waited for](Self::wait) by a thread, or awaited as a future.
///
/// Dropping it lets the task go on, and its result is lost.
#[derive(Debug)]
#[must_use = "the result of a call is got by waiting for it"]
pub struct Call<T> {
    shared: Arc<Shared>,
    program: ProgramId,
    name: String,
    completion: Arc<Completion>,
    result: PhantomData<fn() -> T>,
}

impl<T: DeserializeOwned> Call<T> {
    /// Waits for the result. A short task's answer is polled for at first.
    ///
    /// # Errors
    /// [`Error::TaskFailed`] if the task failed, [`Error::WorkerDied`] and [`Error::PoisonTask`] if
    /// its worker died, [`Error::TaskTimeout`], [`Error::TaskCancelled`], [`Error::EngineClosed`], and
    /// [`Error::PlainValue`] if the result is none of `T`.
    pub fn wait(self) -> Result<T> {
        self.shared.dispatcher.poll(self.program, &self.completion);
        while self.completion.wait(None) != Woken::Set {}
        self.result()
    }

    /// Waits for up to `timeout`; whether the call has ended, so that [`wait`](Self::wait) returns at
    /// once.
    #[must_use]
    pub fn wait_for(&self, timeout: Duration) -> bool {
        let until = super::deadlines::after(timeout);
        loop {
            let left = until.saturating_duration_since(std::time::Instant::now());
            match self.completion.wait(Some(left)) {
                Woken::Set => return true,
                Woken::TimedOut => return false,
                Woken::Interrupted => {}
            }
        }
    }

    fn result(&self) -> Result<T> {
        let outcome = self.completion.outcome().map(|(outcome, _)| outcome);
        self.completion.discard();
        let name = &self.name;
        match outcome {
            Some(Outcome::Returned(message)) => {
                rmp_serde::from_slice(&message.data).map_err(|error| Error::PlainValue {
                    what: format!("the result of {name}"),
                    reason: error.to_string(),
                })
            }
            Some(Outcome::Raised(failure)) => Err(task_failed(name, &failure)),
            Some(Outcome::Failed(error)) => {
                Err(Arc::try_unwrap(error).unwrap_or_else(Error::Shared))
            }
            _ => Err(Error::TaskCancelled { task: name.clone() }),
        }
    }
}

impl<T> Call<T> {
    /// Whether the call has ended.
    #[must_use]
    pub fn is_done(&self) -> bool {
        self.completion.is_done()
    }

    /// Cancels the task, unless it has ended: one that runs is stopped. Returns whether this did.
    #[expect(clippy::must_use_candidate, reason = "it is called for what it does")]
    pub fn cancel(&self) -> bool {
        let dispatcher = &self.shared.dispatcher;
        dispatcher.cancel(self.program, &self.completion, false)
    }

    /// How far the task said it was when it last said so.
    #[must_use]
    pub fn progress(&self) -> Option<Progress> {
        self.completion.progress()
    }
}

impl<T: DeserializeOwned> Future for Call<T> {
    type Output = Result<T>;

    fn poll(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Self::Output> {
        if self.completion.is_done() {
            return Poll::Ready(self.result());
        }
        // It is called at once if the call ends meanwhile.
        self.completion
            .subscribe(Subscriber::Waker(context.waker().clone()));
        Poll::Pending
    }
}

/// The map `error` of `schemas/values.json`.
#[derive(serde::Deserialize)]
struct Said {
    r#type: String,
    message: String,
}

fn task_failed(task: &str, failure: &Failure) -> Error {
    let said = rmp_serde::from_slice::<Said>(&failure.message.data);
    let (kind, message) = match said {
        Ok(said) => (said.r#type, said.message),
        Err(_) => (
            "unknown".to_owned(),
            "its worker has no task of this name, or said no reason".to_owned(),
        ),
    };
    Error::TaskFailed {
        task: task.to_owned(),
        kind,
        message,
        traceback: String::from_utf8_lossy(&failure.traceback).into_owned(),
    }
}
