//! `Control`: the page that an owner and one worker share.

use std::os::fd::{IntoRawFd, RawFd};

use pyo3::prelude::*;
use theus::dispatch;

use crate::error::to_py;
use crate::fd::take_over;

/// A page shared by the owner and one worker: which task runs, which one is to stop.
#[pyclass(frozen, module = "theus._theus")]
pub(crate) struct Control(pub(crate) dispatch::Control);

#[pymethods]
impl Control {
    /// The page, and the worker's descriptor for subprocess's `pass_fds`.
    #[staticmethod]
    fn create(py: Python<'_>) -> PyResult<(Self, RawFd)> {
        let (control, file) = dispatch::Control::create().map_err(|error| to_py(py, error))?;
        Ok((Self(control), file.into_raw_fd()))
    }

    /// The worker's mapping of the page; takes the descriptor over, and closes it.
    #[staticmethod]
    fn from_fd(py: Python<'_>, fd: RawFd) -> PyResult<Self> {
        dispatch::Control::from_fd(take_over(fd)?)
            .map(Self)
            .map_err(|error| to_py(py, error))
    }

    /// The id of the task that runs, or 0.
    #[getter]
    fn running(&self) -> u64 {
        self.0.running()
    }

    #[setter]
    fn set_running(&self, task_id: u64) {
        self.0.set_running(task_id);
    }

    /// The id of the task that the owner wants stopped, or 0.
    #[getter]
    fn cancel(&self) -> u64 {
        self.0.cancel()
    }

    #[setter]
    fn set_cancel(&self, task_id: u64) {
        self.0.set_cancel(task_id);
    }

    /// The id of the last task that the owner has taken back, or 0.
    #[getter]
    fn recalled(&self) -> u64 {
        self.0.recalled()
    }

    #[setter]
    fn set_recalled(&self, task_id: u64) {
        self.0.set_recalled(task_id);
    }
}

pub(crate) fn register(module: &Bound<'_, PyModule>) -> PyResult<()> {
    module.add_class::<Control>()
}
