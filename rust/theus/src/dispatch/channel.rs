//! One end of the private stream socket between an owner and one worker.
//!
//! Every system call on the socket is non-blocking; whoever has to wait, waits in `poll`. That
//! makes the same end serve an event loop ([`Channel::try_recv`], [`Channel::flush`]) and a plain
//! loop ([`Channel::recv`], [`Channel::send_blocking`]). Dropping an end closes the descriptor and
//! says nothing, so a forked child of the owner can drop what it inherited without harm.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;
use std::time::{Duration, Instant};

use rustix::event::PollFlags;

use super::control::Control;
use super::frame::{Frame, measure, write_head};
use super::incoming::{Filled, Incoming};
use super::kind::Kind;
use super::mail::{self, Inbox, Outbox};
use super::outgoing::{Kept, Outgoing};
use super::socket::{Socket, Traffic, Wait};
use crate::error::{Error, Result};
use crate::kill_point::KillPoint;
use crate::os::failed;

/// How often a box is looked at, which takes about a microsecond, between two looks at the socket.
const LOOKS: u32 = 50;

/// The half of a channel that sends.
#[derive(Debug)]
pub struct Sender {
    socket: Arc<Socket>,
    outgoing: Outgoing,
    outbox: Option<Outbox>,
    letter: Vec<u8>,
}

/// The half of a channel that receives.
#[derive(Debug)]
pub struct Receiver {
    socket: Arc<Socket>,
    incoming: Incoming,
    inbox: Option<Inbox>,
}

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
            Side::Owner => mail::TO_WORKER,
            Side::Worker => mail::TO_OWNER,
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

impl Receiver {
    /// Finds frames that the peer leaves in the page, too: while this end polls, it may.
    pub fn use_page(&mut self, control: &Control, side: Side) {
        let ours = match side {
            Side::Owner => mail::TO_OWNER,
            Side::Worker => mail::TO_WORKER,
        };
        self.inbox = Some(Inbox::new(control.page(), ours));
    }

