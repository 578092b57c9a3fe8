//! The lifetime root: a session lives while its lock is held, and owns every name made in it.

use std::collections::HashMap;
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStrExt;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};

use arrow::array::RecordBatch;
use arrow::datatypes::{Schema, SchemaRef};
use arrow::error::ArrowError;

use crate::backend::{Available, Backend, Lock, SpillDirectory};
use crate::budget::Budget;
use crate::catalog::CatalogWriter;
use crate::descriptor::{SegmentName, SessionId};
use crate::error::{Error, Result};
use crate::fill::{self, Filled, NewTable};
use crate::kept;
use crate::kill_point::KillPoint;
use crate::layout::table::TableSpec;
use crate::layout::tensor::{Order, TensorSpec};
use crate::mapping;
use crate::os::{self, Fork};
use crate::segment::Segment;
use crate::signals;
use crate::sweep::sweep;
use crate::tensor::Element;
use crate::zone::Zone;

mod attached;
mod filling;

pub use attached::AttachedSession;
pub use filling::TensorMut;

/// How a session is set up.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Config {
    /// Where its memory comes from.
    pub backend: Backend,
    /// How many bytes its segments may reserve together; without it, what the machine has.
    pub heavy_limit: Option<u64>,
    /// Where segments go that do not fit in memory; without it, they are an error.
    pub spill_dir: Option<PathBuf>,
    /// How many bytes of memory are made ready in the background, before segments need them. They are
    /// no entry's, and given back to whoever needs them.
    pub reserve: u64,
}

/// A session: the process that creates it owns its segments. Clones are the same session.
#[derive(Debug, Clone)]
pub struct Session(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    id: SessionId,
    config: Config,
    generation: u64,
    zone: Zone,
    next: AtomicU64,
    closed: AtomicBool,
    held: Mutex<Held>,
}

#[derive(Debug)]
struct Held {
    lock: Option<Box<dyn Lock>>,
    spill_lock: Option<Box<dyn Lock>>,
    /// Until it is closed, which gives its descriptors back whoever still holds it.
    open: Option<Open>,
    segments: Vec<Weak<Segment>>,
    forget_at: usize,
    version: u64,
    /// What was entered by name here; a front that keeps states of its own enters nothing.
    entries: HashMap<String, Arc<Segment>>,
}

#[derive(Debug)]
struct Open {
    catalog: CatalogWriter,
    budget_file: OwnedFd,
}

impl Session {
    /// Sweeps what dead sessions left, then creates one.
    ///
    /// # Errors
    /// [`Error::Os`] or [`Error::HeavyZoneFull`] if the lock or the catalog cannot be made, or there
    /// is no room for the reserve,
    /// [`Error::SpillDirectory`] if `spill_dir` cannot keep segments.
    pub fn create(config: Config) -> Result<Self> {
        os::at_fork(&[lock_registry, forget_sessions]);
        let spill = match &config.spill_dir {
            Some(path) => Some(SpillDirectory::prepare(path, config.backend)?),
            None => None,
        };
        sweep(config.spill_dir.as_deref())?;
        check_reserve(&config)?;
        let id = SessionId::random()?;
        let (budget, budget_file) = Budget::create(config.heavy_limit)?;
        // From here on the next sweep removes what this function leaves when it fails.
        let lock = new_lock(config.backend, &id, spill.as_ref())?;
        let spill_lock = spill.as_ref().map(|spill| spill.lock(&id)).transpose()?;
        let catalog = CatalogWriter::create(config.backend, &id)?;
        signals::guard(&id, spill.as_ref().map(SpillDirectory::path));
        let zone = Zone::of_owner(id.clone(), config.backend, budget, spill, config.reserve);
        Ok(Self(Arc::new(Inner {
            id,
            config,
            generation: os::fork_generation(),
            zone,
            next: AtomicU64::new(1),
            closed: AtomicBool::new(false),
            held: Mutex::new(Held {
                lock: Some(lock),
                spill_lock,
                open: Some(Open {
                    catalog,
                    budget_file,
                }),
                segments: Vec::new(),
                forget_at: 0,
                version: 0,
                entries: HashMap::new(),
            }),
        })))
    }

    /// The session's id.
    #[must_use]
    pub fn id(&self) -> &SessionId {
        &self.0.id
    }

    /// Whether it was closed, or this process is a forked child of its owner.
    #[must_use]
    pub fn is_closed(&self) -> bool {
        self.0.closed.load(Ordering::SeqCst) || self.0.generation != os::fork_generation()
    }

