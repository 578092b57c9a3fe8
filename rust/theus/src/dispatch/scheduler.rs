//! Which task goes to which worker: the state that all threads of an engine share.
//!
//! ```text
//!   submit ──> pending ──assign──> worker.queue ──TASK frames──> worker
//!                 ^                     |                           |
//!                 +---- unstarted <-----+ (its worker died)         |
//!                                                                   |
//!   waiters <── completion <── effects <── apply <──RESULT, ERROR frames
//! ```
//!
//! One lock guards the state. Every change is a function of [`State`], which notes in [`Effects`] what
//! has to happen without the lock: outcomes are set, events queued, objects of the caller dropped. No
//! code of the user runs under the lock, so a thread may wait for it with Python's GIL held.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::completion::{Completion, Outcome};
use super::core::Core;
use super::deadlines::{Due, after};
use super::pool::{BACKLOG, Choice};
use super::program::{Codec, ProgramId};
use super::snapshot::Snapshot;
use super::state::{Effects, State, closed};
use super::task::Task;
use super::worker_process::{SendError, WorkerKey, WorkerState};
use crate::error::Error;

/// How long a task has to end after it was asked to.
pub(super) const GRACE: Duration = Duration::from_millis(100);
/// A worker whose task runs this much longer than the tasks behind it should wait gives these back.
const HELD_UP: Duration = Duration::from_millis(5);

impl State {
    /// Takes a task of the caller's.
    pub(super) fn submit(&mut self, core: &Core, task: Box<Task>, effects: &mut Effects) {
        let id = task.spec.program;
        if let Some(timeout) = task.spec.timeout {
            let due = Due::Timeout {
                completion: Arc::downgrade(&task.completion),
                program: id,
                name: task.name().to_owned(),
                timeout,
            };
            let moment = after(timeout);
            self.deadlines.push(moment, due);
            effects.wake |= self.is_before_wake_up(moment);
        }
        self.programs[id.0].pending.push_back(task);
        self.assign(core, id, effects);
    }

    /// Takes a task again whose function is in another form now.
    pub(super) fn resend(&mut self, core: &Core, task: Box<Task>, effects: &mut Effects) {
        if self.closed {
            effects.fail(task, &closed());
            return;
        }
        let id = task.spec.program;
        task.completion.requeue();
        self.programs[id.0].pending.push_front(task);
        self.assign(core, id, effects);
    }

    /// Sends pending tasks to the workers that should have them, and has workers started while there
    /// may be more.
    pub(super) fn assign(&mut self, core: &Core, id: ProgramId, effects: &mut Effects) {
        let mut given: Vec<WorkerKey> = Vec::new();
        while !self.closed {
            let program = &mut self.programs[id.0];
            let Some(task) = program.pending.front() else {
                break;
            };
            if task.completion.is_done() {
                // Cancelled, or timed out, while it waited.
                effects.dropped.extend(program.pending.pop_front());
                continue;
            }
            let worker = match program.choose(task) {
                Choice::Worker(place) => place,
                Choice::Start => {
                    let time = program.spec.start_time;
                    self.request_start(id, time, effects);
                    continue;
                }
                Choice::Wait => break,
            };
            let Some(mut task) = program.pending.pop_front() else {
                break;
            };
            if !task.completion.start() {
                effects.dropped.push(task);
                continue;
            }
            self.tasks += 1;
            task.number = self.tasks;
            task.estimate = program.estimate(&task).unwrap_or(Duration::MAX);
            let estimate = task.estimate;
            let worker = &mut program.workers[worker];
            let key = worker.key;
            let sent = worker.send(task);
            effects.forgotten.append(&mut worker.forgotten);
            match sent {
                Ok(()) => {
                    worker.backlog = worker.backlog.saturating_add(estimate);
                    if !given.contains(&key) {
                        given.push(key);
                    }
                }
                Err((SendError::Task(error), task)) => effects.fail(task, &Arc::new(error)),
                Err((SendError::Worker, task)) => {
                    task.completion.requeue();
                    program.pending.push_front(task);
                    self.break_off(core, key, None);
                }
            }
        }
        for key in given {
            self.flush(core, key, effects);
        }
    }

    pub(super) fn flush(&mut self, core: &Core, key: WorkerKey, effects: &mut Effects) {
        let Some(worker) = self.worker(key) else {
            return;
        };
        if worker.flush().is_err() {
            self.break_off(core, key, None);
            return;
        }
        core.update_interest(worker);
        // One that waits behind a task that turns out to be long goes to another worker.
        if worker.queue.len() > 1
            && worker.takes_recalls
            && !worker.watched
            && let Some(first) = worker.queue.front()
        {
            worker.watched = true;
            let moment = after(worker.backlog.min(BACKLOG) + HELD_UP);
            let due = Due::Recall(key, first.number);
            self.deadlines.push(moment, due);
            effects.wake |= self.is_before_wake_up(moment);
        }
    }

