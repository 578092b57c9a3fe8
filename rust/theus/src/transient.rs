//! The large parts of one message: a nameless segment that travels by descriptor.
//!
//! It never has a name, so there is nothing to remove: the kernel frees it when sender and receiver
//! have let go. The receiver maps it privately, so that what arrives can be changed.

use std::fs::File;
use std::os::fd::OwnedFd;
use std::path::Path;

use crate::backend::{Backend, SpillDirectory, Storage};
use crate::copy;
use crate::error::{Error, Result};
use crate::kill_point::KillPoint;
use crate::mapping::Mapping;
use crate::os;
use crate::zone;

/// Every part begins at a multiple of this, as Arrow's and numpy's fastest loops like it.
const ALIGNMENT: usize = 64;

/// A nameless segment with the parts of a message: part 0 is its pickle, the others its buffers.
#[derive(Debug)]
pub struct Transient {
    file: File,
    length: usize,
    parts: Vec<Part>,
}

/// Where a part lies, in bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Part {
    /// Its first byte.
    pub offset: usize,
    /// How many it has.
    pub length: usize,
}

impl Transient {
    /// Reserves room for parts of these lengths, zeroed: in memory or, if it does not fit, in
    /// `spill`. `what` stands in the error.
    ///
    /// # Errors
    /// [`Error::HeavyZoneFull`] if they do not fit, [`Error::Os`].
    pub fn create(lengths: &[usize], what: &str, spill: Option<&Path>) -> Result<Self> {
        let memory = Backend::Linux.storage();
        let full = |length: usize| memory.full(what, length as u64);
        let mut length = 0_usize;
        let mut parts = Vec::with_capacity(lengths.len());
        for &part in lengths {
            let offset = length;
            let end = offset.checked_add(part);
            let end = end.and_then(|end| end.checked_next_multiple_of(ALIGNMENT));
            length = end.ok_or_else(|| full(usize::MAX))?;
            parts.push(Part {
                offset,
                length: part,
            });
        }
        let in_memory = || reserve(Path::new(os::DIRECTORY), memory, length);
        let mut file = zone::with_room(in_memory)?;
        if let (None, Some(spill)) = (&file, spill) {
            file = reserve(spill, SpillDirectory::at(spill).storage(), length)?;
        }
        KillPoint::TransientReserved.pass();
        Ok(Self {
            file: file.ok_or_else(|| full(length))?,
            length,
            parts,
        })
    }

    /// Copies each of `pieces`, a place in the segment and the bytes for it, in parallel.
    ///
    /// # Errors
    /// [`Error::Os`].
    ///
    /// # Panics
    /// If one does not fit.
    pub fn fill(&self, pieces: &[(usize, &[u8])]) -> Result<()> {
        let end = |(offset, bytes): &(usize, &[u8])| offset + bytes.len();
        assert!(pieces.iter().all(|piece| end(piece) <= self.length));
        copy::in_parallel(pieces, &|offset, bytes| {
            os::write_at(&self.file, bytes, offset as u64)
        })?;
        KillPoint::TransientFilled.pass();
        Ok(())
    }

    /// A descriptor to be sent, and the fields that describe it in a PARTS frame.
    ///
    /// # Errors
    /// [`Error::Os`] if there are no descriptors left.
    pub fn to_send(&self) -> Result<(OwnedFd, Vec<u64>)> {
        let file = self.file.try_clone();
        let file = file.map_err(|error| os::failed("duplicating a descriptor", error))?;
        let parts = self.parts.iter();
        let parts = parts.flat_map(|part| [part.offset as u64, part.length as u64]);
        let fields = std::iter::once(self.length as u64).chain(parts).collect();
        Ok((file.into(), fields))
    }

    /// What a PARTS frame brought, after checking that every part lies in the segment.
    ///
    /// # Errors
    /// [`Error::CorruptSegment`] naming the rule that does not hold.
    pub fn received(file: OwnedFd, fields: &[u64]) -> Result<Self> {
        let corrupt = |reason: &str| Error::CorruptSegment {
            segment: "a message's parts".to_owned(),
            reason: reason.to_owned(),
        };
        let status = os::status(&file)?;
        let [length, places @ ..] = fields else {
            return Err(corrupt("they have no length"));
        };
        if !status.regular || status.length != *length || *length == 0 {
            return Err(corrupt("the segment's length is not the frame's"));
        }
        let parts = places.as_chunks::<2>();
        let parts = match parts {
            (parts, []) if !parts.is_empty() => parts.iter(),
            _ => return Err(corrupt("a part has no length")),
        };
        let part = |&[offset, bytes]: &[u64; 2]| {
            let end = offset.checked_add(bytes)?;
            let part = Part {
                offset: usize::try_from(offset).ok()?,
                length: usize::try_from(bytes).ok()?,
            };
            (end <= *length).then_some(part)
        };
        let parts: Option<Vec<Part>> = parts.map(part).collect();
        Ok(Self {
            file: file.into(),
            length: usize::try_from(*length).map_err(|_| corrupt("it is too long"))?,
            parts: parts.ok_or_else(|| corrupt("a part ends outside the segment"))?,
        })
    }

    /// A private copy-on-write view of the bytes, a new one at each call.
    ///
    /// # Errors
    /// [`Error::Os`].
    pub fn private(&self) -> Result<Mapping> {
        Mapping::private(&self.file, self.length)
    }

    /// Where the parts lie.
    #[must_use]
    pub fn parts(&self) -> &[Part] {
        &self.parts
    }

    /// The length of the segment in bytes.
    #[must_use]
    pub fn length(&self) -> usize {
        self.length
    }
}

/// A nameless file of `length` bytes in `directory`; `None` if there is no space.
fn reserve(directory: &Path, storage: &dyn Storage, length: usize) -> Result<Option<File>> {
    let length = length as u64;
    let available = storage.available();
    if available.is_some_and(|available| length > available.bytes) {
        return Ok(None);
    }
    let file = os::create_nameless(directory)?;
    Ok(os::reserve(&file, 0, length)?.then(|| File::from(file)))
}
