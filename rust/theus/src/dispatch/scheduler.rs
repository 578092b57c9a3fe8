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

use super::budget_slots::BudgetSlots;
use super::completion::{Completion, Failure, Keepalive, Outcome};
use super::core::Core;
use super::deadlines::{Deadlines, Due, after};
use super::durations::Durations;
use super::event_queue::Event;
use super::failures::{self, Settled};
use super::function::BY_REFERENCE;
use super::hello::{Hello, PICKLE, RECALL};
use super::inbound::{Answer, Arrival};
use super::program::{Codec, ProgramId, ProgramSpec, Stamp, StartFailure, greet, start_error};
use super::snapshot::Snapshot;
use super::task::Task;
use super::worker_process::{EXIT, SendError, Worker, WorkerKey, WorkerState};
use crate::error::Error;

/// A task is short if it was measured to take less; only these wait behind another.
const SHORT: Duration = Duration::from_millis(1);
/// A worker's queue is full when its tasks should take this long.
const BACKLOG: Duration = Duration::from_millis(2);
const MAX_QUEUE: usize = 128;
/// How long a task has to end after it was asked to.
pub(super) const GRACE: Duration = Duration::from_millis(100);
/// How long a worker has to say hello.
const START: Duration = Duration::from_secs(60);
/// The pause after a failed start, which doubles each time.
const PAUSE: Duration = Duration::from_secs(1);
const MAX_PAUSE: Duration = Duration::from_secs(60);
/// A worker whose task runs this much longer than the tasks behind it should wait gives these back.
const HELD_UP: Duration = Duration::from_millis(5);
/// The causes of ERROR frames that mean something here.
const CAUSE_STALE: u64 = 2;
const CAUSE_STOPPED: u64 = 5;

/// What has to happen when the lock is released.
#[derive(Default)]
pub(super) struct Effects {
    pub(super) ended: Vec<(Arc<Completion>, Outcome, Option<Keepalive>)>,
    pub(super) events: Vec<Event>,
    pub(super) stale: Vec<Box<Task>>,
    /// Dropping these may run code of the user.
    pub(super) dropped: Vec<Box<Task>>,
    /// The thread of the engine has to look at the state.
    pub(super) wake: bool,
}

impl Effects {
    fn end(&mut self, mut task: Box<Task>, outcome: Outcome) {
        let keepalive = task.spec.keepalive.take();
        self.ended.push((Arc::clone(&task.completion), outcome, keepalive));
        self.dropped.push(task);
    }

    fn fail(&mut self, task: Box<Task>, error: &Arc<Error>) {
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
    starts: VecDeque<(u64, usize, Duration)>,
    /// How many of these a thread has taken, and not brought back yet.
    starting: usize,
    failed_starts: u32,
    start_again: Option<Instant>,
    pause: Duration,
    /// Ends with the first hello, or with the reason why there is none.
    first: Option<Arc<Completion>>,
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
    slots: BudgetSlots,
    tasks: u64,
    workers: u64,
    announced: u64,
    announced_at: u64,
}

impl State {
    // --- programs ---

    pub(super) fn add_program(&mut self, spec: ProgramSpec, stamp: Option<Stamp>) -> ProgramId {
        let id = ProgramId(self.programs.len());
        self.programs.push(Program {
            id,
            spec: Arc::new(spec),
            stamp,
            hello: None,
            pending: VecDeque::new(),
            workers: Vec::new(),
            durations: Durations::default(),
            starts: VecDeque::new(),
            starting: 0,
            failed_starts: 0,
            start_again: None,
            pause: PAUSE,
            first: None,
        });
        id
    }

    /// Has the first worker of a program started, which has `time` to say hello.
    pub(super) fn start_first(
        &mut self,
        id: ProgramId,
        time: Duration,
        effects: &mut Effects,
    ) -> Arc<Completion> {
        let first = Arc::new(Completion::default());
        self.programs[id.0].first = Some(Arc::clone(&first));
        self.request_start(id, time, effects);
        first
    }

    /// Has one more worker started, of those that there are cores for. Returns whether one is.
    pub(super) fn warm_up(&mut self, id: ProgramId, cores: usize, effects: &mut Effects) -> bool {
        let program = &self.programs[id.0];
        let wanted = program.spec.workers.min(cores);
        if self.closed || program.serving() >= wanted || !program.may_start() {
            return false;
        }
        self.request_start(id, START, effects);
        true
    }

    fn request_start(&mut self, id: ProgramId, time: Duration, effects: &mut Effects) {
        self.workers += 1;
        let (number, slot) = (self.workers, self.slots.take());
        self.programs[id.0].starts.push_back((number, slot, time));
        effects.wake = true;
    }

