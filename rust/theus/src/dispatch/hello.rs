//! The first frame of a worker: what it is and can.

use serde_json::Value;

use super::wire::Kind;
use crate::error::{Error, Result};

/// The capability of a Python of the owner's kind.
pub const PICKLE: &str = "pickle";
/// The capability to take functions by name and plain values.
pub const PLAIN: &str = "plain";
/// The capability to import functions by a name such as `module:function`, and plain values for them.
pub const IMPORT: &str = "import";
/// The capability to take several calls in one task.
pub const ITEMS: &str = "items";
/// The capability to skip tasks that the owner has taken back.
pub const RECALL: &str = "recall";

/// The attachment of a HELLO frame, see `schemas/worker.json`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Hello {
    /// The language that the worker is written in, for people.
    pub language: String,
    /// The library that it speaks the protocol by, for people.
    pub library: String,
    /// What it takes.
    pub capabilities: Vec<String>,
    /// The tasks that it has by name.
    pub tasks: Vec<String>,
}

impl Hello {
    /// Reads the attachment.
    ///
    /// # Errors
    /// [`Error::FrameMeaning`] if it is not what the schema says.
    pub fn parse(data: &[u8]) -> Result<Self> {
        let said: Value = serde_json::from_slice(data)
            .map_err(|error| wrong(format!("a worker's HELLO carries no JSON: {error}")))?;
        if !said.is_object() {
            return Err(wrong(format!(
                "a worker's HELLO carries an object, not {said}"
            )));
        }
        let hello = Self {
            language: text(&said, "language")?,
            library: text(&said, "library")?,
            capabilities: texts(&said, "capabilities")?,
            tasks: texts(&said, "tasks")?,
        };
        let mut names: Vec<&String> = hello.tasks.iter().collect();
        names.sort_unstable();
        names.dedup();
        if names.len() < hello.tasks.len() || names.iter().any(|name| name.is_empty()) {
            return Err(wrong(format!(
                "a worker's HELLO has a task twice, or one without a name: {:?}",
                hello.tasks
            )));
        }
        Ok(hello)
    }

    /// Returns whether the worker has this capability.
    #[must_use]
    pub fn can(&self, capability: &str) -> bool {
        self.capabilities.iter().any(|it| it == capability)
    }
}

fn text(said: &Value, key: &str) -> Result<String> {
    match &said[key] {
        Value::String(text) => Ok(text.clone()),
        other => Err(wrong(format!(
            "a worker's HELLO has {key:?}, a str, not {other}"
        ))),
    }
}

fn texts(said: &Value, key: &str) -> Result<Vec<String>> {
    let other = &said[key];
    let items = other.as_array().map(|items| {
        let texts = items.iter().map(|item| item.as_str().map(str::to_owned));
        texts.collect::<Option<Vec<_>>>()
    });
    items.flatten().ok_or_else(|| {
        wrong(format!(
            "a worker's HELLO has {key:?}, a list of str, not {other}"
        ))
    })
}

fn wrong(reason: String) -> Error {
    Error::FrameMeaning {
        kind: Kind::Hello,
        reason,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn fault(text: &str) -> String {
        Hello::parse(text.as_bytes()).unwrap_err().to_string()
    }

    #[test]
    fn a_hello_is_as_the_schema_says() {
        let good = r#"{"language":"c","library":"own","capabilities":["plain"],"tasks":["a","b"],"later":1}"#;
        let hello = Hello::parse(good.as_bytes()).unwrap();
        assert!(hello.can(PLAIN) && !hello.can(PICKLE));
        assert_eq!(hello.tasks, ["a", "b"]);
        assert!(fault("{").contains("no JSON"));
        assert!(fault("[]").contains("an object, not []"));
        assert!(fault("{}").contains("\"language\", a str, not null"));
        assert!(fault(&good.replace("[\"plain\"]", "[1]")).contains("a list of str, not [1]"));
        assert!(fault(&good.replace("\"b\"", "\"a\"")).contains("a task twice"));
        assert!(fault(&good.replace("\"b\"", "\"\"")).contains("without a name"));
    }
}
