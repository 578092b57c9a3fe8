//! The end of a task: one outcome, set once, and the waiters that it wakes.
//!
//! A completion is shared by the dispatcher and by the caller's future. Nothing else of a task is.
//! Setting the outcome is the only step that decides between finishing, cancelling and timing out;
//! whoever sets it first wins. A waiter is woken by the completion itself: a thread by a futex, an
//! event loop by an eventfd, a Rust future by its waker. No callback runs here.

use std::any::Any;
use std::fmt;
use std::sync::{Arc, PoisonError};
use std::task::Waker;
use std::time::Duration;

use super::event_queue::EventQueue;
use super::loop_queue::LoopQueue;
use super::message::Message;
use super::signal::{Signal, Woken};
use super::sync::{Mutex, MutexGuard};
use crate::error::Error;

/// Objects that have to live until the outcome of a task has been loaded.
pub type Keepalive = Arc<dyn Any + Send + Sync>;

/// How a task ended.
#[derive(Clone)]
pub enum Outcome {
    /// The task returned this.
    Returned(Message),
    /// The worker sent an ERROR frame.
    Raised(Failure),
    /// The dispatcher gave the task up.
    Failed(Arc<Error>),
    /// The caller cancelled the task.
    Cancelled,
    /// An error that the embedding language made.
    Foreign(Keepalive),
}

impl fmt::Debug for Outcome {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Returned(message) => f.debug_tuple("Returned").field(message).finish(),
            Self::Raised(failure) => f.debug_tuple("Raised").field(failure).finish(),
            Self::Failed(error) => f.debug_tuple("Failed").field(error).finish(),
            Self::Cancelled => f.write_str("Cancelled"),
            Self::Foreign(_) => f.write_str("Foreign"),
        }
    }
}

/// The contents of an ERROR frame.
#[derive(Debug, Clone)]
pub struct Failure {
    /// The cause, a number of `schemas/frames.json`.
    pub cause: u64,
    /// The exception, encoded as the worker's program encodes values.
    pub message: Message,
    /// The text of its traceback.
    pub traceback: Arc<[u8]>,
}

/// The progress that a task last reported.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Progress {
    /// Completed work, in a unit that the task chooses.
    pub done: u64,
    /// All of the work, if the task knows it.
    pub total: Option<u64>,
    /// What the task does now; may be empty.
    pub message: String,
}

/// How far a task is, as its caller sees it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Phase {
    /// Waits for a worker.
    Queued,
    /// A worker has it.
    Sent,
    /// Its outcome is set.
    Done,
}

/// A waiter of a completion.
#[derive(Debug)]
pub enum Subscriber {
    /// A blocked thread.
    Thread(Arc<Signal>),
    /// An event loop, and the number by which it knows the task.
    Loop(Arc<LoopQueue>, u64),
    /// The thread that runs callbacks, and the number by which it knows the task.
    Events(Arc<EventQueue>, u64),
    /// A Rust future.
    Waker(Waker),
}

impl Subscriber {
    fn notify(self) {
        match self {
            Self::Thread(signal) => signal.set(),
            Self::Loop(queue, token) => queue.push(token),
            Self::Events(queue, token) => queue.push_done(token),
            Self::Waker(waker) => waker.wake(),
        }
    }
}

/// Who waited for a task that has ended, to be woken without any lock: a waker is code of the user.
#[must_use = "they wait until they are woken"]
pub(super) struct Waiters(Vec<Subscriber>);

impl Waiters {
    pub(super) fn wake(self) {
        for subscriber in self.0 {
            subscriber.notify();
        }
    }
}

/// The shared end of one task.
#[derive(Debug)]
pub struct Completion {
    inner: Mutex<Inner>,
}

struct Inner {
    phase: Phase,
    is_cancelled: bool,
    outcome: Option<Outcome>,
    keepalive: Option<Keepalive>,
    progress: Option<Progress>,
    subscribers: Vec<Subscriber>,
}

impl fmt::Debug for Inner {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Inner")
            .field("phase", &self.phase)
            .field("outcome", &self.outcome)
            .field("subscribers", &self.subscribers)
            .finish_non_exhaustive()
    }
}

impl Default for Completion {
    fn default() -> Self {
        Self {
            inner: Mutex::new(Inner {
                phase: Phase::Queued,
                is_cancelled: false,
                outcome: None,
                keepalive: None,
                progress: None,
                subscribers: Vec::new(),
            }),
        }
    }
}

