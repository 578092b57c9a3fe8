//! What the death of a worker means for the tasks that it had.

use std::sync::Arc;

use super::program::StartFailure;
use super::task::Task;
use super::worker_process::Worker;
use crate::error::{Death, Error};

/// How many workers may die with a task first in line that none of them had begun.
const MAX_ABORTED: u32 = 5;

/// The tasks of a dead worker.
#[expect(clippy::vec_box, reason = "tasks go back to a queue as they are")]
pub(super) struct Settled {
    /// Those that fail, and why.
    pub(super) failed: Vec<(Box<Task>, Error)>,
    /// Those that are sent again, in their order.
    pub(super) again: Vec<Box<Task>>,
}

/// Decides which tasks of a dead worker fail, and which are sent again.
///
/// The task that it ran fails, or is sent again if its function may be retried; the others had not
/// begun. A worker that dies between two tasks is nobody's fault, but not for ever.
pub(super) fn settle(worker: &mut Worker, status: i32) -> Settled {
    let broken = match worker.broken.take() {
        Some(Error::ChannelEnd { .. } | Error::ChannelPeerGone { .. }) | None => None,
        Some(broken) => Some(Arc::new(broken)),
    };
    divide(worker, status, broken.as_ref())
}

/// As [`settle`], for one that was never ready and sent what cannot be taken.
pub(super) fn settle_broken(worker: &mut Worker, status: i32, failure: StartFailure) -> Settled {
    divide(worker, status, failure.broken.map(Arc::new).as_ref())
}

fn divide(worker: &mut Worker, status: i32, broken: Option<&Arc<Error>>) -> Settled {
    let running = worker.control.running();
    let pid = worker.pid.as_raw_nonzero().get();
    let trace = worker.trace();
    let mut settled = Settled {
        failed: Vec::new(),
        again: Vec::new(),
    };
    for (place, mut task) in std::mem::take(&mut worker.queue).into_iter().enumerate() {
        let begun = task.number == running;
        if place == 0 && !begun {
            task.aborted += 1;
        }
        let error = match broken {
            Some(broken) if place == 0 && (begun || task.aborted > 1) => {
                Some(Error::WorkerBroken {
                    task: task.name().to_owned(),
                    pid,
                    source: Arc::clone(broken),
                })
            }
            _ if begun || task.aborted > MAX_ABORTED => {
                let death = Death {
                    pid,
                    status,
                    trace: trace.clone(),
                };
                died(&mut task, death)
            }
            _ => None,
        };
        match error {
            Some(error) => settled.failed.push((task, error)),
            None => settled.again.push(task),
        }
    }
    settled
}

/// Counts the death; returns the error of the task, or none if it is sent again.
fn died(task: &mut Task, death: Death) -> Option<Error> {
    task.deaths.push(death);
    let retries = task.spec.function.retries as usize;
    if !task.completion.is_done() && task.deaths.len() <= retries {
        return None;
    }
    let name = task.name().to_owned();
    let deaths = std::mem::take(&mut task.deaths);
    if retries > 0 {
        return Some(Error::PoisonTask { task: name, deaths });
    }
    deaths
        .into_iter()
        .next_back()
        .map(|death| Error::WorkerDied { task: name, death })
}
