//! Where named memory comes from: one interface, two ways to keep its promises.
//!
//! What every backend does is checked by one suite, `tests/backends.rs`; what only some can do is a
//! [capability](Capabilities), and the suite counts what it has to skip without it.

mod linux;
mod nameless;
mod portable;
mod reserve;
mod spare;
mod spill;

use std::borrow::Cow;
use std::fmt;
use std::ops::Range;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use crate::descriptor::{SegmentName, SessionId};
use crate::error::{Error, Result};
use crate::mapping::Mapping;

pub(crate) use spare::{Spare, Use, Warm};
pub use spill::SpillDirectory;

/// A way to make named shared memory.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash)]
pub enum Backend {
    /// Nameless files in `/dev/shm`, linked when they are whole.
    #[default]
    Linux,
    /// POSIX or Windows shared memory by the `shared_memory` crate, with a lock file in the
    /// directory for temporary files.
    Portable,
}

/// What a backend promises beyond names and bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[expect(
    clippy::struct_excessive_bools,
    reason = "each is a promise of its own"
)]
pub struct Capabilities {
    /// A segment's name appears with all its bytes at once. Without it, for a moment, the name is
    /// there and the bytes are refused as no segment.
    pub atomic_publication: bool,
    /// Full memory is an error when a segment is made. Without it, writing may end the process.
    pub reserves_space: bool,
    /// The hardware keeps readers from writing. Without it, only the types do.
    pub read_only_readers: bool,
    /// A forked child does not keep a dead session alive.
    pub fork_proof_lock: bool,
    /// The kernel tells whether anybody has a segment open or mapped.
    pub proves_unused: bool,
}

impl Backend {
    /// Every backend. One that keeps a session's lock elsewhere comes before `Linux`, which on this
    /// system sees the same names.
    pub const ALL: [Self; 2] = [Self::Portable, Self::Linux];

    /// What it promises.
    #[must_use]
    pub fn capabilities(self) -> Capabilities {
        self.storage().capabilities()
    }

    pub(crate) fn storage(self) -> &'static dyn Storage {
        match self {
            Self::Linux => &*linux::MEMORY,
            Self::Portable => &portable::Portable,
        }
    }
}

impl fmt::Display for Backend {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(match self {
            Self::Linux => "linux",
            Self::Portable => "portable",
        })
    }
}

impl std::str::FromStr for Backend {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        let known = Self::ALL
            .into_iter()
            .find(|backend| backend.to_string() == text);
        known.ok_or_else(|| Error::InvalidName {
            name: text.to_owned(),
            expected: "backend (linux or portable)",
        })
    }
}

/// The memory that is left, and what limits it.
#[derive(Debug, Clone)]
pub(crate) struct Available {
    pub(crate) bytes: u64,
    pub(crate) limit: Cow<'static, str>,
}

/// What publication does to the way the maker writes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Access {
    /// It ends: what is written later to the draft's mapping stays in this process.
    Sealed,
    /// It stays: the owner writes while others look on.
    Shared,
}

/// Where one segment lies.
#[derive(Debug, Clone)]
pub(crate) enum Place {
    Memory(Backend),
    Disk(SpillDirectory),
}

impl Place {
    pub(crate) fn storage(&self) -> &dyn Storage {
        match self {
            Self::Memory(backend) => backend.storage(),
            Self::Disk(directory) => directory.storage(),
        }
    }

    pub(crate) fn path_of(&self, name: &SegmentName) -> PathBuf {
        match self {
            Self::Memory(_) => name.path(),
            Self::Disk(directory) => directory.path().join(name.to_string()),
        }
    }
}

/// What a backend does.
pub(crate) trait Storage: fmt::Debug + Send + Sync {
    fn capabilities(&self) -> Capabilities;

    /// What is left for new segments; `None` if the system does not say.
    fn available(&self) -> Option<Available>;

