//! A worker's loop.

use std::collections::HashMap;
use std::env;
use std::error::Error as _;
use std::fs::File;
use std::io::{self, Write};
use std::os::fd::OwnedFd;
use std::os::unix::fs::FileExt;
use std::process;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use rayon::ThreadPoolBuilder;
use rustix::stdio::dup2_stderr;
use serde::{Deserialize, Serialize};

use super::context::Shared;
use super::entry::Segments;
use super::launch::{Launch, launch};
use super::panics::Panics;
use super::registry::Registry;
use super::state::States;
use super::task::Task;
use crate::budget::Budget;
use crate::descriptor::SessionId;
use crate::dispatch::{
    Channel, Control, Frame, Kind, PROTOCOL_VERSION, Pace, Receiver, Side, watch_owner,
};
use crate::error::{Error, Result};
use crate::os::failed;
use crate::signals;
use crate::zone::Zone;

const SPIN: Duration = Duration::from_micros(50);
/// Longer than the kernel takes to end a process with much memory.
const OWNER_ENDS: Duration = Duration::from_secs(30);
/// The form of functions by name.
const BY_NAME: u64 = 3;

static SERVES: AtomicBool = AtomicBool::new(false);

/// Serves the tasks that `register` registers, until the engine that started this process ends.
///
/// To be called by `main`, once. It blocks; tasks run in this thread, one after the other. It takes over
/// the interrupt signal, which then ends no task by itself; rayon's global pool, unless there is one; and
/// the panics of tasks, which no other hook sees.
///
/// # Errors
/// [`Error::NotStartedByEngine`], or those of the machine's limits. A process that cannot follow its
/// engine any more does not return from here: it says why, and exits with status 1.
pub fn serve(register: impl FnOnce(&mut Registry)) -> Result<()> {
    if SERVES.swap(true, Ordering::SeqCst) {
        return Err(Error::NotStartedByEngine {
            reason: "theus::worker::serve was called before in this process: call it once"
                .to_owned(),
        });
    }
    let launch = launch()?;
    match follow(launch, register) {
        Ok(()) => Ok(()),
        Err(error @ (Error::ChannelEnd { .. } | Error::ChannelPeerGone { .. })) => {
            // The owner is on its way out without having said so. Its socket closes before its lock
            // is free, so leaving now would leave its session to nobody: the watching thread ends us.
            thread::sleep(OWNER_ENDS);
            leave("its owner does not talk to it", &error)
        }
        Err(error) => leave("it cannot follow its owner", &error),
    }
}

/// Follows the owner from the start to its end, which the watching thread sees whatever happens here.
fn follow(launch: Launch, register: impl FnOnce(&mut Registry)) -> Result<()> {
    let session: SessionId = launch.session.parse()?;
    watch_owner(launch.owner, session.clone())?;
    signals::outlive_interrupts();
    let mut registry = Registry::default();
    register(&mut registry);
    size_pool(launch.threads)?;
    let control = Control::from_fd(&launch.control)?;
    let mut channel = Channel::from_fd(launch.channel)?;
    channel.use_page(&control, Side::Worker);
    let budget = Budget::from_fd(&launch.budget, launch.seat)?;
    let trace = File::from(launch.trace);
    take_stderr(&launch.stderr, &trace)?;
    let hello = Hello {
        language: "rust",
        library: concat!("theus ", env!("CARGO_PKG_VERSION")),
        capabilities: ["plain", "items", "recall"],
        tasks: registry.names().collect(),
    };
    let hello = serde_json::to_vec(&hello).unwrap_or_default();
    let fields = [PROTOCOL_VERSION.into(), process::id().into()];
    channel.send_blocking(Kind::Hello, &fields, &[&hello])?;
    let mut server = Server {
        registry: &registry,
        receiver: channel.receiver,
        shared: Shared {
            sender: Mutex::new(channel.sender),
            control,
            segments: Segments::new(session.clone()),
            zone: Zone::of_worker(session, budget),
        },
        states: States::default(),
        functions: HashMap::new(),
        panics: Panics::watch(trace),
    };
    server.run()
}