    /// The bytes that its living segments have reserved, those of its workers included.
    #[must_use]
    pub fn used_bytes(&self) -> u64 {
        self.0.zone.budget().used()
    }

    /// The bytes that are no segment's, and ready for the next ones: what was freed, and the reserve.
    #[must_use]
    pub fn ready_bytes(&self) -> u64 {
        self.0.zone.pool().map_or(0, |pool| pool.bytes())
    }

    /// Where its segments are made.
    #[must_use]
    pub fn zone(&self) -> &Zone {
        &self.0.zone
    }

    /// A new descriptor by which a worker maps the [budget](Budget::from_fd).
    ///
    /// # Errors
    /// [`Error::SessionClosed`], or [`Error::Os`] if there are no descriptors left.
    pub fn budget_file(&self) -> Result<OwnedFd> {
        let held = self.held();
        let open = held.open.as_ref().ok_or_else(|| self.closed())?;
        let file = open.budget_file.try_clone();
        file.map_err(|error| os::failed("duplicating a descriptor", error))
    }

    /// How it was set up.
    #[must_use]
    pub fn config(&self) -> &Config {
        &self.0.config
    }

    /// Reserves a nameless tensor segment: zeros, or a parallel copy of `data`.
    ///
    /// # Errors
    /// [`Error::HeavyZoneFull`], [`Error::KeyTooLong`], [`Error::LengthMismatch`],
    /// [`Error::SessionClosed`] or [`Error::Os`].
    pub fn create_tensor(&self, spec: TensorSpec, data: Option<&[u8]>) -> Result<Arc<Segment>> {
        self.make(|zone, name| fill::tensor(zone, name, spec, data))
    }

    /// Writes a table into a nameless segment, with one copy made by several threads.
    ///
    /// # Errors
    /// [`Error::HeavyZoneFull`], [`Error::KeyTooLong`], [`Error::Table`], [`Error::Column`],
    /// [`Error::DictionaryOverflow`], [`Error::SessionClosed`] or [`Error::Os`].
    pub fn create_table(&self, table: NewTable<'_>) -> Result<Arc<Segment>> {
        self.make(|zone, name| table.fill(zone, name))
    }

    /// Lays out a table of `rows` zeros, to be filled in place through [`Segment::blanks`]: every
    /// column has a fixed width, and nullable ones a bitmap. Publication counts the nulls.
    ///
    /// # Errors
    /// [`Error::Column`] for a type without a fixed width, and those of
    /// [`create_table`](Self::create_table).
    pub fn alloc_table(
        &self,
        spec: TableSpec,
        schema: &Schema,
        rows: usize,
    ) -> Result<Arc<Segment>> {
        self.make(|zone, name| fill::blank_table(zone, name, spec, schema, rows))
    }

    fn make(
        &self,
        make: impl FnOnce(&Zone, &SegmentName) -> Result<Filled>,
    ) -> Result<Arc<Segment>> {
        self.check_open()?;
        self.keep_lock(&mut self.held());
        let (zone, name) = (&self.0.zone, self.next_name());
        let filled = make(zone, &name)?;
        let segment = Arc::new(Segment::new(zone, name, filled));
        self.remember(&segment);
        if segment.spec().mutable() {
            self.publish(&segment)?;
        }
        Ok(segment)
    }

    /// Reserves a tensor of zeros in row-major order, to be filled and then
    /// [published](TensorMut::publish).
    ///
    /// # Errors
    /// As of [`create_tensor`](Self::create_tensor), and [`Error::ShapeOverflow`].
    pub fn alloc_tensor<T: Element>(&self, name: &str, shape: &[u64]) -> Result<TensorMut<T>> {
        let spec = TensorSpec::dense(name, T::TYPE, shape, Order::C)?;
        let segment = self.create_tensor(spec, None)?;
        Ok(TensorMut::new(self.clone(), segment))
    }

    /// Writes a table with one copy, publishes it and enters it under `name`, where it replaces what
    /// was there. Batches are taken one at a time: a stream of any length takes little memory.
    ///
    /// # Errors
    /// As of [`create_table`](Self::create_table).
    pub fn put<I>(&self, name: &str, schema: SchemaRef, batches: I) -> Result<Arc<Segment>>
    where
        I: IntoIterator<Item = std::result::Result<RecordBatch, ArrowError>>,
        I::IntoIter: Send,
    {
        let segment = fill::with_batches(batches.into_iter(), |batches| {
            self.create_table(NewTable::of_stream(name, schema, batches))
        })?;
        self.enter(&segment)?;
        Ok(segment)
    }

