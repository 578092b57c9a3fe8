//! Pages that nobody uses, for the next segment: a freed one's, or fresh ones made beforehand.
//!
//! The pages of a freed segment are written again only under a lease, by which the kernel proves
//! that nobody else has the file open or mapped: see [`lease`]. From the moment the segment is freed
//! its file has a hidden name, so that nobody comes new; the lease is kept until the next content is
//! whole, and looked at then. Who has come all the same keeps his bytes, or finds no segment.

use std::fs::File;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use super::nameless::{Nameless, Pages, spoil};
use super::reserve::{Hurry, enlarge, reserve};
use super::{Access, Draft};
use crate::descriptor::SegmentName;
use crate::error::{Error, Result};
use crate::kill_point::KillPoint;
use crate::lease;
use crate::limits;
use crate::mapping::Mapping;
use crate::os;

/// How much is made at a time, so that whoever wants it to end does not wait long.
const STEP_BYTES: usize = 16 << 20;

/// How much is put in place at a time, while nobody else can have the pool.
const SETTLED_BYTES: usize = 8 << 20;

/// How many published segments keep what makes them warm: a descriptor each.
const MOST_WARM: usize = 64;

static WARM: AtomicUsize = AtomicUsize::new(0);

/// The one description of a published segment's file that can write, and the mapping of its draft,
/// whose pages are in place up to `in_place`. Nobody else has either.
#[derive(Debug)]
pub(crate) struct Warm {
    file: File,
    mapping: Arc<Mapping>,
    in_place: usize,
    _counted: CountedWarm,
}

#[derive(Debug)]
struct CountedWarm;

impl CountedWarm {
    fn new() -> Option<Self> {
        let most = MOST_WARM.min(limits::descriptors() / 8);
        let more = |warm| (warm < most).then_some(warm + 1);
        WARM.fetch_update(Ordering::SeqCst, Ordering::SeqCst, more)
            .is_ok()
            .then_some(Self)
    }
}

impl Drop for CountedWarm {
    fn drop(&mut self) {
        WARM.fetch_sub(1, Ordering::SeqCst);
    }
}

impl Warm {
    /// Keeps both, out of forked children; `None` if it is not worth while, or there are too many.
    pub(super) fn keep(file: &File, mapping: &Arc<Mapping>, in_place: usize) -> Option<Self> {
        if (mapping.len() as u64) < Spare::LEAST_BYTES {
            return None;
        }
        let counted = CountedWarm::new()?;
        mapping.keep_from_children().ok()?;
        Some(Self {
            file: file.try_clone().ok()?,
            mapping: Arc::clone(mapping),
            in_place,
            _counted: counted,
        })
    }
}

/// The name of a file that was a segment's. It is removed with this, unless it has become another's.
#[derive(Debug)]
pub(super) struct Hidden {
    path: PathBuf,
    gone: AtomicBool,
    generation: u64,
}

impl Hidden {
    /// Takes the name of a segment away from everybody; `None` if it has none.
    fn take(path: &Path, hidden: PathBuf) -> Result<Option<Self>> {
        if !os::rename(path, &hidden)? {
            return Ok(None);
        }
        KillPoint::SpareHidden.pass();
        Ok(Some(Self {
            path: hidden,
            gone: AtomicBool::new(false),
            generation: os::fork_generation(),
        }))
    }

    /// Gives the file, whose next content is whole, the name of the segment that it has become.
    pub(super) fn become_segment(&self, path: &Path) -> Result<()> {
        if !os::rename(&self.path, path)? {
            return Err(Error::SegmentNotFound {
                path: self.path.clone(),
            });
        }
        self.gone.store(true, Ordering::SeqCst);
        Ok(())
    }
}

impl Drop for Hidden {
    fn drop(&mut self) {
        if !*self.gone.get_mut() && self.generation == os::fork_generation() {
            // What cannot be removed now is removed by the session's end, or a later sweep.
            let _ = os::unlink(&self.path);
            KillPoint::SpareRemoved.pass();
        }
    }
}

/// A file whose pages nobody uses.
#[derive(Debug)]
pub(crate) struct Spare {
    // The name goes before the file does.
    hidden: Option<Hidden>,
    file: File,
    mapping: Option<Mapping>,
    /// Up to here its pages are in place.
    in_place: usize,
    length: u64,
    forks: u64,
}

/// Whether a spare file may be written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Use {
    /// Nobody has it.
    None,
    /// Somebody has it open or mapped still.
    Some,
    /// Somebody has come since it was taken, or the kernel does not say: never again.
    Unknown,
}

impl Spare {
    /// Smaller files are made as fast as they are looked after.
    pub(crate) const LEAST_BYTES: u64 = 1 << 20;

    /// The file of a segment of `length` bytes that is freed, under its hidden name; `None` if it
    /// is gone. `forks` were counted when it was published, and when `warm` was.
    pub(crate) fn free(
        name: &SegmentName,
        length: u64,
        warm: Option<Warm>,
        forks: u64,
    ) -> Result<Option<Self>> {
        let Some(hidden) = Hidden::take(&name.path(), name.hide().path())? else {
            return Ok(None);
        };
        let (file, mapping, in_place) = match warm {
            Some(Warm {
                file,
                mapping,
                in_place,
                ..
            }) => (file, Arc::into_inner(mapping), in_place),
            // Views were made of the mapping that wrote it.
            None => (File::from(os::open_read_write(&hidden.path)?), None, 0),
        };
        let status = os::status(&file)?;
        // What is in its place may be somebody else's, or have other names.
        let ours = status.regular && status.own && status.links == 1 && status.length == length;
        Ok(ours.then_some(Self {
            hidden: Some(hidden),
            file,
            mapping,
            in_place,
            length,
            forks,
        }))
    }