impl Completion {
    /// Returns how far the task is.
    pub fn phase(&self) -> Phase {
        self.inner().phase
    }

    /// Returns whether the outcome is set.
    pub fn is_done(&self) -> bool {
        self.phase() == Phase::Done
    }

    /// Notes that a worker gets the task; false if its outcome is set already.
    pub(super) fn start(&self) -> bool {
        let mut inner = self.inner();
        if inner.phase == Phase::Done {
            return false;
        }
        inner.phase = Phase::Sent;
        true
    }

    /// Notes that the task waits for a worker again.
    pub(super) fn requeue(&self) {
        let mut inner = self.inner();
        if inner.phase == Phase::Sent {
            inner.phase = Phase::Queued;
        }
    }

    /// Sets the outcome, unless it is set, and wakes the waiters. Returns whether it did.
    ///
    /// `keepalive` stays until the outcome is [discarded](Self::discard), so that handles in the result
    /// stay valid until somebody has loaded them.
    pub fn finish(&self, outcome: Outcome, keepalive: Option<Keepalive>) -> bool {
        let waiters = self.end(outcome, keepalive);
        waiters.map(Waiters::wake).is_some()
    }

    /// Cancels a task that no worker has got yet; false if one has.
    pub(super) fn cancel_queued(&self) -> bool {
        let waiters = self.end_if(|phase| phase == Phase::Queued, Outcome::Cancelled, None);
        waiters.map(Waiters::wake).is_some()
    }

    /// Sets the outcome as [`finish`](Self::finish) does, and leaves it to the caller to wake who waits:
    /// for one who holds a lock. None if there is an outcome already.
    pub(super) fn end(&self, outcome: Outcome, keepalive: Option<Keepalive>) -> Option<Waiters> {
        self.end_if(|_| true, outcome, keepalive)
    }

    fn end_if(
        &self,
        may: impl FnOnce(Phase) -> bool,
        outcome: Outcome,
        keepalive: Option<Keepalive>,
    ) -> Option<Waiters> {
        let mut inner = self.inner();
        if inner.phase == Phase::Done || !may(inner.phase) {
            // Dropping a value may run code of the user: not under the lock.
            drop(inner);
            return None;
        }
        inner.phase = Phase::Done;
        inner.is_cancelled = matches!(outcome, Outcome::Cancelled);
        inner.outcome = Some(outcome);
        inner.keepalive = keepalive;
        Some(Waiters(std::mem::take(&mut inner.subscribers)))
    }

    /// Has `subscriber` notified of the outcome, at once if it is set.
    pub fn subscribe(&self, subscriber: Subscriber) {
        let mut inner = self.inner();
        if inner.phase == Phase::Done {
            drop(inner);
            subscriber.notify();
        } else {
            inner.subscribers.push(subscriber);
        }
    }

    /// Waits without a limit, or for up to `timeout`. A signal handler that ran in this thread ends
    /// the wait, too.
    pub fn wait(&self, timeout: Option<Duration>) -> Woken {
        let signal = Arc::new(Signal::default());
        self.subscribe(Subscriber::Thread(Arc::clone(&signal)));
        let woken = signal.wait(timeout);
        if woken != Woken::Set {
            let mut inner = self.inner();
            let is_other =
                |it: &Subscriber| !matches!(it, Subscriber::Thread(it) if Arc::ptr_eq(it, &signal));
            inner.subscribers.retain(is_other);
        }
        woken
    }

    /// Returns whether the task was cancelled.
    pub fn is_cancelled(&self) -> bool {
        self.inner().is_cancelled
    }

    /// Returns the outcome and the object that it relies on, until they are [discarded](Self::discard).
    ///
    /// It stays here, so that whoever is interrupted while it loads the outcome can do so again.
    pub fn outcome(&self) -> Option<(Outcome, Option<Keepalive>)> {
        let inner = self.inner();
        Some((inner.outcome.clone()?, inner.keepalive.clone()))
    }

    /// As [`outcome`](Self::outcome), without waiting for a lock that no thread of this process may hold:
    /// for a forked child.
    pub fn try_outcome(&self) -> Option<(Outcome, Option<Keepalive>)> {
        let inner = self.inner.try_lock().ok()?;
        Some((inner.outcome.clone()?, inner.keepalive.clone()))
    }

