//! Starting a process that inherits some descriptors and nothing else.
//!
//! `std::process` passes no descriptors without a closure that runs in a forked child, and a fork of
//! a process with threads and much memory is slow and calls every fork handler. `posix_spawn` does
//! neither.

#![expect(unsafe_code, reason = "posix_spawn has no safe wrapper")]

use std::ffi::{CString, OsStr, OsString};
use std::io;
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::ptr;

use rustix::io::{fcntl_dupfd_cloexec, fcntl_getfd};
use rustix::process::Pid;

/// A descriptor with a lower number may be meant as a standard stream.
const FIRST: i32 = 3;

/// The signals that a thread blocks.
#[derive(Clone, Copy)]
pub(crate) struct SignalMask(libc::sigset_t);

impl SignalMask {
    /// Returns the mask of this thread.
    pub(crate) fn current() -> Self {
        let mut mask = MaybeUninit::<libc::sigset_t>::uninit();
        // SAFETY: an empty set is written first, so that the set is valid whatever the call below does.
        unsafe { libc::sigemptyset(mask.as_mut_ptr()) };
        // SAFETY: no new mask is given, and the old one is written to a set.
        unsafe { libc::pthread_sigmask(libc::SIG_BLOCK, ptr::null(), mask.as_mut_ptr()) };
        // SAFETY: it was written above.
        Self(unsafe { mask.assume_init() })
    }
}

/// Blocks all signals in this thread, so that the kernel gives them to others.
pub(crate) fn block_signals() {
    let mut all = MaybeUninit::<libc::sigset_t>::uninit();
    // SAFETY: the set is written, not read.
    unsafe { libc::sigfillset(all.as_mut_ptr()) };
    // SAFETY: sigfillset has initialised the set, and the old mask may be asked for by null.
    unsafe { libc::pthread_sigmask(libc::SIG_BLOCK, all.as_ptr(), ptr::null_mut()) };
}

/// A program to be started.
pub(crate) struct Spawn<'a> {
    /// Its path; a name without a slash is looked for on the PATH of this process.
    pub(crate) program: &'a OsStr,
    /// What follows its name.
    pub(crate) arguments: &'a [OsString],
    /// All variables that it gets.
    pub(crate) environment: &'a [(OsString, OsString)],
    /// The descriptors that it inherits under the same numbers, all of them 3 or higher.
    pub(crate) descriptors: &'a [BorrowedFd<'a>],
    /// Its standard error. Its standard input is empty, its standard output this process's.
    pub(crate) stderr: BorrowedFd<'a>,
    /// The signals that it blocks at first.
    pub(crate) mask: SignalMask,
}

