//! `Buffer`: a mapping behind the buffer protocol.

#![expect(unsafe_code, reason = "the buffer protocol is a C interface")]

use std::ffi::{c_int, c_void};
use std::ptr::{NonNull, null_mut};
use std::sync::Arc;

use arrow::array::{ArrayData, ArrayRef, make_array};
use arrow::buffer::Buffer as ArrowBuffer;
use arrow::datatypes::{DataType, Field};
use pyo3::exceptions::{PyBufferError, PyValueError};
use pyo3::ffi;
use pyo3::prelude::*;
use pyo3::types::PyTuple;
use pyo3_arrow::ffi::to_array_pycapsules;
use theus::layout::tensor::ElementType;
use theus::mapping::Mapping;

use crate::error::to_py;

/// A buffer-protocol export of a mapping, which it keeps alive.
#[pyclass(frozen, module = "theus._theus")]
pub(crate) struct Buffer {
    mapping: Arc<Mapping>,
    /// What has to live as long as somebody has the bytes.
    _kept: Option<Py<PyAny>>,
}

impl Buffer {
    pub(crate) fn new(mapping: Arc<Mapping>) -> Self {
        let kept = None;
        Self {
            mapping,
            _kept: kept,
        }
    }

    pub(crate) fn keeping(mapping: Arc<Mapping>, kept: Py<PyAny>) -> Self {
        let kept = Some(kept);
        Self {
            mapping,
            _kept: kept,
        }
    }
}

#[pymethods]
impl Buffer {
    #[expect(clippy::needless_pass_by_value, reason = "the protocol's signature")]
    unsafe fn __getbuffer__(
        slf: Bound<'_, Self>,
        view: *mut ffi::Py_buffer,
        flags: c_int,
    ) -> PyResult<()> {
        let mapping = &slf.get().mapping;
        let readonly = !mapping.is_writable();
        if readonly && flags & ffi::PyBUF_WRITABLE == ffi::PyBUF_WRITABLE {
            return Err(PyBufferError::new_err(
                "the entry is published and read-only: copy it to change the copy",
            ));
        }
        let length = ffi::Py_ssize_t::try_from(mapping.len())?;
        let address = mapping.as_mut_ptr().cast::<c_void>();
        // SAFETY: Python passes a view to fill; the object given with it keeps the mapping, and so
        // the range, alive until the view is released.
        let filled = unsafe {
            ffi::PyBuffer_FillInfo(
                view,
                slf.as_ptr(),
                address,
                length,
                c_int::from(readonly),
                flags,
            )
        };
        if filled == 0 {
            Ok(())
        } else {
            Err(PyErr::fetch(slf.py()))
        }
    }

    #[expect(clippy::unused_self, reason = "the protocol's signature")]
    unsafe fn __releasebuffer__(&self, view: *mut ffi::Py_buffer) {
        // SAFETY: PyBuffer_FillInfo allocated nothing; Python drops the reference to the object.
        unsafe { (*view).internal = null_mut() };
    }

    fn __len__(&self) -> usize {
        self.mapping.len()
    }

    #[getter]
    fn readonly(&self) -> bool {
        !self.mapping.is_writable()
    }

    #[getter]
    fn address(&self) -> usize {
        self.mapping.address()
    }

    /// Arrow C data interface capsules (schema, array) over these very bytes.
    fn arrow_array<'py>(
        &self,
        py: Python<'py>,
        element: &str,
        offset: usize,
        length: usize,
    ) -> PyResult<Bound<'py, PyTuple>> {
        let element = ElementType::parse(element).map_err(|error| to_py(py, error))?;
        let item = usize::try_from(element.bytes())?;
        let bytes = length.checked_mul(item);
        let end = bytes.and_then(|bytes| bytes.checked_add(offset));
        let (Some(bytes), Some(end)) = (bytes, end) else {
            return Err(PyValueError::new_err("the array is larger than any memory"));
        };
        if end > self.mapping.len() || !offset.is_multiple_of(item) || self.mapping.is_writable() {
            return Err(PyValueError::new_err(
                "an Arrow array needs aligned items inside a published segment",
            ));
        }
        let address = self.mapping.as_mut_ptr().wrapping_add(offset);
        let start = NonNull::new(address).ok_or_else(|| PyValueError::new_err("no mapping"))?;
        // SAFETY: the range was checked to lie in the mapping, which the buffer keeps alive. Its
        // items are handed on and not looked at here: those of a mutable entry, and a draft's own
        // pages after it was sealed, may still change.
        let buffer = unsafe {
            ArrowBuffer::from_custom_allocation(start, bytes, Arc::<Mapping>::clone(&self.mapping))
        };
        let data_type = arrow_type(element);
        let data = ArrayData::builder(data_type.clone())
            .len(length)
            .add_buffer(buffer)
            .build()
            .map_err(|error| PyValueError::new_err(error.to_string()))?;
        let array: ArrayRef = make_array(data);
        let field = Arc::new(Field::new("", data_type, false));
        Ok(to_array_pycapsules(py, field, &array, None)?)
    }
}

fn arrow_type(element: ElementType) -> DataType {
    match element {
        ElementType::I8 => DataType::Int8,
        ElementType::I16 => DataType::Int16,
        ElementType::I32 => DataType::Int32,
        ElementType::I64 => DataType::Int64,
        ElementType::U8 => DataType::UInt8,
        ElementType::U16 => DataType::UInt16,
        ElementType::U32 => DataType::UInt32,
        ElementType::U64 => DataType::UInt64,
        ElementType::F16 => DataType::Float16,
        ElementType::F32 => DataType::Float32,
        ElementType::F64 => DataType::Float64,
    }
}
