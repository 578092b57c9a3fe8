//! Files for what does not fit in memory.
//!
//! A session that may spill says so in its lock file, which holds the directory's path: workers,
//! strangers and sweepers learn it from there. A lock file of the directory's own is for those who
//! come after the one in memory is gone.

use std::ffi::OsStr;
use std::fs::File;
use std::io::Read;
use std::os::fd::AsFd;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::linux::Linux;
use super::{Backend, Lock, Storage};
use crate::descriptor::SessionId;
use crate::directory;
use crate::error::{Error, Result};
use crate::os;

/// The longest path that the kernel takes.
const MAX_PATH_BYTES: u64 = 4096;

/// A directory for segments that do not fit in memory.
#[derive(Debug, Clone)]
pub struct SpillDirectory {
    path: PathBuf,
    storage: Arc<Linux>,
}

impl SpillDirectory {
    /// The directory at `path`, which may be gone since.
    pub(crate) fn at(path: &Path) -> Self {
        Self {
            path: path.to_owned(),
            storage: Arc::new(Linux::spill(path)),
        }
    }

    /// The directory at `path`, after making sure that it can keep segments.
    ///
    /// # Errors
    /// [`Error::SpillDirectory`] naming what it lacks.
    pub(crate) fn prepare(path: &Path, backend: Backend) -> Result<Self> {
        let unfit = |reason: String| Error::SpillDirectory {
            path: path.to_owned(),
            reason,
        };
        if backend != Backend::Linux {
            return Err(unfit(format!("the {backend} backend cannot spill")));
        }
        // Others find it by its whole path, from their own working directories.
        let whole = path.canonicalize();
        let whole = whole.map_err(|error| unfit(error.to_string()))?;
        let device = |path: &Path| os::status_of(path).map(|status| status.inode.0);
        if device(&whole) == device(Path::new(os::DIRECTORY)) {
            let reason = format!("it is the same memory as {}", os::DIRECTORY);
            return Err(unfit(reason));
        }
        let report = directory::probe(&whole)?;
        if !report.missing().is_empty() {
            let missing: Vec<String> = report.missing().iter().map(ToString::to_string).collect();
            return Err(unfit(missing.join("; ")));
        }
        Ok(Self::at(&whole))
    }

    /// Makes the lock by which a sweep of this directory alone, after a restart say, knows that the
    /// session lives. It says in which run of the machine it was made.
    pub(crate) fn lock(&self, session: &SessionId) -> Result<Box<dyn Lock>> {
        let boot = std::fs::read("/proc/sys/kernel/random/boot_id").unwrap_or_default();
        self.storage().lock(session, &boot)
    }

    /// Where session `id` spills: its lock file says so, to workers, strangers and sweepers alike.
    pub(crate) fn of(session: &SessionId) -> Option<Self> {
        let file = os::open_read_only(&Backend::Linux.storage().lock_path(session)).ok()?;
        let status = os::status(&file).ok()?;
        if !status.regular || !status.own || status.length > MAX_PATH_BYTES {
            return None;
        }
        let mut note = Vec::new();
        File::from(file).read_to_end(&mut note).ok()?;
        let path = Path::new(OsStr::from_bytes(&note));
        path.is_absolute().then(|| Self::at(path))
    }

    /// Where it lies.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Whether the file lies in its file system.
    pub(crate) fn holds(&self, file: &impl AsFd) -> bool {
        let device = |status: os::Status| status.inode.0;
        let here = os::status_of(&self.path).map(device);
        here.is_some() && os::status(file).ok().map(device) == here
    }

    pub(crate) fn storage(&self) -> &dyn Storage {
        &*self.storage
    }
}
