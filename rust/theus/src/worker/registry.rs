//! The functions that a worker has by name.

use std::collections::BTreeMap;
use std::fmt;

use serde::Serialize;

use super::context::Context;
use super::failure::{Cause, Result, TaskError};
use super::value;

/// Runs a task: to its result as a plain value.
pub(super) type Task = Box<dyn Fn(&Context<'_>) -> Result<Vec<u8>> + Send + Sync>;

/// Where a worker [registers](Self::register) its functions.
#[derive(Default)]
pub struct Registry {
    tasks: BTreeMap<String, Task>,
}

impl Registry {
    /// Has tasks of this `name` run by `task`. Its result is a plain value: numbers, strings, lists, maps
    /// and what serde makes of them, with [`Handle`](crate::worker::Handle)s of what it made in shared
    /// memory. Structs become dicts, tuples and vectors lists, those of `u8` too:
    /// [`Bytes`](crate::worker::Bytes) become bytes. Integers may have 64 bits; write larger ones as text.
    ///
    /// # Panics
    /// If the name is empty, or has a function already.
    pub fn register<T, F>(&mut self, name: &str, task: F)
    where
        T: Serialize,
        F: Fn(&Context<'_>) -> Result<T> + Send + Sync + 'static,
    {
        assert!(!name.is_empty(), "a task needs a name");
        let run: Task = Box::new(move |context| {
            let result = task(context)?;
            context
                .scope
                .enter(|| value::encode(&result))
                .map_err(|error| {
                    let reason = format!("the result cannot be sent: {error}");
                    TaskError::of(Cause::Unsendable, std::any::type_name::<T>(), reason)
                })
        });
        let known = self.tasks.insert(name.to_owned(), run);
        assert!(known.is_none(), "{name:?} is registered twice");
    }

    /// The registered names, in their order.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.tasks.keys().map(String::as_str)
    }

    pub(super) fn get(&self, name: &str) -> Option<&Task> {
        self.tasks.get(name)
    }
}

impl fmt::Debug for Registry {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.debug_set().entries(self.names()).finish()
    }
}
