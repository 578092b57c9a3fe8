//! The dispatcher of one engine: what an embedding language, or [`Engine`](super::Engine), uses.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use super::completion::{Completion, Outcome};
use super::core::Core;
use super::event_queue::EventQueue;
use super::function::Function;
use super::hello::Hello;
use super::io_thread;
use super::program::{Codec, Launch, ProgramId, ProgramSpec, stamp};
use super::signal::{Signal, Woken};
use super::snapshot::Snapshot;
use super::state::closed;
use super::task::{Task, TaskSpec};
use crate::error::{Error, Result};
use crate::session::Session;

/// Sends tasks to the workers of one engine and takes their outcomes.
///
/// It starts a thread with the first worker. Dropping it closes it, without waiting for the workers.
#[derive(Debug)]
pub struct Dispatcher {
    core: Arc<Core>,
    /// Whether segments may have been told to a worker.
    has_workers: AtomicBool,
}

impl Dispatcher {
    /// A dispatcher without a program. `cores` is how many the workers and their callers share.
    ///
    /// # Errors
    /// [`Error::DescriptorLimit`] if there are no descriptors left.
    pub fn new(session: Session, cores: usize) -> Result<Self> {
        Ok(Self {
            core: Arc::new(Core::new(session, cores)?),
            has_workers: AtomicBool::new(false),
        })
    }

    /// The queue of events for the thread that runs callbacks of the user.
    pub fn events(&self) -> &Arc<EventQueue> {
        &self.core.events
    }

    // --- programs ---

    /// Adds a program; its workers start when there is work for them.
    ///
    /// # Errors
    /// [`Error::SessionClosed`] in a forked child.
    pub fn add_program(&self, spec: ProgramSpec) -> Result<ProgramId> {
        self.core.check_owner()?;
        let stamp = stamp(&spec.launch.program);
        Ok(self.core.state().add_program(spec, stamp))
    }

    /// Has workers of a program that start from now on be started so.
    pub fn set_launch(&self, program: ProgramId, launch: Launch) {
        if !self.core.is_foreign() {
            let mut state = self.core.state();
            let spec = &mut state.programs[program.0].spec;
            *spec = Arc::new(ProgramSpec {
                launch,
                ..(**spec).clone()
            });
        }
    }

    /// Returns whether the next task of a program would have a worker started.
    pub fn would_start(&self, program: ProgramId) -> bool {
        !self.core.is_foreign() && self.core.state().programs[program.0].would_start()
    }

    /// Has the first worker of a program started, which has `time` to say hello. The completion tells
    /// when it has, or why it did not.
    ///
    /// # Errors
    /// [`Error::EngineClosed`], [`Error::Os`] if no thread can be started.
    pub fn start_first(&self, program: ProgramId, time: Duration) -> Result<Arc<Completion>> {
        self.prepare()?;
        let first = self.core.with(|state, effects| {
            if state.closed {
                return Err(Error::EngineClosed);
            }
            self.core.note_submitted();
            Ok(state.start_first(program, time, effects))
        })?;
        Ok(first)
    }

    /// Has the workers of a program start that there are cores for: there will be work for them.
    ///
    /// # Errors
    /// [`Error::Os`] if no thread can be started.
    pub fn warm_up(&self, program: ProgramId) -> Result<()> {
        self.prepare()?;
        let cores = self.core.cores;
        self.core
            .with(|state, effects| while state.warm_up(program, cores, effects) {});
        Ok(())
    }

    /// Ends the workers of a program that is not to be used.
    pub fn remove_program(&self, program: ProgramId) {
        if !self.core.is_foreign() {
            let core = &self.core;
            core.with(|state, effects| state.remove_program(core, program, effects));
        }
    }

    /// What the first worker of a program said of itself.
    pub fn hello(&self, program: ProgramId) -> Option<Hello> {
        if self.core.is_foreign() {
            return None;
        }
        self.core.state().programs[program.0].hello.clone()
    }

    /// The process ids of the workers that run now.
    pub fn worker_pids(&self) -> Vec<i32> {
        if self.core.is_foreign() {
            return Vec::new();
        }
        let state = self.core.state();
        let workers = state.programs.iter().flat_map(|it| &it.workers);
        let mut pids: Vec<i32> = workers.map(|it| it.pid.as_raw_nonzero().get()).collect();
        pids.sort_unstable();
        pids
    }

    /// Returns how many bytes were sent to the workers that run now, and received from them.
    pub fn traffic(&self) -> (u64, u64) {
        if self.core.is_foreign() {
            return (0, 0);
        }
        let state = self.core.state();
        let workers = state.programs.iter().flat_map(|it| &it.workers);
        let traffic = workers.map(super::worker_process::Worker::traffic);
        traffic.fold((0, 0), |sum, it| (sum.0 + it.0, sum.1 + it.1))
    }

    /// Returns how long a call of `function` takes, if that was measured.
    pub fn duration(&self, program: ProgramId, function: &Function) -> Option<Duration> {
        if self.core.is_foreign() {
            return None;
        }
        self.core.state().programs[program.0]
            .durations
            .get(function)
    }

    // --- tasks ---

    /// Submits a task, and sends it if a worker should have it now.
    ///
    /// # Errors
    /// [`Error::EngineClosed`], [`Error::SessionClosed`] in a forked child, [`Error::Os`] if no thread
    /// can be started. Nothing was submitted then.
    pub fn submit(&self, spec: TaskSpec) -> Result<Arc<Completion>> {
        self.prepare()?;
        let task = Box::new(Task::new(spec));
        let completion = Arc::clone(&task.completion);
        submit(&self.core, task).map(|()| completion)
    }

