//! Running a task, and answering it.

use std::collections::HashMap;
use std::time::Instant;

use serde::Serialize;
use serde_bytes::{ByteBuf, Bytes};

use super::context::{Context, Shared};
use super::failure::{Cause, Description, Result, TaskError};
use super::panics::Panics;
use super::registry::{self, Registry};
use super::scope::Scope;
use super::state::{State, States};
use super::value;
use crate::dispatch::{Frame, Kind};

/// How tasks are called: with inputs, or several times with several of them.
const PLAIN: u64 = 4;
const ITEMS: u64 = 5;

/// What a task is run with.
pub(super) struct Task<'a> {
    pub(super) registry: &'a Registry,
    pub(super) states: &'a States,
    pub(super) functions: &'a HashMap<u64, String>,
    pub(super) shared: &'a Shared,
    pub(super) panics: &'a Panics,
}

/// What came of several calls: the results, and what ended them before the last.
#[derive(Serialize)]
struct Results {
    values: Vec<ByteBuf>,
    error: Option<Ended>,
}

#[derive(Serialize)]
struct Ended {
    cause: u64,
    error: Description,
    traceback: String,
}

impl Task<'_> {
    /// Runs the task of a TASK frame, and answers it.
    pub(super) fn run(&self, frame: &Frame<'_>) -> crate::Result<()> {
        let mut fields = frame.fields();
        let mut field = || fields.next().unwrap_or(0);
        let (number, version, function, call) = (field(), field(), field(), field());
        let inputs = frame.attachments().next().unwrap_or_default();
        let control = &self.shared.control;
        control.set_running(number);
        let since = Instant::now();
        let scope = Scope::new(number);
        let found = self.find(version, function);
        let outcome = found.and_then(|(state, task)| {
            let once = |inputs: &[u8]| self.call(state, task, inputs, &scope);
            match call {
                PLAIN => once(inputs),
                ITEMS => call_each(inputs, &scope, once),
                _ => {
                    let reason = format!("call {call} is none by name with plain values");
                    Err(TaskError::new("call", reason))
                }
            }
        });
        let took = u64::try_from(since.elapsed().as_nanos()).unwrap_or(u64::MAX);
        self.answer(took, outcome, &scope)?;
        control.set_running(0);
        Ok(())
    }

    fn find(&self, version: u64, function: u64) -> Result<(&State, &registry::Task)> {
        let unknown = |what: String| TaskError::new("unknown", what);
        let state = self.states.get(version);
        let state = state.ok_or_else(|| unknown(format!("no state {version} was sent")))?;
        let name = self.functions.get(&function);
        let name = name.ok_or_else(|| unknown(format!("no function {function} was sent")))?;
        let missing = || format!("this worker has no task {name:?}");
        let task = self.registry.get(name);
        let task = task.ok_or_else(|| TaskError::of(Cause::Unknown, "unknown", missing()))?;
        Ok((state, task))
    }

    fn call(
        &self,
        state: &State,
        task: &registry::Task,
        inputs: &[u8],
        scope: &Scope,
    ) -> Result<Vec<u8>> {
        let context = Context {
            inputs,
            state,
            shared: self.shared,
            scope: scope.clone(),
        };
        context.check_cancelled()?;
        if self.shared.control.recalled() >= scope.task() {
            // The owner has given it to another worker.
            return Err(TaskError::stopped());
        }
        self.panics.catch(|| task(&context))
    }

    fn answer(&self, took: u64, outcome: Result<Vec<u8>>, scope: &Scope) -> crate::Result<()> {
        let mut sender = self.shared.sender();
        let outcome = outcome.and_then(|result| {
            for (place, output) in scope.referred().iter().enumerate() {
                let file = output.hand_over()?;
                let fields = [place as u64, output.length() as u64];
                sender.send_carrying_blocking(Kind::Output, &fields, file)?;
            }
            Ok(result)
        });
        match outcome {
            Ok(result) => sender.send_blocking(Kind::Result, &[scope.task(), took], &[&result]),
            Err(error) => {
                let fields = [scope.task(), took, error.cause as u64];
                let described = error.encode();
                sender.send_blocking(Kind::Error, &fields, &[&described, error.trace.as_bytes()])
            }
        }
    }
}

/// Calls `once` with each of several inputs, up to one that fails, or whose result has outputs: the
/// caller sends those behind it again.
fn call_each(
    inputs: &[u8],
    scope: &Scope,
    once: impl Fn(&[u8]) -> Result<Vec<u8>>,
) -> Result<Vec<u8>> {
    let items: Vec<&Bytes> = value::decode(inputs).map_err(|error| {
        let reason = format!("these are not the inputs of several calls: {error}");
        TaskError::of(Cause::Inputs, "items", reason)
    })?;
    let mut results = Results {
        values: Vec::with_capacity(items.len()),
        error: None,
    };
    for item in items {
        match once(item) {
            Ok(value) => results.values.push(ByteBuf::from(value)),
            Err(error) if error.cause == Cause::Stopped => return Err(error),
            Err(error) => {
                results.error = Some(Ended {
                    cause: error.cause as u64,
                    error: error.description,
                    traceback: error.trace,
                });
                break;
            }
        }
        if !scope.referred().is_empty() {
            break;
        }
    }
    value::encode(&results).map_err(|error| {
        TaskError::of(
            Cause::Unsendable,
            "results",
            format!("they cannot be sent: {error}"),
        )
    })
}
