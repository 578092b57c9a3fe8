//! A task: one call on its way to a worker, and the caller's hold on it.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use super::completion::{Completion, Keepalive, Outcome};
use super::core::Core;
use super::function::Function;
use super::message::Message;
use super::program::ProgramId;
use super::snapshot::Snapshot;
use crate::error::Death;

/// The environment that a Python worker takes over from its owner before a task: a SETUP frame.
#[derive(Debug)]
pub struct Setup(pub Box<[u8]>);

/// A call, as its caller describes it.
pub struct TaskSpec {
    /// The program whose workers run it.
    pub program: ProgramId,
    /// The function.
    pub function: Arc<Function>,
    /// The state that it sees.
    pub snapshot: Arc<Snapshot>,
    /// The environment that a Python worker needs first.
    pub setup: Option<Arc<Setup>>,
    /// How the function is called, a number of `schemas/frames.json`.
    pub call: u64,
    /// The inputs.
    pub inputs: Message,
    /// How many calls of the function it stands for.
    pub weight: u32,
    /// When it is stopped, counted from the moment in which it is submitted.
    pub timeout: Option<Duration>,
    /// The number under which reports of its progress become events, if they do.
    pub progress: Option<u64>,
    /// Objects that have to live until its outcome has been loaded.
    pub keepalive: Option<Keepalive>,
}

impl fmt::Debug for TaskSpec {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("TaskSpec")
            .field("function", &self.function)
            .field("call", &self.call)
            .finish_non_exhaustive()
    }
}

/// A task in the dispatcher's queues.
#[derive(Debug)]
pub(super) struct Task {
    /// The number by which its worker knows it: a new one each time that it is sent.
    pub(super) number: u64,
    pub(super) spec: TaskSpec,
    pub(super) completion: Arc<Completion>,
    pub(super) estimate: Duration,
    /// How many workers ended with it first in line and not begun.
    pub(super) aborted: u32,
    /// The workers that died while they ran it.
    pub(super) deaths: Vec<Death>,
}

impl Task {
    pub(super) fn new(spec: TaskSpec) -> Self {
        Self {
            number: 0,
            spec,
            completion: Arc::default(),
            estimate: Duration::ZERO,
            aborted: 0,
            deaths: Vec::new(),
        }
    }

    pub(super) fn name(&self) -> &str {
        &self.spec.function.name
    }
}

/// A task whose function its worker cannot import. It waits until it is sent again, or given up.
pub struct StaleTask {
    pub(super) core: Arc<Core>,
    /// None once it was sent again or given up.
    pub(super) task: Option<Box<Task>>,
}

impl fmt::Debug for StaleTask {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("StaleTask").field(&self.task).finish()
    }
}

impl StaleTask {
    /// The function that the worker could not import.
    #[must_use]
    pub fn function(&self) -> Option<&Arc<Function>> {
        self.task.as_ref().map(|task| &task.spec.function)
    }

    /// Sends the task again, with `function` in another form.
    pub fn resend(mut self, function: Arc<Function>) {
        if let Some(mut task) = self.task.take() {
            task.spec.function = function;
            self.core.resend(task);
        }
    }

    /// Gives the task up.
    pub fn give_up(mut self, outcome: Outcome) {
        if let Some(mut task) = self.task.take() {
            let keepalive = task.spec.keepalive.take();
            self.core.finish(&task.completion, outcome, keepalive);
        }
    }
}

impl Drop for StaleTask {
    fn drop(&mut self) {
        if let Some(task) = self.task.take() {
            self.core.finish(&task.completion, Outcome::Cancelled, None);
        }
    }
}
