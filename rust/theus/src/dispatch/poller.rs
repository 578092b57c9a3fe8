//! The descriptors that the thread of an engine waits for, and the numbers by which it knows them.

use std::os::fd::BorrowedFd;

use rustix::event::epoll;

use super::core::Core;
use super::program::ProgramId;
use super::worker_process::{Worker, WorkerKey};

/// The number of the wake-up counter among the epoll's descriptors.
pub(super) const WAKE: u64 = u64::MAX;
/// A program has its number above these bits.
const NUMBER_BITS: u32 = 44;

/// Which descriptor of a worker an event is about.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Which {
    Socket,
    Process,
}

fn token(key: WorkerKey, which: Which) -> u64 {
    let process = u64::from(which == Which::Process);
    (key.program.0 as u64) << (NUMBER_BITS + 1) | key.number << 1 | process
}

/// Returns the worker and the descriptor that an event is about.
pub(super) fn of_token(token: u64) -> (WorkerKey, Which) {
    let program = usize::try_from(token >> (NUMBER_BITS + 1)).unwrap_or(usize::MAX);
    let key = WorkerKey {
        program: ProgramId(program),
        number: (token >> 1) & ((1 << NUMBER_BITS) - 1),
    };
    let which = if token & 1 == 1 {
        Which::Process
    } else {
        Which::Socket
    };
    (key, which)
}

impl Core {
    /// Wakes the thread of the engine, so that it looks at the state.
    pub(super) fn wake(&self) {
        // The counter cannot be full, and who reads it next sees all.
        let _ = rustix::io::write(&self.wake, &1_u64.to_ne_bytes());
    }

    pub(super) fn woke(&self) {
        let mut count = [0; 8];
        let _ = rustix::io::read(&self.wake, &mut count);
    }

    /// Waits for a worker's frames and its end from now on.
    pub(super) fn watch(&self, worker: &Worker) {
        let add = |file: BorrowedFd<'_>, which, flags| {
            let data = epoll::EventData::new_u64(token(worker.key, which));
            // Without room for one more the worker's deadline ends it.
            let _ = epoll::add(&self.epoll, file, data, flags);
        };
        add(worker.socket(), Which::Socket, epoll::EventFlags::IN);
        add(worker.pidfd(), Which::Process, epoll::EventFlags::IN);
    }

    pub(super) fn update_interest(&self, worker: &mut Worker) {
        if let Some(flags) = worker.new_interest() {
            let data = epoll::EventData::new_u64(token(worker.key, Which::Socket));
            let _ = epoll::modify(&self.epoll, worker.socket(), data, flags);
        }
    }

    pub(super) fn forget(&self, worker: &Worker) {
        let _ = epoll::delete(&self.epoll, worker.socket());
        let _ = epoll::delete(&self.epoll, worker.pidfd());
    }
}
