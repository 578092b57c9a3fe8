//! Reclaiming what dead sessions left.
//!
//! A session lives while its lock is held; who gets the lock of a dead one removes all it left, the
//! lock file last. Nothing is judged by process ids, which are reused and differ between
//! namespaces.
//!
//! Everybody may put files into these directories. What is no regular file of this user's is not
//! opened, followed or removed, and says nothing about a session.

use std::collections::BTreeSet;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};

use crate::backend::{Backend, Place, SpillDirectory, Storage};
use crate::descriptor::{SegmentName, SessionId};
use crate::error::Result;
use crate::kill_point::KillPoint;
use crate::os::{self, Status};

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
    /// Whether its owner lives; also if this user may not ask, because it is another user's.
    pub alive: bool,
    /// How many segments have names, the catalog not counted.
    pub entries: u64,
    /// Their bytes together.
    pub bytes: u64,
    /// The user that it belongs to.
    pub user: u32,
}

/// Removes what every dead session of this user left, in memory and where it spilled; the names that
/// were removed. In `spill_dir`, also what sessions left that have nothing in memory any more, since
/// the machine was restarted, say.
///
/// # Errors
/// [`crate::Error::Os`] if the names cannot be listed.
pub fn sweep(spill_dir: Option<&Path>) -> Result<Vec<String>> {
    let mut removed = Vec::new();
    // One session that cannot be swept does not keep the others.
    let mut keep = |outcome| {
        if let Ok(SweepOutcome::Swept(names)) = outcome {
            removed.extend(names);
        }
    };
    for backend in Backend::ALL {
        let abandoned = backend.storage().remove_abandoned();
        keep(abandoned.map(SweepOutcome::Swept));
    }
    for id in found()? {
        keep(sweep_session(&id));
    }
    if let Some(path) = spill_dir {
        let spill = SpillDirectory::at(path);
        let ids: BTreeSet<SessionId> = spill.storage().sessions()?.into_iter().collect();
        for id in ids {
            keep(sweep_places(&id, Some(spill.clone())));
        }
    }
    Ok(removed)
}

/// Removes what session `id` left, if it is dead.
///
/// # Errors
/// [`crate::Error::Os`] if the kernel refuses.
pub fn sweep_session(id: &SessionId) -> Result<SweepOutcome> {
    // A directory that is not mounted here is swept by who uses it next.
    let spill = SpillDirectory::of(id).filter(|spill| spill.path().is_dir());
    sweep_places(id, spill)
}

/// Removes what session `id` left in memory and in `spill`, if it is dead.
fn sweep_places(id: &SessionId, spill: Option<SpillDirectory>) -> Result<SweepOutcome> {
    let mut places: Vec<Place> = spill.into_iter().map(Place::Disk).collect();
    places.extend(Backend::ALL.map(Place::Memory));
    let Some(locks) = take_locks(id, &places)? else {
        return Ok(SweepOutcome::StillAlive);
    };
    if locks.is_empty() {
        places.retain(|place| !matches!(place, Place::Memory(Backend::Portable)));
        return sweep_without_lock(id, &places);
    }
    KillPoint::SweepLocked.pass();
    let mut removed = Vec::new();
    // The lock in memory says where the session spilled, so what lies there goes first; and without
    // the locks a sweep has less sure signs to go by, so they go last.
    for place in &places {
        removed.extend(remove_all(place, place.storage().segments_of(id)?)?);
    }
    for lock in &locks {
        if os::unlink(&lock.path)? {
            removed.push(id.lock_name());
        }
        KillPoint::SweepLockRemoved.pass();
    }
    Ok(SweepOutcome::Swept(removed))
}

/// A lock of a dead session, held until this is dropped.
struct DeadLock {
    path: PathBuf,
    _file: OwnedFd,
}

/// The locks of session `id` that are in place; `None` if somebody holds one. A copy of a lock file
/// where another backend looks for it does not make a living session dead.
fn take_locks(id: &SessionId, places: &[Place]) -> Result<Option<Vec<DeadLock>>> {
    let mut locks = Vec::new();
    for place in places {
        let path = place.storage().lock_path(id);
        let Some(status) = os::status_of(&path).filter(is_ours) else {
            continue;
        };
        let file = os::open_read_only(&path)?;
        // Another sweep may have removed the file, and the owner put a new one in its place.
        let same = || Ok(os::status(&file)?.inode == status.inode && is_at(&path, &status));
        if !os::try_lock(&file)? || !same()? {
            return Ok(None);
        }
        locks.push(DeadLock { path, _file: file });
    }
    Ok(Some(locks))
}

fn is_at(path: &Path, status: &Status) -> bool {
    os::status_of(path).map(|now| now.inode) == Some(status.inode)
}

fn is_ours(status: &Status) -> bool {
    status.regular && status.own
}

/// Whether what lies at `name` is a file of this user's, or the system shows no file for it.
fn may_be_ours(place: &Place, name: &SegmentName) -> bool {
    let status = os::status_of(&place.path_of(name));
    status.as_ref().is_none_or(is_ours)
}

