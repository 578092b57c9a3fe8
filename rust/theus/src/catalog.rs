//! A session's catalog: which keys its current state has, for readers in other processes.
//!
//! One segment, changed in place. Each slot has a sequence number, odd while the owner writes it,
//! so that a reader takes a slot only if the number was even and the same before and after. All that
//! changes is read and written by words, whole or not at all.
//! The layout is defined in `schemas/catalog.json`.

use std::collections::HashMap;
use std::ops::Range;
use std::sync::atomic::Ordering;

use crate::backend::{Access, Backend, Draft};
use crate::descriptor::{SegmentName, SessionId};
use crate::error::{Error, Result};
use crate::kill_point::KillPoint;
use crate::mapping::Mapping;
use crate::shared::{Words, change, read_unchanged};

/// Bytes of UTF-8 that a key may have.
pub const MAX_KEY_BYTES: usize = SLOT_BYTES - KEY * WORD_BYTES;

const MAGIC: &[u8; 8] = b"THEUSCAT";
const LAYOUT_VERSION: u64 = 1;
const HEADER_BYTES: usize = 4096;
const SLOT_BYTES: usize = 256;
const FIRST_SLOTS: usize = 240;
const MAX_SLOTS: usize = 1 << 20;

const WORD_BYTES: usize = size_of::<u64>();
const SLOT_WORDS: usize = SLOT_BYTES / WORD_BYTES;
/// How often readings of slots may meet their writer before it is taken for dead.
const PATIENCE: u32 = 100_000;

// Words of the header.
const LAYOUT: usize = 1;
const CAPACITY: usize = 2;
const STATE_VERSION: usize = 3;
// Words of a slot.
const SEQUENCE: usize = 0;
const VERSION: usize = 1;
const NUMBER: usize = 2;
const LENGTH: usize = 3;
const KEY_LENGTH: usize = 4;
const KEY: usize = 5;

#[cfg(all(test, feature = "loom"))]
mod model;

/// What errors call it.
const NAME: &str = "the catalog";

/// A slot's words after its sequence number.
type SlotWords = [u64; SLOT_WORDS];

const fn length_of(slots: usize) -> u64 {
    (HEADER_BYTES + slots * SLOT_BYTES) as u64
}

/// One key of a session's current state.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CatalogEntry {
    /// The key.
    pub key: String,
    /// Its segment.
    pub segment: SegmentName,
    /// The state version that set it.
    pub version: u64,
    /// The segment's length in bytes.
    pub length: u64,
}

/// The owner's side.
#[derive(Debug)]
pub(crate) struct CatalogWriter {
    backend: Backend,
    draft: Box<dyn Draft>,
    slots: HashMap<String, usize>,
    free: Vec<usize>,
    capacity: usize,
}

impl CatalogWriter {
    /// Publishes an empty catalog for `session`.
    pub(crate) fn create(backend: Backend, session: &SessionId) -> Result<Self> {
        let length = length_of(FIRST_SLOTS);
        // The whole range is mapped once, so that it stays where it is when it grows.
        let draft = backend
            .storage()
            .create(
                &session.segment(0),
                Access::Shared,
                length,
                length_of(MAX_SLOTS),
            )?
            .ok_or_else(|| backend.storage().full(NAME, length))?;
        draft.mapping().keep_from_children()?;
        let mut catalog = Self {
            backend,
            draft,
            slots: HashMap::new(),
            free: Vec::new(),
            capacity: 0,
        };
        catalog.grow(FIRST_SLOTS)?;
        let mapping = catalog.draft.mapping();
        mapping.store(LAYOUT, LAYOUT_VERSION);
        mapping.write(0, MAGIC);
        KillPoint::CatalogPrepared.pass();
        catalog.draft.publish()?;
        KillPoint::CatalogLinked.pass();
        Ok(catalog)
    }

    fn grow(&mut self, capacity: usize) -> Result<()> {
        let capacity = capacity.min(MAX_SLOTS);
        let length = length_of(capacity);
        if capacity <= self.capacity || !self.draft.grow(length)? {
            return Err(self.backend.storage().full(NAME, length));
        }
        self.free.extend((self.capacity..capacity).rev());
        self.capacity = capacity;
        self.publish(CAPACITY, capacity as u64);
        KillPoint::CatalogGrown.pass();
        Ok(())
    }

    /// Sets `key`, or makes sure that it can be set: the only step that can fail.
    pub(crate) fn set(&mut self, key: &str, version: u64, number: u64, length: u64) -> Result<()> {
        check_key(key)?;
        let slot = if let Some(&slot) = self.slots.get(key) {
            slot
        } else {
            if self.free.is_empty() {
                self.grow(self.capacity * 2)?;
            }
            // `grow` has just filled it, or failed.
            let Some(slot) = self.free.pop() else {
                return Ok(());
            };
            self.slots.insert(key.to_owned(), slot);
            slot
        };
        let mapping: &Mapping = self.draft.mapping();
        write_slot(mapping, first_word(slot), key, version, number, length);
        Ok(())
    }

