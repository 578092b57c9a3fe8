//! `Snapshot`: one version of the state, as workers are told it.

use std::sync::{Arc, OnceLock};

use pyo3::prelude::*;
use pyo3::pybacked::PyBackedBytes;
use theus::dispatch::{self, Change, DomainValue};

use crate::task::message;
use crate::transient::Transient;

/// One version of the state; it never changes.
#[pyclass(frozen, module = "theus._theus")]
pub(crate) struct Snapshot(pub(crate) Arc<dispatch::Snapshot>);

/// A key, and the pickle and its parts; None removes it.
type DomainChange<'py> = (
    String,
    Option<(PyBackedBytes, Option<PyRef<'py, Transient>>)>,
);

#[pymethods]
impl Snapshot {
    /// Version 0, without keys.
    #[new]
    fn new() -> Self {
        Self(Arc::default())
    }

    #[getter]
    fn version(&self) -> u64 {
        self.0.version()
    }

    /// The next version: keys of entries with their JSON descriptors, and keys of the domain with their
    /// pickles. None removes a key.
    fn changed(
        &self,
        version: u64,
        entries: Vec<(String, Option<PyBackedBytes>)>,
        domain: Vec<DomainChange<'_>>,
    ) -> Self {
        let entries: Vec<Change<[u8]>> = entries
            .into_iter()
            .map(|(key, value)| (key.into(), value.map(|value| Arc::from(&*value))))
            .collect();
        let domain: Vec<Change<DomainValue>> = domain
            .into_iter()
            .map(|(key, value)| {
                let value = value.map(|(data, parts)| {
                    Arc::new(DomainValue {
                        pickle: message(&data, parts.as_deref()),
                        plain: OnceLock::new(),
                    })
                });
                (key.into(), value)
            })
            .collect();
        Self(Arc::new(self.0.changed(version, &entries, &domain)))
    }

    /// Set the plain value that stands for a value of the domain where no pickles go.
    fn set_plain(&self, key: &str, plain: &[u8]) {
        self.0.set_plain(key, plain.into());
    }
}

pub(crate) fn register(module: &Bound<'_, PyModule>) -> PyResult<()> {
    module.add_class::<Snapshot>()
}
