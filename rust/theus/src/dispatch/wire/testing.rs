//! Random frames for the tests of this room; the same ones at each run.

use super::frame::encode;
use super::kind::{Count, Kind};

/// xorshift64*: small, and good enough to shuffle lengths and bytes.
pub(super) struct Random(u64);

impl Random {
    pub(super) fn new(seed: u64) -> Self {
        Self(seed.wrapping_mul(0x9E37_79B9_7F4A_7C15) | 1)
    }

    pub(super) fn word(&mut self) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_F491_4F6C_DD1D)
    }

    /// A number from 0 to `limit`, both included.
    pub(super) fn up_to(&mut self, limit: usize) -> usize {
        usize::try_from(self.word() >> 1).unwrap() % (limit + 1)
    }

    fn count(&mut self, count: Count, more: usize) -> usize {
        match count {
            Count::Exactly(count) => usize::from(count),
            Count::AtLeast(count) => usize::from(count) + self.up_to(more),
        }
    }

    pub(super) fn bytes(&mut self, length: usize) -> Vec<u8> {
        let mut bytes = vec![0; length];
        for chunk in bytes.chunks_mut(8) {
            let word = self.word().to_le_bytes();
            chunk.copy_from_slice(&word[..chunk.len()]);
        }
        bytes
    }

    /// A frame of any kind; every attachment is empty, or up to `longest` bytes long.
    pub(super) fn frame(&mut self, longest: usize) -> Parts {
        let kind = Kind::ALL[self.up_to(Kind::ALL.len() - 1)];
        let fields = self.count(kind.fields(), 40);
        let attachments = self.count(kind.attachments(), 12);
        Parts {
            kind,
            fields: (0..fields).map(|_| self.word()).collect(),
            attachments: (0..attachments)
                .map(|_| {
                    let length = if self.up_to(3) == 0 {
                        0
                    } else {
                        self.up_to(longest)
                    };
                    self.bytes(length)
                })
                .collect(),
        }
    }
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Parts {
    pub(super) kind: Kind,
    pub(super) fields: Vec<u64>,
    pub(super) attachments: Vec<Vec<u8>>,
}

impl Parts {
    pub(super) fn slices(&self) -> Vec<&[u8]> {
        self.attachments.iter().map(Vec::as_slice).collect()
    }

    pub(super) fn encoded(&self) -> Vec<u8> {
        encode(self.kind, &self.fields, &self.slices()).unwrap()
    }
}

impl From<super::Frame<'_>> for Parts {
    fn from(frame: super::Frame<'_>) -> Self {
        let (kind, fields, attachments) = frame.into_parts();
        Self {
            kind,
            fields,
            attachments,
        }
    }
}
