//! A tensor as an Arrow IPC Tensor message whose body begins on a page.
//!
//! ```text
//! 0        ff ff ff ff                   continuation
//! 4        i32, little endian            length of the metadata, padding included
//! 8        flatbuffer Message(Tensor)    type, shape, strides, body, custom metadata
//! 4096 k   the items
//! ```
//!
//! Source: the Arrow columnar format, "Encapsulated message format", and Tensor.fbs.

use arrow_ipc::{
    Buffer, FloatingPoint, FloatingPointArgs, Int, IntArgs, KeyValue, KeyValueArgs, Message,
    MessageArgs, MessageHeader, MetadataVersion, Precision, Tensor, TensorArgs, TensorDim,
    TensorDimArgs, Type, root_as_message,
};
use flatbuffers::{FlatBufferBuilder, WIPOffset};

use crate::error::{Error, Result};

/// The body's alignment: a page, so that it can be mapped by itself.
pub const BODY_ALIGNMENT: usize = 4096;

const PREFIX_BYTES: usize = 8;
const CONTINUATION: [u8; 4] = [0xff; 4];
const MAX_METADATA: usize = 16 << 20;

/// The types of items that Arrow's tensors have.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[expect(missing_docs, reason = "the names say it")]
pub enum ElementType {
    I8,
    I16,
    I32,
    I64,
    U8,
    U16,
    U32,
    U64,
    F16,
    F32,
    F64,
}

const ELEMENTS: [(ElementType, &str); 11] = [
    (ElementType::I8, "i1"),
    (ElementType::I16, "i2"),
    (ElementType::I32, "i4"),
    (ElementType::I64, "i8"),
    (ElementType::U8, "u1"),
    (ElementType::U16, "u2"),
    (ElementType::U32, "u4"),
    (ElementType::U64, "u8"),
    (ElementType::F16, "f2"),
    (ElementType::F32, "f4"),
    (ElementType::F64, "f8"),
];

impl ElementType {
    /// The element type that numpy's `code` names, such as `f4`.
    ///
    /// # Errors
    /// [`Error::UnsupportedElement`] if there is none.
    pub fn parse(code: &str) -> Result<Self> {
        let found = ELEMENTS.iter().find(|(_, name)| *name == code);
        found
            .map(|(element, _)| *element)
            .ok_or_else(|| Error::UnsupportedElement {
                found: code.to_owned(),
            })
    }

    /// numpy's code.
    #[must_use]
    pub fn code(self) -> &'static str {
        ELEMENTS
            .iter()
            .find(|(element, _)| *element == self)
            .map_or("", |(_, name)| name)
    }

    /// Rust's name.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::I8 => "i8",
            Self::I16 => "i16",
            Self::I32 => "i32",
            Self::I64 => "i64",
            Self::U8 => "u8",
            Self::U16 => "u16",
            Self::U32 => "u32",
            Self::U64 => "u64",
            Self::F16 => "f16",
            Self::F32 => "f32",
            Self::F64 => "f64",
        }
    }

    /// Bytes of one item.
    #[must_use]
    pub const fn bytes(self) -> u64 {
        match self {
            Self::I8 | Self::U8 => 1,
            Self::I16 | Self::U16 | Self::F16 => 2,
            Self::I32 | Self::U32 | Self::F32 => 4,
            Self::I64 | Self::U64 | Self::F64 => 8,
        }
    }
}

/// The order of a tensor's dimensions in memory.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Order {
    /// Row-major.
    C,
    /// Column-major.
    Fortran,
    /// Column-major, but for the last dimension, the bytes of an item, which stay together.
    FortranItems,
}

/// What a tensor is, apart from where it lies.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TensorSpec {
    /// The items' type.
    pub element: ElementType,
    /// Items in each dimension.
    pub shape: Vec<u64>,
    /// Bytes from one item to the next in each dimension.
    pub strides: Vec<u64>,
    /// A dtype that the element type does not say, as free text.
    pub dtype: Option<String>,
    /// The entry's name.
    pub key: String,
    /// Whether it goes on changing after publication.
    pub mutable: bool,
}

