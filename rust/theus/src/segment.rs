//! One entry's bytes: nameless while they are written, sealed and named by publication.

use std::fs::File;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use rayon::prelude::*;

use crate::descriptor::SegmentName;
use crate::error::{Error, Result};
use crate::layout::tensor::{TensorSpec, body_offset, read_header};
use crate::mapping::Mapping;
use crate::os;

const CHUNK_BYTES: usize = 4 << 20;

/// The bytes a session's living segments have reserved.
pub(crate) type Used = Arc<AtomicU64>;

/// A tensor in shared memory, being written or published.
#[derive(Debug)]
pub struct Segment {
    name: SegmentName,
    spec: TensorSpec,
    body_offset: usize,
    length: usize,
    stage: Mutex<Stage>,
    linked: AtomicBool,
    copied: AtomicBool,
    owner: Option<Owner>,
}

#[derive(Debug)]
struct Owner {
    used: Used,
    generation: u64,
}

#[derive(Debug)]
enum Stage {
    Draft {
        file: OwnedFd,
        mapping: Arc<Mapping>,
        forks: u64,
    },
    Published(Arc<Mapping>),
}

impl Segment {
    /// Reserves a nameless segment for `spec` and writes its header; the items are zero, or `data`.
    pub(crate) fn create(
        name: SegmentName,
        spec: TensorSpec,
        data: Option<&[u8]>,
        used: &Used,
    ) -> Result<Self> {
        let header = spec.header();
        let length = header.len() as u64 + spec.body_bytes();
        let full = || Error::HeavyZoneFull {
            key: spec.key.clone(),
            requested: length,
            available: os::available_bytes(),
            limit: "/dev/shm",
        };
        let forks = os::forks();
        let file = os::create_nameless()?;
        // A reservation that fails leaves pages behind until the file is gone, which is now.
        if !os::reserve(&file, 0, length)? {
            return Err(full());
        }
        let writer = File::from(file);
        os::write_at(&writer, &header, 0)?;
        if let Some(data) = data {
            copy_in(&writer, data, header.len() as u64)?;
        }
        let file = OwnedFd::from(writer);
        let size = usize::try_from(length).map_err(|_| full())?;
        let mapping = Arc::new(Mapping::writable(&file, size)?);
        used.fetch_add(length, Ordering::SeqCst);
        Ok(Self {
            name,
            body_offset: header.len(),
            length: size,
            stage: Mutex::new(Stage::Draft {
                file,
                mapping,
                forks,
            }),
            linked: AtomicBool::new(false),
            copied: AtomicBool::new(false),
            owner: Some(Owner {
                used: Arc::clone(used),
                generation: os::fork_generation(),
            }),
            spec,
        })
    }

    /// Maps the published segment at `path` read-only, after checking its structure.
    ///
    /// # Errors
    /// [`Error::SegmentNotFound`], or [`Error::InvalidSegment`] naming the rule that does not hold.
    pub fn open(path: &Path) -> Result<Self> {
        let invalid = |reason: String| Error::InvalidSegment {
            segment: path.display().to_string(),
            reason,
        };
        let file = os::open_read_only(path)?;
        let status = os::status(&file)?;
        if !status.regular {
            return Err(invalid("it is not a regular file".to_owned()));
        }
        if status.length < 8 {
            return Err(invalid(format!("it has {} bytes", status.length)));
        }
        let length = usize::try_from(status.length).map_err(|error| invalid(error.to_string()))?;
        let mapping = Mapping::read_only(&file, length)?;
        let start = body_offset(&mapping.read(0, 8), status.length).map_err(invalid)?;
        let spec = read_header(&mapping.read(0, start), status.length).map_err(invalid)?;
        let text = path.file_name().and_then(|name| name.to_str());
        let name: Option<SegmentName> = text.and_then(|name| name.parse().ok());
        let own_place = path.parent() == Some(Path::new(os::DIRECTORY));
        if let (Some(name), true) = (&name, own_place) {
            mapping.register(name);
        }
        Ok(Self {
            name: name.ok_or_else(|| invalid("its file name is not a segment's".to_owned()))?,
            spec,
            body_offset: start,
            length,
            stage: Mutex::new(Stage::Published(Arc::new(mapping))),
            linked: AtomicBool::new(true),
            copied: AtomicBool::new(false),
            owner: None,
        })
    }

