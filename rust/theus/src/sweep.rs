//! Reclaiming what dead sessions left.
//!
//! A session lives while its lock is held; who gets the lock of a dead one removes all it left, the
//! lock file last. Nothing is judged by process ids, which are reused and differ between
//! namespaces.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use crate::backend::{Backend, SpillDirectory, Storage};
use crate::descriptor::{SegmentName, SessionId};
use crate::error::Result;
use crate::kill_point::KillPoint;
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

/// Removes what every dead session of this user left, in memory and where it spilled; the names that
/// were removed. In `spill_dir`, also what sessions left that have nothing in memory any more, since
/// the machine was restarted, say.
///
/// # Errors
/// [`crate::Error::Os`] if the names cannot be listed.
pub fn sweep(spill_dir: Option<&Path>) -> Result<Vec<String>> {
    let mut removed = Vec::new();
    // One session that cannot be swept (another user's, say) does not keep the others.
    let mut keep = |outcome| {
        if let Ok(SweepOutcome::Swept(names)) = outcome {
            removed.extend(names);
        }
    };
    for backend in Backend::ALL {
        keep(
            backend
                .storage()
                .remove_abandoned()
                .map(SweepOutcome::Swept),
        );
    }
    for (id, backend) in found()? {
        keep(sweep_in(backend.storage(), &id));
    }
    if let Some(path) = spill_dir {
        let spill = SpillDirectory::at(path);
        let ids: BTreeSet<SessionId> = spill.storage().sessions()?.into_iter().collect();
        for id in ids {
            keep(sweep_in(spill.storage(), &id));
        }
    }
    Ok(removed)
}

/// Removes what session `id` left, if it is dead.
///
/// # Errors
/// [`crate::Error::Os`] if the kernel refuses.
pub fn sweep_session(id: &SessionId) -> Result<SweepOutcome> {
    match found()?.get(id) {
        Some(backend) => sweep_in(backend.storage(), id),
        None => Ok(SweepOutcome::NothingLeft),
    }
}

fn sweep_in(storage: &dyn Storage, id: &SessionId) -> Result<SweepOutcome> {
    let path = storage.lock_path(id);
    let Some(status) = os::status_of(&path) else {
        return sweep_without_lock(storage, id);
    };
    if !status.regular || !status.own {
        return Ok(SweepOutcome::StillAlive);
    }
    let lock = os::open_read_only(&path)?;
    if !os::try_lock(&lock)? {
        return Ok(SweepOutcome::StillAlive);
    }
    // Another sweep may have removed the file, and the owner put a new one in its place.
    let same = os::status_of(&path).map(|now| now.inode) == Some(os::status(&lock)?.inode);
    if !same {
        return Ok(SweepOutcome::StillAlive);
    }
    KillPoint::SweepLocked.pass();
    let mut removed = Vec::new();
    // The lock file says where the session spilled, so what lies there goes first.
    if let Some(spill) = SpillDirectory::of(id) {
        // A directory that is not mounted here is swept by who uses it next.
        if spill.path() != path.parent().unwrap_or(&path) && spill.path().is_dir() {
            remove_all(spill.storage(), id, &mut removed)?;
        }
    }
    remove_all(storage, id, &mut removed)?;
    Ok(SweepOutcome::Swept(removed))
}

/// Removes the names of a dead session, its lock last.
fn remove_all(storage: &dyn Storage, id: &SessionId, removed: &mut Vec<String>) -> Result<()> {
    for name in storage.segments_of(id)? {
        if storage.unlink(&name)? {
            removed.push(name.to_string());
        }
        KillPoint::SweepNameRemoved.pass();
    }
    if os::unlink(&storage.lock_path(id))? {
        removed.push(id.lock_name());
    }
    KillPoint::SweepLockRemoved.pass();
    Ok(())
}

/// Without a lock file (somebody removed it) the owner's mapping of the catalog says that it lives,
/// and without a catalog each segment is removed only if nobody at all has it open or mapped.
fn sweep_without_lock(storage: &dyn Storage, id: &SessionId) -> Result<SweepOutcome> {
    let names = storage.segments_of(id)?;
    if names.is_empty() {
        return Ok(SweepOutcome::NothingLeft);
    }
    // Without proof from the kernel, a segment counts as used.
    let unused = |name: &SegmentName| storage.is_unused(name) == Some(true);
    let catalog = names.iter().find(|name| name.number == 0);
    if catalog.is_some_and(|catalog| !unused(catalog)) {
        return Ok(SweepOutcome::StillAlive);
    }
    let mut removed = Vec::new();
    for name in &names {
        if (catalog.is_some() || unused(name)) && storage.unlink(name)? {
            removed.push(name.to_string());
        }
    }
    Ok(SweepOutcome::Swept(removed))
}

/// Every session that has names on this machine.
///
/// # Errors
/// [`crate::Error::Os`] if the names cannot be listed.
pub fn sessions() -> Result<Vec<SessionInfo>> {
    let describe = |(id, backend): (SessionId, Backend)| {
        let storage = backend.storage();
        let names = storage.segments_of(&id)?;
        let mut lengths = entry_lengths(storage, &names);
        if let Some(spill) = SpillDirectory::of(&id) {
            let spilled = spill.storage().segments_of(&id).unwrap_or_default();
            lengths.extend(entry_lengths(spill.storage(), &spilled));
        }
        let alive = match os::open_read_only(&storage.lock_path(&id)) {
            // The lock is let go with the descriptor, here.
            Ok(lock) => !os::try_lock(&lock).unwrap_or(false),
            Err(_) => names
                .iter()
                .any(|name| name.number == 0 && storage.is_unused(name) != Some(true)),
        };
        Ok(SessionInfo {
            id,
            alive,
            entries: lengths.len() as u64,
            bytes: lengths.iter().sum(),
        })
    };
    found()?.into_iter().map(describe).collect()
}

fn entry_lengths(storage: &dyn Storage, names: &[SegmentName]) -> Vec<u64> {
    let entries = names.iter().filter(|name| name.number != 0);
    entries.filter_map(|name| storage.length_of(name)).collect()
}

/// Each session, with the backend that knows its lock.
fn found() -> Result<BTreeMap<SessionId, Backend>> {
    let mut sessions = BTreeMap::new();
    for backend in Backend::ALL {
        for id in backend.storage().sessions()? {
            sessions.entry(id).or_insert(backend);
        }
    }
    Ok(sessions)
}
