//! One worker process as its owner sees it: how it is started, and what it was sent.

use std::collections::{HashMap, VecDeque};
use std::fs::File;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::FileExt;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use rustix::event::epoll;
use rustix::fs::{MemfdFlags, SealFlags, fcntl_add_seals, ftruncate, memfd_create};
use rustix::io::Errno;
use rustix::process::{
    Pid, PidfdFlags, Signal, WaitId, WaitIdOptions, kill_process_group, pidfd_open,
    pidfd_send_signal, waitid,
};

use super::deadlines::after;
use super::function::{BY_PARTS, Function, FunctionKey};
use super::inbound::Inbound;
use super::message::Message;
use super::program::{Codec, Inherited, ProgramId, Start};
use super::snapshot::Snapshot;
use super::task::{Setup, Task};
use super::wire::{Channel, Control, Kind, Sender, Side, Traffic};
use crate::error::{Error, Result};
use crate::os::failed;
use crate::session::Session;
use crate::spawn::{above_standard_streams, standard_error};

/// A worker is told to forget the function that it was sent longest ago when it has more than these.
const MAX_FUNCTIONS: usize = 256;
/// A frame counts its fields in 16 bits.
const MAX_FIELDS: usize = 65_535;
const TRACE_BYTES: u64 = 1 << 20;
const SHOWN_BYTES: usize = 8192;

/// Which worker it is; the number is never used again.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct WorkerKey {
    pub(super) program: ProgramId,
    pub(super) number: u64,
}

/// How far a worker is in its life.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum WorkerState {
    /// Its process runs and has not said hello; it may have been sent tasks.
    Starting,
    /// It takes tasks.
    Ready,
    /// It gets no further tasks, and is asked to end when it has none left.
    Retiring,
    /// It was asked to end, or broke off its channel: it is killed at its deadline.
    Ending,
}

/// A task does not fit into frames: the task's own error, and the worker goes on.
pub(super) enum SendError {
    Task(Error),
    Worker,
}

/// A worker.
#[expect(
    clippy::struct_excessive_bools,
    reason = "they do not depend on each other"
)]
pub(super) struct Worker {
    pub(super) key: WorkerKey,
    pub(super) state: WorkerState,
    /// Sent and not answered, in the order in which they run; `control` says which one does.
    pub(super) queue: VecDeque<Box<Task>>,
    pub(super) inbound: Arc<Mutex<Inbound>>,
    pub(super) control: Control,
    pub(super) pid: Pid,
    pub(super) slot: usize,
    /// When it is killed, if it is not ready, or gone, by then.
    pub(super) deadline: Option<Instant>,
    /// The time that it had to get ready.
    pub(super) start_time: Duration,
    /// How long the tasks in its queue were expected to take when they were sent.
    pub(super) backlog: Duration,
    /// How many tasks it has run.
    pub(super) finished: u64,
    /// Whether it is a Python whose tasks an interrupt ends.
    pub(super) takes_interrupts: bool,
    /// Whether it skips tasks that were taken back.
    pub(super) takes_recalls: bool,
    /// The number of the last task that was taken back.
    pub(super) recalled: u64,
    /// Whether a deadline for taking tasks back is set.
    pub(super) watched: bool,
    /// Why it is ended, if its frames cannot be taken.
    pub(super) broken: Option<Error>,
    pidfd: OwnedFd,
    trace: File,
    sender: Sender,
    traffic: Arc<Traffic>,
    codec: Codec,
    interest: epoll::EventFlags,
    setup: Option<Arc<Setup>>,
    snapshots: Vec<Arc<Snapshot>>,
    functions: HashMap<FunctionKey, Known>,
    /// Those that it may not use any more. Dropping one may run code of the user: not under a lock.
    pub(super) forgotten: Vec<FunctionKey>,
    next_function: u64,
    flushed: bool,
}

/// A function that a worker was sent.
struct Known {
    number: u64,
    used: u64,
}

