//! A value on its way between the owner and a worker, encoded.

use std::sync::Arc;

use crate::segment::Segment;
use crate::transient::Transient;

/// An encoded value: a pickle or a plain value, with what it refers to.
#[derive(Debug, Clone)]
pub struct Message {
    /// The encoding, if it is small; empty if it lies in `parts`.
    pub data: Arc<[u8]>,
    /// The encoding and its large buffers, if there are any.
    pub parts: Option<Arc<Transient>>,
    /// The outputs of the task that the value refers to, in the order of their numbers.
    pub outputs: Vec<Arc<Segment>>,
}

impl Message {
    /// A message of these bytes alone.
    pub fn inline(data: impl Into<Arc<[u8]>>) -> Self {
        Self {
            data: data.into(),
            parts: None,
            outputs: Vec::new(),
        }
    }
}

impl Default for Message {
    fn default() -> Self {
        Self::inline([])
    }
}
