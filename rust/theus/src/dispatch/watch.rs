//! A worker's way to end with its owner.
//!
//! The end of the socket is not proof enough: a forked child of the owner may hold it open. The
//! owner's pidfd cannot lie. The thread that watches it needs no interpreter, so that a worker
//! whose main thread is deep in C code ends as promptly as an idle one.

#![expect(
    unsafe_code,
    reason = "a thread's signal mask and ending the process have no safe wrapper"
)]

use std::os::fd::OwnedFd;
use std::thread;
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, poll};
use rustix::io::{Errno, FdFlags, fcntl_setfd};

use crate::descriptor::SessionId;
use crate::error::Result;
use crate::kill_point::KillPoint;
use crate::os::failed;
use crate::sweep::{SweepOutcome, sweep_session};

/// How long the sweep is tried again while the owner's lock is still held.
const RETRY_FOR: Duration = Duration::from_secs(5);
const RETRY_EVERY: Duration = Duration::from_millis(20);
/// What a worker that lost its owner exits with.
const EXIT_CODE: i32 = 1;

/// What came of trying to sweep the owner's session.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Attempt {
    /// There is nothing left to sweep.
    Finished,
    /// It is worth another try: the session's lock is still held, because the kernel has not
    /// finished with the owner or another worker sweeps.
    Held,
}

/// Ends this process when the process behind `pidfd` does, after sweeping its `session`.
///
/// # Errors
/// As [`watch_process`].
pub fn watch_owner(pidfd: OwnedFd, session: SessionId) -> Result<()> {
    watch_process(pidfd, move || match sweep_session(&session) {
        Ok(SweepOutcome::Swept(_) | SweepOutcome::NothingLeft) => Attempt::Finished,
        // Names that another worker removes meanwhile can make a sweep fail, once.
        Ok(SweepOutcome::StillAlive) | Err(_) => Attempt::Held,
    })
}

/// Starts a thread that waits for the process behind `pidfd` to end, then calls `sweep` until it
/// has [`Finished`](Attempt::Finished), for up to five seconds, and then ends this process with
/// `_exit`: no destructor, no exit handler, no other thread's consent.
///
/// # Errors
/// [`Error::Os`](crate::error::Error::Os) if the descriptor is not open, or no thread can be started.
pub fn watch_process(
    pidfd: OwnedFd,
    sweep: impl FnMut() -> Attempt + Send + 'static,
) -> Result<()> {
    fcntl_setfd(&pidfd, FdFlags::CLOEXEC).map_err(|errno| failed("watching the owner", errno))?;
    thread::Builder::new()
        .name("theus-watch".to_owned())
        .spawn(move || {
            block_signals();
            KillPoint::WatchStarted.pass();
            if wait_for_end(&pidfd) {
                // Exits when this scope does, also by a panic in the sweep.
                let _exit = ExitOnDrop;
                sweep_until_finished(sweep, RETRY_FOR, RETRY_EVERY);
            }
        })
        .map(drop)
        .map_err(|error| failed("starting the thread that watches the owner", error))
}

/// Whether the process ended. False if the descriptor cannot be waited for, for instance because
/// the code of a task closed it: then only the end of the socket is left to go by.
fn wait_for_end(pidfd: &OwnedFd) -> bool {
    loop {
        let mut fds = [PollFd::new(pidfd, PollFlags::IN)];
        match poll(&mut fds, None) {
            Ok(_) => return !fds[0].revents().contains(PollFlags::NVAL),
            Err(Errno::INTR) => {}
            Err(_) => return false,
        }
    }
}

fn sweep_until_finished(
    mut sweep: impl FnMut() -> Attempt,
    retry_for: Duration,
    retry_every: Duration,
) {
    let started = Instant::now();
    while sweep() == Attempt::Held && started.elapsed() < retry_for {
        thread::sleep(retry_every);
    }
}

/// Keeps this thread from taking signals that a task waits for with `sigwait`, or that only wake
/// the main thread out of a system call if it is the main thread that gets them.
fn block_signals() {
    let mut all = std::mem::MaybeUninit::<libc::sigset_t>::uninit();
    // SAFETY: the set is written, not read.
    unsafe { libc::sigfillset(all.as_mut_ptr()) };
    // SAFETY: sigfillset has initialised the set, and the old mask may be asked for by null.
    unsafe { libc::pthread_sigmask(libc::SIG_BLOCK, all.as_ptr(), std::ptr::null_mut()) };
}

struct ExitOnDrop;

impl Drop for ExitOnDrop {
    fn drop(&mut self) {
        // SAFETY: _exit is async-signal-safe and takes no part of this process's state for granted.
        // Other threads end in the middle of what they do; what they share with other processes
        // (segments, the control page) is of no use to anybody once the owner is gone.
        unsafe { libc::_exit(EXIT_CODE) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_sweep_is_tried_until_the_lock_is_free() {
        let mut left = 3;
        let sweep = || {
            left -= 1;
            if left == 0 {
                Attempt::Finished
            } else {
                Attempt::Held
            }
        };
        sweep_until_finished(sweep, RETRY_FOR, Duration::from_millis(1));
        assert_eq!(left, 0);
    }

    #[test]
    fn a_lock_that_is_never_free_is_given_up() {
        let mut tries = 0;
        let sweep = || {
            tries += 1;
            Attempt::Held
        };
        sweep_until_finished(sweep, Duration::from_millis(30), Duration::from_millis(5));
        assert!((2..=8).contains(&tries), "{tries} tries");
    }
}
