//! A flag that one thread waits for, with a limit, and that a signal handler interrupts.

#[cfg(not(all(test, feature = "loom")))]
pub use self::futex::Signal;
#[cfg(all(test, feature = "loom"))]
pub use self::modelled::Signal;

/// Why a wait ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Woken {
    /// The flag is set.
    Set,
    /// The time is over.
    TimedOut,
    /// A signal handler ran in this thread; the caller decides whether to wait on.
    Interrupted,
}

#[cfg(not(all(test, feature = "loom")))]
mod futex {
    use std::sync::atomic::{AtomicU32, Ordering};
    use std::time::{Duration, Instant};

    use rustix::io::Errno;
    use rustix::thread::futex;

    use super::super::deadlines::after;
    use super::Woken;

    const CLEAR: u32 = 0;
    const SET: u32 = 1;

    /// A futex. Neither std's locks nor its parking end when a signal handler ran, so that Python
    /// could not raise a `KeyboardInterrupt` out of a wait.
    #[derive(Debug, Default)]
    pub struct Signal(AtomicU32);

    impl Signal {
        /// Sets the flag and wakes its waiter.
        pub fn set(&self) {
            self.0.store(SET, Ordering::Release);
            // It only fails if nobody waits.
            let _ = futex::wake(&self.0, futex::Flags::PRIVATE, u32::MAX >> 1);
        }

        /// Waits for the flag without a limit, or for up to `timeout`.
        pub fn wait(&self, timeout: Option<Duration>) -> Woken {
            let until = timeout.map(after);
            loop {
                if self.0.load(Ordering::Acquire) == SET {
                    return Woken::Set;
                }
                let left = until.map(|until| until.saturating_duration_since(Instant::now()));
                if left.is_some_and(|left| left.is_zero()) {
                    return Woken::TimedOut;
                }
                let left = left.and_then(|left| left.try_into().ok());
                let woken = futex::wait(&self.0, futex::Flags::PRIVATE, CLEAR, left.as_ref());
                // Else the flag was set, or the time is over: the next look tells.
                if woken == Err(Errno::INTR) {
                    return Woken::Interrupted;
                }
            }
        }
    }
}

#[cfg(all(test, feature = "loom"))]
mod modelled {
    #![expect(
        missing_docs,
        clippy::missing_panics_doc,
        reason = "it stands for the futex above"
    )]

    use std::time::Duration;

    use loom::sync::{Condvar, Mutex};

    use super::Woken;

    /// The same flag, of what loom can model.
    #[derive(Debug)]
    pub struct Signal(Mutex<bool>, Condvar);

    impl Default for Signal {
        fn default() -> Self {
            Self(Mutex::new(false), Condvar::new())
        }
    }

    impl Signal {
        pub fn set(&self) {
            *self.0.lock().unwrap() = true;
            self.1.notify_all();
        }

        pub fn wait(&self, _: Option<Duration>) -> Woken {
            let mut set = self.0.lock().unwrap();
            while !*set {
                set = self.1.wait(set).unwrap();
            }
            Woken::Set
        }
    }
}
