//! `Zone` and `Output`: what a worker makes in place for its result.

#![expect(
    clippy::needless_pass_by_value,
    reason = "arguments are converted into values of their own"
)]

use std::os::fd::RawFd;
use std::path::Path;
use std::sync::Arc;

use pyo3::prelude::*;
use pyo3::types::PyTuple;
use pyo3_arrow::PySchema;
use theus::layout::table::ExtraCopy;
use theus::{Budget, SpillDirectory};

use crate::buffer::Buffer;
use crate::c_data::Arrays;
use crate::error::{to_py, without_gil};
use crate::fd::take_over;
use crate::payload::Payload;
use crate::session::Layout;
use crate::table::{Span, kind, new_table, spans, table_spec, tensor};

/// A worker's part of its session's heavy zone.
#[pyclass(frozen, module = "theus._theus")]
pub(crate) struct Zone(theus::Zone);

#[pymethods]
impl Zone {
    /// The worker in `seat` at the budget behind a descriptor, which is taken over and closed.
    #[staticmethod]
    fn from_fd(py: Python<'_>, fd: RawFd, seat: usize, session: &str) -> PyResult<Self> {
        let file = take_over(fd)?;
        let session = session.parse().map_err(|error| to_py(py, error))?;
        let budget = Budget::from_fd(file, seat).map_err(|error| to_py(py, error))?;
        Ok(Self(theus::Zone::of_worker(session, budget)))
    }

    /// The directory for segments that do not fit in memory.
    #[getter]
    fn spill_dir(&self) -> Option<&Path> {
        self.0.spill().map(SpillDirectory::path)
    }

    #[pyo3(signature = (key, shape, element, data = None, *, dtype = None, fortran = false, trailing_bytes = false))]
    #[expect(clippy::too_many_arguments, reason = "Python passes them by name")]
    fn create_output(
        &self,
        py: Python<'_>,
        key: &str,
        shape: Vec<u64>,
        element: &str,
        data: Option<Payload>,
        dtype: Option<String>,
        fortran: bool,
        trailing_bytes: bool,
    ) -> PyResult<Output> {
        let layout = Layout {
            fortran,
            trailing_bytes,
            mutable: false,
        };
        let spec = layout.spec(py, key, &shape, element, dtype)?;
        let bytes = data.as_ref().map(|data| data.bytes(py));
        without_gil(py, || theus::Output::create(&self.0, spec, bytes)).map(Output)
    }

    /// Write a table or array of anything with the Arrow C data interface, with one copy.
    #[pyo3(signature = (key, source, *, as_array = false, views = false, streamed = false))]
    fn create_table_output(
        &self,
        py: Python<'_>,
        key: &str,
        source: Arrays,
        as_array: bool,
        views: bool,
        streamed: bool,
    ) -> PyResult<Output> {
        let table = new_table(key, source, as_array, views, streamed);
        without_gil(py, || theus::Output::put(&self.0, table)).map(Output)
    }

    /// Lay out a table of zeros, to be filled in place.
    fn alloc_table_output(
        &self,
        py: Python<'_>,
        key: &str,
        schema: PySchema,
        rows: usize,
    ) -> PyResult<Output> {
        let (spec, schema) = (table_spec(key), schema.into_inner());
        without_gil(py, || {
            theus::Output::alloc_table(&self.0, spec, &schema, rows)
        })
        .map(Output)
    }
}

/// An entry without a name that a task makes for its result.
#[pyclass(frozen, weakref, module = "theus._theus")]
pub(crate) struct Output(pub(crate) theus::Output);

#[pymethods]
impl Output {
    #[getter]
    fn key(&self) -> &str {
        self.0.spec().key()
    }

    /// ((offset, bytes) of the bitmap or None, (offset, bytes) of the values) of each column of a
    /// table that is filled in place.
    #[getter]
    fn blanks(&self) -> Vec<(Option<Span>, Span)> {
        spans(self.0.blanks())
    }

    /// Enter the numbers of nulls of a table that was filled in place.
    fn complete(&self) {
        self.0.complete();
    }

    /// Whoever has its bytes keeps it.
    #[getter]
    #[expect(clippy::unused_self, reason = "as segments have it")]
    fn kept_by_views(&self) -> bool {
        true
    }

    #[getter]
    fn shape<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyTuple>> {
        PyTuple::new(py, &tensor(self.0.spec())?.shape)
    }

    #[getter]
    fn strides<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyTuple>> {
        PyTuple::new(py, &tensor(self.0.spec())?.strides)
    }

    #[getter]
    fn element(&self) -> PyResult<&'static str> {
        Ok(tensor(self.0.spec())?.element.code())
    }

    #[getter]
    fn dtype(&self) -> PyResult<Option<&str>> {
        Ok(tensor(self.0.spec())?.dtype.as_deref())
    }

    #[getter]
    fn body_offset(&self) -> usize {
        self.0.body_offset()
    }

    /// What it is: a tensor, a table, an array, or an array in chunks.
    #[getter]
    fn kind(&self) -> &'static str {
        kind(self.0.spec())
    }

    /// (column, bytes, reason) of the copies that were made besides the one into the segment.
    #[getter]
    fn extra_copies(&self) -> Vec<(String, u64, &'static str)> {
        let copies = self.0.extra_copies().iter();
        let copy = |copy: &ExtraCopy| (copy.column.clone(), copy.bytes, copy.reason);
        copies.map(copy).collect()
    }

    #[getter]
    fn length_bytes(&self) -> usize {
        self.0.length()
    }

    #[getter]
    fn address(&self) -> usize {
        self.0.mapping().address()
    }

    /// The bytes. Who has them keeps the output, so that its reservation lasts as long.
    fn buffer(slf: Bound<'_, Self>) -> Buffer {
        let mapping = Arc::clone(slf.get().0.mapping());
        Buffer::keeping(mapping, slf.into_any().unbind())
    }
}
