//! The half of a channel that sends.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;

use rustix::event::PollFlags;

use super::channel::Side;
use super::control::Control;
use super::frame::{measure, write_head};
use super::kind::Kind;
use super::page_slot::{self, Outbox};
use super::send_queue::{Kept, Outgoing};
use super::socket::{Socket, Wait};
use crate::error::{Error, Result};
use crate::kill_point::KillPoint;
use crate::os::failed;

/// The half of a channel that sends.
#[derive(Debug)]
pub struct Sender {
    pub(super) socket: Arc<Socket>,
    pub(super) outgoing: Outgoing,
    pub(super) outbox: Option<Outbox>,
    pub(super) letter: Vec<u8>,
}

impl AsFd for Sender {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.fd.as_fd()
    }
}

impl Sender {
    /// Lets small frames go by the page while the peer polls: much faster than by the socket. Their
    /// order among the others stays.
    pub fn use_page(&mut self, control: &Control, side: Side) {
        let theirs = match side {
            Side::Owner => page_slot::TO_WORKER,
            Side::Worker => page_slot::TO_OWNER,
        };
        self.outbox = Some(Outbox::new(control.page(), theirs));
    }

    /// Queues a frame and writes what the socket takes. True if nothing is left to write.
    ///
    /// Attachments are sent from where they lie. For one that has to wait, `keep(index, skip)` is
    /// asked for something that holds its bytes from `skip` on.
    ///
    /// # Errors
    /// [`Error::FrameCount`] if `kind` does not have this many fields or attachments: nothing was
    /// sent. [`Error::ChannelPeerGone`] if nobody will read it.
    pub fn send(
        &mut self,
        kind: Kind,
        fields: &[u64],
        attachments: &[&[u8]],
        keep: &mut dyn FnMut(usize, usize) -> Kept,
    ) -> Result<bool> {
        if self.leave(kind, fields, attachments)? {
            KillPoint::FrameSent.pass();
            return Ok(true);
        }
        let mut socket = &*self.socket;
        let outcome = self
            .outgoing
            .send(&mut socket, kind, fields, attachments, keep)?;
        self.sent(outcome)
    }

    /// [`send`](Self::send), which copies the attachments that have to wait.
    ///
    /// # Errors
    /// As [`send`](Self::send).
    pub fn send_copying(
        &mut self,
        kind: Kind,
        fields: &[u64],
        attachments: &[&[u8]],
    ) -> Result<bool> {
        self.send(kind, fields, attachments, &mut |index, skip| {
            Box::new(attachments[index][skip..].to_vec())
        })
    }

    /// Sends a whole frame, waiting while the socket is full; signals do not end the wait.
    ///
    /// # Errors
    /// As [`send`](Self::send).
    pub fn send_blocking(
        &mut self,
        kind: Kind,
        fields: &[u64],
        attachments: &[&[u8]],
    ) -> Result<()> {
        let done = self.send_copying(kind, fields, attachments)?;
        self.finish(done)
    }

    /// Sends a whole frame that carries `descriptor`, waiting while the socket is full.
    ///
    /// # Errors
    /// As [`send_carrying`](Self::send_carrying).
    pub fn send_carrying_blocking(
        &mut self,
        kind: Kind,
        fields: &[u64],
        descriptor: OwnedFd,
    ) -> Result<()> {
        let done = self.send_carrying(kind, fields, descriptor)?;
        self.finish(done)
    }

    /// Sends a whole frame by the socket, also to a peer that polls: for what it does not wait for.
    ///
    /// # Errors
    /// As [`send`](Self::send).
    pub fn send_aside(&mut self, kind: Kind, fields: &[u64], attachments: &[&[u8]]) -> Result<()> {
        self.queue(kind, fields, attachments)?;
        let done = self.flush()?;
        self.finish(done)
    }

    fn finish(&mut self, mut done: bool) -> Result<()> {
        while !done {
            self.wait()?;
            done = self.flush()?;
        }
        Ok(())
    }

    /// Queues a copy of a frame, which the next [`flush`](Self::flush) writes with what else is queued:
    /// a system call for many.
    ///
    /// # Errors
    /// [`Error::FrameCount`] if `kind` does not have this many fields or attachments.
    pub fn queue(&mut self, kind: Kind, fields: &[u64], attachments: &[&[u8]]) -> Result<()> {
        self.outgoing.queue(kind, fields, attachments)
    }

    /// Leaves a frame where the peer polls for it; false if it has to go by the socket.
    fn leave(&mut self, kind: Kind, fields: &[u64], attachments: &[&[u8]]) -> Result<bool> {
        let Some(outbox) = &mut self.outbox else {
            return Ok(false);
        };
        let length = measure(kind, fields, attachments)?;
        if self.outgoing.queued_bytes() > 0 || !outbox.may_take(length) {
            return Ok(false);
        }
        self.letter.clear();
        write_head(&mut self.letter, kind, fields, attachments, length);
        for attachment in attachments {
            self.letter.extend_from_slice(attachment);
        }
        let traffic = &self.socket.traffic;
        let left = outbox.leave(&self.letter, traffic.socket_bytes());
        if left {
            traffic.left(length);
        }
        Ok(left)
    }

    /// Queues a frame that carries `descriptor`, and writes what the socket takes. The descriptor is
    /// closed here when it has been sent. True if nothing is left to write.
    ///
    /// # Errors
    /// As [`send`](Self::send), and [`Error::FrameDescriptor`] if `kind` carries none.
    pub fn send_carrying(
        &mut self,
        kind: Kind,
        fields: &[u64],
        descriptor: OwnedFd,
    ) -> Result<bool> {
        if !kind.carries_descriptor() {
            return Err(Error::FrameDescriptor { kind });
        }
        let mut socket = &*self.socket;
        let outcome = self
            .outgoing
            .send_carrying(&mut socket, kind, fields, descriptor)?;
        self.sent(outcome)
    }

    /// Writes what the socket takes of what is queued. True if nothing is left to write.
    ///
    /// # Errors
    /// [`Error::ChannelPeerGone`] if nobody will read it.
    pub fn flush(&mut self) -> Result<bool> {
        let outcome = self.outgoing.flush(&mut &*self.socket);
        self.sent(outcome)
    }

    fn sent(&self, outcome: io::Result<()>) -> Result<bool> {
        match outcome {
            Ok(()) => {
                KillPoint::FrameSent.pass();
                Ok(self.outgoing.queued_bytes() == 0)
            }
            Err(source)
                if matches!(
                    source.kind(),
                    io::ErrorKind::BrokenPipe | io::ErrorKind::ConnectionReset
                ) =>
            {
                Err(Error::ChannelPeerGone { source })
            }
            Err(source) => Err(failed("sending to the channel's peer", source)),
        }
    }

    /// Blocks until the socket takes more, or a signal handler ran.
    ///
    /// # Errors
    /// [`Error::Os`] if the kernel cannot wait.
    pub fn wait(&self) -> Result<Wait> {
        self.socket.wait(PollFlags::OUT)
    }

    /// What is queued and not written.
    #[must_use]
    pub fn queued_bytes(&self) -> usize {
        self.outgoing.queued_bytes()
    }
}
