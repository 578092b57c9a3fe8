//! Descriptors as JSON: `schemas/descriptor.json`.

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

/// What locates an entry.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(super) struct Descriptor {
    pub(super) key: String,
    pub(super) segment: String,
    pub(super) kind: String,
    pub(super) length: u64,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) view: Option<View>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) part: Option<Part>,
    /// What a later engine may say besides; it is passed on.
    #[serde(flatten)]
    more: Map<String, Value>,
}

/// The part of a tensor's segment that is shown.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(super) struct View {
    pub(super) offset: usize,
    pub(super) shape: Vec<u64>,
    pub(super) strides: Vec<i64>,
    pub(super) dtype: Value,
}

/// The part of a table, or of an array, that is shown.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(super) struct Part {
    pub(super) columns: Vec<usize>,
    pub(super) start: usize,
    pub(super) length: usize,
    /// What it is if it is a column, not a table of one: the same batches here.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) kind: Option<String>,
}
