//! `Segment`: one entry's bytes.

use std::path::Path;
use std::sync::Arc;

use pyo3::prelude::*;
use pyo3::types::PyTuple;
use theus::SegmentName;
use theus::layout::table::ExtraCopy;

use crate::buffer::Buffer;
use crate::error::{to_py, without_gil};
use crate::table::{Span, kind, spans, tensor};

/// One entry's bytes, under construction or published.
#[pyclass(frozen, weakref, module = "theus._theus")]
pub(crate) struct Segment {
    pub(crate) inner: Arc<theus::Segment>,
    /// No entry holds a worker's output: who has its bytes keeps its name.
    kept_by_views: bool,
}

impl Segment {
    pub(crate) fn new(inner: Arc<theus::Segment>) -> Self {
        let kept_by_views = false;
        Self {
            inner,
            kept_by_views,
        }
    }

    pub(crate) fn kept_by_views(inner: Arc<theus::Segment>) -> Self {
        let kept_by_views = true;
        Self {
            inner,
            kept_by_views,
        }
    }
}

#[pymethods]
impl Segment {
    #[getter]
    fn name(&self) -> String {
        self.inner.name().to_string()
    }

    /// ((offset, bytes) of the bitmap or None, (offset, bytes) of the values) of each column of a
    /// table that is filled in place.
    #[getter]
    fn blanks(&self) -> Vec<(Option<Span>, Span)> {
        spans(self.inner.blanks())
    }

    /// Look at all that a table's values say; a tensor was checked when it was opened.
    fn validate(&self, py: Python<'_>) -> PyResult<()> {
        if matches!(self.inner.spec(), theus::layout::Spec::Table(_)) {
            without_gil(py, || self.inner.batches())?;
        }
        Ok(())
    }

    /// Whether whoever has its bytes keeps its name.
    #[getter(kept_by_views)]
    fn is_kept_by_views(&self) -> bool {
        self.kept_by_views
    }

    #[getter]
    fn number(&self) -> u64 {
        self.inner.name().number
    }

    #[getter]
    fn key(&self) -> &str {
        self.inner.spec().key()
    }

    /// What it is: a tensor, a table, an array, or an array in chunks.
    #[getter]
    fn kind(&self) -> &'static str {
        kind(self.inner.spec())
    }

    /// (column, bytes, reason) of the copies that were made besides the one into the segment.
    #[getter]
    fn extra_copies(&self) -> Vec<(String, u64, &'static str)> {
        let copies = self.inner.extra_copies().iter();
        let copy = |copy: &ExtraCopy| (copy.column.clone(), copy.bytes, copy.reason);
        copies.map(copy).collect()
    }

    #[getter]
    fn length_bytes(&self) -> usize {
        self.inner.length()
    }

    #[getter]
    fn published(&self) -> bool {
        self.inner.is_published()
    }

    #[getter]
    fn mutable(&self) -> bool {
        self.inner.spec().mutable()
    }

    #[getter]
    fn linked(&self) -> bool {
        self.inner.is_linked()
    }

    #[getter]
    fn path(&self, py: Python<'_>) -> PyResult<String> {
        let path = self.inner.path().map_err(|error| to_py(py, error))?;
        Ok(path.to_string_lossy().into_owned())
    }

    #[getter]
    fn shape<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyTuple>> {
        PyTuple::new(py, &tensor(self.inner.spec())?.shape)
    }

    #[getter]
    fn strides<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyTuple>> {
        PyTuple::new(py, &tensor(self.inner.spec())?.strides)
    }

    #[getter]
    fn element(&self) -> PyResult<&'static str> {
        Ok(tensor(self.inner.spec())?.element.code())
    }

    #[getter]
    fn dtype(&self) -> PyResult<Option<&str>> {
        Ok(tensor(self.inner.spec())?.dtype.as_deref())
    }

    #[getter]
    fn copied_at_publication(&self) -> bool {
        self.inner.was_copied()
    }

    /// Whether it lies on disk.
    #[getter]
    fn spilled(&self) -> bool {
        self.inner.is_spilled()
    }

    #[getter]
    fn body_offset(&self) -> usize {
        self.inner.body_offset()
    }

    fn buffer(slf: Bound<'_, Self>) -> PyResult<Buffer> {
        let mapping = slf.get().inner.mapping();
        let mapping = mapping.map_err(|error| to_py(slf.py(), error))?;
        Ok(if slf.get().kept_by_views {
            Buffer::keeping(mapping, slf.into_any().unbind())
        } else {
            Buffer::new(mapping)
        })
    }

    fn unlink(&self, py: Python<'_>) -> PyResult<()> {
        without_gil(py, || self.inner.unlink())
    }
}

/// Map a published segment read-only, by name or by path; structure is always checked.
#[pyfunction]
pub(crate) fn open_segment(py: Python<'_>, name_or_path: &str) -> PyResult<Segment> {
    let segment = without_gil(py, || match name_or_path.parse::<SegmentName>() {
        Ok(name) => theus::Segment::find(&name),
        Err(_) => theus::Segment::open(Path::new(name_or_path)),
    })?;
    Ok(Segment::new(Arc::new(segment)))
}

/// Map the segment of this name, which the caller is promised to find for as long as it has this: it
/// may be unmapped while nobody looks at it.
#[pyfunction]
pub(crate) fn attach_segment(py: Python<'_>, name: &str) -> PyResult<Segment> {
    let name: SegmentName = name.parse().map_err(|error| to_py(py, error))?;
    let segment = without_gil(py, || theus::Segment::find_promised(&name))?;
    Ok(Segment::new(Arc::new(segment)))
}

/// (segment name, offset, mapped length) if the bytes lie in a published segment mapped here.
#[pyfunction]
pub(crate) fn locate(address: usize, length: usize) -> Option<(String, usize, usize)> {
    theus::mapping::locate(address, length)
        .map(|(name, offset, mapped)| (name.to_string(), offset, mapped))
}
