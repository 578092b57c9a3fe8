//! The only system calls: create, reserve, link, lock, advise, unlink.

#![expect(
    unsafe_code,
    reason = "fork handlers and a question to the kernel have no safe wrapper"
)]

use std::ffi::OsStr;
use std::fs::File;
use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Once, OnceLock};
use std::time::Duration;

use rustix::fs::{AtFlags, CWD, FallocateFlags, FlockOperation, Mode, OFlags, RenameFlags};
use rustix::io::Errno;

use crate::error::{Error, Result};
use crate::limits;

/// Where named memory lies.
pub(crate) const DIRECTORY: &str = "/dev/shm";

pub(crate) fn path_of(name: &str) -> PathBuf {
    Path::new(DIRECTORY).join(name)
}

pub(crate) fn failed(operation: &'static str, source: impl Into<io::Error>) -> Error {
    limits::explain(operation, source.into())
}

pub(crate) fn random(bytes: &mut [u8]) -> Result<()> {
    rustix::rand::getrandom(&mut *bytes, rustix::rand::GetRandomFlags::empty())
        .map_err(|errno| failed("drawing random numbers", errno))?;
    Ok(())
}

/// Makes a file without a name; the kernel frees it with its last reference.
pub(crate) fn create_nameless(directory: &Path) -> Result<OwnedFd> {
    let flags = OFlags::TMPFILE | OFlags::RDWR | OFlags::CLOEXEC;
    rustix::fs::open(directory, flags, Mode::RUSR | Mode::WUSR)
        .map_err(|errno| failed("creating a nameless file", errno))
}

/// Reserves `length` bytes of `file`, which then has exactly that length. `Ok(false)`: no space.
pub(crate) fn reserve(file: &impl AsFd, offset: u64, length: u64) -> Result<bool> {
    if length == 0 {
        return Ok(true);
    }
    loop {
        match rustix::fs::fallocate(file, FallocateFlags::empty(), offset, length) {
            Ok(()) => return Ok(true),
            Err(Errno::INTR) => {}
            Err(Errno::NOSPC | Errno::FBIG | Errno::DQUOT | Errno::NOMEM) => return Ok(false),
            Err(errno) => return Err(failed("reserving space for a segment", errno)),
        }
    }
}

/// Gives back the pages of a part of `file`, which is zero then, and as long as before.
pub(crate) fn punch(file: &impl AsFd, offset: u64, length: u64) -> Result<()> {
    let flags = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
    rustix::fs::fallocate(file, flags, offset, length)
        .map_err(|errno| failed("giving back shared memory", errno))
}

/// Cuts `file` off after `length` bytes.
pub(crate) fn truncate(file: &impl AsFd, length: u64) -> Result<()> {
    rustix::fs::ftruncate(file, length).map_err(|errno| failed("sizing shared memory", errno))
}

/// Whether the kernel knows this advice on mappings.
pub(crate) fn knows_advice(advice: libc::c_int) -> bool {
    // SAFETY: it concerns no byte; only the advice itself is looked at.
    unsafe { libc::madvise(std::ptr::null_mut(), 0, advice) == 0 }
}

/// The processor time that this thread has used.
pub(crate) fn thread_time() -> Duration {
    let time = rustix::time::clock_gettime(rustix::time::ClockId::ThreadCPUTime);
    Duration::try_from(time).unwrap_or_default()
}

/// How many bytes the file system of `directory` has left.
pub(crate) fn available_bytes(directory: &Path) -> u64 {
    rustix::fs::statvfs(directory).map_or(0, |status| status.f_bavail * status.f_frsize)
}

/// Gives a nameless file its name, which must be new.
pub(crate) fn link(file: &impl AsFd, path: &Path) -> Result<()> {
    let source = format!("/proc/self/fd/{}", file.as_fd().as_raw_fd());
    rustix::fs::linkat(CWD, source, CWD, path, AtFlags::SYMLINK_FOLLOW)
        .map_err(|errno| failed("publishing a segment under its name", errno))
}

