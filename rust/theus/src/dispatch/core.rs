//! The shared heart of an engine's dispatcher: the locked state, and the descriptors to wait for.
//!
//! Three kinds of thread come here. The thread of the engine ([`io_thread`](super::io_thread)) reads
//! what arrives and does what is due. A caller sends its own task, and polls for a short one's answer.
//! Whoever does either has the worker's receiving half locked, then the state, then neither, and only
//! then wakes waiters: in that order, so that a worker's frames take effect in their order.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;

use rustix::event::{EventfdFlags, epoll, eventfd};

use super::completion::{Completion, Keepalive, Outcome};
use super::event_queue::{Event, EventQueue};
use super::inbound::{Inbound, Look};
use super::poller::WAKE;
use super::program::{ProgramId, Start};
use super::signal::Signal;
use super::state::{Effects, State};
use super::task::{StaleTask, Task};
use super::worker_process::{Worker, WorkerKey};
use crate::error::{Error, Result};
use crate::os::{failed, fork_generation};
use crate::session::Session;
use crate::spawn::SignalMask;

/// How long a caller polls for the answer of a task, and how long that may take: what a wake-up does.
pub(super) const SPIN: Duration = Duration::from_micros(60);
/// How many frames of a worker are acted on before the lock is released.
const BATCH: usize = 128;

/// What the threads of an engine share.
pub(super) struct Core {
    pub(super) session: Session,
    pub(super) cores: usize,
    pub(super) events: Arc<EventQueue>,
    pub(super) epoll: OwnedFd,
    pub(super) thread: Mutex<Option<JoinHandle<()>>>,
    pub(super) wake: OwnedFd,
    generation: u64,
    mask: SignalMask,
    state: Mutex<State>,
    /// How many tasks were submitted and have no outcome.
    unfinished: AtomicUsize,
    waiting: Mutex<Waiting>,
}

/// Threads that wait for the engine as a whole.
#[derive(Default)]
struct Waiting {
    /// Until nothing is unfinished.
    idle: Vec<Arc<Signal>>,
    /// Until no worker is left.
    gone: Vec<Arc<Signal>>,
    /// Whether an event tells when nothing is unfinished.
    tell_idle: bool,
    is_gone: bool,
}

impl std::fmt::Debug for Core {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Core").finish_non_exhaustive()
    }
}

