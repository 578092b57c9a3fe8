//! Ranges that begin where a large page may: only there does one entry of the page table map it.

#![expect(unsafe_code, reason = "a mapping is raw memory")]

use std::ffi::c_void;
use std::io;
use std::os::fd::AsFd;
use std::ptr::null_mut;

use rustix::mm::{MapFlags, MremapFlags, ProtFlags, mmap, mmap_anonymous, mremap_fixed, munmap};

/// The size of a small page, wherever large ones have two mebibytes.
const PAGE_BYTES: usize = 4096;

/// An address range that begins at a multiple of the size of a large page.
#[derive(Debug)]
pub(super) struct Aligned {
    start: *mut c_void,
    length: usize,
    alignment: usize,
}

// SAFETY: it is an address range, which any thread may use and unmap; it has no interior state.
unsafe impl Send for Aligned {}
// SAFETY: as above; what lies in the range is reached by raw pointers only.
unsafe impl Sync for Aligned {}

impl Aligned {
    /// Maps `length` bytes of `file`.
    pub(super) fn map(
        file: &impl AsFd,
        length: usize,
        access: ProtFlags,
        flags: MapFlags,
        alignment: usize,
    ) -> io::Result<Self> {
        let room = Self::reserve(length, alignment)?;
        let flags = flags | MapFlags::FIXED;
        // SAFETY: the range is our own, has just been reserved, and nobody knows it.
        unsafe { mmap(room.start, length, access, flags, file, 0) }?;
        Ok(room)
    }

    /// A range of this length that nothing else will get, and nobody may use.
    fn reserve(length: usize, alignment: usize) -> io::Result<Self> {
        let whole = length.checked_next_multiple_of(alignment);
        let whole = whole.and_then(|whole| whole.checked_add(alignment));
        let whole = whole.ok_or(io::ErrorKind::OutOfMemory)?;
        let flags = MapFlags::PRIVATE | MapFlags::NORESERVE;
        // SAFETY: without an address to map at, nothing that exists is touched.
        let start = unsafe { mmap_anonymous(null_mut(), whole, ProtFlags::empty(), flags) }?;
        let before = start.addr().next_multiple_of(alignment) - start.addr();
        let room = Self {
            start: start.wrapping_byte_add(before),
            length,
            alignment,
        };
        let end = before + length.next_multiple_of(PAGE_BYTES);
        for (from, bytes) in [(0, before), (end, whole - end)] {
            if bytes > 0 {
                // SAFETY: a part of what has just been mapped, on either side of what is kept.
                unsafe { munmap(start.wrapping_byte_add(from), bytes) }?;
            }
        }
        Ok(room)
    }

    /// Gives it another length, and perhaps another place; the pages stay.
    pub(super) fn resize(&mut self, length: usize) -> io::Result<()> {
        let room = Self::reserve(length, self.alignment)?;
        // SAFETY: both ranges are our own; who has this one mutably has all the pointers to it.
        let moved = unsafe {
            mremap_fixed(
                self.start,
                self.length,
                length,
                MremapFlags::MAYMOVE,
                room.start,
            )
        };
        let place = room.start;
        // A call that fails may have unmapped it, so that it is somebody else's by now.
        std::mem::forget(room);
        moved?;
        self.start = place;
        self.length = length;
        Ok(())
    }

    pub(super) fn start(&self) -> *mut u8 {
        self.start.cast()
    }

    pub(super) fn len(&self) -> usize {
        self.length
    }
}

impl Drop for Aligned {
    fn drop(&mut self) {
        // SAFETY: the range is our own, and nobody uses it after this.
        let _ = unsafe { munmap(self.start, self.length) };
    }
}

#[cfg(test)]
mod tests {
    use std::fs::File;

    use super::*;
    use crate::os;

    const ALIGNMENT: usize = 2 << 20;

    fn file(bytes: &[u8]) -> File {
        let file = File::from(os::create_nameless(os::DIRECTORY.as_ref()).unwrap());
        os::write_at(&file, bytes, 0).unwrap();
        file
    }

    fn last(range: &Aligned) -> u8 {
        // SAFETY: inside the range, which is mapped readable.
        unsafe { range.start().wrapping_add(range.len() - 1).read() }
    }

    #[test]
    fn it_begins_at_a_large_page_whatever_its_length() {
        let access = ProtFlags::READ | ProtFlags::WRITE;
        for length in [1, 4096, ALIGNMENT - 1, ALIGNMENT, 3 * ALIGNMENT + 5000] {
            let mut bytes = vec![1; length + ALIGNMENT];
            bytes[length - 1] = 2;
            bytes[length + ALIGNMENT - 1] = 3;
            let file = file(&bytes);
            let mut range =
                Aligned::map(&file, length, access, MapFlags::SHARED, ALIGNMENT).unwrap();
            assert_eq!((range.start().addr() % ALIGNMENT, range.len()), (0, length));
            assert_eq!(last(&range), 2);
            range.resize(length + ALIGNMENT).unwrap();
            assert_eq!(range.start().addr() % ALIGNMENT, 0);
            assert_eq!(last(&range), 3);
            range.resize(length).unwrap();
            assert_eq!(range.start().addr() % ALIGNMENT, 0);
            assert_eq!(last(&range), 2);
        }
        assert!(Aligned::reserve(usize::MAX, ALIGNMENT).is_err());
    }
}
