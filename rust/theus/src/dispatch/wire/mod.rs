//! Frames between an owner and one of its workers.
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
//!
//! This room knows bytes, sockets and ids. It decides nothing: which worker gets which task, what
//! is cached and when a task is given up is the dispatcher's affair.

mod adaptive_poll;
mod channel;
mod control;
mod frame;
mod kind;
mod page_slot;
mod receive_buffer;
mod receiver;
mod send_queue;
mod sender;
mod socket;
#[cfg(test)]
mod testing;

pub use adaptive_poll::Pace;
pub use channel::{Channel, Side};
pub use control::Control;
pub use frame::{Attachments, Frame, PROTOCOL_VERSION, decode, encode};
pub use kind::{Count, Kind};
pub use receiver::Receiver;
pub use send_queue::Kept;
pub use sender::Sender;
pub use socket::{Traffic, Wait};
