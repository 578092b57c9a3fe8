//! Tensors with their items' type: filled by one owner, read by everybody.

#![expect(unsafe_code, reason = "bytes of a segment become slices of items")]

use std::marker::PhantomData;
use std::sync::Arc;

use crate::error::{Error, Result};
use crate::layout::Spec;
use crate::layout::tensor::{ElementType, TensorSpec};
use crate::mapping::Mapping;
use crate::segment::Segment;
use crate::session::Session;

mod sealed {
    pub trait Sealed {}
}

/// The types of items that tensors have as Rust types. Sealed: any bytes are a value of each.
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

/// A published tensor. It keeps its bytes mapped; clones show the same ones.
#[derive(Debug, Clone)]
pub struct Tensor<T> {
    mapping: Arc<Mapping>,
    spec: TensorSpec,
    start: usize,
    items: PhantomData<T>,
}

impl<T: Element> Tensor<T> {
    pub(crate) fn of(segment: &Segment) -> Result<Self> {
        let spec = spec_of::<T>(segment)?;
        if !segment.is_published() || spec.mutable {
            // What the owner goes on writing cannot be a slice.
            return Err(Error::Unpublished {
                key: spec.key.clone(),
            });
        }
        Ok(Self {
            mapping: segment.mapping(),
            spec: spec.clone(),
            start: segment.body_offset(),
            items: PhantomData,
        })
    }

    /// Items in each dimension.
    #[must_use]
    pub fn shape(&self) -> &[u64] {
        &self.spec.shape
    }

    /// Bytes from one item to the next in each dimension.
    #[must_use]
    pub fn strides(&self) -> &[u64] {
        &self.spec.strides
    }

    /// All items in row-major order, if they lie in it.
    #[must_use]
    pub fn as_slice(&self) -> Option<&[T]> {
        self.spec.is_row_major().then(|| self.items())
    }

    /// All items as they lie in memory, whatever the order of the dimensions.
    #[must_use]
    pub fn items(&self) -> &[T] {
        let start = self.mapping.as_ptr().wrapping_add(self.start);
        // SAFETY: the header was checked against the mapping, which is kept and read-only: published
        // bytes do not change. The body begins on a page, and any bytes are items.
        unsafe { std::slice::from_raw_parts(start.cast(), count(&self.spec)) }
    }
}

/// A tensor that is being filled. Dropped without [`publish`](Self::publish), it is gone.
#[derive(Debug)]
pub struct TensorMut<T> {
    session: Session,
    segment: Arc<Segment>,
    items: PhantomData<T>,
}

impl<T: Element> TensorMut<T> {
    pub(crate) fn new(session: Session, segment: Arc<Segment>) -> Self {
        let items = PhantomData;
        Self {
            session,
            segment,
            items,
        }
    }

    /// All items, zero at first. Several threads may fill parts of the slice, rayon's for example.
    pub fn as_mut_slice(&mut self) -> &mut [T] {
        let Spec::Tensor(spec) = self.segment.spec() else {
            unreachable!("it was made as a tensor");
        };
        let mapping = self.segment.mapping();
        let start = mapping
            .as_mut_ptr()
            .wrapping_add(self.segment.body_offset());
        // SAFETY: the range is writable and this process's alone, the segment is kept by `self` and
        // nobody else has it; the mapping stays as long as the draft does, which is published by
        // value only. The body begins on a page, and any bytes are items.
        unsafe { std::slice::from_raw_parts_mut(start.cast(), count(spec)) }
    }

    /// Seals the tensor and enters it into the session under its name.
    ///
    /// # Errors
    /// As of [`Session::publish`](crate::Session::publish).
    pub fn publish(self) -> Result<Tensor<T>> {
        self.session.enter(&self.segment)?;
        Tensor::of(&self.segment)
    }
}

fn count(spec: &TensorSpec) -> usize {
    usize::try_from(spec.body_bytes() / spec.element.bytes()).unwrap_or(0)
}

fn spec_of<T: Element>(segment: &Segment) -> Result<&TensorSpec> {
    let mismatch = |found: String| Error::DtypeMismatch {
        key: segment.spec().key().to_owned(),
        expected: T::TYPE.code().to_owned(),
        found,
    };
    match segment.spec() {
        Spec::Tensor(spec) if spec.dtype.is_some() => {
            Err(mismatch(spec.dtype.clone().unwrap_or_default()))
        }
        Spec::Tensor(spec) if spec.element == T::TYPE => Ok(spec),
        Spec::Tensor(spec) => Err(mismatch(spec.element.code().to_owned())),
        Spec::Table(spec) => Err(mismatch(format!("a {}", spec.kind.name()))),
    }
}
