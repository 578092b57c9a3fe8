//! One dictionary for all batches of a table.
//!
//! An IPC file has a single dictionary for each field. Values keep the numbers that the first batches
//! gave them, new ones are appended: what was written already stays right.

use std::collections::HashMap;
use std::sync::Arc;

use arrow::array::{Array, ArrayData, ArrayRef, UInt64Array};
use arrow::compute::{concat, take};
use arrow::error::ArrowError;
use arrow::row::{RowConverter, SortField};

/// The values that one dictionary field has had so far.
pub(super) struct Dictionary {
    chunks: Vec<ArrayRef>,
    length: usize,
    known: Option<Known>,
}

/// Where each value is, by its bytes in arrow's row format, which are equal if the values are.
struct Known {
    converter: RowConverter,
    places: HashMap<Box<[u8]>, usize>,
}

impl Dictionary {
    pub(super) fn new(values: ArrayRef) -> Self {
        Self {
            length: values.len(),
            chunks: vec![values],
            known: None,
        }
    }

    /// How many values there are.
    pub(super) fn len(&self) -> usize {
        self.length
    }

    /// Takes the values of a further batch; their places, unless they have those of the first.
    pub(super) fn merge(&mut self, values: &ArrayRef) -> Result<Option<Vec<usize>>, ArrowError> {
        if self.begins_with(values) {
            return Ok(None);
        }
        let first_new = self.length;
        let Some(known) = self.known()? else {
            // Values without an order to compare them by: they are kept as often as they come.
            self.append(Arc::clone(values));
            return Ok(Some((first_new..self.length).collect()));
        };
        let rows = known.converter.convert_columns(&[Arc::clone(values)])?;
        let mut added = Vec::new();
        let mut places = Vec::with_capacity(values.len());
        for (number, row) in rows.iter().enumerate() {
            let place = known.places.entry(row.as_ref().into());
            places.push(*place.or_insert_with(|| {
                added.push(number as u64);
                first_new + added.len() - 1
            }));
        }
        if !added.is_empty() {
            self.append(take(values, &UInt64Array::from(added), None)?);
        }
        Ok(Some(places))
    }

    /// All the values.
    pub(super) fn values(&self) -> Result<ArrayRef, ArrowError> {
        match &*self.chunks {
            [single] => Ok(Arc::clone(single)),
            chunks => concat(&chunks.iter().map(AsRef::as_ref).collect::<Vec<_>>()),
        }
    }

    fn append(&mut self, values: ArrayRef) {
        self.length += values.len();
        self.chunks.push(values);
    }

    fn begins_with(&self, values: &ArrayRef) -> bool {
        let (first, values) = (self.chunks[0].to_data(), values.to_data());
        values.is_empty()
            || ArrayData::ptr_eq(&first, &values)
            || (values.len() <= first.len() && first.slice(0, values.len()) == values)
    }

    fn known(&mut self) -> Result<Option<&mut Known>, ArrowError> {
        if self.known.is_none() {
            let first = &self.chunks[0];
            let field = SortField::new(first.data_type().clone());
            if !RowConverter::supports_fields(std::slice::from_ref(&field)) {
                return Ok(None);
            }
            let converter = RowConverter::new(vec![field])?;
            let rows = converter.convert_columns(&[Arc::clone(first)])?;
            let mut places = HashMap::new();
            for (place, row) in rows.iter().enumerate() {
                places.entry(row.as_ref().into()).or_insert(place);
            }
            self.known = Some(Known { converter, places });
        }
        Ok(self.known.as_mut())
    }
}
