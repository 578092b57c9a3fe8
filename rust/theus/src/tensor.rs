//! Published tensors with their items' type.

#![expect(unsafe_code, reason = "bytes of a segment become a slice of items")]

use std::marker::PhantomData;
use std::sync::Arc;

use crate::error::{Error, Result};
use crate::layout::Spec;
use crate::layout::tensor::{ElementType, TensorSpec};
use crate::mapping::Mapping;

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
    /// The tensor that `spec` says lies in published bytes, its items from `start` on.
    pub(crate) fn new(mapping: Arc<Mapping>, spec: &TensorSpec, start: usize) -> Self {
        Self {
            mapping,
            spec: spec.clone(),
            start,
            items: PhantomData,
        }
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
        // SAFETY: the header was checked: the items lie side by side inside the mapping, which is kept.
        // Published bytes do not change. The body begins on a page, and any bytes are items.
        unsafe { std::slice::from_raw_parts(start.cast(), count(&self.spec)) }
    }
}

/// How many items a tensor has.
pub(crate) fn count(spec: &TensorSpec) -> usize {
    usize::try_from(spec.body_bytes() / spec.element.bytes()).unwrap_or(0)
}

/// The tensor that `spec` is, if its items are of this type.
pub(crate) fn spec_of<T: Element>(spec: &Spec) -> Result<&TensorSpec> {
    let mismatch = |found: String| Error::DtypeMismatch {
        key: spec.key().to_owned(),
        expected: T::TYPE.code().to_owned(),
        found,
    };
    match spec {
        Spec::Tensor(TensorSpec {
            dtype: Some(dtype), ..
        }) => Err(mismatch(dtype.clone())),
        Spec::Tensor(spec) if spec.element == T::TYPE => Ok(spec),
        Spec::Tensor(spec) => Err(mismatch(spec.element.code().to_owned())),
        Spec::Table(spec) => Err(mismatch(format!("a {}", spec.kind.name()))),
    }
}
