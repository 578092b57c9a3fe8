//! Arrow data by the C data interface, at the offsets that its arrays say.
//!
//! arrow-rs applies the offset of a struct twice when another struct, a fixed size list or a union
//! has it as a child: `ArrayData::slice` moves a struct's children, and making an array of the slice
//! moves them again. Here offsets are resolved from the outside in, before any array is made.
//!
//! Source: the Arrow `PyCapsule` interface, and the C data and C stream interfaces.

#![expect(unsafe_code, reason = "the Arrow C data interface is one of C")]

use std::ffi::CStr;
use std::sync::Arc;

use arrow::array::{Array, ArrayData, ArrayDataBuilder, ArrayRef, make_array};
use arrow::datatypes::{DataType, FieldRef, UnionMode};
use arrow::error::ArrowError;
use arrow::ffi::{FFI_ArrowArray, from_ffi_and_data_type};
use arrow::ffi_stream::FFI_ArrowArrayStream;
use pyo3::exceptions::PyValueError;
use pyo3::intern;
use pyo3::prelude::*;
use pyo3::types::{PyCapsule, PyTuple};
use pyo3_arrow::PyField;

/// Arrays of one type, from an object that has `__arrow_c_array__` or `__arrow_c_stream__`.
pub(crate) struct Arrays {
    pub(crate) field: FieldRef,
    source: Source,
}

enum Source {
    /// One array, until it is taken.
    Single(Option<FFI_ArrowArray>),
    Stream(FFI_ArrowArrayStream),
}

impl<'py> FromPyObject<'_, 'py> for Arrays {
    type Error = PyErr;

    fn extract(object: Borrowed<'_, 'py, PyAny>) -> PyResult<Self> {
        let py = object.py();
        if let Some(export) = object.getattr_opt(intern!(py, "__arrow_c_array__"))? {
            let capsules = export.call0()?.cast_into::<PyTuple>()?;
            let schema = capsules.get_item(0)?.cast_into::<PyCapsule>()?;
            let array = capsules.get_item(1)?.cast_into::<PyCapsule>()?;
            let field = PyField::from_arrow_pycapsule(&schema)?.into_inner();
            let pointer = array.pointer_checked(Some(c"arrow_array"))?;
            // SAFETY: the capsule's name says what it points to, and the interface that the
            // structure is moved out of it by whoever takes it, which leaves a released one behind.
            let array = unsafe { FFI_ArrowArray::from_raw(pointer.cast().as_ptr()) };
            if array.is_released() {
                let reason = "the array in its capsule was taken by somebody else before";
                return Err(PyValueError::new_err(reason));
            }
            let source = Source::Single(Some(array));
            return Ok(Self { field, source });
        }
        let export = object.getattr(intern!(py, "__arrow_c_stream__"))?;
        let capsule = export.call0()?.cast_into::<PyCapsule>()?;
        let pointer = capsule.pointer_checked(Some(c"arrow_array_stream"))?;
        // SAFETY: as above.
        let mut stream = unsafe { FFI_ArrowArrayStream::from_raw(pointer.cast().as_ptr()) };
        let field = schema_of(&mut stream).map_err(|e| PyValueError::new_err(e.to_string()))?;
        let source = Source::Stream(stream);
        Ok(Self { field, source })
    }
}

impl Arrays {
    /// Whether it is one array rather than a stream of them.
    pub(crate) fn is_single(&self) -> bool {
        matches!(self.source, Source::Single(_))
    }

    fn import(&self, array: FFI_ArrowArray) -> Result<ArrayRef, ArrowError> {
        let data_type = self.field.data_type().clone();
        // SAFETY: who exported the array promises that it is one of the type in its schema.
        let data = unsafe { from_ffi_and_data_type(array, data_type) }?;
        Ok(resolve(&data, 0, data.len()))
    }
}

impl Iterator for Arrays {
    type Item = Result<ArrayRef, ArrowError>;

    fn next(&mut self) -> Option<Self::Item> {
        let array = match &mut self.source {
            Source::Single(array) => Ok(array.take()),
            Source::Stream(stream) => next_of(stream),
        };
        match array {
            Ok(array) => array.map(|array| self.import(array)),
            Err(error) => Some(Err(error)),
        }
    }
}

fn schema_of(stream: &mut FFI_ArrowArrayStream) -> Result<FieldRef, ArrowError> {
    let mut schema = arrow::ffi::FFI_ArrowSchema::empty();
    let Some(get_schema) = stream.get_schema else {
        let reason = "the stream was taken by somebody else before";
        return Err(ArrowError::CDataInterface(reason.to_owned()));
    };
    // SAFETY: the stream is not released, and the schema is to be filled by it.
    let code = unsafe { get_schema(&raw mut *stream, &raw mut schema) };
    if code != 0 {
        return Err(last_error(stream, code));
    }
    Ok(Arc::new((&schema).try_into()?))
}

fn next_of(stream: &mut FFI_ArrowArrayStream) -> Result<Option<FFI_ArrowArray>, ArrowError> {
    let mut array = FFI_ArrowArray::empty();
    let Some(get_next) = stream.get_next else {
        return Ok(None);
    };
    // SAFETY: the stream is not released, and the array is to be filled by it.
    let code = unsafe { get_next(&raw mut *stream, &raw mut array) };
    match code {
        0 if array.is_released() => Ok(None),
        0 => Ok(Some(array)),
        code => Err(last_error(stream, code)),
    }
}

fn last_error(stream: &mut FFI_ArrowArrayStream, code: i32) -> ArrowError {
    let text = stream.get_last_error.and_then(|get| {
        // SAFETY: the stream is not released; the text is valid until its next call.
        let text = unsafe { get(&raw mut *stream) };
        // SAFETY: null, or a text that ends with a zero byte.
        (!text.is_null()).then(|| unsafe { CStr::from_ptr(text) })
    });
    let text = text.map_or_else(
        || format!("the stream failed with code {code}"),
        |text| text.to_string_lossy().into_owned(),
    );
    ArrowError::CDataInterface(text)
}

/// The `length` items from `start` on, counted from the array's own offset.
fn resolve(data: &ArrayData, start: usize, length: usize) -> ArrayRef {
    let first = data.offset() + start;
    let child = |place: usize, start: usize, length: usize| {
        resolve(&data.child_data()[place], start, length).to_data()
    };
    let whole = |place: usize| child(place, 0, data.child_data()[place].len());
    let all = || 0..data.child_data().len();
    let built = ArrayDataBuilder::new(data.data_type().clone())
        .len(length)
        .nulls(data.nulls().map(|nulls| nulls.slice(start, length)));
    let built = match data.data_type() {
        DataType::Struct(_) => built.child_data(all().map(|c| child(c, first, length)).collect()),
        DataType::FixedSizeList(_, size) => {
            let size = usize::try_from(*size).unwrap_or(0);
            built.add_child_data(child(0, first * size, length * size))
        }
        DataType::Union(_, UnionMode::Sparse) => built
            .add_buffer(data.buffers()[0].slice_with_length(first, length))
            .child_data(all().map(|c| child(c, first, length)).collect()),
        // The others' children lie where offsets, keys or run ends say.
        _ => built
            .offset(first)
            .buffers(data.buffers().to_vec())
            .child_data(all().map(whole).collect()),
    };
    // SAFETY: the parts of an array that its exporter promises to be valid.
    make_array(unsafe { built.build_unchecked() })
}