    /// Takes tasks back that wait behind one that takes longer than it should.
    pub(super) fn recall(
        &mut self,
        core: &Core,
        key: WorkerKey,
        first: u64,
        effects: &mut Effects,
    ) {
        let Some(worker) = self.worker(key) else {
            return;
        };
        worker.watched = false;
        let held_up = worker
            .queue
            .front()
            .is_some_and(|task| task.number == first);
        if !held_up || worker.queue.len() < 2 {
            self.flush(core, key, effects);
            return;
        }
        let last = worker.queue.back().map_or(0, |task| task.number);
        worker.recalled = last;
        worker.control.set_recalled(last);
        // Of this and the worker's next look at the least one sees the other.
        let running = worker.control.running();
        let (stay, mut back): (VecDeque<_>, VecDeque<_>) = std::mem::take(&mut worker.queue)
            .into_iter()
            .partition(|task| task.number == first || task.number == running);
        worker.queue = stay;
        worker.backlog = worker
            .queue
            .iter()
            .map(|task| task.estimate)
            .fold(Duration::ZERO, Duration::saturating_add);
        let program = &mut self.programs[key.program.0];
        while let Some(task) = back.pop_back() {
            task.completion.requeue();
            program.pending.push_front(task);
        }
        self.assign(core, key.program, effects);
    }

    /// Has the worker that runs the task of `completion`, if one does, stop it.
    pub(super) fn interrupt(&mut self, id: ProgramId, completion: &Arc<Completion>) -> bool {
        let program = &self.programs[id.0];
        for worker in &program.workers {
            if let Some(task) = worker.queue.front()
                && Arc::ptr_eq(&task.completion, completion)
            {
                let number = task.number;
                worker.interrupt(number);
                let due = Due::Kill(worker.key, number);
                self.deadlines.push(after(GRACE), due);
                return true;
            }
        }
        false
    }

    /// Drops cancelled tasks from the front of a queue, and from all of it now and then: a search for
    /// each would make cancelling many tasks quadratic.
    pub(super) fn purge(&mut self, id: ProgramId, effects: &mut Effects) {
        const FEW: usize = 64;
        let program = &mut self.programs[id.0];
        while program
            .pending
            .front()
            .is_some_and(|task| task.completion.is_done())
        {
            effects.dropped.extend(program.pending.pop_front());
        }
        program.withdrawn += 1;
        if program.withdrawn > FEW.max(program.pending.len() / 2) {
            program.withdrawn = 0;
            let (done, rest): (VecDeque<_>, VecDeque<_>) = std::mem::take(&mut program.pending)
                .into_iter()
                .partition(|task| task.completion.is_done());
            program.pending = rest;
            effects.dropped.extend(done);
        }
    }

    /// Whether the thread of the engine would sleep past this moment.
    fn is_before_wake_up(&self, moment: Instant) -> bool {
        // While it is awake, it looks at the deadlines before it sleeps.
        self.sleeps_until.is_none_or(|until| moment < until)
    }

    /// Does what is due; returns when the next thing is.
    pub(super) fn expire(&mut self, core: &Core, effects: &mut Effects) -> Option<Instant> {
        let now = Instant::now();
        while let Some(due) = self.deadlines.take(now) {
            match due {
                Due::Timeout {
                    completion,
                    program,
                    name,
                    timeout,
                } => {
                    let Some(completion) = completion.upgrade() else {
                        continue;
                    };
                    let error = Error::TaskTimeout {
                        task: name,
                        timeout,
                    };
                    let waiters = completion.end(Outcome::Failed(Arc::new(error)), None);
                    if waiters.is_some() {
                        self.interrupt(program, &completion);
                        self.purge(program, effects);
                    }
                    effects.timed_out.push((completion, waiters));
                }
                Due::Kill(key, number) => {
                    // One that has ended it runs another by now, whose answer is on its way.
                    if let Some(worker) = self.worker(key)
                        && worker.state != WorkerState::Starting
                        && worker.control.running() == number
                        && worker
                            .queue
                            .front()
                            .is_some_and(|task| task.number == number)
                    {
                        worker.kill();
                    }
                }
                Due::Worker(key) => {
                    if let Some(worker) = self.worker(key)
                        && worker.deadline.is_some_and(|deadline| deadline <= now)
                    {
                        worker.kill();
                    }
                }
                Due::Recall(key, number) => self.recall(core, key, number, effects),
                Due::Assign(id) => self.assign(core, id, effects),
            }
        }
        self.deadlines.next()
    }

    /// Lets workers that have nothing to do see a state before a task needs it. A few times between two
    /// tasks: where one entry after the other is put, and none is looked at, nobody gains by it.
    pub(super) fn announce(&mut self, core: &Core, snapshot: &Arc<Snapshot>, codec: Codec) {
        const MOST: u64 = 4;
        if self.announced_at == self.tasks {
            self.announced += 1;
        } else {
            (self.announced, self.announced_at) = (1, self.tasks);
        }
        if self.announced > MOST {
            return;
        }
        for program in &mut self.programs {
            if program.spec.codec != codec {
                continue;
            }
            let resting = program.workers.iter_mut().filter(|it| it.is_resting());
            for worker in resting.take(core.cores) {
                // One that has just died needs no telling.
                let _ = worker.announce(snapshot);
                core.update_interest(worker);
            }
        }
    }

    /// Tells all workers which segments are gone.
    pub(super) fn release(&mut self, core: &Core, numbers: &[u64]) {
        for worker in self.programs.iter_mut().flat_map(|it| &mut it.workers) {
            if worker.broken.is_none() {
                let _ = worker.release(numbers);
                core.update_interest(worker);
            }
        }
    }
}
