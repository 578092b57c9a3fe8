//! One entry's bytes: nameless while they are written, sealed and named by publication.

#![expect(unsafe_code, reason = "Arrow's buffers are made over a mapping")]

use std::ops::Range;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::ptr::NonNull;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use arrow::array::RecordBatch;
use arrow::buffer::Buffer;
use arrow::datatypes::SchemaRef;

use crate::backend::{Backend, Draft, Place, Published, SpillDirectory, Warm};
use crate::budget::Reservation;
use crate::descriptor::SegmentName;
use crate::error::{Error, Result};
use crate::fill::{Content, Filled};
use crate::kill_point::KillPoint;
use crate::layout::Spec;
use crate::layout::table::{self, BlankColumn, ExtraCopy, TableFile, Validation};
use crate::layout::tensor::{TensorSpec, body_offset, read_header};
use crate::mapping::Mapping;
use crate::os;
use crate::pool::Pool;
#[cfg(feature = "worker")]
use crate::tensor;
use crate::tensor::{Element, Tensor, spec_of};
use crate::zone::Zone;

mod shown;

use shown::{Shown, View};

/// An entry in shared memory, being written or published.
#[derive(Debug)]
pub struct Segment {
    place: Place,
    name: SegmentName,
    content: Content,
    length: usize,
    stage: Mutex<Stage>,
    linked: AtomicBool,
    copied: AtomicBool,
    /// The fork generation of the process that may remove the name; readers have none.
    owner: Option<u64>,
    /// Whether all of the bytes were looked at, or need not be, as this process wrote them.
    validated: AtomicBool,
    reservation: Option<Arc<Reservation>>,
    /// Who takes the memory over when the segment is freed.
    pool: Option<Arc<Pool>>,
    /// How many children had been forked when it was published.
    forks: AtomicU64,
}

#[derive(Debug)]
enum Stage {
    Draft(Box<dyn Draft>),
    Published(Shown, Option<Warm>),
    /// It is being dropped.
    Freed,
}

impl Segment {
    /// The entry that `filled` is a draft of.
    pub(crate) fn new(zone: &Zone, name: SegmentName, filled: Filled) -> Self {
        let Filled {
            draft,
            place,
            reserved,
            content,
        } = filled;
        let length = draft.mapping().len();
        let reservation = Reservation::new(zone.budget(), reserved);
        draft.mapping().keep(reservation.clone());
        Self {
            place,
            name,
            content,
            length,
            stage: Mutex::new(Stage::Draft(draft)),
            linked: AtomicBool::new(false),
            copied: AtomicBool::new(false),
            owner: Some(os::fork_generation()),
            validated: AtomicBool::new(true),
            reservation: Some(reservation),
            pool: zone.pool().cloned(),
            forks: AtomicU64::new(0),
        }
    }

    /// Names what a worker wrote and handed over, after checking its structure; what the
    /// worker in `seat` had reserved for it is counted as this process's.
    pub(crate) fn adopt(
        zone: &Zone,
        name: SegmentName,
        file: OwnedFd,
        seat: usize,
    ) -> Result<Self> {
        KillPoint::OutputReceived.pass();
        let status = os::status(&file)?;
        let invalid = |reason: &str| Error::CorruptSegment {
            segment: "a worker's output".to_owned(),
            reason: reason.to_owned(),
        };
        if !status.regular || !status.own || status.links > 0 {
            return Err(invalid("it is not a nameless file of this user"));
        }
        if status.length == 0 {
            return Err(invalid("it is empty"));
        }
        let place = zone.place_of(&file);
        let reserved = match place {
            Place::Memory(_) => status.length,
            Place::Disk(_) => 0,
        };
        zone.budget().take_over(seat, reserved);
        let reservation = Reservation::new(zone.budget(), reserved);
        let storage = place.storage();
        // Only then is it looked at, as before it may change behind every look.
        let mapping = storage.adopt(&name, file)?;
        let mapping = mapping.ok_or_else(|| storage.full("a worker's output", status.length))?;
        let content = read_content(&mapping, "a worker's output");
        let content = content.inspect_err(|_| {
            // What is left is removed with the session.
            let _ = storage.unlink(&name);
        })?;
        mapping.keep(reservation.clone());
        mapping.register(&name);
        let length = mapping.len();
        Ok(Self {
            place,
            name,
            content,
            length,
            stage: Mutex::new(Stage::Published(Shown::kept(Arc::new(mapping)), None)),
            linked: AtomicBool::new(true),
            copied: AtomicBool::new(false),
            owner: Some(os::fork_generation()),
            validated: AtomicBool::new(false),
            reservation: Some(reservation),
            // Its like is made by a worker, who has no pool.
            pool: None,
            forks: AtomicU64::new(0),
        })
    }

