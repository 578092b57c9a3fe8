//! New segments with their content: space reserved, header written, bytes copied once.

use std::panic::{AssertUnwindSafe, catch_unwind};

use arrow::array::RecordBatch;
use arrow::datatypes::{Schema, SchemaRef};
use arrow::error::ArrowError;

use crate::backend::{Access, Available, Backend, Draft};
use crate::budget::Budget;
use crate::catalog::check_key;
use crate::copy::{self, Source};
use crate::descriptor::SegmentName;
use crate::error::{Error, Result};
use crate::layout::Spec;
use crate::layout::table::{BlankColumn, ExtraCopy, TableOptions, TableSpec, TableWriter};
use crate::layout::tensor::TensorSpec;
use crate::mapping::Mapping;

/// A draft whose bytes count against a budget.
#[derive(Debug)]
pub(crate) struct Filled {
    pub(crate) draft: Box<dyn Draft>,
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
    backend: Backend,
    name: &SegmentName,
    spec: TensorSpec,
    data: Option<&[u8]>,
    budget: &Budget,
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
    let mut growing = Growing::new(backend, name, &spec.key, access, budget);
    let draft = growing.reach(header.len() as u64 + body)?;
    draft.write(0, &header)?;
    if let Some(data) = data {
        let sink = |offset: usize, bytes: &[u8]| draft.write(offset, bytes);
        copy::in_parallel(&[(header.len(), data)], &sink)?;
    }
    let draft = growing.take();
    let content = Content {
        spec: Spec::Tensor(spec),
        body_offset: header.len(),
        copies: Vec::new(),
        blanks: Vec::new(),
    };
    Ok(Filled { draft, content })
}

/// A table to be written into a segment.
pub struct NewTable<'a> {
    /// What it is called.
    pub spec: TableSpec,
    /// The schema of its batches.
    pub schema: SchemaRef,
    /// Its rows.
    pub batches: Box<dyn Iterator<Item = std::result::Result<RecordBatch, ArrowError>> + Send + 'a>,
    /// How it is written.
    pub options: TableOptions,
    /// How many bytes are planned before they are written: a stream of any length takes no more
    /// memory than these and a batch. `usize::MAX` for what is in memory anyway: then all the space
    /// is reserved before the first copy.
    pub hold: usize,
}

impl NewTable<'_> {
    /// Writes the table into a new segment, with one copy.
    pub(crate) fn fill(
        self,
        backend: Backend,
        name: &SegmentName,
        budget: &Budget,
    ) -> Result<Filled> {
        let key = self.spec.key.clone();
        guarded(&key, move || {
            let writer = TableWriter::new(self.spec, &self.schema, self.options)?;
            table(backend, name, writer, self.batches, self.hold, budget)
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

fn table(
    backend: Backend,
    name: &SegmentName,
    mut writer: TableWriter,
    batches: impl Iterator<Item = std::result::Result<RecordBatch, ArrowError>>,
    hold: usize,
    budget: &Budget,
) -> Result<Filled> {
    let key = writer.spec().key.clone();
    check_key(&key)?;
    let mut growing = Growing::new(backend, name, &key, Access::Sealed, budget);
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
    let draft = growing.take();
    Ok(Filled { draft, content })
}

/// Makes a table of `rows` zeros in columns of fixed width, to be filled in place.
pub(crate) fn blank_table(
    backend: Backend,
    name: &SegmentName,
    spec: TableSpec,
    schema: &Schema,
    rows: usize,
    budget: &Budget,
) -> Result<Filled> {
    let key = spec.key.clone();
    check_key(&key)?;
    let mut writer = TableWriter::new(spec, schema, TableOptions { views: true })?;
    let blanks = writer
        .add_blank(rows)
        .map_err(|error| of_entry(error, &key))?;
    writer.finish()?;
    let mut growing = Growing::new(backend, name, &key, Access::Sealed, budget);
    growing.reach(writer.length() as u64)?;
    growing.write(&mut writer)?;
    let content = Content {
        spec: Spec::Table(writer.spec().clone()),
        body_offset: 0,
        copies: Vec::new(),
        blanks,
    };
    let draft = growing.take();
    Ok(Filled { draft, content })
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
    backend: Backend,
    name: &'a SegmentName,
    key: &'a str,
    access: Access,
    budget: &'a Budget,
    draft: Option<Box<dyn Draft>>,
    reserved: u64,
}

impl<'a> Growing<'a> {
    fn new(
        backend: Backend,
        name: &'a SegmentName,
        key: &'a str,
        access: Access,
        budget: &'a Budget,
    ) -> Self {
        Self {
            backend,
            name,
            key,
            access,
            budget,
            draft: None,
            reserved: 0,
        }
    }

    /// Makes the draft `length` bytes long, exactly.
    fn reach(&mut self, length: u64) -> Result<&dyn Draft> {
        let more = length.saturating_sub(self.reserved);
        self.budget.reserve(self.key, more)?;
        self.reserved += more;
        let storage = self.backend.storage();
        let fits = |available: Available| more <= available.bytes;
        let room = storage.available().is_none_or(fits);
        let full = || self.backend.full(self.key, length);
        match &mut self.draft {
            _ if !room => return Err(full()),
            Some(draft) => {
                if !draft.resize(length)? {
                    return Err(full());
                }
            }
            None => {
                let made = storage.create(self.name, self.access, length, length)?;
                self.draft = Some(made.ok_or_else(full)?);
            }
        }
        self.budget.release(self.reserved - length);
        self.reserved = length;
        self.draft.as_deref().ok_or_else(full)
    }

    /// Makes it `length` bytes long, and as much longer as is worth while if there is room.
    fn reach_further(&mut self, length: u64) -> Result<()> {
        if length <= self.reserved {
            return Ok(());
        }
        let further = length.saturating_add(length / 2);
        match self.reach(further) {
            Err(Error::HeavyZoneFull { .. }) => self.reach(length).map(drop),
            reached => reached.map(drop),
        }
    }

    fn write(&self, writer: &mut TableWriter) -> Result<()> {
        let pieces = writer.take_pieces();
        let pieces: Vec<(usize, &dyn Source)> = pieces
            .iter()
            .map(|(place, source)| (*place, source.as_ref()))
            .collect();
        let Some(draft) = &self.draft else {
            unreachable!("space is reserved before it is written");
        };
        let sink = |offset: usize, bytes: &[u8]| draft.write(offset, bytes);
        copy::in_parallel(&pieces, &sink)
    }

    fn take(mut self) -> Box<dyn Draft> {
        self.reserved = 0;
        let Some(draft) = self.draft.take() else {
            unreachable!("space is reserved before the draft is taken");
        };
        draft
    }
}

impl Drop for Growing<'_> {
    fn drop(&mut self) {
        self.budget.release(self.reserved);
    }
}