impl TensorSpec {
    /// A dense tensor.
    ///
    /// # Errors
    /// [`Error::ShapeOverflow`] if it is larger than any memory.
    pub fn dense(key: &str, element: ElementType, shape: &[u64], order: Order) -> Result<Self> {
        let overflow = || Error::ShapeOverflow {
            shape: shape.to_vec(),
            item_bytes: element.bytes(),
        };
        let mut strides = vec![0; shape.len()];
        let mut step = element.bytes();
        let dims: Vec<usize> = match order {
            Order::C => (0..shape.len()).rev().collect(),
            Order::Fortran => (0..shape.len()).collect(),
            Order::FortranItems => {
                let last = shape.len().saturating_sub(1);
                std::iter::once(last).chain(0..last).collect()
            }
        };
        for dim in dims {
            strides[dim] = step;
            step = step.checked_mul(shape[dim].max(1)).ok_or_else(overflow)?;
        }
        // Room for the header, and for signed arithmetic in every reader.
        if step > (i64::MAX as u64) - (1 << 32) {
            return Err(overflow());
        }
        Ok(Self {
            element,
            shape: shape.to_vec(),
            strides,
            dtype: None,
            key: key.to_owned(),
            mutable: false,
        })
    }

    /// Bytes of the body.
    #[must_use]
    pub fn body_bytes(&self) -> u64 {
        if self.shape.contains(&0) {
            0
        } else {
            self.shape.iter().product::<u64>() * self.element.bytes()
        }
    }

    /// Whether the items lie in row-major order, one after the other.
    #[must_use]
    pub fn is_row_major(&self) -> bool {
        let mut step = self.element.bytes();
        let dims = self.shape.iter().zip(&self.strides).rev();
        self.shape.contains(&0)
            || dims.into_iter().all(|(&size, &stride)| {
                let fits = size == 1 || stride == step;
                step *= size;
                fits
            })
    }

    /// The bytes before the body; their number is where it begins.
    #[must_use]
    pub fn header(&self) -> Vec<u8> {
        let message = self.message();
        let metadata =
            (PREFIX_BYTES + message.len()).next_multiple_of(BODY_ALIGNMENT) - PREFIX_BYTES;
        let mut header = Vec::with_capacity(PREFIX_BYTES + metadata);
        header.extend_from_slice(&CONTINUATION);
        // Metadata is a name, a dtype and a shape: far below 2 GiB.
        let length = i32::try_from(metadata).unwrap_or(i32::MAX);
        header.extend_from_slice(&length.to_le_bytes());
        header.extend_from_slice(&message);
        header.resize(PREFIX_BYTES + metadata, 0);
        header
    }

    fn message(&self) -> Vec<u8> {
        let mut builder = FlatBufferBuilder::new();
        let dims: Vec<_> = self
            .shape
            .iter()
            .map(|&size| {
                let size = size.cast_signed();
                TensorDim::create(&mut builder, &TensorDimArgs { size, name: None })
            })
            .collect();
        let shape = builder.create_vector(&dims);
        let strides: Vec<i64> = self.strides.iter().map(|step| step.cast_signed()).collect();
        let strides = builder.create_vector(&strides);
        let (type_type, type_) = self.arrow_type(&mut builder);
        let body = Buffer::new(0, self.body_bytes().cast_signed());
        let tensor = Tensor::create(
            &mut builder,
            &TensorArgs {
                type_type,
                type_: Some(type_),
                shape: Some(shape),
                strides: Some(strides),
                data: Some(&body),
            },
        );
        let mut metadata = vec![("theus.kind", "tensor"), ("theus.name", self.key.as_str())];
        metadata.extend(self.dtype.as_deref().map(|dtype| ("theus.dtype", dtype)));
        metadata.extend(self.mutable.then_some(("theus.mutable", "true")));
        let pairs: Vec<_> = metadata
            .into_iter()
            .map(|(key, value)| {
                let key = Some(builder.create_string(key));
                let value = Some(builder.create_string(value));
                KeyValue::create(&mut builder, &KeyValueArgs { key, value })
            })
            .collect();
        let custom_metadata = builder.create_vector(&pairs);
        let message = Message::create(
            &mut builder,
            &MessageArgs {
                version: MetadataVersion::V5,
                header_type: MessageHeader::Tensor,
                header: Some(tensor.as_union_value()),
                bodyLength: self.body_bytes().cast_signed(),
                custom_metadata: Some(custom_metadata),
            },
        );
        builder.finish(message, None);
        builder.finished_data().to_vec()
    }

