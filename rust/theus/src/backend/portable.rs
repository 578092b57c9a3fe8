//! Shared memory by the `shared_memory` crate: a name from the start, mapped writable by everybody,
//! nothing reserved, and a descriptor for each segment.
//!
//! What that lacks is made up for where it can be. A draft is private memory, copied under its name
//! when it is sealed, so that a late write reaches nobody; the first eight bytes, without which it
//! is no segment, come last. A session's lock is a file in the directory for temporary files; it
//! says how many segments were made, as not every system can list them.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use rustix::io::Errno;
use shared_memory::{Shmem, ShmemConf, ShmemError};

use super::{Access, Available, Backend, Capabilities, Draft, Lock, Published, Storage};
use crate::descriptor::{PREFIX, SegmentName, SessionId};
use crate::error::{Error, Result};
use crate::kill_point::KillPoint;
use crate::mapping::Mapping;
use crate::os::{self, failed};

/// What a lock file is called until it is locked.
const UNNAMED: &str = "new";

#[derive(Debug)]
pub(super) struct Portable;

impl Storage for Portable {
    fn capabilities(&self) -> Capabilities {
        Capabilities {
            atomic_publication: false,
            reserves_space: false,
            read_only_readers: false,
            fork_proof_lock: false,
            proves_unused: false,
        }
    }

    fn available(&self) -> Option<Available> {
        None
    }

    fn create(
        &self,
        name: &SegmentName,
        access: Access,
        length: u64,
        range: u64,
    ) -> Result<Option<Box<dyn Draft>>> {
        debug_assert!(length <= range);
        let Ok(range) = usize::try_from(range) else {
            return Ok(None);
        };
        count(name)?;
        let mapping = Arc::new(match access {
            Access::Sealed => Mapping::anonymous(range)?,
            Access::Shared => Mapping::shared(create(name, range)?, true),
        });
        Ok(Some(Box::new(Copied {
            name: name.clone(),
            access,
            mapping,
        })))
    }

    /// The file has no name that this backend could give it, so its bytes are copied.
    fn adopt(&self, name: &SegmentName, file: OwnedFd) -> Result<Option<Mapping>> {
        let length = os::status(&file)?.length;
        let source = Mapping::read_only(&file, usize::try_from(length).unwrap_or(0))?;
        count(name)?;
        let named = Mapping::shared(create(name, source.len())?, true);
        named.copy_whole(&source);
        named.close();
        KillPoint::OutputLinked.pass();
        Ok(Some(named))
    }

    fn open(&self, path: &Path) -> Result<Mapping> {
        let name = path.file_name().and_then(|name| name.to_str());
        let name = name.and_then(|name| name.parse::<SegmentName>().ok());
        let missing = || Error::SegmentNotFound {
            path: path.to_owned(),
        };
        let name = name.ok_or_else(missing)?;
        if let Some(status) = os::status_of(&name.path()) {
            os::check_own(path, &status)?;
        }
        let memory = open(&name)?;
        Ok(Mapping::shared(memory.ok_or_else(missing)?, false))
    }

    fn length_of(&self, name: &SegmentName) -> Option<u64> {
        Some(open(name).ok()??.len() as u64)
    }

    fn unlink(&self, name: &SegmentName) -> Result<bool> {
        // The crate unlinks what it could map, which leaves out one whose maker died before it had
        // given it a length.
        match rustix::shm::unlink(os_id(name)) {
            Ok(()) => Ok(true),
            Err(Errno::NOENT) => Ok(false),
            Err(errno) => Err(failed("unlinking shared memory", errno)),
        }
    }

    fn sessions(&self) -> Result<Vec<SessionId>> {
        // Without such a directory there is no session of this backend either.
        let names = os::names(&std::env::temp_dir(), PREFIX).unwrap_or_default();
        let ids = names.iter().filter_map(|name| SessionId::of_lock(name));
        // Everybody may put files there: a stranger's says nothing about our sessions.
        let own = |id: &SessionId| {
            os::status_of(&self.lock_path(id)).is_some_and(|status| status.regular && status.own)
        };
        Ok(ids.filter(own).collect())
    }

    fn segments_of(&self, session: &SessionId) -> Result<Vec<SegmentName>> {
        // Where names can be listed, what the lock says need not be believed.
        let prefix = format!("{PREFIX}{session}-");
        if let Ok(names) = os::names(Path::new(os::DIRECTORY), &prefix) {
            return Ok(names.iter().filter_map(|name| name.parse().ok()).collect());
        }
        let made = os::status_of(&self.lock_path(session)).map_or(0, |status| status.length);
        Ok((0..made).map(|number| session.segment(number)).collect())
    }

    fn is_unused(&self, _name: &SegmentName) -> Option<bool> {
        None
    }

    fn lock(&self, session: &SessionId, _note: &[u8]) -> Result<Box<dyn Lock>> {
        let path = self.lock_path(session);
        let draft = path.with_extension(UNNAMED);
        loop {
            let file = OpenOptions::new()
                .write(true)
                .create_new(true)
                .mode(0o600)
                .open(&draft)
                .map_err(|error| failed("creating a session's lock", error))?;
            KillPoint::LockCreated.pass();
            // Locked before it has the name that others look for. A sweep may be quicker, and take
            // it for one whose maker has died.
            if !os::try_lock(&file)? {
                let _ = std::fs::remove_file(&draft);
                continue;
            }
            KillPoint::LockLocked.pass();
            match std::fs::rename(&draft, &path) {
                Ok(()) => {
                    KillPoint::LockLinked.pass();
                    return Ok(Box::new(HeldFile { path, file }));
                }
                Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                Err(error) => {
                    let _ = std::fs::remove_file(&draft);
                    return Err(failed("naming a session's lock", error));
                }
            }
        }
    }

