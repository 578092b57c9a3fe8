//! What is to be sent and was not taken by the socket yet.
//!
//! A small frame goes out in one piece with one `send`; a large one is gathered by `sendmsg` from
//! where its attachments lie. What the socket does not take is queued: small pieces are copied
//! together, large ones are kept as whatever the caller can hold on to.

use std::collections::VecDeque;
use std::fmt;
use std::io::{self, IoSlice, Write};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use super::frame::{measure, write_head};
use super::kind::Kind;
use crate::error::Result;

/// A frame up to this size is copied together before it is sent.
const PACKED_BYTES: usize = 32 * 1024;
/// A piece of at least this size is kept in the queue, not copied into it.
const KEEP_BYTES: usize = 16 * 1024;
/// Copies of small pieces are joined up to this size.
const JOINED_BYTES: usize = 256 * 1024;
/// How many pieces one system call is given.
const SLICES: usize = 64;

/// Bytes that stay valid while they wait to be sent.
pub type Kept = Box<dyn AsRef<[u8]> + Send + Sync>;

/// Where frames go: a stream that can also carry descriptors.
pub(super) trait Sink: Write {
    /// Writes some of `bytes`; if that is one at least, `descriptor` went with the first.
    fn write_with(&mut self, bytes: &[u8], descriptor: BorrowedFd<'_>) -> io::Result<usize>;
}

enum Chunk {
    Copied(Vec<u8>),
    Kept(Kept),
    /// A frame whose first byte a descriptor rides with; it is closed here when it is sent.
    Carrying(Vec<u8>, OwnedFd),
}

impl Chunk {
    fn bytes(&self) -> &[u8] {
        match self {
            Self::Copied(bytes) | Self::Carrying(bytes, _) => bytes,
            Self::Kept(bytes) => (**bytes).as_ref(),
        }
    }
}

/// The outgoing half of a channel, without the socket.
#[derive(Default)]
pub(super) struct Outgoing {
    queue: VecDeque<Chunk>,
    /// How much of the first chunk is sent.
    sent_of_first: usize,
    queued_bytes: usize,
    scratch: Vec<u8>,
}

impl Outgoing {
    /// Sends what the writer takes of a frame, after what was queued before, and queues the rest.
    ///
    /// `keep(index, skip)` is called for attachments that have to wait, and returns the bytes of
    /// that attachment from `skip` on. The outer error is the frame's, and nothing was sent then;
    /// the inner one is the writer's.
    pub(super) fn send(
        &mut self,
        writer: &mut impl Sink,
        kind: Kind,
        fields: &[u64],
        attachments: &[&[u8]],
        keep: &mut dyn FnMut(usize, usize) -> Kept,
    ) -> Result<io::Result<()>> {
        let total_bytes = measure(kind, fields, attachments)?;
        let mut head = std::mem::take(&mut self.scratch);
        head.clear();
        write_head(&mut head, kind, fields, attachments, total_bytes);
        let outcome = if total_bytes <= PACKED_BYTES {
            for attachment in attachments {
                head.extend_from_slice(attachment);
            }
            self.send_packed(writer, &head)
        } else {
            self.send_gathered(writer, &head, attachments, keep)
        };
        self.scratch = head;
        Ok(outcome)
    }

    /// Queues a copy of a frame and sends nothing.
    ///
    /// # Errors
    /// As of [`send`](Self::send).
    pub(super) fn queue(
        &mut self,
        kind: Kind,
        fields: &[u64],
        attachments: &[&[u8]],
    ) -> Result<()> {
        let total_bytes = measure(kind, fields, attachments)?;
        self.queued_bytes += total_bytes;
        let mut frame = match self.queue.pop_back() {
            Some(Chunk::Copied(last)) if last.len() + total_bytes <= JOINED_BYTES => last,
            last => {
                self.queue.extend(last);
                Vec::new()
            }
        };
        write_head(&mut frame, kind, fields, attachments, total_bytes);
        for attachment in attachments {
            frame.extend_from_slice(attachment);
        }
        self.queue.push_back(Chunk::Copied(frame));
        Ok(())
    }

    /// Sends a frame that consists of a head, with a descriptor.
    ///
    /// # Errors
    /// As of [`send`](Self::send).
    pub(super) fn send_carrying(
        &mut self,
        writer: &mut impl Sink,
        kind: Kind,
        fields: &[u64],
        descriptor: OwnedFd,
    ) -> Result<io::Result<()>> {
        let total_bytes = measure(kind, fields, &[])?;
        let mut head = Vec::with_capacity(total_bytes);
        write_head(&mut head, kind, fields, &[], total_bytes);
        self.queued_bytes += head.len();
        self.queue.push_back(Chunk::Carrying(head, descriptor));
        Ok(self.flush(writer))
    }

