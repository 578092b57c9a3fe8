//! What a worker is started with: `schemas/worker.json`.

#![expect(unsafe_code, reason = "inherited descriptors have numbers only")]

use std::env;
use std::fmt::Display;
use std::os::fd::{BorrowedFd, FromRawFd, OwnedFd, RawFd};

use rustix::io::{FdFlags, fcntl_setfd};
use serde::Deserialize;

use crate::error::{Error, Result};
use crate::os::failed;

const VARIABLE: &str = "THEUS_WORKER";

/// The variable's value.
#[derive(Debug, Deserialize)]
struct Numbers {
    session: String,
    seat: usize,
    threads: usize,
    channel: RawFd,
    control: RawFd,
    owner: RawFd,
    budget: RawFd,
    trace: RawFd,
    stderr: RawFd,
}

/// What the owner handed down.
#[derive(Debug)]
pub(super) struct Launch {
    pub(super) session: String,
    pub(super) seat: usize,
    pub(super) threads: usize,
    pub(super) channel: OwnedFd,
    pub(super) control: OwnedFd,
    pub(super) owner: OwnedFd,
    pub(super) budget: OwnedFd,
    pub(super) trace: OwnedFd,
    pub(super) stderr: OwnedFd,
}

/// Takes over what the owner handed down.
///
/// # Errors
/// [`Error::NotStartedByEngine`].
pub(super) fn launch() -> Result<Launch> {
    let text = env::var(VARIABLE).map_err(not_started)?;
    let numbers: Numbers = serde_json::from_str(&text).map_err(not_started)?;
    let mut known = [
        numbers.channel,
        numbers.control,
        numbers.owner,
        numbers.budget,
        numbers.trace,
        numbers.stderr,
    ];
    known.sort_unstable();
    // Neither the standard ones, nor one twice: each is closed by its only owner.
    if known[0] <= 2 || known.windows(2).any(|pair| pair[0] == pair[1]) {
        return Err(not_started("it names a descriptor twice"));
    }
    Ok(Launch {
        session: numbers.session,
        seat: numbers.seat,
        threads: numbers.threads,
        channel: take_over(numbers.channel)?,
        control: take_over(numbers.control)?,
        owner: take_over(numbers.owner)?,
        budget: take_over(numbers.budget)?,
        trace: take_over(numbers.trace)?,
        stderr: take_over(numbers.stderr)?,
    })
}

fn not_started(fault: impl Display) -> Error {
    Error::NotStartedByEngine {
        reason: format!(
            "this program runs tasks for a Theus engine, which starts it: engine.native_worker(path). \
             {VARIABLE}, the variable by which it does: {fault}"
        ),
    }
}

/// The descriptor of this number, which no process started from here inherits.
fn take_over(number: RawFd) -> Result<OwnedFd> {
    // SAFETY: it is only asked about until the kernel has said that it is open.
    let borrowed = unsafe { BorrowedFd::borrow_raw(number) };
    fcntl_setfd(borrowed, FdFlags::CLOEXEC)
        .map_err(|errno| failed("taking over what the engine handed down", errno))?;
    // SAFETY: it is open, and was handed down by number for nobody but this: a process that was not
    // started by an engine has no such variable, and a second `serve` is refused by its caller.
    Ok(unsafe { OwnedFd::from_raw_fd(number) })
}
