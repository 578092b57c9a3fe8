//! Published tensors with their items' type.

#![expect(unsafe_code, reason = "bytes of a segment become a slice of items")]

use std::marker::PhantomData;
#[cfg(any(feature = "ndarray", feature = "worker"))]
use std::ops::Range;
use std::sync::Arc;

use crate::error::{Error, Result};
use crate::layout::Spec;
use crate::layout::tensor::{ElementType, TensorSpec};
use crate::mapping::Mapping;

mod sealed {
    pub trait Sealed {}
}

/// The types of items that tensors have as Rust types. Sealed: any bytes are a value of each.
///
/// numpy's bools are read as `u8`, its dates and times as `i64` of their unit.
pub trait Element: sealed::Sealed + Copy + Send + Sync + 'static {
    /// The type in the segment's header.
    const TYPE: ElementType;
}

macro_rules! elements {
    ($($rust:ty => $element:ident),* $(,)?) => {$(
        impl sealed::Sealed for $rust {}
        impl Element for $rust {
            const TYPE: ElementType = ElementType::$element;
        }
    )*};
}

elements! {
    i8 => I8, i16 => I16, i32 => I32, i64 => I64,
    u8 => U8, u16 => U16, u32 => U32, u64 => U64,
    f32 => F32, f64 => F64,
}

/// A published tensor, or a view of a part of one. It keeps its bytes mapped; clones show the same
/// ones.
#[derive(Debug, Clone)]
pub struct Tensor<T> {
    mapping: Arc<Mapping>,
    key: String,
    place: Place,
    items: PhantomData<T>,
}

/// Where the items of a tensor lie in its mapping.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Place {
    /// The first item's, in bytes.
    pub(crate) start: usize,
    /// Items in each dimension.
    pub(crate) shape: Vec<u64>,
    /// Bytes from one item to the next in each dimension.
    pub(crate) strides: Vec<i64>,
}

impl Place {
    /// That of a whole tensor, whose items begin at `start`.
    fn of(spec: &TensorSpec, start: usize) -> Self {
        // Far below 2^63, as the reader of the header checks.
        let strides = spec.strides.iter().map(|stride| stride.cast_signed());
        Self {
            start,
            shape: spec.shape.clone(),
            strides: strides.collect(),
        }
    }

    fn count(&self) -> u64 {
        self.shape.iter().product()
    }

    /// The bytes from the first to behind the last item in memory, of items of so many bytes; `None`
    /// if they are no range.
    #[cfg(any(feature = "ndarray", feature = "worker"))]
    fn range(&self, item_bytes: u64) -> Option<Range<u64>> {
        let start = self.start as u64;
        let (mut low, mut high) = (start, start);
        if self.shape.len() != self.strides.len() {
            return None;
        }
        // Repeated items count, too: a slice or a view of them has as many.
        let count = self
            .shape
            .iter()
            .try_fold(item_bytes, |n, &size| n.checked_mul(size.max(1)))?;
        i64::try_from(count).ok()?;
        if self.shape.contains(&0) {
            return Some(start..start);
        }
        for (&size, &stride) in self.shape.iter().zip(&self.strides) {
            let reach = (size - 1).checked_mul(stride.unsigned_abs())?;
            if stride < 0 {
                low = low.checked_sub(reach)?;
            } else {
                high = high.checked_add(reach)?;
            }
        }
        Some(low..high.checked_add(item_bytes)?)
    }

    /// Whether the items lie one after the other in the order of `dims`, the fastest first.
    fn is_dense(&self, item_bytes: u64, dims: impl Iterator<Item = usize>) -> bool {
        let mut step = item_bytes;
        let mut dims = dims;
        self.shape.contains(&0)
            || dims.all(|dim| {
                let (size, stride) = (self.shape[dim], self.strides[dim]);
                let fits = size == 1 || u64::try_from(stride) == Ok(step);
                step *= size;
                fits
            })
    }
}

impl<T: Element> Tensor<T> {
    /// The tensor that `spec` says lies in published bytes, its items from `start` on.
    pub(crate) fn new(mapping: Arc<Mapping>, spec: &TensorSpec, start: usize) -> Self {
        Self {
            mapping,
            key: spec.key.clone(),
            place: Place::of(spec, start),
            items: PhantomData,
        }
    }