/// Gives a file another name, which must be new; false if it has lost the old one.
pub(crate) fn rename(from: &Path, to: &Path) -> Result<bool> {
    match rustix::fs::renameat_with(CWD, from, CWD, to, RenameFlags::NOREPLACE) {
        Ok(()) => Ok(true),
        Err(Errno::NOENT) => Ok(false),
        Err(errno) => Err(failed("renaming a segment", errno)),
    }
}

/// Removes a name; one that is gone already, or a directory's by now, is no error.
pub(crate) fn unlink(path: &Path) -> Result<bool> {
    match rustix::fs::unlink(path) {
        Ok(()) => Ok(true),
        Err(Errno::NOENT | Errno::ISDIR) => Ok(false),
        Err(errno) => Err(failed("unlinking a segment", errno)),
    }
}

/// Opens a file to be read: never a link, never waiting for a peer.
pub(crate) fn open_read_only(path: &Path) -> Result<OwnedFd> {
    open(path, OFlags::RDONLY)
}

/// As [`open_read_only`], to be written too.
pub(crate) fn open_read_write(path: &Path) -> Result<OwnedFd> {
    open(path, OFlags::RDWR)
}

fn open(path: &Path, access: OFlags) -> Result<OwnedFd> {
    let flags = access | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
    match rustix::fs::open(path, flags, Mode::empty()) {
        Ok(file) => Ok(file),
        // What is leased was freed while this call looked at the name.
        Err(Errno::NOENT | Errno::WOULDBLOCK) => Err(Error::SegmentNotFound {
            path: path.to_owned(),
        }),
        Err(Errno::LOOP) => Err(corrupt(path, "it is a symbolic link")),
        Err(Errno::NXIO) => Err(corrupt(path, "it is a socket")),
        Err(errno) => Err(failed("opening a segment", errno)),
    }
}

/// Refuses what lies at `path` if it is no file of this user's, or of root's: another user could
/// change it, or cut it short, while it is read.
pub(crate) fn check_own(path: &Path, status: &Status) -> Result<()> {
    if !status.regular {
        return Err(corrupt(path, "it is not a regular file"));
    }
    if !status.own && status.user != 0 {
        return Err(Error::ForeignSegment {
            path: path.to_owned(),
            user: status.user,
        });
    }
    Ok(())
}

fn corrupt(path: &Path, reason: &str) -> Error {
    Error::CorruptSegment {
        segment: path.display().to_string(),
        reason: reason.to_owned(),
    }
}

/// Opens the file behind `file` anew, as a description of its own that cannot write.
pub(crate) fn reopen_read_only(file: &impl AsFd) -> Result<OwnedFd> {
    let path = format!("/proc/self/fd/{}", file.as_fd().as_raw_fd());
    rustix::fs::open(path, OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty())
        .map_err(|errno| failed("reopening a segment", errno))
}

/// What a file is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Status {
    pub(crate) inode: (u64, u64),
    pub(crate) length: u64,
    pub(crate) links: u64,
    pub(crate) regular: bool,
    pub(crate) user: u32,
    pub(crate) own: bool,
}

/// Whose files this process makes.
pub(crate) fn user() -> u32 {
    rustix::process::geteuid().as_raw()
}

pub(crate) fn status(file: &impl AsFd) -> Result<Status> {
    rustix::fs::fstat(file)
        .map(|stat| describe(&stat))
        .map_err(|errno| failed("looking at a segment", errno))
}

/// What lies at `path`, links not followed; `None` if nothing does.
pub(crate) fn status_of(path: &Path) -> Option<Status> {
    rustix::fs::lstat(path).ok().map(|stat| describe(&stat))
}

#[allow(
    clippy::cast_sign_loss,
    clippy::unnecessary_cast,
    clippy::useless_conversion,
    reason = "the fields' types differ between architectures"
)]
fn describe(stat: &rustix::fs::Stat) -> Status {
    Status {
        inode: (stat.st_dev as u64, stat.st_ino as u64),
        length: stat.st_size as u64,
        links: stat.st_nlink as u64,
        regular: rustix::fs::FileType::from_raw_mode(stat.st_mode).is_file(),
        user: stat.st_uid,
        own: stat.st_uid == user(),
    }
}

