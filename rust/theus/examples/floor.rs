//! What this machine can do at most, for the benches to hold their figures against; uses nothing of
//! this crate.
//!
//! ```sh
//! echo "copy 2" | cargo run --release --example floor -- 1073741824
//! ```
//!
//! Answers each line of its input with nanoseconds: `copy THREADS` copies that many bytes into warm
//! pages of shared memory, past the caches; `write THREADS` writes them into fresh pages.

use std::error::Error;
use std::fs::{File, OpenOptions};
use std::io::{self, BufRead};
use std::num::NonZero;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::thread;
use std::time::{Duration, Instant};

use memmap2::MmapMut;

const LINE: usize = 64;
const WRITTEN_AT_ONCE: usize = 4 << 20;

fn main() -> Result<(), Box<dyn Error>> {
    let size: usize = std::env::args().nth(1).ok_or("how many bytes?")?.parse()?;
    let source = vec![1_u8; size.next_multiple_of(LINE)];
    let mut target = None;
    for line in io::stdin().lock().lines() {
        let line = line?;
        let (what, threads) = line
            .split_once(' ')
            .ok_or("copy or write, and how many threads?")?;
        let threads: NonZero<usize> = threads.parse()?;
        let taken = match what {
            "copy" => {
                let target = match &mut target {
                    Some(target) => target,
                    none => none.insert(warm(source.len())?),
                };
                copy(&source, target, threads)
            }
            "write" => write(&source, &nameless()?, threads)?,
            _ => return Err(format!("{what} is neither copy nor write").into()),
        };
        println!("{}", taken.as_nanos());
    }
    Ok(())
}

fn nameless() -> io::Result<File> {
    let flags = libc::O_TMPFILE;
    OpenOptions::new()
        .read(true)
        .write(true)
        .mode(0o600)
        .custom_flags(flags)
        .open("/dev/shm")
}

/// Shared memory whose pages are there and mapped.
fn warm(size: usize) -> io::Result<MmapMut> {
    let file = nameless()?;
    file.set_len(size as u64)?;
    #[expect(unsafe_code, reason = "a mapping of a file")]
    // SAFETY: the file has no name, so nobody else changes or truncates it.
    let mut mapped = unsafe { MmapMut::map_mut(&file) }?;
    mapped.fill(1);
    Ok(mapped)
}

fn copy(source: &[u8], target: &mut [u8], threads: NonZero<usize>) -> Duration {
    let each = source.len().div_ceil(threads.get()).next_multiple_of(LINE);
    let start = Instant::now();
    thread::scope(|scope| {
        for (from, to) in source.chunks(each).zip(target.chunks_mut(each)) {
            scope.spawn(|| stream(from, to));
        }
    });
    start.elapsed()
}

#[cfg(target_arch = "x86_64")]
fn stream(from: &[u8], to: &mut [u8]) {
    #[expect(unsafe_code, reason = "the feature is not seen to be there")]
    // SAFETY: SSE2 is part of x86_64.
    unsafe {
        stream_words(from, to);
    }
}

/// Copies without reading what is overwritten, and without filling the caches with it.
#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "sse2")]
fn stream_words(from: &[u8], to: &mut [u8]) {
    use std::arch::x86_64::{__m128i, _mm_set_epi64x, _mm_sfence, _mm_stream_si128};
    const WORD: usize = size_of::<__m128i>();
    assert_eq!(from.len(), to.len());
    assert_eq!(from.len() % WORD, 0);
    assert_eq!(to.as_ptr().align_offset(WORD), 0);
    let half = |bytes: &[u8]| i64::from_le_bytes(bytes.try_into().expect("half a word"));
    for (from, to) in from.chunks_exact(WORD).zip(to.chunks_exact_mut(WORD)) {
        let (low, high) = from.split_at(WORD / 2);
        let word = _mm_set_epi64x(half(high), half(low));
        #[expect(unsafe_code, reason = "the store that passes the caches")]
        // SAFETY: `to` has a word's length, and is aligned: the first is, as asserted.
        unsafe {
            _mm_stream_si128(to.as_mut_ptr().cast(), word);
        }
    }
    // The stores are to be over when the clock stops.
    _mm_sfence();
}

#[cfg(not(target_arch = "x86_64"))]
fn stream(from: &[u8], to: &mut [u8]) {
    to.copy_from_slice(from);
}

fn write(source: &[u8], file: &File, threads: NonZero<usize>) -> io::Result<Duration> {
    let each = source.len().div_ceil(threads.get());
    let start = Instant::now();
    thread::scope(|scope| {
        let parts: Vec<_> = source
            .chunks(each)
            .enumerate()
            .map(|(part, bytes)| scope.spawn(move || write_part(file, part * each, bytes)))
            .collect();
        parts
            .into_iter()
            .try_for_each(|part| part.join().expect("a writer does not panic"))
    })?;
    Ok(start.elapsed())
}

fn write_part(file: &File, place: usize, bytes: &[u8]) -> io::Result<()> {
    for (number, piece) in bytes.chunks(WRITTEN_AT_ONCE).enumerate() {
        file.write_all_at(piece, (place + number * WRITTEN_AT_ONCE) as u64)?;
    }
    Ok(())
}
