//! A session's catalog: which keys its current state has, for readers in other processes.
//!
//! One segment, changed in place. Each slot has a sequence number, odd while the owner writes it,
//! so that a reader takes a slot only if the number was even and the same before and after.
//! The layout is defined in `schemas/catalog.json`.

use std::collections::HashMap;
use std::sync::atomic::{Ordering, fence};

use crate::backend::{Access, Backend, Draft};
use crate::descriptor::{SegmentName, SessionId};
use crate::error::{Error, Result};
use crate::kill_point::KillPoint;
use crate::mapping::Mapping;

/// Bytes of UTF-8 that a key may have.
pub const MAX_KEY_BYTES: usize = SLOT_BYTES - KEY;

const MAGIC: &[u8; 8] = b"THEUSCAT";
const LAYOUT_VERSION: u64 = 1;
const HEADER_BYTES: usize = 4096;
const SLOT_BYTES: usize = 256;
const FIRST_SLOTS: usize = 240;
const MAX_SLOTS: usize = 1 << 20;

// Offsets in the header.
const LAYOUT: usize = 8;
const CAPACITY: usize = 16;
const STATE_VERSION: usize = 24;
// Offsets in a slot.
const SEQUENCE: usize = 0;
const VERSION: usize = 8;
const NUMBER: usize = 16;
const LENGTH: usize = 24;
const KEY_LENGTH: usize = 32;
const KEY: usize = 40;

/// What errors call it.
const NAME: &str = "the catalog";

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
        mapping
            .atomic(LAYOUT)
            .store(LAYOUT_VERSION, Ordering::Release);
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
        self.draft
            .mapping()
            .atomic(CAPACITY)
            .store(capacity as u64, Ordering::Release);
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
        self.write(slot, |mapping, at| {
            mapping
                .atomic(at + VERSION)
                .store(version, Ordering::Relaxed);
            mapping.atomic(at + NUMBER).store(number, Ordering::Relaxed);
            mapping.atomic(at + LENGTH).store(length, Ordering::Relaxed);
            mapping
                .atomic(at + KEY_LENGTH)
                .store(key.len() as u64, Ordering::Relaxed);
            mapping.write(at + KEY, key.as_bytes());
        });
        Ok(())
    }

    /// Removes `key`, if it is there.
    pub(crate) fn remove(&mut self, key: &str) {
        if let Some(slot) = self.slots.remove(key) {
            self.write(slot, |mapping, at| {
                mapping.atomic(at + NUMBER).store(0, Ordering::Relaxed);
            });
            self.free.push(slot);
        }
    }

    pub(crate) fn set_version(&self, version: u64) {
        self.draft
            .mapping()
            .atomic(STATE_VERSION)
            .store(version, Ordering::Release);
        KillPoint::CatalogVersionSet.pass();
    }

    fn write(&self, slot: usize, change: impl FnOnce(&Mapping, usize)) {
        let at = HEADER_BYTES + slot * SLOT_BYTES;
        let mapping = self.draft.mapping();
        let sequence = mapping.atomic(at + SEQUENCE);
        let before = sequence.load(Ordering::Relaxed);
        sequence.store(before + 1, Ordering::Relaxed);
        fence(Ordering::Release);
        change(mapping, at);
        KillPoint::CatalogSlotOpened.pass();
        sequence.store(before + 2, Ordering::Release);
        KillPoint::CatalogSlotClosed.pass();
    }
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
    if mapping.read(0, 8) != MAGIC
        || mapping.atomic(LAYOUT).load(Ordering::Acquire) != LAYOUT_VERSION
    {
        return Err(invalid("it is not a catalog of this layout version"));
    }
    let capacity = usize::try_from(mapping.atomic(CAPACITY).load(Ordering::Acquire));
    let slots = capacity
        .unwrap_or(0)
        .min((length - HEADER_BYTES) / SLOT_BYTES);
    let mut entries = Vec::new();
    for slot in 0..slots {
        entries.extend(read_slot(
            &mapping,
            HEADER_BYTES + slot * SLOT_BYTES,
            session,
        ));
    }
    Ok((
        mapping.atomic(STATE_VERSION).load(Ordering::Acquire),
        entries,
    ))
}

fn read_slot(mapping: &Mapping, at: usize, session: &SessionId) -> Option<CatalogEntry> {
    // The owner writes a slot in well under a microsecond: many odd readings mean that it died.
    for _ in 0..10_000 {
        let before = mapping.atomic(at + SEQUENCE).load(Ordering::Acquire);
        let number = mapping.atomic(at + NUMBER).load(Ordering::Relaxed);
        let version = mapping.atomic(at + VERSION).load(Ordering::Relaxed);
        let length = mapping.atomic(at + LENGTH).load(Ordering::Relaxed);
        let key_length = mapping.atomic(at + KEY_LENGTH).load(Ordering::Relaxed);
        let key_length = usize::try_from(key_length)
            .unwrap_or(usize::MAX)
            .min(MAX_KEY_BYTES);
        let key = mapping.read(at + KEY, key_length);
        fence(Ordering::Acquire);
        let after = mapping.atomic(at + SEQUENCE).load(Ordering::Relaxed);
        if before == after && before.is_multiple_of(2) {
            return (number != 0).then(|| CatalogEntry {
                key: String::from_utf8_lossy(&key).into_owned(),
                segment: session.segment(number),
                version,
                length,
            });
        }
        std::hint::spin_loop();
    }
    None
}
