//! An address range over a segment, owned, read-only or read-write; and who lies at an address.

#![expect(unsafe_code, reason = "a mapping is raw memory")]

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::fmt;
use std::io;
use std::mem::ManuallyDrop;
use std::ops::Range;
use std::os::fd::{AsFd, AsRawFd};
use std::panic::{RefUnwindSafe, UnwindSafe};
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering, fence};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock, RwLockWriteGuard};

use memmap2::{MmapOptions, MmapRaw, RemapOptions};
use rustix::mm::{MapFlags, ProtFlags};
use shared_memory::Shmem;

use crate::descriptor::SegmentName;
use crate::error::Result;
use crate::huge;
use crate::kept::check_mappings;
use crate::limits::Counted;
use crate::os::{self, failed};
use crate::shared::Words;
use crate::store;

mod aligned;

use aligned::Aligned;

/// The least that the kernel takes advice for.
const PAGE_BYTES: usize = 4096;

/// Where published bytes lie in this process: address to length and name.
static REGISTRY: RwLock<Registry> = RwLock::new(BTreeMap::new());

type Registry = BTreeMap<usize, (usize, SegmentName)>;

thread_local! {
    /// The registry's lock while this thread forks.
    static FORKING: RefCell<Option<RwLockWriteGuard<'static, Registry>>> =
        const { RefCell::new(None) };
}

/// Takes the registry's lock before a fork, so that the child does not inherit it from a thread
/// that it does not have; called with false, in parent and child, lets it go.
pub(crate) fn lock_for_fork(locked: bool) {
    let guard = locked.then(|| REGISTRY.write().unwrap_or_else(PoisonError::into_inner));
    FORKING.with_borrow_mut(|held| *held = guard);
}

/// An address range over a whole segment. It stays valid until dropped, whatever becomes of the
/// segment's name.
#[derive(Debug)]
pub struct Mapping {
    memory: ManuallyDrop<Memory>,
    /// The fork generation that has the range, if forked children do not.
    kept_from_children: Mutex<Option<u64>>,
    writable: AtomicBool,
    /// Something that has to last as long as the bytes are in use.
    kept: Mutex<Option<Arc<Kept>>>,
    _counted: Counted,
}

/// Something that is only held.
type Kept = dyn fmt::Debug + Send + Sync + UnwindSafe + RefUnwindSafe;

/// What keeps the range valid.
enum Memory {
    Mapped(MmapRaw),
    /// What is long enough for large pages.
    Aligned(Aligned),
    Shared(Shmem),
}

// SAFETY: the crate's handle is an address range and a descriptor, which any thread may use and
// drop; it has no interior state, and its ownership flag is set before it comes here.
unsafe impl Send for Memory {}
// SAFETY: as above; what lies in the range is reached by raw pointers only.
unsafe impl Sync for Memory {}

impl fmt::Debug for Memory {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Mapped(raw) => raw.fmt(formatter),
            Self::Aligned(range) => range.fmt(formatter),
            Self::Shared(memory) => memory.get_os_id().fmt(formatter),
        }
    }
}

impl Mapping {
    /// Maps `length` bytes of `file` shared, to be read and written.
    pub(crate) fn writable(file: &impl AsFd, length: usize) -> Result<Self> {
        check_mappings("mapping a new segment")?;
        let access = ProtFlags::READ | ProtFlags::WRITE;
        let memory = match Self::aligned(file, length, access, MapFlags::SHARED) {
            Some(aligned) => aligned,
            None => MmapOptions::new()
                .len(length)
                .map_raw(file.as_fd().as_raw_fd())
                .map(Memory::Mapped),
        };
        let memory = memory.map_err(|error| failed("mapping a new segment", error))?;
        Ok(Self::new(memory, true))
    }

    /// Maps `length` bytes of `file` shared, to be read: the hardware refuses writes. Not counted
    /// against the limit beforehand, so that what is being written can be sealed at it.
    pub(crate) fn read_only(file: &impl AsFd, length: usize) -> Result<Self> {
        let memory = match Self::aligned(file, length, ProtFlags::READ, MapFlags::SHARED) {
            Some(aligned) => aligned,
            None => MmapOptions::new()
                .len(length)
                .map_raw_read_only(file.as_fd().as_raw_fd())
                .map(Memory::Mapped),
        };
        let memory = memory.map_err(|error| failed("mapping a segment", error))?;
        Ok(Self::new(memory, false))
    }