    /// Makes a segment of `length` zero bytes that can [grow](Draft::grow) to `range`. `Ok(None)`:
    /// no space.
    fn create(
        &self,
        name: &SegmentName,
        access: Access,
        length: u64,
        range: u64,
    ) -> Result<Option<Box<dyn Draft>>>;

    /// Names a segment that another process wrote, after making sure that nobody can write it any
    /// more, by a copy if need be. `Ok(None)`: no space for that.
    fn adopt(&self, name: &SegmentName, file: OwnedFd) -> Result<Option<Mapping>>;

    /// Maps what lies at `path` to be read; its content is not looked at.
    fn open(&self, path: &Path) -> Result<Mapping>;

    /// The error of a reservation that did not fit.
    fn full(&self, key: &str, requested: u64) -> Error {
        let available = self.available();
        Error::HeavyZoneFull {
            key: key.to_owned(),
            requested,
            available: available.as_ref().map_or(0, |available| available.bytes),
            limit: available.map_or("the machine".into(), |available| available.limit),
        }
    }

    /// The length of the segment; `None` if there is none of this name.
    fn length_of(&self, name: &SegmentName) -> Option<u64>;

    /// Removes the name; false if it was gone already.
    fn unlink(&self, name: &SegmentName) -> Result<bool>;

    /// The sessions that have names, each once or more.
    fn sessions(&self) -> Result<Vec<SessionId>>;

    /// The names that the session's segments have or may have had.
    fn segments_of(&self, session: &SessionId) -> Result<Vec<SegmentName>>;

    /// Whether nobody has the segment open or mapped; `None` if the system cannot tell.
    fn is_unused(&self, name: &SegmentName) -> Option<bool>;

    /// Makes the lock that says that the session's owner lives; `note` is what its file says.
    fn lock(&self, session: &SessionId, note: &[u8]) -> Result<Box<dyn Lock>>;

    /// Removes what somebody left who was killed while he made a lock; the names.
    fn remove_abandoned(&self) -> Result<Vec<String>> {
        Ok(Vec::new())
    }

    /// Where that lock's file lies.
    fn lock_path(&self, session: &SessionId) -> PathBuf;
}

/// A segment that its maker writes.
pub(crate) trait Draft: fmt::Debug + Send + Sync {
    /// The bytes, writable.
    fn mapping(&self) -> &Arc<Mapping>;

    /// Copies `data` to `offset`; several threads may do so side by side.
    fn write(&self, offset: usize, data: &[u8]) -> Result<()>;

    /// Makes all of `range` zero, which it is unless the pages were a freed segment's; as
    /// [`write`](Self::write).
    fn zero(&self, _range: Range<usize>) -> Result<()> {
        Ok(())
    }

    /// Makes the first `length` bytes of the range usable; false: no space.
    fn grow(&self, length: u64) -> Result<bool>;

    /// Gives the segment another length, and its mapping another address; false: no space. Only for
    /// drafts that nobody looks at yet.
    fn resize(&mut self, length: u64) -> Result<bool>;

    /// Ends all writing that reaches others, without a name; a descriptor by which its next owner
    /// can name it. `Ok(None)`: a copy was necessary and there is no space.
    fn hand_over(&self) -> Result<Option<OwnedFd>>;

    /// Gives the segment its name, once. `Ok(None)`: a copy was necessary and there is no space.
    fn publish(&self) -> Result<Option<Published>>;
}

/// A draft that has its name.
#[derive(Debug)]
pub(crate) struct Published {
    /// The published bytes, read-only if they are sealed.
    pub(crate) mapping: Arc<Mapping>,
    /// Whether they were copied, because this process had forked since the draft was made.
    pub(crate) copied: bool,
    /// What lets the pages be written again once the segment has been freed.
    pub(crate) warm: Option<Warm>,
}

/// A held lock; it is let go when the process ends, or this is dropped.
pub(crate) trait Lock: fmt::Debug + Send + Sync {
    /// Whether the lock's name is still there for others to ask.
    fn is_in_place(&self) -> bool;
}
