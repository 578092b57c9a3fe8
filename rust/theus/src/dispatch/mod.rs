//! How an owner hands tasks to its workers.
//!
//! An *owner* is the process that created a session; its *workers* are processes that it started.
//! Between the owner and each worker lie three things, all inherited, none with a name:
//!
//! ```text
//!             SETUP, STATE, FUNCTION, TASK, RELEASE, SHUTDOWN
//!          ------------------------------------------------->
//!   owner                  channel (stream socket)              worker
//!          <-------------------------------------------------
//!         HELLO, RESULT, ERROR, LOG, PROGRESS
//!
//!          cancel ------->  control (shared page)  <------- running
//!          pidfd  ----------------- watch ----------------> sweep, exit
//! ```
//!
//! * The [`Channel`] carries [frames](Frame): a few integers and a few blobs of bytes. The bulk of
//!   the data is not in them, they name the segments where it lies. What a state version, a
//!   function or a task *means* is up to the two programs; a frame refers to earlier ones by id,
//!   so that nothing is sent twice. The socket keeps the order: what a task needs goes before it.
//! * The [`Control`] page reaches a worker that is busy, and tells the owner how far it is without
//!   a system call. A peer that polls also finds small frames there, which is what makes a task that
//!   does nothing cost a few microseconds.
//! * [`watch_owner`] ends a worker whose owner is gone, whatever the worker is doing.
//!
//! This room knows bytes, sockets and ids. It decides nothing: which worker gets which task, what
//! is cached and when a task is given up is the dispatcher's affair.

#[cfg(feature = "engine")]
mod budget_slots;
#[cfg(feature = "engine")]
mod change_log;
mod channel;
#[cfg(feature = "engine")]
mod completion;
mod control;
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
mod frame;
#[cfg(feature = "engine")]
mod function;
#[cfg(feature = "engine")]
mod hello;
#[cfg(feature = "engine")]
mod inbound;
mod incoming;
#[cfg(feature = "engine")]
mod io_thread;
mod kind;
#[cfg(feature = "engine")]
mod loop_queue;
mod mail;
#[cfg(feature = "engine")]
mod message;
mod outgoing;
mod pace;
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
mod socket;
#[cfg(feature = "engine")]
mod state;
#[cfg(feature = "engine")]
mod sync;
#[cfg(feature = "engine")]
mod task;
#[cfg(test)]
mod testing;
mod watch;
#[cfg(feature = "engine")]
mod wire;
#[cfg(feature = "engine")]
mod worker_lives;
#[cfg(feature = "engine")]
mod worker_process;

pub use channel::{Channel, Receiver, Sender, Side};
pub use control::Control;
pub use frame::{Attachments, Frame, PROTOCOL_VERSION, decode, encode};
pub use kind::{Count, Kind};
pub use outgoing::Kept;
pub use pace::Pace;
pub use socket::{Traffic, Wait};
pub use watch::{Attempt, watch_owner, watch_process};

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
