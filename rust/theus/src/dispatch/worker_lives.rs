//! The life of workers in the state: they are started, they end, and what they leave is settled.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::completion::{Completion, Outcome};
use super::core::Core;
use super::deadlines::{Due, after};
use super::durations::Durations;
use super::failures::{self, Settled};
use super::program::{ProgramId, ProgramSpec, Stamp, StartFailure, start_error};
use super::scheduler::GRACE;
use super::state::{Effects, Program, StartRequest, State, closed};
use super::worker_process::{Worker, WorkerKey, WorkerState};
use crate::error::Error;

/// The pause after a failed start, which doubles each time.
pub(super) const PAUSE: Duration = Duration::from_secs(1);
const MAX_PAUSE: Duration = Duration::from_secs(60);

impl State {
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
            withdrawn: 0,
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
        let time = program.spec.start_time;
        self.request_start(id, time, effects);
        true
    }

    pub(super) fn request_start(&mut self, id: ProgramId, time: Duration, effects: &mut Effects) {
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
    pub(super) fn hold_off(&mut self, id: ProgramId) {
        let program = &mut self.programs[id.0];
        let until = after(program.pause);
        program.start_again = Some(until);
        program.pause = (program.pause * 2).min(MAX_PAUSE);
        self.deadlines.push(until, Due::Assign(id));
    }

    /// Removes a program that is not to be used: its workers end.
    pub(super) fn remove_program(&mut self, core: &Core, id: ProgramId, effects: &mut Effects) {
        let keys: Vec<_> = self.programs[id.0]
            .workers
            .iter()
            .map(|it| it.key)
            .collect();
        for key in keys {
            self.end_worker(core, key, effects);
        }
        effects.wake = true;
    }

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

    pub(super) fn failed_start(&mut self, worker: &mut Worker, status: i32, effects: &mut Effects) {
        let id = worker.key.program;
        let late = worker
            .deadline
            .is_some_and(|deadline| deadline <= Instant::now());
        let broken = worker.broken.take();
        let is_end = matches!(
            broken,
            Some(Error::ChannelEnd { .. } | Error::ChannelPeerGone { .. })
        );
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
        if program
            .workers
            .iter()
            .any(|it| it.state == WorkerState::Ready)
        {
            self.hold_off(id);
        } else {
            // None of them has begun, and no other worker would do better.
            program.give_up(&Arc::new(error), effects);
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

    pub(super) fn fail_pending(&mut self, id: ProgramId, effects: &mut Effects) {
        for task in std::mem::take(&mut self.programs[id.0].pending) {
            effects.fail(task, &closed());
        }
    }

    pub(super) fn end_worker(&mut self, core: &Core, key: WorkerKey, effects: &mut Effects) {
        let Some(worker) = self.worker(key) else {
            return;
        };
        // The caller gets the outcome now; the worker's own answer comes too late.
        for task in &mut worker.queue {
            let keepalive = task.spec.keepalive.take();
            effects.ended.push((
                Arc::clone(&task.completion),
                Outcome::Failed(closed()),
                keepalive,
            ));
        }
        let was_starting = worker.state == WorkerState::Starting;
        if let Some(task) = worker.queue.front() {
            worker.interrupt(task.number);
        }
        let time = if worker.queue.is_empty() {
            GRACE * 5
        } else {
            GRACE
        };
        worker.shut_down(time);
        core.update_interest(worker);
        if was_starting {
            worker.kill();
        }
        self.deadlines.push(after(time), Due::Worker(key));
    }
}
