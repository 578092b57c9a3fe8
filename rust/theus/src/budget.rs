//! How many bytes a session's processes have reserved together, and may.
//!
//! A page that the owner and its workers share: the limit, and one counter for each process. Only
//! its own process raises a counter; the owner lowers a worker's when it takes a segment over, and
//! clears it when the worker has died. So nothing that a killed process had reserved stays counted.
//!
//! The page also says how much memory the owner's pool has ready, and lets a worker that finds no
//! space ask for it. `schemas/budget.json` says where.

use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::thread;
use std::time::{Duration, Instant};

use rustix::fs::Timespec;
use rustix::fs::{
    MemfdFlags, SealFlags, fcntl_add_seals, fcntl_get_seals, ftruncate, memfd_create,
};
use rustix::thread::futex;

use crate::error::{Error, Result};
use crate::kill_point::KillPoint;
use crate::mapping::Mapping;
use crate::os::{self, failed};
use crate::shared::{Counters, Words, tell};

/// How many processes share a budget at most, the owner counted.
pub const SEATS: usize = 1019;

// Numbers of words.
const LIMIT: usize = 0;
/// How many bytes the owner has ready; none of them is counted.
const READY: usize = 1;
/// How often others have asked for these, and up to which time they were given back.
const ASKED: usize = 2;
const ANSWERED: usize = 3;
/// What the owner's pool waits at.
const BELL: usize = 4;
const COUNTERS: usize = 5;
/// How long one who finds no space waits for the owner's pool.
const PATIENCE: Duration = Duration::from_secs(1);
const PAGE_BYTES: usize = (COUNTERS + SEATS) * size_of::<u64>();

/// One process's way to the shared counters.
#[derive(Debug)]
pub struct Budget {
    mapping: Mapping,
    seat: usize,
}

impl Budget {
    /// The owner's seat at a new page, and the descriptor by which workers map it. No limit: what
    /// the machine has.
    ///
    /// # Errors
    /// [`Error::Os`] if there is no memory or no descriptor left.
    pub fn create(limit: Option<u64>) -> Result<(Self, OwnedFd)> {
        let failed = |errno| failed("making a budget", errno);
        let flags = MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING;
        let file = memfd_create("theus-budget", flags).map_err(failed)?;
        ftruncate(&file, PAGE_BYTES as u64).map_err(failed)?;
        // A page that nobody can shrink cannot become a SIGBUS of somebody else.
        let seals = SealFlags::SHRINK | SealFlags::GROW | SealFlags::SEAL;
        fcntl_add_seals(&file, seals).map_err(failed)?;
        let budget = Self::map(&file, 0)?;
        tell(&budget.mapping, LIMIT, limit.unwrap_or(u64::MAX));
        Ok((budget, file))
    }

    /// A worker's `seat` at the page behind a descriptor that [`create`](Self::create) returned.
    ///
    /// # Errors
    /// [`Error::ControlPage`] if the descriptor is something else, or there is no such seat.
    pub fn from_fd(file: impl AsFd, seat: usize) -> Result<Self> {
        let sealed = fcntl_get_seals(&file).is_ok_and(|seals| seals.contains(SealFlags::SHRINK));
        let found = os::status(&file)?.length;
        if !sealed || found != PAGE_BYTES as u64 || !(1..SEATS).contains(&seat) {
            return Err(Error::ControlPage {
                expected: PAGE_BYTES as u64,
                found,
            });
        }
        Self::map(&file, seat)
    }

    fn map(file: &impl AsFd, seat: usize) -> Result<Self> {
        let mapping = Mapping::writable(&file.as_fd(), PAGE_BYTES)?;
        Ok(Self { mapping, seat })
    }

    fn counters(&self) -> Counters<'_, Mapping> {
        Counters::new(&self.mapping, COUNTERS, SEATS)
    }

    /// What all processes have reserved together.
    #[must_use]
    pub fn used(&self) -> u64 {
        self.counters().sum()
    }

    /// How many bytes the limit leaves.
    pub(crate) fn left(&self) -> u64 {
        self.mapping.load(LIMIT).saturating_sub(self.used())
    }

    /// Counts `bytes` as reserved by this process. Two that ask for the last bytes at once may both
    /// be refused; the limit is never passed.
    ///
    /// # Errors
    /// [`Error::HeavyZoneFull`], which names `key`, if they are more than the limit leaves.
    pub fn reserve(&self, key: &str, bytes: u64) -> Result<()> {
        let limit = self.mapping.load(LIMIT);
        if self.counters().raise(self.seat, bytes, limit) {
            KillPoint::BudgetReserved.pass();
            return Ok(());
        }
        Err(Error::HeavyZoneFull {
            key: key.to_owned(),
            requested: bytes,
            available: self.left(),
            limit: "heavy_limit".into(),
        })
    }

    /// Says that the owner's pool has `bytes` ready.
    pub(crate) fn set_ready(&self, bytes: u64) {
        self.mapping.store(READY, bytes);
    }

    /// Has the owner's pool give back what it has ready; false if it has nothing, or does not answer.
    pub(crate) fn ask_for_ready(&self) -> bool {
        if self.mapping.load(READY) == 0 {
            return false;
        }
        let asked = self.mapping.update(ASKED, |asked| asked + 1) + 1;
        self.ring();
        let start = Instant::now();
        while self.mapping.load(ANSWERED) < asked {
            if start.elapsed() >= PATIENCE {
                return false;
            }
            thread::sleep(Duration::from_millis(1));
        }
        true
    }

    /// How often others have asked for what is ready.
    pub(crate) fn asked(&self) -> u64 {
        self.mapping.load(ASKED)
    }

    /// Tells who has asked up to this time that it is given back.
    pub(crate) fn answer(&self, asked: u64) {
        tell(&self.mapping, ANSWERED, asked);
    }

    /// Wakes the owner's pool.
    pub(crate) fn ring(&self) {
        let bell = self.mapping.bell(BELL);
        bell.fetch_add(1, Ordering::SeqCst);
        let _ = futex::wake(bell, futex::Flags::empty(), 1);
    }

    /// What to pass to [`wait`](Self::wait), taken before one looks whether there is something to do.
    pub(crate) fn bell(&self) -> u32 {
        self.mapping.bell(BELL).load(Ordering::SeqCst)
    }

    /// Waits until the bell has rung since it was `seen`, no longer than `timeout`.
    pub(crate) fn wait(&self, seen: u32, timeout: Option<Duration>) {
        let timeout = timeout.and_then(|timeout| Timespec::try_from(timeout).ok());
        let bell = self.mapping.bell(BELL);
        let _ = futex::wait(bell, futex::Flags::empty(), seen, timeout.as_ref());
    }

    /// Gives back what this process had reserved.
    pub fn release(&self, bytes: u64) {
        self.counters().lower(self.seat, bytes);
        KillPoint::BudgetReleased.pass();
    }

    /// Counts as this process's, the owner's, what the worker in `seat` had reserved.
    pub fn take_over(&self, seat: usize, bytes: u64) {
        self.counters().take_over(seat, bytes);
        KillPoint::BudgetTakenOver.pass();
    }

    /// Forgets what a worker that has died had reserved.
    pub fn clear(&self, seat: usize) {
        self.counters().clear(seat);
    }
}