    /// Lets go of the outcome: somebody has loaded it.
    pub fn discard(&self) {
        let discarded = {
            let mut inner = self.inner();
            (inner.outcome.take(), inner.keepalive.take())
        };
        // Dropping these may run code of the user: not under the lock.
        drop(discarded);
    }

    /// Returns what the task last reported.
    pub fn progress(&self) -> Option<Progress> {
        self.inner().progress.clone()
    }

    pub(super) fn set_progress(&self, progress: Progress) {
        let mut inner = self.inner();
        if inner.phase != Phase::Done {
            inner.progress = Some(progress);
        }
    }

    fn inner(&self) -> MutexGuard<'_, Inner> {
        // No step under the lock can panic half way.
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(all(test, not(feature = "loom")))]
mod tests {
    use std::sync::Arc;
    use std::thread;

    use super::*;

    fn returned(byte: u8) -> Outcome {
        Outcome::Returned(Message::inline([byte]))
    }

    fn byte(completion: &Completion) -> Option<u8> {
        match completion.outcome()?.0 {
            Outcome::Returned(message) => Some(message.data[0]),
            _ => None,
        }
    }

    #[test]
    fn the_first_outcome_stays() {
        let completion = Completion::default();
        assert!(completion.start());
        assert!(completion.finish(returned(1), None));
        assert!(!completion.finish(Outcome::Cancelled, None));
        assert!(!completion.start());
        assert_eq!(byte(&completion), Some(1));
        completion.discard();
        assert!(completion.outcome().is_none());
        assert!(completion.is_done() && !completion.is_cancelled());
    }

    #[test]
    fn a_queued_task_can_be_cancelled_and_a_sent_one_not_by_the_same_call() {
        let queued = Completion::default();
        assert!(queued.cancel_queued());
        let sent = Completion::default();
        sent.start();
        assert!(!sent.cancel_queued());
        sent.requeue();
        assert!(sent.cancel_queued());
    }

    #[test]
    fn a_wait_ends_with_its_time_or_with_the_outcome() {
        let completion = Arc::new(Completion::default());
        assert_eq!(
            completion.wait(Some(Duration::from_millis(1))),
            Woken::TimedOut
        );
        assert!(completion.inner().subscribers.is_empty());
        let other = Arc::clone(&completion);
        let waiter = thread::spawn(move || other.wait(None));
        completion.finish(returned(2), None);
        assert_eq!(waiter.join().unwrap(), Woken::Set);
        assert_eq!(completion.wait(None), Woken::Set);
    }

    #[test]
    fn progress_after_the_end_is_ignored() {
        let completion = Completion::default();
        let progress = Progress {
            done: 1,
            total: Some(2),
            message: "half".to_owned(),
        };
        completion.set_progress(progress.clone());
        completion.finish(returned(0), None);
        completion.set_progress(Progress {
            done: 2,
            ..progress.clone()
        });
        assert_eq!(completion.progress(), Some(progress));
    }
}

#[cfg(all(test, feature = "loom"))]
mod model {
    use loom::thread;

    use super::*;

    fn outcome() -> Outcome {
        Outcome::Returned(Message::inline([7]))
    }

    /// Ends a task from one thread while another one waits for it.
    #[test]
    fn a_waiter_is_woken_whenever_it_comes() {
        loom::model(|| {
            let completion = Arc::new(Completion::default());
            let other = Arc::clone(&completion);
            let worker = thread::spawn(move || other.finish(outcome(), None));
            assert_eq!(completion.wait(None), Woken::Set);
            assert!(completion.outcome().is_some());
            assert!(worker.join().unwrap());
        });
    }

    /// A caller cancels while the dispatcher sends, and another thread finishes.
    #[test]
    fn one_of_finishing_and_cancelling_wins() {
        loom::model(|| {
            let completion = Arc::new(Completion::default());
            let dispatcher = Arc::clone(&completion);
            let finished =
                thread::spawn(move || dispatcher.start() && dispatcher.finish(outcome(), None));
            let cancelled = completion.cancel_queued();
            let finished = finished.join().unwrap();
            assert!(finished != cancelled);
            assert_eq!(completion.wait(None), Woken::Set);
        });
    }
}
