//! How an owner hands tasks to its workers, and the dispatcher that does it.
//!
//! `wire` has the frames between an owner and each of its workers, without knowing what they mean.
//! `Dispatcher` is what an embedding language uses, `Engine` what an owner in Rust does. Below them:
//!
//! * `scheduler` says which task goes to which worker, `replies` what workers answer, `worker_lives`
//!   how workers start and end, all as functions of one locked `state`;
//! * `io_thread` is the one thread of an engine, `core` what it shares with callers;
//! * a `Completion` is the end of a task, which wakes whoever waits for it.
//!
//! A worker whose owner is gone is ended by [`watch_owner`], whatever it is doing.

#[cfg(feature = "engine")]
mod budget_slots;
#[cfg(feature = "engine")]
mod change_log;
#[cfg(feature = "engine")]
mod completion;
#[cfg(feature = "engine")]
mod core;
#[cfg(feature = "engine")]
mod deadlines;
#[cfg(feature = "engine")]
mod dispatcher;
#[cfg(feature = "engine")]
mod durations;
#[cfg(feature = "engine")]
mod engine;
#[cfg(feature = "engine")]
mod event_queue;
#[cfg(feature = "engine")]
mod failures;
#[cfg(feature = "engine")]
mod function;
#[cfg(feature = "engine")]
mod hello;
#[cfg(feature = "engine")]
mod inbound;
#[cfg(feature = "engine")]
mod io_thread;
#[cfg(feature = "engine")]
mod loop_queue;
#[cfg(feature = "engine")]
mod message;
#[cfg(feature = "engine")]
mod poller;
#[cfg(feature = "engine")]
mod pool;
#[cfg(feature = "engine")]
mod program;
#[cfg(feature = "engine")]
mod replies;
#[cfg(feature = "engine")]
mod scheduler;
#[cfg(feature = "engine")]
mod signal;
#[cfg(feature = "engine")]
mod snapshot;
#[cfg(feature = "engine")]
mod state;
#[cfg(feature = "engine")]
mod sync;
#[cfg(feature = "engine")]
mod task;
mod watch;
mod wire;
#[cfg(feature = "engine")]
mod worker_lives;
#[cfg(feature = "engine")]
mod worker_process;

pub use watch::{Attempt, watch_owner, watch_process};
pub use wire::{
    Attachments, Channel, Control, Count, Frame, Kept, Kind, PROTOCOL_VERSION, Pace, Receiver,
    Sender, Side, Traffic, Wait, decode, encode,
};

#[cfg(feature = "engine")]
pub use completion::{Completion, Failure, Keepalive, Outcome, Phase, Progress, Subscriber};
#[cfg(feature = "engine")]
pub use dispatcher::{Dispatcher, closed_error};
#[cfg(feature = "engine")]
pub use engine::{Call, CallOptions, Engine, EngineBuilder, Python, TaskName};
#[cfg(feature = "engine")]
pub use event_queue::{Event, EventQueue};
#[cfg(feature = "engine")]
pub use function::{BY_NAME, BY_PARTS, BY_REFERENCE, Function};
#[cfg(feature = "engine")]
pub use hello::{Hello, IMPORT, ITEMS, PICKLE, PLAIN, RECALL};
#[cfg(feature = "engine")]
pub use loop_queue::LoopQueue;
#[cfg(feature = "engine")]
pub use message::Message;
#[cfg(feature = "engine")]
pub use program::{Codec, Launch, ProgramId, ProgramSpec};
#[cfg(feature = "engine")]
pub use signal::{Signal, Woken};
#[cfg(feature = "engine")]
pub use snapshot::{Change, DomainValue, Snapshot};
#[cfg(feature = "engine")]
pub use task::{Setup, StaleTask, TaskSpec};
