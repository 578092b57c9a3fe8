//! `Segment`: one entry's bytes.

use std::path::Path;
use std::sync::Arc;

use pyo3::prelude::*;
use pyo3::types::PyTuple;
use theus::SegmentName;

use crate::buffer::Buffer;
use crate::error::{to_py, without_gil};

/// One entry's bytes: a tensor under construction, or published.
#[pyclass(frozen, weakref, module = "theus._theus")]
pub(crate) struct Segment(pub(crate) Arc<theus::Segment>);

#[pymethods]
impl Segment {
    #[getter]
    fn name(&self) -> String {
        self.0.name().to_string()
    }

    #[getter]
    fn number(&self) -> u64 {
        self.0.name().number
    }

    #[getter]
    fn key(&self) -> &str {
        &self.0.spec().key
    }

    #[getter]
    fn length_bytes(&self) -> usize {
        self.0.length()
    }

    #[getter]
    fn published(&self) -> bool {
        self.0.is_published()
    }

    #[getter]
    fn mutable(&self) -> bool {
        self.0.spec().mutable
    }

    #[getter]
    fn linked(&self) -> bool {
        self.0.is_linked()
    }

    #[getter]
    fn path(&self, py: Python<'_>) -> PyResult<String> {
        let path = self.0.path().map_err(|error| to_py(py, error))?;
        Ok(path.to_string_lossy().into_owned())
    }

    #[getter]
    fn shape<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyTuple>> {
        PyTuple::new(py, &self.0.spec().shape)
    }

    #[getter]
    fn strides<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyTuple>> {
        PyTuple::new(py, &self.0.spec().strides)
    }

    #[getter]
    fn element(&self) -> &'static str {
        self.0.spec().element.code()
    }

    #[getter]
    fn dtype(&self) -> Option<&str> {
        self.0.spec().dtype.as_deref()
    }

    #[getter]
    fn copied_at_publication(&self) -> bool {
        self.0.was_copied()
    }

    #[getter]
    fn body_offset(&self) -> usize {
        self.0.body_offset()
    }

    fn buffer(&self) -> Buffer {
        Buffer(self.0.mapping())
    }

    fn unlink(&self, py: Python<'_>) -> PyResult<()> {
        without_gil(py, || self.0.unlink())
    }
}

/// Map a published segment read-only, by name or by path; structure is always checked.
#[pyfunction]
pub(crate) fn open_segment(py: Python<'_>, name_or_path: &str) -> PyResult<Segment> {
    let path = match name_or_path.parse::<SegmentName>() {
        Ok(name) => name.path(),
        Err(_) => Path::new(name_or_path).to_owned(),
    };
    let segment = without_gil(py, || theus::Segment::open(&path))?;
    Ok(Segment(Arc::new(segment)))
}

/// (segment name, offset, mapped length) if the bytes lie in a published segment mapped here.
#[pyfunction]
pub(crate) fn locate(address: usize, length: usize) -> Option<(String, usize, usize)> {
    theus::mapping::locate(address, length)
        .map(|(name, offset, mapped)| (name.to_string(), offset, mapped))
}
