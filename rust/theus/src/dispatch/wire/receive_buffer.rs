//! What has arrived and is not a whole frame yet.
//!
//! Small frames are read many at a time into one buffer and handed out where they lie. The
//! attachments of a larger one go into allocations of their own, the big ones straight from the
//! socket. Those grow with what arrives: a length that a broken peer made up allocates nothing.

use std::borrow::Cow;
use std::io;

use super::frame::{Body, Frame, PREFIX_BYTES, Prefix, WORD_BYTES, words};
use crate::error::{Error, Result};

/// A frame up to this size is read and handed out in one piece.
const PACKED_BYTES: usize = 64 * 1024;
/// An attachment that misses at least this much is read without passing through the buffer.
const DIRECT_BYTES: u64 = 32 * 1024;
/// What an attachment's allocation starts with when it is read directly; it doubles from there.
const DIRECT_START_BYTES: u64 = 256 * 1024;

/// Where bytes come from. Both answer 0 at the end of the stream.
pub(super) trait Source {
    /// Reads into `buffer`, from its start.
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize>;
    /// Reads up to `room` bytes into `part`, and makes it that much longer.
    fn append(&mut self, part: &mut Vec<u8>, room: usize) -> io::Result<usize>;
}

/// What one read brought.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Filled {
    /// The stream is at its end.
    End,
    /// Fewer bytes than there was room for: the source is empty for now.
    Drained,
    /// As many bytes as there was room for: there may be more.
    Full,
}

/// The incoming half of a channel, without the socket.
#[derive(Debug)]
pub(super) struct Incoming {
    buffer: Vec<u8>,
    /// `buffer[start..end]` has arrived and is not consumed.
    start: usize,
    end: usize,
    stage: Stage,
    handed_bytes: u64,
}

#[derive(Debug)]
enum Stage {
    /// The next frame begins at `start`, and is not known to be whole.
    Between,
    /// A whole frame lies in the buffer.
    Packed(Prefix),
    /// A frame too large for the buffer: its head is consumed, its attachments arrive.
    Large(Large),
}

#[derive(Debug)]
struct Large {
    prefix: Prefix,
    fields: Vec<u8>,
    lengths: Vec<u64>,
    /// In order; all but the last are complete.
    parts: Vec<Vec<u8>>,
}

impl Incoming {
    pub(super) fn new() -> Self {
        Self {
            buffer: vec![0; PACKED_BYTES],
            start: 0,
            end: 0,
            stage: Stage::Between,
            handed_bytes: 0,
        }
    }

    /// How many bytes the frames have that were handed out.
    pub(super) const fn handed_bytes(&self) -> u64 {
        self.handed_bytes
    }

    /// Whether a whole frame is here, so that [`take`](Self::take) returns it.
    pub(super) fn ready(&mut self) -> Result<bool> {
        if matches!(self.stage, Stage::Between) {
            self.stage = self.begin()?;
        }
        match &mut self.stage {
            Stage::Between => Ok(false),
            Stage::Packed(_) => Ok(true),
            Stage::Large(large) => {
                self.start += large.advance(&self.buffer[self.start..self.end])?;
                Ok(large.complete())
            }
        }
    }

    fn begin(&mut self) -> Result<Stage> {
        let arrived = &self.buffer[self.start..self.end];
        let Some(prefix) = Prefix::parse(arrived)? else {
            return Ok(Stage::Between);
        };
        let Some(head) = arrived.get(..prefix.head_bytes()) else {
            return Ok(Stage::Between);
        };
        let (fields, lengths) = prefix.split_head(head)?;
        if prefix.total_bytes <= PACKED_BYTES as u64 {
            let whole = prefix.total_bytes <= arrived.len() as u64;
            return Ok(if whole {
                Stage::Packed(prefix)
            } else {
                Stage::Between
            });
        }
        let large = Large {
            prefix,
            fields: fields.to_vec(),
            lengths: words(lengths).collect(),
            parts: Vec::with_capacity(prefix.attachments),
        };
        self.start += prefix.head_bytes();
        Ok(Stage::Large(large))
    }

