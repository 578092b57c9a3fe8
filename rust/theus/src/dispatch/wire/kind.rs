//! What kinds of frame there are, and how many parts each has.

use std::fmt;

use crate::error::{Error, Result};

/// How many fields or attachments a kind of frame has.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Count {
    /// This many.
    Exactly(u16),
    /// This many or more.
    AtLeast(u16),
}

impl Count {
    /// Whether a frame may have `found` of them.
    #[must_use]
    pub const fn allows(self, found: usize) -> bool {
        match self {
            Self::Exactly(count) => found == count as usize,
            Self::AtLeast(count) => found >= count as usize && found <= u16::MAX as usize,
        }
    }
}

impl fmt::Display for Count {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Exactly(count) => write!(f, "{count}"),
            Self::AtLeast(count) => write!(f, "{count} to {}", u16::MAX),
        }
    }
}

/// A kind of frame. `schemas/frames.json` says what the fields and attachments of each mean.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum Kind {
    /// Owner to worker, first of all: what the worker takes over from its owner's environment.
    Setup = 1,
    /// Worker to owner, first of all: ready, with its protocol version, process id and what it can.
    Hello = 2,
    /// Owner to worker: a version of the state that tasks will refer to.
    State = 3,
    /// Owner to worker: no further task refers to this version.
    ForgetState = 4,
    /// Owner to worker: a function that tasks will refer to.
    Function = 5,
    /// Owner to worker: no further task refers to this function.
    ForgetFunction = 6,
    /// Owner to worker: run this.
    Task = 7,
    /// Worker to owner: what the task returned.
    Result = 8,
    /// Worker to owner: why the task returned nothing.
    Error = 9,
    /// Owner to worker: segments whose cached mappings may go.
    Release = 10,
    /// Owner to worker: finish and exit.
    Shutdown = 11,
    /// Either way: a nameless segment with the large parts of the next frame.
    Parts = 12,
    /// Worker to owner: a nameless segment with an entry that the next result refers to.
    Output = 13,
    /// Worker to owner: a line for its log.
    Log = 14,
    /// Worker to owner: how far a task is.
    Progress = 15,
}

impl Kind {
    /// Every kind, in the order of their numbers.
    pub const ALL: [Self; 15] = [
        Self::Setup,
        Self::Hello,
        Self::State,
        Self::ForgetState,
        Self::Function,
        Self::ForgetFunction,
        Self::Task,
        Self::Result,
        Self::Error,
        Self::Release,
        Self::Shutdown,
        Self::Parts,
        Self::Output,
        Self::Log,
        Self::Progress,
    ];

    /// The kind with this number.
    ///
    /// # Errors
    /// [`Error::FrameKind`] if no kind has it.
    pub fn from_number(number: u8) -> Result<Self> {
        usize::from(number)
            .checked_sub(1)
            .and_then(|index| Self::ALL.get(index).copied())
            .ok_or(Error::FrameKind { found: number })
    }

    /// The number that stands in the frame.
    #[must_use]
    pub const fn number(self) -> u8 {
        self as u8
    }

    /// The name in `schemas/frames.json`.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Setup => "SETUP",
            Self::Hello => "HELLO",
            Self::State => "STATE",
            Self::ForgetState => "FORGET_STATE",
            Self::Function => "FUNCTION",
            Self::ForgetFunction => "FORGET_FUNCTION",
            Self::Task => "TASK",
            Self::Result => "RESULT",
            Self::Error => "ERROR",
            Self::Release => "RELEASE",
            Self::Shutdown => "SHUTDOWN",
            Self::Parts => "PARTS",
            Self::Output => "OUTPUT",
            Self::Log => "LOG",
            Self::Progress => "PROGRESS",
        }
    }

    /// How many fields a frame of this kind has.
    #[must_use]
    pub const fn fields(self) -> Count {
        match self {
            Self::Setup | Self::Shutdown => Count::Exactly(0),
            Self::State | Self::ForgetState | Self::ForgetFunction => Count::Exactly(1),
            Self::Hello | Self::Function | Self::Result | Self::Output | Self::Log => {
                Count::Exactly(2)
            }
            Self::Parts => Count::AtLeast(3),
            Self::Error | Self::Progress => Count::Exactly(3),
            Self::Task => Count::Exactly(4),
            Self::Release => Count::AtLeast(0),
        }
    }

    /// How many attachments a frame of this kind has.
    #[must_use]
    pub const fn attachments(self) -> Count {
        match self {
            Self::ForgetState
            | Self::ForgetFunction
            | Self::Release
            | Self::Shutdown
            | Self::Parts
            | Self::Output => Count::Exactly(0),
            Self::Setup
            | Self::Hello
            | Self::Function
            | Self::Task
            | Self::Result
            | Self::Log
            | Self::Progress => Count::Exactly(1),
            Self::Error => Count::Exactly(2),
            Self::State => Count::AtLeast(2),
        }
    }

    /// Whether a descriptor rides with the first byte of a frame of this kind.
    #[must_use]
    pub const fn carries_descriptor(self) -> bool {
        matches!(self, Self::Parts | Self::Output)
    }

    pub(super) fn check(self, fields: usize, attachments: usize) -> Result<()> {
        for (part, expected, found) in [
            ("fields", self.fields(), fields),
            ("attachments", self.attachments(), attachments),
        ] {
            if !expected.allows(found) {
                return Err(Error::FrameCount {
                    kind: self,
                    part,
                    expected,
                    found,
                });
            }
        }
        Ok(())
    }
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}