    /// Maps the published segment at `path` read-only, after checking its structure.
    ///
    /// # Errors
    /// [`Error::SegmentNotFound`], or [`Error::CorruptSegment`] naming the rule that does not hold.
    pub fn open(path: &Path) -> Result<Self> {
        Self::open_with(Backend::default(), path)
    }

    /// Maps the published segment of this name, in memory or where its session spills.
    ///
    /// # Errors
    /// As of [`open`](Self::open).
    pub fn find(name: &SegmentName) -> Result<Self> {
        Self::find_as(name, Shown::held)
    }

    /// As [`find`](Self::find), for who is promised that the name stays as long as he has this: what
    /// nobody looks at may be unmapped, and is mapped again.
    ///
    /// # Errors
    /// As of [`open`](Self::open).
    pub fn find_promised(name: &SegmentName) -> Result<Self> {
        Self::find_as(name, Shown::kept)
    }

    fn find_as(name: &SegmentName, shown: fn(Arc<Mapping>) -> Shown) -> Result<Self> {
        let backend = Backend::default();
        match Self::open_as(backend, &name.path(), shown) {
            Ok(segment) => Ok(segment),
            // Anybody may have put something there under the name of what is spilled.
            Err(error) => match SpillDirectory::of(&name.session) {
                Some(spill) => Self::open_as(backend, &spill.path().join(name.to_string()), shown),
                None => Err(error),
            },
        }
    }

    /// As [`open`](Self::open), by way of `backend`.
    ///
    /// # Errors
    /// As of [`open`](Self::open).
    pub fn open_with(backend: Backend, path: &Path) -> Result<Self> {
        Self::open_as(backend, path, Shown::held)
    }

