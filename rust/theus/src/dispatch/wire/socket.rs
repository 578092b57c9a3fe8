//! The stream socket under a channel: never blocking, never raising SIGPIPE, counting.

use std::collections::VecDeque;
use std::io::{self, IoSlice, IoSliceMut, Write};
use std::mem::MaybeUninit;
use std::os::fd::{BorrowedFd, OwnedFd};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::{Errno, FdFlags, fcntl_getfd, fcntl_setfd};
use rustix::net::{
    AddressFamily, RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, ReturnFlags,
    SendAncillaryBuffer, SendAncillaryMessage, SendFlags, SocketFlags, SocketType, recvmsg, send,
    sendmsg, socketpair, sockopt,
};

use super::receive_buffer::Source;
use super::send_queue::Sink;
use crate::error::{Error, Result};
use crate::os::failed;

/// A small frame costs the kernel about a KiB, so the default of 208 KiB holds only some 200.
const SEND_BUFFER_BYTES: usize = 1024 * 1024;

const SEND: SendFlags = SendFlags::NOSIGNAL.union(SendFlags::DONTWAIT);

/// Why a wait ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Wait {
    /// What was waited for is here.
    Ready,
    /// A signal handler ran; the caller decides whether to wait on.
    Interrupted,
}

/// What went through one end of a channel. It can be asked while another thread uses the channel,
/// and when the channel is gone.
#[derive(Debug, Default)]
pub struct Traffic {
    /// By the socket, in bytes.
    sent: AtomicU64,
    received: AtomicU64,
    /// By letters.
    left_in_page: AtomicU64,
    fetched_from_page: AtomicU64,
}

impl Traffic {
    /// What was sent so far.
    #[must_use]
    pub fn sent_bytes(&self) -> u64 {
        self.socket_bytes() + self.left_in_page.load(Ordering::Relaxed)
    }

    /// What was received so far.
    #[must_use]
    pub fn received_bytes(&self) -> u64 {
        self.received.load(Ordering::Relaxed) + self.fetched_from_page.load(Ordering::Relaxed)
    }

    /// What was written to the socket so far.
    pub(super) fn socket_bytes(&self) -> u64 {
        self.sent.load(Ordering::Relaxed)
    }

    pub(super) fn left(&self, count: usize) {
        self.left_in_page.fetch_add(count as u64, Ordering::Relaxed);
    }

    pub(super) fn fetched(&self, count: usize) {
        self.fetched_from_page
            .fetch_add(count as u64, Ordering::Relaxed);
    }
}

/// The socket, shared by the two halves of a channel.
#[derive(Debug)]
pub(super) struct Socket {
    pub(super) fd: OwnedFd,
    pub(super) traffic: Arc<Traffic>,
    descriptors: Mutex<Descriptors>,
}

/// The descriptors of frames, on their way to those who take them.
#[derive(Debug, Default)]
struct Descriptors {
    /// In the order they came. `None`: this process had no room for it, and its frame goes without.
    arrived: VecDeque<Option<OwnedFd>>,
    /// How many frames that carry one have been handed out, and theirs not been asked for.
    due: usize,
}

impl Socket {
    pub(super) fn pair() -> Result<(Self, OwnedFd)> {
        let failed = |errno| failed("making a channel", errno);
        let (ours, theirs) = socketpair(
            AddressFamily::UNIX,
            SocketType::STREAM,
            SocketFlags::CLOEXEC,
            None,
        )
        .map_err(failed)?;
        // For whoever else is given the descriptor, an event loop for instance.
        rustix::io::ioctl_fionbio(&ours, true).map_err(failed)?;
        Ok((Self::new(ours), theirs))
    }

    pub(super) fn from_fd(fd: OwnedFd) -> Result<Self> {
        let stream = sockopt::socket_type(&fd) == Ok(SocketType::STREAM)
            && sockopt::socket_domain(&fd) == Ok(AddressFamily::UNIX);
        if !stream {
            return Err(Error::ChannelSocket);
        }
        fcntl_getfd(&fd)
            .and_then(|flags| fcntl_setfd(&fd, flags | FdFlags::CLOEXEC))
            .map_err(|errno| failed("making a channel close-on-exec", errno))?;
        Ok(Self::new(fd))
    }

    fn new(fd: OwnedFd) -> Self {
        // Past net.core.wmem_max only with CAP_NET_ADMIN; without, the kernel clamps. A smaller
        // buffer costs system calls, nothing else, so no error is worth reporting.
        let _ = sockopt::set_socket_send_buffer_size_force(&fd, SEND_BUFFER_BYTES)
            .or_else(|_| sockopt::set_socket_send_buffer_size(&fd, SEND_BUFFER_BYTES));
        Self {
            fd,
            traffic: Arc::default(),
            descriptors: Mutex::default(),
        }
    }

