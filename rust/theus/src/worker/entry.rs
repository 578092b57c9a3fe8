//! Entries as tasks see them.

#![expect(
    unsafe_code,
    reason = "values may be taken as they are, by who says so"
)]

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};

use arrow::array::RecordBatch;
use arrow::datatypes::SchemaRef;

use super::descriptor::{Descriptor, Part, View};
use super::value::Handle;
use crate::descriptor::{SegmentName, SessionId};
use crate::error::{Error, Result};
use crate::segment::Segment;
use crate::tensor::{Element, Place, Tensor, is_dtype_of};

/// An entry of the heavy zone, or a part of one, over the very bytes that its maker wrote. What is made
/// of it stays valid for as long as it is held, also when the entry is replaced or freed.
#[derive(Debug, Clone)]
pub struct Entry {
    segment: Arc<Segment>,
    descriptor: Arc<Descriptor>,
    task: u64,
}

impl Entry {
    /// The name under which the state, or the input, has it.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.descriptor.key
    }

    /// What it is: `tensor`, `table`, `array` or `chunked_array`.
    #[must_use]
    pub fn kind(&self) -> &str {
        &self.descriptor.kind
    }

    /// The tensor, without a copy.
    ///
    /// # Errors
    /// [`Error::DtypeMismatch`] if its items are not `T`s, [`Error::Mutable`] if the owner goes on writing
    /// it.
    pub fn tensor<T: Element>(&self) -> Result<Tensor<T>> {
        let Some(view) = &self.descriptor.view else {
            return self.segment.tensor();
        };
        let dtype = view.dtype.as_str();
        if !dtype.is_some_and(is_dtype_of::<T>) {
            return Err(Error::DtypeMismatch {
                key: self.descriptor.key.clone(),
                expected: T::TYPE.name(),
                found: format!("a tensor of numpy's {}", view.dtype),
            });
        }
        let View {
            offset,
            shape,
            strides,
            ..
        } = view.clone();
        self.segment.tensor_at(Place {
            start: offset,
            shape,
            strides,
        })
    }

    /// The record batches of a table or array, without a copy.
    ///
    /// Their values are looked at first, offsets, keys and UTF-8, all of the segment and once: this
    /// takes a time for each row the first time in this process, later one for each column.
    ///
    /// # Errors
    /// [`Error::NotATable`], or [`Error::CorruptSegment`].
    pub fn batches(&self) -> Result<Vec<RecordBatch>> {
        self.cut(self.segment.batches()?)
    }

    /// As [`batches`](Self::batches), without looking at what the values say.
    ///
    /// # Errors
    /// As of [`batches`](Self::batches).
    ///
    /// # Safety
    /// As of [`Segment::batches_trusted`]: whoever put the entry has to be trusted to have put valid data.
    pub unsafe fn batches_trusted(&self) -> Result<Vec<RecordBatch>> {
        // SAFETY: the caller's.
        self.cut(unsafe { self.segment.batches_trusted() }?)
    }

    fn cut(&self, batches: Vec<RecordBatch>) -> Result<Vec<RecordBatch>> {
        match &self.descriptor.part {
            None => Ok(batches),
            Some(part) => cut(&batches, part).map_err(|reason| corrupt(&self.descriptor, reason)),
        }
    }

    /// The schema of the record batches.
    ///
    /// # Errors
    /// As of [`batches`](Self::batches).
    pub fn schema(&self) -> Result<SchemaRef> {
        let schema = self.segment.schema()?;
        match &self.descriptor.part {
            None => Ok(schema),
            Some(part) => match schema.project(&part.columns) {
                Ok(schema) => Ok(Arc::new(schema)),
                Err(error) => Err(corrupt(&self.descriptor, error.to_string())),
            },
        }
    }

    /// The handle by which the task's result refers to it.
    #[must_use]
    pub fn handle(&self) -> Handle {
        Handle::of_entry(Arc::clone(&self.descriptor), self.task)
    }

    /// The segment that it is, or is a part of.
    #[must_use]
    pub fn segment(&self) -> &Arc<Segment> {
        &self.segment
    }
}

fn corrupt(descriptor: &Descriptor, reason: String) -> Error {
    Error::CorruptSegment {
        segment: descriptor.segment.clone(),
        reason,
    }
}

