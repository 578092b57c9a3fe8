//! The half of a channel that receives.

use std::io;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::time::{Duration, Instant};

use rustix::event::PollFlags;

use super::channel::Side;
use super::control::Control;
use super::frame::Frame;
use super::kind::Kind;
use super::page_slot::{self, Inbox};
use super::receive_buffer::{Filled, Incoming};
use super::socket::{Socket, Wait};
use crate::error::{Error, Result};
use crate::kill_point::KillPoint;
use crate::os::failed;

/// How often a box is looked at, which takes about a microsecond, between two looks at the socket.
const LOOKS: u32 = 50;

/// The half of a channel that receives.
#[derive(Debug)]
pub struct Receiver {
    pub(super) socket: Arc<Socket>,
    pub(super) incoming: Incoming,
    pub(super) inbox: Option<Inbox>,
}

impl Receiver {
    /// Finds frames that the peer leaves in the page, too: while this end polls, it may.
    pub fn use_page(&mut self, control: &Control, side: Side) {
        let ours = match side {
            Side::Owner => page_slot::TO_OWNER,
            Side::Worker => page_slot::TO_WORKER,
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
