//! Frames from workers: what each means for the task that its worker runs.

use std::sync::Arc;
use std::time::Duration;

use super::completion::{Failure, Outcome};
use super::core::Core;
use super::deadlines::{Due, after};
use super::event_queue::Event;
use super::function::BY_REFERENCE;
use super::hello::{Hello, PICKLE, RECALL};
use super::inbound::{Answer, Arrival};
use super::message::Message;
use super::program::greet;
use super::state::{Effects, State};
use super::task::Task;
use super::worker_lives::PAUSE;
use super::worker_process::{WorkerKey, WorkerState};
use crate::error::Error;

/// The causes of ERROR frames that mean something here.
const CAUSE_STALE: u64 = 2;
const CAUSE_STOPPED: u64 = 5;

impl State {
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
            if self
                .worker(key)
                .is_none_or(|worker| worker.broken.is_some())
            {
                break;
            }
            let taken = match arrival {
                Arrival::Hello(hello) => self.greet(key, hello, effects),
                Arrival::Log { task, level, text } => {
                    self.log(key, task, level, text, effects);
                    Ok(())
                }
                Arrival::Progress { task, progress } => {
                    if let Some(task) = self.running(key, task) {
                        task.completion.set_progress(progress.clone());
                        let token = task.spec.progress;
                        effects
                            .events
                            .extend(token.map(|token| Event::Progress(token, progress)));
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

    pub(super) fn greet(
        &mut self,
        key: WorkerKey,
        hello: Hello,
        effects: &mut Effects,
    ) -> crate::Result<()> {
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
            worker.deadline = worker
                .deadline
                .filter(|_| worker.state == WorkerState::Ending);
            worker.takes_interrupts = hello.can(PICKLE);
            worker.takes_recalls = hello.can(RECALL);
        }
        program.hello.get_or_insert(hello);
        if let Some(first) = first {
            let outcome = Outcome::Returned(Message::default());
            effects.ended.push((first, outcome, None));
        }
        Ok(())
    }

    pub(super) fn log(
        &mut self,
        key: WorkerKey,
        number: u64,
        level: u64,
        text: String,
        effects: &mut Effects,
    ) {
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
    pub(super) fn running(&mut self, key: WorkerKey, number: u64) -> Option<&Task> {
        let task = self.worker(key)?.queue.front()?;
        (task.number == number).then_some(task)
    }

    pub(super) fn answered(
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
        if worker
            .queue
            .front()
            .is_none_or(|task| task.number != answer.task)
        {
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
        effects.forgotten.append(&mut worker.forgotten);
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
    pub(super) fn finished(
        &mut self,
        core: &Core,
        key: WorkerKey,
        task: &Task,
        took: Duration,
        effects: &mut Effects,
    ) {
        let program = &mut self.programs[key.program.0];
        program
            .durations
            .note(&task.spec.function, task.spec.weight, took);
        let spec = Arc::clone(&program.spec);
        let Some(worker) = program.worker(key) else {
            return;
        };
        worker.finished += 1;
        let worn = spec.max_tasks.is_some_and(|most| worker.finished >= most)
            || spec
                .max_rss
                .is_some_and(|most| worker.anonymous_bytes() > most);
        if worn && worker.takes_tasks() {
            worker.state = WorkerState::Retiring;
        }
        if worker.state == WorkerState::Retiring && worker.queue.is_empty() {
            worker.shut_down(spec.exit_time);
            core.update_interest(worker);
            let deadline = after(spec.exit_time);
            self.deadlines.push(deadline, Due::Worker(key));
            effects.wake = true;
        }
    }
}

fn is_stale(task: &Task, failure: &Failure) -> bool {
    failure.cause == CAUSE_STALE
        && task.spec.function.form == BY_REFERENCE
        && !task.completion.is_done()
}
