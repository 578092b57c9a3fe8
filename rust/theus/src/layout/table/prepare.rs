//! Makes batches ready for arrow-ipc's encoder, which writes most arrays as what they show.
//!
//! What it does not do is done here, in the arrays that need it: dictionaries get one set of values
//! for all batches, views become large strings and binaries or lose what they do not show, and so do
//! list views and dense unions. Keys, offsets and values that this changes are computed while they
//! are copied.

#![expect(unsafe_code, reason = "arrays are put together from checked parts")]

use std::sync::Arc;

use arrow::array::{
    Array, ArrayData, ArrayDataBuilder, ArrayRef, AsArray, BinaryViewArray, GenericByteViewArray,
    GenericListArray, GenericListViewArray, OffsetSizeTrait, StringViewArray, UInt64Array,
    UnionArray, downcast_integer, make_array, new_empty_array,
};
use arrow::buffer::{Buffer, ScalarBuffer};
use arrow::compute::{cast, take};
use arrow::datatypes::{
    ArrowNativeType, ByteViewType, DataType, Field, UInt64Type, UnionFields, UnionMode,
};
use arrow::error::ArrowError;

use super::ExtraCopy;
use super::computed::{Computed, Remapped, Straightened, ViewOffsets, ViewValues};
use super::dictionary::Dictionary;
use super::types::{children, encoded, has_dictionary, needs_preparing};
use crate::error::{Error, Result};

/// Prepares the columns of all batches of one table.
#[derive(Default)]
pub(super) struct Preparer {
    pub(super) computed: Computed,
    pub(super) copies: Vec<ExtraCopy>,
    dictionaries: Vec<Dictionary>,
    /// Which dictionary comes next: they come in the same order in each batch.
    next: usize,
    column: String,
}

impl Preparer {
    /// Begins the next batch.
    pub(super) fn begin(&mut self) {
        self.next = 0;
        self.computed.forget();
    }

    /// The column for the encoder; `field` is as [`stored`].
    pub(super) fn column(&mut self, array: &ArrayRef, field: &Field) -> Result<ArrayRef> {
        field.name().clone_into(&mut self.column);
        self.prepare(array, field)
    }

    /// A column without rows, with the values of its dictionaries.
    pub(super) fn empty_column(&mut self, field: &Field) -> Result<ArrayRef> {
        field.name().clone_into(&mut self.column);
        Ok(make_array(self.empty(field)?))
    }

    fn prepare(&mut self, array: &ArrayRef, field: &Field) -> Result<ArrayRef> {
        if !needs_preparing(array.data_type()) {
            return Ok(Arc::clone(array));
        }
        let array = array.as_ref();
        match (array.data_type(), field.data_type()) {
            (DataType::Dictionary(..), DataType::Dictionary(_, values)) => self.keys(array, values),
            (DataType::Utf8View, DataType::LargeUtf8) => {
                self.straighten(array.as_string_view(), field)
            }
            (DataType::BinaryView, DataType::LargeBinary) => {
                self.straighten(array.as_binary_view(), field)
            }
            (DataType::Utf8View, _) => Ok(self.gather_strings(array.as_string_view())),
            (DataType::BinaryView, _) => Ok(self.gather_binaries(array.as_binary_view())),
            (DataType::List(_), DataType::List(item)) => self.list::<i32>(array, field, item),
            (DataType::LargeList(_), DataType::LargeList(item)) => {
                self.list::<i64>(array, field, item)
            }
            (DataType::Map(..), DataType::Map(entries, _)) => self.map(array, field, entries),
            (DataType::ListView(_), DataType::ListView(item)) => {
                self.list_view::<i32>(array, field, item)
            }
            (DataType::LargeListView(_), DataType::LargeListView(item)) => {
                self.list_view::<i64>(array, field, item)
            }
            (DataType::FixedSizeList(..), DataType::FixedSizeList(item, _)) => {
                let items = self.prepare(array.as_fixed_size_list().values(), item)?;
                Ok(rebuild(array, field, &[items]))
            }
            (DataType::Struct(_), DataType::Struct(fields)) => {
                let columns = array.as_struct().columns().iter();
                let columns = columns
                    .zip(fields)
                    .map(|(column, field)| self.prepare(column, field));
                Ok(rebuild(array, field, &columns.collect::<Result<Vec<_>>>()?))
            }
            (DataType::Union(..), DataType::Union(fields, mode)) => {
                self.union(array.as_union(), field, fields, *mode)
            }
            (DataType::RunEndEncoded(..), DataType::RunEndEncoded(_, values)) => {
                self.runs(array, field, values)
            }
            (found, wanted) => Err(self.refused(&ArrowError::SchemaError(format!(
                "a batch has {found} where the schema has {wanted}"
            )))),
        }
    }

