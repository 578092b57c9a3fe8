//! The program that workers run: how it is started, and what it says when it cannot be.

use std::ffi::OsString;
use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use rustix::process::Pid;

use super::hello::{Hello, IMPORT, PICKLE, PLAIN};
use super::wire::PROTOCOL_VERSION;
use crate::error::{Error, Result};
use crate::os::failed;
use crate::spawn::{SignalMask, Spawn};

/// The variable by which a worker finds its descriptors, see `schemas/worker.json`.
const VARIABLE: &str = "THEUS_WORKER";
/// How many starts in a row may fail before the tasks do.
const MAX_ATTEMPTS: u32 = 3;
const THREAD_VARIABLES: [&str; 6] = [
    "OMP_NUM_THREADS",
    "OPENBLAS_NUM_THREADS",
    "MKL_NUM_THREADS",
    "BLIS_NUM_THREADS",
    "VECLIB_MAXIMUM_THREADS",
    "NUMEXPR_NUM_THREADS",
];
const RAYON: &str = "RAYON_NUM_THREADS";
/// What a start fails with on a machine that has no room for now.
const LACKING: [i32; 4] = [libc::EMFILE, libc::ENFILE, libc::ENOMEM, libc::EAGAIN];
const REPLACED: &str = "it was replaced since it was started first, and the workers of an engine run one program: \
                        make a new engine for the new one";

/// A program of one engine.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ProgramId(pub(super) usize);

/// How a program's workers encode values.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Codec {
    /// As pickles: the workers are Pythons of the owner's kind.
    Pickle,
    /// As plain values: see `schemas/values.json`.
    Plain,
}

/// How a program is started.
#[derive(Debug, Clone)]
pub struct Launch {
    /// The executable; a name without a slash is looked for on the PATH.
    pub program: PathBuf,
    /// The arguments.
    pub arguments: Vec<OsString>,
    /// All variables of its environment.
    pub environment: Vec<(OsString, OsString)>,
}

/// The limits at which a worker is replaced, and how many there are.
#[derive(Debug, Clone)]
pub struct ProgramSpec {
    /// How it is started.
    pub launch: Launch,
    /// How its workers encode values.
    pub codec: Codec,
    /// Whether every worker has to run the same file, as a native program does.
    pub pinned: bool,
    /// How many workers at most.
    pub workers: usize,
    /// How long a worker has to say hello.
    pub start_time: Duration,
    /// How long a worker has to end when it is replaced.
    pub exit_time: Duration,
    /// How many threads the libraries of each worker may use.
    pub threads: usize,
    /// After how many tasks a worker is replaced.
    pub max_tasks: Option<u64>,
    /// At how many bytes of memory for itself a worker is replaced.
    pub max_rss: Option<u64>,
}

/// What tells a file from another one of the same path.
pub(super) type Stamp = (u64, u64, u64, i64, i64);

/// Looks at the file of a program; none if it cannot be looked at.
pub(super) fn stamp(path: &Path) -> Option<Stamp> {
    let status = std::fs::metadata(path).ok()?;
    Some((
        status.dev(),
        status.ino(),
        status.size(),
        status.mtime(),
        status.mtime_nsec(),
    ))
}

/// The descriptors that a worker inherits.
pub(super) struct Inherited {
    pub(super) channel: OwnedFd,
    pub(super) control: OwnedFd,
    pub(super) owner: OwnedFd,
    pub(super) budget: OwnedFd,
    pub(super) trace: OwnedFd,
    pub(super) stderr: OwnedFd,
}

/// Everything that starting a worker needs, so that no lock is held meanwhile.
#[derive(Clone)]
pub(super) struct Start {
    pub(super) spec: Arc<ProgramSpec>,
    pub(super) stamp: Option<Stamp>,
    pub(super) session: String,
    pub(super) slot: usize,
    pub(super) mask: SignalMask,
}

