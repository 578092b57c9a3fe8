//! `watch_owner`: a worker ends with its owner.

use std::os::fd::RawFd;

use pyo3::prelude::*;
use theus::{SessionId, dispatch};

use crate::error::to_py;
use crate::fd::take_over;

/// Start a thread that needs no GIL: when the owner ends, sweep its session, end this process.
///
/// Takes the descriptor over.
#[pyfunction]
fn watch_owner(py: Python<'_>, pidfd: RawFd, session: &str) -> PyResult<()> {
    let pidfd = take_over(pidfd)?;
    session
        .parse::<SessionId>()
        .and_then(|session| dispatch::watch_owner(pidfd, session))
        .map_err(|error| to_py(py, error))
}

pub(crate) fn register(module: &Bound<'_, PyModule>) -> PyResult<()> {
    module.add_function(wrap_pyfunction!(watch_owner, module)?)
}
