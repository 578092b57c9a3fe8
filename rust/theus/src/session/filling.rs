//! Tensors that are being filled.

#![expect(unsafe_code, reason = "the draft of a tensor becomes a slice of items")]

use std::marker::PhantomData;
use std::sync::Arc;

use super::Session;
use crate::error::Result;
use crate::layout::Spec;
use crate::segment::Segment;
use crate::tensor::{Element, Tensor, items_mut};

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
        // SAFETY: the draft is this process's alone, `self` keeps its segment and nobody else has it;
        // the mapping stays as long as the draft does, which is published by value only.
        unsafe { items_mut(&mapping, self.segment.body_offset(), spec) }
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