    fn remove_abandoned(&self) -> Result<Vec<String>> {
        let directory = std::env::temp_dir();
        let mut removed = Vec::new();
        for name in os::names(&directory, PREFIX)? {
            let id = name
                .strip_prefix(PREFIX)
                .and_then(|name| name.split_once('.'));
            let Some((_, UNNAMED)) = id.filter(|(id, _)| id.parse::<SessionId>().is_ok()) else {
                continue;
            };
            let path = directory.join(&name);
            let own = os::status_of(&path).is_some_and(|status| status.regular && status.own);
            let Some(file) = own.then(|| os::open_read_only(&path).ok()).flatten() else {
                continue;
            };
            if os::try_lock(&file)? && os::unlink(&path)? {
                removed.push(name);
            }
        }
        Ok(removed)
    }

    fn lock_path(&self, session: &SessionId) -> PathBuf {
        std::env::temp_dir().join(session.lock_name())
    }
}

/// Notes in the session's lock file that the segment may exist: the file's length is one more than
/// the largest number. Writing a byte at the number's place needs no order between threads.
fn count(name: &SegmentName) -> Result<()> {
    OpenOptions::new()
        .write(true)
        .open(Portable.lock_path(&name.session))
        .and_then(|lock| lock.write_all_at(&[1], name.number))
        .map_err(|error| failed("noting a segment in its session's lock", error))
}

fn os_id(name: &SegmentName) -> String {
    format!("/{name}")
}

/// Makes the shared memory; its name stays when it is dropped, as other processes have it.
fn create(name: &SegmentName, length: usize) -> Result<Shmem> {
    let created = ShmemConf::new().os_id(os_id(name)).size(length).create();
    let mut memory = created.map_err(|error| failed("creating shared memory", source(error)))?;
    memory.set_owner(false);
    KillPoint::SegmentNamed.pass();
    Ok(memory)
}

/// Maps the shared memory of this name; `None` if there is none, or it has no length yet.
fn open(name: &SegmentName) -> Result<Option<Shmem>> {
    use io::ErrorKind::{InvalidInput, NotFound};
    match ShmemConf::new().os_id(os_id(name)).open().map_err(source) {
        Ok(memory) => Ok(Some(memory)),
        Err(error) if matches!(error.kind(), NotFound | InvalidInput) => Ok(None),
        Err(error) => Err(failed("opening shared memory", error)),
    }
}

fn source(error: ShmemError) -> io::Error {
    match error {
        ShmemError::MapOpenFailed(code)
        | ShmemError::MapCreateFailed(code)
        | ShmemError::UnknownOsError(code) => {
            io::Error::from_raw_os_error(code.try_into().unwrap_or(0))
        }
        other => io::Error::other(other),
    }
}

/// A draft in private memory, to be copied; or one in its place, if it is shared while it is written.
#[derive(Debug)]
struct Copied {
    name: SegmentName,
    access: Access,
    mapping: Arc<Mapping>,
}

impl Draft for Copied {
    fn mapping(&self) -> &Arc<Mapping> {
        &self.mapping
    }

    fn write(&self, offset: usize, data: &[u8]) -> Result<()> {
        self.mapping.write(offset, data);
        KillPoint::DraftWritten.pass();
        Ok(())
    }

    fn grow(&self, length: u64) -> Result<bool> {
        Ok(length <= self.mapping.len() as u64)
    }

    fn resize(&mut self, length: u64) -> Result<bool> {
        let Ok(length) = usize::try_from(length) else {
            return Ok(false);
        };
        let other = Mapping::anonymous(length)?;
        let kept = length.min(self.mapping.len());
        other.write(0, &self.mapping.read(0, kept));
        self.mapping = Arc::new(other);
        KillPoint::DraftResized.pass();
        Ok(true)
    }

    fn hand_over(&self) -> Result<Option<OwnedFd>> {
        Err(Error::Unsupported {
            operation: "handing a segment over",
            backend: Backend::Portable,
        })
    }

    fn publish(&self) -> Result<Option<Published>> {
        let mapping = match self.access {
            Access::Shared => {
                KillPoint::SegmentLinked.pass();
                Arc::clone(&self.mapping)
            }
            Access::Sealed => {
                let named = Mapping::shared(create(&self.name, self.mapping.len())?, true);
                named.copy_whole(&self.mapping);
                named.close();
                KillPoint::SegmentLinked.pass();
                self.mapping.close();
                Arc::new(named)
            }
        };
        let copied = false;
        let warm = None;
        Ok(Some(Published {
            mapping,
            copied,
            warm,
        }))
    }
}

/// The descriptor is the lock; a forked child has it too.
#[derive(Debug)]
struct HeldFile {
    path: PathBuf,
    file: File,
}

impl Lock for HeldFile {
    fn is_in_place(&self) -> bool {
        let own = os::status(&self.file).map(|status| status.inode).ok();
        own.is_some() && os::status_of(&self.path).map(|status| status.inode) == own
    }
}