    /// Maps `length` bytes of `file` to be read and written, the latter for this process alone.
    pub(crate) fn private(file: &impl AsFd, length: usize) -> Result<Self> {
        check_mappings("mapping a segment privately")?;
        let access = ProtFlags::READ | ProtFlags::WRITE;
        let flags = MapFlags::PRIVATE | MapFlags::NORESERVE;
        let memory = Self::aligned(file, length, access, flags).unwrap_or_else(|| {
            let mut options = MmapOptions::new();
            let options = options.len(length).no_reserve_swap();
            // SAFETY: `Mapping` hands out raw pointers only, so that no reference's promise is
            // broken if another process changes pages of the file that were not written here.
            let mapped = unsafe { options.map_copy(file.as_fd().as_raw_fd()) };
            mapped.map(|mapped| Memory::Mapped(mapped.into()))
        });
        let memory = memory.map_err(|error| failed("mapping a segment privately", error))?;
        Ok(Self::new(memory, true))
    }

    /// A range in which large pages can be mapped as such; `None` if there can be none.
    fn aligned(
        file: &impl AsFd,
        length: usize,
        access: ProtFlags,
        flags: MapFlags,
    ) -> Option<io::Result<Memory>> {
        let page = huge::page_bytes().filter(|page| length >= *page)?;
        Some(Aligned::map(file, length, access, flags, page).map(Memory::Aligned))
    }

    /// `length` zero bytes of this process alone, which take memory when they are written.
    pub(crate) fn anonymous(length: usize) -> Result<Self> {
        check_mappings("mapping private memory")?;
        let memory = MmapOptions::new()
            .len(length)
            .no_reserve_swap()
            .map_anon()
            .map_err(|error| failed("mapping private memory", error))?;
        Ok(Self::new(Memory::Mapped(memory.into()), true))
    }

    /// The range of a handle of the `shared_memory` crate, which maps it to be written in any case.
    pub(crate) fn shared(memory: Shmem, writable: bool) -> Self {
        Self::new(Memory::Shared(memory), writable)
    }

    fn new(memory: Memory, writable: bool) -> Self {
        Self {
            memory: ManuallyDrop::new(memory),
            kept_from_children: Mutex::new(None),
            writable: AtomicBool::new(writable),
            kept: Mutex::new(None),
            _counted: Counted::new(),
        }
    }

    /// Keeps the mapping, and with it the file's locks, out of forked children.
    pub(crate) fn keep_from_children(&self) -> Result<()> {
        *unpoisoned(&self.kept_from_children) = Some(os::fork_generation());
        self.advise(0..self.len(), libc::MADV_DONTFORK)
    }

    /// Lets forked children have the mapping again.
    pub(crate) fn share_with_children(&self) -> Result<()> {
        self.advise(0..self.len(), libc::MADV_DOFORK)?;
        *unpoisoned(&self.kept_from_children) = None;
        Ok(())
    }

    /// Has the pages of all of `range`, which the file has, in place, so that nobody stops at each for
    /// one. Those of memory may be written then too: the kernel does not watch for the first write.
    pub(crate) fn populate(&self, range: Range<usize>) -> Result<()> {
        self.advise(range, libc::MADV_POPULATE_READ)
    }

    /// Has the kernel make large pages of all of `range`, which begins and ends at such and has a small
    /// page in each; false: it does not, or not of all.
    pub(crate) fn collapse(&self, range: Range<usize>) -> bool {
        self.advise(range, huge::ADVICE).is_ok()
    }

    fn advise(&self, range: Range<usize>, advice: libc::c_int) -> Result<()> {
        assert!(range.start <= range.end && range.end <= self.len());
        if let Memory::Shared(_) = &*self.memory {
            return Ok(());
        }
        let start = self.as_mut_ptr().wrapping_add(range.start);
        // The kernel takes whole pages only.
        let before = start.addr() % PAGE_BYTES;
        let start = start.wrapping_sub(before).cast();
        // SAFETY: the range is this mapping's, to the beginning of its first page, and no advice
        // given here changes what lies in it.
        if unsafe { libc::madvise(start, range.len() + before, advice) } == 0 {
            return Ok(());
        }
        let error = io::Error::last_os_error();
        Err(failed("advising the kernel on a mapping", error))
    }

    /// Gives the mapping another length, and perhaps another address; the pages stay in place.
    pub(crate) fn resize(&mut self, length: usize) -> Result<()> {
        let resized = match &mut *self.memory {
            Memory::Mapped(raw) => {
                let options = RemapOptions::new().may_move(true);
                // SAFETY: `Mapping` hands out pointers only, and who has it mutably has all of them.
                unsafe { raw.remap(length, options) }
            }
            Memory::Aligned(range) => range.resize(length),
            Memory::Shared(_) => Ok(()),
        };
        resized.map_err(|error| failed("resizing a mapping", error))
    }

