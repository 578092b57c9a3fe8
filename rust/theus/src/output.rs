//! What a task makes in place for its result: a segment without a name, which the owner names.
//!
//! Workers never create, rename or unlink a name. Whoever dies at whatever moment, the kernel frees
//! what has none.

use std::os::fd::OwnedFd;
use std::sync::{Arc, Mutex, PoisonError};

use arrow::datatypes::Schema;

use crate::backend::{Draft, Place};
use crate::budget::Budget;
use crate::descriptor::SegmentName;
use crate::error::{Error, Result};
use crate::fill::{self, Content, Filled, NewTable};
use crate::kill_point::KillPoint;
use crate::layout::Spec;
use crate::layout::table::{BlankColumn, ExtraCopy, TableSpec};
use crate::layout::tensor::TensorSpec;
use crate::mapping::Mapping;
use crate::os;
use crate::zone::Zone;

/// An entry that a worker writes in shared memory, reserved from the session's budget.
#[derive(Debug)]
pub struct Output {
    content: Content,
    place: Place,
    reserved: u64,
    mapping: Arc<Mapping>,
    stage: Mutex<Stage>,
    budget: Arc<Budget>,
    generation: u64,
}

#[derive(Debug)]
enum Stage {
    Draft(Box<dyn Draft>),
    /// Nobody can write it any more; `Some` until it is sent.
    Closed(Option<OwnedFd>),
}

impl Output {
    /// Reserves a tensor and writes its header; the items are zero, or a parallel copy of `data`.
    ///
    /// # Errors
    /// [`Error::HeavyZoneFull`], [`Error::KeyTooLong`], [`Error::LengthMismatch`] or [`Error::Os`].
    pub fn create(zone: &Zone, spec: TensorSpec, data: Option<&[u8]>) -> Result<Self> {
        Self::new(zone, |name| fill::tensor(zone, name, spec, data))
    }

    /// Writes a table of `batches`, with one copy. See [`Session::put`](crate::Session::create_table).
    ///
    /// # Errors
    /// As of [`Session::put`](crate::Session::create_table).
    pub fn put(zone: &Zone, table: NewTable<'_>) -> Result<Self> {
        Self::new(zone, |name| table.fill(zone, name))
    }

    /// Lays out a table of `rows` zeros. See [`Session::alloc_table`](crate::Session::alloc_table).
    ///
    /// # Errors
    /// As of [`Session::alloc_table`](crate::Session::alloc_table).
    pub fn alloc_table(zone: &Zone, spec: TableSpec, schema: &Schema, rows: usize) -> Result<Self> {
        Self::new(zone, |name| {
            fill::blank_table(zone, name, spec, schema, rows)
        })
    }

    fn new(zone: &Zone, make: impl FnOnce(&SegmentName) -> Result<Filled>) -> Result<Self> {
        os::watch_forks();
        let generation = os::fork_generation();
        // A name for the error messages only: number 0 is the catalog's.
        let Filled {
            draft,
            place,
            reserved,
            content,
        } = make(&zone.session().segment(0))?;
        Ok(Self {
            content,
            place,
            reserved,
            mapping: Arc::clone(draft.mapping()),
            stage: Mutex::new(Stage::Draft(draft)),
            budget: Arc::clone(zone.budget()),
            generation,
        })
    }

    /// Ends all writing that reaches others, and returns the descriptor for the owner's
    /// [`adopt`](crate::Session::adopt); from then on the bytes count as the owner's to release.
    /// What is written later stays in this process.
    ///
    /// # Errors
    /// [`Error::HeavyZoneFull`] if a fork made a copy necessary and it does not fit,
    /// [`Error::HandedOver`] at a second call, or [`Error::Os`].
    pub fn hand_over(&self) -> Result<OwnedFd> {
        let mut stage = self.stage.lock().unwrap_or_else(PoisonError::into_inner);
        if let Stage::Draft(draft) = &*stage {
            let length = self.length() as u64;
            let full = || self.place.storage().full(self.spec().key(), length);
            self.complete();
            let file = draft.hand_over()?.ok_or_else(full)?;
            *stage = Stage::Closed(Some(file));
            KillPoint::OutputClosed.pass();
        }
        let Stage::Closed(file) = &mut *stage else {
            unreachable!("a draft has just been closed");
        };
        file.take().ok_or_else(|| Error::HandedOver {
            key: self.spec().key().to_owned(),
        })
    }

    /// Enters what is known only when nobody goes on filling: the numbers of a table's nulls.
    pub fn complete(&self) {
        self.content.complete(&self.mapping);
    }

    /// The columns of a table that is filled in place.
    #[must_use]
    pub fn blanks(&self) -> &[BlankColumn] {
        &self.content.blanks
    }

    /// The bytes, writable until they are handed over.
    #[must_use]
    pub fn mapping(&self) -> &Arc<Mapping> {
        &self.mapping
    }

    /// What lies in it.
    #[must_use]
    pub fn spec(&self) -> &Spec {
        &self.content.spec
    }

    /// Where a tensor's items begin.
    #[must_use]
    pub fn body_offset(&self) -> usize {
        self.content.body_offset
    }

    /// The copies that writing a table made besides the one into the segment.
    #[must_use]
    pub fn extra_copies(&self) -> &[ExtraCopy] {
        &self.content.copies
    }

    /// The length of the whole segment in bytes.
    #[must_use]
    pub fn length(&self) -> usize {
        self.mapping.len()
    }
}

impl Drop for Output {
    fn drop(&mut self) {
        let stage = self.stage.get_mut().unwrap_or_else(PoisonError::into_inner);
        let given_away = matches!(stage, Stage::Closed(None));
        if !given_away && self.generation == os::fork_generation() {
            self.budget.release(self.reserved);
        }
    }
}