/// Gives rayon's pool this worker's share of the cores, unless the environment or the program has
/// given it another size.
fn size_pool(threads: usize) -> Result<()> {
    let pool = ThreadPoolBuilder::new();
    let pool = match env::var_os("RAYON_NUM_THREADS") {
        Some(_) => pool, // which looks at it itself
        None => pool.num_threads(threads),
    };
    match pool.build_global() {
        // Without a source: there is a pool already.
        Err(error) if error.source().is_some() => {
            Err(failed("starting rayon's threads", io::Error::other(error)))
        }
        _ => Ok(()),
    }
}

fn leave(why: &str, error: &Error) -> ! {
    let id = process::id();
    let _ = writeln!(io::stderr(), "theus: worker {id} ends, as {why}: {error}");
    process::exit(1);
}

/// The attachment of HELLO.
#[derive(Serialize)]
struct Hello<'a> {
    language: &'static str,
    library: &'static str,
    capabilities: [&'static str; 3],
    tasks: Vec<&'a str>,
}

/// The definition of a function by name.
#[derive(Deserialize)]
struct Named {
    name: String,
}

struct Server<'a> {
    registry: &'a Registry,
    receiver: Receiver,
    shared: Shared,
    states: States,
    functions: HashMap<u64, String>,
    panics: Panics,
}

impl Server<'_> {
    /// Takes frames until the owner says that it was the last.
    fn run(&mut self) -> Result<()> {
        let mut pace = Pace::new(SPIN);
        loop {
            let since = Instant::now();
            let frame = self.receiver.recv(pace.spin())?;
            pace.note(since);
            let kind = frame.kind();
            let meant = match kind {
                Kind::Shutdown => return Ok(()),
                Kind::Task => {
                    let task = Task {
                        registry: self.registry,
                        states: &self.states,
                        functions: &self.functions,
                        shared: &self.shared,
                        panics: &self.panics,
                    };
                    task.run(&frame)?;
                    Ok(())
                }
                Kind::State => {
                    let version = frame.fields().next().unwrap_or(0);
                    self.states.take(version, frame.attachments())
                }
                Kind::ForgetState => {
                    self.states.forget(frame.fields().next().unwrap_or(0));
                    Ok(())
                }
                Kind::Function => take_function(&mut self.functions, &frame),
                Kind::ForgetFunction => match frame.fields().next() {
                    Some(number) if self.functions.remove(&number).is_some() => Ok(()),
                    _ => Err("no such function was sent".to_owned()),
                },
                Kind::Release => {
                    self.shared.segments.release(frame.fields());
                    Ok(())
                }
                _ => Err("it is none for this worker".to_owned()),
            };
            meant.map_err(|reason| Error::FrameMeaning { kind, reason })?;
        }
    }
}

fn take_function(
    functions: &mut HashMap<u64, String>,
    frame: &Frame<'_>,
) -> std::result::Result<(), String> {
    let mut fields = frame.fields();
    let (number, form) = (fields.next(), fields.next());
    let (Some(number), Some(BY_NAME)) = (number, form) else {
        return Err("it is not by name".to_owned());
    };
    let definition = frame.attachments().next().unwrap_or_default();
    let named: Named = serde_json::from_slice(definition).map_err(|error| error.to_string())?;
    functions.insert(number, named.name);
    Ok(())
}

/// Goes on with the owner's standard error; what was written so far is in `trace`.
fn take_stderr(stderr: &OwnedFd, trace: &File) -> Result<()> {
    let told = |operation| move |error| failed(operation, error);
    let length = trace
        .metadata()
        .map_err(told("looking at the trace"))?
        .len();
    let mut early = vec![0; usize::try_from(length).unwrap_or(0)];
    trace
        .read_exact_at(&mut early, 0)
        .map_err(told("reading the trace"))?;
    let written = early
        .iter()
        .rposition(|&byte| byte != 0)
        .map_or(0, |at| at + 1);
    dup2_stderr(stderr).map_err(|errno| failed("taking the owner's standard error", errno))?;
    trace
        .write_all_at(&vec![0; written], 0)
        .map_err(told("clearing the trace"))?;
    if written > 0 {
        let _ = io::stderr().write_all(&early[..written]);
    }
    Ok(())
}