    /// Submits a task, and polls for its outcome for a moment if that is worth it: see
    /// [`poll`](Self::poll). To be called without the GIL.
    ///
    /// # Errors
    /// As [`submit`](Self::submit).
    pub fn submit_polling(&self, spec: TaskSpec) -> Result<Arc<Completion>> {
        self.prepare()?;
        let task = Box::new(Task::new(spec));
        let completion = Arc::clone(&task.completion);
        self.core.submit_polling(task, submit).map(|()| completion)
    }

    /// Polls for the outcome of a task for a moment, if that is worth it: the task was measured to be
    /// short, a worker has it next, and there is a core for this thread. To be called without the GIL.
    pub fn poll(&self, program: ProgramId, completion: &Arc<Completion>) {
        if !self.core.is_foreign() && !completion.is_done() {
            self.core.poll(program, completion);
        }
    }

    /// Cancels a task, unless it has ended: one that runs is stopped. With `only_queued`, a task that a
    /// worker has got goes on. Returns whether it is cancelled by this call.
    pub fn cancel(
        &self,
        program: ProgramId,
        completion: &Arc<Completion>,
        only_queued: bool,
    ) -> bool {
        if self.core.is_foreign() {
            return false;
        }
        let core = &self.core;
        if only_queued {
            let cancelled = completion.cancel_queued();
            if cancelled {
                core.note_finished();
                core.with(|state, effects| state.purge(program, effects));
            }
            return cancelled;
        }
        let cancelled = core.finish(completion, Outcome::Cancelled, None);
        if cancelled {
            core.with(|state, effects| {
                effects.wake = state.interrupt(program, completion);
                state.purge(program, effects);
            });
        }
        cancelled
    }

    /// Lets idle workers see a state before a task needs it, those of programs of this codec.
    pub fn announce(&self, snapshot: &Arc<Snapshot>, codec: Codec) {
        if self.has_workers.load(Ordering::Relaxed) && !self.core.is_foreign() {
            let core = &self.core;
            core.with(|state, _| state.announce(core, snapshot, codec));
        }
    }

    /// Tells the workers that these segments are gone, so that they unmap them.
    pub fn release(&self, numbers: &[u64]) {
        if self.has_workers.load(Ordering::Relaxed) && !self.core.is_foreign() {
            let core = &self.core;
            core.with(|state, _| state.release(core, numbers));
        }
    }

    /// Returns whether a task that was submitted has no outcome yet.
    pub fn is_busy(&self) -> bool {
        !self.core.is_foreign() && self.core.is_busy()
    }

    /// Waits until every task that was submitted has its outcome, or a signal handler ran.
    pub fn wait_idle(&self, timeout: Option<Duration>) -> Woken {
        if self.core.is_foreign() {
            return Woken::Set;
        }
        wait(self.core.when_idle(), timeout)
    }

    /// Has [`Event::Idle`](super::Event::Idle) tell when every task that was submitted has its outcome.
    /// Returns false if that is so now, and no event comes.
    pub fn tell_when_idle(&self) -> bool {
        !self.core.is_foreign() && self.core.tell_when_idle()
    }

    // --- the end ---

    /// Begins to end the workers; tasks that have not ended fail. Idempotent.
    pub fn close(&self) {
        if self.core.is_foreign() {
            return;
        }
        let core = &self.core;
        core.with(|state, effects| state.close(core, effects));
        core.events.close();
        if core.thread.lock().is_ok_and(|thread| thread.is_none()) {
            core.note_gone();
        }
    }

    /// Waits until no worker is left, or a signal handler ran. [`close`](Self::close) comes first.
    pub fn wait_closed(&self, timeout: Option<Duration>) -> Woken {
        if self.core.is_foreign() {
            return Woken::Set;
        }
        let woken = wait(self.core.when_gone(), timeout);
        if woken == Woken::Set {
            io_thread::join(&self.core);
        }
        woken
    }

    /// Returns whether it is closed, or was made before this process was forked.
    pub fn is_closed(&self) -> bool {
        self.core.is_foreign() || self.core.state().closed
    }

    /// Returns whether this process was forked from the one whose workers these are.
    pub fn is_foreign(&self) -> bool {
        self.core.is_foreign()
    }

    fn prepare(&self) -> Result<()> {
        self.core.check_owner()?;
        if !self.has_workers.load(Ordering::Relaxed) {
            io_thread::ensure(&self.core)?;
            self.has_workers.store(true, Ordering::Relaxed);
        }
        Ok(())
    }
}

impl Drop for Dispatcher {
    fn drop(&mut self) {
        self.close();
    }
}

fn submit(core: &Arc<Core>, task: Box<Task>) -> Result<()> {
    let refused = core.with(|state, effects| {
        if state.closed {
            return Some(task);
        }
        core.note_submitted();
        state.submit(core, task, effects);
        None
    });
    // Dropped here, as that may run code of the user.
    refused.map_or(Ok(()), |_| Err(Error::EngineClosed))
}

/// The error of a task that the end of its engine ends.
#[must_use]
pub fn closed_error() -> Arc<Error> {
    closed()
}

fn wait(signal: Option<Arc<Signal>>, timeout: Option<Duration>) -> Woken {
    signal.map_or(Woken::Set, |signal| signal.wait(timeout))
}