/// Bytes that are counted for as long as this lives, by the process that made it: a forked child
/// shares the page, and its copies count for nothing.
#[derive(Debug)]
pub(crate) struct Reservation {
    budget: Arc<Budget>,
    bytes: u64,
    generation: u64,
}

impl Reservation {
    /// Takes charge of `bytes` that have been reserved.
    pub(crate) fn new(budget: &Arc<Budget>, bytes: u64) -> Arc<Self> {
        Arc::new(Self {
            budget: Arc::clone(budget),
            bytes,
            generation: os::fork_generation(),
        })
    }
}

impl Drop for Reservation {
    fn drop(&mut self) {
        if self.generation == os::fork_generation() {
            self.budget.release(self.bytes);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::AtomicU64;

    use serde_json::Value;

    use super::*;

    #[test]
    fn a_limit_holds_for_all_and_the_dead_are_forgotten() {
        let (owner, file) = Budget::create(Some(100)).unwrap();
        let worker = Budget::from_fd(&file, 1).unwrap();
        owner.reserve("a", 60).unwrap();
        worker.reserve("b", 30).unwrap();
        let full = worker.reserve("c", 11).unwrap_err();
        assert!(matches!(
            full,
            Error::HeavyZoneFull {
                requested: 11,
                available: 10,
                ..
            }
        ));
        assert!(worker.reserve("d", u64::MAX).is_err());
        assert_eq!(owner.used(), 90);
        owner.take_over(1, 20);
        assert_eq!(owner.used(), 90);
        owner.clear(1);
        assert_eq!(owner.used(), 80);
        owner.release(80);
        assert_eq!(worker.used(), 0);
    }

    #[test]
    fn two_that_race_never_pass_the_limit() {
        let (owner, file) = Budget::create(Some(1000)).unwrap();
        let granted = AtomicU64::new(0);
        std::thread::scope(|scope| {
            for seat in 1..5 {
                let worker = Budget::from_fd(&file, seat).unwrap();
                let granted = &granted;
                scope.spawn(move || {
                    for _ in 0..2000 {
                        if worker.reserve("x", 300).is_ok() {
                            assert!(granted.fetch_add(300, Ordering::SeqCst) < 1000);
                            granted.fetch_sub(300, Ordering::SeqCst);
                            worker.release(300);
                        }
                    }
                });
            }
        });
        assert_eq!(owner.used(), 0);
    }

    #[test]
    fn the_places_are_those_of_the_schema() {
        let schema: Value =
            serde_json::from_str(include_str!("../../../schemas/budget.json")).unwrap();
        let words = schema["words"].as_array().unwrap().iter();
        let words: Vec<_> = words.map(|word| (&word["name"], &word["offset"])).collect();
        let known = [LIMIT, READY, ASKED, ANSWERED, BELL].map(|word| word * size_of::<u64>());
        let names = ["limit", "ready", "asked", "answered", "bell"];
        assert_eq!(words.len(), names.len());
        for (found, known) in words.into_iter().zip(names.iter().zip(known)) {
            assert_eq!(found.0, known.0);
            assert_eq!(found.1, known.1, "{}", known.0);
        }
        let counters = &schema["counters"];
        assert_eq!(counters["offset"], COUNTERS * size_of::<u64>());
        assert_eq!(counters["seats"], SEATS);
        assert_eq!(schema["page_bytes"], PAGE_BYTES);
    }

    #[test]
    fn another_page_or_seat_is_refused() {
        let (_owner, file) = Budget::create(None).unwrap();
        assert!(Budget::from_fd(&file, 0).is_err());
        assert!(Budget::from_fd(&file, SEATS).is_err());
        assert!(Budget::from_fd(std::io::stdin(), 1).is_err());
    }
}
