//! Nameless files that are reserved, filled and then linked; a lock that no child inherits.

use std::borrow::Cow;
use std::fs::File;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::sync::{Arc, LazyLock};

use super::nameless::{self, Nameless, Pages};
use super::reserve::{Hurry, reserve};
use super::{Access, Available, Capabilities, Draft, Lock, Storage};
use crate::cgroup;
use crate::descriptor::{HIDDEN, PREFIX, SegmentName, SessionId};
use crate::error::{Error, Result};
use crate::kept::check_mappings;
use crate::kill_point::KillPoint;
use crate::lease;
use crate::mapping::Mapping;
use crate::os;

/// What lies in `/dev/shm`.
pub(super) static MEMORY: LazyLock<Linux> = LazyLock::new(|| Linux {
    directory: PathBuf::from(os::DIRECTORY),
    in_memory: true,
});

/// Segments in one directory.
#[derive(Debug)]
pub(crate) struct Linux {
    directory: PathBuf,
    in_memory: bool,
}

impl Linux {
    /// What is written to files of `directory` when memory is full.
    pub(super) fn spill(directory: &Path) -> Self {
        Self {
            directory: directory.to_owned(),
            in_memory: false,
        }
    }

    fn path(&self, name: &SegmentName) -> PathBuf {
        self.directory.join(name.to_string())
    }

    fn limit(&self) -> Cow<'static, str> {
        let shown = self.directory.display();
        if self.in_memory {
            shown.to_string().into()
        } else {
            format!("the spill directory {shown}").into()
        }
    }
}

impl Storage for Linux {
    fn capabilities(&self) -> Capabilities {
        Capabilities {
            atomic_publication: true,
            reserves_space: true,
            read_only_readers: true,
            fork_proof_lock: true,
            proves_unused: true,
        }
    }

    fn available(&self) -> Option<Available> {
        let directory = Available {
            bytes: os::available_bytes(&self.directory),
            limit: self.limit(),
        };
        if !self.in_memory {
            // The kernel writes a file's pages back when it needs the memory.
            return Some(directory);
        }
        let group = cgroup::available_bytes().map(|bytes| Available {
            bytes,
            limit: "the control group's memory limit".into(),
        });
        Some(match group {
            Some(group) if group.bytes < directory.bytes => group,
            _ => directory,
        })
    }

    fn create(
        &self,
        name: &SegmentName,
        access: Access,
        length: u64,
        range: u64,
    ) -> Result<Option<Box<dyn Draft>>> {
        let forks = os::forks();
        let file = File::from(os::create_nameless(&self.directory)?);
        KillPoint::DraftCreated.pass();
        let (Ok(length), Ok(range)) = (usize::try_from(length), usize::try_from(range)) else {
            return Ok(None);
        };
        // What lies past the file's end is not touched before it has been reserved.
        let mapping = Arc::new(Mapping::writable(&file, range)?);
        KillPoint::DraftMapped.pass();
        // A reservation that fails leaves pages behind until the file is gone, which is now.
        let reserved = if self.in_memory {
            reserve(&file, &mapping, 0, length, Hurry::Yes)?
        } else {
            os::reserve(&file, 0, length as u64)?.then_some(0)
        };
        let Some(large) = reserved else {
            return Ok(None);
        };
        KillPoint::DraftReserved.pass();
        let path = self.path(name);
        let draft = Nameless::new(path, file, access, mapping, forks);
        Ok(Some(Box::new(draft.with_pages(Pages::Fresh { large }))))
    }

    fn adopt(&self, name: &SegmentName, file: OwnedFd) -> Result<Option<Mapping>> {
        check_mappings("mapping a worker's output")?;
        let path = self.path(name);
        // A description of our own: the sender has this one too.
        let file = os::reopen_read_only(&file)?;
        let length = usize::try_from(os::status(&file)?.length).unwrap_or(0);
        let mapping = Mapping::read_only(&file, length)?;
        // The length once more: until now it could be changed.
        if lease::is_unwritten(&file) && os::status(&file)?.length == length as u64 {
            KillPoint::OutputProven.pass();
            os::link(&file, &path)?;
            KillPoint::OutputLinked.pass();
            return Ok(Some(mapping));
        }
        // By system calls: who can write it can shorten it, and a mapping would end this process.
        let read = |offset, length| os::read_at(&file, offset, length);
        let Some(copy) = nameless::copy(&self.directory, length, read)? else {
            return Ok(None);
        };
        let reader = os::reopen_read_only(&copy)?;
        drop(copy);
        let mapping = Mapping::read_only(&reader, length)?;
        os::link(&reader, &path)?;
        KillPoint::OutputLinked.pass();
        Ok(Some(mapping))
    }