    // --- dictionaries ---

    fn keys(&mut self, array: &dyn Array, stored: &DataType) -> Result<ArrayRef> {
        let dictionary = array.as_any_dictionary();
        let values = match dictionary.values() {
            values if values.data_type() == stored => Arc::clone(values),
            values => cast(values, stored).map_err(|error| self.refused(&error))?,
        };
        let number = self.next;
        self.next += 1;
        let places = if let Some(known) = self.dictionaries.get_mut(number) {
            let merged = known.merge(&values);
            merged.map_err(|error| self.refused(&error))?
        } else {
            self.dictionaries.push(Dictionary::new(values));
            None
        };
        let keys = dictionary.keys();
        let Some(places) = places else {
            return Ok(make_array(keys.to_data()));
        };
        self.note(
            keys.get_buffer_memory_size(),
            "its dictionary is not that of other chunks",
        );
        macro_rules! remap {
            ($key:ty) => {{
                let keys = keys.as_primitive::<$key>();
                self.remap(&keys.to_data(), keys.values().clone(), &places, number)
            }};
        }
        downcast_integer! {
            keys.data_type() => (remap),
            other => Err(self.refused(&ArrowError::SchemaError(format!("dictionary keys of type {other}"))))
        }
    }

    fn remap<K: ArrowNativeType + TryFrom<usize>>(
        &mut self,
        data: &ArrayData,
        keys: ScalarBuffer<K>,
        places: &[usize],
        number: usize,
    ) -> Result<ArrayRef> {
        let numbered: Option<Vec<K>> = places
            .iter()
            .map(|&place| K::try_from(place).ok())
            .collect();
        let Some(places) = numbered else {
            return Err(Error::DictionaryOverflow {
                column: self.column.clone(),
                values: self.dictionaries[number].len(),
                keys: data.data_type().to_string(),
            });
        };
        let places = places.into();
        let source = Arc::new(Remapped { keys, places });
        let buffer = self.computed.stand_in(source, K::default())?;
        let built = ArrayDataBuilder::new(data.data_type().clone())
            .len(data.len())
            .nulls(data.nulls().cloned())
            .add_buffer(buffer);
        Ok(build(built))
    }

    fn empty(&mut self, field: &Field) -> Result<ArrayData> {
        let data = new_empty_array(field.data_type()).to_data();
        if let DataType::Dictionary(_, values) = field.data_type() {
            let number = self.next;
            self.next += 1;
            let values = match self.dictionaries.get(number) {
                Some(known) => known.values().map_err(|error| self.refused(&error))?,
                None => new_empty_array(values),
            };
            let built = data.into_builder().child_data(vec![values.to_data()]);
            return Ok(build(built).to_data());
        }
        let fields = children(field.data_type());
        let filled = fields.iter().zip(data.child_data()).map(|(field, child)| {
            if has_dictionary(field.data_type()) {
                self.empty(field)
            } else {
                Ok(child.clone())
            }
        });
        let filled = filled.collect::<Result<_>>()?;
        Ok(build(data.into_builder().child_data(filled)).to_data())
    }

    // --- views ---

    fn straighten<T: ByteViewType>(
        &mut self,
        array: &GenericByteViewArray<T>,
        field: &Field,
    ) -> Result<ArrayRef> {
        let values = Arc::new(Straightened::new(array));
        let end = values.bytes().cast_signed();
        let offsets = Arc::new(ViewOffsets(Arc::clone(&values)));
        let offsets = self.computed.stand_in(offsets, end)?;
        let values = self.computed.stand_in(Arc::new(ViewValues(values)), 0_u8)?;
        let built = ArrayDataBuilder::new(field.data_type().clone())
            .len(array.len())
            .nulls(array.nulls().cloned())
            .buffers(vec![offsets, values]);
        Ok(build(built))
    }

    fn gather_strings(&mut self, array: &StringViewArray) -> ArrayRef {
        let gathered = self.shows_little(array).then(|| array.gc());
        Arc::new(gathered.unwrap_or_else(|| array.clone()))
    }

    fn gather_binaries(&mut self, array: &BinaryViewArray) -> ArrayRef {
        let gathered = self.shows_little(array).then(|| array.gc());
        Arc::new(gathered.unwrap_or_else(|| array.clone()))
    }

