//! Buffers whose bytes only come to be while they are copied into the segment.
//!
//! The encoder plans with stand-ins: ranges of the right length that are never touched, so that they
//! take no memory. When the plan is carried out, a stand-in's address tells what to write instead.

#![expect(unsafe_code, reason = "a stand-in is a raw range with an owner")]

use std::collections::HashMap;
use std::ops::Range;
use std::ptr::NonNull;
use std::sync::Arc;

use arrow::array::{Array, ByteView, GenericByteViewArray};
use arrow::buffer::{Buffer, MutableBuffer, NullBuffer, ScalarBuffer};
use arrow::datatypes::{ArrowNativeType, ByteViewType, ToByteSlice};

use crate::copy::{CHUNK_BYTES, Sink, Source, parts_of};
use crate::error::{Error, Result};
use crate::mapping::Mapping;

/// What the stand-ins of one table stand for.
#[derive(Default)]
pub(super) struct Computed {
    sources: HashMap<usize, Arc<dyn Source>>,
}

impl Computed {
    /// A buffer to plan with, zero but for `end` as its last item.
    pub(super) fn stand_in<T: ArrowNativeType>(
        &mut self,
        source: Arc<dyn Source>,
        end: T,
    ) -> Result<Buffer> {
        let length = source.length();
        if length < size_of::<T>() {
            return Ok(MutableBuffer::new(0).into()); // aligned for every type
        }
        let mapping = Mapping::anonymous(length).map_err(|_| Error::HeavyZoneFull {
            key: "a table's buffer".to_owned(),
            requested: length as u64,
            available: 0,
            limit: "the address space".into(),
        })?;
        mapping.write(length - size_of::<T>(), [end].to_byte_slice());
        let address = mapping.address();
        let Some(start) = NonNull::new(mapping.as_mut_ptr()) else {
            unreachable!("a mapping is never at zero");
        };
        self.sources.insert(address, source);
        // SAFETY: the range is the mapping's, which the buffer keeps, and nobody writes it any more.
        Ok(unsafe { Buffer::from_custom_allocation(start, length, Arc::new(mapping)) })
    }

    /// Forgets all: the plan has what it needs, and other buffers may come to lie at the addresses.
    pub(super) fn forget(&mut self) {
        self.sources.clear();
    }

    /// What `buffer` stands for, if it is a stand-in or its beginning.
    pub(super) fn behind(&self, buffer: &Buffer) -> Option<Arc<dyn Source>> {
        self.sources.get(&buffer.as_ptr().addr()).cloned()
    }
}

/// Dictionary keys that get other numbers.
pub(super) struct Remapped<K: ArrowNativeType> {
    pub(super) keys: ScalarBuffer<K>,
    pub(super) places: Arc<[K]>,
}

impl<K: ArrowNativeType> Source for Remapped<K> {
    fn length(&self) -> usize {
        size_of_val(&*self.keys)
    }

    fn parts(&self) -> Vec<Range<usize>> {
        parts_of(self.keys.len(), CHUNK_BYTES / size_of::<K>())
    }

    fn write(&self, part: Range<usize>, sink: &Sink<'_>) -> Result<()> {
        let place = part.start * size_of::<K>();
        // What stands where there is no value may be any number.
        let remapped = self.keys[part].iter().map(|key| {
            let place = self.places.get(key.as_usize());
            place.copied().unwrap_or_default()
        });
        sink(place, remapped.collect::<Vec<K>>().to_byte_slice())
    }
}

/// The values of a view array one after the other, as a large string or binary array has them.
pub(super) struct Straightened {
    views: ScalarBuffer<u128>,
    buffers: Vec<Buffer>,
    nulls: Option<NullBuffer>,
    /// Rows to begin a part with, and how many bytes come before them; the end is the last.
    cuts: Vec<(usize, u64)>,
}

const CUT_ROWS: usize = 1 << 16;

impl Straightened {
    pub(super) fn new<T: ByteViewType>(array: &GenericByteViewArray<T>) -> Self {
        let mut straightened = Self {
            views: array.views().clone(),
            buffers: array.data_buffers().to_vec(),
            nulls: array.nulls().cloned(),
            cuts: vec![(0, 0)],
        };
        let (mut bytes, mut since) = (0, (0, 0));
        for row in 0..array.len() {
            if row - since.0 == CUT_ROWS || bytes - since.1 > CHUNK_BYTES as u64 {
                since = (row, bytes);
                straightened.cuts.push(since);
            }
            bytes += straightened.value_length(row) as u64;
        }
        straightened.cuts.push((array.len(), bytes));
        straightened
    }

    /// Bytes of all the values.
    pub(super) fn bytes(&self) -> u64 {
        self.cuts.last().map_or(0, |&(_, bytes)| bytes)
    }

    fn value_length(&self, row: usize) -> usize {
        let there = self.nulls.as_ref().is_none_or(|nulls| nulls.is_valid(row));
        if there {
            ByteView::from(self.views[row]).length as usize
        } else {
            0
        }
    }

    fn value<'a>(&'a self, row: usize, inline: &'a mut [u8; 16]) -> &'a [u8] {
        const INLINE_BYTES: usize = 12;
        let length = self.value_length(row);
        if length <= INLINE_BYTES {
            *inline = self.views[row].to_le_bytes();
            return &inline[4..4 + length];
        }
        let view = ByteView::from(self.views[row]);
        let start = view.offset as usize;
        &self.buffers[view.buffer_index as usize][start..start + length]
    }

    fn parts(&self) -> Vec<Range<usize>> {
        (0..self.cuts.len() - 1).map(|cut| cut..cut + 1).collect()
    }
}

/// The offsets of [`Straightened`] values.
pub(super) struct ViewOffsets(pub(super) Arc<Straightened>);

impl Source for ViewOffsets {
    fn length(&self) -> usize {
        (self.0.views.len() + 1) * size_of::<i64>()
    }

    fn parts(&self) -> Vec<Range<usize>> {
        self.0.parts()
    }

    fn write(&self, part: Range<usize>, sink: &Sink<'_>) -> Result<()> {
        let (start, before) = self.0.cuts[part.start];
        let (end, after) = self.0.cuts[part.end];
        let mut offset = before.cast_signed();
        let mut offsets = Vec::with_capacity(end - start + 1);
        for row in start..end {
            offsets.push(offset);
            offset += self.0.value_length(row).cast_signed() as i64;
        }
        if end == self.0.views.len() {
            offsets.push(after.cast_signed());
        }
        sink(start * size_of::<i64>(), offsets.to_byte_slice())
    }
}

/// The bytes of [`Straightened`] values.
pub(super) struct ViewValues(pub(super) Arc<Straightened>);

impl Source for ViewValues {
    fn length(&self) -> usize {
        usize::try_from(self.0.bytes()).unwrap_or(usize::MAX)
    }

    fn parts(&self) -> Vec<Range<usize>> {
        self.0.parts()
    }

    fn write(&self, part: Range<usize>, sink: &Sink<'_>) -> Result<()> {
        let (start, before) = self.0.cuts[part.start];
        let (end, _) = self.0.cuts[part.end];
        let mut place = usize::try_from(before).unwrap_or(usize::MAX);
        let mut gathered = Vec::new();
        for row in start..end {
            let mut inline = [0; 16];
            let value = self.0.value(row, &mut inline);
            if value.len() > CHUNK_BYTES / 4 {
                sink(place, &gathered)?;
                place += gathered.len();
                gathered.clear();
                sink(place, value)?;
                place += value.len();
            } else {
                gathered.extend_from_slice(value);
            }
        }
        sink(place, &gathered)
    }
}