    fn open(&self, path: &Path) -> Result<Mapping> {
        check_mappings("mapping a segment")?;
        let file = os::open_read_only(path)?;
        let status = os::status(&file)?;
        let invalid = |reason: &str| Error::CorruptSegment {
            segment: path.display().to_string(),
            reason: reason.to_owned(),
        };
        os::check_own(path, &status)?;
        let mapping = match usize::try_from(status.length) {
            Ok(0) => return Err(invalid("it is empty")),
            Ok(length) => Mapping::read_only(&file, length)?,
            Err(_) => return Err(invalid("it is larger than the address space")),
        };
        // Between the look at the name and the opening the segment may have been freed, and its file
        // have become another's.
        if os::status_of(path).map(|now| now.inode) != Some(status.inode) {
            return Err(Error::SegmentNotFound {
                path: path.to_owned(),
            });
        }
        Ok(mapping)
    }

    fn length_of(&self, name: &SegmentName) -> Option<u64> {
        os::status_of(&self.path(name)).map(|status| status.length)
    }

    fn unlink(&self, name: &SegmentName) -> Result<bool> {
        os::unlink(&self.path(name))
    }

    fn sessions(&self) -> Result<Vec<SessionId>> {
        let mut names = os::names(&self.directory, PREFIX)?;
        names.extend(os::names(&self.directory, &format!("{HIDDEN}{PREFIX}"))?);
        let ids = names.iter().filter_map(|name| {
            let segment = SegmentName::of_file(name);
            segment
                .map(|segment| segment.session)
                .or_else(|| SessionId::of_lock(name))
        });
        Ok(ids.collect())
    }

    fn segments_of(&self, session: &SessionId) -> Result<Vec<SegmentName>> {
        let prefix = format!("{PREFIX}{session}-");
        let mut names = os::names(&self.directory, &prefix)?;
        names.extend(os::names(&self.directory, &format!("{HIDDEN}{prefix}"))?);
        let names = names.iter().filter_map(|name| SegmentName::of_file(name));
        Ok(names.collect())
    }

    fn is_unused(&self, name: &SegmentName) -> Option<bool> {
        let status = os::status_of(&self.path(name))?;
        if !status.regular || !status.own {
            return None;
        }
        lease::is_unused(&os::open_read_only(&self.path(name)).ok()?)
    }

    fn lock(&self, session: &SessionId, note: &[u8]) -> Result<Box<dyn Lock>> {
        let path = self.lock_path(session);
        // Something has to be there to be mapped.
        let note = if note.is_empty() { b"\n" } else { note };
        loop {
            let forks = os::forks();
            let file = File::from(os::create_nameless(&self.directory)?);
            if !os::reserve(&file, 0, note.len() as u64)? {
                return Err(Error::HeavyZoneFull {
                    key: "the session's lock".to_owned(),
                    requested: note.len() as u64,
                    available: os::available_bytes(&self.directory),
                    limit: self.limit(),
                });
            }
            os::write_at(&file, note, 0)?;
            KillPoint::LockCreated.pass();
            let locked = os::try_lock(&file)?;
            let mapping = Mapping::writable(&file, 1)?;
            mapping.keep_from_children()?;
            // A child forked while the descriptor was open has it too, and would keep a dead
            // session alive: try again with a file that no child has seen.
            if !locked || forks != os::forks() {
                continue;
            }
            KillPoint::LockLocked.pass();
            os::link(&file, &path)?;
            KillPoint::LockLinked.pass();
            let inode = os::status(&file)?.inode;
            drop(file);
            if forks == os::forks() {
                return Ok(Box::new(MappedLock {
                    path,
                    inode,
                    _mapping: mapping,
                }));
            }
            os::unlink(&path)?;
        }
    }

    fn lock_path(&self, session: &SessionId) -> PathBuf {
        self.directory.join(session.lock_name())
    }
}

/// The mapping holds the lock's open description, with no descriptor that a forked child could
/// inherit; nobody ever unlocks, in a child it would unlock the owner's.
#[derive(Debug)]
struct MappedLock {
    path: PathBuf,
    inode: (u64, u64),
    _mapping: Mapping,
}

impl Lock for MappedLock {
    fn is_in_place(&self) -> bool {
        os::status_of(&self.path).map(|status| status.inode) == Some(self.inode)
    }
}