    fn arrow_type(
        &self,
        builder: &mut FlatBufferBuilder<'_>,
    ) -> (Type, WIPOffset<flatbuffers::UnionWIPOffset>) {
        let precision = match self.element {
            ElementType::F16 => Some(Precision::HALF),
            ElementType::F32 => Some(Precision::SINGLE),
            ElementType::F64 => Some(Precision::DOUBLE),
            _ => None,
        };
        if let Some(precision) = precision {
            let args = FloatingPointArgs { precision };
            let type_ = FloatingPoint::create(builder, &args);
            return (Type::FloatingPoint, type_.as_union_value());
        }
        let args = IntArgs {
            bitWidth: i32::try_from(self.element.bytes() * 8).unwrap_or(0),
            is_signed: matches!(
                self.element,
                ElementType::I8 | ElementType::I16 | ElementType::I32 | ElementType::I64
            ),
        };
        (Type::Int, Int::create(builder, &args).as_union_value())
    }
}

/// Where a header ends, from the first bytes of a segment of `length` bytes.
///
/// # Errors
/// The rule that does not hold.
pub fn body_offset(head: &[u8], length: u64) -> std::result::Result<usize, String> {
    let prefix = head
        .get(..PREFIX_BYTES)
        .ok_or("it is shorter than a message's prefix")?;
    if prefix[..4] != CONTINUATION {
        return Err("it does not begin with an Arrow message".to_owned());
    }
    let metadata = i32::from_le_bytes([prefix[4], prefix[5], prefix[6], prefix[7]]);
    let metadata = usize::try_from(metadata).map_err(|_| "its metadata has a negative length")?;
    let end = PREFIX_BYTES + metadata;
    if metadata > MAX_METADATA || end as u64 > length {
        return Err(format!("its metadata of {metadata} bytes does not fit"));
    }
    if !end.is_multiple_of(BODY_ALIGNMENT) {
        return Err(format!(
            "its body would begin at {end}, which is not on a page"
        ));
    }
    Ok(end)
}

/// Reads a header, checking everything that the bytes after it will be trusted for.
///
/// # Errors
/// The rule that does not hold.
pub fn read_header(header: &[u8], length: u64) -> std::result::Result<TensorSpec, String> {
    let flatbuffer = header.get(PREFIX_BYTES..).ok_or("it has no metadata")?;
    let message = root_as_message(flatbuffer).map_err(|error| format!("its metadata: {error}"))?;
    let tensor = message
        .header_as_tensor()
        .ok_or("its message is not a tensor")?;
    let element = element_of(&tensor)?;
    let shape: Vec<u64> = tensor
        .shape()
        .iter()
        .map(|dim| u64::try_from(dim.size()).map_err(|_| "a dimension is negative".to_owned()))
        .collect::<std::result::Result<_, _>>()?;
    let mut spec = TensorSpec::dense("", element, &shape, Order::C).map_err(|e| e.to_string())?;
    if let Some(strides) = tensor.strides() {
        if strides.len() != shape.len() {
            return Err("it has not as many strides as dimensions".to_owned());
        }
        spec.strides = strides
            .iter()
            .map(|step| u64::try_from(step).map_err(|_| "a stride is negative".to_owned()))
            .collect::<std::result::Result<_, _>>()?;
    }
    check_body(&spec, &tensor, header.len() as u64, length)?;
    for pair in message.custom_metadata().into_iter().flatten() {
        match (pair.key(), pair.value()) {
            (Some("theus.name"), Some(value)) => value.clone_into(&mut spec.key),
            (Some("theus.dtype"), Some(value)) => spec.dtype = Some(value.to_owned()),
            (Some("theus.mutable"), Some("true")) => spec.mutable = true,
            _ => {}
        }
    }
    Ok(spec)
}

