//! New segments with their content: space reserved, header written, bytes copied once.

use std::ops::Range;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::sync::{Arc, Mutex, PoisonError};

use arrow::array::RecordBatch;
use arrow::datatypes::{Schema, SchemaRef};
use arrow::error::ArrowError;

use crate::backend::{Access, Available, Draft, Place};
use crate::catalog::check_key;
use crate::copy::{self, Source};
use crate::descriptor::SegmentName;
use crate::error::{Error, Result};
use crate::kill_point::KillPoint;
use crate::layout::Spec;
use crate::layout::table::{
    BlankColumn, ExtraCopy, TableKind, TableOptions, TableSpec, TableWriter,
};
use crate::layout::tensor::TensorSpec;
use crate::mapping::Mapping;
use crate::zone::{self, Zone};

/// How much is read and written at a time when a draft moves to disk.
const MOVED_BYTES: usize = 4 << 20;

/// A draft, and what is known of it.
#[derive(Debug)]
pub(crate) struct Filled {
    pub(crate) draft: Box<dyn Draft>,
    pub(crate) place: Place,
    /// What it has reserved of the budget.
    pub(crate) reserved: u64,
    pub(crate) content: Content,
}

/// What lies in a segment, and where its data begins.
#[derive(Debug, Clone)]
pub(crate) struct Content {
    pub(crate) spec: Spec,
    pub(crate) body_offset: usize,
    /// What had to be copied besides.
    pub(crate) copies: Vec<ExtraCopy>,
    /// The columns that are filled in place.
    pub(crate) blanks: Vec<BlankColumn>,
}

impl Content {
    /// Enters what is known only now that nobody will go on filling.
    pub(crate) fn complete(&self, mapping: &Mapping) {
        if mapping.is_writable() {
            self.blanks
                .iter()
                .for_each(|column| column.complete(mapping));
        }
    }
}

/// Makes a tensor; its items are zero, or a parallel copy of `data`.
pub(crate) fn tensor(
    zone: &Zone,
    name: &SegmentName,
    spec: TensorSpec,
    data: Option<&[u8]>,
) -> Result<Filled> {
    check_key(&spec.key)?;
    let body = spec.body_bytes();
    if let Some(data) = data
        && data.len() as u64 != body
    {
        return Err(Error::LengthMismatch {
            key: spec.key.clone(),
            expected: body,
            found: data.len() as u64,
        });
    }
    let header = spec.header();
    let access = if spec.mutable {
        Access::Shared
    } else {
        Access::Sealed
    };
    let key = spec.key.clone();
    let mut growing = Growing::new(zone, name, &key, access);
    let draft = growing.reach(header.len() as u64 + body)?;
    let pieces = [
        (0, header.as_slice()),
        (header.len(), data.unwrap_or_default()),
    ];
    fill(draft, 0..draft.mapping().len(), &pieces)?;
    let content = Content {
        spec: Spec::Tensor(spec),
        body_offset: header.len(),
        copies: Vec::new(),
        blanks: Vec::new(),
    };
    Ok(growing.take(content))
}

/// Copies `pieces` to their places in `range`, the rest of which is zero.
fn fill<S: Source + ?Sized>(
    draft: &dyn Draft,
    range: Range<usize>,
    pieces: &[(usize, &S)],
) -> Result<()> {
    let gaps = copy::gaps(range, pieces);
    copy::each_in_parallel(&gaps, |gap| draft.zero(gap.clone()))?;
    let sink = |offset: usize, bytes: &[u8]| draft.write(offset, bytes);
    copy::in_parallel(pieces, &sink)
}

/// A table to be written into a segment.
pub struct NewTable<'a> {
    /// What it is called.
    pub spec: TableSpec,
    /// The schema of its batches.
    pub schema: SchemaRef,
    /// Its rows.
    pub batches: Batches<'a>,
    /// How it is written.
    pub options: TableOptions,
    /// How many bytes are planned before they are written: a stream of any length takes no more
    /// memory than these and a batch. `usize::MAX` for what is in memory anyway: then all the space
    /// is reserved before the first copy.
    pub hold: usize,
}

/// How much of a stream of batches is planned before it is written.
const HOLD_BYTES: usize = 64 << 20;

impl<'a> NewTable<'a> {
    /// A table that is called so, of batches that are made as they are written.
    pub(crate) fn of_stream(name: &str, schema: SchemaRef, batches: Batches<'a>) -> Self {
        Self {
            spec: TableSpec {
                key: name.to_owned(),
                kind: TableKind::Table,
            },
            schema,
            batches,
            options: TableOptions::default(),
            hold: HOLD_BYTES,
        }
    }