impl Worker {
    /// Starts the process.
    pub(super) fn start(
        session: &Session,
        start: &Start,
        key: WorkerKey,
        start_time: Duration,
    ) -> Result<Self> {
        let lacking = |error| failed("starting a worker", error);
        let (mut channel, theirs) = Channel::pair()?;
        let (control, control_file) = Control::create()?;
        channel.use_page(&control, Side::Owner);
        let owner = pidfd_open(rustix::process::getpid(), PidfdFlags::empty())
            .map_err(|errno| failed("starting a worker", errno))?;
        let inherit = |file| above_standard_streams(file).map_err(lacking);
        let inherited = Inherited {
            channel: inherit(theirs)?,
            control: inherit(control_file)?,
            owner: inherit(owner)?,
            budget: inherit(session.budget_file()?)?,
            trace: inherit(make_trace()?)?,
            stderr: standard_error().map_err(lacking)?,
        };
        let pid = start.run(&inherited)?;
        let pidfd = pidfd_open(pid, PidfdFlags::empty()).map_err(|errno| {
            let _ = kill_process_group(pid, Signal::KILL);
            let _ = rustix::process::waitpid(Some(pid), rustix::process::WaitOptions::empty());
            failed("starting a worker", errno)
        })?;
        Ok(Self {
            key,
            state: WorkerState::Starting,
            queue: VecDeque::new(),
            traffic: channel.traffic(),
            inbound: Arc::new(Mutex::new(Inbound::new(channel.receiver, start.slot))),
            control,
            pid,
            slot: start.slot,
            deadline: Some(after(start_time)),
            start_time,
            backlog: Duration::ZERO,
            finished: 0,
            takes_interrupts: false,
            takes_recalls: false,
            recalled: 0,
            watched: false,
            broken: None,
            pidfd,
            trace: inherited.trace.into(),
            sender: channel.sender,
            codec: start.spec.codec,
            interest: epoll::EventFlags::empty(),
            setup: None,
            snapshots: Vec::new(),
            functions: HashMap::new(),
            forgotten: Vec::new(),
            next_function: 1,
            flushed: true,
        })
    }

    /// Returns whether it takes a task now.
    pub(super) fn takes_tasks(&self) -> bool {
        matches!(self.state, WorkerState::Starting | WorkerState::Ready)
    }

    /// Returns whether it is ready and has nothing to do.
    pub(super) fn is_resting(&self) -> bool {
        self.state == WorkerState::Ready && self.queue.is_empty()
    }

    /// Sends a task, and before it what it refers to that is new to the worker. The task is in the
    /// queue unless there is an error. [`flush`](Self::flush) has to follow.
    pub(super) fn send(
        &mut self,
        task: Box<Task>,
    ) -> std::result::Result<(), (SendError, Box<Task>)> {
        match self.write(&task) {
            Ok(()) => {
                self.queue.push_back(task);
                Ok(())
            }
            Err(Error::Os { .. } | Error::ChannelPeerGone { .. } | Error::ChannelEnd { .. }) => {
                Err((SendError::Worker, task))
            }
            Err(error) => Err((SendError::Task(error), task)),
        }
    }

    fn write(&mut self, task: &Task) -> Result<()> {
        let spec = &task.spec;
        if let Some(setup) = &spec.setup
            && self
                .setup
                .as_ref()
                .is_none_or(|known| !Arc::ptr_eq(known, setup))
        {
            self.frame(Kind::Setup, &[], &[&setup.0])?;
            self.setup = Some(Arc::clone(setup));
        }
        self.write_state(&spec.snapshot)?;
        let function = self.write_function(&spec.function)?;
        self.write_parts(&spec.inputs)?;
        let fields = [task.number, spec.snapshot.version(), function, spec.call];
        let inputs = &[&*spec.inputs.data];
        if self.queue.is_empty() {
            self.frame(Kind::Task, &fields, inputs)
        } else {
            self.flushed = false;
            self.sender.queue(Kind::Task, &fields, inputs)
        }
    }

    /// Writes the frames of tasks that were sent behind others: one system call for several.
    pub(super) fn flush(&mut self) -> Result<()> {
        if !self.flushed {
            self.flushed = true;
            self.sender.flush()?;
        }
        Ok(())
    }

    /// Writes more of what waits for the socket.
    pub(super) fn write_more(&mut self) -> Result<()> {
        self.sender.flush().map(drop)
    }

    /// Sends a state ahead of any task, if the worker has nothing to do and telling it costs little.
    pub(super) fn announce(&mut self, snapshot: &Arc<Snapshot>) -> Result<()> {
        let told = self.codec == Codec::Pickle || snapshot.is_plain();
        if self.is_resting() && self.sender.queued_bytes() == 0 && snapshot.is_small() && told {
            self.write_state(snapshot)?;
        }
        Ok(())
    }

