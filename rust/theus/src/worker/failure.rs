//! Why a task returned nothing.

use std::any::{Any, type_name};
use std::backtrace::{Backtrace, BacktraceStatus};
use std::error::Error as StdError;
use std::fmt;
use std::sync::{Mutex, PoisonError};

use arrow::error::ArrowError;
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
    Unknown = 2,
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
    pub(super) description: Description,
}

/// `schemas/values.json#/$defs/error`.
#[derive(Debug, Serialize)]
pub(super) struct Description {
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

    /// What `error` is, and its sources: for what `?` does not take, as `anyhow`'s errors and boxed ones,
    /// which give it by `as_ref()`.
    #[must_use]
    pub fn from_dyn(error: &(dyn StdError + 'static)) -> Self {
        Self::described("error", error)
    }

    fn described(kind: &str, error: &(dyn StdError + 'static)) -> Self {
        let mut message = error.to_string();
        let mut known = meaning(error);
        let mut source = error.source();
        while let Some(error) = source {
            // Some types show their source themselves.
            let text = error.to_string();
            if !message.contains(&text) {
                message = format!("{message}: {text}");
            }
            known = known.or_else(|| meaning(error));
            source = error.source();
        }
        let mut made = Self::new(kind, message);
        made.description.meaning = known;
        made
    }

    /// The same with other words.
    pub(super) fn saying(mut self, message: String) -> Self {
        self.description.message = message;
        self
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
        match (&error as &dyn Any).downcast_ref() {
            Some(Carried(inner)) => inner.lock().unwrap_or_else(PoisonError::into_inner).take(),
            None => None,
        }
        .unwrap_or_else(|| Self::described(type_name::<E>(), &error))
    }
}

/// An error on its way through code that takes none but [`StdError`]s.
#[derive(Debug)]
struct Carried(Mutex<Option<TaskError>>);

impl fmt::Display for Carried {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &*self.0.lock().unwrap_or_else(PoisonError::into_inner) {
            Some(error) => fmt::Display::fmt(error, formatter),
            None => formatter.write_str("a task's error, which was taken"),
        }
    }
}

impl StdError for Carried {}

impl From<TaskError> for ArrowError {
    /// The error as one that ends a stream of batches; [`Context::put`](crate::worker::Context::put)
    /// returns it as it was.
    fn from(error: TaskError) -> Self {
        Self::ExternalError(Box::new(Carried(Mutex::new(Some(error)))))
    }
}

/// The task's error that ended a stream of batches, if it was one.
pub(super) fn carried(error: &ArrowError) -> Option<TaskError> {
    let ArrowError::ExternalError(external) = error else {
        return None;
    };
    let Carried(inner) = external.downcast_ref()?;
    inner.lock().unwrap_or_else(PoisonError::into_inner).take()
}

/// What an error of this crate is in any language.
fn meaning(error: &(dyn StdError + 'static)) -> Option<&'static str> {
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
