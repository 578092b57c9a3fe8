//! The locked state of a dispatcher, and what has to happen when the lock is released.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::budget_slots::BudgetSlots;
use super::completion::{Completion, Keepalive, Outcome, Waiters};
use super::deadlines::Deadlines;
use super::durations::Durations;
use super::event_queue::Event;
use super::function::FunctionKey;
use super::hello::Hello;
use super::program::{ProgramId, ProgramSpec, Stamp};
use super::task::Task;
use super::worker_process::{Worker, WorkerKey};
use crate::error::Error;

/// What has to happen when the lock is released.
#[derive(Default)]
#[expect(clippy::vec_box, reason = "tasks move between queues as they are")]
pub(super) struct Effects {
    pub(super) ended: Vec<(Arc<Completion>, Outcome, Option<Keepalive>)>,
    /// Those whose timeout has passed, with who waits for them, unless they had ended.
    pub(super) timed_out: Vec<(Arc<Completion>, Option<Waiters>)>,
    pub(super) events: Vec<Event>,
    /// Those whose function goes to a worker in another form.
    pub(super) stale: Vec<Box<Task>>,
    /// Dropping these may run code of the user.
    pub(super) dropped: Vec<Box<Task>>,
    /// Dropping these may, too: a function keeps what its definition refers to.
    pub(super) forgotten: Vec<FunctionKey>,
    /// The thread of the engine has to look at the state.
    pub(super) wake: bool,
}

impl Effects {
    /// Ends a task that was taken out of its queue.
    pub(super) fn end(&mut self, mut task: Box<Task>, outcome: Outcome) {
        let keepalive = task.spec.keepalive.take();
        self.ended
            .push((Arc::clone(&task.completion), outcome, keepalive));
        self.dropped.push(task);
    }

    /// Fails a task that was taken out of its queue.
    pub(super) fn fail(&mut self, task: Box<Task>, error: &Arc<Error>) {
        self.end(task, Outcome::Failed(Arc::clone(error)));
    }
}

/// A program with its workers and tasks.
pub(super) struct Program {
    pub(super) id: ProgramId,
    pub(super) spec: Arc<ProgramSpec>,
    pub(super) stamp: Option<Stamp>,
    pub(super) hello: Option<Hello>,
    pub(super) pending: VecDeque<Box<Task>>,
    pub(super) workers: Vec<Worker>,
    pub(super) durations: Durations,
    /// The numbers of workers that are to be started, and their slots and times to get ready.
    pub(super) starts: VecDeque<(u64, usize, Duration)>,
    /// How many of these a thread has taken, and not brought back yet.
    pub(super) starting: usize,
    /// How many tasks were cancelled, or late, since all of the queue was looked at.
    pub(super) withdrawn: usize,
    pub(super) failed_starts: u32,
    pub(super) start_again: Option<Instant>,
    pub(super) pause: Duration,
    /// Ends with the first hello, or with the reason why there is none.
    pub(super) first: Option<Arc<Completion>>,
}

/// A worker to be started without the lock.
pub(super) struct StartRequest {
    pub(super) key: WorkerKey,
    pub(super) slot: usize,
    pub(super) time: Duration,
    pub(super) spec: Arc<ProgramSpec>,
    pub(super) stamp: Option<Stamp>,
}

/// The state of an engine's dispatcher.
#[derive(Default)]
pub(super) struct State {
    pub(super) programs: Vec<Program>,
    pub(super) deadlines: Deadlines,
    pub(super) closed: bool,
    /// Until when the thread of the engine sleeps.
    pub(super) sleeps_until: Option<Instant>,
    pub(super) slots: BudgetSlots,
    pub(super) tasks: u64,
    pub(super) workers: u64,
    pub(super) announced: u64,
    pub(super) announced_at: u64,
}

impl State {
    pub(super) fn worker(&mut self, key: WorkerKey) -> Option<&mut Worker> {
        self.programs[key.program.0].worker(key)
    }

    /// Returns whether no worker is left, nor any about to start.
    pub(super) fn is_empty(&self) -> bool {
        let mut programs = self.programs.iter();
        programs.all(|it| it.workers.is_empty() && it.starting == 0 && it.starts.is_empty())
    }
}

/// The error of tasks that the end of their engine ends.
pub(super) fn closed() -> Arc<Error> {
    Arc::new(Error::EngineClosed)
}