    /// What lies at `place` of the bytes of this tensor's segment.
    ///
    /// # Errors
    /// [`Error::CorruptSegment`] if that is not within the segment's items, which begin where this
    /// tensor's do, or not where items of this type can lie.
    #[cfg(feature = "worker")]
    pub(crate) fn at(self, place: Place) -> Result<Self> {
        let aligned = |bytes: u64| bytes.is_multiple_of(align_of::<T>() as u64);
        let strides = place.shape.iter().zip(&place.strides);
        let mut strides = strides.filter(|(size, _)| **size > 1);
        let within = place.range(size_of::<T>() as u64).is_some_and(|range| {
            range.start >= self.place.start as u64 && range.end <= self.mapping.len() as u64
        });
        if !within
            || !aligned(place.start as u64)
            || !strides.all(|(_, stride)| aligned(stride.unsigned_abs()))
        {
            return Err(Error::CorruptSegment {
                segment: self.key,
                reason: format!("it has no items of type {} at {place:?}", T::TYPE.name()),
            });
        }
        Ok(Self { place, ..self })
    }

    /// The name of the entry.
    #[must_use]
    pub fn key(&self) -> &str {
        &self.key
    }

    /// Items in each dimension.
    #[must_use]
    pub fn shape(&self) -> &[u64] {
        &self.place.shape
    }

    /// Bytes from one item to the next in each dimension; negative where a view goes backwards.
    #[must_use]
    pub fn strides(&self) -> &[i64] {
        &self.place.strides
    }

    /// How many items it has.
    #[must_use]
    pub fn len(&self) -> usize {
        usize::try_from(self.place.count()).unwrap_or(0)
    }

    /// Whether it has no items.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// This tensor, if it has this shape; `None` in a dimension allows any size.
    ///
    /// # Errors
    /// [`Error::ShapeMismatch`].
    pub fn with_shape(self, shape: &[Option<u64>]) -> Result<Self> {
        let found = self.shape();
        let fits = |(wanted, found): (&Option<u64>, &u64)| wanted.is_none_or(|size| size == *found);
        if shape.len() == found.len() && shape.iter().zip(found).all(fits) {
            return Ok(self);
        }
        let size =
            |size: &Option<u64>| size.map_or_else(|| "_".to_owned(), |size| size.to_string());
        let expected: Vec<String> = shape.iter().map(size).collect();
        Err(Error::ShapeMismatch {
            key: self.key.clone(),
            expected: format!("({})", expected.join(", ")),
            found: found.to_vec(),
        })
    }

    /// All items in row-major order, if they lie in it, one after the other.
    #[must_use]
    pub fn as_slice(&self) -> Option<&[T]> {
        let dims = (0..self.place.shape.len()).rev();
        let dense = self.place.is_dense(size_of::<T>() as u64, dims);
        dense.then(|| self.slice())
    }

    /// All items as they lie in memory, row-major or column-major, if they lie one after the other.
    #[must_use]
    pub fn items(&self) -> Option<&[T]> {
        let dims = 0..self.place.shape.len();
        let column_major = || self.place.is_dense(size_of::<T>() as u64, dims);
        self.as_slice()
            .or_else(|| column_major().then(|| self.slice()))
    }

    fn slice(&self) -> &[T] {
        let start = self.mapping.as_ptr().wrapping_add(self.place.start);
        // SAFETY: the header or `at` was checked: the items lie inside the mapping, which is kept, and
        // one after the other, as the caller has looked. Published bytes do not change. They are
        // aligned, as the body begins on a page, and any bytes are items.
        unsafe { std::slice::from_raw_parts(start.cast(), self.len()) }
    }

    /// A view of any number of dimensions.
    #[cfg(feature = "ndarray")]
    #[must_use]
    pub fn view(&self) -> ndarray::ArrayViewD<'_, T> {
        use ndarray::{ArrayViewD, Axis, IxDyn, ShapeBuilder};

