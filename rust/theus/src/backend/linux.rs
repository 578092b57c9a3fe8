//! Nameless files that are reserved, filled and then linked; leases; a lock that no child inherits.

use std::borrow::Cow;
use std::fs::File;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::sync::{Arc, LazyLock};

use super::{Access, Available, Capabilities, Draft, Lock, Published, Storage};
use crate::cgroup;
use crate::descriptor::{PREFIX, SegmentName, SessionId};
use crate::error::{Error, Result};
use crate::kill_point::KillPoint;
use crate::limits::check_mappings;
use crate::mapping::Mapping;
use crate::os;

const COPY_BYTES: usize = 4 << 20;

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
        let file = os::create_nameless(&self.directory)?;
        KillPoint::DraftCreated.pass();
        // A reservation that fails leaves pages behind until the file is gone, which is now.
        if !os::reserve(&file, 0, length)? {
            return Ok(None);
        }
        KillPoint::DraftReserved.pass();
        let Ok(range) = usize::try_from(range) else {
            return Ok(None);
        };
        // What lies past the file's end is not touched before it has been reserved.
        let mapping = Arc::new(Mapping::writable(&file, range)?);
        KillPoint::DraftMapped.pass();
        Ok(Some(Box::new(Nameless {
            path: self.path(name),
            file: File::from(file),
            access,
            mapping,
            forks,
        })))
    }

    fn adopt(&self, name: &SegmentName, file: OwnedFd) -> Result<Option<Mapping>> {
        check_mappings("mapping a worker's output")?;
        let path = self.path(name);
        // A description of our own: the sender has this one too.
        let file = os::reopen_read_only(&file)?;
        let length = usize::try_from(os::status(&file)?.length).unwrap_or(0);
        let mapping = Mapping::read_only(&file, length)?;
        // The length once more: until now it could be changed.
        if os::is_unwritten(&file) && os::status(&file)?.length == length as u64 {
            KillPoint::OutputProven.pass();
            os::link(&file, &path)?;
            KillPoint::OutputLinked.pass();
            return Ok(Some(mapping));
        }
        // By system calls: who can write it can shorten it, and a mapping would end this process.
        let read = |offset, length| os::read_at(&file, offset, length);
        let Some(copy) = copy(&self.directory, length, read)? else {
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
        match usize::try_from(status.length) {
            Ok(0) => Err(invalid("it is empty")),
            Ok(length) => Mapping::read_only(&file, length),
            Err(_) => Err(invalid("it is larger than the address space")),
        }
    }

    fn length_of(&self, name: &SegmentName) -> Option<u64> {
        os::status_of(&self.path(name)).map(|status| status.length)
    }

    fn unlink(&self, name: &SegmentName) -> Result<bool> {
        os::unlink(&self.path(name))
    }

    fn sessions(&self) -> Result<Vec<SessionId>> {
        let names = os::names(&self.directory, PREFIX)?;
        let ids = names.iter().filter_map(|name| {
            let segment = name.parse::<SegmentName>().ok();
            segment
                .map(|segment| segment.session)
                .or_else(|| SessionId::of_lock(name))
        });
        Ok(ids.collect())
    }

    fn segments_of(&self, session: &SessionId) -> Result<Vec<SegmentName>> {
        let names = os::names(&self.directory, &format!("{PREFIX}{session}-"))?;
        Ok(names.iter().filter_map(|name| name.parse().ok()).collect())
    }

    fn is_unused(&self, name: &SegmentName) -> Option<bool> {
        let status = os::status_of(&self.path(name))?;
        if !status.regular || !status.own {
            return None;
        }
        os::is_unused(&os::open_read_only(&self.path(name)).ok()?)
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

fn copy(
    directory: &Path,
    length: usize,
    read: impl Fn(usize, usize) -> Result<Vec<u8>>,
) -> Result<Option<File>> {
    let file = os::create_nameless(directory)?;
    if !os::reserve(&file, 0, length as u64)? {
        return Ok(None);
    }
    let copy = File::from(file);
    for offset in (0..length).step_by(COPY_BYTES) {
        let piece = read(offset, COPY_BYTES.min(length - offset))?;
        os::write_at(&copy, &piece, offset as u64)?;
    }
    Ok(Some(copy))
}

/// A file without a name; the kernel frees it with its last reference.
#[derive(Debug)]
struct Nameless {
    path: PathBuf,
    file: File,
    access: Access,
    mapping: Arc<Mapping>,
    forks: u64,
}

impl Nameless {
    /// Ends all writing to the file, or to a copy of it.
    fn close(&self) -> Result<Option<Closed>> {
        let (file, mapping) = self.close_to_writes(&self.file)?;
        if self.forks == os::forks() {
            let copied = false;
            return Ok(Some(Closed {
                file,
                mapping,
                copied,
            }));
        }
        // A child that was forked since has the old pages mapped and could still write them.
        let directory = self.path.parent().unwrap_or(Path::new(os::DIRECTORY));
        let read = |offset, length| Ok(self.mapping.read(offset, length));
        let Some(copy) = copy(directory, self.mapping.len(), read)? else {
            return Ok(None);
        };
        let (file, mapping) = self.close_to_writes(&copy)?;
        let copied = true;
        Ok(Some(Closed {
            file,
            mapping,
            copied,
        }))
    }

    /// Keeps what is written from now on to the draft's mapping out of `file`, which it then shows;
    /// a description and a mapping that cannot write.
    fn close_to_writes(&self, file: &File) -> Result<(OwnedFd, Arc<Mapping>)> {
        let reader = os::reopen_read_only(file)?;
        self.mapping.make_private(&reader)?;
        let mapping = Mapping::read_only(&reader, self.mapping.len())?;
        Ok((reader, Arc::new(mapping)))
    }
}

/// What a draft is when nobody can write it any more.
struct Closed {
    file: OwnedFd,
    mapping: Arc<Mapping>,
    copied: bool,
}

impl Draft for Nameless {
    fn mapping(&self) -> &Arc<Mapping> {
        &self.mapping
    }

    /// Writing into fresh pages does not zero them first, as faulting them in does.
    fn write(&self, offset: usize, data: &[u8]) -> Result<()> {
        os::write_at(&self.file, data, offset as u64)?;
        KillPoint::DraftWritten.pass();
        Ok(())
    }

    fn grow(&self, length: u64) -> Result<bool> {
        os::reserve(&self.file, 0, length)
    }

    fn resize(&mut self, length: u64) -> Result<bool> {
        if !os::reserve(&self.file, 0, length)? {
            return Ok(false);
        }
        os::truncate(&self.file, length)?;
        let length = usize::try_from(length).unwrap_or(usize::MAX);
        self.mapping = Arc::new(Mapping::writable(&self.file, length)?);
        KillPoint::DraftResized.pass();
        Ok(true)
    }

    fn hand_over(&self) -> Result<Option<OwnedFd>> {
        Ok(self.close()?.map(|closed| closed.file))
    }

    fn publish(&self) -> Result<Option<Published>> {
        if self.access == Access::Shared {
            os::link(&self.file, &self.path)?;
            KillPoint::SegmentLinked.pass();
            return Ok(Some(Published {
                mapping: Arc::clone(&self.mapping),
                copied: false,
            }));
        }
        let Some(Closed {
            file,
            mapping,
            copied,
        }) = self.close()?
        else {
            return Ok(None);
        };
        KillPoint::DraftSealed.pass();
        os::link(&file, &self.path)?;
        KillPoint::SegmentLinked.pass();
        Ok(Some(Published { mapping, copied }))
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