    /// The entry that [`put`](Self::put) or [`TensorMut::publish`] entered under this name.
    ///
    /// # Errors
    /// [`Error::EntryNotFound`].
    pub fn get(&self, name: &str) -> Result<Arc<Segment>> {
        let found = self.held().entries.get(name).cloned();
        found.ok_or_else(|| Error::EntryNotFound {
            key: name.to_owned(),
        })
    }

    /// Another process's session, to be read.
    ///
    /// # Errors
    /// [`Error::SegmentNotFound`] if there is none of this id.
    pub fn attach(id: SessionId) -> Result<AttachedSession> {
        AttachedSession::new(id)
    }

    /// Publishes a segment and enters it under its name, in the next version of the state.
    /// The version of the entries, and these; none if that is the version `known`.
    pub(crate) fn entries_unless(
        &self,
        known: u64,
    ) -> Option<(u64, HashMap<String, Arc<Segment>>)> {
        let held = self.held();
        (held.version != known).then(|| (held.version, held.entries.clone()))
    }

    pub(crate) fn enter(&self, segment: &Arc<Segment>) -> Result<()> {
        self.publish(segment)?;
        let key = segment.spec().key().to_owned();
        let version = self.held().version + 1;
        self.commit(version, &[(key.clone(), Some(Arc::clone(segment)))])?;
        self.held().entries.insert(key, Arc::clone(segment));
        Ok(())
    }

    /// Takes over what the worker in `seat` wrote, and names it. It is published.
    ///
    /// # Errors
    /// [`Error::CorruptSegment`], [`Error::HeavyZoneFull`] if a copy was necessary and does not fit,
    /// [`Error::SessionClosed`] or [`Error::Os`].
    pub fn adopt(&self, file: OwnedFd, seat: usize) -> Result<Arc<Segment>> {
        self.check_open()?;
        // As in `publish`.
        let mut held = self.held();
        self.check_open()?;
        self.keep_lock(&mut held);
        drop(held);
        let name = self.next_name();
        let segment = Segment::adopt(&self.0.zone, name, file, seat)?;
        let segment = Arc::new(segment);
        self.remember(&segment);
        if self.is_closed() {
            segment.unlink()?;
        }
        Ok(segment)
    }

    fn next_name(&self) -> SegmentName {
        loop {
            let number = self.0.next.fetch_add(1, Ordering::SeqCst);
            let name = self.0.id.segment(number);
            // Whoever may write to the directory can put something where a name is to come.
            if os::status_of(&name.path()).is_none() {
                return name;
            }
        }
    }

    fn remember(&self, segment: &Arc<Segment>) {
        let mut held = self.held();
        if held.segments.len() >= held.forget_at {
            held.segments.retain(|segment| segment.strong_count() > 0);
            // So that what is gone costs a look now and then, not at each new segment.
            held.forget_at = 2 * held.segments.len() + 64;
        }
        held.segments.push(Arc::downgrade(segment));
    }

    /// Seals `segment` and links its name. Idempotent.
    ///
    /// # Errors
    /// [`Error::SessionClosed`], [`Error::HeavyZoneFull`] or [`Error::Os`].
    pub fn publish(&self, segment: &Segment) -> Result<()> {
        self.check_open()?; // before the lock, which a forked child may have inherited
        // Held to the end, so that a name which appears is one that `close` has yet to remove.
        let mut held = self.held();
        self.check_open()?;
        self.keep_lock(&mut held);
        segment.publish()
    }

    /// Puts the lock file back if somebody removed it: without it a sweep asks less sure signs.
    /// What lies in its place may be somebody else's; then the old one has to do.
    fn keep_lock(&self, held: &mut Held) {
        let (id, spill) = (&self.0.id, self.0.zone.spill());
        let gone =
            |lock: &Option<Box<dyn Lock>>| lock.as_ref().is_some_and(|lock| !lock.is_in_place());
        if gone(&held.lock)
            && let Ok(lock) = new_lock(self.0.config.backend, id, spill)
        {
            held.lock = Some(lock);
        }
        if gone(&held.spill_lock)
            && let Some(Ok(lock)) = spill.map(|spill| spill.lock(id))
        {
            held.spill_lock = Some(lock);
        }
    }

