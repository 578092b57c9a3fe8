//! What this process keeps for the next look, though nobody looks now: the last so many of it.
//!
//! A process may have some 65,000 mappings, and a session more entries than that. So an entry that
//! nobody looks at is unmapped when many others were looked at since; its name is there, and it is
//! mapped again at the next look.

use std::any::Any;
use std::cell::RefCell;
use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use crate::error::Result;
use crate::limits;

/// How many there are at most.
const MOST: usize = 16 << 10;

/// One part in so many of the mappings that there may be, if that is less.
const PART: u64 = 4;

static KEPT: Mutex<Kept> = Mutex::new(Kept {
    by_use: BTreeMap::new(),
    latest: 0,
    most: None,
});

thread_local! {
    /// The lock while this thread forks.
    static FORKING: RefCell<Option<MutexGuard<'static, Kept>>> = const { RefCell::new(None) };
}

type Value = Arc<dyn Any + Send + Sync>;

#[derive(Debug)]
struct Kept {
    /// The longest unused first.
    by_use: BTreeMap<u64, Value>,
    latest: u64,
    most: Option<usize>,
}

impl Kept {
    fn most(&mut self) -> usize {
        *self.most.get_or_insert_with(|| {
            let part = limits::mappings().map(|limit| limit / PART);
            let part = part.and_then(|part| usize::try_from(part).ok());
            part.map_or(MOST, |part| part.min(MOST))
        })
    }
}

/// Where one thing is among what is kept; it is let go with this.
#[derive(Debug, Default)]
pub(crate) struct Ticket(Option<u64>);

impl Ticket {
    /// Keeps what `value` gives, or what it gave before, as the last that was used.
    pub(crate) fn keep(&mut self, value: impl FnOnce() -> Value) {
        let mut kept = lock();
        let most = kept.most();
        let mut before = None;
        if let Some(use_) = self.0 {
            // What is far from being let go stays where it is: most looks are at the same few.
            let recent = kept.latest - use_ < most as u64 / 4;
            if recent && kept.by_use.contains_key(&use_) {
                return;
            }
            before = kept.by_use.remove(&use_);
        }
        kept.latest += 1;
        let latest = kept.latest;
        kept.by_use.insert(latest, before.unwrap_or_else(value));
        self.0 = Some(latest);
        let mut over = Vec::new();
        while kept.by_use.len() > most {
            over.extend(kept.by_use.pop_first());
        }
        // Unmapping takes other locks, and a while.
        drop(kept);
        drop(over);
    }
}

impl Drop for Ticket {
    fn drop(&mut self) {
        let gone = self.0.take().and_then(|use_| lock().by_use.remove(&use_));
        drop(gone);
    }
}

/// Refuses one more mapping when nearly all are taken, even without what is only kept.
pub(crate) fn check_mappings(operation: &'static str) -> Result<()> {
    loop {
        match limits::check_mappings(operation) {
            Err(full) if !let_go_half() => return Err(full),
            Err(_) => {}
            checked => return checked,
        }
    }
}

/// Lets go of the longer unused half; whether there was something.
fn let_go_half() -> bool {
    let mut kept = lock();
    let half = kept.by_use.keys().nth(kept.by_use.len() / 2).copied();
    let Some(half) = half else {
        return false;
    };
    let newer = kept.by_use.split_off(&(half + 1));
    let over = std::mem::replace(&mut kept.by_use, newer);
    drop(kept);
    !over.is_empty()
}

/// Takes the lock before a fork, so that the child does not inherit it from a thread that it does
/// not have; called with false, in parent and child, lets it go.
pub(crate) fn lock_for_fork(locked: bool) {
    let guard = locked.then(lock);
    FORKING.with_borrow_mut(|held| *held = guard);
}

fn lock() -> MutexGuard<'static, Kept> {
    KEPT.lock().unwrap_or_else(PoisonError::into_inner)
}