    fn shows_little<T: ByteViewType>(&mut self, array: &GenericByteViewArray<T>) -> bool {
        let held: usize = array.data_buffers().iter().map(Buffer::len).sum();
        let shown = array.total_buffer_bytes_used();
        let little = 2 * shown < held;
        if little {
            self.note(shown, "it shows less than half of its buffers");
        }
        little
    }

    // --- lists ---

    fn list<O: OffsetSizeTrait>(
        &mut self,
        array: &dyn Array,
        field: &Field,
        item: &Field,
    ) -> Result<ArrayRef> {
        let list: &GenericListArray<O> = array.as_list();
        self.items(array, field, item, list.offsets().inner(), list.values())
    }

    fn map(&mut self, array: &dyn Array, field: &Field, entries: &Field) -> Result<ArrayRef> {
        let map = array.as_map();
        let values: ArrayRef = Arc::new(map.entries().clone());
        self.items(array, field, entries, map.offsets().inner(), &values)
    }

    fn items<O: OffsetSizeTrait>(
        &mut self,
        array: &dyn Array,
        field: &Field,
        item: &Field,
        offsets: &ScalarBuffer<O>,
        values: &ArrayRef,
    ) -> Result<ArrayRef> {
        let (first, last) = (offsets[0], offsets[offsets.len() - 1]);
        let shown = values.slice(first.as_usize(), (last - first).as_usize());
        let shown = self.prepare(&shown, item)?;
        let offsets = if first == O::zero() {
            offsets.inner().clone()
        } else {
            offsets.iter().map(|&offset| offset - first).collect()
        };
        let built = ArrayDataBuilder::new(encoded(field).data_type().clone())
            .len(array.len())
            .nulls(array.nulls().cloned())
            .add_buffer(offsets)
            .add_child_data(shown.to_data());
        Ok(build(built))
    }

    fn list_view<O: OffsetSizeTrait>(
        &mut self,
        array: &dyn Array,
        field: &Field,
        item: &Field,
    ) -> Result<ArrayRef> {
        let list: &GenericListViewArray<O> = array.as_list_view();
        let rows: Vec<(usize, usize)> = (0..list.len())
            .map(|row| {
                (
                    list.value_offset(row).as_usize(),
                    list.value_size(row).as_usize(),
                )
            })
            .enumerate()
            .map(|(row, place)| if list.is_valid(row) { place } else { (0, 0) })
            .collect();
        let shown = || rows.iter().filter(|(_, size)| *size > 0);
        let first = shown().map(|(start, _)| *start).min().unwrap_or(0);
        let end = shown().map(|(start, size)| start + size).max().unwrap_or(0);
        let total: usize = shown().map(|(_, size)| size).sum();
        let (starts, values): (Vec<usize>, ArrayRef) = if 2 * total < end - first {
            let indices = shown().flat_map(|&(start, size)| start as u64..(start + size) as u64);
            let indices = UInt64Array::from_iter_values(indices);
            let gathered =
                take(list.values(), &indices, None).map_err(|error| self.refused(&error))?;
            self.note(
                gathered.get_buffer_memory_size(),
                "it shows less than half of its items",
            );
            let mut next = 0;
            let start = |&(_, size): &(usize, usize)| {
                next += size;
                next - size
            };
            (rows.iter().map(start).collect(), gathered)
        } else {
            let start = |&(start, size): &(usize, usize)| if size > 0 { start - first } else { 0 };
            let starts = rows.iter().map(start).collect();
            (starts, list.values().slice(first, end - first))
        };
        let values = self.prepare(&values, item)?;
        let starts: Buffer = starts.into_iter().map(O::usize_as).collect();
        let sizes: Buffer = rows.iter().map(|(_, size)| O::usize_as(*size)).collect();
        let built = ArrayDataBuilder::new(encoded(field).data_type().clone())
            .len(list.len())
            .nulls(list.nulls().cloned())
            .buffers(vec![starts, sizes])
            .add_child_data(values.to_data());
        Ok(build(built))
    }

    // --- unions and runs ---

