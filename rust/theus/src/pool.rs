//! The memory that a session has ready: pages of freed segments, and a reserve made beforehand.
//!
//! Making pages is what costs when a segment is written: the kernel zeroes each, and maps it at a
//! fault. Here they stay in place until the next segment of about their size takes them. They are
//! given back when others need the memory, and after a while.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use crate::backend::{Access, Backend, Draft, Spare, Use, Warm};
use crate::budget::Budget;
use crate::descriptor::SegmentName;
use crate::directory;
use crate::error::Result;
use crate::os;

/// How long pages wait for the next segment, beyond the reserve.
const KEPT: Duration = Duration::from_secs(10);

/// How long a freed segment's pages wait for those who have it mapped still.
const AWAITED: Duration = Duration::from_secs(1);

/// Workers are told of a free, and let go within this time, if at all soon.
const LET_GO_WITHIN: Duration = Duration::from_millis(100);

/// How long the next segment waits for that: a tenth of what fresh pages take, and no longer than that.
const BYTES_WAITED_A_NS: u64 = 24;
const LONGEST_WAIT: Duration = Duration::from_millis(20);
const LOOK_AGAIN: Duration = Duration::from_micros(20);

/// How many there are at most: each takes a descriptor.
const MOST_SPARES: usize = 32;

/// How often these are looked for.
const LOOK: Duration = Duration::from_millis(5);

/// How much a reserve leaves free for others.
const LEFT_BYTES: u64 = 64 << 20;

/// For how long nothing is made for who has just taken what was ready, and writes it now.
const REST: Duration = Duration::from_millis(200);

/// A reserve is made by a thread that gives way to all others.
const NICE: i32 = 19;

/// Memory that is ready for the owner's next segments.
#[derive(Debug)]
pub(crate) struct Pool {
    budget: Arc<Budget>,
    /// How many bytes are to be ready, if nobody else needs them.
    reserve: u64,
    generation: u64,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    /// The oldest first.
    spares: VecDeque<Kept>,
    /// Bytes of the reserve that are being made.
    making: u64,
    /// The length of the last segment for which there was nothing.
    missed: Option<u64>,
    /// When somebody last took something.
    taken: Option<Instant>,
    keeper: bool,
    /// No room for a reserve was found, since when no segment was made or freed.
    full: bool,
    closed: bool,
}

#[derive(Debug)]
struct Kept {
    spare: Spare,
    since: Instant,
    /// Whether the kernel has said that nobody has it.
    proven: bool,
    /// Whether its pages are in place.
    settled: bool,
}

/// Whether the pages are about as many as a segment of `length` needs.
fn fits(kept: &Kept, length: u64) -> bool {
    let found = kept.spare.length();
    found >= length - length / 4 && found / 2 <= length
}

impl State {
    /// What is there, and what is being made.
    fn bytes(&self) -> u64 {
        self.ready() + self.making
    }

    fn ready(&self) -> u64 {
        self.spares.iter().map(|kept| kept.spare.length()).sum()
    }

    /// Takes out the oldest until no more than `most` bytes are left, and room for one more; to be
    /// dropped without the lock.
    fn shrink(&mut self, most: u64) -> Vec<Kept> {
        let mut dropped = Vec::new();
        while self.bytes() > most || self.spares.len() >= MOST_SPARES {
            match self.spares.pop_front() {
                Some(kept) => dropped.push(kept),
                None => break,
            }
        }
        dropped
    }

    /// Takes out what has waited in vain.
    fn expire(&mut self, now: Instant, reserve: u64) -> Vec<Kept> {
        let mut dropped = Vec::new();
        let mut index = 0;
        while let Some(kept) = self.spares.get_mut(index) {
            if !kept.proven {
                match kept.spare.claim() {
                    Use::None => kept.proven = true,
                    Use::Some => {}
                    Use::Unknown => kept.since = now.checked_sub(AWAITED).unwrap_or(now),
                }
            }
            let age = now.duration_since(kept.since);
            let length = kept.spare.length();
            let over = kept.proven && kept.spare.was_used() && age >= KEPT;
            let in_vain = !kept.proven && age >= AWAITED;
            if in_vain || over && self.bytes() - length >= reserve {
                dropped.extend(self.spares.remove(index));
            } else {
                index += 1;
            }
        }
        dropped
    }

    /// Puts a few pages in place of one that nobody has; whether there may be more. Takes out what
    /// cannot be kept.
    fn settle(&mut self, dropped: &mut Vec<Kept>) -> bool {
        let unsettled = |kept: &Kept| kept.proven && !kept.settled;
        let Some(index) = self.spares.iter().position(unsettled) else {
            return false;
        };
        let kept = &mut self.spares[index];
        // Who comes now finds no segment, or the bytes of none.
        let settled = kept.spare.is_still_unused().then(|| kept.spare.settle());
        match settled {
            Some(Ok(more)) => kept.settled = !more,
            Some(Err(_)) | None => dropped.extend(self.spares.remove(index)),
        }
        true
    }