    /// The frame that [`ready`](Self::ready) announced. It is consumed, even if it is dropped.
    pub(super) fn take(&mut self) -> Option<Frame<'_>> {
        match std::mem::replace(&mut self.stage, Stage::Between) {
            Stage::Packed(prefix) => {
                let rest = &self.buffer[self.start..self.end];
                let (head, rest) = rest.split_at_checked(prefix.head_bytes())?;
                let (fields, lengths) = head[PREFIX_BYTES..].split_at(WORD_BYTES * prefix.fields);
                let body_bytes = usize::try_from(prefix.total_bytes).ok()? - head.len();
                let bytes = rest.get(..body_bytes)?;
                self.start += head.len() + body_bytes;
                self.handed_bytes += prefix.total_bytes;
                Some(Frame {
                    kind: prefix.kind,
                    fields: Cow::Borrowed(fields),
                    body: Body::Packed { lengths, bytes },
                })
            }
            Stage::Large(large) if large.complete() => {
                self.handed_bytes += large.prefix.total_bytes;
                Some(Frame {
                    kind: large.prefix.kind,
                    fields: Cow::Owned(large.fields),
                    body: Body::Parts(large.parts),
                })
            }
            stage => {
                self.stage = stage;
                None
            }
        }
    }

    /// Reads once. To be called when nothing is ready, and not again after an error.
    ///
    /// The outer error is the protocol's or memory's, the inner one the source's.
    pub(super) fn fill(&mut self, source: &mut impl Source) -> Result<io::Result<Filled>> {
        if self.start == self.end {
            (self.start, self.end) = (0, 0);
            if let Stage::Large(large) = &mut self.stage
                && let Some((part, missing)) = large.current()
                && missing >= DIRECT_BYTES
            {
                grow(part, 1, missing)?;
                // Not more than it misses: a descriptor may ride with what comes after it.
                let room = usize::try_from(missing.min(DIRECT_START_BYTES)).unwrap_or(usize::MAX);
                let room = room.min(part.capacity() - part.len());
                let read = source.append(part, room);
                return Ok(read.map(|count| Filled::from_count(count, room)));
            }
        }
        self.make_room();
        let room = &mut self.buffer[self.end..];
        let (read, room) = (source.read(room), room.len());
        if let Ok(count) = read {
            self.end += count;
        }
        Ok(read.map(|count| Filled::from_count(count, room)))
    }

    fn make_room(&mut self) {
        // What is left is less than one frame, so moving it is cheap beside reading with little
        // room, which would double the system calls.
        if self.start > 0 && self.end > self.buffer.len() / 2 {
            self.buffer.copy_within(self.start..self.end, 0);
            (self.start, self.end) = (0, self.end - self.start);
        }
        // Only a head can be larger than the buffer, and a head is at most 1 MiB.
        if self.end == self.buffer.len() {
            self.buffer.resize(self.buffer.len() * 2, 0);
        }
    }

    /// Whether bytes of a frame that is not handed out are here.
    pub(super) fn has_begun(&self) -> bool {
        self.start < self.end || !matches!(self.stage, Stage::Between)
    }

    /// How many bytes of an incomplete frame are here.
    pub(super) fn pending_bytes(&self) -> u64 {
        let buffered = (self.end - self.start) as u64;
        match &self.stage {
            Stage::Between | Stage::Packed(_) => buffered,
            Stage::Large(large) => {
                let parts: usize = large.parts.iter().map(Vec::len).sum();
                buffered + (large.prefix.head_bytes() + parts) as u64
            }
        }
    }
}

impl Filled {
    const fn from_count(count: usize, room: usize) -> Self {
        if count == 0 {
            Self::End
        } else if count < room {
            Self::Drained
        } else {
            Self::Full
        }
    }
}

impl Large {
    /// The attachment that arrives and how much it misses, or None if all are complete.
    fn current(&mut self) -> Option<(&mut Vec<u8>, u64)> {
        let complete = match (self.parts.last(), self.parts.len()) {
            (Some(part), count) => part.len() as u64 == self.lengths[count - 1],
            (None, _) => true,
        };
        if complete {
            if self.parts.len() == self.lengths.len() {
                return None;
            }
            self.parts.push(Vec::new());
        }
        let length = self.lengths[self.parts.len() - 1];
        let part = self.parts.last_mut()?;
        let missing = length - part.len() as u64;
        Some((part, missing))
    }

    /// Whether every attachment is complete.
    fn complete(&self) -> bool {
        self.parts.len() == self.lengths.len()
            && self.parts.last().map(|part| part.len() as u64) == self.lengths.last().copied()
    }

    /// Takes what belongs to the attachments from the start of `arrived`, and says how much.
    fn advance(&mut self, arrived: &[u8]) -> Result<usize> {
        let mut taken = 0;
        while let Some((part, missing)) = self.current() {
            let rest = &arrived[taken..];
            let count =
                usize::try_from(missing).map_or(rest.len(), |missing| missing.min(rest.len()));
            if count == 0 && missing > 0 {
                break;
            }
            grow(part, count, missing)?;
            part.extend_from_slice(&rest[..count]);
            taken += count;
        }
        Ok(taken)
    }
}

/// Makes room for `count` bytes at least, and up to `missing` where `part` has earned it: an
/// allocation is at most doubled, and starts small, until the bytes are really there.
fn grow(part: &mut Vec<u8>, count: usize, missing: u64) -> Result<()> {
    if part.capacity() - part.len() >= count.max(1) {
        return Ok(());
    }
    let earned = DIRECT_START_BYTES.max(part.len() as u64).max(count as u64);
    let bytes = usize::try_from(missing.min(earned)).unwrap_or(usize::MAX);
    part.try_reserve_exact(bytes)
        .map_err(|source| Error::FrameMemory { bytes, source })
}

#[cfg(test)]
mod tests;
