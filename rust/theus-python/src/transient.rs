//! `Transient`: the large parts of one message.

#![expect(
    clippy::needless_pass_by_value,
    reason = "arguments are converted into values of their own"
)]

use std::path::PathBuf;
use std::sync::Arc;

use pyo3::prelude::*;
use pyo3::types::PyTuple;

use crate::buffer::Buffer;
use crate::error::{to_py, without_gil};
use crate::payload::Payload;

/// A nameless segment with a message's pickle (part 0) and buffers (the others).
#[pyclass(frozen, module = "theus._theus")]
pub(crate) struct Transient(pub(crate) Arc<theus::Transient>);

#[pymethods]
impl Transient {
    /// Copies the pieces of a pickle and the buffers in, in parallel. A buffer given as a number is
    /// so many zero bytes, to be filled by `write`.
    #[staticmethod]
    #[pyo3(signature = (pickle, buffers, what, spill_dir = None))]
    fn create(
        py: Python<'_>,
        pickle: Vec<Payload>,
        buffers: Vec<Slot>,
        what: &str,
        spill_dir: Option<PathBuf>,
    ) -> PyResult<Self> {
        let pickle: Vec<&[u8]> = pickle.iter().map(|piece| piece.bytes(py)).collect();
        let buffers: Vec<_> = buffers.iter().map(|slot| slot.bytes(py)).collect();
        without_gil(py, || {
            let mut lengths = vec![pickle.iter().map(|piece| piece.len()).sum()];
            lengths.extend(buffers.iter().map(|(length, _)| length));
            let transient = theus::Transient::create(&lengths, what, spill_dir.as_deref())?;
            let mut offset = 0;
            let mut pieces = Vec::with_capacity(pickle.len() + buffers.len());
            for piece in pickle {
                pieces.push((offset, piece));
                offset += piece.len();
            }
            for (part, (_, bytes)) in transient.parts()[1..].iter().zip(&buffers) {
                pieces.extend(bytes.map(|bytes| (part.offset, bytes)));
            }
            transient.fill(&pieces)?;
            Ok(transient)
        })
        .map(|transient| Self(Arc::new(transient)))
    }

    /// (offset, length) of each part.
    #[getter]
    fn parts<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyTuple>> {
        let parts = self.0.parts().iter();
        PyTuple::new(py, parts.map(|part| (part.offset, part.length)))
    }

    fn __len__(&self) -> usize {
        self.0.length()
    }

    /// Copy `data` to `offset`, before it is sent.
    fn write(&self, py: Python<'_>, offset: usize, data: Payload) -> PyResult<()> {
        let bytes = data.bytes(py);
        without_gil(py, || self.0.fill(&[(offset, bytes)]))
    }

    /// A private copy-on-write view of the bytes, a new one at each call.
    fn private(&self, py: Python<'_>) -> PyResult<Buffer> {
        let mapping = self.0.private().map_err(|error| to_py(py, error))?;
        Ok(Buffer::new(Arc::new(mapping)))
    }
}

/// A buffer to be copied, or the room for one.
#[derive(FromPyObject)]
pub(crate) enum Slot {
    Room(usize),
    Bytes(Payload),
}

impl Slot {
    fn bytes(&self, py: Python<'_>) -> (usize, Option<&[u8]>) {
        match self {
            Self::Room(length) => (*length, None),
            Self::Bytes(payload) => {
                let bytes = payload.bytes(py);
                (bytes.len(), Some(bytes))
            }
        }
    }
}
