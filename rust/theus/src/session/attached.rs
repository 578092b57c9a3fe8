//! Another process's session, read-only.

use std::sync::Arc;

use crate::catalog::read_catalog;
use crate::descriptor::SessionId;
use crate::error::{Error, Result};
use crate::segment::Segment;

/// How often a name is looked up again when its segment went between the look and the opening.
const ATTEMPTS: usize = 8;

/// The published entries of a session that another process owns.
///
/// What was opened stays readable for as long as it is held, whatever becomes of the session.
#[derive(Debug, Clone)]
pub struct AttachedSession {
    id: SessionId,
}

impl AttachedSession {
    pub(crate) fn new(id: SessionId) -> Result<Self> {
        read_catalog(&id)?;
        Ok(Self { id })
    }

    /// The session's id.
    #[must_use]
    pub fn id(&self) -> &SessionId {
        &self.id
    }

    /// The names of the entries in the session's current state.
    ///
    /// # Errors
    /// [`Error::SegmentNotFound`] if the session has ended.
    pub fn names(&self) -> Result<Vec<String>> {
        let (_, entries) = read_catalog(&self.id)?;
        Ok(entries.into_iter().map(|entry| entry.key).collect())
    }

    /// Maps the entry of this name read-only, after checking its structure.
    ///
    /// # Errors
    /// [`Error::EntryNotFound`], [`Error::SegmentNotFound`] if the session has ended, or
    /// [`Error::CorruptSegment`].
    pub fn get(&self, name: &str) -> Result<Arc<Segment>> {
        let mut attempt = 0;
        loop {
            attempt += 1;
            let (_, entries) = read_catalog(&self.id)?;
            let entry = entries.into_iter().find(|entry| entry.key == name);
            let entry = entry.ok_or_else(|| Error::EntryNotFound {
                key: name.to_owned(),
            })?;
            match Segment::find(&entry.segment) {
                // It was replaced or freed since the catalog was read.
                Err(Error::SegmentNotFound { .. }) if attempt < ATTEMPTS => {}
                opened => return opened.map(Arc::new),
            }
        }
    }
}
