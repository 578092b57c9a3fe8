//! The kill points, for the tests of crashes.

use pyo3::exceptions::PyValueError;
use pyo3::prelude::*;
use theus::kill_point;

/// Have this process killed when it passes the point for the `hit`th time from now on; no name:
/// at none.
#[pyfunction]
#[pyo3(signature = (name = None, hit = 1))]
fn arm_kill_point(name: Option<&str>, hit: u64) -> PyResult<()> {
    let known = kill_point::arm(name.unwrap_or_default(), hit);
    match name {
        Some(name) if !known => Err(PyValueError::new_err(format!("no kill point {name:?}"))),
        _ => Ok(()),
    }
}

/// How often this process has passed each point.
#[pyfunction]
fn kill_point_hits() -> Vec<(&'static str, u64)> {
    kill_point::hits()
}

pub(crate) fn register(module: &Bound<'_, PyModule>) -> PyResult<()> {
    module.add_function(wrap_pyfunction!(arm_kill_point, module)?)?;
    module.add_function(wrap_pyfunction!(kill_point_hits, module)?)
}