    fn send_packed(&mut self, writer: &mut impl Sink, frame: &[u8]) -> io::Result<()> {
        if !self.queue.is_empty() {
            self.push_copy(frame);
            return self.flush(writer);
        }
        let sent = taken(writer.write(frame))?;
        self.push_copy(&frame[sent..]);
        Ok(())
    }

    fn send_gathered(
        &mut self,
        writer: &mut impl Sink,
        head: &[u8],
        attachments: &[&[u8]],
        keep: &mut dyn FnMut(usize, usize) -> Kept,
    ) -> io::Result<()> {
        let mut sent = 0;
        if self.queue.is_empty() {
            let slices: Vec<IoSlice<'_>> = std::iter::once(&head)
                .chain(attachments.iter().filter(|bytes| !bytes.is_empty()))
                .take(SLICES)
                .map(|bytes| IoSlice::new(bytes))
                .collect();
            sent = taken(writer.write_vectored(&slices))?;
        }
        self.push_copy(&head[sent.min(head.len())..]);
        sent = sent.saturating_sub(head.len());
        for (index, attachment) in attachments.iter().enumerate() {
            let skip = sent.min(attachment.len());
            sent -= skip;
            let rest = &attachment[skip..];
            if rest.len() < KEEP_BYTES {
                self.push_copy(rest);
            } else {
                let kept = Chunk::Kept(keep(index, skip));
                debug_assert_eq!(kept.bytes().len(), rest.len(), "kept is what has to wait");
                self.queued_bytes += kept.bytes().len();
                self.queue.push_back(kept);
            }
        }
        self.flush(writer)
    }

    fn push_copy(&mut self, bytes: &[u8]) {
        if bytes.is_empty() {
            return;
        }
        self.queued_bytes += bytes.len();
        match self.queue.back_mut() {
            Some(Chunk::Copied(last)) if last.len() + bytes.len() <= JOINED_BYTES => {
                last.extend_from_slice(bytes);
            }
            _ => self.queue.push_back(Chunk::Copied(bytes.to_vec())),
        }
    }

    /// Sends what the writer takes of what is queued.
    pub(super) fn flush(&mut self, writer: &mut impl Sink) -> io::Result<()> {
        while let Some(first) = self.queue.front() {
            if let (Chunk::Carrying(head, descriptor), 0) = (first, self.sent_of_first) {
                match taken(writer.write_with(head, descriptor.as_fd()))? {
                    0 => break,
                    sent => self.drop_sent(sent),
                }
                continue;
            }
            let mut slices = [IoSlice::new(&[]); SLICES];
            let mut skip = self.sent_of_first;
            let mut count = 0;
            for (slice, chunk) in slices.iter_mut().zip(&self.queue) {
                // The first one, if it carries, has sent its descriptor.
                if count > 0 && matches!(chunk, Chunk::Carrying(..)) {
                    break;
                }
                *slice = IoSlice::new(&chunk.bytes()[skip..]);
                skip = 0;
                count += 1;
            }
            match taken(writer.write_vectored(&slices[..count]))? {
                0 => break,
                sent => self.drop_sent(sent),
            }
        }
        Ok(())
    }

    fn drop_sent(&mut self, sent: usize) {
        self.queued_bytes -= sent;
        self.sent_of_first += sent;
        while let Some(first) = self.queue.front() {
            let length = first.bytes().len();
            if self.sent_of_first < length {
                break;
            }
            self.sent_of_first -= length;
            self.queue.pop_front();
        }
    }

    /// What waits to be sent.
    pub(super) const fn queued_bytes(&self) -> usize {
        self.queued_bytes
    }
}

impl fmt::Debug for Outgoing {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Outgoing")
            .field("chunks", &self.queue.len())
            .field("queued_bytes", &self.queued_bytes)
            .finish_non_exhaustive()
    }
}

/// A writer that takes nothing for now has taken 0 bytes.
fn taken(written: io::Result<usize>) -> io::Result<usize> {
    match written {
        Err(error) if error.kind() == io::ErrorKind::WouldBlock => Ok(0),
        written => written,
    }
}

#[cfg(test)]
mod tests;
