//! Frames from one worker, turned into values that no longer borrow from its channel.

use std::sync::Arc;
use std::time::Duration;

use super::completion::{Failure, Progress};
use super::hello::Hello;
use super::message::Message;
use super::wire::{Frame, Kind, Receiver};
use crate::error::{Error, Result};
use crate::segment::Segment;
use crate::session::Session;
use crate::transient::Transient;

/// The levels of lines for the log.
const LEVELS: [u64; 4] = [10, 20, 30, 40];

/// A frame from a worker.
#[derive(Debug)]
pub(super) enum Arrival {
    Hello(Hello),
    Log { task: u64, level: u64, text: String },
    Progress { task: u64, progress: Progress },
    Answer(Answer),
}

/// The end of a task, as its worker tells it.
#[derive(Debug)]
pub(super) struct Answer {
    pub(super) task: u64,
    pub(super) took: Duration,
    pub(super) outcome: std::result::Result<Message, Failure>,
    /// Why one of its outputs could not be taken over.
    pub(super) refused: Option<Error>,
}

/// Where frames are looked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Look {
    /// Also in the socket, by a system call.
    Socket,
    /// In the page, and in what a system call has brought before.
    Here,
}

/// The receiving half of a worker's channel. Whoever has it locked reads the worker's frames and acts
/// on them in their order.
#[derive(Debug)]
pub(super) struct Inbound {
    pub(super) receiver: Receiver,
    slot: usize,
    parts: Option<Transient>,
    outputs: Vec<Arc<Segment>>,
    refused: Option<Error>,
}

impl Inbound {
    pub(super) const fn new(receiver: Receiver, slot: usize) -> Self {
        Self {
            receiver,
            slot,
            parts: None,
            outputs: Vec::new(),
            refused: None,
        }
    }

    /// Takes the frames that have arrived, up to `most`; without a system call, those that are here.
    /// Returns the error that ends the channel, if there is one behind them.
    pub(super) fn take(
        &mut self,
        session: &Session,
        look: Look,
        most: usize,
        arrivals: &mut Vec<Arrival>,
    ) -> Result<()> {
        while arrivals.len() < most {
            let frame = match look {
                Look::Socket => self.receiver.try_recv()?,
                Look::Here => self.receiver.buffered()?,
            };
            let Some(frame) = frame else {
                return Ok(());
            };
            let (kind, owned) = (frame.kind(), Owned::of(&frame));
            match kind {
                Kind::Parts => {
                    let file = self.receiver.take_descriptor(kind)?;
                    self.parts = Some(Transient::received(file, &owned.fields)?);
                }
                Kind::Output => {
                    let file = self.receiver.take_descriptor(kind)?;
                    match session.adopt(file, self.slot) {
                        Ok(segment) => self.outputs.push(segment),
                        // No space for a copy, or the engine is closing: the task fails.
                        Err(error) => self.refused = Some(error),
                    }
                }
                _ => arrivals.push(self.arrival(kind, owned)?),
            }
        }
        Ok(())
    }

    fn arrival(&mut self, kind: Kind, owned: Owned) -> Result<Arrival> {
        let Owned {
            fields,
            attachments,
        } = owned;
        let field = |place: usize| fields.get(place).copied().unwrap_or_default();
        let mut attachments = attachments.into_iter();
        let mut attachment = || attachments.next().unwrap_or_else(|| Arc::from([]));
        Ok(match kind {
            Kind::Hello => Arrival::Hello(Hello::parse(&attachment())?),
            Kind::Log if !LEVELS.contains(&field(1)) => {
                let reason = format!(
                    "a line for the log has level 10, 20, 30 or 40, not {}",
                    field(1)
                );
                return Err(Error::FrameMeaning { kind, reason });
            }
            Kind::Log => Arrival::Log {
                task: field(0),
                level: field(1),
                text: text(&attachment()),
            },
            Kind::Progress => Arrival::Progress {
                task: field(0),
                progress: Progress {
                    done: field(1),
                    total: Some(field(2)).filter(|&total| total > 0),
                    message: text(&attachment()),
                },
            },
            Kind::Result => Arrival::Answer(self.answer(&fields, attachment(), Ok)),
            Kind::Error => {
                let (data, traceback) = (attachment(), attachment());
                let cause = field(2);
                Arrival::Answer(self.answer(&fields, data, |message| {
                    Err(Failure {
                        cause,
                        message,
                        traceback,
                    })
                }))
            }
            _ => {
                let reason = "it goes from the owner to a worker".to_owned();
                return Err(Error::FrameMeaning { kind, reason });
            }
        })
    }

    fn answer(
        &mut self,
        fields: &[u64],
        data: Arc<[u8]>,
        outcome: impl FnOnce(Message) -> std::result::Result<Message, Failure>,
    ) -> Answer {
        let message = Message {
            data,
            parts: self.parts.take().map(Arc::new),
            outputs: std::mem::take(&mut self.outputs),
        };
        Answer {
            task: fields[0],
            took: Duration::from_nanos(fields[1]),
            outcome: outcome(message),
            refused: self.refused.take(),
        }
    }
}

/// The parts of a frame.
struct Owned {
    fields: Vec<u64>,
    attachments: Vec<Arc<[u8]>>,
}

impl Owned {
    fn of(frame: &Frame<'_>) -> Self {
        Self {
            fields: frame.fields().collect(),
            attachments: frame.attachments().map(Arc::from).collect(),
        }
    }
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}