    fn open_as(backend: Backend, path: &Path, shown: fn(Arc<Mapping>) -> Shown) -> Result<Self> {
        let file = path.display().to_string();
        let mapping = backend.storage().open(path)?;
        let content = read_content(&mapping, &file)?;
        let invalid = |reason: &str| Error::CorruptSegment {
            segment: file.clone(),
            reason: reason.to_owned(),
        };
        let text = path.file_name().and_then(|name| name.to_str());
        let name: Option<SegmentName> = text.and_then(|name| name.parse().ok());
        let name = name.ok_or_else(|| invalid("its file name is not a segment's"))?;
        let mut place = Place::Memory(backend);
        let directory = path.parent();
        if directory == Some(Path::new(os::DIRECTORY)) {
            mapping.register(&name);
        } else if let Some(spill) = SpillDirectory::of(&name.session)
            && directory == Some(spill.path())
        {
            mapping.register(&name);
            place = Place::Disk(spill);
        }
        Ok(Self {
            place,
            name,
            content,
            length: mapping.len(),
            stage: Mutex::new(Stage::Published(shown(Arc::new(mapping)), None)),
            linked: AtomicBool::new(true),
            copied: AtomicBool::new(false),
            owner: None,
            validated: AtomicBool::new(false),
            reservation: None,
            pool: None,
            forks: AtomicU64::new(0),
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
        let Stage::Draft(draft) = &*stage else {
            return Ok(());
        };
        let full = || {
            let length = self.length as u64;
            self.place.storage().full(self.content.spec.key(), length)
        };
        self.content.complete(draft.mapping());
        let Published {
            mapping,
            copied,
            warm,
        } = draft.publish()?.ok_or_else(full)?;
        if let Some(reservation) = &self.reservation {
            mapping.keep(reservation.clone());
        }
        if warm.is_some() {
            draft.mapping().release_kept();
        } else {
            // Views were made of it, perhaps.
            draft.mapping().register(&self.name);
        }
        mapping.register(&self.name);
        self.forks.store(os::forks(), Ordering::SeqCst);
        self.copied.store(copied, Ordering::SeqCst);
        self.linked.store(true, Ordering::SeqCst);
        let shown = match &self.content.spec {
            // The one through which its owner writes.
            spec if spec.mutable() => Shown::held(mapping),
            _ => Shown::kept(mapping),
        };
        *stage = Stage::Published(shown, warm);
        KillPoint::SegmentPublished.pass();
        Ok(())
    }

    /// Removes the name; the bytes stay readable for who has this, unless there is no mapping left
    /// for them. Idempotent, and nothing in a forked child.
    ///
    /// # Errors
    /// [`Error::Os`] if the kernel refuses.
    pub fn unlink(&self) -> Result<()> {
        if self.owns_name() {
            let mut stage = self.stage();
            if let Stage::Published(shown, _) = &mut *stage
                && let Ok(view) = shown.look(|| self.map_again())
            {
                shown.held = Some(view);
            }
        }
        self.remove_name()
    }

    fn owns_name(&self) -> bool {
        self.owner == Some(os::fork_generation()) && self.linked.load(Ordering::SeqCst)
    }

    fn remove_name(&self) -> Result<()> {
        if self.owns_name() && self.linked.swap(false, Ordering::SeqCst) {
            self.place.storage().unlink(&self.name)?;
            KillPoint::SegmentUnlinked.pass();
        }
        Ok(())
    }

    /// The bytes: writable for the owner of a draft or a mutable entry, else read-only.
    ///
    /// # Errors
    /// If they are not mapped, as nobody has looked at them for a while, those of
    /// [`open`](Self::open).
    pub fn mapping(&self) -> Result<Arc<Mapping>> {
        match &mut *self.stage() {
            Stage::Draft(draft) => Ok(Arc::clone(draft.mapping())),
            Stage::Published(shown, _) => {
                let view = shown.look(|| self.map_again())?;
                Ok(Arc::clone(&view.mapping))
            }
            Stage::Freed => unreachable!("nobody has what is being dropped"),
        }
    }

    /// Maps what has been unmapped, and is there still: who has this is promised its name.
    fn map_again(&self) -> Result<Arc<Mapping>> {
        let path = self.place.path_of(&self.name);
        let mapping = self.place.storage().open(&path)?;
        if mapping.len() != self.length {
            let found = mapping.len();
            return Err(self.corrupt(format!("it has {found} bytes, and had {}", self.length)));
        }
        if let Some(reservation) = &self.reservation {
            mapping.keep(reservation.clone());
        }
        mapping.register(&self.name);
        Ok(Arc::new(mapping))
    }

    /// The name; it exists in the file system between publication and [`unlink`](Self::unlink).
    #[must_use]
    pub fn name(&self) -> &SegmentName {
        &self.name
    }

    /// What lies in it.
    #[must_use]
    pub fn spec(&self) -> &Spec {
        &self.content.spec
    }

    /// Where a tensor's items begin; the whole of a table's file is its body.
    #[must_use]
    pub fn body_offset(&self) -> usize {
        self.content.body_offset
    }

    /// The columns of a table that is filled in place.
    #[must_use]
    pub fn blanks(&self) -> &[BlankColumn] {
        &self.content.blanks
    }

    /// The tensor in it.
    ///
    /// # Errors
    /// [`Error::DtypeMismatch`], [`Error::Unpublished`], or [`Error::Mutable`].
    pub fn tensor<T: Element>(&self) -> Result<Tensor<T>> {
        self.tensor_of(spec_of::<T>(self.spec())?)
    }

    fn tensor_of<T: Element>(&self, spec: &TensorSpec) -> Result<Tensor<T>> {
        let key = || spec.key.clone();
        if spec.mutable {
            // What the owner goes on writing cannot be a slice.
            return Err(Error::Mutable { key: key() });
        }
        if !self.is_published() {
            return Err(Error::Unpublished { key: key() });
        }
        Ok(Tensor::new(self.mapping()?, spec, self.body_offset()))
    }

    /// The part of the tensor in it that lies at `place`, with items of any type.
    ///
    /// # Errors
    /// As of [`tensor`](Self::tensor), and [`Error::CorruptSegment`] if no such items lie there.
    #[cfg(feature = "worker")]
    pub(crate) fn tensor_at<T: Element>(&self, place: tensor::Place) -> Result<Tensor<T>> {
        match self.spec() {
            Spec::Tensor(spec) => self.tensor_of(spec)?.at(place),
            table @ Spec::Table(_) => self.tensor_of(spec_of::<T>(table)?),
        }
    }

    /// The record batches of a table or array, over the segment's bytes, which they keep mapped.
    ///
    /// What another process wrote is looked at first, all of it and once: offsets, keys, UTF-8. After
    /// that, and for what this process wrote, this takes a time for each column, none for each row.
    ///
    /// # Errors
    /// [`Error::NotATable`], [`Error::Unpublished`], or [`Error::CorruptSegment`] naming the batch,
    /// the column and the rule that does not hold.
    pub fn batches(&self) -> Result<Vec<RecordBatch>> {
        let view = self.look_at_table()?;
        if let Some(batches) = view.batches.get() {
            return Ok(batches.clone());
        }
        let validation = if self.validated.load(Ordering::SeqCst) {
            Validation::Trusted
        } else {
            Validation::Full
        };
        let batches = self.read_batches(&view.mapping, validation)?;
        self.validated.store(true, Ordering::SeqCst);
        Ok(view.batches.get_or_init(|| batches).clone())
    }

    /// As [`batches`](Self::batches), without looking at what the values say.
    ///
    /// # Errors
    /// As of [`batches`](Self::batches).
    ///
    /// # Safety
    /// Whoever wrote the segment has to be trusted to have written valid Arrow data: offsets that lie
    /// in their buffers, keys in their dictionaries, UTF-8 in strings.
    pub unsafe fn batches_trusted(&self) -> Result<Vec<RecordBatch>> {
        let view = self.look_at_table()?;
        self.read_batches(&view.mapping, Validation::Trusted)
    }

    /// The schema of a table's batches.
    ///
    /// # Errors
    /// [`Error::NotATable`] or [`Error::Unpublished`].
    pub fn schema(&self) -> Result<SchemaRef> {
        let view = self.look_at_table()?;
        Ok(Arc::clone(self.table_file(&view.mapping)?.schema()))
    }

    fn read_batches(
        &self,
        mapping: &Arc<Mapping>,
        validation: Validation,
    ) -> Result<Vec<RecordBatch>> {
        let file = self.table_file(mapping)?;
        let Some(start) = NonNull::new(mapping.as_mut_ptr()) else {
            unreachable!("a mapping is never at zero");
        };
        // SAFETY: the range is the mapping's, which the buffer keeps, and published bytes do not change.
        let bytes = unsafe {
            Buffer::from_custom_allocation(start, mapping.len(), Arc::<Mapping>::clone(mapping))
        };
        let batches = file.batches(&bytes, validation);
        batches.map_err(|reason| self.corrupt(reason))
    }

    fn look_at_table(&self) -> Result<Arc<View>> {
        let key = || self.spec().key().to_owned();
        if !matches!(self.spec(), Spec::Table(_)) {
            return Err(Error::NotATable { key: key() });
        }
        match &mut *self.stage() {
            Stage::Published(shown, _) => shown.look(|| self.map_again()),
            _ => Err(Error::Unpublished { key: key() }),
        }
    }

    fn table_file(&self, mapping: &Mapping) -> Result<TableFile> {
        let read = |range: Range<usize>| mapping.read(range.start, range.len());
        let file = TableFile::open(mapping.len(), read);
        file.map_err(|reason| self.corrupt(reason))
    }

    fn corrupt(&self, reason: String) -> Error {
        Error::CorruptSegment {
            segment: self.name.to_string(),
            reason,
        }
    }

    /// The copies that putting a table made besides the one into the segment.
    #[must_use]
    pub fn extra_copies(&self) -> &[ExtraCopy] {
        &self.content.copies
    }

    /// The length of the whole segment in bytes.
    #[must_use]
    pub fn length(&self) -> usize {
        self.length
    }

    /// Whether it lies on disk, because it did not fit in memory.
    #[must_use]
    pub fn is_spilled(&self) -> bool {
        matches!(self.place, Place::Disk(_))
    }

    /// Whether it has been published.
    #[must_use]
    pub fn is_published(&self) -> bool {
        matches!(&*self.stage(), Stage::Published(..))
    }

    /// Whether its name exists, as far as this process knows: a reader asks the file system.
    #[must_use]
    pub fn is_linked(&self) -> bool {
        self.linked.load(Ordering::SeqCst)
            && (self.owner.is_some() || self.place.storage().length_of(&self.name).is_some())
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
            Ok(self.place.path_of(&self.name))
        } else {
            Err(Error::Unpublished {
                key: self.content.spec.key().to_owned(),
            })
        }
    }

    /// Lets the next segment have the memory; false: there is no pool, or it does not want it.
    fn recycle(&mut self) -> bool {
        let Some(pool) = &self.pool else {
            return false;
        };
        if self.spec().mutable() || self.is_spilled() {
            return false;
        }
        let stage = self.stage.get_mut().unwrap_or_else(PoisonError::into_inner);
        let Stage::Published(_, warm) = stage else {
            return false;
        };
        let warm = warm.take();
        let length = self.length as u64;
        // Our own mapping must be gone before others can be said to be.
        *stage = Stage::Freed;
        self.reservation = None;
        pool.free(&self.name, length, warm, *self.forks.get_mut())
    }

    fn stage(&self) -> MutexGuard<'_, Stage> {
        self.stage.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Segment {
    fn drop(&mut self) {
        if self.owns_name() && self.recycle() {
            return;
        }
        // A name that cannot be removed now is removed by the session's end, or a later sweep.
        let _ = self.remove_name();
    }
}

/// Checks the structure of what lies in a mapping.
fn read_content(mapping: &Mapping, segment: &str) -> Result<Content> {
    let invalid = |reason: String| Error::CorruptSegment {
        segment: segment.to_owned(),
        reason,
    };
    let length = mapping.len();
    if length < 8 {
        return Err(invalid(format!("it has {length} bytes")));
    }
    let (copies, blanks) = (Vec::new(), Vec::new());
    if table::is_table(&mapping.read(0, 8)) {
        let read = |range: Range<usize>| mapping.read(range.start, range.len());
        let file = TableFile::open(length, read).map_err(invalid)?;
        return Ok(Content {
            spec: Spec::Table(file.spec),
            body_offset: 0,
            copies,
            blanks,
        });
    }
    let start = body_offset(&mapping.read(0, 8), length as u64).map_err(invalid)?;
    let spec = read_header(&mapping.read(0, start), length as u64).map_err(invalid)?;
    Ok(Content {
        spec: Spec::Tensor(spec),
        body_offset: start,
        copies,
        blanks,
    })
}