    /// Seals the segment and links its name. Idempotent.
    ///
    /// What is written later through pointers made before stays in this process.
    ///
    /// # Errors
    /// [`Error::Os`], or [`Error::HeavyZoneFull`] if a fork made a copy necessary and it does not
    /// fit.
    pub(crate) fn publish(&self) -> Result<()> {
        let mut stage = self.stage();
        let Stage::Draft {
            file,
            mapping,
            forks,
        } = &*stage
        else {
            return Ok(());
        };
        let published = if self.spec.mutable {
            os::link(file, &self.name.to_string())?;
            Arc::clone(mapping)
        } else if *forks == os::forks() {
            self.seal(file, mapping)?
        } else {
            // A forked child has the old pages mapped and could still write them.
            let copy = self.copy(mapping)?;
            self.copied.store(true, Ordering::SeqCst);
            self.seal(&copy, mapping)?
        };
        mapping.register(&self.name);
        published.register(&self.name);
        self.linked.store(true, Ordering::SeqCst);
        *stage = Stage::Published(published);
        Ok(())
    }

    fn seal(&self, file: &OwnedFd, mapping: &Mapping) -> Result<Arc<Mapping>> {
        let reader = os::reopen_read_only(file)?;
        mapping.make_private(&reader)?;
        let published = Arc::new(Mapping::read_only(&reader, self.length)?);
        os::link(file, &self.name.to_string())?;
        Ok(published)
    }

    fn copy(&self, mapping: &Mapping) -> Result<OwnedFd> {
        let file = os::create_nameless()?;
        if !os::reserve(&file, 0, self.length as u64)? {
            return Err(Error::HeavyZoneFull {
                key: self.spec.key.clone(),
                requested: self.length as u64,
                available: os::available_bytes(),
                limit: "/dev/shm, for the copy that a fork since the allocation makes necessary,",
            });
        }
        let writer = File::from(file);
        let mut offset = 0;
        while offset < self.length {
            let chunk = CHUNK_BYTES.min(self.length - offset);
            os::write_at(&writer, &mapping.read(offset, chunk), offset as u64)?;
            offset += chunk;
        }
        Ok(OwnedFd::from(writer))
    }

    /// Removes the name; mappings stay valid. Idempotent, and nothing in a forked child.
    ///
    /// # Errors
    /// [`Error::Os`] if the kernel refuses.
    pub fn unlink(&self) -> Result<()> {
        let Some(owner) = &self.owner else {
            return Ok(());
        };
        if owner.generation == os::fork_generation() && self.linked.swap(false, Ordering::SeqCst) {
            os::unlink(&self.name.to_string())?;
        }
        Ok(())
    }

    /// The bytes: writable for the owner of a draft or a mutable entry, else read-only.
    pub fn mapping(&self) -> Arc<Mapping> {
        match &*self.stage() {
            Stage::Draft { mapping, .. } | Stage::Published(mapping) => Arc::clone(mapping),
        }
    }

    /// The name; it exists in the file system between publication and [`unlink`](Self::unlink).
    #[must_use]
    pub fn name(&self) -> &SegmentName {
        &self.name
    }

    /// What the tensor is.
    #[must_use]
    pub fn spec(&self) -> &TensorSpec {
        &self.spec
    }

    /// Where the items begin.
    #[must_use]
    pub fn body_offset(&self) -> usize {
        self.body_offset
    }

    /// The length of the whole segment in bytes.
    #[must_use]
    pub fn length(&self) -> usize {
        self.length
    }

    /// Whether it has been published.
    #[must_use]
    pub fn is_published(&self) -> bool {
        matches!(&*self.stage(), Stage::Published(_))
    }

    /// Whether its name exists, as far as this process knows: a reader asks the file system.
    #[must_use]
    pub fn is_linked(&self) -> bool {
        self.linked.load(Ordering::SeqCst)
            && (self.owner.is_some()
                || os::status_of(&os::path_of(&self.name.to_string())).is_some())
    }

    /// Whether publication copied it, because this process had forked since the allocation.
    #[must_use]
    pub fn was_copied(&self) -> bool {
        self.copied.load(Ordering::SeqCst)
    }

    /// The path that any Arrow reader can open.
    ///
    /// # Errors
    /// [`Error::Unpublished`] before publication.
    pub fn path(&self) -> Result<PathBuf> {
        if self.is_published() {
            Ok(os::path_of(&self.name.to_string()))
        } else {
            Err(Error::Unpublished {
                key: self.spec.key.clone(),
            })
        }
    }

    fn stage(&self) -> MutexGuard<'_, Stage> {
        self.stage.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Segment {
    fn drop(&mut self) {
        // A name that cannot be removed now is removed by the session's end, or a later sweep.
        let _ = self.unlink();
        if let Some(owner) = &self.owner {
            owner.used.fetch_sub(self.length as u64, Ordering::SeqCst);
        }
    }
}

/// Copies `data` in parallel: writing into fresh pages does not zero them first, as faulting does.
fn copy_in(file: &File, data: &[u8], offset: u64) -> Result<()> {
    data.par_chunks(CHUNK_BYTES)
        .enumerate()
        .try_for_each(|(index, chunk)| {
            os::write_at(file, chunk, offset + (index * CHUNK_BYTES) as u64)
        })
}
