//! What the machine gives: directories tried out, and the control groups' limit.

#![expect(
    clippy::needless_pass_by_value,
    reason = "arguments are converted from Python objects"
)]

use std::path::PathBuf;

use pyo3::prelude::*;
use theus::directory::probe;

use crate::error::without_gil;

/// What was found out about a directory.
#[pyclass(frozen, module = "theus._theus")]
pub(crate) struct DirectoryReport(theus::directory::DirectoryReport);

#[pymethods]
impl DirectoryReport {
    #[getter]
    fn path(&self) -> PathBuf {
        self.0.path.clone()
    }

    #[getter]
    fn file_system(&self) -> &str {
        &self.0.file_system
    }

    #[getter]
    fn total_bytes(&self) -> u64 {
        self.0.total_bytes
    }

    #[getter]
    fn free_bytes(&self) -> u64 {
        self.0.free_bytes
    }

    /// (code, text) of each thing that segments would miss in it.
    #[getter]
    fn missing(&self) -> Vec<(&'static str, String)> {
        let missing = self.0.missing().iter();
        missing
            .map(|missing| (missing.code(), missing.to_string()))
            .collect()
    }
}

/// Try in a directory what segments need of it.
#[pyfunction]
fn probe_directory(py: Python<'_>, path: PathBuf) -> PyResult<DirectoryReport> {
    without_gil(py, || probe(&path)).map(DirectoryReport)
}

/// (group, limit, available bytes) of the tightest control group that the files under `root` show.
#[pyfunction]
fn memory_limit(py: Python<'_>, root: PathBuf) -> Option<(PathBuf, u64, u64)> {
    let found = py.detach(|| theus::cgroup::memory_limit(&root))?;
    Some((found.group, found.limit_bytes, found.available_bytes))
}

pub(crate) fn register(module: &Bound<'_, PyModule>) -> PyResult<()> {
    module.add_class::<DirectoryReport>()?;
    module.add_function(wrap_pyfunction!(probe_directory, module)?)?;
    module.add_function(wrap_pyfunction!(memory_limit, module)?)
}
