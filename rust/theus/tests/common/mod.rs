//! Deadlines for tests that wait for other threads.

use std::sync::mpsc;
use std::thread;
use std::time::Duration;

/// Many times what the slowest of these tests takes; a sanitizer makes that ten times as much.
fn limit() -> Duration {
    let sanitized = std::env::var_os("THEUS_SANITIZED").is_some();
    Duration::from_secs(if sanitized { 450 } else { 45 })
}

/// Runs `test` in a thread of its own and fails if it is not done in time.
pub(crate) fn within_limit(test: impl FnOnce() + Send + 'static) {
    let (done, wait) = mpsc::channel();
    let thread = thread::spawn(move || {
        test();
        let _ = done.send(());
    });
    let waited = wait.recv_timeout(limit());
    assert_ne!(waited, Err(mpsc::RecvTimeoutError::Timeout), "not done");
    if let Err(panic) = thread.join() {
        std::panic::resume_unwind(panic);
    }
}