    /// The next whole frame, or None. One that has arrived before costs no system call, and one
    /// system call brings as many small frames as have arrived.
    ///
    /// # Errors
    /// [`Error::ChannelEnd`] if the peer closed its end and all its frames are taken; a `Frame...`
    /// variant, again at each further call, if it sent something else.
    pub fn try_recv(&mut self) -> Result<Option<Frame<'_>>> {
        while !self.is_ready()? && self.fill()? {}
        self.buffered()
    }

    /// Waits for a frame; signals do not end the wait. `spin` as in [`wait`](Self::wait).
    ///
    /// # Errors
    /// As [`try_recv`](Self::try_recv).
    #[expect(
        clippy::missing_panics_doc,
        reason = "a wait that ends with Ready leaves a frame"
    )]
    pub fn recv(&mut self, spin: Duration) -> Result<Frame<'_>> {
        while self.wait(spin)? == Wait::Interrupted {}
        let frame = self.take()?;
        Ok(frame.expect("a wait that ends with Ready leaves a frame"))
    }

    /// The next whole frame of those that a system call brought before; makes none itself.
    ///
    /// # Errors
    /// A `Frame...` variant if the peer sent something else.
    pub fn buffered(&mut self) -> Result<Option<Frame<'_>>> {
        if !self.is_ready()? {
            return Ok(None);
        }
        KillPoint::FrameReceived.pass();
        self.take()
    }

    /// Whether the next frame is here, a letter or one that a system call brought before.
    ///
    /// # Errors
    /// A `Frame...` variant if the peer sent something else.
    pub fn is_ready(&mut self) -> Result<bool> {
        // Looked at before each frame of the socket: it may stand before that one.
        let handed_bytes = self.incoming.handed_bytes();
        let letter = self
            .inbox
            .as_mut()
            .is_some_and(|inbox| inbox.fetch(handed_bytes));
        Ok(letter || self.incoming.ready()?)
    }

    /// The frame that [`is_ready`](Self::is_ready) has just announced.
    fn take(&mut self) -> Result<Option<Frame<'_>>> {
        if let Some(inbox) = self.inbox.as_mut().filter(|inbox| inbox.holds()) {
            self.socket.traffic.fetched(inbox.length());
            return inbox.open().map(Some);
        }
        let frame = self.incoming.take();
        if frame
            .as_ref()
            .is_some_and(|frame| frame.kind().carries_descriptor())
        {
            self.socket.expect_descriptor();
        }
        Ok(frame)
    }

    /// The descriptor of a frame that carries one; to be called once for each, in their order.
    ///
    /// # Errors
    /// [`Error::FrameDescriptor`] if it did not arrive, as this process may open no more.
    pub fn take_descriptor(&self, kind: Kind) -> Result<OwnedFd> {
        self.socket
            .take_descriptor()
            .ok_or(Error::FrameDescriptor { kind })
    }

    /// Waits for a whole frame without taking it: [`try_recv`](Self::try_recv) does. Looks again
    /// and again for up to `spin` before it blocks, as waking up costs more than a short task; not
    /// on the processor of a peer that polled last, which has to run.
    ///
    /// # Errors
    /// As [`try_recv`](Self::try_recv).
    pub fn wait(&mut self, spin: Duration) -> Result<Wait> {
        let alone = !self.inbox.as_ref().is_some_and(Inbox::shares_processor);
        if !spin.is_zero() && alone && self.poll(spin)? {
            return Ok(Wait::Ready);
        }
        self.stop_polling();
        loop {
            if self.is_ready()? {
                return Ok(Wait::Ready);
            }
            if !self.fill()?
                && !self.is_ready()?
                && self.socket.wait(PollFlags::IN)? == Wait::Interrupted
            {
                return Ok(Wait::Interrupted);
            }
        }
    }

    /// Looks for a frame again and again, for up to `limit`; whether there is one. The peer may
    /// leave letters until [`stop_polling`](Self::stop_polling).
    ///
    /// # Errors
    /// As [`try_recv`](Self::try_recv).
    pub fn poll(&mut self, limit: Duration) -> Result<bool> {
        if self.is_ready()? {
            return Ok(true);
        }
        if let Some(inbox) = &mut self.inbox {
            inbox.poll();
        }
        let until = Instant::now() + limit;
        loop {
            if self.is_ready()? {
                return Ok(true);
            }
            if self.fill()? || self.is_ready()? {
                continue;
            }
            if Instant::now() >= until {
                return Ok(false);
            }
            if let Some(inbox) = &self.inbox {
                for _ in 0..LOOKS {
                    if inbox.is_full() {
                        break;
                    }
                    std::hint::spin_loop();
                }
            }
            // Where this process shares its core with the peer, the peer has to run.
            std::thread::yield_now();
        }
    }

    /// Looks for a letter again and again, for up to `limit`, and takes nothing from the socket;
    /// whether there is one. Ends early, for [`try_recv`](Self::try_recv), where something else
    /// comes first.
    ///
    /// # Errors
    /// [`Error::Os`] if the kernel does not say whether the socket has something.
    pub fn poll_page(&mut self, limit: Duration) -> Result<bool> {
        let Some(inbox) = &mut self.inbox else {
            return Ok(false);
        };
        let handed_bytes = self.incoming.handed_bytes();
        inbox.poll();
        let until = Instant::now() + limit;
        while !inbox.fetch(handed_bytes) {
            for _ in 0..LOOKS {
                if inbox.is_full() {
                    break;
                }
                std::hint::spin_loop();
            }
            if inbox.fetch(handed_bytes)
                || inbox.is_full()
                || Instant::now() >= until
                || self.socket.is_readable()?
            {
                break;
            }
            std::thread::yield_now();
        }
        inbox.stop_polling();
        Ok(inbox.fetch(handed_bytes))
    }

    /// Lets the peer leave letters from now on, until [`stop_polling`](Self::stop_polling).
    pub fn start_polling(&mut self) {
        if let Some(inbox) = &mut self.inbox {
            inbox.poll();
        }
    }

    /// Tells the peer that letters are looked for no more. What it has left stays to be taken: to be
    /// followed by a last look.
    pub fn stop_polling(&mut self) {
        if let Some(inbox) = &mut self.inbox {
            inbox.stop_polling();
        }
    }

    /// Whether something has arrived that is not taken yet, a part of a frame or its peer's end too.
    ///
    /// # Errors
    /// [`Error::Os`] if the kernel does not say.
    pub fn has_more(&self) -> Result<bool> {
        let letter = self.inbox.as_ref().is_some_and(Inbox::is_full);
        Ok(letter || self.incoming.has_begun() || self.socket.is_readable()?)
    }

    /// Reads once. True if there may be more to read at once.
    fn fill(&mut self) -> Result<bool> {
        // All whole frames have been handed out.
        self.socket.check_descriptors(self.incoming.has_begun())?;
        let filled = match self.incoming.fill(&mut &*self.socket)? {
            // What the peer left before it closed its end comes first.
            Ok(Filled::End) if self.is_ready()? => return Ok(false),
            Ok(Filled::End) => return Err(self.end()),
            Ok(filled) => filled,
            Err(error) => match error.kind() {
                io::ErrorKind::WouldBlock => return Ok(false),
                // The peer closed its end without having read all of ours.
                io::ErrorKind::ConnectionReset => return Err(self.end()),
                _ => return Err(failed("receiving from the channel's peer", error)),
            },
        };
        if !self.incoming.ready()? {
            self.socket.check_descriptors(self.incoming.has_begun())?;
        }
        Ok(filled == Filled::Full)
    }

    fn end(&self) -> Error {
        Error::ChannelEnd {
            pending_bytes: self.incoming.pending_bytes(),
        }
    }
}