/// Takes the exclusive lock without waiting; false if somebody has it.
pub(crate) fn try_lock(file: &impl AsFd) -> Result<bool> {
    match rustix::fs::flock(file, FlockOperation::NonBlockingLockExclusive) {
        Ok(()) => Ok(true),
        Err(Errno::WOULDBLOCK) => Ok(false),
        Err(errno) => Err(failed("locking a session", errno)),
    }
}

/// The names in `directory` that begin with `prefix`.
pub(crate) fn names(directory: &Path, prefix: &str) -> Result<Vec<String>> {
    let entries = std::fs::read_dir(directory).map_err(|error| failed("listing names", error))?;
    let names = entries.filter_map(|entry| {
        let name = entry.ok()?.file_name();
        OsStr::to_str(&name).map(str::to_owned)
    });
    Ok(names.filter(|name| name.starts_with(prefix)).collect())
}

/// Writes all of `data` at `offset`; the kernel takes at most 2 GiB at once.
pub(crate) fn write_at(file: &File, data: &[u8], offset: u64) -> Result<()> {
    use std::os::unix::fs::FileExt;
    file.write_all_at(data, offset)
        .map_err(|error| failed("copying into shared memory", error))
}

/// The `length` bytes at `offset`, which have to be there.
pub(crate) fn read_at(file: &OwnedFd, offset: usize, length: usize) -> Result<Vec<u8>> {
    let mut bytes = vec![0; length];
    let mut read = 0;
    while read < length {
        match rustix::io::pread(file, &mut bytes[read..], (offset + read) as u64) {
            Ok(0) => return Err(failed("copying a segment", io::ErrorKind::UnexpectedEof)),
            Ok(count) => read += count,
            Err(Errno::INTR) => {}
            Err(errno) => return Err(failed("copying a segment", errno)),
        }
    }
    Ok(bytes)
}

static GENERATION: AtomicU64 = AtomicU64::new(0);
static FORKS: AtomicU64 = AtomicU64::new(0);
static REGISTER: Once = Once::new();

/// What other rooms do at a fork; told once, by whoever first counts forks.
type AtFork = fn(Fork);

/// Where in a fork a handler is called.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Fork {
    Before,
    InParent,
    InChild,
}

static HANDLERS: OnceLock<&'static [AtFork]> = OnceLock::new();

fn call_handlers(moment: Fork) {
    for handler in HANDLERS.get().copied().unwrap_or_default() {
        handler(moment);
    }
}

extern "C" fn before_fork() {
    FORKS.fetch_add(1, Ordering::SeqCst);
    call_handlers(Fork::Before);
}

extern "C" fn after_fork_in_parent() {
    call_handlers(Fork::InParent);
}

extern "C" fn after_fork_in_child() {
    GENERATION.fetch_add(1, Ordering::SeqCst);
    call_handlers(Fork::InChild);
}

/// Has `handlers` called at every fork from now on. They may touch atomics and release locks that
/// they took before, which is all a child of a threaded process may do.
pub(crate) fn at_fork(handlers: &'static [AtFork]) {
    watch_forks();
    let _ = HANDLERS.set(handlers);
}

/// Counts forks from now on.
pub(crate) fn watch_forks() {
    REGISTER.call_once(|| {
        // SAFETY: the handlers live as long as the program. In the child they touch atomics and let
        // go of locks that this thread took before the fork, which is all that a child of a
        // threaded process may do.
        unsafe {
            libc::pthread_atfork(
                Some(before_fork),
                Some(after_fork_in_parent),
                Some(after_fork_in_child),
            )
        };
    });
}

/// How many forks lie between this process and the one that first loaded the library.
#[must_use]
pub fn fork_generation() -> u64 {
    watch_forks();
    GENERATION.load(Ordering::SeqCst)
}

/// How many children this process and its ancestors have forked.
pub(crate) fn forks() -> u64 {
    FORKS.load(Ordering::SeqCst)
}