    /// How long what is lacking is not made yet.
    fn rest(&self, now: Instant) -> Option<Duration> {
        let rest = (self.taken? + REST).saturating_duration_since(now);
        (!rest.is_zero()).then_some(rest)
    }

    /// When to look again.
    fn next_look(&self, now: Instant, reserve: u64) -> Option<Duration> {
        if self.spares.iter().any(|kept| !kept.proven) {
            return Some(LOOK);
        }
        let used = self.spares.iter().filter(|kept| kept.spare.was_used());
        let over = used.filter(|kept| self.bytes() - kept.spare.length() >= reserve);
        let ends = over.map(|kept| (kept.since + KEPT).saturating_duration_since(now));
        ends.chain(self.rest(now)).min()
    }
}

impl Pool {
    /// The pool of a session that has `reserve` bytes made; `None` where the system cannot prove that
    /// nobody has a freed segment.
    pub(crate) fn new(backend: Backend, budget: &Arc<Budget>, reserve: u64) -> Option<Arc<Self>> {
        let whole = || directory::probe(os::DIRECTORY.as_ref()).ok();
        if backend != Backend::Linux || !whole()?.missing().is_empty() {
            return None;
        }
        let pool = Arc::new(Self {
            budget: Arc::clone(budget),
            reserve,
            generation: os::fork_generation(),
            state: Mutex::default(),
        });
        if reserve > 0 {
            pool.wake_keeper(&mut pool.state());
        }
        Some(pool)
    }

    /// The bytes that wait for segments.
    pub(crate) fn bytes(&self) -> u64 {
        if self.is_ours() {
            self.state().ready()
        } else {
            0
        }
    }

    /// Takes over the memory of a segment that is freed, its name included; false: it is to be
    /// unlinked.
    pub(crate) fn free(
        self: &Arc<Self>,
        name: &SegmentName,
        length: u64,
        warm: Option<Warm>,
        forks: u64,
    ) -> bool {
        if !self.is_ours() || length < Spare::LEAST_BYTES || forks != os::forks() {
            return false;
        }
        let most = self.most();
        let mut state = self.state();
        if state.closed || length > most {
            return false;
        }
        let dropped = state.shrink(most - length);
        let spare = Spare::free(name, length, warm, forks);
        let Ok(Some(spare)) = spare else {
            // Its hidden name is gone with it.
            return matches!(spare, Ok(None));
        };
        let proven = match spare.claim() {
            Use::None => true,
            Use::Some => false,
            Use::Unknown => return true,
        };
        let since = Instant::now();
        state.spares.push_back(Kept {
            spare,
            since,
            proven,
            settled: false,
        });
        state.full = false;
        self.wake_keeper(&mut state);
        drop(state);
        drop(dropped);
        true
    }

    /// A draft of `length` bytes in pages that are ready; `None`: there are none of about this size.
    pub(crate) fn take(
        self: &Arc<Self>,
        name: &SegmentName,
        access: Access,
        length: u64,
    ) -> Result<Option<Box<dyn Draft>>> {
        if !self.is_ours() || length < Spare::LEAST_BYTES {
            return Ok(None);
        }
        let (mut state, found) = self.choose_in_time(length);
        if self.reserve > 0 {
            if found.is_none() {
                state.missed = Some(length);
            } else {
                state.taken = Some(Instant::now());
            }
            state.full = false;
            self.wake_keeper(&mut state);
        }
        drop(state);
        let Some(mut spare) = found else {
            return Ok(None);
        };
        if spare.length() != length && !spare.resize(length)? {
            return Ok(None);
        }
        spare.into_draft(name, access).map(Some)
    }

    /// As [`choose`](Self::choose), after waiting for those who are about to let go, for a part of the
    /// time that other pages would take.
    fn choose_in_time(&self, length: u64) -> (MutexGuard<'_, State>, Option<Spare>) {
        let start = Instant::now();
        let patience = Duration::from_nanos(length / BYTES_WAITED_A_NS).min(LONGEST_WAIT);
        loop {
            let mut state = self.state();
            let found = Self::choose(&mut state, length);
            let now = Instant::now();
            let let_go_soon = |kept: &Kept| {
                !kept.proven && fits(kept, length) && now.duration_since(kept.since) < LET_GO_WITHIN
            };
            let waits = now.duration_since(start) < patience;
            if found.is_some() || !waits || !state.spares.iter().any(let_go_soon) {
                return (state, found);
            }
            drop(state);
            thread::sleep(LOOK_AGAIN);
        }
    }