impl Start {
    /// Starts the process.
    pub(super) fn run(&self, inherited: &Inherited) -> Result<Pid> {
        let Launch {
            program, arguments, ..
        } = &self.spec.launch;
        let now = stamp(program);
        if self.spec.pinned && now.is_some() && now != self.stamp {
            return Err(not_a_worker(program, REPLACED));
        }
        let launch = serde_json::json!({
            "session": self.session,
            "seat": self.slot,
            "threads": self.spec.threads,
            "channel": inherited.channel.as_raw_fd(),
            "control": inherited.control.as_raw_fd(),
            "owner": inherited.owner.as_raw_fd(),
            "budget": inherited.budget.as_raw_fd(),
            "trace": inherited.trace.as_raw_fd(),
            "stderr": inherited.stderr.as_raw_fd(),
        });
        let spawn = Spawn {
            program: program.as_os_str(),
            arguments,
            environment: &self.environment(&launch.to_string()),
            descriptors: &[
                inherited.channel.as_fd(),
                inherited.control.as_fd(),
                inherited.owner.as_fd(),
                inherited.budget.as_fd(),
                inherited.trace.as_fd(),
                inherited.stderr.as_fd(),
            ],
            // Until it is ready: then it takes the owner's.
            stderr: inherited.trace.as_fd(),
            mask: self.mask,
        };
        spawn.start().map_err(|error| {
            let reason = self.spec.pinned.then(|| refusal(program, &error)).flatten();
            if let Some(reason) = reason {
                return not_a_worker(program, reason);
            }
            match error.raw_os_error() {
                // The machine has no room: what to do about it does not depend on the program.
                Some(code) if LACKING.contains(&code) => failed("starting a worker", error),
                _ => Error::ProgramStart {
                    program: program.clone(),
                    source: error,
                },
            }
        })
    }

    fn environment(&self, launch: &str) -> Vec<(OsString, OsString)> {
        let mut environment = self.spec.launch.environment.clone();
        environment.retain(|(name, _)| name != VARIABLE);
        let rayon = (self.spec.codec == Codec::Plain).then_some(RAYON);
        for variable in THREAD_VARIABLES.into_iter().chain(rayon) {
            if environment.iter().all(|(name, _)| name != variable) {
                environment.push((variable.into(), self.spec.threads.to_string().into()));
            }
        }
        environment.push((VARIABLE.into(), launch.into()));
        environment
    }
}

/// Refuses a worker that cannot run tasks of this program. `known` is what the first one said.
pub(super) fn greet(spec: &ProgramSpec, known: Option<&Hello>, hello: &Hello) -> Result<()> {
    let program = &spec.launch.program;
    match spec.codec {
        Codec::Pickle if !hello.can(PICKLE) => Err(not_a_worker(
            program,
            format!("it is no worker for Python functions: {}", hello.library),
        )),
        Codec::Plain if !hello.can(PLAIN) && !hello.can(IMPORT) => Err(not_a_worker(
            program,
            format!(
                "it is a worker ({}), but takes no plain values",
                hello.library
            ),
        )),
        Codec::Plain if hello.tasks.is_empty() && !hello.can(IMPORT) => Err(not_a_worker(
            program,
            "it has no tasks: register some in what is given to theus::worker::serve",
        )),
        Codec::Plain if known.is_some_and(|known| known.tasks != hello.tasks) => {
            Err(not_a_worker(program, REPLACED))
        }
        _ => Ok(()),
    }
}

/// A start that failed: the last facts about the process.
#[derive(Debug)]
pub(super) struct StartFailure {
    /// The exit code, negative for a signal.
    pub(super) status: i32,
    /// The text that it wrote.
    pub(super) stderr: String,
    /// Why it was ended, if its frames could not be taken.
    pub(super) broken: Option<Error>,
    /// The time that it had, if that was over.
    pub(super) late: Option<Duration>,
}

