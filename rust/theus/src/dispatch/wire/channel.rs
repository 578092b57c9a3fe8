//! One end of the private stream socket between an owner and one worker.
//!
//! Every system call on the socket is non-blocking; whoever has to wait, waits in `poll`. That
//! makes the same end serve an event loop ([`Channel::try_recv`], [`Channel::flush`]) and a plain
//! loop ([`Channel::recv`], [`Channel::send_blocking`]). Dropping an end closes the descriptor and
//! says nothing, so a forked child of the owner can drop what it inherited without harm.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;
use std::time::Duration;

use super::control::Control;
use super::frame::Frame;
use super::kind::Kind;
use super::receive_buffer::Incoming;
use super::receiver::Receiver;
use super::send_queue::Outgoing;
use super::sender::Sender;
use super::socket::{Socket, Traffic};
use crate::error::Result;
use crate::kill_point::KillPoint;

/// Whose end of a channel it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Side {
    /// That of the process that starts workers.
    Owner,
    /// That of a worker.
    Worker,
}

/// One end of a channel; its halves can be used from two threads.
#[derive(Debug)]
pub struct Channel {
    /// The half that sends.
    pub sender: Sender,
    /// The half that receives.
    pub receiver: Receiver,
}

impl Channel {
    /// The owner's end, and the socket that becomes the worker's. Both are close-on-exec: the
    /// second is made inheritable by whoever starts the worker, so that no other process that is
    /// started meanwhile gets it.
    ///
    /// # Errors
    /// [`Error::Os`] if there are no descriptors left.
    pub fn pair() -> Result<(Self, OwnedFd)> {
        let (ours, theirs) = Socket::pair()?;
        KillPoint::ChannelMade.pass();
        Ok((Self::new(ours), theirs))
    }

    /// An end of a channel over an inherited socket, which is made close-on-exec.
    ///
    /// # Errors
    /// [`Error::ChannelSocket`] if the descriptor is not a Unix stream socket.
    pub fn from_fd(socket: OwnedFd) -> Result<Self> {
        Socket::from_fd(socket).map(Self::new)
    }

    fn new(socket: Socket) -> Self {
        let socket = Arc::new(socket);
        Self {
            sender: Sender {
                socket: Arc::clone(&socket),
                outgoing: Outgoing::default(),
                outbox: None,
                letter: Vec::new(),
            },
            receiver: Receiver {
                socket,
                incoming: Incoming::new(),
                inbox: None,
            },
        }
    }

    /// [`Sender::use_page`] and [`Receiver::use_page`].
    pub fn use_page(&mut self, control: &Control, side: Side) {
        self.sender.use_page(control, side);
        self.receiver.use_page(control, side);
    }

    /// The counters of this end.
    #[must_use]
    pub fn traffic(&self) -> Arc<Traffic> {
        Arc::clone(&self.sender.socket.traffic)
    }

    /// [`Sender::send_copying`].
    ///
    /// # Errors
    /// As [`Sender::send`].
    pub fn send(&mut self, kind: Kind, fields: &[u64], attachments: &[&[u8]]) -> Result<bool> {
        self.sender.send_copying(kind, fields, attachments)
    }

    /// [`Sender::send_blocking`].
    ///
    /// # Errors
    /// As [`Sender::send`].
    pub fn send_blocking(
        &mut self,
        kind: Kind,
        fields: &[u64],
        attachments: &[&[u8]],
    ) -> Result<()> {
        self.sender.send_blocking(kind, fields, attachments)
    }

    /// Sends more of what is queued. True if nothing is left.
    ///
    /// # Errors
    /// As [`Sender::flush`].
    pub fn flush(&mut self) -> Result<bool> {
        self.sender.flush()
    }

    /// The next whole frame, or None.
    ///
    /// # Errors
    /// As [`Receiver::try_recv`].
    pub fn try_recv(&mut self) -> Result<Option<Frame<'_>>> {
        self.receiver.try_recv()
    }

    /// [`Receiver::recv`].
    ///
    /// # Errors
    /// As [`Receiver::try_recv`].
    pub fn recv(&mut self, spin: Duration) -> Result<Frame<'_>> {
        self.receiver.recv(spin)
    }
}

impl AsFd for Channel {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.sender.as_fd()
    }
}
