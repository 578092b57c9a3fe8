//! Ended tasks on their way to an event loop, which an eventfd wakes.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::{Mutex, PoisonError};

use rustix::event::{EventfdFlags, eventfd};

use crate::error::Result;
use crate::os::failed;

/// The numbers of ended tasks, and a descriptor that is readable while there are any.
#[derive(Debug)]
pub struct LoopQueue {
    ended: Mutex<Vec<u64>>,
    wake: OwnedFd,
}

impl LoopQueue {
    /// An empty queue.
    ///
    /// # Errors
    /// [`Error::DescriptorLimit`](crate::Error::DescriptorLimit) if there are no descriptors left.
    pub fn new() -> Result<Self> {
        let flags = EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK;
        let wake = eventfd(0, flags).map_err(|errno| failed("making an eventfd", errno))?;
        Ok(Self {
            ended: Mutex::default(),
            wake,
        })
    }

    pub(super) fn push(&self, token: u64) {
        let mut ended = self.ended.lock().unwrap_or_else(PoisonError::into_inner);
        ended.push(token);
        if ended.len() == 1 {
            let _ = rustix::io::write(&self.wake, &1_u64.to_ne_bytes());
        }
    }

    /// Takes all numbers; the descriptor is not readable until the next one comes.
    pub fn take(&self) -> Vec<u64> {
        let mut ended = self.ended.lock().unwrap_or_else(PoisonError::into_inner);
        let mut count = [0; 8];
        let _ = rustix::io::read(&self.wake, &mut count);
        std::mem::take(&mut *ended)
    }
}

impl AsFd for LoopQueue {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.wake.as_fd()
    }
}
