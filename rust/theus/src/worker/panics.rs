//! Panics of tasks: caught, and told with their backtrace.
//!
//! What a panicking task says goes to its caller, not to standard error. It is also written to the
//! trace, which is shown to the caller if the process ends by it (`panic = "abort"`).

use std::any::Any;
use std::backtrace::Backtrace;
use std::fs::File;
use std::os::unix::fs::FileExt;
use std::panic::{AssertUnwindSafe, PanicHookInfo, catch_unwind, set_hook, take_hook};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread;

use super::failure::{Cause, TaskError};

/// Catches the panics of one task after the other, in whatever thread they come.
#[derive(Debug, Clone)]
pub(super) struct Panics(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    running: AtomicBool,
    /// Where the first panic of the task was, and the stack there.
    first: Mutex<Option<(String, String)>>,
    trace: File,
}

impl Panics {
    /// Has the panics of tasks written to `trace`. Those of other code go where they did before.
    pub(super) fn watch(trace: File) -> Self {
        let inner = Arc::new(Inner {
            running: AtomicBool::new(false),
            first: Mutex::new(None),
            trace,
        });
        let (noted, before) = (Arc::clone(&inner), take_hook());
        set_hook(Box::new(move |info| {
            if noted.running.load(Ordering::SeqCst) {
                noted.note(info);
            } else {
                before(info);
            }
        }));
        Self(inner)
    }

    /// What `task` returns, or what it said when it panicked.
    pub(super) fn catch<T>(
        &self,
        task: impl FnOnce() -> Result<T, TaskError>,
    ) -> Result<T, TaskError> {
        self.0.running.store(true, Ordering::SeqCst);
        // Nobody looks at what a panic has left half done: a task's own is gone, and what it shares
        // with later ones is behind locks that tell.
        let outcome = catch_unwind(AssertUnwindSafe(task));
        self.0.running.store(false, Ordering::SeqCst);
        let first = self.0.first().take();
        if let Some((place, stack)) = &first {
            // Nobody died of it.
            let _ = self
                .0
                .trace
                .write_all_at(&vec![0; place.len() + stack.len() + 2], 0);
        }
        outcome.unwrap_or_else(|payload| {
            let (place, stack) = first.unwrap_or_default();
            let mut error = TaskError::of(Cause::Panicked, "panic", said(payload.as_ref()));
            error.trace = format!("{place}\n{stack}");
            Err(error)
        })
    }
}

impl Inner {
    fn note(&self, info: &PanicHookInfo<'_>) {
        let mut first = self.first();
        if first.is_none() {
            let thread = thread::current();
            let thread = thread.name().unwrap_or("<unnamed>");
            let said = said(info.payload());
            let place = info
                .location()
                .map_or_else(String::new, |at| format!(" at {at}"));
            let place = format!("thread {thread:?} panicked{place}: {said}");
            let stack = Backtrace::force_capture().to_string();
            // A process that ends without it has a signal to show.
            let _ = self
                .trace
                .write_all_at(format!("{place}\n{stack}\n").as_bytes(), 0);
            *first = Some((place, stack));
        }
    }

    fn first(&self) -> MutexGuard<'_, Option<(String, String)>> {
        self.first.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn said(payload: &(dyn Any + Send)) -> String {
    let text = payload
        .downcast_ref::<&str>()
        .map(|text| (*text).to_owned());
    text.or_else(|| payload.downcast_ref::<String>().cloned())
        .unwrap_or_else(|| "it said nothing that is text".to_owned())
}
