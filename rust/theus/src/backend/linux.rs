//! Nameless files that are reserved, filled and then linked; leases; a lock that no child inherits.

use std::fs::File;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::{Access, Available, Capabilities, Draft, Lock, Published, Storage};
use crate::cgroup;
use crate::descriptor::{PREFIX, SegmentName, SessionId};
use crate::error::{Error, Result};
use crate::limits::check_mappings;
use crate::mapping::Mapping;
use crate::os;

const COPY_BYTES: usize = 4 << 20;

#[derive(Debug)]
pub(super) struct Linux;

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
            bytes: os::available_bytes(),
            limit: os::DIRECTORY,
        };
        let group = cgroup::available_bytes().map(|bytes| Available {
            bytes,
            limit: "the control group's memory limit",
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
        let file = os::create_nameless()?;
        // A reservation that fails leaves pages behind until the file is gone, which is now.
        if !os::reserve(&file, 0, length)? {
            return Ok(None);
        }
        let Ok(range) = usize::try_from(range) else {
            return Ok(None);
        };
        // What lies past the file's end is not touched before it has been reserved.
        let mapping = Arc::new(Mapping::writable(&file, range)?);
        Ok(Some(Box::new(Nameless {
            name: name.to_string(),
            file: File::from(file),
            access,
            mapping,
            forks,
        })))
    }

    fn adopt(&self, name: &SegmentName, file: OwnedFd) -> Result<Option<Mapping>> {
        check_mappings("mapping a worker's output")?;
        let name = name.to_string();
        // A description of our own: the sender has this one too.
        let file = os::reopen_read_only(&file)?;
        let length = usize::try_from(os::status(&file)?.length).unwrap_or(0);
        let mapping = Mapping::read_only(&file, length)?;
        if os::is_unwritten(&file) {
            os::link(&file, &name)?;
            return Ok(Some(mapping));
        }
        let Some(copy) = copy(&mapping)? else {
            return Ok(None);
        };
        let reader = os::reopen_read_only(&copy)?;
        drop(copy);
        let mapping = Mapping::read_only(&reader, length)?;
        os::link(&reader, &name)?;
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
        os::status_of(&name.path()).map(|status| status.length)
    }

    fn unlink(&self, name: &SegmentName) -> Result<bool> {
        os::unlink(&name.path())
    }

    fn sessions(&self) -> Result<Vec<SessionId>> {
        let names = os::names(Path::new(os::DIRECTORY), PREFIX)?;
        let ids = names.iter().filter_map(|name| {
            let segment = name.parse::<SegmentName>().ok();
            segment
                .map(|segment| segment.session)
                .or_else(|| SessionId::of_lock(name))
        });
        Ok(ids.collect())
    }

    fn segments_of(&self, session: &SessionId) -> Result<Vec<SegmentName>> {
        let names = os::names(Path::new(os::DIRECTORY), &format!("{PREFIX}{session}-"))?;
        Ok(names.iter().filter_map(|name| name.parse().ok()).collect())
    }

    fn is_unused(&self, name: &SegmentName) -> Option<bool> {
        let status = os::status_of(&name.path())?;
        if !status.regular || !status.own {
            return None;
        }
        os::is_unused(&os::open_read_only(&name.path()).ok()?)
    }

    fn lock(&self, session: &SessionId) -> Result<Box<dyn Lock>> {
        let name = session.lock_name();
        loop {
            let forks = os::forks();
            let file = os::create_nameless()?;
            if !os::reserve(&file, 0, 1)? {
                return Err(Error::HeavyZoneFull {
                    key: "the session's lock".to_owned(),
                    requested: 1,
                    available: os::available_bytes(),
                    limit: os::DIRECTORY,
                });
            }
            let locked = os::try_lock(&file)?;
            let mapping = Mapping::writable(&file, 1)?;
            mapping.keep_from_children()?;
            // A child forked while the descriptor was open has it too, and would keep a dead
            // session alive: try again with a file that no child has seen.
            if !locked || forks != os::forks() {
                continue;
            }
            os::link(&file, &name)?;
            let inode = os::status(&file)?.inode;
            drop(file);
            if forks == os::forks() {
                return Ok(Box::new(MappedLock {
                    name,
                    inode,
                    _mapping: mapping,
                }));
            }
            os::unlink(&os::path_of(&name))?;
        }
    }

    fn lock_path(&self, session: &SessionId) -> PathBuf {
        os::path_of(&session.lock_name())
    }
}

fn copy(source: &Mapping) -> Result<Option<File>> {
    let file = os::create_nameless()?;
    if !os::reserve(&file, 0, source.len() as u64)? {
        return Ok(None);
    }
    let copy = File::from(file);
    for offset in (0..source.len()).step_by(COPY_BYTES) {
        let length = COPY_BYTES.min(source.len() - offset);
        os::write_at(&copy, &source.read(offset, length), offset as u64)?;
    }
    Ok(Some(copy))
}

/// A file without a name; the kernel frees it with its last reference.
#[derive(Debug)]
struct Nameless {
    name: String,
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
        let Some(copy) = copy(&self.mapping)? else {
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
        os::write_at(&self.file, data, offset as u64)
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
        Ok(true)
    }

    fn hand_over(&self) -> Result<Option<OwnedFd>> {
        Ok(self.close()?.map(|closed| closed.file))
    }

    fn publish(&self) -> Result<Option<Published>> {
        if self.access == Access::Shared {
            os::link(&self.file, &self.name)?;
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
        os::link(&file, &self.name)?;
        Ok(Some(Published { mapping, copied }))
    }
}

/// The mapping holds the lock's open description, with no descriptor that a forked child could
/// inherit; nobody ever unlocks, in a child it would unlock the owner's.
#[derive(Debug)]
struct MappedLock {
    name: String,
    inode: (u64, u64),
    _mapping: Mapping,
}

impl Lock for MappedLock {
    fn is_in_place(&self) -> bool {
        os::status_of(&os::path_of(&self.name)).map(|status| status.inode) == Some(self.inode)
    }
}