    /// Replaces the pages in place by private ones of `file`: what is written through pointers made
    /// before stays in this process and reaches nobody.
    pub(crate) fn make_private(&self, file: &impl AsFd) -> Result<()> {
        self.close();
        let flags = MapFlags::PRIVATE | MapFlags::FIXED;
        let access = ProtFlags::READ | ProtFlags::WRITE;
        // SAFETY: the range is exactly the one this mapping owns, and `Mapping` hands out raw
        // pointers only, so no reference's promise is broken by what lies there changing. The new
        // pages show the same file, or a copy of it made by the caller.
        let mapped = unsafe {
            rustix::mm::mmap(self.as_mut_ptr().cast(), self.len(), access, flags, file, 0)
        };
        mapped
            .map(drop)
            .map_err(|errno| failed("sealing a segment", errno))
    }

    /// Keeps `value` for as long as the bytes are mapped here. The first one counts.
    pub(crate) fn keep(&self, value: Arc<Kept>) {
        unpoisoned(&self.kept).get_or_insert(value);
    }

    /// Keeps nothing any more.
    pub(crate) fn release_kept(&self) {
        let kept = unpoisoned(&self.kept).take();
        drop(kept);
    }

    /// Ends the writing that is meant to reach others.
    pub(crate) fn close(&self) {
        self.writable.store(false, Ordering::SeqCst);
    }

    /// Copies all of `source`, of the same length; its first eight bytes come after the others.
    ///
    /// # Panics
    /// If the lengths differ.
    pub(crate) fn copy_whole(&self, source: &Self) {
        const FIRST: usize = size_of::<u64>();
        assert!(self.is_writable() && self.len() == source.len() && self.len() >= FIRST);
        // SAFETY: both ranges have the same length and are different mappings, one of them not yet
        // known to anybody else.
        unsafe {
            std::ptr::copy_nonoverlapping(
                source.as_ptr().wrapping_add(FIRST),
                self.as_mut_ptr().wrapping_add(FIRST),
                self.len() - FIRST,
            );
        }
        let first = source.load(0);
        Self::fence(Ordering::Release);
        self.store(0, first);
    }

    /// Lets [`locate`] find the bytes as those of `name`.
    pub(crate) fn register(&self, name: &SegmentName) {
        let entry = (self.len(), name.clone());
        REGISTRY
            .write()
            .unwrap_or_else(PoisonError::into_inner)
            .insert(self.address(), entry);
    }

    /// The address of the first byte.
    #[must_use]
    pub fn address(&self) -> usize {
        self.as_ptr().addr()
    }

    /// The first byte.
    #[must_use]
    pub fn as_ptr(&self) -> *const u8 {
        self.as_mut_ptr()
    }

    /// The first byte, for the one who may write.
    #[must_use]
    pub fn as_mut_ptr(&self) -> *mut u8 {
        match &*self.memory {
            Memory::Mapped(raw) => raw.as_mut_ptr(),
            Memory::Aligned(range) => range.start(),
            Memory::Shared(memory) => memory.as_ptr(),
        }
    }

    /// The length in bytes.
    #[must_use]
    pub fn len(&self) -> usize {
        match &*self.memory {
            Memory::Mapped(raw) => raw.len(),
            Memory::Aligned(range) => range.len(),
            Memory::Shared(memory) => memory.len(),
        }
    }

    /// Whether the range is empty, which no segment's is.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Whether writes are meant to reach the segment.
    #[must_use]
    pub fn is_writable(&self) -> bool {
        self.writable.load(Ordering::SeqCst)
    }

    /// The word of this number, which other processes may write.
    fn word(&self, word: usize) -> &AtomicU64 {
        assert!(
            word < self.len() / size_of::<u64>(),
            "word {word} is inside"
        );
        let place = self.as_ptr().wrapping_add(word * size_of::<u64>());
        // SAFETY: inside the range, which begins on a page and outlives the reference; while it is
        // shared this word is looked at only through atomics. Of a range that is mapped read-only
        // only relaxed loads are made, which std allows for memory that cannot be written.
        unsafe { &*place.cast() }
    }

    /// Half of the word of this number, by which threads of several processes wait for each other.
    pub(crate) fn bell(&self, word: usize) -> &AtomicU32 {
        assert!(self.is_writable(), "only who may write a range rings in it");
        let place: *const AtomicU64 = self.word(word);
        // SAFETY: the half lies in the word, is aligned, and is looked at only by atomics of its size.
        unsafe { &*place.cast() }
    }