    /// Writes the table into a new segment, with one copy.
    pub(crate) fn fill(self, zone: &Zone, name: &SegmentName) -> Result<Filled> {
        let key = self.spec.key.clone();
        guarded(&key, move || {
            let writer = TableWriter::new(self.spec, &self.schema, self.options)?;
            table(zone, name, writer, self.batches, self.hold)
        })
    }
}

/// Runs what calls Arrow's code, which panics at some arrays that break its rules.
fn guarded<T>(entry: &str, work: impl FnOnce() -> Result<T>) -> Result<T> {
    catch_unwind(AssertUnwindSafe(work)).unwrap_or_else(|_| {
        Err(Error::Table {
            key: entry.to_owned(),
            reason: "Arrow's code gave up on it: is the data valid?".to_owned(),
        })
    })
}

/// A stream of batches as tables take them.
type Batches<'a> =
    Box<dyn Iterator<Item = std::result::Result<RecordBatch, ArrowError>> + Send + 'a>;

/// Has `put` write `batches`, and goes on with the panic that ended them if one did: it is their own, and
/// says nothing of Arrow's data.
pub(crate) fn with_batches<'a, T>(
    batches: impl Iterator<Item = std::result::Result<RecordBatch, ArrowError>> + Send + 'a,
    put: impl FnOnce(Batches<'a>) -> Result<T>,
) -> Result<T> {
    let panicked = Arc::new(Mutex::new(None));
    let mut batches = batches;
    let noted = Arc::clone(&panicked);
    let next = move || match catch_unwind(AssertUnwindSafe(|| batches.next())) {
        Ok(batch) => batch,
        Err(payload) => {
            *noted.lock().unwrap_or_else(PoisonError::into_inner) = Some(payload);
            Some(Err(ArrowError::ComputeError("it panicked".to_owned())))
        }
    };
    let put = put(Box::new(std::iter::from_fn(next)));
    match panicked
        .lock()
        .unwrap_or_else(PoisonError::into_inner)
        .take()
    {
        Some(payload) => resume_unwind(payload),
        None => put,
    }
}

fn table(
    zone: &Zone,
    name: &SegmentName,
    mut writer: TableWriter,
    batches: impl Iterator<Item = std::result::Result<RecordBatch, ArrowError>>,
    hold: usize,
) -> Result<Filled> {
    let key = writer.spec().key.clone();
    check_key(&key)?;
    let mut growing = Growing::new(zone, name, &key, Access::Sealed);
    let mut written = 0;
    for batch in batches {
        let batch = batch.map_err(|error| Error::Table {
            key: key.clone(),
            reason: error.to_string(),
        })?;
        writer.add(&batch).map_err(|error| of_entry(error, &key))?;
        if writer.length() - written >= hold {
            growing.reach_further(writer.length() as u64)?;
            growing.write(&mut writer)?;
            written = writer.length();
        }
    }
    writer.finish()?;
    growing.reach(writer.length() as u64)?;
    growing.write(&mut writer)?;
    let content = Content {
        spec: Spec::Table(writer.spec().clone()),
        body_offset: 0,
        copies: writer.take_copies(),
        blanks: Vec::new(),
    };
    Ok(growing.take(content))
}

/// Makes a table of `rows` zeros in columns of fixed width, to be filled in place.
pub(crate) fn blank_table(
    zone: &Zone,
    name: &SegmentName,
    spec: TableSpec,
    schema: &Schema,
    rows: usize,
) -> Result<Filled> {
    let key = spec.key.clone();
    check_key(&key)?;
    let mut writer = TableWriter::new(spec, schema, TableOptions { views: true })?;
    let blanks = writer
        .add_blank(rows)
        .map_err(|error| of_entry(error, &key))?;
    writer.finish()?;
    let mut growing = Growing::new(zone, name, &key, Access::Sealed);
    growing.reach(writer.length() as u64)?;
    growing.write(&mut writer)?;
    let content = Content {
        spec: Spec::Table(writer.spec().clone()),
        body_offset: 0,
        copies: Vec::new(),
        blanks,
    };
    Ok(growing.take(content))
}

/// The error with the entry's name, where the planning of a buffer could not give it.
fn of_entry(error: Error, entry: &str) -> Error {
    match error {
        Error::HeavyZoneFull {
            requested,
            available,
            limit,
            ..
        } => Error::HeavyZoneFull {
            key: entry.to_owned(),
            requested,
            available,
            limit,
        },
        other => other,
    }
}

/// A draft that may grow; what it has reserved is returned unless it is taken.
struct Growing<'a> {
    zone: &'a Zone,
    name: &'a SegmentName,
    key: &'a str,
    access: Access,
    place: Place,
    draft: Option<Box<dyn Draft>>,
    length: u64,
    written: usize,
    /// What counts against the budget: nothing on disk does.
    reserved: u64,
}

