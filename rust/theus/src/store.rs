//! Writing large pieces past the cache: who reads them is another core, and later.

#![expect(unsafe_code, reason = "bytes are written to raw memory")]

/// From which size on the stores do not go through the cache.
const STREAMED_BYTES: usize = 256 << 10;

/// Copies `source` to `target`.
///
/// # Safety
/// `target` has as many writable bytes, and they are not `source`'s.
pub(crate) unsafe fn copy(target: *mut u8, source: &[u8]) {
    if source.len() < STREAMED_BYTES {
        // SAFETY: the caller's promise.
        unsafe { std::ptr::copy_nonoverlapping(source.as_ptr(), target, source.len()) };
        return;
    }
    // SAFETY: the caller's promise.
    unsafe { streamed::copy(target, source) };
}

/// Writes `length` zeros to `target`.
///
/// # Safety
/// `target` has as many writable bytes.
pub(crate) unsafe fn zero(target: *mut u8, length: usize) {
    // The C library streams what is large by itself, as nothing has to be read.
    // SAFETY: the caller's promise.
    unsafe { target.write_bytes(0, length) };
}

#[cfg(target_arch = "x86_64")]
mod streamed {
    use std::arch::x86_64::{__m128i, _mm_loadu_si128, _mm_sfence, _mm_stream_si128};

    const LANE: usize = size_of::<__m128i>();
    const LINE: usize = 4 * LANE;

    /// # Safety
    /// As of [`super::copy`].
    pub(super) unsafe fn copy(target: *mut u8, source: &[u8]) {
        // Streaming stores are to aligned places; they fill a line at a time.
        let (first, rest) = source.split_at(target.align_offset(LINE).min(source.len()));
        let (lines, last) = rest.split_at(rest.len() - rest.len() % LINE);
        let mut to = target.wrapping_add(first.len());
        // SAFETY: the parts lie side by side in the caller's range.
        unsafe { std::ptr::copy_nonoverlapping(first.as_ptr(), target, first.len()) };
        for lane in lines.chunks_exact(LANE) {
            // SAFETY: a lane may be read from anywhere; SSE2 is part of this architecture.
            let value = unsafe { _mm_loadu_si128(lane.as_ptr().cast()) };
            // SAFETY: the place is aligned and in the caller's range.
            unsafe { _mm_stream_si128(to.cast(), value) };
            to = to.wrapping_add(LANE);
        }
        // SAFETY: SSE is part of this architecture. The bytes are there before anything tells others so.
        unsafe { _mm_sfence() };
        // SAFETY: as of the first part.
        unsafe { std::ptr::copy_nonoverlapping(last.as_ptr(), to, last.len()) };
    }
}

#[cfg(not(target_arch = "x86_64"))]
mod streamed {
    /// # Safety
    /// As of [`super::copy`].
    pub(super) unsafe fn copy(target: *mut u8, source: &[u8]) {
        // SAFETY: the caller's promise.
        unsafe { std::ptr::copy_nonoverlapping(source.as_ptr(), target, source.len()) };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_streamed_copy_is_the_source_at_any_alignment() {
        let source: Vec<u8> = (0..=250).cycle().take(STREAMED_BYTES + 200).collect();
        for (start, length) in [
            (0, STREAMED_BYTES),
            (1, STREAMED_BYTES + 99),
            (63, source.len()),
        ] {
            let mut target = vec![255; start + length + 64];
            let place = target[start..].as_mut_ptr();
            // SAFETY: the target has room for so many bytes from there on.
            unsafe { copy(place, &source[..length]) };
            assert_eq!(target[start..start + length], source[..length]);
            assert!(target[..start].iter().all(|&byte| byte == 255));
            assert!(target[start + length..].iter().all(|&byte| byte == 255));
        }
    }
}
