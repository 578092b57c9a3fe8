//! Arrow bytes in a segment.

pub mod table;
pub mod tensor;

use table::TableSpec;
use tensor::TensorSpec;

/// What lies in a segment.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Spec {
    /// An Arrow tensor.
    Tensor(TensorSpec),
    /// An Arrow table or array.
    Table(TableSpec),
}

impl Spec {
    /// The name of its kind, as `schemas/descriptor.json` has it.
    #[must_use]
    pub fn kind(&self) -> &'static str {
        match self {
            Self::Tensor(_) => "tensor",
            Self::Table(spec) => spec.kind.name(),
        }
    }

    /// The entry's name.
    #[must_use]
    pub fn key(&self) -> &str {
        match self {
            Self::Tensor(spec) => &spec.key,
            Self::Table(spec) => &spec.key,
        }
    }

    /// Whether it goes on changing after publication.
    #[must_use]
    pub fn mutable(&self) -> bool {
        matches!(self, Self::Tensor(spec) if spec.mutable)
    }
}
