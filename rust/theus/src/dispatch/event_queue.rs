//! Events for the thread that runs the caller's callbacks, in the order in which they happened.

use std::collections::VecDeque;
use std::sync::{Arc, PoisonError};
use std::time::Duration;

use super::completion::Progress;
use super::signal::{Signal, Woken};
use super::sync::{Mutex, MutexGuard};
use super::task::StaleTask;

/// A happening that the embedding language passes on to code of the user.
#[derive(Debug)]
pub enum Event {
    /// A completion with a subscription of this number has its outcome.
    Done(u64),
    /// A worker wrote a line for the log.
    Log {
        /// The worker's process.
        pid: i32,
        /// The task that ran, if its line came in time.
        task: Option<String>,
        /// 10, 20, 30 or 40, as Python's logging has them.
        level: u64,
        /// The line.
        text: String,
    },
    /// The task with a progress callback of this number reported this.
    Progress(u64, Progress),
    /// A worker cannot import a function: it has to be sent in another form.
    Stale(StaleTask),
    /// The last task that was pending has ended, and the engine was to be closed then.
    Idle,
}

/// The queue of one engine. One thread takes from it.
#[derive(Debug, Default)]
pub struct EventQueue {
    inner: Mutex<Inner>,
}

#[derive(Debug, Default)]
struct Inner {
    events: VecDeque<Event>,
    waiter: Option<Arc<Signal>>,
    closed: bool,
}

impl EventQueue {
    pub(super) fn push_done(&self, token: u64) {
        self.push(Event::Done(token));
    }

    /// Adds an event and wakes the thread that waits for one.
    pub fn push(&self, event: Event) {
        let waiter = {
            let mut inner = self.inner();
            inner.events.push_back(event);
            inner.waiter.take()
        };
        if let Some(waiter) = waiter {
            waiter.set();
        }
    }

    /// Has the thread that takes events leave when it has taken those that are here.
    pub fn close(&self) {
        let waiter = {
            let mut inner = self.inner();
            inner.closed = true;
            inner.waiter.take()
        };
        if let Some(waiter) = waiter {
            waiter.set();
        }
    }

    /// Returns the next event; none if the queue is closed, empty after `timeout`, or a signal handler
    /// ran. [`is_closed`](Self::is_closed) tells them apart.
    pub fn take(&self, timeout: Option<Duration>) -> Option<Event> {
        let signal = {
            let mut inner = self.inner();
            if let Some(event) = inner.events.pop_front() {
                return Some(event);
            }
            if inner.closed {
                return None;
            }
            let signal = Arc::new(Signal::default());
            inner.waiter = Some(Arc::clone(&signal));
            signal
        };
        let woken = signal.wait(timeout);
        let mut inner = self.inner();
        if woken != Woken::Set {
            inner.waiter = None;
        }
        inner.events.pop_front()
    }

    /// Returns whether no event comes any more.
    pub fn is_closed(&self) -> bool {
        let inner = self.inner();
        inner.closed && inner.events.is_empty()
    }

    fn inner(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