/// These columns and rows of a table.
fn cut(batches: &[RecordBatch], part: &Part) -> std::result::Result<Vec<RecordBatch>, String> {
    let (mut skip, mut left) = (part.start, part.length);
    let mut found = Vec::new();
    for batch in batches {
        let rows = batch.num_rows();
        let (start, length) = (skip.min(rows), left.min(rows - skip.min(rows)));
        (skip, left) = (skip - start, left - length);
        if length > 0 {
            let columns = batch.project(&part.columns);
            let columns = columns.map_err(|error| error.to_string())?;
            found.push(columns.slice(start, length));
        }
    }
    if left > 0 {
        return Err(format!("it lacks {left} of the rows that are to be shown"));
    }
    Ok(found)
}

/// The segments that are mapped here, until their owner releases them.
#[derive(Debug)]
pub(super) struct Segments {
    session: SessionId,
    mapped: Mutex<HashMap<u64, Arc<Segment>>>,
}

impl Segments {
    pub(super) fn new(session: SessionId) -> Self {
        Self {
            session,
            mapped: Mutex::default(),
        }
    }

    /// Maps the segment of an entry, once.
    pub(super) fn open(&self, descriptor: &Arc<Descriptor>, task: u64) -> Result<Entry> {
        let name: SegmentName = descriptor.segment.parse()?;
        if name.session != self.session {
            return Err(corrupt(descriptor, "it is another session's".to_owned()));
        }
        let mut mapped = self.mapped.lock().unwrap_or_else(PoisonError::into_inner);
        let segment = if let Some(segment) = mapped.get(&name.number) {
            Arc::clone(segment)
        } else {
            let segment = Arc::new(Segment::find_promised(&name)?);
            mapped.insert(name.number, Arc::clone(&segment));
            segment
        };
        if segment.length() as u64 != descriptor.length {
            let reason = format!(
                "it has {} bytes, not {}",
                segment.length(),
                descriptor.length
            );
            return Err(corrupt(descriptor, reason));
        }
        Ok(Entry {
            segment,
            descriptor: Arc::clone(descriptor),
            task,
        })
    }

    /// Lets go of segments that nobody will ask for again.
    pub(super) fn release(&self, numbers: impl Iterator<Item = u64>) {
        let mut mapped = self.mapped.lock().unwrap_or_else(PoisonError::into_inner);
        for number in numbers {
            mapped.remove(&number);
        }
    }
}

#[cfg(test)]
mod tests {
    use arrow::array::{ArrayRef, AsArray, Int64Array};
    use arrow::datatypes::Int64Type;

    use super::*;

    fn batches() -> Vec<RecordBatch> {
        let column = |values: std::ops::Range<i64>| -> ArrayRef {
            Arc::new(Int64Array::from_iter_values(values))
        };
        let batch = |a, b| [("a", column(a)), ("b", column(b))];
        vec![
            RecordBatch::try_from_iter(batch(0..3, 10..13)).unwrap(),
            RecordBatch::try_from_iter(batch(3..5, 13..15)).unwrap(),
        ]
    }

    #[test]
    fn a_part_of_a_table_has_its_rows_and_columns_and_no_others() {
        let batches = batches();
        for start in 0..=5 {
            for length in 0..=5 - start {
                let columns = vec![1];
                let part = Part {
                    columns,
                    start,
                    length,
                    kind: None,
                };
                let found = cut(&batches, &part).unwrap();
                let rows = found.iter().flat_map(|batch| {
                    assert_eq!(batch.num_columns(), 1);
                    batch
                        .column(0)
                        .as_primitive::<Int64Type>()
                        .values()
                        .to_vec()
                });
                let expected = (10..15).skip(start).take(length);
                assert!(rows.eq(expected), "{part:?}");
            }
        }
    }

    #[test]
    fn a_part_that_a_table_does_not_have_is_refused() {
        let part = |columns, start, length| Part {
            columns,
            start,
            length,
            kind: None,
        };
        for part in [
            part(vec![2], 0, 1),
            part(vec![0], 0, 6),
            part(vec![0], 5, 1),
            part(vec![0], usize::MAX, usize::MAX),
        ] {
            assert!(cut(&batches(), &part).is_err(), "{part:?}");
        }
    }
}
