//! What a task makes in place for its result.

#![expect(unsafe_code, reason = "the draft of a tensor becomes a slice of items")]

use std::marker::PhantomData;
use std::sync::Arc;

use super::value::Handle;
use crate::layout::Spec;
use crate::layout::tensor::TensorSpec;
use crate::output::Output;
use crate::tensor::{Element, items_mut};

/// A tensor in shared memory that is being filled. Dropped without [`finish`](Self::finish), or if the
/// result does not have its handle, it is gone.
#[derive(Debug)]
pub struct OutputTensor<T> {
    output: Output,
    task: u64,
    items: PhantomData<T>,
}

impl<T: Element> OutputTensor<T> {
    /// The output of this task, which holds `T`s.
    pub(super) fn new(output: Output, task: u64) -> Self {
        let items = PhantomData;
        Self {
            output,
            task,
            items,
        }
    }

    fn spec(&self) -> &TensorSpec {
        let Spec::Tensor(spec) = self.output.spec() else {
            unreachable!("it was made as a tensor");
        };
        spec
    }

    /// Items in each dimension.
    #[must_use]
    pub fn shape(&self) -> &[u64] {
        &self.spec().shape
    }

    /// All items in row-major order, zero at first. Several threads may fill parts of the slice,
    /// rayon's for example.
    pub fn as_mut_slice(&mut self) -> &mut [T] {
        let output = &self.output;
        // SAFETY: the output is this process's alone until it is handed over, which takes the handle
        // that `finish` makes of this; `self`, which is borrowed for it, keeps its mapping.
        unsafe { items_mut(output.mapping(), output.body_offset(), self.spec()) }
    }

    /// All items as an array of as many dimensions as `D` says, [`Ix2`](type@ndarray::Ix2) for a
    /// matrix: what is computed into it is not copied again.
    ///
    /// # Errors
    /// [`Error::ShapeMismatch`](crate::Error::ShapeMismatch) if it has more or fewer.
    #[cfg(feature = "ndarray")]
    pub fn array_mut<D: ndarray::Dimension>(
        &mut self,
    ) -> crate::Result<ndarray::ArrayViewMut<'_, T, D>> {
        use ndarray::{ArrayViewMutD, IxDyn};

        let shape = self.shape().to_vec();
        let key = self.output.spec().key().to_owned();
        let sizes = shape.iter().map(|&size| usize::try_from(size).unwrap_or(0));
        let sizes: Vec<usize> = sizes.collect();
        let view = ArrayViewMutD::from_shape(IxDyn(&sizes), self.as_mut_slice());
        let view = view.and_then(ArrayViewMutD::into_dimensionality);
        view.map_err(|_| crate::Error::ShapeMismatch {
            key,
            expected: crate::tensor::dimensions::<D>(),
            found: shape,
        })
    }

    /// The handle for the result of the task that made this. The caller finds it there as a read-only
    /// array over these bytes.
    #[must_use]
    pub fn finish(self) -> Handle {
        Handle::of_output(Arc::new(self.output), self.task)
    }
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;
    use crate::budget::Budget;
    use crate::layout::tensor::Order;
    use crate::session::{Config, Session};
    use crate::zone::Zone;

    /// An output of so many words, of a session that has ended.
    pub(in crate::worker) fn output(shape: &[u64]) -> Output {
        let session = Session::create(Config::default()).unwrap();
        let budget = Budget::from_fd(session.budget_file().unwrap(), 1).unwrap();
        let zone = Zone::of_worker(session.id().clone(), budget);
        let spec = TensorSpec::dense("out", u64::TYPE, shape, Order::C).unwrap();
        Output::create(&zone, spec, None).unwrap()
    }

    #[test]
    fn what_is_filled_lies_in_the_output() {
        let mut tensor = OutputTensor::<u64>::new(output(&[2, 2]), 1);
        tensor.as_mut_slice()[1] = 7;
        assert_eq!(tensor.shape(), [2, 2]);
        let items = tensor
            .output
            .mapping()
            .read(tensor.output.body_offset(), 32);
        assert_eq!(items[8..16], 7_u64.to_ne_bytes());
    }

    #[cfg(feature = "ndarray")]
    #[test]
    fn an_array_of_other_dimensions_is_refused() {
        use ndarray::{Ix1, Ix2};

        let mut tensor = OutputTensor::<u64>::new(output(&[2, 2]), 1);
        tensor.array_mut::<Ix2>().unwrap()[[1, 0]] = 5;
        assert_eq!(tensor.as_mut_slice(), [0, 0, 5, 0]);
        let error = tensor.array_mut::<Ix1>().unwrap_err().to_string();
        assert!(error.contains("of 1 dimension"), "{error}");
    }
}