impl Spawn<'_> {
    /// Starts the process, as the leader of a process group of its own.
    pub(crate) fn start(&self) -> io::Result<Pid> {
        let program = c_string(self.program)?;
        let arguments: Vec<CString> = std::iter::once(Ok(program.clone()))
            .chain(self.arguments.iter().map(|it| c_string(it)))
            .collect::<io::Result<_>>()?;
        let environment: Vec<CString> = self
            .environment
            .iter()
            .map(variable)
            .collect::<io::Result<_>>()?;
        let (arguments, environment) = (pointers(&arguments), pointers(&environment));
        let actions = self.actions()?;
        let attributes = self.attributes()?;
        let mut pid = 0;
        // SAFETY: all strings are terminated, both arrays end with null, and all of it, the actions and
        // the attributes live until the call returns; posix_spawn keeps none of it.
        let code = unsafe {
            libc::posix_spawnp(
                &raw mut pid,
                program.as_ptr(),
                &raw const actions.0,
                &raw const attributes.0,
                arguments.as_ptr(),
                environment.as_ptr(),
            )
        };
        check(code)?;
        Pid::from_raw(pid).ok_or_else(|| io::Error::other("the new process has no id"))
    }

    fn actions(&self) -> io::Result<Actions> {
        let mut actions = Actions::new()?;
        actions.open(0, libc::O_RDONLY)?;
        if !is_open(1) {
            actions.open(1, libc::O_WRONLY)?;
        }
        actions.duplicate(self.stderr.as_raw_fd(), 2)?;
        for descriptor in self.descriptors {
            // Onto itself: that makes it inheritable there, and nowhere else.
            actions.duplicate(descriptor.as_raw_fd(), descriptor.as_raw_fd())?;
        }
        Ok(actions)
    }

    fn attributes(&self) -> io::Result<Attributes> {
        let mut attributes = Attributes::new()?;
        let flags = libc::POSIX_SPAWN_SETPGROUP
            | libc::POSIX_SPAWN_SETSIGMASK
            | libc::POSIX_SPAWN_SETSIGDEF;
        let mut defaults = self.mask.0;
        // SAFETY: the set is a valid one, and is written.
        unsafe { libc::sigemptyset(&raw mut defaults) };
        // Python ignores these, and a program that inherits that does not end with its reader.
        for signal in [libc::SIGPIPE, libc::SIGXFSZ] {
            // SAFETY: the set is a valid one, and these are signals.
            unsafe { libc::sigaddset(&raw mut defaults, signal) };
        }
        let own = &raw mut attributes.0;
        // SAFETY: the attributes are initialised, and the set is a valid one.
        check(unsafe { libc::posix_spawnattr_setsigdefault(own, &raw const defaults) })?;
        // SAFETY: the same; the mask was read from the kernel.
        check(unsafe { libc::posix_spawnattr_setsigmask(own, &raw const self.mask.0) })?;
        // SAFETY: the attributes are initialised.
        check(unsafe { libc::posix_spawnattr_setpgroup(own, 0) })?;
        #[expect(clippy::cast_possible_truncation, reason = "flags are small")]
        // SAFETY: the attributes are initialised.
        check(unsafe { libc::posix_spawnattr_setflags(own, flags as libc::c_short) })?;
        Ok(attributes)
    }
}

/// Returns `file` under a number that no standard stream has.
pub(crate) fn above_standard_streams(file: OwnedFd) -> io::Result<OwnedFd> {
    if file.as_raw_fd() >= FIRST {
        return Ok(file);
    }
    Ok(fcntl_dupfd_cloexec(&file, FIRST)?)
}

/// Returns a copy of this process's standard error; of `/dev/null` if it has none.
pub(crate) fn standard_error() -> io::Result<OwnedFd> {
    if let Ok(copy) = fcntl_dupfd_cloexec(io::stderr().as_fd(), FIRST) {
        return Ok(copy);
    }
    let null = std::fs::OpenOptions::new().write(true).open("/dev/null")?;
    above_standard_streams(null.into())
}

fn is_open(number: i32) -> bool {
    // SAFETY: the number is only asked about: the kernel says whether it is open.
    let borrowed = unsafe { BorrowedFd::borrow_raw(number) };
    fcntl_getfd(borrowed).is_ok()
}

fn variable((name, value): &(OsString, OsString)) -> io::Result<CString> {
    let mut text = name.clone();
    text.push("=");
    text.push(value);
    c_string(&text)
}

fn c_string(text: &OsStr) -> io::Result<CString> {
    CString::new(text.as_bytes())
        .map_err(|error| io::Error::new(io::ErrorKind::InvalidInput, error))
}

fn pointers(strings: &[CString]) -> Vec<*mut libc::c_char> {
    let pointers = strings.iter().map(|it| it.as_ptr().cast_mut());
    pointers.chain(std::iter::once(ptr::null_mut())).collect()
}

fn check(code: libc::c_int) -> io::Result<()> {
    match code {
        0 => Ok(()),
        code => Err(io::Error::from_raw_os_error(code)),
    }
}

struct Actions(libc::posix_spawn_file_actions_t);

impl Actions {
    fn new() -> io::Result<Self> {
        let mut actions = MaybeUninit::uninit();
        // SAFETY: the actions are written, not read.
        check(unsafe { libc::posix_spawn_file_actions_init(actions.as_mut_ptr()) })?;
        // SAFETY: they were initialised.
        Ok(Self(unsafe { actions.assume_init() }))
    }

