//! The one thread of an engine: it waits for what arrives and for what is due.
//!
//! It never takes Python's GIL and runs no code of the user. It sleeps without a limit while nothing is
//! due, so an idle engine uses no processor time. It ends when the engine is closed and no worker is
//! left.

use std::io;
use std::mem::MaybeUninit;
use std::sync::{Arc, PoisonError};
use std::thread;
use std::time::Instant;

use rustix::event::{Timespec, epoll};
use rustix::io::Errno;

use super::core::Core;
use super::poller::{WAKE, Which, of_token};
use crate::error::Result;
use crate::os::failed;
use crate::spawn::block_signals;

const EVENTS: usize = 64;

/// Starts the thread, unless it runs.
///
/// # Errors
/// [`Error::Os`](crate::Error::Os) if this process may have no more threads; nothing has changed then.
pub(super) fn ensure(core: &Arc<Core>) -> Result<()> {
    let mut thread = core.thread.lock().unwrap_or_else(PoisonError::into_inner);
    if thread.is_some() {
        return Ok(());
    }
    let own = Arc::clone(core);
    let started = thread::Builder::new()
        .name("theus-io".to_owned())
        .spawn(move || run(&own));
    *thread = Some(started.map_err(|error| failed("starting the engine's thread", error))?);
    Ok(())
}

/// Waits for the thread to end, if it was started.
pub(super) fn join(core: &Core) {
    let thread = core
        .thread
        .lock()
        .unwrap_or_else(PoisonError::into_inner)
        .take();
    if let Some(thread) = thread {
        // It panics only by a mistake, which it has printed.
        let _ = thread.join();
    }
}

fn run(core: &Arc<Core>) {
    block_signals();
    loop {
        core.start_workers();
        let (left, over) = core.with(|state, effects| {
            let next = state.expire(core, effects);
            state.sleeps_until = next;
            (next, state.closed && state.is_empty())
        });
        if over {
            core.note_gone();
            return;
        }
        wait(core, left);
    }
}

fn wait(core: &Arc<Core>, until: Option<Instant>) {
    let left = until.map(|until| until.saturating_duration_since(Instant::now()));
    let left = left.and_then(|left| Timespec::try_from(left).ok());
    let mut space = [MaybeUninit::<epoll::Event>::uninit(); EVENTS];
    let events = match epoll::wait(core, &mut space, left.as_ref()) {
        Ok((events, _)) => events,
        Err(Errno::INTR) => return,
        Err(errno) => {
            // The descriptor was closed by somebody else's mistake: no worker can be heard any more.
            eprintln!(
                "theus: the engine's thread ends: {}",
                io::Error::from(errno)
            );
            thread::park();
            return;
        }
    };
    for event in events {
        let token = event.data.u64();
        if token == WAKE {
            core.woke();
            continue;
        }
        let (key, which) = of_token(token);
        let flags = event.flags;
        match which {
            Which::Process => core.bury(key),
            Which::Socket => {
                if flags.contains(epoll::EventFlags::OUT) {
                    core.write_more(key);
                }
                if flags.intersects(
                    epoll::EventFlags::IN | epoll::EventFlags::HUP | epoll::EventFlags::ERR,
                ) {
                    core.attend(key);
                }
            }
        }
    }
}