    /// A file of `length` zero bytes, all of whose pages are in place and mapped, as long as `goes_on`
    /// says so. `None`: no space, or not to the end.
    pub(crate) fn fresh(length: u64, goes_on: impl Fn() -> bool) -> Result<Option<Self>> {
        let forks = os::forks();
        let file = File::from(os::create_nameless(Path::new(os::DIRECTORY))?);
        let whole = usize::try_from(length).unwrap_or(usize::MAX);
        let mapping = Mapping::writable(&file, whole)?;
        mapping.keep_from_children()?;
        for start in (0..whole).step_by(STEP_BYTES) {
            let step = STEP_BYTES.min(whole - start);
            // Without a reservation, full memory would be an error of the mapping's.
            if !goes_on() || reserve(&file, &mapping, start, start + step, Hurry::No)?.is_none() {
                return Ok(None);
            }
            mapping.populate(start..start + step)?;
            KillPoint::SpareFaulted.pass();
        }
        Ok(Some(Self {
            hidden: None,
            file,
            mapping: Some(mapping),
            in_place: whole,
            length,
            forks,
        }))
    }

    pub(crate) fn length(&self) -> u64 {
        self.length
    }

    /// Whether it was a segment's.
    pub(crate) fn was_used(&self) -> bool {
        self.hidden.is_some()
    }

    /// Asks the kernel for the lease on what was a segment's.
    pub(crate) fn claim(&self) -> Use {
        if self.forks != os::forks() {
            // A child has our description too, and what it has mapped of it does not show.
            return Use::Unknown;
        }
        match self
            .hidden
            .as_ref()
            .map_or(Some(true), |_| lease::hold(&self.file))
        {
            Some(true) => {
                KillPoint::SpareLeased.pass();
                Use::None
            }
            Some(false) => Use::Some,
            None => Use::Unknown,
        }
    }

    /// Whether nobody has come since [`claim`](Self::claim) said that nobody has it.
    pub(crate) fn is_still_unused(&self) -> bool {
        let alone = |_: &Hidden| {
            let links = os::status(&self.file).map(|status| status.links);
            lease::holds(&self.file) && links.ok() == Some(1)
        };
        self.forks == os::forks() && self.hidden.as_ref().is_none_or(alone)
    }

    /// Makes it `length` bytes long; false: no space. Only while nobody has it.
    pub(crate) fn resize(&mut self, length: u64) -> Result<bool> {
        if length > self.length && !os::reserve(&self.file, self.length, length - self.length)? {
            return Ok(false);
        }
        let whole = usize::try_from(length).unwrap_or(usize::MAX);
        // What is mapped past the end of the file would not be there.
        if let Some(mapping) = &mut self.mapping {
            mapping.resize(whole)?;
        }
        os::truncate(&self.file, length)?;
        self.length = length;
        self.in_place = self.in_place.min(whole);
        KillPoint::SpareResized.pass();
        Ok(true)
    }

    /// Puts a few more of its pages in place, as large ones where they are to be had; false: they are.
    /// Only while nobody has it.
    pub(crate) fn settle(&mut self) -> Result<bool> {
        let whole = usize::try_from(self.length).unwrap_or(usize::MAX);
        let start = self.in_place;
        let mapping = match &mut self.mapping {
            Some(mapping) => mapping,
            none => {
                let mapping = Mapping::writable(&self.file, whole)?;
                mapping.keep_from_children()?;
                none.insert(mapping)
            }
        };
        if start >= whole {
            return Ok(false);
        }
        if self.hidden.is_some() && start == 0 {
            // Whoever comes from here on finds no segment.
            spoil(&self.file, whole)?;
        }
        let end = whole.min(start + SETTLED_BYTES);
        enlarge(&self.file, mapping, start..end)?;
        mapping.populate(start..end)?;
        self.in_place = end;
        KillPoint::SpareSettled.pass();
        Ok(end < whole)
    }

    /// The draft of segment `name`, in these pages.
    pub(crate) fn into_draft(self, name: &SegmentName, access: Access) -> Result<Box<dyn Draft>> {
        let mut in_place = self.in_place;
        let mapping = if let Some(mapping) = self.mapping {
            mapping.share_with_children()?;
            mapping
        } else {
            let whole = usize::try_from(self.length).unwrap_or(usize::MAX);
            in_place = 0;
            Mapping::writable(&self.file, whole)?
        };
        let pages = match self.hidden {
            Some(hidden) => Pages::Reused { hidden, in_place },
            None => Pages::Faulted,
        };
        let mapping = Arc::new(mapping);
        let draft = Nameless::new(name.path(), self.file, access, mapping, self.forks);
        Ok(Box::new(draft.with_pages(pages)))
    }
}
