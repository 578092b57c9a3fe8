//! Proof by the kernel that nobody else has a file: leases, as of `fcntl(2)`.
//!
//! A write lease is granted only if no other description of the file is open or mapped anywhere.
//! Opening the file ends it, and signals its holder: SIGURG, which is ignored by default, where the
//! default for a lease, SIGIO, would end this process. Each `F_UNLCK` forgets that choice.

#![expect(unsafe_code, reason = "leases have no safe wrapper")]

use std::io;
use std::os::fd::{AsFd, AsRawFd};

/// From Linux's `fcntl.h`; the libc crate lacks it.
const F_SETSIG: libc::c_int = 10;

/// Whether nobody else has the file open or mapped, `None` if the file system cannot tell.
pub(crate) fn is_unused(file: &impl AsFd) -> Option<bool> {
    let granted = take(file, libc::F_WRLCK)?;
    if granted {
        let_go(file);
    }
    Some(granted)
}

/// Whether nobody can write the file: none has it open or mapped for writing. `file` cannot either.
pub(crate) fn is_unwritten(file: &impl AsFd) -> bool {
    let granted = take(file, libc::F_RDLCK) == Some(true);
    if granted {
        let_go(file);
    }
    granted
}

/// As [`is_unused`]; if so, it stays proven until [`holds`] says that somebody has come.
pub(crate) fn hold(file: &impl AsFd) -> Option<bool> {
    take(file, libc::F_WRLCK)
}

/// Whether nobody has opened the file since [`hold`].
pub(crate) fn holds(file: &impl AsFd) -> bool {
    // SAFETY: the command takes a descriptor, which `file` keeps open.
    unsafe { libc::fcntl(file.as_fd().as_raw_fd(), libc::F_GETLEASE) == libc::F_WRLCK }
}

/// Lets others open the file again.
pub(crate) fn let_go(file: &impl AsFd) {
    // SAFETY: the command takes a descriptor, which `file` keeps open, and an integer.
    unsafe { libc::fcntl(file.as_fd().as_raw_fd(), libc::F_SETLEASE, libc::F_UNLCK) };
}

fn take(file: &impl AsFd, kind: libc::c_int) -> Option<bool> {
    let fd = file.as_fd().as_raw_fd();
    // SAFETY: F_SETSIG takes a descriptor, which `file` keeps open, and an integer.
    unsafe { libc::fcntl(fd, F_SETSIG, libc::SIGURG) };
    // SAFETY: so does F_SETLEASE.
    if unsafe { libc::fcntl(fd, libc::F_SETLEASE, kind) } == 0 {
        return Some(true);
    }
    let busy = io::Error::last_os_error().raw_os_error() == Some(libc::EAGAIN);
    busy.then_some(false)
}
