//! The core's errors as Python exceptions, variant by variant.

use pyo3::exceptions::{
    PyBrokenPipeError, PyEOFError, PyMemoryError, PyOSError, PyPermissionError, PyRuntimeError,
    PyTimeoutError, PyTypeError, PyValueError,
};
use pyo3::prelude::*;
use pyo3::types::PyTuple;
use theus::Error;
use theus::error::Death;

/// The exception for `error`: a class of `theus.errors`, or a builtin.
#[expect(clippy::needless_pass_by_value, reason = "as map_err gives it")]
pub(crate) fn to_py(py: Python<'_>, error: Error) -> PyErr {
    of_core(py, &error)
}

/// As [`to_py`], for an error that several may have.
#[expect(
    clippy::too_many_lines,
    reason = "an arm for each variant, without a wildcard"
)]
pub(crate) fn of_core(py: Python<'_>, error: &Error) -> PyErr {
    let message = error.to_string();
    let class = match error {
        Error::Os { source, .. } | Error::ProgramStart { source, .. } => {
            return match source.raw_os_error() {
                Some(code) => PyOSError::new_err((code, message)),
                None => PyOSError::new_err(message),
            };
        }
        Error::ForeignSegment { .. } => {
            return PyPermissionError::new_err((libc::EACCES, message));
        }
        Error::FrameMemory { .. } => return PyMemoryError::new_err(message),
        Error::ChannelEnd { .. } => return PyEOFError::new_err(message),
        Error::ChannelPeerGone { source } => {
            return PyBrokenPipeError::new_err((source.raw_os_error(), message));
        }
        Error::Shared(error) => return of_core(py, error),
        Error::TaskFailed {
            task,
            kind,
            message,
            ..
        } => {
            return named(py, "NativeTaskError", |class| {
                class.call1((task, kind, message))
            });
        }
        Error::TaskCancelled { .. } => return PyRuntimeError::new_err(message),
        Error::TaskNotFound { .. } => "NativeTaskNotFoundError",
        Error::PlainValue { .. } => "NotPlainError",
        Error::TaskTimeout { .. } => return PyTimeoutError::new_err(message),
        Error::ChannelSocket
        | Error::ControlPage { .. }
        | Error::KeyTooLong { .. }
        | Error::Table { .. }
        | Error::Column { .. }
        | Error::DictionaryOverflow { .. }
        | Error::InvalidName { .. }
        | Error::HandedOver { .. }
        | Error::NotStartedByEngine { .. }
        | Error::Unsupported { .. }
        | Error::ShapeMismatch { .. }
        | Error::ShapeOverflow { .. }
        | Error::LengthMismatch { .. } => return PyValueError::new_err(message),
        Error::UnsupportedElement { .. }
        | Error::DtypeMismatch { .. }
        | Error::NotATable { .. } => return PyTypeError::new_err(message),
        Error::FrameMagic { .. }
        | Error::FrameVersion { .. }
        | Error::FrameKind { .. }
        | Error::FrameCount { .. }
        | Error::FrameLength { .. }
        | Error::FrameIncomplete { .. }
        | Error::FrameDescriptor { .. }
        | Error::FrameMeaning { .. }
        | Error::WorkerAnswer { .. }
        | Error::StrayDescriptor => "ProtocolError",
        Error::DescriptorLimit { source, .. } => {
            let code = source.raw_os_error();
            return named(py, "DescriptorLimitError", |class| {
                class.call1((code, message))
            });
        }
        Error::MappingLimit { .. }
        | Error::AddressSpaceLimit { .. }
        | Error::OutOfMemory { .. } => "MappingLimitError",
        Error::SegmentNotFound { .. } => "SegmentNotFoundError",
        Error::EntryNotFound { .. } => "EntryNotFoundError",
        Error::HeavyZoneFull { .. } => "HeavyZoneFullError",
        Error::SpillDirectory { .. } => "SpillDirectoryError",
        Error::CorruptSegment { .. } => "CorruptSegmentError",
        Error::Mutable { .. } | Error::Unpublished { .. } => "UnpublishedError",
        Error::SessionClosed { .. } | Error::EngineClosed | Error::ForkedTask => {
            "SessionClosedError"
        }
        Error::WorkerDied { task, death } => return died(py, task, death),
        Error::PoisonTask { task, deaths } => return poison(py, task, deaths),
        Error::WorkerBroken { source, .. } => return broken(py, source, message),
        Error::WorkerStart {
            attempts,
            status,
            stderr,
            program,
            interpreter,
        } => {
            let program = if *interpreter {
                format!("{program} with this process's environment")
            } else {
                program.clone()
            };
            let arguments = (*attempts, *status, stderr, program);
            return named(py, "WorkerStartError", |class| class.call1(arguments));
        }
        Error::NativeWorker {
            program,
            reason,
            version,
            source,
        } => {
            let arguments = (program.display().to_string(), reason, *version);
            let error = named(py, "NativeWorkerError", |class| class.call1(arguments));
            error.set_cause(py, source.as_ref().map(|source| of_core(py, source)));
            return error;
        }
    };
    named(py, class, |class| class.call1((message,)))
}

fn died(py: Python<'_>, task: &str, death: &Death) -> PyErr {
    let arguments = (task, death.pid, death.status, &death.trace);
    named(py, "WorkerDiedError", |class| class.call1(arguments))
}

fn poison(py: Python<'_>, task: &str, deaths: &[Death]) -> PyErr {
    let deaths = deaths
        .iter()
        .map(|death| died(py, task, death).into_value(py));
    let deaths = PyTuple::new(py, deaths.collect::<Vec<_>>());
    named(py, "PoisonTaskError", |class| class.call1((task, deaths?)))
}

/// A worker whose frames cannot be taken; memory that is short here is told as that.
fn broken(py: Python<'_>, source: &Error, message: String) -> PyErr {
    let error = match source {
        Error::FrameMemory { .. } => PyMemoryError::new_err(message),
        _ => named(py, "ProtocolError", |class| class.call1((message,))),
    };
    error.set_cause(py, Some(of_core(py, source)));
    error
}

/// An exception of `theus.errors`; whatever is raised in the making of it, if that fails.
fn named<'py>(
    py: Python<'py>,
    name: &str,
    make: impl FnOnce(Bound<'py, PyAny>) -> PyResult<Bound<'py, PyAny>>,
) -> PyErr {
    let class = py
        .import("theus.errors")
        .and_then(|errors| errors.getattr(name));
    class
        .and_then(make)
        .map_or_else(|error| error, PyErr::from_value)
}

/// Runs `work` without the GIL; arguments have been converted before.
pub(crate) fn without_gil<T: Send>(
    py: Python<'_>,
    work: impl FnOnce() -> theus::Result<T> + Send,
) -> PyResult<T> {
    py.detach(work).map_err(|error| to_py(py, error))
}
