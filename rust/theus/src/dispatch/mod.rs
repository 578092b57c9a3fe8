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

mod budget_slots;
mod change_log;
mod completion;
mod core;
mod deadlines;
mod dispatcher;
mod durations;
mod engine;
mod event_queue;
mod failures;
mod function;
mod hello;
mod inbound;
mod io_thread;
mod loop_queue;
mod message;
mod poller;
mod pool;
mod program;
mod replies;
mod scheduler;
mod signal;
mod snapshot;
mod state;
mod sync;
mod task;
mod watch;
mod wire;
mod worker_lives;
mod worker_process;

pub use watch::{Attempt, watch_owner, watch_process};
pub use wire::{
    Attachments, Channel, Control, Count, Frame, Kept, Kind, PROTOCOL_VERSION, Pace, Receiver,
    Sender, Side, Traffic, Wait, decode, encode,
};

pub use completion::{Completion, Failure, Keepalive, Outcome, Phase, Progress, Subscriber};
pub use dispatcher::{Dispatcher, closed_error};
pub use engine::{Call, CallOptions, Engine, EngineBuilder, Python, TaskName};
pub use event_queue::{Event, EventQueue};
pub use function::{BY_NAME, BY_PARTS, BY_REFERENCE, Function};
pub use hello::{Hello, IMPORT, ITEMS, PICKLE, PLAIN, RECALL};
pub use loop_queue::LoopQueue;
pub use message::Message;
pub use program::{Codec, Launch, ProgramId, ProgramSpec};
pub use signal::{Signal, Woken};
pub use snapshot::{Change, DomainValue, Snapshot};
pub use task::{Setup, StaleTask, TaskSpec};
