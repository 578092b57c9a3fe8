//! Where a session's segments are made: memory within a budget, and disk for what does not fit.

use std::os::fd::AsFd;
use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::thread;
use std::time::{Duration, Instant};

use crate::backend::{Backend, Place, SpillDirectory};
use crate::budget::Budget;
use crate::descriptor::SessionId;
use crate::error::Result;
use crate::pool::Pool;

/// How long memory that was given back may take until it is free.
const LET_GO_WITHIN: Duration = Duration::from_millis(20);
const LOOK_AGAIN: Duration = Duration::from_millis(1);

/// Who may have memory ready, of all zones of this process.
static READY: Mutex<Vec<Ready>> = Mutex::new(Vec::new());

#[derive(Debug)]
struct Ready {
    budget: Weak<Budget>,
    /// The owner's; a worker asks its owner by way of the budget.
    pool: Option<Weak<Pool>>,
}

/// Has every session of this process give back what it has ready and nobody uses; whether any had
/// something.
fn make_room() -> bool {
    // Who holds it makes room already, or was another thread when this child was forked.
    let Ok(mut ready) = READY.try_lock() else {
        return false;
    };
    ready.retain(|ready| ready.budget.strong_count() > 0);
    let mut made = false;
    for Ready { budget, pool } in ready.iter() {
        made |= match pool {
            Some(pool) => pool.upgrade().is_some_and(|pool| pool.shrink(0)),
            None => budget
                .upgrade()
                .is_some_and(|budget| budget.ask_for_ready()),
        };
    }
    made
}

/// What comes of `attempt`, and if that is nothing, of further ones when others have given back what
/// they had ready: who had a part of it mapped, as it had just been published, lets go a little later.
pub(crate) fn with_room<T>(attempt: impl Fn() -> Result<Option<T>>) -> Result<Option<T>> {
    let mut found = attempt()?;
    if found.is_none() && make_room() {
        let start = Instant::now();
        found = attempt()?;
        while found.is_none() && start.elapsed() < LET_GO_WITHIN {
            thread::sleep(LOOK_AGAIN);
            found = attempt()?;
        }
    }
    Ok(found)
}

fn register(budget: &Arc<Budget>, pool: Option<&Arc<Pool>>) {
    let mut ready = READY.lock().unwrap_or_else(PoisonError::into_inner);
    ready.push(Ready {
        budget: Arc::downgrade(budget),
        pool: pool.map(Arc::downgrade),
    });
}

/// One process's part of a session's heavy zone.
#[derive(Debug, Clone)]
pub struct Zone {
    session: SessionId,
    backend: Backend,
    budget: Arc<Budget>,
    spill: Option<SpillDirectory>,
    pool: Option<Arc<Pool>>,
}

impl Zone {
    /// The part of the owner, who has `reserve` bytes ready.
    pub(crate) fn of_owner(
        session: SessionId,
        backend: Backend,
        budget: Budget,
        spill: Option<SpillDirectory>,
        reserve: u64,
    ) -> Self {
        let budget = Arc::new(budget);
        let pool = Pool::new(backend, &budget, reserve);
        if pool.is_some() {
            register(&budget, pool.as_ref());
        }
        Self {
            session,
            backend,
            budget,
            spill,
            pool,
        }
    }

    /// The part of a worker, which shares the session's budget and spills where its owner does.
    #[must_use]
    pub fn of_worker(session: SessionId, budget: Budget) -> Self {
        let spill = SpillDirectory::of(&session);
        let budget = Arc::new(budget);
        register(&budget, None);
        Self {
            session,
            backend: Backend::Linux,
            budget,
            spill,
            pool: None,
        }
    }

    /// The session.
    #[must_use]
    pub fn session(&self) -> &SessionId {
        &self.session
    }

    /// How many bytes may be reserved, and are.
    #[must_use]
    pub fn budget(&self) -> &Arc<Budget> {
        &self.budget
    }

    /// Where segments go that do not fit in memory.
    #[must_use]
    pub fn spill(&self) -> Option<&SpillDirectory> {
        self.spill.as_ref()
    }

    /// The pages that are ready for the owner's next segments.
    pub(crate) fn pool(&self) -> Option<&Arc<Pool>> {
        self.pool.as_ref()
    }

    pub(crate) fn memory(&self) -> Place {
        Place::Memory(self.backend)
    }

    pub(crate) fn disk(&self) -> Option<Place> {
        self.spill.clone().map(Place::Disk)
    }

    /// The place whose file system has `file`.
    pub(crate) fn place_of(&self, file: &impl AsFd) -> Place {
        match &self.spill {
            Some(directory) if directory.holds(file) => Place::Disk(directory.clone()),
            _ => self.memory(),
        }
    }
}
