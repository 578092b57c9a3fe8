//! `Session`: the lifetime root, and what can be seen of others.

use std::os::fd::{IntoRawFd, RawFd};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use pyo3::prelude::*;
use pyo3_arrow::PySchema;
use theus::dispatch::Kind;
use theus::layout::tensor::{ElementType, Order, TensorSpec};
use theus::{Backend, Config, SessionId, SpillDirectory};

use crate::c_data::Arrays;
use crate::channel::Channel;
use crate::error::{to_py, without_gil};
use crate::payload::Payload;
use crate::segment::Segment;
use crate::table::{new_table, table_spec};

/// The lifetime root: its lock file lives exactly as long as this process holds it.
#[pyclass(frozen, module = "theus._theus")]
pub(crate) struct Session(theus::Session);

impl Session {
    pub(crate) const fn core(&self) -> &theus::Session {
        &self.0
    }
}

#[pymethods]
impl Session {
    #[staticmethod]
    #[pyo3(signature = (*, backend = None, heavy_limit = None, spill_dir = None, reserve = 0))]
    fn create(
        py: Python<'_>,
        backend: Option<&str>,
        heavy_limit: Option<u64>,
        spill_dir: Option<PathBuf>,
        reserve: u64,
    ) -> PyResult<Self> {
        let backend = backend.map_or(Ok(Backend::default()), str::parse);
        let backend = backend.map_err(|error| to_py(py, error))?;
        let config = Config {
            backend,
            heavy_limit,
            spill_dir,
            reserve,
        };
        without_gil(py, || theus::Session::create(config)).map(Self)
    }

    #[getter]
    fn backend(&self) -> String {
        self.0.config().backend.to_string()
    }

    #[getter]
    fn id(&self) -> &str {
        self.0.id().as_str()
    }

    #[getter]
    fn closed(&self) -> bool {
        self.0.is_closed()
    }

    #[getter]
    fn heavy_limit(&self) -> Option<u64> {
        self.0.config().heavy_limit
    }

    /// The directory for segments that do not fit in memory.
    #[getter]
    fn spill_dir(&self) -> Option<&Path> {
        self.0.zone().spill().map(SpillDirectory::path)
    }

    fn ready_bytes(&self) -> u64 {
        self.0.ready_bytes()
    }

    fn used_bytes(&self) -> u64 {
        self.0.used_bytes()
    }

    #[pyo3(signature = (key, shape, element, data = None, *, dtype = None, fortran = false, trailing_bytes = false, mutable = false))]
    #[expect(clippy::too_many_arguments, reason = "Python passes them by name")]
    #[expect(
        clippy::needless_pass_by_value,
        reason = "converted from Python objects"
    )]
    fn create_tensor(
        &self,
        py: Python<'_>,
        key: &str,
        shape: Vec<u64>,
        element: &str,
        data: Option<Payload>,
        dtype: Option<String>,
        fortran: bool,
        trailing_bytes: bool,
        mutable: bool,
    ) -> PyResult<Segment> {
        let layout = Layout {
            fortran,
            trailing_bytes,
            mutable,
        };
        let spec = layout.spec(py, key, &shape, element, dtype)?;
        let bytes = data.as_ref().map(|data| data.bytes(py));
        without_gil(py, || self.0.create_tensor(spec, bytes)).map(Segment::new)
    }

    /// Write a table or array of anything with the Arrow C data interface, with one copy.
    #[pyo3(signature = (key, source, *, as_array = false, views = false, streamed = false))]
    fn create_table(
        &self,
        py: Python<'_>,
        key: &str,
        source: Arrays,
        as_array: bool,
        views: bool,
        streamed: bool,
    ) -> PyResult<Segment> {
        let table = new_table(key, source, as_array, views, streamed);
        without_gil(py, || self.0.create_table(table)).map(Segment::new)
    }

    /// Lay out a table of zeros, to be filled in place.
    fn alloc_table(
        &self,
        py: Python<'_>,
        key: &str,
        schema: PySchema,
        rows: usize,
    ) -> PyResult<Segment> {
        let (spec, schema) = (table_spec(key), schema.into_inner());
        without_gil(py, || self.0.alloc_table(spec, &schema, rows)).map(Segment::new)
    }

    /// A new descriptor by which a worker maps the budget, for subprocess's `pass_fds`.
    fn budget_fd(&self, py: Python<'_>) -> PyResult<RawFd> {
        let file = self.0.budget_file().map_err(|error| to_py(py, error))?;
        Ok(file.into_raw_fd())
    }

    /// Take over the tensor whose descriptor came with an OUTPUT frame of the worker in `seat`.
    fn adopt(&self, py: Python<'_>, channel: &Channel, seat: usize) -> PyResult<Segment> {
        let file = channel.take_descriptor(py, Kind::Output)?;
        without_gil(py, || self.0.adopt(file, seat)).map(Segment::kept_by_views)
    }

    fn publish(&self, py: Python<'_>, segment: &Segment) -> PyResult<()> {
        without_gil(py, || self.0.publish(&segment.inner))
    }

    fn commit(
        &self,
        py: Python<'_>,
        version: u64,
        changes: Vec<(String, Option<PyRef<'_, Segment>>)>,
    ) -> PyResult<()> {
        let changes: Vec<_> = changes
            .into_iter()
            .map(|(key, segment)| (key, segment.map(|segment| Arc::clone(&segment.inner))))
            .collect();
        without_gil(py, || self.0.commit(version, &changes))
    }

    fn close(&self, py: Python<'_>) -> PyResult<()> {
        without_gil(py, || self.0.close())
    }
}

