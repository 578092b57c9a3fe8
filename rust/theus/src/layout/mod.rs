//! Arrow bytes in a segment.

pub mod tensor;
