//! Panics of tasks: caught, and told with their backtrace.
//!
//! What the panic that ends a task says goes to its caller, others' to standard error when the task has
//! ended. Each is also written to the trace, which is shown to the caller if the process ends by it
//! (`panic = "abort"`).

use std::any::Any;
use std::backtrace::Backtrace;
use std::env;
use std::fs::File;
use std::io::{self, Write};
use std::mem;
use std::os::unix::fs::FileExt;
use std::panic::{AssertUnwindSafe, PanicHookInfo, catch_unwind, set_hook, take_hook};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread;

use super::failure::{Cause, TaskError};

/// How much of the trace the owner shows.
const SHOWN_BYTES: usize = 8192;
/// So many panics of one task are kept apart; one that panics more often says the same.
const MAX_NOTED: usize = 16;

/// Catches the panics of one task after the other, in whatever thread they come.
#[derive(Debug, Clone)]
pub(super) struct Panics(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    running: AtomicBool,
    noted: Mutex<Vec<Note>>,
    trace: File,
    /// Whether something may stand in the trace: looking there takes as long as a short task.
    traced: AtomicBool,
}

#[derive(Debug)]
struct Note {
    said: String,
    /// Thread and place, what it said, and the stack.
    text: String,
}

impl Panics {
    /// Has the panics of tasks written to `trace`. Those between tasks go where they did before.
    pub(super) fn watch(trace: File) -> Self {
        let inner = Arc::new(Inner {
            running: AtomicBool::new(false),
            noted: Mutex::default(),
            trace,
            traced: AtomicBool::new(false),
        });
        let (noting, before) = (Arc::clone(&inner), take_hook());
        set_hook(Box::new(move |info| {
            if noting.running.load(Ordering::SeqCst) {
                noting.note(info);
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
        // What a thread noted as the last task ended is not this one's.
        self.0.pass_on(mem::take(&mut *self.0.noted()));
        self.0.running.store(true, Ordering::SeqCst);
        // Nobody looks at what a panic has left half done: a task's own is gone, and what it shares
        // with later ones is behind locks that tell.
        let outcome = catch_unwind(AssertUnwindSafe(task));
        self.0.running.store(false, Ordering::SeqCst);
        let mut noted = mem::take(&mut *self.0.noted());
        let outcome = outcome.unwrap_or_else(|payload| {
            let mut error = TaskError::of(Cause::Panicked, "panic", said(payload.as_ref()));
            let its_own = |note: &Note| note.said == said(payload.as_ref());
            error.trace = match noted.iter().rposition(its_own) {
                Some(place) => noted.remove(place).text,
                None => String::new(), // it was resumed with a payload that nobody panicked with
            };
            discard(payload);
            Err(error)
        });
        self.0.pass_on(noted);
        outcome
    }
}

impl Inner {
    fn note(&self, info: &PanicHookInfo<'_>) {
        let mut noted = self.noted();
        if noted.len() >= MAX_NOTED {
            return;
        }
        let thread = thread::current();
        let thread = thread.name().unwrap_or("<unnamed>");
        let said = said(info.payload());
        let at = info
            .location()
            .map_or_else(String::new, |at| format!(" at {at}"));
        let stack = Backtrace::force_capture();
        let text = format!("thread {thread:?} panicked{at}: {said}\n{stack}");
        self.traced.store(true, Ordering::SeqCst);
        // A process that ends without it has a signal to show.
        let _ = self
            .trace
            .write_all_at(&text.as_bytes()[..text.len().min(SHOWN_BYTES)], 0);
        noted.push(Note { said, text });
    }

    /// Shows what did not end the task, now that it has ended: nobody died of it.
    fn pass_on(&self, noted: Vec<Note>) {
        let whole = env::var_os("RUST_BACKTRACE").is_some_and(|value| value != "0");
        for note in noted {
            let first = note.text.lines().next().unwrap_or_default();
            let text = if whole { &note.text } else { first };
            let _ = writeln!(io::stderr(), "{text}");
        }
        if self.traced.swap(false, Ordering::SeqCst) {
            let _ = self.trace.write_all_at(&[0; SHOWN_BYTES], 0);
        }
    }

    fn noted(&self) -> MutexGuard<'_, Vec<Note>> {
        self.noted.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Drops what a task panicked with. That may be the task's own code, which may panic again.
fn discard(payload: Box<dyn Any + Send>) {
    match catch_unwind(AssertUnwindSafe(|| drop(payload))) {
        // And so may what it panics with then.
        Err(again) if !again.is::<&str>() && !again.is::<String>() => mem::forget(again),
        _ => {}
    }
}

fn said(payload: &(dyn Any + Send)) -> String {
    let text = payload
        .downcast_ref::<&str>()
        .map(|text| (*text).to_owned());
    text.or_else(|| payload.downcast_ref::<String>().cloned())
        .unwrap_or_else(|| "it said nothing that is text".to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn panics() -> (Panics, File) {
        let trace = tempfile();
        (Panics::watch(trace.try_clone().unwrap()), trace)
    }

    fn tempfile() -> File {
        use rustix::fs::{MemfdFlags, ftruncate, memfd_create};

        let file = memfd_create("trace", MemfdFlags::CLOEXEC).unwrap();
        ftruncate(&file, 1 << 20).unwrap();
        File::from(file)
    }

    fn is_empty(trace: &File) -> bool {
        let mut all = vec![1; SHOWN_BYTES];
        trace.read_exact_at(&mut all, 0).unwrap();
        all.iter().all(|&byte| byte == 0)
    }

    struct Again;
    impl Drop for Again {
        fn drop(&mut self) {
            assert!(thread::panicking(), "dropped again");
        }
    }

    /// One test, as a process has one hook.
    #[test]
    fn the_panic_that_ends_a_task_is_its_error_and_others_are_not() {
        let (panics, trace) = panics();
        let error = panics.catch::<()>(|| panic!("my {}", "words")).unwrap_err();
        assert_eq!(
            (error.cause, error.to_string()),
            (Cause::Panicked, "panic: my words".into())
        );
        assert!(error.trace.contains("panics.rs"), "{}", error.trace);
        assert!(is_empty(&trace), "nobody died of it");

        let survived = panics.catch(|| {
            thread::spawn(|| panic!("another's")).join().unwrap_err();
            Ok(7)
        });
        assert_eq!(survived.unwrap(), 7);

        let error = panics.catch::<()>(|| {
            thread::spawn(|| panic!("another's")).join().unwrap_err();
            panic!("its own");
        });
        let error = error.unwrap_err();
        assert!(error.trace.contains(": its own") && !error.trace.contains("another's"));

        let error = panics.catch::<()>(|| std::panic::panic_any(7)).unwrap_err();
        assert!(error.to_string().contains("nothing that is text"));

        assert!(panics.catch::<()>(|| std::panic::panic_any(Again)).is_err());
        assert!(is_empty(&trace));
    }
}
