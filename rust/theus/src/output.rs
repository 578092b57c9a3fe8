//! What a task makes in place for its result: a segment without a name, which the owner names.
//!
//! Workers never create, rename or unlink a name. Whoever dies at whatever moment, the kernel frees
//! what has none.

use std::os::fd::OwnedFd;
use std::sync::{Arc, Mutex, PoisonError};

use crate::backend::Backend;
use crate::budget::Budget;
use crate::descriptor::SessionId;
use crate::error::{Error, Result};
use crate::layout::tensor::TensorSpec;
use crate::mapping::Mapping;
use crate::os;
use crate::segment::TensorDraft;

/// A tensor that a worker writes in shared memory, reserved from the session's budget.
#[derive(Debug)]
pub struct Output {
    spec: TensorSpec,
    body_offset: usize,
    mapping: Arc<Mapping>,
    stage: Mutex<Stage>,
    budget: Arc<Budget>,
    generation: u64,
}

#[derive(Debug)]
enum Stage {
    Draft(TensorDraft),
    /// Nobody can write it any more; `Some` until it is sent.
    Closed(Option<OwnedFd>),
}

impl Output {
    /// Reserves a tensor and writes its header; the items are zero, or a parallel copy of `data`.
    ///
    /// # Errors
    /// [`Error::HeavyZoneFull`], [`Error::KeyTooLong`], [`Error::LengthMismatch`] or [`Error::Os`].
    pub fn create(
        session: &SessionId,
        spec: TensorSpec,
        data: Option<&[u8]>,
        budget: &Arc<Budget>,
    ) -> Result<Self> {
        os::watch_forks();
        // A name for the error messages only: number 0 is the catalog's.
        let name = session.segment(0);
        let tensor = TensorDraft::create(Backend::Linux, &name, &spec, data, budget)?;
        Ok(Self {
            spec,
            body_offset: tensor.body_offset,
            mapping: Arc::clone(tensor.draft.mapping()),
            stage: Mutex::new(Stage::Draft(tensor)),
            budget: Arc::clone(budget),
            generation: os::fork_generation(),
        })
    }

    /// Ends all writing that reaches others, and returns the descriptor for the owner's
    /// [`adopt`](crate::Session::adopt); from then on the bytes count as the owner's to release.
    /// What is written later stays in this process.
    ///
    /// # Errors
    /// [`Error::HeavyZoneFull`] if a fork made a copy necessary and it does not fit,
    /// [`Error::HandedOver`] at a second call, or [`Error::Os`].
    pub fn hand_over(&self) -> Result<OwnedFd> {
        let mut stage = self.stage.lock().unwrap_or_else(PoisonError::into_inner);
        if let Stage::Draft(tensor) = &*stage {
            let length = self.length() as u64;
            let full = || Backend::Linux.full(&self.spec.key, length);
            let file = tensor.draft.hand_over()?.ok_or_else(full)?;
            *stage = Stage::Closed(Some(file));
        }
        let Stage::Closed(file) = &mut *stage else {
            unreachable!("a draft has just been closed");
        };
        file.take().ok_or_else(|| Error::HandedOver {
            key: self.spec.key.clone(),
        })
    }

    /// The bytes, writable until they are handed over.
    #[must_use]
    pub fn mapping(&self) -> &Arc<Mapping> {
        &self.mapping
    }

    /// What the tensor is.
    #[must_use]
    pub fn spec(&self) -> &TensorSpec {
        &self.spec
    }

    /// Where the items begin.
    #[must_use]
    pub fn body_offset(&self) -> usize {
        self.body_offset
    }

    /// The length of the whole segment in bytes.
    #[must_use]
    pub fn length(&self) -> usize {
        self.mapping.len()
    }
}

impl Drop for Output {
    fn drop(&mut self) {
        let stage = self.stage.get_mut().unwrap_or_else(PoisonError::into_inner);
        let given_away = matches!(stage, Stage::Closed(None));
        if !given_away && self.generation == os::fork_generation() {
            self.budget.release(self.length() as u64);
        }
    }
}
