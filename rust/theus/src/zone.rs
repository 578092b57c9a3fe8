//! Where a session's segments are made: memory within a budget, and disk for what does not fit.

use std::os::fd::AsFd;
use std::sync::Arc;

use crate::backend::{Backend, Place, SpillDirectory};
use crate::budget::Budget;
use crate::descriptor::SessionId;
use crate::pool::Pool;

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
        Self {
            session,
            backend: Backend::Linux,
            budget: Arc::new(budget),
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
