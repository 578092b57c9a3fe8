//! The locks of what threads share here, which loom's models replace by their own.

#[cfg(all(test, feature = "loom"))]
pub(super) use loom::sync::{Mutex, MutexGuard};
#[cfg(not(all(test, feature = "loom")))]
pub(super) use std::sync::{Mutex, MutexGuard};