    fn open(&mut self, number: i32, flags: i32) -> io::Result<()> {
        // SAFETY: the actions are initialised, and the path is copied.
        check(unsafe {
            libc::posix_spawn_file_actions_addopen(
                &raw mut self.0,
                number,
                c"/dev/null".as_ptr(),
                flags,
                0,
            )
        })
    }

    fn duplicate(&mut self, from: i32, to: i32) -> io::Result<()> {
        // SAFETY: the actions are initialised.
        check(unsafe { libc::posix_spawn_file_actions_adddup2(&raw mut self.0, from, to) })
    }
}

impl Drop for Actions {
    fn drop(&mut self) {
        // SAFETY: they were initialised, and nobody uses them after this.
        unsafe { libc::posix_spawn_file_actions_destroy(&raw mut self.0) };
    }
}

struct Attributes(libc::posix_spawnattr_t);

impl Attributes {
    fn new() -> io::Result<Self> {
        let mut attributes = MaybeUninit::uninit();
        // SAFETY: the attributes are written, not read.
        check(unsafe { libc::posix_spawnattr_init(attributes.as_mut_ptr()) })?;
        // SAFETY: they were initialised.
        Ok(Self(unsafe { attributes.assume_init() }))
    }
}

impl Drop for Attributes {
    fn drop(&mut self) {
        // SAFETY: they were initialised, and nobody uses them after this.
        unsafe { libc::posix_spawnattr_destroy(&raw mut self.0) };
    }
}

#[cfg(test)]
mod tests {
    use std::fs::File;
    use std::io::{Read, Seek};

    use rustix::process::{WaitOptions, waitpid};

    use super::*;

    fn run(
        program: &str,
        arguments: &[&str],
        descriptors: &[BorrowedFd<'_>],
    ) -> io::Result<(i32, String)> {
        let mut output = memfd("output")?;
        let arguments: Vec<OsString> = arguments.iter().map(OsString::from).collect();
        let spawn = Spawn {
            program: OsStr::new(program),
            arguments: &arguments,
            environment: &[
                ("PATH".into(), "/bin:/usr/bin".into()),
                ("A".into(), "b c".into()),
            ],
            descriptors,
            stderr: output.as_fd(),
            mask: SignalMask::current(),
        };
        let pid = spawn.start()?;
        let (_, status) = waitpid(Some(pid), WaitOptions::empty())?.unwrap();
        let mut text = String::new();
        output.rewind()?;
        output.read_to_string(&mut text)?;
        Ok((status.exit_status().unwrap_or(-1), text))
    }

    fn memfd(name: &str) -> io::Result<File> {
        let flags = rustix::fs::MemfdFlags::CLOEXEC;
        Ok(rustix::fs::memfd_create(name, flags)?.into())
    }

    #[test]
    fn a_process_gets_what_it_is_given_and_nothing_else() {
        let _other = memfd("kept").unwrap();
        let given = memfd("given").unwrap();
        let script = r#"echo "$A" >&2; ls -l /proc/self/fd >&2; cat; kill -0 -$$ && exit 3"#;
        let (code, text) = run("/bin/sh", &["-c", script], &[given.as_fd()]).unwrap();
        assert_eq!(code, 3, "it leads a process group: {text}");
        assert!(text.starts_with("b c\n"), "{text}");
        assert!(text.contains("memfd:given"), "{text}");
        assert!(!text.contains("memfd:kept"), "{text}");
    }

    #[test]
    fn a_program_that_cannot_be_run_is_an_error_here() {
        let missing = run("/no/such/program", &[], &[]).unwrap_err();
        assert_eq!(missing.raw_os_error(), Some(libc::ENOENT));
        let denied = run("/etc/passwd", &[], &[]).unwrap_err();
        assert_eq!(denied.raw_os_error(), Some(libc::EACCES));
        assert_eq!(run("true", &[], &[]).unwrap().0, 0, "found on the PATH");
    }
}