/// Returns the error of the tasks after so many failed starts; none to try again. `first` says that no
/// worker of the program was ever ready.
pub(super) fn start_error(
    spec: &ProgramSpec,
    attempts: u32,
    first: bool,
    failure: StartFailure,
) -> Option<Error> {
    let program = &spec.launch.program;
    let StartFailure {
        status,
        stderr,
        broken,
        late,
    } = failure;
    if spec.pinned
        && let Some(broken) = broken
    {
        // It would send the same again.
        return Some(no_worker(program, broken, &stderr));
    }
    if spec.pinned && first {
        return Some(first_start_error(program, status, &stderr, late));
    }
    (attempts >= MAX_ATTEMPTS).then(|| Error::WorkerStart {
        attempts,
        status,
        stderr,
        program: program.display().to_string(),
        interpreter: spec.codec == Codec::Pickle,
    })
}

fn first_start_error(program: &Path, status: i32, stderr: &str, late: Option<Duration>) -> Error {
    let reason = if let Some(late) = late {
        format!(
            "it said no hello within {} s: it has to call theus::worker::serve, or speak the protocol of \
             schemas/frames.json, before anything that takes long",
            late.as_secs_f64()
        )
    } else if status < 0 {
        format!("it was ended by signal {} before it said hello", -status)
    } else {
        format!(
            "it left with exit code {status} before it said hello, as a program does that does not call \
             theus::worker::serve"
        )
    };
    let wrote = if stderr.is_empty() {
        "It wrote nothing to its standard error".to_owned()
    } else {
        format!("It wrote:\n\n{stderr}")
    };
    not_a_worker(program, format!("{reason}. {wrote}"))
}

fn no_worker(program: &Path, broken: Error, stderr: &str) -> Error {
    match broken {
        Error::NativeWorker { .. } => broken,
        Error::FrameVersion { found, .. } => Error::NativeWorker {
            program: program.to_owned(),
            reason: format!(
                "it speaks version {found} of the worker protocol, and this engine speaks version \
                 {PROTOCOL_VERSION}: build it again with the theus crate of this version"
            ),
            version: Some(found),
            source: Some(Arc::new(broken)),
        },
        broken => {
            let wrote = if stderr.is_empty() {
                String::new()
            } else {
                format!(". It wrote:\n\n{stderr}")
            };
            Error::NativeWorker {
                program: program.to_owned(),
                reason: format!("it is no worker: {broken}{wrote}"),
                version: None,
                source: Some(Arc::new(broken)),
            }
        }
    }
}

fn not_a_worker(program: &Path, reason: impl Into<String>) -> Error {
    Error::NativeWorker {
        program: program.to_owned(),
        reason: reason.into(),
        version: None,
        source: None,
    }
}

/// Returns what the program lacks; none if it is the machine that has no room.
fn refusal(program: &Path, error: &io::Error) -> Option<String> {
    let code = error.raw_os_error()?;
    Some(match code {
        code if LACKING.contains(&code) => return None,
        libc::ENOENT | libc::ENOTDIR if program.exists() => {
            "the interpreter that its #! line names does not exist".to_owned()
        }
        libc::ENOENT | libc::ENOTDIR
            if program
                .iter()
                .any(|part| part.to_string_lossy().starts_with('~')) =>
        {
            "there is no such file: ~ is not expanded, os.path.expanduser(path) does it".to_owned()
        }
        libc::ENOENT | libc::ENOTDIR => {
            "there is no such file: build the program first, and give its path".to_owned()
        }
        libc::EACCES if program.is_dir() => {
            "it is a directory: give the path of the program in it".to_owned()
        }
        libc::EACCES => "it may not be executed: chmod +x it, if it is a program".to_owned(),
        libc::ENOEXEC => "it is no program for this machine, and has no #! line".to_owned(),
        libc::ETXTBSY => "it is still being written: wait until the build has ended".to_owned(),
        _ => {
            let text = error.to_string();
            let text = text.split(" (os error").next();
            text.unwrap_or_default().to_owned()
        }
    })
}
