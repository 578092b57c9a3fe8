//! The task that runs in this thread: handles belong to it, and to no other.

use std::cell::RefCell;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use crate::output::Output;

thread_local! {
    static CURRENT: RefCell<Option<Scope>> = const { RefCell::new(None) };
}

/// What a task has made, and which of it its result refers to.
#[derive(Debug, Clone)]
pub(super) struct Scope(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    task: u64,
    /// Each at the place that is its number.
    referred: Mutex<Vec<Arc<Output>>>,
}

impl Scope {
    pub(super) fn new(task: u64) -> Self {
        let referred = Mutex::default();
        Self(Arc::new(Inner { task, referred }))
    }

    pub(super) fn task(&self) -> u64 {
        self.0.task
    }

    /// Runs `work`, which reads or writes values of this task.
    pub(super) fn enter<T>(&self, work: impl FnOnce() -> T) -> T {
        let outer = CURRENT.replace(Some(self.clone()));
        let _left = Restored(outer);
        work()
    }

    /// The one that this thread is in.
    pub(super) fn current() -> Option<Self> {
        CURRENT.with_borrow(Clone::clone)
    }

    /// The number by which the result refers to an output.
    pub(super) fn refer(&self, output: &Arc<Output>) -> u64 {
        let mut referred = self.referred();
        let known = referred.iter().position(|other| Arc::ptr_eq(other, output));
        let place = known.unwrap_or_else(|| {
            referred.push(Arc::clone(output));
            referred.len() - 1
        });
        place as u64
    }

    pub(super) fn referred(&self) -> MutexGuard<'_, Vec<Arc<Output>>> {
        let referred = self.0.referred.lock();
        referred.unwrap_or_else(PoisonError::into_inner)
    }
}

/// Puts the outer scope back, also when the work panics.
struct Restored(Option<Scope>);

impl Drop for Restored {
    fn drop(&mut self) {
        CURRENT.set(self.0.take());
    }
}