    /// Writes `bytes` at `offset`.
    ///
    /// # Panics
    /// If they do not fit, or the mapping is read-only.
    pub(crate) fn write(&self, offset: usize, bytes: &[u8]) {
        assert!(self.is_writable() && offset + bytes.len() <= self.len());
        let target = self.as_mut_ptr().wrapping_add(offset);
        // SAFETY: inside the range, which is writable, and the source is another object.
        unsafe { std::ptr::copy_nonoverlapping(bytes.as_ptr(), target, bytes.len()) };
    }

    /// As [`write`](Self::write), past the cache if they are many.
    ///
    /// # Panics
    /// As of [`write`](Self::write).
    pub(crate) fn stream(&self, offset: usize, bytes: &[u8]) {
        assert!(self.is_writable() && offset + bytes.len() <= self.len());
        // SAFETY: as above.
        unsafe { store::copy(self.as_mut_ptr().wrapping_add(offset), bytes) };
    }

    /// Writes zeros to all of `range`.
    ///
    /// # Panics
    /// If it is not inside, or the mapping is read-only.
    pub(crate) fn zero(&self, range: Range<usize>) {
        assert!(self.is_writable() && range.start <= range.end && range.end <= self.len());
        // SAFETY: inside the range, which is writable.
        unsafe { store::zero(self.as_mut_ptr().wrapping_add(range.start), range.len()) };
    }

    /// Copies `length` bytes at `offset` out; another process may be writing them.
    ///
    /// # Panics
    /// If they are not inside.
    pub(crate) fn read(&self, offset: usize, length: usize) -> Vec<u8> {
        assert!(offset + length <= self.len());
        let mut bytes = vec![0; length];
        let source = self.as_ptr().wrapping_add(offset);
        // SAFETY: both ranges have `length` bytes. The source is no Rust object of this process; what
        // another one writes meanwhile can only make the content unexpected, which readers check.
        unsafe { std::ptr::copy_nonoverlapping(source, bytes.as_mut_ptr(), length) };
        bytes
    }

    /// All the bytes.
    ///
    /// # Safety
    /// Nobody may write to the segment while the slice lives: it is published and immutable.
    #[must_use]
    pub unsafe fn as_slice(&self) -> &[u8] {
        // SAFETY: the mapping owns the range; the caller upholds that it does not change.
        unsafe { std::slice::from_raw_parts(self.as_ptr(), self.len()) }
    }
}

impl Words for Mapping {
    fn load(&self, word: usize) -> u64 {
        self.word(word).load(Ordering::Relaxed)
    }

    fn store(&self, word: usize, value: u64) {
        assert!(self.is_writable(), "only who writes a range stores into it");
        self.word(word).store(value, Ordering::Relaxed);
    }

    fn update(&self, word: usize, change: impl Fn(u64) -> u64) -> u64 {
        assert!(self.is_writable(), "only who writes a range stores into it");
        let word = self.word(word);
        let mut before = word.load(Ordering::Relaxed);
        loop {
            let after = change(before);
            match word.compare_exchange_weak(before, after, Ordering::Relaxed, Ordering::Relaxed) {
                Ok(before) => return before,
                Err(found) => before = found,
            }
        }
    }

    fn fence(order: Ordering) {
        fence(order);
    }

    fn pause() {
        std::thread::yield_now();
    }
}

impl Drop for Mapping {
    fn drop(&mut self) {
        let elsewhere = |generation: u64| generation != os::fork_generation();
        let kept = self.kept_from_children.get_mut();
        if kept
            .unwrap_or_else(PoisonError::into_inner)
            .is_some_and(elsewhere)
        {
            // This child never had the range; what lies there now is somebody else's.
            return;
        }
        // Before the address can be used by the next mapping.
        REGISTRY
            .write()
            .unwrap_or_else(PoisonError::into_inner)
            .remove(&self.address());
        // SAFETY: nobody uses the field after this, the one drop.
        unsafe { ManuallyDrop::drop(&mut self.memory) };
    }
}

fn unpoisoned<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// The published segment that holds all of `length` bytes at `address`, the offset of the first
/// one in it, and the segment's mapped length.
#[must_use]
pub fn locate(address: usize, length: usize) -> Option<(SegmentName, usize, usize)> {
    let registry = REGISTRY.read().unwrap_or_else(PoisonError::into_inner);
    let (start, (mapped, name)) = registry.range(..=address).next_back()?;
    let offset = address - start;
    let end = offset.checked_add(length)?;
    (end <= *mapped).then(|| (name.clone(), offset, *mapped))
}