    /// Notes that a frame that carries a descriptor is handed out.
    pub(super) fn expect_descriptor(&self) {
        self.descriptors().due += 1;
    }

    /// The descriptor of the first frame whose has not been taken.
    pub(super) fn take_descriptor(&self) -> Option<OwnedFd> {
        let mut descriptors = self.descriptors();
        descriptors.due = descriptors.due.saturating_sub(1);
        descriptors.arrived.pop_front().flatten()
    }

    /// Refuses descriptors that came with no frame that carries one: they would be taken for those
    /// of later frames. `begun` says whether the start of a frame is here, which may be one.
    pub(super) fn check_descriptors(&self, begun: bool) -> Result<()> {
        let descriptors = self.descriptors();
        let expected = descriptors.due + usize::from(begun);
        if descriptors.arrived.len() > expected {
            return Err(Error::StrayDescriptor);
        }
        Ok(())
    }

    fn descriptors(&self) -> MutexGuard<'_, Descriptors> {
        self.descriptors
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }

    /// Reads, and keeps the descriptors that come with the bytes.
    fn receive(&self, slices: &mut [IoSliceMut<'_>]) -> io::Result<usize> {
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
        let mut control = RecvAncillaryBuffer::new(&mut space);
        let flags = RecvFlags::DONTWAIT | RecvFlags::CMSG_CLOEXEC;
        let message = recvmsg(&self.fd, slices, &mut control, flags)?;
        let mut descriptors = self.descriptors();
        for ancillary in control.drain() {
            if let RecvAncillaryMessage::ScmRights(arrived) = ancillary {
                descriptors.arrived.extend(arrived.map(Some));
            }
        }
        if message.flags.contains(ReturnFlags::CTRUNC) {
            descriptors.arrived.push_back(None);
        }
        drop(descriptors);
        Ok(self.got(message.bytes))
    }

    pub(super) fn wait(&self, events: PollFlags) -> Result<Wait> {
        match poll(&mut [PollFd::new(&self.fd, events)], None) {
            Ok(_) => Ok(Wait::Ready),
            Err(Errno::INTR) => Ok(Wait::Interrupted),
            Err(errno) => Err(failed("waiting for the channel's peer", errno)),
        }
    }

    /// Whether a read would bring something, the peer's end too.
    pub(super) fn is_readable(&self) -> Result<bool> {
        let now = Timespec::default();
        match poll(&mut [PollFd::new(&self.fd, PollFlags::IN)], Some(&now)) {
            Ok(count) => Ok(count > 0),
            Err(Errno::INTR) => Ok(false),
            Err(errno) => Err(failed("looking at the channel", errno)),
        }
    }

    fn wrote(&self, count: usize) -> usize {
        let sent = &self.traffic.sent;
        sent.fetch_add(count as u64, Ordering::Relaxed);
        count
    }

    fn got(&self, count: usize) -> usize {
        let received = &self.traffic.received;
        received.fetch_add(count as u64, Ordering::Relaxed);
        count
    }
}

impl Write for &Socket {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let count = send(&self.fd, bytes, SEND)?;
        Ok(self.wrote(count))
    }

    fn write_vectored(&mut self, slices: &[IoSlice<'_>]) -> io::Result<usize> {
        let mut control = SendAncillaryBuffer::default();
        let count = sendmsg(&self.fd, slices, &mut control, SEND)?;
        Ok(self.wrote(count))
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl Sink for &Socket {
    fn write_with(&mut self, bytes: &[u8], descriptor: BorrowedFd<'_>) -> io::Result<usize> {
        let descriptors = [descriptor];
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
        let mut control = SendAncillaryBuffer::new(&mut space);
        let pushed = control.push(SendAncillaryMessage::ScmRights(&descriptors));
        debug_assert!(pushed, "the space is for one descriptor");
        let count = sendmsg(&self.fd, &[IoSlice::new(bytes)], &mut control, SEND)?;
        Ok(self.wrote(count))
    }
}

impl Source for &Socket {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        self.receive(&mut [IoSliceMut::new(buffer)])
    }

    fn append(&mut self, part: &mut Vec<u8>, room: usize) -> io::Result<usize> {
        let start = part.len();
        part.resize(start + room, 0);
        let read = self.receive(&mut [IoSliceMut::new(&mut part[start..])]);
        part.truncate(start + *read.as_ref().unwrap_or(&0));
        read
    }
}
