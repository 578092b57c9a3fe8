//! What a worker is started with: `schemas/worker.json`.

#![expect(unsafe_code, reason = "inherited descriptors have numbers only")]

use std::env;
use std::fmt::Display;
use std::os::fd::{BorrowedFd, FromRawFd, OwnedFd, RawFd};

use rustix::io::{FdFlags, fcntl_getfd, fcntl_setfd};
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

impl Numbers {
    fn all(&self) -> [RawFd; 6] {
        let Self {
            channel,
            control,
            owner,
            budget,
            trace,
            stderr,
            ..
        } = *self;
        [channel, control, owner, budget, trace, stderr]
    }
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
    let numbers = read(&text)?;
    for number in numbers.all() {
        check_inherited(number)?;
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

fn read(text: &str) -> Result<Numbers> {
    let numbers: Numbers = serde_json::from_str(text).map_err(not_started)?;
    let mut known = numbers.all();
    known.sort_unstable();
    if known[0] <= 2 {
        return Err(not_started("it names a standard stream"));
    }
    if known.windows(2).any(|pair| pair[0] == pair[1]) {
        return Err(not_started("it names a descriptor twice"));
    }
    Ok(numbers)
}

fn not_started(fault: impl Display) -> Error {
    Error::NotStartedByEngine {
        reason: format!(
            "this program runs tasks for a Theus engine, which starts it: \
             engine.native_worker(path). {VARIABLE}, the variable by which it does: {fault}"
        ),
    }
}

/// Refuses a descriptor that was not handed down. What a task starts inherits the variable, but none of
/// the descriptors: these were made close-on-exec, as are all that such a process opens itself.
fn check_inherited(number: RawFd) -> Result<()> {
    // SAFETY: it is only asked about: the kernel says whether it is open.
    let borrowed = unsafe { BorrowedFd::borrow_raw(number) };
    match fcntl_getfd(borrowed) {
        Ok(flags) if !flags.contains(FdFlags::CLOEXEC) => Ok(()),
        _ => Err(not_started(
            "it was another process's, of whose tasks one started this",
        )),
    }
}

/// The descriptor of this number, which no process started from here inherits.
fn take_over(number: RawFd) -> Result<OwnedFd> {
    // SAFETY: it is open, and was inherited by number, as was checked. Rust's library makes whatever it
    // opens close-on-exec, so nobody in this process owns it; it is named once, and `serve` is refused
    // when it was called before.
    let owned = unsafe { OwnedFd::from_raw_fd(number) };
    fcntl_setfd(&owned, FdFlags::CLOEXEC)
        .map_err(|errno| failed("taking over what the engine handed down", errno))?;
    Ok(owned)
}

#[cfg(test)]
mod tests {
    use super::*;

    const GOOD: &str = r#"{"session":"k7f3q2mzb4ax","seat":1,"threads":2,"channel":3,"control":4,
        "owner":5,"budget":6,"trace":7,"stderr":8,"later":true}"#;

    fn fault(text: &str) -> String {
        read(text).unwrap_err().to_string()
    }

    #[test]
    fn what_the_variable_says_is_checked_before_anything_is_taken() {
        assert_eq!(read(GOOD).unwrap().all(), [3, 4, 5, 6, 7, 8]);
        assert!(fault("").contains("EOF"));
        assert!(fault("{}").contains("missing field `session`"));
        assert!(fault(&GOOD.replace(":8", ":2")).contains("a standard stream"));
        assert!(fault(&GOOD.replace(":8", ":7")).contains("twice"));
        assert!(fault(GOOD.trim_end_matches('}')).contains("engine.native_worker(path)"));
    }

    #[test]
    fn descriptors_that_were_not_inherited_are_refused() {
        let own = std::fs::File::open("/dev/null").unwrap();
        let number = std::os::fd::AsRawFd::as_raw_fd(&own);
        for number in [number, 1_000_000] {
            let error = check_inherited(number).unwrap_err().to_string();
            assert!(error.contains("another process's"), "{error}");
        }
        fcntl_setfd(&own, FdFlags::empty()).unwrap();
        check_inherited(number).unwrap();
    }
}
