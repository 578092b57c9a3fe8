//! Why a task returned nothing.

use std::any::{Any, type_name};
use std::backtrace::{Backtrace, BacktraceStatus};
use std::error::Error as StdError;
use std::fmt;

use serde::Serialize;

use super::value;
use crate::error::Error;

/// What tasks return.
pub type Result<T> = std::result::Result<T, TaskError>;

/// The cause in an ERROR frame.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Cause {
    Raised = 0,
    Unsendable = 1,
    Inputs = 3,
    Panicked = 4,
    Stopped = 5,
}

/// Why a task failed, for its caller: there it is raised as a `NativeTaskError`.
///
/// Any error becomes one by `?`, with the type's name, its text and those of its sources, and a
/// backtrace if `RUST_BACKTRACE` is set. Errors of this crate are raised as what they are in Python:
/// [`Error::EntryNotFound`] as `EntryNotFoundError`, [`Error::HeavyZoneFull`] as `HeavyZoneFullError`.
pub struct TaskError {
    pub(super) cause: Cause,
    pub(super) trace: String,
    description: Description,
}

/// `schemas/values.json#/$defs/error`.
#[derive(Debug, Serialize)]
struct Description {
    r#type: String,
    message: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    meaning: Option<&'static str>,
}

impl TaskError {
    /// One that says `message`, of a type that is called `kind` in the caller's.
    pub fn new(kind: impl Into<String>, message: impl Into<String>) -> Self {
        Self::of(Cause::Raised, kind, message)
    }

    pub(super) fn of(cause: Cause, kind: impl Into<String>, message: impl Into<String>) -> Self {
        let backtrace = Backtrace::capture();
        let trace = match backtrace.status() {
            BacktraceStatus::Captured => backtrace.to_string(),
            _ => String::new(),
        };
        Self {
            trace,
            ..Self::without_trace(cause, kind, message)
        }
    }

    /// One that ends a task that the owner wants stopped. Finding names for its stack takes longer in a
    /// large program than the task has left.
    pub(super) fn stopped() -> Self {
        Self::without_trace(Cause::Stopped, "stopped", "the task was stopped")
    }

    fn without_trace(cause: Cause, kind: impl Into<String>, message: impl Into<String>) -> Self {
        Self {
            cause,
            trace: String::new(),
            description: Description {
                r#type: kind.into(),
                message: message.into(),
                meaning: None,
            },
        }
    }

    /// The attachment of the ERROR frame.
    pub(super) fn encode(&self) -> Vec<u8> {
        // Of two or three strings: that cannot fail.
        value::encode(&self.description).unwrap_or_default()
    }
}

impl<E: StdError + 'static> From<E> for TaskError {
    fn from(error: E) -> Self {
        let mut message = error.to_string();
        let mut source = error.source();
        while let Some(error) = source {
            // Some types show their source themselves.
            let text = error.to_string();
            if !message.contains(&text) {
                message = format!("{message}: {text}");
            }
            source = error.source();
        }
        let mut made = Self::new(type_name::<E>(), message);
        made.description.meaning = meaning(&error);
        made
    }
}

/// What an error of this crate is in any language.
fn meaning(error: &dyn Any) -> Option<&'static str> {
    match error.downcast_ref()? {
        Error::EntryNotFound { .. } => Some("entry not found"),
        Error::HeavyZoneFull { .. } => Some("heavy zone full"),
        Error::DtypeMismatch { .. } | Error::ShapeMismatch { .. } | Error::NotATable { .. } => {
            Some("wrong type")
        }
        Error::CorruptSegment { .. } => Some("corrupt"),
        _ => None,
    }
}

impl fmt::Display for TaskError {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Description {
            r#type, message, ..
        } = &self.description;
        write!(formatter, "{type}: {message}")
    }
}

impl fmt::Debug for TaskError {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, formatter)
    }
}
