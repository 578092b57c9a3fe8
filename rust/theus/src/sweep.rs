//! Reclaiming what dead sessions left.
//!
//! A session lives while its lock is held; who gets the lock of a dead one removes all it left, the
//! lock file last. Nothing is judged by process ids, which are reused and differ between
//! namespaces.

use std::collections::BTreeMap;

use crate::descriptor::{PREFIX, SegmentName, SessionId};
use crate::error::Result;
use crate::os;

/// What a sweep of one session came to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum SweepOutcome {
    /// The session was dead; these names were removed.
    Swept(Vec<String>),
    /// Its owner lives, or somebody else is sweeping it.
    StillAlive,
    /// It has no names.
    NothingLeft,
}

/// One session that has names on this machine.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SessionInfo {
    /// Its id.
    pub id: SessionId,
    /// Whether its owner lives.
    pub alive: bool,
    /// How many segments have names, the catalog not counted.
    pub entries: u64,
    /// Their bytes together.
    pub bytes: u64,
}

/// Removes what every dead session of this user left; the names that were removed.
///
/// # Errors
/// [`crate::Error::Os`] if the directory cannot be listed.
pub fn sweep() -> Result<Vec<String>> {
    let mut removed = Vec::new();
    for id in by_session()?.into_keys() {
        // One session that cannot be swept (another user's, say) does not keep the others.
        if let Ok(SweepOutcome::Swept(names)) = sweep_session(&id) {
            removed.extend(names);
        }
    }
    Ok(removed)
}

/// Removes what session `id` left, if it is dead.
///
/// # Errors
/// [`crate::Error::Os`] if the kernel refuses.
pub fn sweep_session(id: &SessionId) -> Result<SweepOutcome> {
    let names = segments_of(id)?;
    let lock_name = id.lock_name();
    let lock_path = os::path_of(&lock_name);
    let Some(status) = os::status_of(&lock_path) else {
        return sweep_without_lock(id, &names);
    };
    if !status.regular || !status.own {
        return Ok(SweepOutcome::StillAlive);
    }
    let lock = os::open_read_only(&lock_path)?;
    if !os::try_lock(&lock)? {
        return Ok(SweepOutcome::StillAlive);
    }
    // Another sweep may have removed the file, and the owner put a new one in its place.
    let same = os::status_of(&lock_path).map(|now| now.inode) == Some(os::status(&lock)?.inode);
    if !same {
        return Ok(SweepOutcome::StillAlive);
    }
    let mut removed = Vec::new();
    for name in segments_of(id)?
        .into_iter()
        .map(|name| name.to_string())
        .chain([lock_name])
    {
        if os::unlink(&name)? {
            removed.push(name);
        }
    }
    Ok(SweepOutcome::Swept(removed))
}

/// Without a lock file (somebody removed it) the owner's mapping of the catalog says that it lives,
/// and without a catalog each segment is removed only if nobody at all has it open or mapped.
fn sweep_without_lock(id: &SessionId, names: &[SegmentName]) -> Result<SweepOutcome> {
    if names.is_empty() {
        return Ok(SweepOutcome::NothingLeft);
    }
    let catalog = names.iter().find(|name| name.number == 0);
    if let Some(catalog) = catalog
        && !is_unused(catalog)
    {
        return Ok(SweepOutcome::StillAlive);
    }
    let mut removed = Vec::new();
    for name in names.iter().filter(|name| name.session == *id) {
        if (catalog.is_some() || is_unused(name)) && os::unlink(&name.to_string())? {
            removed.push(name.to_string());
        }
    }
    Ok(SweepOutcome::Swept(removed))
}

/// Whether the kernel proves that nobody has the segment open or mapped; without proof, not.
fn is_unused(name: &SegmentName) -> bool {
    let path = os::path_of(&name.to_string());
    let own = os::status_of(&path).is_some_and(|status| status.regular && status.own);
    own && os::open_read_only(&path).is_ok_and(|file| os::is_unused(&file) == Some(true))
}

fn segments_of(id: &SessionId) -> Result<Vec<SegmentName>> {
    let names = os::names(&format!("{PREFIX}{id}-"))?;
    Ok(names.iter().filter_map(|name| name.parse().ok()).collect())
}

fn by_session() -> Result<BTreeMap<SessionId, Vec<SegmentName>>> {
    let mut sessions: BTreeMap<SessionId, Vec<SegmentName>> = BTreeMap::new();
    for name in os::names(PREFIX)? {
        if let Ok(segment) = name.parse::<SegmentName>() {
            sessions
                .entry(segment.session.clone())
                .or_default()
                .push(segment);
        } else if let Some(id) = name
            .strip_prefix(PREFIX)
            .and_then(|rest| rest.strip_suffix(".lock"))
            .and_then(|id| id.parse().ok())
        {
            sessions.entry(id).or_default();
        }
    }
    Ok(sessions)
}

/// Every session that has names on this machine.
///
/// # Errors
/// [`crate::Error::Os`] if the directory cannot be listed.
pub fn sessions() -> Result<Vec<SessionInfo>> {
    let describe = |(id, names): (SessionId, Vec<SegmentName>)| {
        let entries = names.iter().filter(|name| name.number != 0);
        let sizes = entries.filter_map(|name| os::status_of(&os::path_of(&name.to_string())));
        let (count, bytes) = sizes.fold((0, 0), |(count, bytes), status| {
            (count + 1, bytes + status.length)
        });
        SessionInfo {
            alive: is_alive(&id, &names),
            id,
            entries: count,
            bytes,
        }
    };
    Ok(by_session()?.into_iter().map(describe).collect())
}

fn is_alive(id: &SessionId, names: &[SegmentName]) -> bool {
    match os::open_read_only(&os::path_of(&id.lock_name())) {
        // The lock is let go with the descriptor, here.
        Ok(lock) => !os::try_lock(&lock).unwrap_or(false),
        Err(_) => names
            .iter()
            .any(|name| name.number == 0 && !is_unused(name)),
    }
}