    /// Tells the worker which segments it need not keep mapped.
    pub(super) fn release(&mut self, numbers: &[u64]) -> Result<()> {
        for some in numbers.chunks(MAX_FIELDS) {
            self.frame(Kind::Release, some, &[])?;
        }
        Ok(())
    }

    /// Asks the worker to end, for which it has `time`.
    pub(super) fn shut_down(&mut self, time: Duration) {
        self.state = WorkerState::Ending;
        self.deadline = Some(after(time));
        // One that has just died needs no telling.
        let _ = self.frame(Kind::Shutdown, &[], &[]);
    }

    /// Asks the worker to end the task of this number: it looks at its page before a task, and at an
    /// interrupt. A native program looks there as it sees fit.
    pub(super) fn interrupt(&self, number: u64) {
        self.control.set_cancel(number);
        if self.takes_interrupts && self.control.running() == number {
            let _ = pidfd_send_signal(&self.pidfd, Signal::INT);
        }
    }

    /// Kills the process and those of its group. It is reaped later, so the number is still its own.
    pub(super) fn kill(&self) {
        let _ = kill_process_group(self.pid, Signal::KILL);
        let _ = pidfd_send_signal(&self.pidfd, Signal::KILL);
    }

    /// Reaps the process. Returns its exit code, negative for a signal; none if it still runs.
    pub(super) fn reap(&self) -> Option<i32> {
        let options = WaitIdOptions::EXITED | WaitIdOptions::NOHANG;
        loop {
            return match waitid(WaitId::PidFd(self.pidfd.as_fd()), options) {
                Ok(Some(status)) => {
                    Some(match (status.exit_status(), status.terminating_signal()) {
                        (Some(code), _) => code,
                        (_, Some(signal)) => -signal,
                        _ => 0,
                    })
                }
                Ok(None) => None,
                Err(Errno::INTR) => continue,
                // Somebody waits for every child of this process.
                Err(_) => Some(0),
            };
        }
    }

    /// Lets go of a large function after its last task: the task that has just ended was one of it.
    pub(super) fn forget_parts(&mut self, function: &Arc<Function>) {
        if function.parts.is_some()
            && self
                .queue
                .iter()
                .all(|task| !Arc::ptr_eq(&task.spec.function, function))
        {
            // One that has just died needs no telling.
            let _ = self.forget_function(&FunctionKey(Arc::clone(function)));
        }
    }

    /// Returns the text of faulthandler at a fatal signal; of its standard error before it was ready.
    pub(super) fn trace(&self) -> String {
        let mut written = vec![0; usize::try_from(TRACE_BYTES).unwrap_or(0)];
        let count = self.trace.read_at(&mut written, 0).unwrap_or(0);
        let end = written[..count].iter().rposition(|&byte| byte != 0);
        let written = &written[..end.map_or(0, |end| end + 1)];
        let shown = &written[written.len().saturating_sub(SHOWN_BYTES)..];
        String::from_utf8_lossy(shown).trim().to_owned()
    }

    /// Returns how much memory the process has for itself: none of what it maps from files.
    pub(super) fn anonymous_bytes(&self) -> u64 {
        let path = format!("/proc/{}/statm", self.pid.as_raw_nonzero());
        let text = std::fs::read_to_string(path).unwrap_or_default();
        let pages: Vec<u64> = text
            .split(' ')
            .map_while(|it| it.trim().parse().ok())
            .collect();
        match pages[..] {
            [_, resident, shared, ..] => {
                resident.saturating_sub(shared) * rustix::param::page_size() as u64
            }
            _ => 0,
        }
    }

    /// Returns how many bytes were sent to it and received from it.
    pub(super) fn traffic(&self) -> (u64, u64) {
        (self.traffic.sent_bytes(), self.traffic.received_bytes())
    }

