//! Tensors that are being filled.

#![expect(unsafe_code, reason = "bytes of a segment become a slice of items")]

use std::marker::PhantomData;
use std::sync::Arc;

use super::Session;
use crate::error::Result;
use crate::layout::Spec;
use crate::segment::Segment;
use crate::tensor::{Element, Tensor, count};

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
        let Ok(mapping) = self.segment.mapping() else {
            unreachable!("a draft is mapped");
        };
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
        self.segment.tensor()
    }
}