fn element_of(tensor: &Tensor<'_>) -> std::result::Result<ElementType, String> {
    if let Some(float) = tensor.type_as_floating_point() {
        return match float.precision() {
            Precision::HALF => Ok(ElementType::F16),
            Precision::SINGLE => Ok(ElementType::F32),
            Precision::DOUBLE => Ok(ElementType::F64),
            other => Err(format!("its items have the precision {other:?}")),
        };
    }
    let int = tensor
        .type_as_int()
        .ok_or("its items are neither integers nor floats")?;
    match (int.bitWidth(), int.is_signed()) {
        (8, true) => Ok(ElementType::I8),
        (16, true) => Ok(ElementType::I16),
        (32, true) => Ok(ElementType::I32),
        (64, true) => Ok(ElementType::I64),
        (8, false) => Ok(ElementType::U8),
        (16, false) => Ok(ElementType::U16),
        (32, false) => Ok(ElementType::U32),
        (64, false) => Ok(ElementType::U64),
        (width, _) => Err(format!("its items are integers of {width} bits")),
    }
}

fn check_body(
    spec: &TensorSpec,
    tensor: &Tensor<'_>,
    body_offset: u64,
    length: u64,
) -> std::result::Result<(), String> {
    let body = length - body_offset.min(length);
    let data = tensor.data();
    let (Ok(offset), Ok(data_length)) =
        (u64::try_from(data.offset()), u64::try_from(data.length()))
    else {
        return Err("its body has a negative place".to_owned());
    };
    if offset != 0 || data_length != body {
        return Err(format!(
            "its body should be {data_length} bytes and is {body}"
        ));
    }
    if spec.shape.contains(&0) {
        return Ok(());
    }
    // Each item has bytes of its own and no others lie between them: a slice of all items, which
    // `Tensor::items` is, then lies in the body.
    let mut dims: Vec<_> = spec.shape.iter().zip(&spec.strides).collect();
    dims.retain(|&(&size, _)| size > 1);
    dims.sort_by_key(|&(_, &stride)| stride);
    let mut step = spec.element.bytes();
    for (&size, &stride) in dims {
        if stride != step {
            return Err(format!(
                "its items do not lie side by side: a stride is {stride} bytes, not {step}"
            ));
        }
        // The product was found to fit when the shape was read.
        step *= size;
    }
    if step > body {
        return Err(format!(
            "its items reach {step} bytes into a body of {body}"
        ));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_header_reads_back() {
        let mut spec = TensorSpec::dense("m", ElementType::F32, &[3, 5], Order::Fortran).unwrap();
        spec.dtype = Some("\"<f4\"".to_owned());
        let header = spec.header();
        let length = header.len() as u64 + spec.body_bytes();
        assert_eq!(body_offset(&header, length).unwrap(), header.len());
        assert_eq!(read_header(&header, length).unwrap(), spec);
        assert!(read_header(&header, length - 1).is_err());
    }

    #[test]
    fn items_that_share_bytes_or_have_gaps_are_refused() {
        let dense = TensorSpec::dense("m", ElementType::F32, &[2, 1, 3], Order::C).unwrap();
        let read = |strides: [u64; 3], body: u64| {
            let mut spec = dense.clone();
            spec.strides = strides.to_vec();
            let header = spec.header();
            read_header(&header, header.len() as u64 + body)
        };
        assert_eq!(read([12, 12, 4], 24).as_ref(), Ok(&dense));
        // A dimension of one item may have any stride.
        assert!(read([12, 400, 4], 24).is_ok() && read([4, 0, 8], 24).is_ok());
        for strides in [[0, 0, 0], [12, 12, 0], [4, 4, 4], [16, 16, 4], [12, 12, 2]] {
            let reason = read(strides, 24).unwrap_err();
            assert!(reason.contains("side by side"), "{strides:?}: {reason}");
        }
    }

    #[test]
    fn a_flipped_bit_never_panics() {
        let spec = TensorSpec::dense("m", ElementType::I64, &[7, 2, 3], Order::C).unwrap();
        let header = spec.header();
        let length = header.len() as u64 + spec.body_bytes();
        for bit in 0..header.len().min(512) * 8 {
            let mut hostile = header.clone();
            hostile[bit / 8] ^= 1 << (bit % 8);
            if let Ok(read) = read_header(&hostile, length) {
                assert!(read.body_bytes() <= length);
            }
        }
    }
}
