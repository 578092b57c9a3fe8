//! Attachments on their way from Python into a frame, without a copy where the socket takes them.

#![expect(unsafe_code, reason = "the bytes of a buffer export are read in place")]

use pyo3::exceptions::PyBufferError;
use pyo3::prelude::*;
use pyo3::pybacked::PyBackedBytes;
use pyo3::types::PyBytes;
use theus::dispatch::Kept;

use pyo3::buffer::PyUntypedBuffer;

/// The bytes of a Python object, for as long as this lives.
pub(crate) enum Payload {
    /// Immutable, so it can also wait in a queue as it is.
    Bytes(PyBackedBytes),
    /// Any other C-contiguous export. Its owner may write to it later.
    Buffer(PyUntypedBuffer),
}

impl<'a, 'py> FromPyObject<'a, 'py> for Payload {
    type Error = PyErr;

    fn extract(object: Borrowed<'a, 'py, PyAny>) -> PyResult<Self> {
        if let Ok(bytes) = object.cast::<PyBytes>() {
            return Ok(Self::Bytes(bytes.to_owned().into()));
        }
        let buffer = PyUntypedBuffer::get(&object)?;
        if buffer.is_c_contiguous() {
            Ok(Self::Buffer(buffer))
        } else {
            Err(PyBufferError::new_err(
                "an attachment has to be C-contiguous",
            ))
        }
    }
}

impl Payload {
    /// The bytes, to be used before the GIL is let go: no Python code changes them until then.
    pub(crate) fn bytes(&self, _py: Python<'_>) -> &[u8] {
        match self {
            Self::Bytes(bytes) => bytes,
            // An empty export may have a null pointer.
            Self::Buffer(buffer) if buffer.len_bytes() == 0 => &[],
            Self::Buffer(buffer) => {
                // SAFETY: a C-contiguous export is `len_bytes` readable bytes from `buf_ptr`, and
                // stays so until it is released, which dropping `self` does. A thread that writes
                // to them without the GIL breaks the exporter's own rules; it can change which
                // bytes are sent, but nothing is decided by them here.
                unsafe { std::slice::from_raw_parts(buffer.buf_ptr().cast(), buffer.len_bytes()) }
            }
        }
    }

    /// What holds the bytes from `skip` on while they wait to be sent.
    pub(crate) fn keep(&self, py: Python<'_>, skip: usize) -> Kept {
        match self {
            Self::Bytes(bytes) => Box::new(Rest {
                bytes: bytes.clone_ref(py),
                skip,
            }),
            Self::Buffer(_) => Box::new(self.bytes(py)[skip..].to_vec()),
        }
    }
}

/// An immutable Python bytes object, of which the first `skip` bytes are sent.
struct Rest {
    bytes: PyBackedBytes,
    skip: usize,
}

impl AsRef<[u8]> for Rest {
    fn as_ref(&self) -> &[u8] {
        &self.bytes[self.skip..]
    }
}