/// How Python says how a tensor lies.
#[derive(Clone, Copy)]
pub(crate) struct Layout {
    pub(crate) fortran: bool,
    pub(crate) trailing_bytes: bool,
    pub(crate) mutable: bool,
}

impl Layout {
    pub(crate) fn spec(
        self,
        py: Python<'_>,
        key: &str,
        shape: &[u64],
        element: &str,
        dtype: Option<String>,
    ) -> PyResult<TensorSpec> {
        let order = match (self.fortran, self.trailing_bytes) {
            (false, _) => Order::C,
            (true, false) => Order::Fortran,
            (true, true) => Order::FortranItems,
        };
        let spec = ElementType::parse(element)
            .and_then(|element| TensorSpec::dense(key, element, shape, order))
            .map_err(|error| to_py(py, error))?;
        Ok(TensorSpec {
            dtype,
            mutable: self.mutable,
            ..spec
        })
    }
}

/// A session, whether it is alive, its entries, their bytes, and whose it is.
type Found = (String, bool, u64, u64, u32);

/// Every session that has names on this machine.
#[pyfunction]
pub(crate) fn sessions(py: Python<'_>) -> PyResult<Vec<Found>> {
    let found = without_gil(py, theus::sweep::sessions)?;
    let describe = |info: theus::sweep::SessionInfo| {
        let id = info.id.to_string();
        (id, info.alive, info.entries, info.bytes, info.user)
    };
    Ok(found.into_iter().map(describe).collect())
}

/// A catalog's rows: key, segment name, version, length in bytes.
type Rows = Vec<(String, String, u64, u64)>;

/// State version and rows of a living session's catalog.
#[pyfunction]
pub(crate) fn catalog(py: Python<'_>, session: &str) -> PyResult<(u64, Rows)> {
    let id: SessionId = session.parse().map_err(|error| to_py(py, error))?;
    let (version, entries) = without_gil(py, || theus::catalog::read_catalog(&id))?;
    let rows = entries.into_iter().map(|entry| {
        (
            entry.key,
            entry.segment.to_string(),
            entry.version,
            entry.length,
        )
    });
    Ok((version, rows.collect()))
}

/// Remove what dead sessions of this user left; the names that were removed.
#[pyfunction]
#[pyo3(signature = (spill_dir = None))]
#[expect(
    clippy::needless_pass_by_value,
    reason = "converted from a Python object"
)]
pub(crate) fn sweep(py: Python<'_>, spill_dir: Option<PathBuf>) -> PyResult<Vec<String>> {
    without_gil(py, || theus::sweep::sweep(spill_dir.as_deref()))
}

/// How many forks lie between this process and the one that first loaded the library.
#[pyfunction]
pub(crate) fn fork_generation() -> u64 {
    theus::fork_generation()
}
