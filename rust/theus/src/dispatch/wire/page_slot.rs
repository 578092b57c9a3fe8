//! A small frame that a peer picks up from the shared page, as it looks there anyway.
//!
//! Sending to a socket and taking from it costs some microseconds each way; a store costs none that
//! can be measured. So while a peer *polls*, a frame may lie in its *box* in the control page
//! instead, one at a time. Where a letter stands among the frames of the socket, its mark says: how
//! many bytes had been sent there before it. A peer that never polls gets no letters, and one that
//! knows no boxes loses nothing.
//!
//! ```text
//!   sender                                  receiver
//!   writes the bytes, then the letter       stops polling
//!   looks whether it is polled for          looks whether there is a letter
//! ```
//!
//! Of the two at least one sees the other: a letter that nobody may look for is taken back and goes
//! by the socket, unless the receiver has it already.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use rustix::thread::sched_getcpu;

use super::frame::{Frame, decode};
use crate::error::{Error, Result};
use crate::mapping::Mapping;
use crate::shared::{Words, tell};

const WORD_BYTES: usize = 8;

/// Where one direction's words lie; `schemas/control.json` has them as bytes.
#[derive(Debug, Clone, Copy)]
pub(super) struct Place {
    /// The number of the letter that lies there, or 0; its mark and its length follow.
    letter: usize,
    /// Whether the receiver looks at `letter`; the processor on which it last began to follows.
    polls: usize,
    bytes: usize,
    capacity: usize,
}

const MARK: usize = 1;
const LENGTH: usize = 2;
const PROCESSOR: usize = 1;

pub(super) const TO_WORKER: Place = Place {
    letter: 16,
    polls: 24,
    bytes: 64,
    capacity: 192 * WORD_BYTES,
};
pub(super) const TO_OWNER: Place = Place {
    letter: 32,
    polls: 40,
    bytes: 256,
    capacity: 256 * WORD_BYTES,
};

impl Place {
    /// Leaves letter `number` for a receiver that polls. False if there is none, the box is full, or
    /// the receiver went to sleep meanwhile: then the letter is not there.
    fn leave<W: Words>(&self, words: &W, number: u64, mark: u64, bytes: &[u8]) -> bool {
        if bytes.len() > self.capacity
            || words.load(self.polls) == 0
            || words.load(self.letter) != 0
        {
            return false;
        }
        // The receiver had read the letter before it emptied the box.
        W::fence(Ordering::Acquire);
        words.store(self.letter + MARK, mark);
        words.store(self.letter + LENGTH, bytes.len() as u64);
        let (whole, rest) = bytes.as_chunks::<WORD_BYTES>();
        for (place, word) in whole.iter().enumerate() {
            words.store(self.bytes + place, u64::from_ne_bytes(*word));
        }
        if !rest.is_empty() {
            let mut last = [0; WORD_BYTES];
            last[..rest.len()].copy_from_slice(rest);
            words.store(self.bytes + whole.len(), u64::from_ne_bytes(last));
        }
        tell(words, self.letter, number);
        words.load(self.polls) != 0 || !self.empty(words, number)
    }

    /// Empties the box if letter `number` lies there; whether it did.
    fn empty<W: Words>(&self, words: &W, number: u64) -> bool {
        W::fence(Ordering::Release);
        words.update(self.letter, |found| if found == number { 0 } else { found }) == number
    }

    /// The mark of the letter that lies there, and its number.
    fn look<W: Words>(&self, words: &W) -> Option<(u64, u64)> {
        let number = words.load(self.letter);
        if number == 0 {
            return None;
        }
        W::fence(Ordering::Acquire);
        Some((number, words.load(self.letter + MARK)))
    }

    /// Takes letter `number`, which lay there a moment ago, to the end of `into`. False if it was
    /// taken back.
    fn take<W: Words>(&self, words: &W, number: u64, into: &mut Vec<u8>) -> bool {
        let length = usize::try_from(words.load(self.letter + LENGTH));
        let length = length.unwrap_or(usize::MAX).min(self.capacity);
        into.clear();
        for place in 0..length.div_ceil(WORD_BYTES) {
            into.extend_from_slice(&words.load(self.bytes + place).to_ne_bytes());
        }
        into.truncate(length);
        self.empty(words, number)
    }

    fn poll<W: Words>(&self, words: &W, processor: u64) {
        words.store(self.polls + PROCESSOR, processor);
        words.store(self.polls, 1);
    }

    /// What is left from now on is taken back by who leaves it, or seen by the next look.
    fn stop_polling<W: Words>(&self, words: &W) {
        tell(words, self.polls, 0);
    }
}

/// The number of the processor this thread runs on, from 1.
fn processor() -> u64 {
    sched_getcpu() as u64 + 1
}

/// The box of the peer.
#[derive(Debug)]
pub(super) struct Outbox {
    page: Arc<Mapping>,
    place: Place,
    letters: u64,
}

impl Outbox {
    pub(super) const fn new(page: Arc<Mapping>, place: Place) -> Self {
        Self {
            page,
            place,
            letters: 0,
        }
    }

    /// Whether a frame of this length may find a receiver: worth encoding one.
    pub(super) fn may_take(&self, length: usize) -> bool {
        length <= self.place.capacity && self.page.load(self.place.polls) != 0
    }

    /// Leaves a frame that stands behind so many bytes of the socket. False if it has to go there.
    pub(super) fn leave(&mut self, frame: &[u8], mark: u64) -> bool {
        self.letters += 1;
        self.place.leave(&*self.page, self.letters, mark, frame)
    }
}

