//! One message as bytes: encoding, decoding, and what makes bytes a frame.
//!
//! ```text
//! magic "TH" | version u8 | kind u8 | field count u16 | attachment count u16 | total length u64
//! fields, u64 each | attachment lengths, u64 each | the attachments' bytes, unpadded
//! ```
//!
//! All integers are little-endian and nothing is aligned: any language reads a frame with a dozen
//! lines. The first two lines above are the *head*; its size is known from the 16 bytes of the
//! prefix, and the size of everything else from the head.

use std::borrow::Cow;

use super::kind::Kind;
use crate::error::{Error, Result};

/// The version of the protocol that this build speaks.
pub const PROTOCOL_VERSION: u8 = 2;

const MAGIC: [u8; 2] = *b"TH";
pub(super) const PREFIX_BYTES: usize = 16;
pub(super) const WORD_BYTES: usize = 8;

/// A checked prefix: the kind exists and has these counts, and the head fits into the total.
#[derive(Debug, Clone, Copy)]
pub(super) struct Prefix {
    pub(super) kind: Kind,
    pub(super) fields: usize,
    pub(super) attachments: usize,
    pub(super) total_bytes: u64,
}

impl Prefix {
    /// The prefix at the start of `bytes`, or None if there are too few to tell.
    pub(super) fn parse(bytes: &[u8]) -> Result<Option<Self>> {
        let Some(bytes) = bytes.first_chunk::<PREFIX_BYTES>() else {
            return Ok(None);
        };
        let [m0, m1, version, kind, f0, f1, a0, a1, total @ ..] = *bytes;
        if [m0, m1] != MAGIC {
            return Err(Error::FrameMagic { found: [m0, m1] });
        }
        if version != PROTOCOL_VERSION {
            return Err(Error::FrameVersion {
                found: version,
                expected: PROTOCOL_VERSION,
            });
        }
        let prefix = Self {
            kind: Kind::from_number(kind)?,
            fields: usize::from(u16::from_le_bytes([f0, f1])),
            attachments: usize::from(u16::from_le_bytes([a0, a1])),
            total_bytes: u64::from_le_bytes(total),
        };
        prefix.kind.check(prefix.fields, prefix.attachments)?;
        if prefix.total_bytes < prefix.head_bytes() as u64 {
            return Err(prefix.length_error(prefix.head_bytes() as u64));
        }
        Ok(Some(prefix))
    }

    /// At most 1 MiB: the counts are 16 bits wide.
    pub(super) const fn head_bytes(&self) -> usize {
        PREFIX_BYTES + WORD_BYTES * (self.fields + self.attachments)
    }

    /// Splits a head's bytes, after the prefix, into fields and attachment lengths, and checks that
    /// the lengths add up to the total.
    pub(super) fn split_head<'a>(&self, head: &'a [u8]) -> Result<(&'a [u8], &'a [u8])> {
        let (fields, lengths) = head[PREFIX_BYTES..].split_at(WORD_BYTES * self.fields);
        let expected = words(lengths).try_fold(self.head_bytes() as u64, u64::checked_add);
        if expected == Some(self.total_bytes) {
            Ok((fields, lengths))
        } else {
            Err(self.length_error(expected.unwrap_or(u64::MAX)))
        }
    }

    fn length_error(&self, expected: u64) -> Error {
        Error::FrameLength {
            kind: self.kind,
            expected,
            found: self.total_bytes,
        }
    }
}

/// The little-endian words that `bytes` consists of.
pub(super) fn words(bytes: &[u8]) -> impl ExactSizeIterator<Item = u64> + '_ {
    bytes
        .as_chunks::<WORD_BYTES>()
        .0
        .iter()
        .map(|word| u64::from_le_bytes(*word))
}

/// A received frame. A small one borrows the bytes it was decoded from.
#[derive(Debug)]
pub struct Frame<'a> {
    pub(super) kind: Kind,
    pub(super) fields: Cow<'a, [u8]>,
    pub(super) body: Body<'a>,
}

/// The attachments of a frame.
#[derive(Debug)]
pub(super) enum Body<'a> {
    /// In one piece, as they came.
    Packed { lengths: &'a [u8], bytes: &'a [u8] },
    /// Each in the allocation that it was received into.
    Parts(Vec<Vec<u8>>),
}

impl Frame<'_> {
    /// What this frame says.
    #[must_use]
    pub const fn kind(&self) -> Kind {
        self.kind
    }

    /// The integers of the frame; their number is one that [`Kind::fields`] allows.
    #[must_use]
    pub fn fields(&self) -> impl ExactSizeIterator<Item = u64> + '_ {
        words(&self.fields)
    }

    /// The attachments of the frame; their number is one that [`Kind::attachments`] allows.
    #[must_use]
    pub fn attachments(&self) -> Attachments<'_> {
        match &self.body {
            Body::Packed { lengths, bytes } => Attachments(Rest::Packed { lengths, bytes }),
            Body::Parts(parts) => Attachments(Rest::Parts(parts.iter())),
        }
    }

    /// Kind, fields and attachments as values of their own. The attachments of a large frame are
    /// moved, those of a small one copied.
    #[must_use]
    pub fn into_parts(self) -> (Kind, Vec<u64>, Vec<Vec<u8>>) {
        let fields = self.fields().collect();
        let attachments = match self.body {
            Body::Parts(parts) => parts,
            Body::Packed { .. } => self.attachments().map(<[u8]>::to_vec).collect(),
        };
        (self.kind, fields, attachments)
    }
}