        let size = |size: u64| usize::try_from(size).unwrap_or(0);
        let shape: Vec<usize> = self.place.shape.iter().map(|&n| size(n)).collect();
        let range = self.place.range(size_of::<T>() as u64);
        let low = range.map_or(self.place.start, |range| size(range.start));
        let steps = self.place.strides.iter().map(|stride| match self.len() {
            0 => 0, // nothing was looked at
            _ => size(stride.unsigned_abs()) / size_of::<T>(),
        });
        let steps: Vec<usize> = steps.collect();
        let start = self.mapping.as_ptr().wrapping_add(low);
        // SAFETY: as for `slice`; from the lowest item on all steps go upwards.
        let mut view = unsafe {
            ArrayViewD::from_shape_ptr(IxDyn(&shape).strides(IxDyn(&steps)), start.cast())
        };
        for (axis, &stride) in self.place.strides.iter().enumerate() {
            if stride < 0 {
                view.invert_axis(Axis(axis));
            }
        }
        view
    }

    /// A view of as many dimensions as `D` says, [`Ix2`](type@ndarray::Ix2) for a matrix.
    ///
    /// # Errors
    /// [`Error::ShapeMismatch`] if it has more or fewer.
    #[cfg(feature = "ndarray")]
    pub fn array<D: ndarray::Dimension>(&self) -> Result<ndarray::ArrayView<'_, T, D>> {
        let view = self.view().into_dimensionality();
        view.map_err(|_| Error::ShapeMismatch {
            key: self.key.clone(),
            expected: dimensions::<D>(),
            found: self.shape().to_vec(),
        })
    }
}

/// What a shape is to have, for an error.
#[cfg(feature = "ndarray")]
pub(crate) fn dimensions<D: ndarray::Dimension>() -> String {
    match D::NDIM {
        Some(1) => "one of 1 dimension".to_owned(),
        Some(dimensions) => format!("one of {dimensions} dimensions"),
        None => "another".to_owned(),
    }
}

/// How many items a tensor has.
pub(crate) fn count(spec: &TensorSpec) -> usize {
    usize::try_from(spec.body_bytes() / spec.element.bytes()).unwrap_or(0)
}

/// All items of a dense tensor that is being filled, in the order in which they lie.
///
/// # Safety
/// Nobody else reads or writes the items as long as the slice is there, and the mapping is writable
/// and stays.
pub(crate) unsafe fn items_mut<'a, T: Element>(
    mapping: &Mapping,
    start: usize,
    spec: &TensorSpec,
) -> &'a mut [T] {
    let start = mapping.as_mut_ptr().wrapping_add(start);
    // SAFETY: the range lies in the mapping, as it was laid out for it; the rest is the caller's. The
    // body begins on a page, and any bytes are items.
    unsafe { std::slice::from_raw_parts_mut(start.cast(), count(spec)) }
}

/// numpy's dtypes whose items are these integers.
fn is_integer_of(dtype: &str, element: ElementType) -> bool {
    let dtype = dtype.trim_matches('"');
    match element {
        ElementType::U8 => dtype == "|b1",
        ElementType::I64 => dtype.starts_with("<M8") || dtype.starts_with("<m8"),
        _ => false,
    }
}

/// Whether items of this numpy dtype are `T`s.
#[cfg(feature = "worker")]
pub(crate) fn is_dtype_of<T: Element>(dtype: &str) -> bool {
    let code = dtype.strip_prefix(['<', '|']);
    code == Some(T::TYPE.code()) || is_integer_of(dtype, T::TYPE)
}

/// The tensor that `spec` is, if its items are of this type.
pub(crate) fn spec_of<T: Element>(spec: &Spec) -> Result<&TensorSpec> {
    let mismatch = |found: String| Error::DtypeMismatch {
        key: spec.key().to_owned(),
        expected: T::TYPE.name(),
        found,
    };
    match spec {
        Spec::Tensor(spec) if spec.element != T::TYPE && spec.dtype.is_none() => {
            Err(mismatch(format!("a tensor of {}", spec.element.name())))
        }
        Spec::Tensor(spec) => match &spec.dtype {
            Some(dtype) if spec.element != T::TYPE || !is_integer_of(dtype, spec.element) => {
                Err(mismatch(format!("a tensor of numpy's {dtype}")))
            }
            _ => Ok(spec),
        },
        Spec::Table(spec) => Err(mismatch(format!("a {}", spec.kind.name()))),
    }
}

#[cfg(all(test, feature = "ndarray", feature = "worker"))]
mod tests;