    /// Takes the next worker that is to be started.
    pub(super) fn take_start(&mut self) -> Option<StartRequest> {
        for program in &mut self.programs {
            if let Some((number, slot, time)) = program.starts.pop_front() {
                program.starting += 1;
                return Some(StartRequest {
                    key: WorkerKey {
                        program: program.id,
                        number,
                    },
                    slot,
                    time,
                    spec: Arc::clone(&program.spec),
                    stamp: program.stamp,
                });
            }
        }
        None
    }

    /// Takes a worker that was started.
    pub(super) fn started(&mut self, core: &Core, worker: Worker, effects: &mut Effects) {
        let key = worker.key;
        if let Some(deadline) = worker.deadline {
            self.deadlines.push(deadline, Due::Worker(key));
        }
        let program = &mut self.programs[key.program.0];
        program.starting -= 1;
        core.watch(&worker);
        program.workers.push(worker);
        if self.closed {
            self.end_worker(core, key, effects);
        }
        self.assign(core, key.program, effects);
    }

    /// Takes the reason why a worker could not be started. Tasks fail with it, unless others run that
    /// will come to them.
    pub(super) fn not_started(
        &mut self,
        core: &Core,
        key: WorkerKey,
        slot: usize,
        error: Error,
        effects: &mut Effects,
    ) {
        self.slots.give_back(slot);
        let program = &mut self.programs[key.program.0];
        program.starting -= 1;
        if program.workers.is_empty() {
            program.give_up(&Arc::new(error), effects);
        } else {
            self.hold_off(key.program);
        }
        let _ = core;
    }

    /// Starts no worker of a program for a while, as the last ones did not come up and others run.
    fn hold_off(&mut self, id: ProgramId) {
        let program = &mut self.programs[id.0];
        let until = after(program.pause);
        program.start_again = Some(until);
        program.pause = (program.pause * 2).min(MAX_PAUSE);
        self.deadlines.push(until, Due::Assign(id));
    }

    // --- tasks ---

