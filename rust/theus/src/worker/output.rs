//! What a task makes in place for its result.

#![expect(unsafe_code, reason = "the draft of a tensor becomes a slice of items")]

use std::marker::PhantomData;
use std::sync::{Arc, Mutex, PoisonError};

use super::value::{Handle, Target};
use crate::layout::Spec;
use crate::output::Output;
use crate::tensor::{Element, items_mut};

/// The outputs that a task's result refers to, each at the place that is its number.
pub(super) type Referred = Arc<Mutex<Vec<Arc<Output>>>>;

/// An output of a task, and where to note that the result refers to it.
#[derive(Debug)]
pub(super) struct Made {
    output: Arc<Output>,
    referred: Referred,
}

impl Made {
    pub(super) fn new(output: Output, referred: &Referred) -> Self {
        Self {
            output: Arc::new(output),
            referred: Arc::clone(referred),
        }
    }

    /// The number by which the result refers to it.
    pub(super) fn refer(&self) -> u64 {
        let mut referred = self.referred.lock().unwrap_or_else(PoisonError::into_inner);
        let known = referred
            .iter()
            .position(|output| Arc::ptr_eq(output, &self.output));
        let place = known.unwrap_or_else(|| {
            referred.push(Arc::clone(&self.output));
            referred.len() - 1
        });
        place as u64
    }
}

/// A tensor in shared memory that is being filled. Dropped without [`finish`](Self::finish), or if the
/// result does not have its handle, it is gone.
#[derive(Debug)]
pub struct OutputTensor<T> {
    made: Made,
    items: PhantomData<T>,
}

impl<T: Element> OutputTensor<T> {
    pub(super) fn new(made: Made) -> Self {
        let items = PhantomData;
        Self { made, items }
    }

    /// All items in row-major order, zero at first. Several threads may fill parts of the slice,
    /// rayon's for example.
    pub fn as_mut_slice(&mut self) -> &mut [T] {
        let output = &self.made.output;
        let Spec::Tensor(spec) = output.spec() else {
            unreachable!("it was made as a tensor");
        };
        // SAFETY: the output is this process's alone until it is handed over, which takes the handle
        // that `finish` makes of this; `self` keeps its mapping.
        unsafe { items_mut(output.mapping(), output.body_offset(), spec) }
    }

    /// The handle for the result. The caller finds it there as a read-only array over these bytes.
    #[must_use]
    pub fn finish(self) -> Handle {
        Handle(Target::Output(Arc::new(self.made)))
    }
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;
    use crate::budget::Budget;
    use crate::layout::tensor::{Order, TensorSpec};
    use crate::session::{Config, Session};
    use crate::zone::Zone;

    /// An output of eight bytes, of a session that has ended.
    pub(in crate::worker) fn output(referred: &Referred) -> Arc<Made> {
        let session = Session::create(Config::default()).unwrap();
        let budget = Budget::from_fd(session.budget_file().unwrap(), 1).unwrap();
        let zone = Zone::of_worker(session.id().clone(), budget);
        let spec = TensorSpec::dense("out", u64::TYPE, &[1], Order::C).unwrap();
        let output = Output::create(&zone, spec, None).unwrap();
        Arc::new(Made::new(output, referred))
    }

    #[test]
    fn what_is_filled_is_there_when_it_is_handed_over() {
        let referred = Referred::default();
        let made = Arc::into_inner(output(&referred)).unwrap();
        let mut tensor = OutputTensor::<u64>::new(made);
        tensor.as_mut_slice()[0] = 7;
        let handle = tensor.finish();
        let Target::Output(made) = &handle.0 else {
            panic!("{handle:?}");
        };
        assert_eq!(made.refer(), 0);
        let output = &referred.lock().unwrap()[0];
        let items = output.mapping().read(output.body_offset(), 8);
        assert_eq!(items, 7_u64.to_ne_bytes());
    }
}