impl Core {
    pub(super) fn new(session: Session, cores: usize) -> Result<Self> {
        let lacking = |errno| failed("starting a dispatcher", errno);
        let epoll = epoll::create(epoll::CreateFlags::CLOEXEC).map_err(lacking)?;
        let wake = eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK).map_err(lacking)?;
        let data = epoll::EventData::new_u64(WAKE);
        epoll::add(&epoll, &wake, data, epoll::EventFlags::IN).map_err(lacking)?;
        Ok(Self {
            session,
            cores,
            events: Arc::default(),
            epoll,
            thread: Mutex::default(),
            wake,
            generation: fork_generation(),
            mask: SignalMask::current(),
            state: Mutex::default(),
            unfinished: AtomicUsize::new(0),
            waiting: Mutex::default(),
        })
    }

    /// Returns whether this process was forked from the one whose workers these are: nothing here may
    /// be locked then, as a thread that is not in this process may hold it.
    pub(super) fn is_foreign(&self) -> bool {
        self.generation != fork_generation()
    }

    pub(super) fn check_owner(&self) -> Result<()> {
        if self.is_foreign() {
            return Err(Error::SessionClosed {
                session: self.session.id().to_string(),
            });
        }
        Ok(())
    }

    pub(super) fn state(&self) -> MutexGuard<'_, State> {
        // A panic under the lock is a mistake here, and the state is as good as it was.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Changes the state, then does what has to happen without the lock.
    pub(super) fn with<T>(
        self: &Arc<Self>,
        change: impl FnOnce(&mut State, &mut Effects) -> T,
    ) -> T {
        let mut effects = Effects::default();
        let mut state = self.state();
        let changed = change(&mut state, &mut effects);
        drop(state);
        let Effects {
            ended,
            timed_out,
            events,
            stale,
            dropped,
            forgotten,
            wake,
        } = effects;
        for event in events {
            self.events.push(event);
        }
        for (completion, outcome, keepalive) in ended {
            self.finish(&completion, outcome, keepalive);
        }
        for (completion, waiters) in timed_out {
            if let Some(waiters) = waiters {
                waiters.wake();
                self.note_finished();
            }
            drop(completion);
        }
        if wake {
            self.wake();
        }
        for task in stale {
            self.events.push(Event::Stale(StaleTask {
                core: Arc::clone(self),
                task: Some(task),
            }));
        }
        drop((dropped, forgotten));
        changed
    }

    // --- tasks ---

    pub(super) fn note_submitted(&self) {
        self.unfinished.fetch_add(1, Ordering::SeqCst);
    }

    /// Sets the outcome of a task that was submitted. Returns whether this was the first.
    pub(super) fn finish(
        &self,
        completion: &Completion,
        outcome: Outcome,
        keepalive: Option<Keepalive>,
    ) -> bool {
        let finished = completion.finish(outcome, keepalive);
        if finished {
            self.note_finished();
        }
        finished
    }

    pub(super) fn note_finished(&self) {
        if self.unfinished.fetch_sub(1, Ordering::SeqCst) == 1 {
            self.tell_idle();
        }
    }

    fn tell_idle(&self) {
        let mut waiting = self.waiting();
        let idle = std::mem::take(&mut waiting.idle);
        let tell = std::mem::take(&mut waiting.tell_idle);
        drop(waiting);
        for signal in idle {
            signal.set();
        }
        if tell {
            self.events.push(Event::Idle);
        }
    }

    pub(super) fn resend(self: &Arc<Self>, task: Box<Task>) {
        self.with(|state, effects| state.resend(self, task, effects));
    }

    pub(super) fn is_busy(&self) -> bool {
        self.unfinished.load(Ordering::SeqCst) > 0
    }

    /// Returns a signal that is set when nothing is unfinished; none if that is so now.
    pub(super) fn when_idle(&self) -> Option<Arc<Signal>> {
        let mut waiting = self.waiting();
        if !self.is_busy() {
            return None;
        }
        let signal = Arc::new(Signal::default());
        waiting.idle.push(Arc::clone(&signal));
        Some(signal)
    }

    /// Has an event tell when nothing is unfinished. Returns false if that is so now.
    pub(super) fn tell_when_idle(&self) -> bool {
        let mut waiting = self.waiting();
        waiting.tell_idle = self.is_busy();
        waiting.tell_idle
    }

    /// Returns a signal that is set when no worker is left; none if that is so now.
    pub(super) fn when_gone(&self) -> Option<Arc<Signal>> {
        let mut waiting = self.waiting();
        if waiting.is_gone {
            return None;
        }
        let signal = Arc::new(Signal::default());
        waiting.gone.push(Arc::clone(&signal));
        Some(signal)
    }

    pub(super) fn note_gone(&self) {
        let mut waiting = self.waiting();
        waiting.is_gone = true;
        let gone = std::mem::take(&mut waiting.gone);
        drop(waiting);
        for signal in gone {
            signal.set();
        }
    }

    fn waiting(&self) -> MutexGuard<'_, Waiting> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }

    // --- workers ---

    /// Starts the workers that the state asks for, without its lock.
    pub(super) fn start_workers(self: &Arc<Self>) {
        loop {
            let Some(request) = self.state().take_start() else {
                return;
            };
            let (key, slot) = (request.key, request.slot);
            let start = Start {
                spec: request.spec,
                stamp: request.stamp,
                session: self.session.id().to_string(),
                slot,
                mask: self.mask,
            };
            let started = Worker::start(&self.session, &start, key, request.time);
            self.with(|state, effects| match started {
                Ok(worker) => state.started(self, worker, effects),
                Err(error) => state.not_started(self, key, slot, error, effects),
            });
        }
    }

    /// Reads what a worker has sent and acts on it.
    pub(super) fn attend(self: &Arc<Self>, key: WorkerKey) {
        if let Some(inbound) = self.inbound(key) {
            let mut inbound = lock(&inbound);
            self.drain(key, &mut inbound, Look::Socket);
        }
    }

    fn drain(self: &Arc<Self>, key: WorkerKey, inbound: &mut Inbound, look: Look) {
        loop {
            let mut arrivals = Vec::new();
            let taken = inbound.take(&self.session, look, BATCH, &mut arrivals);
            let more = arrivals.len() == BATCH;
            let ended = taken.is_err();
            if arrivals.is_empty() && !ended {
                return;
            }
            self.with(|state, effects| {
                state.apply(self, key, arrivals, effects);
                if let Err(error) = taken {
                    let is_end = matches!(error, Error::ChannelEnd { .. } | Error::Os { .. });
                    state.break_off(self, key, Some(error).filter(|_| !is_end));
                }
            });
            if ended || !more {
                return;
            }
        }
    }

    /// Sends more of what waits for a worker's socket.
    pub(super) fn write_more(self: &Arc<Self>, key: WorkerKey) {
        self.with(|state, _| {
            let Some(worker) = state.worker(key) else {
                return;
            };
            if worker.write_more().is_err() {
                state.break_off(self, key, None);
            } else {
                self.update_interest(worker);
            }
        });
    }

    /// Settles what a worker leaves whose process has ended.
    pub(super) fn bury(self: &Arc<Self>, key: WorkerKey) {
        let status = {
            let mut state = self.state();
            let Some(worker) = state.worker(key) else {
                return;
            };
            match worker.reap() {
                Some(status) => status,
                None => return,
            }
        };
        let broken = self
            .state()
            .worker(key)
            .is_none_or(|it| it.broken.is_some());
        if !broken {
            self.attend(key);
        }
        let worker = self.with(|state, effects| state.reaped(self, key, status, effects));
        drop(worker);
    }

    /// Polls for the answer of a task that was sent and should be short, while the thread of the engine
    /// stands aside: it waits for the lock of the worker's receiving half.
    pub(super) fn poll(self: &Arc<Self>, id: ProgramId, completion: &Arc<Completion>) {
        let Some((key, inbound)) = self.polled_for(id, completion) else {
            return;
        };
        let Ok(mut inbound) = inbound.try_lock() else {
            return;
        };
        let _ = inbound.receiver.poll_page(SPIN);
        // What was left until the end has to be looked at: no event will tell of it. One will tell of
        // what came by the socket.
        self.drain(key, &mut inbound, Look::Here);
    }

    /// Submits a task and polls for its answer, if it is short and a worker that rests may have it.
    ///
    /// The worker is told that somebody polls before it is sent the task: a fast one would else answer
    /// by the socket, and wake the thread of the engine.
    pub(super) fn submit_polling(
        self: &Arc<Self>,
        task: Box<Task>,
        submit: impl FnOnce(&Arc<Self>, Box<Task>) -> Result<()>,
    ) -> Result<()> {
        let id = task.spec.program;
        let resting = self.state().programs[id.0].resting_for(&task, self.cores, SPIN);
        let Some((key, inbound)) = resting else {
            return submit(self, task);
        };
        let Ok(mut inbound) = inbound.try_lock() else {
            return submit(self, task);
        };
        let completion = Arc::clone(&task.completion);
        inbound.receiver.start_polling();
        let submitted = submit(self, task);
        if submitted.is_ok()
            && self
                .polled_for(id, &completion)
                .is_some_and(|it| it.0 == key)
        {
            let _ = inbound.receiver.poll_page(SPIN);
        } else {
            inbound.receiver.stop_polling();
        }
        self.drain(key, &mut inbound, Look::Here);
        submitted
    }

    fn polled_for(
        &self,
        id: ProgramId,
        completion: &Arc<Completion>,
    ) -> Option<(WorkerKey, Arc<Mutex<Inbound>>)> {
        let state = self.state();
        let program = &state.programs[id.0];
        // This thread takes no core from a worker.
        if program.busy() >= self.cores {
            return None;
        }
        let worker = program.workers.iter().find(|worker| {
            let first = worker.queue.front();
            first.is_some_and(|task| Arc::ptr_eq(&task.completion, completion))
        })?;
        let task = worker.queue.front()?;
        (task.estimate <= SPIN).then(|| (worker.key, Arc::clone(&worker.inbound)))
    }

    fn inbound(&self, key: WorkerKey) -> Option<Arc<Mutex<Inbound>>> {
        let mut state = self.state();
        state.worker(key).map(|worker| Arc::clone(&worker.inbound))
    }

    pub(super) fn clear_slot(&self, slot: usize) {
        self.session.zone().budget().clear(slot);
    }
}

impl AsFd for Core {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.epoll.as_fd()
    }
}

fn lock(inbound: &Mutex<Inbound>) -> MutexGuard<'_, Inbound> {
    inbound.lock().unwrap_or_else(PoisonError::into_inner)
}
