//! Some signals end a process without running any of its code; sessions would stay behind.
//!
//! Where these signals have their default effect when the first session is made, a handler removes
//! the sessions' names and then lets the default effect happen. It uses only what a handler may:
//! system calls on buffers of its own.

#![expect(unsafe_code, reason = "a signal handler may call system calls only")]

use std::ffi::{CStr, CString, c_char};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::sync::Once;
use std::sync::atomic::{AtomicPtr, AtomicU64, Ordering};

use crate::descriptor::{HIDDEN, PREFIX, SessionId};

const MEMORY: &CStr = c"/dev/shm";
const SESSIONS: usize = 64;
const ID_BYTES: usize = 12;

/// The ids of living sessions, 12 bytes in two words; zero is a free place.
static IDS: [[AtomicU64; 2]; SESSIONS] =
    [const { [AtomicU64::new(0), AtomicU64::new(0)] }; SESSIONS];
static INSTALL: Once = Once::new();

const DIRECTORIES: usize = 16;

/// Where sessions have names besides `/dev/shm`: paths that are never freed.
static SPILL: [AtomicPtr<c_char>; DIRECTORIES] =
    [const { AtomicPtr::new(std::ptr::null_mut()) }; DIRECTORIES];

fn words(id: &SessionId) -> [u64; 2] {
    let mut bytes = [0_u8; 16];
    bytes[..ID_BYTES].copy_from_slice(id.as_str().as_bytes());
    let (first, second) = bytes.split_at(8);
    [first, second].map(|half| u64::from_le_bytes(half.try_into().unwrap_or_default()))
}

/// Has the names of session `id` removed if a signal ends this process.
pub(crate) fn guard(id: &SessionId, spill: Option<&Path>) {
    INSTALL.call_once(install);
    if let Some(Ok(path)) = spill.map(|path| CString::new(path.as_os_str().as_bytes())) {
        guard_directory(path);
    }
    let [first, second] = words(id);
    for place in &IDS {
        // More sessions than places are still removed by the workers and by the next sweep.
        if place[1]
            .compare_exchange(0, second, Ordering::SeqCst, Ordering::SeqCst)
            .is_ok()
        {
            place[0].store(first, Ordering::SeqCst);
            return;
        }
    }
}

fn guard_directory(path: CString) {
    let path = path.into_raw();
    for place in &SPILL {
        let swap = place.compare_exchange(
            std::ptr::null_mut(),
            path,
            Ordering::SeqCst,
            Ordering::SeqCst,
        );
        let Err(taken) = swap else { return };
        // SAFETY: a path that is placed is never freed.
        let taken = unsafe { CStr::from_ptr(taken) };
        // SAFETY: it was made by `into_raw` above.
        if taken == unsafe { CStr::from_ptr(path) } {
            break;
        }
    }
    // SAFETY: it was made by `into_raw`, and nobody has it.
    drop(unsafe { CString::from_raw(path) });
}

/// Forgets every session: they are the parent's.
pub(crate) fn forget_in_child() {
    for place in &IDS {
        place[0].store(0, Ordering::SeqCst);
        place[1].store(0, Ordering::SeqCst);
    }
}

/// Forgets session `id`, which is closed.
pub(crate) fn unguard(id: &SessionId) {
    let [first, second] = words(id);
    for place in &IDS {
        if place[0].load(Ordering::SeqCst) == first && place[1].load(Ordering::SeqCst) == second {
            place[0].store(0, Ordering::SeqCst);
            place[1].store(0, Ordering::SeqCst);
        }
    }
}

/// Has an interrupt, if that is its default effect, not end this process any more: for a worker, whose
/// tasks are told in another way. What it starts has the default again.
#[cfg(feature = "worker")]
pub(crate) fn outlive_interrupts() {
    handle(
        &[libc::SIGINT],
        ignore as *const () as usize,
        libc::SA_RESTART,
    );
}

#[cfg(feature = "worker")]
extern "C" fn ignore(_: libc::c_int) {}

fn install() {
    let signals = [libc::SIGTERM, libc::SIGHUP, libc::SIGINT, libc::SIGQUIT];
    handle(&signals, remove_and_die as *const () as usize, 0);
}

/// Has `handler`, of a signal's number alone, run at those signals that have their default effect.
fn handle(signals: &[libc::c_int], handler: usize, flags: libc::c_int) {
    for &signal in signals {
        let mut old = std::mem::MaybeUninit::<libc::sigaction>::zeroed();
        // SAFETY: the current action is written to `old`; nothing changes.
        let known = unsafe { libc::sigaction(signal, std::ptr::null(), old.as_mut_ptr()) };
        // SAFETY: it was zeroed, which is a valid value, and then written.
        let old = unsafe { old.assume_init() };
        if known != 0 || old.sa_sigaction != libc::SIG_DFL {
            continue;
        }
        let mut action = old;
        action.sa_sigaction = handler;
        action.sa_flags |= flags;
        // SAFETY: the handler has the signature of one without SA_SIGINFO and lives forever.
        unsafe { libc::sigaction(signal, &raw const action, std::ptr::null_mut()) };
    }
}

extern "C" fn remove_and_die(signal: libc::c_int) {
    // The lock files go last, and that in memory the very last: a sweep must not take a session for
    // one without a lock, and learns from it where the session spilled.
    for locks in [false, true] {
        for place in &SPILL {
            let path = place.load(Ordering::SeqCst);
            if !path.is_null() {
                // SAFETY: a path that is placed is never freed.
                remove_names(unsafe { CStr::from_ptr(path) }, locks);
            }
        }
        remove_names(MEMORY, locks);
    }
    // SAFETY: signal is async-signal-safe.
    unsafe { libc::signal(signal, libc::SIG_DFL) };
    // SAFETY: so is raise; the default action ends the process when the handler returns and the
    // signal is unblocked.
    unsafe { libc::raise(signal) };
}

fn remove_names(directory: &CStr, locks: bool) {
    let mut buffer = [std::mem::MaybeUninit::<u8>::uninit(); 8192];
    let flags = rustix::fs::OFlags::RDONLY | rustix::fs::OFlags::DIRECTORY;
    let Ok(directory) = rustix::fs::open(directory, flags, rustix::fs::Mode::empty()) else {
        return;
    };
    let mut entries = rustix::fs::RawDir::new(&directory, &mut buffer);
    while let Some(Ok(entry)) = entries.next() {
        let name = entry.file_name();
        if is_ours(name.to_bytes(), locks) {
            let _ = rustix::fs::unlinkat(&directory, name, rustix::fs::AtFlags::empty());
        }
    }
}

fn is_ours(name: &[u8], locks: bool) -> bool {
    let name = name.strip_prefix(HIDDEN.as_bytes()).unwrap_or(name);
    let Some(rest) = name.strip_prefix(PREFIX.as_bytes()) else {
        return false;
    };
    let (Some(id), Some(tail)) = (rest.get(..ID_BYTES), rest.get(ID_BYTES..)) else {
        return false;
    };
    if (tail == b".lock") != locks || !(locks || tail.starts_with(b"-")) {
        return false;
    }
    let mut bytes = [0_u8; 16];
    bytes[..ID_BYTES].copy_from_slice(id);
    let (first, second) = bytes.split_at(8);
    let word = |half: &[u8]| {
        let mut word = [0; 8];
        word.copy_from_slice(half);
        u64::from_le_bytes(word)
    };
    IDS.iter().any(|place| {
        place[0].load(Ordering::SeqCst) == word(first)
            && place[1].load(Ordering::SeqCst) == word(second)
    })
}