    /// Takes a task of the caller's.
    pub(super) fn submit(
        &mut self,
        core: &Core,
        task: Box<Task>,
        effects: &mut Effects,
    ) {
        let id = task.spec.program;
        if let Some(timeout) = task.spec.timeout {
            let due = Due::Timeout {
                completion: Arc::clone(&task.completion),
                program: id,
                name: task.name().to_owned(),
                timeout,
            };
            self.deadlines.push(after(timeout), due);
            effects.wake = true;
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
                    self.request_start(id, START, effects);
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
            match worker.send(task) {
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

    fn flush(&mut self, core: &Core, key: WorkerKey, effects: &mut Effects) {
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
            effects.wake |= self.sleeps_until.is_none_or(|until| moment < until);
        }
    }

    /// Takes tasks back that wait behind one that takes longer than it should.
    fn recall(&mut self, core: &Core, key: WorkerKey, first: u64, effects: &mut Effects) {
        let Some(worker) = self.worker(key) else {
            return;
        };
        worker.watched = false;
        let held_up = worker.queue.front().is_some_and(|task| task.number == first);
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
        worker.backlog = worker.queue.iter().map(|task| task.estimate).fold(Duration::ZERO, Duration::saturating_add);
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

    /// Drops cancelled tasks from a queue that has many.
    pub(super) fn purge(&mut self, id: ProgramId, effects: &mut Effects) {
        let pending = &mut self.programs[id.0].pending;
        if pending.front().is_some_and(|task| task.completion.is_done()) || pending.len() < 64 {
            let (done, rest): (VecDeque<_>, VecDeque<_>) = std::mem::take(pending)
                .into_iter()
                .partition(|task| task.completion.is_done());
            *pending = rest;
            effects.dropped.extend(done);
        }
    }

    // --- frames ---

    /// Acts on frames of a worker, in their order.
    pub(super) fn apply(
        &mut self,
        core: &Core,
        key: WorkerKey,
        arrivals: Vec<Arrival>,
        effects: &mut Effects,
    ) {
        for arrival in arrivals {
            // Another thread may have found the worker dead, or this frame the worker broken.
            if self.worker(key).is_none_or(|worker| worker.broken.is_some()) {
                break;
            }
            let taken = match arrival {
                Arrival::Hello(hello) => self.greet(key, hello),
                Arrival::Log { task, level, text } => {
                    self.log(key, task, level, text, effects);
                    Ok(())
                }
                Arrival::Progress { task, progress } => {
                    if let Some(task) = self.running(key, task) {
                        task.completion.set_progress(progress.clone());
                        let token = task.spec.progress;
                        effects.events.extend(token.map(|token| Event::Progress(token, progress)));
                    }
                    Ok(())
                }
                Arrival::Answer(answer) => self.answered(core, key, answer, effects),
            };
            if let Err(error) = taken {
                self.break_off(core, key, Some(error));
            }
        }
        self.assign(core, key.program, effects);
    }

    fn greet(&mut self, key: WorkerKey, hello: Hello) -> crate::Result<()> {
        let program = &mut self.programs[key.program.0];
        greet(&program.spec, program.hello.as_ref(), &hello)?;
        program.failed_starts = 0;
        program.pause = PAUSE;
        let first = program.first.take();
        if let Some(worker) = program.worker(key) {
            worker.state = match worker.state {
                WorkerState::Starting => WorkerState::Ready,
                other => other,
            };
            worker.deadline = worker.deadline.filter(|_| worker.state == WorkerState::Ending);
            worker.takes_interrupts = hello.can(PICKLE);
            worker.takes_recalls = hello.can(RECALL);
        }
        program.hello.get_or_insert(hello);
        if let Some(first) = first {
            first.finish(Outcome::Returned(super::message::Message::default()), None);
        }
        Ok(())
    }

    fn log(&mut self, key: WorkerKey, number: u64, level: u64, text: String, effects: &mut Effects) {
        // A thread that a task has left behind may be late: its line is for the log all the same.
        let task = self.running(key, number).map(|task| task.name().to_owned());
        if let Some(worker) = self.worker(key) {
            let pid = worker.pid.as_raw_nonzero().get();
            effects.events.push(Event::Log {
                pid,
                task,
                level,
                text,
            });
        }
    }

    /// The task of this number, if its worker has it first in line.
    fn running(&mut self, key: WorkerKey, number: u64) -> Option<&Task> {
        let task = self.worker(key)?.queue.front()?;
        (task.number == number).then_some(task)
    }

    fn answered(
        &mut self,
        core: &Core,
        key: WorkerKey,
        answer: Answer,
        effects: &mut Effects,
    ) -> crate::Result<()> {
        let Some(worker) = self.worker(key) else {
            return Ok(());
        };
        let skipped = matches!(&answer.outcome, Err(failure) if failure.cause == CAUSE_STOPPED)
            && answer.task <= worker.recalled;
        if worker.queue.front().is_none_or(|task| task.number != answer.task) {
            if skipped {
                return Ok(());
            }
            return Err(Error::WorkerAnswer { task: answer.task });
        }
        let Some(mut task) = worker.queue.pop_front() else {
            return Ok(());
        };
        worker.backlog = match worker.queue.len() {
            0 => Duration::ZERO,
            _ => worker.backlog.saturating_sub(task.estimate),
        };
        worker.forget_parts(&task.spec.function);
        if skipped && !task.completion.is_done() {
            task.completion.requeue();
            self.programs[key.program.0].pending.push_front(task);
            return Ok(());
        }
        let next = worker.queue.front();
        if let Some(next) = next.filter(|next| next.completion.is_done()) {
            // Withdrawn while it waited behind this one: the worker may have begun it.
            let completion = Arc::clone(&next.completion);
            effects.wake |= self.interrupt(key.program, &completion);
        }
        self.finished(core, key, &task, answer.took, effects);
        let outcome = match (answer.refused, answer.outcome) {
            (Some(error), _) => Outcome::Failed(Arc::new(error)),
            (None, Ok(message)) => Outcome::Returned(message),
            (None, Err(failure)) if is_stale(&task, &failure) => {
                task.completion.requeue();
                task.aborted = 0;
                effects.stale.push(task);
                return Ok(());
            }
            (None, Err(failure)) => Outcome::Raised(failure),
        };
        effects.end(task, outcome);
        Ok(())
    }

    /// Notes that a worker has run a task; retires it if that was its last.
    fn finished(
        &mut self,
        core: &Core,
        key: WorkerKey,
        task: &Task,
        took: Duration,
        effects: &mut Effects,
    ) {
        let program = &mut self.programs[key.program.0];
        program.durations.note(&task.spec.function, task.spec.weight, took);
        let spec = Arc::clone(&program.spec);
        let Some(worker) = program.worker(key) else {
            return;
        };
        worker.finished += 1;
        let worn = spec.max_tasks.is_some_and(|most| worker.finished >= most)
            || spec.max_rss.is_some_and(|most| worker.anonymous_bytes() > most);
        if worn && worker.takes_tasks() {
            worker.state = WorkerState::Retiring;
        }
        if worker.state == WorkerState::Retiring && worker.queue.is_empty() {
            worker.shut_down(EXIT);
            core.update_interest(worker);
            let deadline = after(EXIT);
            self.deadlines.push(deadline, Due::Worker(key));
            effects.wake = true;
        }
    }

    // --- the end of workers ---

    /// Gives up a worker whose channel does not work any more: it is killed, at once if it sent what
    /// cannot be taken, and else after a grace, as it may be on its way out. The end of its process
    /// settles its tasks.
    pub(super) fn break_off(&mut self, core: &Core, key: WorkerKey, reason: Option<Error>) {
        let Some(worker) = self.worker(key) else {
            return;
        };
        if worker.broken.is_some() {
            return;
        }
        let at_once = reason.is_some();
        worker.broken = Some(reason.unwrap_or(Error::ChannelEnd { pending_bytes: 0 }));
        if worker.state != WorkerState::Starting {
            worker.state = WorkerState::Ending;
        }
        core.update_interest(worker);
        if at_once {
            worker.kill();
        } else {
            let deadline = after(GRACE);
            worker.deadline = Some(worker.deadline.map_or(deadline, |it| it.min(deadline)));
            self.deadlines.push(deadline, Due::Worker(key));
            core.wake();
        }
    }

    /// Settles the tasks of a worker whose process has ended, and forgets it.
    pub(super) fn reaped(
        &mut self,
        core: &Core,
        key: WorkerKey,
        status: i32,
        effects: &mut Effects,
    ) -> Option<Worker> {
        let program = &mut self.programs[key.program.0];
        let place = program.workers.iter().position(|it| it.key == key)?;
        let mut worker = program.workers.swap_remove(place);
        core.forget(&worker);
        let was_ready = worker.state != WorkerState::Starting;
        if was_ready || self.closed {
            let Settled { failed, again } = failures::settle(&mut worker, status);
            for (task, error) in failed {
                effects.fail(task, &Arc::new(error));
            }
            for task in again.into_iter().rev() {
                task.completion.requeue();
                program.pending.push_front(task);
            }
        } else {
            self.failed_start(&mut worker, status, effects);
        }
        core.clear_slot(worker.slot);
        self.slots.give_back(worker.slot);
        if self.closed {
            self.fail_pending(key.program, effects);
        }
        self.assign(core, key.program, effects);
        effects.wake = true;
        Some(worker)
    }

    fn failed_start(&mut self, worker: &mut Worker, status: i32, effects: &mut Effects) {
        let id = worker.key.program;
        let late = worker.deadline.is_some_and(|deadline| deadline <= Instant::now());
        let broken = worker.broken.take();
        let is_end = matches!(broken, Some(Error::ChannelEnd { .. } | Error::ChannelPeerGone { .. }));
        let broken = broken.filter(|_| !is_end);
        let was_broken = broken.is_some();
        let failure = StartFailure {
            status,
            stderr: worker.trace(),
            broken,
            late: late.then_some(worker.start_time),
        };
        let program = &mut self.programs[id.0];
        let attempts = program.failed_starts + 1;
        let settled = if was_broken && !program.spec.pinned {
            // Its own tasks are to blame, if anything is: as when one that runs is broken off.
            let Settled { failed, again } = failures::settle_broken(worker, status, failure);
            for (task, error) in failed {
                effects.fail(task, &Arc::new(error));
            }
            for task in again.into_iter().rev() {
                task.completion.requeue();
                program.pending.push_front(task);
            }
            return;
        } else {
            start_error(&program.spec, attempts, program.hello.is_none(), failure)
        };
        let mut queue = std::mem::take(&mut worker.queue);
        while let Some(task) = queue.pop_back() {
            task.completion.requeue();
            program.pending.push_front(task);
        }
        let Some(error) = settled else {
            program.failed_starts = attempts;
            return;
        };
        program.failed_starts = 0;
        if program.workers.iter().any(|it| it.state == WorkerState::Ready) {
            self.hold_off(id);
        } else {
            // None of them has begun, and no other worker would do better.
            program.give_up(&Arc::new(error), effects);
        }
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
                    let error = Error::TaskTimeout {
                        task: name,
                        timeout,
                    };
                    if core.finish(&completion, Outcome::Failed(Arc::new(error)), None) {
                        self.interrupt(program, &completion);
                        self.purge(program, effects);
                    }
                }
                Due::Kill(key, number) => {
                    if let Some(worker) = self.worker(key)
                        && worker.state != WorkerState::Starting
                        && worker.queue.front().is_some_and(|task| task.number == number)
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

    // --- all workers ---

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

    /// Ends everything: tasks fail, idle workers are asked to end, busy ones interrupted.
    pub(super) fn close(&mut self, core: &Core, effects: &mut Effects) {
        if self.closed {
            return;
        }
        self.closed = true;
        self.deadlines.clear();
        for place in 0..self.programs.len() {
            let id = ProgramId(place);
            self.fail_pending(id, effects);
            let program = &mut self.programs[place];
            let starts = std::mem::take(&mut program.starts);
            let keys: Vec<_> = program.workers.iter().map(|it| it.key).collect();
            if let Some(first) = program.first.take() {
                effects.ended.push((first, Outcome::Failed(closed()), None));
            }
            for (_, slot, _) in starts {
                self.slots.give_back(slot);
            }
            for key in keys {
                self.end_worker(core, key, effects);
            }
        }
        effects.wake = true;
    }

    fn fail_pending(&mut self, id: ProgramId, effects: &mut Effects) {
        for task in std::mem::take(&mut self.programs[id.0].pending) {
            effects.fail(task, &closed());
        }
    }

    /// Removes a program that is not to be used: its workers end.
    pub(super) fn remove_program(&mut self, core: &Core, id: ProgramId, effects: &mut Effects) {
        let keys: Vec<_> = self.programs[id.0].workers.iter().map(|it| it.key).collect();
        for key in keys {
            self.end_worker(core, key, effects);
        }
        effects.wake = true;
    }

    fn end_worker(&mut self, core: &Core, key: WorkerKey, effects: &mut Effects) {
        let Some(worker) = self.worker(key) else {
            return;
        };
        // The caller gets the outcome now; the worker's own answer comes too late.
        for task in &mut worker.queue {
            let keepalive = task.spec.keepalive.take();
            effects.ended.push((Arc::clone(&task.completion), Outcome::Failed(closed()), keepalive));
        }
        let was_starting = worker.state == WorkerState::Starting;
        if let Some(task) = worker.queue.front() {
            worker.interrupt(task.number);
        }
        let time = if worker.queue.is_empty() { GRACE * 5 } else { GRACE };
        worker.shut_down(time);
        core.update_interest(worker);
        if was_starting {
            worker.kill();
        }
        self.deadlines.push(after(time), Due::Worker(key));
    }

    /// Returns whether no worker is left, nor any about to start.
    pub(super) fn is_empty(&self) -> bool {
        let mut programs = self.programs.iter();
        programs.all(|it| it.workers.is_empty() && it.starting == 0 && it.starts.is_empty())
    }

    pub(super) fn worker(&mut self, key: WorkerKey) -> Option<&mut Worker> {
        self.programs[key.program.0].worker(key)
    }
}

/// What to do with the next task.
enum Choice {
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
    fn serving(&self) -> usize {
        let running = self.workers.iter().filter(|it| it.takes_tasks());
        running.count() + self.starting + self.starts.len()
    }

    /// Returns how many workers have tasks.
    pub(super) fn busy(&self) -> usize {
        self.workers.iter().filter(|it| !it.queue.is_empty()).count()
    }

    fn may_start(&self) -> bool {
        self.workers.is_empty() || self.start_again.is_none_or(|moment| moment <= Instant::now())
    }

    /// Returns how long a task should take; none if it may be long.
    pub(super) fn estimate(&self, task: &Task) -> Option<Duration> {
        let duration = self.durations.get(&task.spec.function)?;
        Some(duration * task.spec.weight).filter(|estimate| *estimate < SHORT)
    }

    fn choose(&self, task: &Task) -> Choice {
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
        let left = self.spec.max_tasks.map(|most| most.saturating_sub(worker.finished));
        let left = left.and_then(|left| usize::try_from(left).ok());
        left.map_or(MAX_QUEUE, |left| left.min(MAX_QUEUE))
    }

    /// Fails all pending tasks, and whoever waits for the first worker.
    fn give_up(&mut self, error: &Arc<Error>, effects: &mut Effects) {
        for task in std::mem::take(&mut self.pending) {
            effects.fail(task, error);
        }
        if let Some(first) = self.first.take() {
            effects.ended.push((first, Outcome::Failed(Arc::clone(error)), None));
        }
    }
}

fn is_stale(task: &Task, failure: &Failure) -> bool {
    failure.cause == CAUSE_STALE
        && task.spec.function.form == BY_REFERENCE
        && !task.completion.is_done()
}

/// The error of tasks that the end of their engine ends.
pub(super) fn closed() -> Arc<Error> {
    Arc::new(Error::EngineClosed)
}