    /// Removes `key`, if it is there.
    pub(crate) fn remove(&mut self, key: &str) {
        if let Some(slot) = self.slots.remove(key) {
            let mapping: &Mapping = self.draft.mapping();
            clear_slot(mapping, first_word(slot));
            self.free.push(slot);
        }
    }

    pub(crate) fn set_version(&self, version: u64) {
        self.publish(STATE_VERSION, version);
        KillPoint::CatalogVersionSet.pass();
    }

    /// Stores a word of the header after everything that was stored before.
    fn publish(&self, word: usize, value: u64) {
        let mapping: &Mapping = self.draft.mapping();
        Mapping::fence(Ordering::Release);
        mapping.store(word, value);
    }
}

const fn first_word(slot: usize) -> usize {
    (HEADER_BYTES + slot * SLOT_BYTES) / WORD_BYTES
}

fn write_slot<W: Words>(words: &W, at: usize, key: &str, version: u64, number: u64, length: u64) {
    change(words, at + SEQUENCE, || {
        words.store(at + VERSION, version);
        words.store(at + NUMBER, number);
        words.store(at + LENGTH, length);
        words.store(at + KEY_LENGTH, key.len() as u64);
        for (word, bytes) in key.as_bytes().chunks(WORD_BYTES).enumerate() {
            let mut whole = [0; WORD_BYTES];
            whole[..bytes.len()].copy_from_slice(bytes);
            words.store(at + KEY + word, u64::from_ne_bytes(whole));
        }
        KillPoint::CatalogSlotOpened.pass();
    });
    KillPoint::CatalogSlotClosed.pass();
}

fn clear_slot<W: Words>(words: &W, at: usize) {
    change(words, at + SEQUENCE, || {
        words.store(at + NUMBER, 0);
        KillPoint::CatalogSlotOpened.pass();
    });
    KillPoint::CatalogSlotClosed.pass();
}

/// The slot's words, none of them older or newer than another; `None` if its writer died.
fn read_slot<W: Words>(words: &W, at: usize, patience: &mut u32) -> Option<SlotWords> {
    read_unchanged(words, at + SEQUENCE, patience, || {
        let mut slot = [0; SLOT_WORDS];
        let take = |slot: &mut SlotWords, range: Range<usize>| {
            for (place, word) in slot[range.clone()].iter_mut().zip(range) {
                *place = words.load(at + word);
            }
        };
        take(&mut slot, VERSION..KEY);
        let key_words = key_bytes(&slot).div_ceil(WORD_BYTES);
        take(&mut slot, KEY..KEY + key_words);
        slot
    })
}

fn key_bytes(slot: &SlotWords) -> usize {
    usize::try_from(slot[KEY_LENGTH]).map_or(MAX_KEY_BYTES, |length| length.min(MAX_KEY_BYTES))
}

fn entry_of(slot: &SlotWords, session: &SessionId) -> Option<CatalogEntry> {
    let key: Vec<u8> = slot[KEY..]
        .iter()
        .flat_map(|word| word.to_ne_bytes())
        .collect();
    (slot[NUMBER] != 0).then(|| CatalogEntry {
        key: String::from_utf8_lossy(&key[..key_bytes(slot)]).into_owned(),
        segment: session.segment(slot[NUMBER]),
        version: slot[VERSION],
        length: slot[LENGTH],
    })
}

/// Refuses keys that do not fit into a slot.
pub(crate) fn check_key(key: &str) -> Result<()> {
    if key.len() > MAX_KEY_BYTES {
        return Err(Error::KeyTooLong {
            key: key.to_owned(),
            expected: MAX_KEY_BYTES,
            found: key.len(),
        });
    }
    Ok(())
}

/// Reads the catalog of a living session: the state version, and the keys.
///
/// # Errors
/// [`Error::SegmentNotFound`] if there is no such session, [`Error::CorruptSegment`] if what lies
/// there is not a catalog.
pub fn read_catalog(session: &SessionId) -> Result<(u64, Vec<CatalogEntry>)> {
    let path = session.segment(0).path();
    let invalid = |reason: &str| Error::CorruptSegment {
        segment: path.display().to_string(),
        reason: reason.to_owned(),
    };
    let mapping = Backend::default().storage().open(&path)?;
    let length = mapping.len();
    if !(length_of(0)..=length_of(MAX_SLOTS)).contains(&(length as u64)) {
        return Err(invalid("its size is not a catalog's"));
    }
    if mapping.read(0, 8) != MAGIC || mapping.load(LAYOUT) != LAYOUT_VERSION {
        return Err(invalid("it is not a catalog of this layout version"));
    }
    let capacity = usize::try_from(mapping.load(CAPACITY)).unwrap_or(0);
    let slots = capacity.min((length - HEADER_BYTES) / SLOT_BYTES);
    // One for all slots: a file with nothing but odd numbers is no reason to wait for each.
    let mut patience = PATIENCE;
    let mut entries = Vec::new();
    for slot in 0..slots {
        let words = read_slot(&mapping, first_word(slot), &mut patience);
        entries.extend(words.and_then(|words| entry_of(&words, session)));
    }
    Mapping::fence(Ordering::Acquire);
    Ok((mapping.load(STATE_VERSION), entries))
}
