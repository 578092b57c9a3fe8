//! `Function`, `Setup`, `StaleTask`: functions on their way to workers.

use std::sync::{Arc, Mutex, PoisonError};

use pyo3::prelude::*;
use theus::dispatch::{self, Outcome};

use crate::transient::Transient;

/// A function ready to be sent.
#[pyclass(frozen, module = "theus._theus")]
pub(crate) struct Function(pub(crate) Arc<dispatch::Function>);

#[pymethods]
impl Function {
    /// `form` and `definition` are those of a FUNCTION frame; `keepalive` lives as long as a worker may
    /// use the function.
    #[new]
    #[pyo3(signature = (name, form, definition, *, parts = None, retries = 0, keepalive = None))]
    fn new(
        name: String,
        form: u64,
        definition: &[u8],
        parts: Option<&Transient>,
        retries: u32,
        keepalive: Option<Py<PyAny>>,
    ) -> Self {
        let mut function = dispatch::Function::new(name, form, definition.into(), retries);
        function.parts = parts.map(|parts| Arc::clone(&parts.0));
        function.keepalive = keepalive.map(|it| Box::new(it) as _);
        Self(Arc::new(function))
    }

    /// For messages.
    #[getter]
    fn name(&self) -> &str {
        &self.0.name
    }
}

/// The environment that a worker takes over from its owner: the attachment of a SETUP frame.
#[pyclass(frozen, module = "theus._theus")]
pub(crate) struct Setup(pub(crate) Arc<dispatch::Setup>);

#[pymethods]
impl Setup {
    #[new]
    fn new(data: &[u8]) -> Self {
        Self(Arc::new(dispatch::Setup(data.into())))
    }
}

/// A task whose function its worker cannot import: to be sent again in another form, or given up.
#[pyclass(frozen, module = "theus._theus")]
pub(crate) struct StaleTask(Mutex<Option<dispatch::StaleTask>>);

impl StaleTask {
    pub(crate) fn new(task: dispatch::StaleTask) -> Self {
        Self(Mutex::new(Some(task)))
    }

    fn take(&self) -> Option<dispatch::StaleTask> {
        let mut task = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        task.take()
    }
}

#[pymethods]
impl StaleTask {
    /// What the function was made to keep.
    #[getter]
    fn keepalive(&self, py: Python<'_>) -> Option<Py<PyAny>> {
        let task = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let function = task.as_ref()?.function()?;
        let object = function.keepalive.as_ref()?.downcast_ref::<Py<PyAny>>()?;
        Some(object.clone_ref(py))
    }

    /// Send the task again with this function.
    fn resend(&self, function: &Function) {
        if let Some(task) = self.take() {
            task.resend(Arc::clone(&function.0));
        }
    }

    /// Give the task up with this exception.
    fn fail(&self, exception: Py<PyAny>) {
        if let Some(task) = self.take() {
            task.give_up(Outcome::Foreign(std::sync::Arc::new(exception)));
        }
    }
}

pub(crate) fn register(module: &Bound<'_, PyModule>) -> PyResult<()> {
    module.add_class::<Function>()?;
    module.add_class::<Setup>()?;
    module.add_class::<StaleTask>()
}