    /// Enters the changed keys of state `version` in the catalog; `None` removes a key.
    ///
    /// # Errors
    /// [`Error::SessionClosed`], [`Error::KeyTooLong`] or [`Error::HeavyZoneFull`].
    pub fn commit(&self, version: u64, changes: &[(String, Option<Arc<Segment>>)]) -> Result<()> {
        self.check_open()?;
        let mut held = self.held();
        let Open { catalog, .. } = held.open.as_mut().ok_or_else(|| self.closed())?;
        for (key, segment) in changes {
            match segment {
                Some(segment) => {
                    let number = segment.name().number;
                    catalog.set(key, version, number, segment.length() as u64)?;
                }
                None => catalog.remove(key),
            }
        }
        catalog.set_version(version);
        held.version = version;
        Ok(())
    }

    /// Removes every name of the session, the lock last. Mappings stay valid. Idempotent.
    ///
    /// # Errors
    /// [`Error::Os`] if the kernel refuses; what is left is removed by the next sweep.
    pub fn close(&self) -> Result<()> {
        self.0.close()
    }

    fn check_open(&self) -> Result<()> {
        if self.is_closed() {
            return Err(self.closed());
        }
        Ok(())
    }

    fn closed(&self) -> Error {
        Error::SessionClosed {
            session: self.0.id.to_string(),
        }
    }

    fn held(&self) -> MutexGuard<'_, Held> {
        self.0.held.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Inner {
    fn close(&self) -> Result<()> {
        if self.generation != os::fork_generation() || self.closed.swap(true, Ordering::SeqCst) {
            return Ok(());
        }
        let mut held = self.held.lock().unwrap_or_else(PoisonError::into_inner);
        let storage = self.config.backend.storage();
        let segments = std::mem::take(&mut held.segments);
        held.entries.clear();
        // All of them, also behind one that the kernel does not let go.
        let mut unlinked = Ok(());
        for segment in segments.iter().filter_map(Weak::upgrade) {
            unlinked = unlinked.and(segment.unlink());
        }
        if let Some(pool) = self.zone.pool() {
            pool.close();
        }
        KillPoint::CloseSegmentsGone.pass();
        storage.unlink(&self.id.segment(0))?;
        KillPoint::CloseCatalogGone.pass();
        unlinked?;
        // What somebody has put in their places is not ours. That in memory goes last, as it says
        // where the other is.
        if let (Some(spill), Some(lock)) = (self.zone.spill(), &held.spill_lock)
            && lock.is_in_place()
        {
            os::unlink(&spill.storage().lock_path(&self.id))?;
        }
        if held.lock.as_ref().is_some_and(|lock| lock.is_in_place()) {
            os::unlink(&storage.lock_path(&self.id))?;
        }
        KillPoint::CloseLockGone.pass();
        (held.lock, held.spill_lock) = (None, None);
        signals::unguard(&self.id);
        Ok(())
    }
}

impl Drop for Inner {
    fn drop(&mut self) {
        // What cannot be removed now is removed by the next sweep.
        let _ = self.close();
    }
}

/// The lock that says that the session lives, and where it spills.
fn new_lock(
    backend: Backend,
    id: &SessionId,
    spill: Option<&SpillDirectory>,
) -> Result<Box<dyn Lock>> {
    let note = spill.map_or(b"".as_slice(), |spill| spill.path().as_os_str().as_bytes());
    backend.storage().lock(id, note)
}

/// Refuses a reserve for which there is no room even now.
fn check_reserve(config: &Config) -> Result<()> {
    let mut room = config.backend.storage().available();
    if let Some(limit) = config.heavy_limit
        && room.as_ref().is_none_or(|room| limit < room.bytes)
    {
        room = Some(Available {
            bytes: limit,
            limit: "heavy_limit".into(),
        });
    }
    match room {
        Some(Available { bytes, limit }) if bytes < config.reserve => Err(Error::HeavyZoneFull {
            key: "the reserve".to_owned(),
            requested: config.reserve,
            available: bytes,
            limit,
        }),
        _ => Ok(()),
    }
}

fn lock_registry(moment: Fork) {
    kept::lock_for_fork(moment == Fork::Before);
    mapping::lock_for_fork(moment == Fork::Before);
}

fn forget_sessions(moment: Fork) {
    if moment == Fork::InChild {
        signals::forget_in_child();
    }
}