/// Removes those of `names` that are this user's; one that stays does not keep the others.
fn remove_all(place: &Place, names: Vec<SegmentName>) -> Result<Vec<String>> {
    let mut removed = Vec::new();
    let mut failure = None;
    for name in names.into_iter().filter(|name| may_be_ours(place, name)) {
        match place.storage().unlink(&name) {
            Ok(true) => removed.push(name.to_string()),
            Ok(false) => {}
            Err(error) => failure = Some(error),
        }
        KillPoint::SweepNameRemoved.pass();
    }
    failure.map_or(Ok(removed), Err)
}

/// Without a lock file (somebody removed it) the owner's mapping of the catalog says that it lives,
/// and without a catalog each segment is removed only if nobody at all has it open or mapped.
fn sweep_without_lock(id: &SessionId, places: &[Place]) -> Result<SweepOutcome> {
    let mut left = Vec::new();
    for place in places {
        let mut names = place.storage().segments_of(id)?;
        names.retain(|name| may_be_ours(place, name));
        left.push((place, names));
    }
    if left.iter().all(|(_, names)| names.is_empty()) {
        return Ok(SweepOutcome::NothingLeft);
    }
    // Without proof from the kernel, a segment counts as used.
    let unused = |place: &Place, name: &SegmentName| place.storage().is_unused(name) == Some(true);
    let catalog = left.iter().find_map(|(place, names)| {
        let catalog = names.iter().find(|name| name.number == 0)?;
        Some(unused(place, catalog))
    });
    if catalog == Some(false) {
        return Ok(SweepOutcome::StillAlive);
    }
    let mut removed = Vec::new();
    for (place, mut names) in left {
        if catalog.is_none() {
            names.retain(|name| unused(place, name));
        }
        removed.extend(remove_all(place, names)?);
    }
    Ok(SweepOutcome::Swept(removed))
}

/// Every session that has names on this machine.
///
/// # Errors
/// [`crate::Error::Os`] if the names cannot be listed.
pub fn sessions() -> Result<Vec<SessionInfo>> {
    let described: Result<Vec<_>> = found()?.into_iter().map(describe).collect();
    Ok(described?.into_iter().flatten().collect())
}

/// `None` if nothing of this name is a session's.
fn describe(id: SessionId) -> Result<Option<SessionInfo>> {
    let regular = |path: PathBuf| os::status_of(&path).filter(|status| status.regular);
    let lock_of = |backend: &Backend| {
        let storage = backend.storage();
        // An empty one is a trial of a directory (`directory::probe`).
        let lock = regular(storage.lock_path(&id)).filter(|status| status.length > 0)?;
        Some((storage, lock))
    };
    let mut locks: Vec<_> = Backend::ALL.iter().filter_map(lock_of).collect();
    let own = locks.iter().find(|(_, status)| status.own);
    let storage = own.map_or(Backend::Linux.storage(), |(storage, _)| *storage);
    let mut names = storage.segments_of(&id)?;
    let user_of = |name: &SegmentName| regular(name.path()).map(|status| status.user);
    let users = locks.iter().map(|(_, status)| status.user);
    let users: Vec<_> = users.chain(names.iter().filter_map(user_of)).collect();
    // Strangers may put theirs beside a session of this user's.
    let me = os::user();
    let Some(user) = users.iter().find(|user| **user == me).or(users.first()) else {
        return Ok(None);
    };
    locks.retain(|(_, status)| status.user == *user);
    names.retain(|name| match os::status_of(&name.path()) {
        Some(status) => status.regular && status.user == *user,
        None => true, // the system shows no files for names
    });
    let alive = if locks.is_empty() {
        let mut catalogs = names.iter().filter(|name| name.number == 0);
        catalogs.any(|name| storage.is_unused(name) != Some(true))
    } else {
        // A lock that is free is let go with the descriptor, here. One that cannot be opened is
        // another user's.
        let is_free = |path: PathBuf| os::try_lock(&os::open_read_only(&path).ok()?).ok();
        let mut paths = locks.iter().map(|(storage, _)| storage.lock_path(&id));
        paths.any(|path| is_free(path) != Some(true))
    };
    let mut lengths = entry_lengths(storage, &names);
    if let Some(spill) = SpillDirectory::of(&id) {
        let spilled = spill.storage().segments_of(&id).unwrap_or_default();
        lengths.extend(entry_lengths(spill.storage(), &spilled));
    }
    Ok(Some(SessionInfo {
        id,
        alive,
        entries: lengths.len() as u64,
        bytes: lengths.iter().sum(),
        user: *user,
    }))
}

fn entry_lengths(storage: &dyn Storage, names: &[SegmentName]) -> Vec<u64> {
    let entries = names
        .iter()
        .filter(|name| name.number != 0 && !name.is_hidden());
    entries.filter_map(|name| storage.length_of(name)).collect()
}

/// Every session that a name speaks of.
fn found() -> Result<BTreeSet<SessionId>> {
    let mut sessions = BTreeSet::new();
    for backend in Backend::ALL {
        sessions.extend(backend.storage().sessions()?);
    }
    Ok(sessions)
}
