//! The page that an owner and one worker share: which task runs, and which one is to stop.
//!
//! A worker that is busy does not read its socket, so what has to reach it at once goes through
//! memory: the worker writes `running`, the owner writes `cancel`. The channel's
//! [boxes](super::page_slot) lie in the same page. `schemas/control.json` says where.

use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::Ordering;

use rustix::fs::{
    MemfdFlags, SealFlags, fcntl_add_seals, fcntl_get_seals, ftruncate, memfd_create,
};

use crate::error::{Error, Result};
use crate::kill_point::KillPoint;
use crate::mapping::Mapping;
use crate::os::{self, failed};
use crate::shared::{Words, tell};

const PAGE_BYTES: usize = 4096;
// Words of the page.
const RUNNING: usize = 0;
/// A cache line away, so that the owner's writes do not slow the worker's.
const CANCEL: usize = 8;
const RECALLED: usize = 9;

/// The shared page, mapped. No task has the id 0: it stands for none.
#[derive(Debug)]
pub struct Control {
    page: Arc<Mapping>,
}

impl Control {
    /// A page of zeros, and the descriptor (close-on-exec) by which the worker maps it.
    ///
    /// # Errors
    /// [`Error::Os`] if there is no memory or no descriptor left.
    pub fn create() -> Result<(Self, OwnedFd)> {
        let failed = |errno| failed("making a control page", errno);
        let file = memfd_create(
            "theus-control",
            MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING,
        )
        .map_err(failed)?;
        ftruncate(&file, PAGE_BYTES as u64).map_err(failed)?;
        // A page that the worker cannot shrink cannot become a SIGBUS of the owner.
        fcntl_add_seals(&file, SealFlags::SHRINK | SealFlags::GROW | SealFlags::SEAL)
            .map_err(failed)?;
        KillPoint::ControlMade.pass();
        Ok((Self::map(&file)?, file))
    }

    /// Maps the page behind a descriptor that [`create`](Self::create) returned in another process.
    ///
    /// # Errors
    /// [`Error::ControlPage`] if the descriptor is something else.
    pub fn from_fd(file: impl AsFd) -> Result<Self> {
        let sealed = fcntl_get_seals(&file).is_ok_and(|seals| seals.contains(SealFlags::SHRINK));
        let found = os::status(&file)?.length;
        if !sealed || found != PAGE_BYTES as u64 {
            return Err(Error::ControlPage {
                expected: PAGE_BYTES as u64,
                found,
            });
        }
        Self::map(file)
    }

    fn map(file: impl AsFd) -> Result<Self> {
        let page = Mapping::writable(&file.as_fd(), PAGE_BYTES)?;
        Ok(Self {
            page: Arc::new(page),
        })
    }

    /// The id of the task that runs, or 0.
    #[must_use]
    pub fn running(&self) -> u64 {
        self.told(RUNNING)
    }

    /// Says which task runs; 0 for none. For the worker, which then asks which one is to stop.
    pub fn set_running(&self, task_id: u64) {
        tell(&*self.page, RUNNING, task_id);
    }

    /// The id of the task that the owner wants stopped, or 0.
    #[must_use]
    pub fn cancel(&self) -> u64 {
        self.told(CANCEL)
    }

    /// Says which task is to stop; 0 for none. For the owner, which then asks which one runs.
    pub fn set_cancel(&self, task_id: u64) {
        tell(&*self.page, CANCEL, task_id);
    }

    /// The id of the last task that the owner has taken back, or 0.
    #[must_use]
    pub fn recalled(&self) -> u64 {
        self.told(RECALLED)
    }

    /// Takes back the tasks up to this id that the worker has not begun. For the owner, which then asks
    /// which one runs.
    pub fn set_recalled(&self, task_id: u64) {
        tell(&*self.page, RECALLED, task_id);
    }

    /// The page, for the boxes that lie in it.
    pub(super) fn page(&self) -> Arc<Mapping> {
        Arc::clone(&self.page)
    }

    fn told(&self, word: usize) -> u64 {
        let value = self.page.load(word);
        Mapping::fence(Ordering::Acquire);
        value
    }
}

#[cfg(test)]
mod tests {
    use rustix::io::Errno;

    use super::*;

    #[test]
    fn two_mappings_of_a_page_show_the_same_words() {
        let (owner, file) = Control::create().unwrap();
        let worker = Control::from_fd(&file).unwrap();
        assert_eq!((worker.running(), worker.cancel()), (0, 0));
        worker.set_running(u64::MAX);
        owner.set_cancel(7);
        assert_eq!((owner.running(), worker.cancel()), (u64::MAX, 7));
        drop(file);
        worker.set_running(0);
        assert_eq!(owner.running(), 0);
    }

    #[test]
    fn of_the_owner_and_the_worker_at_least_one_sees_the_other() {
        let (owner, file) = Control::create().unwrap();
        let worker = Control::from_fd(file).unwrap();
        for task in 1..=2_000 {
            let (stopped, told) = std::thread::scope(|scope| {
                let worker = scope.spawn(|| {
                    worker.set_running(task);
                    worker.cancel() == task
                });
                owner.set_cancel(task);
                let told = owner.running() == task;
                (worker.join().unwrap(), told)
            });
            assert!(stopped || told, "task {task} was lost");
        }
    }

    #[test]
    fn another_file_is_refused() {
        let file = memfd_create("other", MemfdFlags::CLOEXEC).unwrap();
        ftruncate(&file, PAGE_BYTES as u64).unwrap();
        assert!(matches!(
            Control::from_fd(&file),
            Err(Error::ControlPage { found: 4096, .. })
        ));
        assert!(Control::from_fd(std::io::stdin()).is_err());
    }

    #[test]
    fn the_page_cannot_be_shrunk() {
        let (_owner, file) = Control::create().unwrap();
        assert_eq!(ftruncate(&file, 0), Err(Errno::PERM));
    }
}
