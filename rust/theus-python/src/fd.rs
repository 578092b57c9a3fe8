//! Descriptors that Python hands over as numbers.

#![expect(
    unsafe_code,
    reason = "a number from Python becomes an owned descriptor"
)]

use std::os::fd::{FromRawFd, OwnedFd, RawFd};

use pyo3::exceptions::PyValueError;
use pyo3::prelude::*;

/// Takes over the descriptor `fd`; from now on it is closed here, also if what follows fails.
pub(crate) fn take_over(fd: RawFd) -> PyResult<OwnedFd> {
    if fd < 0 {
        return Err(PyValueError::new_err(format!("{fd} is not a descriptor")));
    }
    // SAFETY: the stub says of every function that calls this that it takes the descriptor over, so
    // the caller in Python upholds that it is open and nobody else closes it. A number that is not
    // open fails with EBADF in whatever is done first.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}