impl<'a> Growing<'a> {
    fn new(zone: &'a Zone, name: &'a SegmentName, key: &'a str, access: Access) -> Self {
        Self {
            zone,
            name,
            key,
            access,
            place: zone.memory(),
            draft: None,
            length: 0,
            written: 0,
            reserved: 0,
        }
    }

    /// Makes the draft `length` bytes long, exactly; on disk, if it does not fit in memory.
    fn reach(&mut self, length: u64) -> Result<&dyn Draft> {
        if let (None, Some(pool), Access::Sealed) = (&self.draft, self.zone.pool(), self.access) {
            self.draft = pool.take(self.name, self.access, length)?;
            self.length = self.draft.as_ref().map_or(0, |_| length);
        }
        match (self.reach_here(length), &self.place, self.zone.disk()) {
            (Err(Error::HeavyZoneFull { .. }), Place::Memory(_), Some(disk)) => {
                self.spill(disk, length)?;
            }
            (reached, ..) => reached?,
        }
        self.length = length;
        let Some(draft) = &self.draft else {
            unreachable!("it has just been made");
        };
        Ok(draft.as_ref())
    }

    fn reach_here(&mut self, length: u64) -> Result<()> {
        let more = length.saturating_sub(self.length);
        if let Place::Memory(_) = self.place {
            let wanted = length.saturating_sub(self.reserved);
            self.zone.budget().reserve(self.key, wanted)?;
            self.reserved += wanted;
            if let Some(pool) = self.zone.pool() {
                pool.shrink(self.zone.budget().left());
            }
        }
        let storage = self.place.storage();
        let fits = |available: Available| more <= available.bytes;
        let has_room = || Ok(storage.available().is_none_or(fits).then_some(()));
        let full = || storage.full(self.key, length);
        match &mut self.draft {
            _ if more > 0 && zone::with_room(has_room)?.is_none() => return Err(full()),
            Some(draft) => {
                if draft.mapping().len() as u64 != length && !draft.resize(length)? {
                    return Err(full());
                }
            }
            None => {
                let create = || storage.create(self.name, self.access, length, length);
                self.draft = Some(zone::with_room(create)?.ok_or_else(full)?);
            }
        }
        if let Place::Memory(_) = self.place {
            self.zone.budget().release(self.reserved - length);
            self.reserved = length;
        }
        Ok(())
    }

    /// Goes on in a file of `length` bytes, with what has been written so far.
    fn spill(&mut self, disk: Place, length: u64) -> Result<()> {
        let storage = disk.storage();
        let made = storage.create(self.name, self.access, length, length)?;
        let draft = made.ok_or_else(|| storage.full(self.key, length))?;
        if let Some(before) = self.draft.take() {
            let before = before.mapping();
            // What lies behind may be a freed segment's.
            let kept = self.written.min(draft.mapping().len());
            for offset in (0..kept).step_by(MOVED_BYTES) {
                let bytes = before.read(offset, MOVED_BYTES.min(kept - offset));
                draft.write(offset, &bytes)?;
            }
        }
        KillPoint::DraftSpilled.pass();
        self.draft = Some(draft);
        self.place = disk;
        self.zone.budget().release(self.reserved);
        self.reserved = 0;
        Ok(())
    }

    /// Makes it `length` bytes long, and as much longer as is worth while if there is room.
    fn reach_further(&mut self, length: u64) -> Result<()> {
        if length <= self.length {
            return Ok(());
        }
        let further = length.saturating_add(length / 2);
        match self.reach_here(further) {
            Ok(()) => {
                self.length = further;
                Ok(())
            }
            Err(Error::HeavyZoneFull { .. }) => self.reach(length).map(drop),
            Err(error) => Err(error),
        }
    }

    fn write(&mut self, writer: &mut TableWriter) -> Result<()> {
        let pieces = writer.take_pieces();
        let pieces: Vec<(usize, &dyn Source)> = pieces
            .iter()
            .map(|(place, source)| (*place, source.as_ref()))
            .collect();
        let Some(draft) = &self.draft else {
            unreachable!("space is reserved before it is written");
        };
        fill(draft.as_ref(), self.written..writer.length(), &pieces)?;
        self.written = writer.length();
        Ok(())
    }

    fn take(mut self, content: Content) -> Filled {
        let Some(draft) = self.draft.take() else {
            unreachable!("space is reserved before the draft is taken");
        };
        Filled {
            draft,
            place: self.place.clone(),
            reserved: std::mem::take(&mut self.reserved),
            content,
        }
    }
}

impl Drop for Growing<'_> {
    fn drop(&mut self) {
        self.zone.budget().release(self.reserved);
    }
}
