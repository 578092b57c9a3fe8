//! A function as it travels, and how to tell it from others.

use std::any::Any;
use std::collections::hash_map::DefaultHasher;
use std::fmt;
use std::hash::{Hash, Hasher};
use std::sync::Arc;

use crate::transient::Transient;

/// The definition is a JSON object that names a module and a qualified name.
pub const BY_REFERENCE: u64 = 0;
/// The definition is a pickle whose large buffers lie in parts.
pub const BY_PARTS: u64 = 2;
/// The definition is a JSON object with the name of a task of the worker's program.
pub const BY_NAME: u64 = 3;

/// A function ready to be sent.
pub struct Function {
    /// The name for messages.
    pub name: String,
    /// The form of the definition, a number of `schemas/frames.json`.
    pub form: u64,
    /// The attachment of the FUNCTION frame.
    pub definition: Box<[u8]>,
    /// The pickle and its large buffers, if the form is [`BY_PARTS`].
    pub parts: Option<Arc<Transient>>,
    /// How often a task of it is sent again after its worker died.
    pub retries: u32,
    /// An object of the embedding language that has to live as long as the function may be used.
    pub keepalive: Option<Box<dyn Any + Send + Sync>>,
    hash: u64,
}

impl Function {
    /// A function of this definition.
    #[must_use]
    pub fn new(name: String, form: u64, definition: Box<[u8]>, retries: u32) -> Self {
        let mut hasher = DefaultHasher::new();
        (form, &definition).hash(&mut hasher);
        Self {
            name,
            form,
            definition,
            parts: None,
            retries,
            keepalive: None,
            hash: hasher.finish(),
        }
    }

    /// The task of this name in a worker's program.
    #[must_use]
    pub fn by_name(name: &str, retries: u32) -> Self {
        let definition = serde_json::json!({ "name": name }).to_string();
        Self::new(
            name.to_owned(),
            BY_NAME,
            definition.into_bytes().into(),
            retries,
        )
    }

    /// The key under which durations are noted: the same for equal definitions.
    pub(super) const fn hash(&self) -> u64 {
        self.hash
    }
}

impl fmt::Debug for Function {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Function")
            .field("name", &self.name)
            .field("form", &self.form)
            .finish_non_exhaustive()
    }
}

/// A function as a key: equal if a worker that knows one knows the other.
#[derive(Debug, Clone)]
pub(super) struct FunctionKey(pub(super) Arc<Function>);

impl Hash for FunctionKey {
    fn hash<H: Hasher>(&self, state: &mut H) {
        state.write_u64(self.0.hash);
    }
}

impl PartialEq for FunctionKey {
    fn eq(&self, other: &Self) -> bool {
        let (ours, theirs) = (&self.0, &other.0);
        Arc::ptr_eq(ours, theirs)
            // Comparing the large parts of two would cost more than sending them.
            || (ours.parts.is_none()
                && theirs.parts.is_none()
                && ours.form == theirs.form
                && ours.definition == theirs.definition)
    }
}

impl Eq for FunctionKey {}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn equal_definitions_are_one_function_to_a_worker() {
        let function = |name: &str| FunctionKey(Arc::new(Function::by_name(name, 0)));
        assert_eq!(function("a"), function("a"));
        assert_ne!(function("a"), function("b"));
        assert_eq!(function("a").0.hash(), function("a").0.hash());
    }
}