/// Iterates over the attachments of a [`Frame`].
#[derive(Debug, Clone)]
pub struct Attachments<'a>(Rest<'a>);

#[derive(Debug, Clone)]
enum Rest<'a> {
    Packed { lengths: &'a [u8], bytes: &'a [u8] },
    Parts(std::slice::Iter<'a, Vec<u8>>),
}

impl<'a> Iterator for Attachments<'a> {
    type Item = &'a [u8];

    fn next(&mut self) -> Option<Self::Item> {
        match &mut self.0 {
            Rest::Parts(parts) => parts.next().map(Vec::as_slice),
            Rest::Packed { lengths, bytes } => {
                let (length, later) = lengths.split_first_chunk::<WORD_BYTES>()?;
                // The lengths add up to what is in memory, so each is a usize.
                let length = usize::try_from(u64::from_le_bytes(*length)).ok()?;
                let (attachment, rest) = bytes.split_at_checked(length)?;
                (*lengths, *bytes) = (later, rest);
                Some(attachment)
            }
        }
    }

    fn size_hint(&self) -> (usize, Option<usize>) {
        let left = match &self.0 {
            Rest::Parts(parts) => parts.len(),
            Rest::Packed { lengths, .. } => lengths.len() / WORD_BYTES,
        };
        (left, Some(left))
    }
}

impl ExactSizeIterator for Attachments<'_> {}

/// Decodes bytes that are exactly one frame.
///
/// # Errors
/// [`Error::FrameIncomplete`] if the bytes are the start of a frame; any other `Frame...` variant
/// if they are not a frame at all. Bytes after the frame are a [`Error::FrameLength`].
pub fn decode(bytes: &[u8]) -> Result<Frame<'_>> {
    let incomplete = |expected: u64| Error::FrameIncomplete {
        expected,
        found: bytes.len(),
    };
    let prefix = Prefix::parse(bytes)?.ok_or_else(|| incomplete(PREFIX_BYTES as u64))?;
    let head = bytes
        .get(..prefix.head_bytes())
        .ok_or_else(|| incomplete(prefix.total_bytes))?;
    let (fields, lengths) = prefix.split_head(head)?;
    let found = bytes.len() as u64;
    if found < prefix.total_bytes {
        return Err(incomplete(prefix.total_bytes));
    }
    if found > prefix.total_bytes {
        return Err(prefix.length_error(found));
    }
    Ok(Frame {
        kind: prefix.kind,
        fields: Cow::Borrowed(fields),
        body: Body::Packed {
            lengths,
            bytes: &bytes[prefix.head_bytes()..],
        },
    })
}

/// Encodes a frame into one piece. A channel's `send` does without that copy.
///
/// # Errors
/// [`Error::FrameCount`] if `kind` does not have this many fields or attachments.
pub fn encode(kind: Kind, fields: &[u64], attachments: &[&[u8]]) -> Result<Vec<u8>> {
    let total_bytes = measure(kind, fields, attachments)?;
    let mut out = Vec::with_capacity(total_bytes);
    write_head(&mut out, kind, fields, attachments, total_bytes);
    for attachment in attachments {
        out.extend_from_slice(attachment);
    }
    Ok(out)
}

/// The length of the frame that these parts make.
pub(super) fn measure(kind: Kind, fields: &[u64], attachments: &[&[u8]]) -> Result<usize> {
    kind.check(fields.len(), attachments.len())?;
    let head_bytes = PREFIX_BYTES + WORD_BYTES * (fields.len() + attachments.len());
    Ok(attachments
        .iter()
        .fold(head_bytes, |sum, attachment| sum + attachment.len()))
}

/// Appends a frame's head; `total_bytes` is what [`measure`] said, so the counts fit 16 bits.
#[expect(
    clippy::cast_possible_truncation,
    reason = "measure() refuses counts that do not fit 16 bits"
)]
pub(super) fn write_head(
    out: &mut Vec<u8>,
    kind: Kind,
    fields: &[u64],
    attachments: &[&[u8]],
    total_bytes: usize,
) {
    out.extend_from_slice(&MAGIC);
    out.extend_from_slice(&[PROTOCOL_VERSION, kind.number()]);
    out.extend_from_slice(&(fields.len() as u16).to_le_bytes());
    out.extend_from_slice(&(attachments.len() as u16).to_le_bytes());
    out.extend_from_slice(&(total_bytes as u64).to_le_bytes());
    for field in fields {
        out.extend_from_slice(&field.to_le_bytes());
    }
    for attachment in attachments {
        out.extend_from_slice(&(attachment.len() as u64).to_le_bytes());
    }
}

#[cfg(test)]
mod tests;