    pub(super) fn pidfd(&self) -> BorrowedFd<'_> {
        self.pidfd.as_fd()
    }

    pub(super) fn socket(&self) -> BorrowedFd<'_> {
        self.sender.as_fd()
    }

    /// Returns the events of its socket to wait for, if they are others than before.
    pub(super) fn new_interest(&mut self) -> Option<epoll::EventFlags> {
        let mut wanted = epoll::EventFlags::empty();
        if self.broken.is_none() {
            wanted |= epoll::EventFlags::IN;
            if self.sender.queued_bytes() > 0 {
                wanted |= epoll::EventFlags::OUT;
            }
        }
        if wanted == self.interest {
            return None;
        }
        self.interest = wanted;
        Some(wanted)
    }

    fn frame(&mut self, kind: Kind, fields: &[u64], attachments: &[&[u8]]) -> Result<()> {
        self.sender
            .send_copying(kind, fields, attachments)
            .map(drop)
    }

    fn write_parts(&mut self, message: &Message) -> Result<()> {
        if let Some(parts) = &message.parts {
            let (file, fields) = parts.to_send()?;
            self.sender.send_carrying(Kind::Parts, &fields, file)?;
        }
        Ok(())
    }

    fn write_state(&mut self, snapshot: &Arc<Snapshot>) -> Result<()> {
        let version = snapshot.version();
        if self
            .snapshots
            .iter()
            .any(|known| known.version() == version)
        {
            return Ok(());
        }
        let older = self
            .snapshots
            .iter()
            .filter(|known| known.version() < version);
        let base = older.max_by_key(|known| known.version());
        let base = base.or_else(|| self.snapshots.iter().min_by_key(|known| known.version()));
        let frame = snapshot.frame(base.map(|base| &**base));
        let mut attachments: Vec<&[u8]> = vec![&frame.entries, &frame.domain_keys];
        let mut parts = Vec::new();
        for value in &frame.values {
            match self.codec {
                Codec::Pickle => {
                    parts.extend(value.pickle.parts.as_ref().map(|parts| parts.to_send()));
                    attachments.push(&value.pickle.data);
                }
                Codec::Plain => attachments.push(value.plain.get().map_or(&[], |plain| plain)),
            }
        }
        // All descriptors first: parts without their STATE would be taken for those of another frame.
        for (file, fields) in parts.into_iter().collect::<Result<Vec<_>>>()? {
            self.sender.send_carrying(Kind::Parts, &fields, file)?;
        }
        self.frame(Kind::State, &[version], &attachments)?;
        // Only now: the state may have been told by its difference from one of these.
        let in_flight: Vec<u64> = self
            .queue
            .iter()
            .map(|task| task.spec.snapshot.version())
            .collect();
        let known = std::mem::take(&mut self.snapshots);
        for known in known {
            if in_flight.contains(&known.version()) {
                self.snapshots.push(known);
            } else {
                self.frame(Kind::ForgetState, &[known.version()], &[])?;
            }
        }
        self.snapshots.push(Arc::clone(snapshot));
        Ok(())
    }

    fn write_function(&mut self, function: &Arc<Function>) -> Result<u64> {
        let key = FunctionKey(Arc::clone(function));
        self.next_function += 1;
        let used = self.next_function;
        if let Some(known) = self.functions.get_mut(&key) {
            known.used = used;
            return Ok(known.number);
        }
        if function.form == BY_PARTS {
            let message = Message {
                parts: function.parts.clone(),
                ..Message::default()
            };
            self.write_parts(&message)?;
        }
        self.frame(
            Kind::Function,
            &[used, function.form],
            &[&function.definition],
        )?;
        // The key keeps the function, and so what its definition refers to.
        self.functions.insert(key, Known { number: used, used });
        if self.functions.len() > MAX_FUNCTIONS {
            let oldest = self.functions.iter().min_by_key(|(_, known)| known.used);
            if let Some(oldest) = oldest.map(|(key, _)| key.clone()) {
                self.forget_function(&oldest)?;
            }
        }
        Ok(used)
    }

    fn forget_function(&mut self, key: &FunctionKey) -> Result<()> {
        let Some((key, known)) = self.functions.remove_entry(key) else {
            return Ok(());
        };
        self.forgotten.push(key);
        self.frame(Kind::ForgetFunction, &[known.number], &[])
    }
}

/// Makes a file in memory of fixed size, so that no worker fills the memory by it.
fn make_trace() -> Result<OwnedFd> {
    let failed = |errno| failed("starting a worker", errno);
    let flags = MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING;
    let file = memfd_create("theus-trace", flags).map_err(failed)?;
    ftruncate(&file, TRACE_BYTES).map_err(failed)?;
    fcntl_add_seals(&file, SealFlags::GROW | SealFlags::SHRINK).map_err(failed)?;
    Ok(file)
}