    fn union(
        &mut self,
        array: &UnionArray,
        field: &Field,
        fields: &UnionFields,
        mode: UnionMode,
    ) -> Result<ArrayRef> {
        let shown = match (mode, array.offsets()) {
            (UnionMode::Dense, Some(offsets)) => Shown::of(array, offsets),
            _ => Shown::default(),
        };
        let mut values = Vec::with_capacity(fields.len());
        for (id, field) in fields.iter() {
            let child = array.child(id);
            let child = match (mode, shown.range(id)) {
                (UnionMode::Sparse, _) => Arc::clone(child),
                (UnionMode::Dense, (start, end)) => child.slice(start, end - start),
            };
            values.push(self.prepare(&child, field)?.to_data());
        }
        let mut buffers = vec![array.type_ids().inner().clone()];
        if let (UnionMode::Dense, Some(offsets)) = (mode, array.offsets()) {
            let places = array.type_ids().iter().zip(offsets.iter());
            let rebased = places.map(|(&id, &offset)| {
                offset - i32::try_from(shown.range(id).0).unwrap_or(i32::MAX)
            });
            buffers.push(rebased.collect());
        }
        let built = ArrayDataBuilder::new(encoded(field).data_type().clone())
            .len(array.len())
            .buffers(buffers)
            .child_data(values);
        Ok(build(built))
    }

    fn runs(&mut self, array: &dyn Array, field: &Field, values: &Field) -> Result<ArrayRef> {
        let data = array.to_data();
        if data.is_empty() {
            return Ok(new_empty_array(encoded(field).data_type()));
        }
        let ends = make_array(data.child_data()[0].clone());
        let held = make_array(data.child_data()[1].clone());
        // The encoder would cut the values to what a slice shows, and a stand-in cannot be cut.
        let shown = shown_runs(&ends, &held, data.offset(), data.len());
        let (ends, held) = shown.map_err(|error| self.refused(&error))?;
        let held = self.prepare(&held, values)?;
        let built = ArrayDataBuilder::new(encoded(field).data_type().clone())
            .len(data.len())
            .child_data(vec![ends.to_data(), held.to_data()]);
        Ok(build(built))
    }

    // --- inside ---

    fn note(&mut self, bytes: usize, reason: &'static str) {
        let (column, bytes) = (self.column.clone(), bytes as u64);
        self.copies.push(ExtraCopy {
            column,
            bytes,
            reason,
        });
    }

    fn refused(&self, error: &ArrowError) -> Error {
        Error::Column {
            column: self.column.clone(),
            reason: error.to_string(),
        }
    }
}

/// The ends and values of the runs that a slice of `length` rows from `offset` on shows, its ends
/// counted from its own first row.
fn shown_runs(
    ends: &ArrayRef,
    values: &ArrayRef,
    offset: usize,
    length: usize,
) -> std::result::Result<(ArrayRef, ArrayRef), ArrowError> {
    let wide = cast(ends, &DataType::UInt64)?;
    let wide = wide.as_primitive::<UInt64Type>().values();
    let (offset, end) = (offset as u64, (offset + length) as u64);
    let first = wide.partition_point(|&run| run <= offset);
    let last = (wide.partition_point(|&run| run < end) + 1).min(wide.len());
    let shown = wide[first..last].iter().map(|&run| run.min(end) - offset);
    let shown: ArrayRef = Arc::new(shown.collect::<UInt64Array>());
    Ok((
        cast(&shown, ends.data_type())?,
        values.slice(first, last - first),
    ))
}

/// Which items of its children a dense union shows, by type id: first and end.
struct Shown([(usize, usize); 128]);

impl Default for Shown {
    fn default() -> Self {
        Self([(0, 0); 128])
    }
}

impl Shown {
    fn of(array: &UnionArray, offsets: &[i32]) -> Self {
        let mut shown = Self::default();
        for (&id, &offset) in array.type_ids().iter().zip(offsets) {
            let (first, end) = &mut shown.0[id.as_usize()];
            let offset = offset.as_usize();
            if *end == 0 {
                *first = offset;
            }
            *first = offset.min(*first);
            *end = (offset + 1).max(*end);
        }
        shown
    }

    fn range(&self, id: i8) -> (usize, usize) {
        self.0[id.as_usize()]
    }
}

/// `array` with other children, of the same lengths.
fn rebuild(array: &dyn Array, field: &Field, children: &[ArrayRef]) -> ArrayRef {
    let children = children.iter().map(Array::to_data).collect();
    let built = array.to_data().into_builder();
    let data_type = encoded(field).data_type().clone();
    build(built.data_type(data_type).child_data(children))
}

fn build(built: ArrayDataBuilder) -> ArrayRef {
    // SAFETY: the parts are those of an array that was valid, or were made from it to be so. What
    // stands in for bytes to be computed is only handed to the encoder, which looks at the ends of
    // offsets alone, and those are there.
    make_array(unsafe { built.build_unchecked() })
}
