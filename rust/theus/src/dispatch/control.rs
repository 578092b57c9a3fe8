//! The page that an owner and one worker share: which task runs, and which one is to stop.
//!
//! A worker that is busy does not read its socket, so what has to reach it at once goes through
//! memory: the worker writes `running`, the owner writes `cancel`. `schemas/control.json` says
//! where they lie.

#![expect(
    unsafe_code,
    reason = "maps one page that two processes share, and views two words of it as atomics"
)]

use std::os::fd::{AsFd, OwnedFd};
use std::ptr::{self, NonNull};
use std::sync::atomic::{AtomicU64, Ordering};

use rustix::fs::{
    MemfdFlags, SealFlags, fcntl_add_seals, fcntl_get_seals, fstat, ftruncate, memfd_create,
};
use rustix::io::Errno;
use rustix::mm::{MapFlags, ProtFlags, mmap, munmap};

use crate::error::{Error, Result};
use crate::kill_point::KillPoint;
use crate::os::failed;

const PAGE_BYTES: usize = 4096;
const RUNNING_OFFSET: usize = 0;
/// A cache line away, so that the owner's writes do not slow the worker's.
const CANCEL_OFFSET: usize = 64;

/// The shared page, mapped. No task has the id 0: it stands for none.
#[derive(Debug)]
pub struct Control {
    page: NonNull<u8>,
}

// SAFETY: the page is only ever accessed through atomics, and unmapped by the one drop.
unsafe impl Send for Control {}
// SAFETY: as above.
unsafe impl Sync for Control {}

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
        let status = fstat(&file).map_err(|errno| failed("looking at a control page", errno))?;
        let found = u64::try_from(status.st_size).unwrap_or(0);
        if !sealed || found != PAGE_BYTES as u64 {
            return Err(Error::ControlPage {
                expected: PAGE_BYTES as u64,
                found,
            });
        }
        Self::map(file)
    }

    fn map(file: impl AsFd) -> Result<Self> {
        // SAFETY: a fresh mapping at an address of the kernel's choice touches no other memory. The
        // file has the size of the page and is sealed against shrinking, by `create` or checked by
        // `from_fd`, so that every byte of the mapping can be accessed while it exists.
        let page = unsafe {
            mmap(
                ptr::null_mut(),
                PAGE_BYTES,
                ProtFlags::READ | ProtFlags::WRITE,
                MapFlags::SHARED,
                file,
                0,
            )
        }
        .map_err(|errno| failed("mapping a control page", errno))?;
        let page = NonNull::new(page.cast())
            .ok_or_else(|| failed("mapping a control page", Errno::NOMEM))?;
        Ok(Self { page })
    }

    fn word(&self, offset: usize) -> &AtomicU64 {
        // SAFETY: both offsets that are passed lie inside the page.
        let word = unsafe { self.page.add(offset) };
        // SAFETY: the page is aligned to 4096 and the offset to 8; it is mapped until `self` is
        // dropped, which the reference cannot outlive; this process has no other way to it than
        // this function, and other processes are held to atomics by the format's definition.
        unsafe { AtomicU64::from_ptr(word.cast().as_ptr()) }
    }

    /// The id of the task that runs, or 0.
    #[must_use]
    pub fn running(&self) -> u64 {
        self.word(RUNNING_OFFSET).load(Ordering::SeqCst)
    }

    /// Says which task runs; 0 for none. For the worker.
    pub fn set_running(&self, task_id: u64) {
        // Sequentially consistent, as each side writes its word and then reads the other's: at
        // least one of them sees that the task which runs is the one to stop.
        self.word(RUNNING_OFFSET).store(task_id, Ordering::SeqCst);
    }

    /// The id of the task that the owner wants stopped, or 0.
    #[must_use]
    pub fn cancel(&self) -> u64 {
        self.word(CANCEL_OFFSET).load(Ordering::SeqCst)
    }

    /// Says which task is to stop; 0 for none. For the owner.
    pub fn set_cancel(&self, task_id: u64) {
        self.word(CANCEL_OFFSET).store(task_id, Ordering::SeqCst);
    }
}

impl Drop for Control {
    fn drop(&mut self) {
        // SAFETY: this is the mapping that `map` made, whole, and nothing borrows it any more.
        let unmapped = unsafe { munmap(self.page.as_ptr().cast(), PAGE_BYTES) };
        debug_assert!(unmapped.is_ok(), "a control page is unmapped once");
    }
}

#[cfg(test)]
mod tests {
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
