//! The workers of one program, and the choice among them.
//!
//! A worker gets a second task behind the one it runs only if tasks of both functions were measured to
//! be short, so that a long one never blocks another while a worker is idle.

use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use super::completion::Outcome;
use super::inbound::Inbound;
use super::state::{Effects, Program};
use super::task::Task;
use super::worker_process::{Worker, WorkerKey};
use crate::error::Error;

/// A task is short if it was measured to take less; only these wait behind another.
const SHORT: Duration = Duration::from_millis(1);
/// A worker's queue is full when its tasks should take this long.
pub(super) const BACKLOG: Duration = Duration::from_millis(2);
/// More tasks than this never wait for one worker.
const MAX_QUEUE: usize = 128;

/// What to do with the next task.
pub(super) enum Choice {
    /// Send it to the worker in this place.
    Worker(usize),
    /// Have a worker started, and look again.
    Start,
    /// Leave it pending.
    Wait,
}

impl Program {
    pub(super) fn worker(&mut self, key: WorkerKey) -> Option<&mut Worker> {
        self.workers.iter_mut().find(|it| it.key == key)
    }

    /// Returns how many workers there are, or will be, that take tasks.
    pub(super) fn serving(&self) -> usize {
        let running = self.workers.iter().filter(|it| it.takes_tasks());
        running.count() + self.starting + self.starts.len()
    }

    /// Returns the worker that will have this task, and answer it soon: it rests, the task should take
    /// no longer than `most`, nothing waits before it, and the caller takes no worker's core.
    pub(super) fn resting_for(
        &self,
        task: &Task,
        cores: usize,
        most: Duration,
    ) -> Option<(WorkerKey, Arc<Mutex<Inbound>>)> {
        if !self.pending.is_empty() || self.busy() + 1 >= cores {
            return None;
        }
        let worker = self.workers.iter().find(|it| it.is_resting())?;
        let short = self.estimate(task).is_some_and(|estimate| estimate <= most);
        short.then(|| (worker.key, Arc::clone(&worker.inbound)))
    }

    /// Returns how many workers have tasks.
    pub(super) fn busy(&self) -> usize {
        self.workers
            .iter()
            .filter(|it| !it.queue.is_empty())
            .count()
    }

    /// Returns whether the next task would have a worker started.
    pub(super) fn would_start(&self) -> bool {
        self.serving() < self.spec.workers
            && !self
                .workers
                .iter()
                .any(|it| it.queue.is_empty() && it.takes_tasks())
    }

    pub(super) fn may_start(&self) -> bool {
        self.workers.is_empty()
            || self
                .start_again
                .is_none_or(|moment| moment <= Instant::now())
    }

    /// Returns how long a task should take; none if it may be long.
    pub(super) fn estimate(&self, task: &Task) -> Option<Duration> {
        let duration = self.durations.get(&task.spec.function)?;
        Some(duration * task.spec.weight).filter(|estimate| *estimate < SHORT)
    }

    pub(super) fn choose(&self, task: &Task) -> Choice {
        // Of several always the same one, as it is awake.
        let idle = |it: &Worker| it.queue.is_empty() && it.takes_tasks() && it.broken.is_none();
        if let Some(place) = self.workers.iter().position(idle) {
            return Choice::Worker(place);
        }
        let coming = self.starting + self.starts.len();
        if self.serving() < self.spec.workers && self.may_start() && coming < self.pending.len() {
            return Choice::Start;
        }
        let Some(wanted) = self.estimate(task) else {
            return Choice::Wait;
        };
        let most = BACKLOG.saturating_sub(wanted);
        let workers = self.workers.iter().enumerate();
        let fitting = workers.filter(|(_, it)| {
            it.takes_tasks()
                && it.broken.is_none()
                && it.backlog < most
                && it.queue.len() < self.room(it)
        });
        match fitting.min_by_key(|(_, it)| it.backlog) {
            Some((place, _)) => Choice::Worker(place),
            None => Choice::Wait,
        }
    }

    fn room(&self, worker: &Worker) -> usize {
        let left = self
            .spec
            .max_tasks
            .map(|most| most.saturating_sub(worker.finished));
        let left = left.and_then(|left| usize::try_from(left).ok());
        left.map_or(MAX_QUEUE, |left| left.min(MAX_QUEUE))
    }

    /// Fails all pending tasks, and whoever waits for the first worker.
    pub(super) fn give_up(&mut self, error: &Arc<Error>, effects: &mut Effects) {
        for task in std::mem::take(&mut self.pending) {
            effects.fail(task, error);
        }
        if let Some(first) = self.first.take() {
            effects
                .ended
                .push((first, Outcome::Failed(Arc::clone(error)), None));
        }
    }
}
