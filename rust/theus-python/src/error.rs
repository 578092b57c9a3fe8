//! The core's errors as Python exceptions, variant by variant.

use pyo3::exceptions::{
    PyBrokenPipeError, PyEOFError, PyMemoryError, PyOSError, PyPermissionError, PyTypeError,
    PyValueError,
};
use pyo3::prelude::*;
use pyo3::types::PyType;
use theus::Error;

/// The exception for `error`: a class of `theus.errors`, or a builtin.
pub(crate) fn to_py(py: Python<'_>, error: Error) -> PyErr {
    let message = error.to_string();
    let code = match &error {
        Error::DescriptorLimit { source, .. } => source.raw_os_error(),
        _ => None,
    };
    let class = match error {
        Error::Os { source, .. } => {
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
        | Error::StrayDescriptor => "ProtocolError",
        Error::DescriptorLimit { .. } => "DescriptorLimitError",
        Error::MappingLimit { .. }
        | Error::AddressSpaceLimit { .. }
        | Error::OutOfMemory { .. } => "MappingLimitError",
        Error::SegmentNotFound { .. } => "SegmentNotFoundError",
        Error::EntryNotFound { .. } => "EntryNotFoundError",
        Error::HeavyZoneFull { .. } => "HeavyZoneFullError",
        Error::SpillDirectory { .. } => "SpillDirectoryError",
        Error::CorruptSegment { .. } => "CorruptSegmentError",
        Error::Mutable { .. } | Error::Unpublished { .. } => "UnpublishedError",
        Error::SessionClosed { .. } => "SessionClosedError",
    };
    let found = py
        .import("theus.errors")
        .and_then(|errors| errors.getattr(class))
        .and_then(|class| Ok(class.cast_into::<PyType>()?));
    match found {
        Ok(class) => match code {
            Some(code) => PyErr::from_type(class, (code, message)),
            None => PyErr::from_type(class, message),
        },
        Err(error) => error,
    }
}

/// Runs `work` without the GIL; arguments have been converted before.
pub(crate) fn without_gil<T: Send>(
    py: Python<'_>,
    work: impl FnOnce() -> theus::Result<T> + Send,
) -> PyResult<T> {
    py.detach(work).map_err(|error| to_py(py, error))
}