/// The box of this process.
#[derive(Debug)]
pub(super) struct Inbox {
    page: Arc<Mapping>,
    place: Place,
    letter: Vec<u8>,
    /// A letter that is out of the box and not handed out.
    held: bool,
    polls: bool,
}

impl Inbox {
    pub(super) const fn new(page: Arc<Mapping>, place: Place) -> Self {
        Self {
            page,
            place,
            letter: Vec::new(),
            held: false,
            polls: false,
        }
    }

    pub(super) fn poll(&mut self) {
        if !self.polls {
            self.place.poll(&*self.page, processor());
            self.polls = true;
        }
    }

    /// Whether the peer polled on this very processor: who polls then keeps it from running, and
    /// the kernel leaves both where they are, as none of them ever sleeps.
    pub(super) fn shares_processor(&self) -> bool {
        let theirs = if self.place.polls == TO_OWNER.polls {
            TO_WORKER
        } else {
            TO_OWNER
        };
        self.page.load(theirs.polls + PROCESSOR) == processor()
    }

    /// To be called before this process looks elsewhere, and followed by [`fetch`](Self::fetch).
    pub(super) fn stop_polling(&mut self) {
        if self.polls {
            self.place.stop_polling(&*self.page);
            self.polls = false;
        }
    }

    /// Whether a letter lies here, be it its turn or not.
    pub(super) fn is_full(&self) -> bool {
        self.place.look(&*self.page).is_some()
    }

    /// Takes the letter that lies here out, if it is its turn after so many bytes of the socket;
    /// whether there is one.
    pub(super) fn fetch(&mut self, handed_bytes: u64) -> bool {
        if !self.held
            && let Some((number, mark)) = self.place.look(&*self.page)
            && mark <= handed_bytes
        {
            self.held = self.place.take(&*self.page, number, &mut self.letter);
        }
        self.held
    }

    /// Whether a letter was fetched that is not opened.
    pub(super) const fn holds(&self) -> bool {
        self.held
    }

    /// The letter that was fetched.
    ///
    /// # Errors
    /// A `Frame...` variant, again at each further call, if the peer left something else.
    pub(super) fn open(&mut self) -> Result<Frame<'_>> {
        let frame = decode(&self.letter)?;
        if frame.kind().carries_descriptor() {
            return Err(Error::FrameDescriptor { kind: frame.kind() });
        }
        self.held = false;
        Ok(frame)
    }

    /// How long the letter is that was fetched last.
    pub(super) fn length(&self) -> usize {
        self.letter.len()
    }
}

#[cfg(test)]
mod tests {
    use serde_json::Value;

    use super::*;

    #[test]
    fn the_places_are_those_of_the_schema() {
        let schema: Value =
            serde_json::from_str(include_str!("../../../../../schemas/control.json")).unwrap();
        let named = [("to_worker", TO_WORKER), ("to_owner", TO_OWNER)];
        let places = schema["boxes"]["places"].as_array().unwrap();
        assert_eq!(places.len(), named.len());
        for (place, (name, known)) in places.iter().zip(named) {
            assert_eq!(place["name"], name);
            for (field, word) in [
                ("letter", known.letter),
                ("mark", known.letter + MARK),
                ("length", known.letter + LENGTH),
                ("polls", known.polls),
                ("processor", known.polls + PROCESSOR),
                ("frame", known.bytes),
            ] {
                assert_eq!(place[field], word * WORD_BYTES, "{name} {field}");
            }
            assert_eq!(place["frame_bytes"], known.capacity);
        }
    }
}

#[cfg(all(test, feature = "loom"))]
mod model {
    use loom::thread;

    use super::*;
    use crate::shared::model::Modelled;

    const SMALL: Place = Place {
        letter: 0,
        polls: 3,
        bytes: 5,
        capacity: 2 * WORD_BYTES,
    };
    const BYTES: [u8; 9] = [1, 2, 3, 4, 5, 6, 7, 8, 9];

    fn all_orders(sender: fn(&Modelled) -> u64, receiver: fn(&Modelled) -> u64, letters: u64) {
        let model = loom::model::Builder::new();
        model.check(move || {
            let words = Modelled::new(7);
            SMALL.poll(&words, 0);
            let theirs = words.clone();
            let sent = thread::spawn(move || sender(&theirs));
            let fetched = receiver(&words);
            let by_socket = sent.join().unwrap();
            assert_eq!(fetched + by_socket, letters, "lost, or had twice");
            assert!(SMALL.look(&words).is_none(), "left where nobody looks");
        });
    }

    /// How many of the letters have to go by the socket.
    fn leave_one(words: &Modelled) -> u64 {
        u64::from(!SMALL.leave(words, 1, 0, &BYTES))
    }

    fn leave_two(words: &Modelled) -> u64 {
        leave_one(words) + u64::from(!SMALL.leave(words, 2, 0, &BYTES[1..]))
    }

    fn look(words: &Modelled) -> u64 {
        let mut letter = Vec::new();
        let Some((number, _)) = SMALL.look(words) else {
            return 0;
        };
        if !SMALL.take(words, number, &mut letter) {
            return 0;
        }
        let skipped = usize::try_from(number - 1).unwrap();
        assert_eq!(letter, BYTES[skipped..], "half of letter {number}");
        1
    }

    fn look_and_sleep(words: &Modelled) -> u64 {
        let found = look(words);
        SMALL.stop_polling(words);
        found + look(words)
    }

    #[test]
    fn a_letter_is_had_once_by_whoever_stops_looking() {
        all_orders(leave_one, look_and_sleep, 1);
    }

    #[test]
    fn a_letter_after_another_is_whole() {
        all_orders(leave_two, look_and_sleep, 2);
    }
}