    /// The one of the next length that nobody has. Others than those that fit would cost more, in
    /// pages made or lost, than they save.
    fn choose(state: &mut State, length: u64) -> Option<Spare> {
        loop {
            let mut fitting: Vec<usize> = (0..state.spares.len())
                .filter(|&index| fits(&state.spares[index], length))
                .collect();
            fitting.sort_by_key(|&index| state.spares[index].spare.length().abs_diff(length));
            let index = fitting.into_iter().find(|&index| {
                let kept = &mut state.spares[index];
                kept.proven = kept.proven || kept.spare.claim() == Use::None;
                kept.proven
            })?;
            let kept = state.spares.remove(index)?;
            if kept.spare.is_still_unused() {
                return Some(kept.spare);
            }
        }
    }

    /// Gives memory back until no more than `most` bytes are ready; false: nothing was there.
    pub(crate) fn shrink(&self, most: u64) -> bool {
        if !self.is_ours() {
            return false;
        }
        let dropped = self.state().shrink(most);
        !dropped.is_empty()
    }

    /// Gives everything back, for good.
    pub(crate) fn close(&self) {
        if self.is_ours() {
            let mut state = self.state();
            state.closed = true;
            let spares = std::mem::take(&mut state.spares);
            drop(state);
            self.budget.ring();
            drop(spares);
        }
    }

    /// How many bytes may be ready: never more than stay free for others, nor than the budget leaves.
    fn most(&self) -> u64 {
        let available = Backend::Linux.storage().available();
        let available = available.map_or(0, |available| available.bytes);
        available.min(self.budget.left())
    }

    fn is_ours(&self) -> bool {
        self.generation == os::fork_generation()
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn wake_keeper(self: &Arc<Self>, state: &mut State) {
        self.budget.set_ready(state.bytes());
        if state.keeper {
            self.budget.ring();
            return;
        }
        let pool = Arc::clone(self);
        let thread = thread::Builder::new().name("theus-pool".to_owned());
        let keeper = thread.spawn(move || pool.keep());
        // Without a thread, what is not taken stays until the session is closed.
        state.keeper = keeper.is_ok();
    }

    /// What the keeper's thread does until the session is closed.
    fn keep(&self) {
        let _ = rustix::process::nice(NICE); // of this thread
        let mut answered = self.budget.asked();
        loop {
            let bell = self.budget.bell();
            let mut state = self.state();
            if state.closed {
                return;
            }
            let asked = self.budget.asked();
            let mut dropped = if asked > answered {
                state.full = true;
                state.shrink(0)
            } else {
                state.expire(Instant::now(), self.reserve)
            };
            let settling = state.settle(&mut dropped);
            let lacking = self.lacking(&mut state).filter(|_| !settling);
            state.making = lacking.unwrap_or(0);
            self.budget.set_ready(state.bytes());
            let look = state.next_look(Instant::now(), self.reserve);
            drop(state);
            drop(dropped);
            if asked > answered {
                self.budget.answer(asked);
                answered = asked;
            }
            match lacking {
                Some(length) => self.make(length, asked),
                // Others may have it now.
                None if settling => thread::yield_now(),
                None => self.budget.wait(bell, look),
            }
        }
    }

    /// Makes a part of the reserve, unless somebody needs the memory more.
    fn make(&self, length: u64, asked: u64) {
        let goes_on = || self.may_go_on() && self.budget.asked() == asked;
        let made = Spare::fresh(length, goes_on);
        let mut state = self.state();
        state.making = 0;
        match made {
            Ok(Some(spare)) if !state.closed => state.spares.push_back(Kept {
                spare,
                since: Instant::now(),
                proven: true,
                settled: true,
            }),
            _ => state.full = true,
        }
        self.budget.set_ready(state.bytes());
    }

    /// How long a spare the reserve lacks. A large one is cut to make one of the length that was
    /// missed.
    fn lacking(&self, state: &mut State) -> Option<u64> {
        let resting = state.rest(Instant::now()).is_some();
        if state.full || resting || self.reserve < Spare::LEAST_BYTES {
            return None;
        }
        let missed = state.missed.filter(|missed| *missed < self.reserve);
        if let Some(missed) = missed {
            state.missed = None;
            let fresh =
                |kept: &&mut Kept| !kept.spare.was_used() && kept.spare.length() / 2 > missed;
            if let Some(kept) = state.spares.iter_mut().find(fresh) {
                let rest = kept.spare.length() - missed;
                if kept.spare.resize(rest).is_ok() {
                    return Some(missed);
                }
            }
        }
        let left = self.budget.left().saturating_sub(state.bytes());
        let lacking = self.reserve.saturating_sub(state.bytes()).min(left);
        (lacking >= Spare::LEAST_BYTES).then_some(lacking)
    }

    /// Whether there is room to go on making a reserve.
    fn may_go_on(&self) -> bool {
        let available = Backend::Linux.storage().available();
        let room = available.is_none_or(|available| available.bytes >= LEFT_BYTES);
        let state = self.state();
        room && !state.closed && state.bytes() <= self.budget.left()
    }
}
