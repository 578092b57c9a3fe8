//! Copying large pieces with several threads.

use std::ops::Range;

use rayon::prelude::*;

use crate::error::Result;
use crate::os;

/// How much is copied at a time.
pub(crate) const CHUNK_BYTES: usize = 4 << 20;

/// Takes bytes and the place for them.
pub(crate) type Sink<'a> = dyn Fn(usize, &[u8]) -> Result<()> + Sync + 'a;

/// Bytes to be copied that may only come to be while they are.
pub(crate) trait Source: Send + Sync {
    /// How many there are.
    fn length(&self) -> usize;

    /// Parts that may be written independently, in the source's own units.
    fn parts(&self) -> Vec<Range<usize>>;

    /// Writes one of the parts; `sink` takes places from the source's first byte on.
    fn write(&self, part: Range<usize>, sink: &Sink<'_>) -> Result<()>;
}

impl Source for [u8] {
    fn length(&self) -> usize {
        self.len()
    }

    fn parts(&self) -> Vec<Range<usize>> {
        parts_of(self.len(), CHUNK_BYTES)
    }

    fn write(&self, part: Range<usize>, sink: &Sink<'_>) -> Result<()> {
        sink(part.start, &self[part])
    }
}

/// Ranges of up to `step` that cover `length`.
pub(crate) fn parts_of(length: usize, step: usize) -> Vec<Range<usize>> {
    let starts = (0..length).step_by(step);
    starts
        .map(|start| start..length.min(start + step))
        .collect()
}

/// What of `whole` none of `pieces` covers, in parts of up to [`CHUNK_BYTES`].
pub(crate) fn gaps<S: Source + ?Sized>(
    whole: Range<usize>,
    pieces: &[(usize, &S)],
) -> Vec<Range<usize>> {
    let mut covered: Vec<_> = pieces
        .iter()
        .map(|&(place, source)| place..place + source.length())
        .collect();
    covered.push(whole.end..whole.end);
    covered.sort_by_key(|range| range.start);
    let mut gaps = Vec::new();
    let mut end = whole.start;
    for range in covered {
        let gap = parts_of(range.start.saturating_sub(end), CHUNK_BYTES);
        gaps.extend(gap.into_iter().map(|part| end + part.start..end + part.end));
        end = end.max(range.end);
    }
    gaps
}

/// Does `work` for all `parts`, from several threads where there are such.
pub(crate) fn each_in_parallel<T: Sync>(
    parts: &[T],
    work: impl Fn(&T) -> Result<()> + Sync + Send,
) -> Result<()> {
    // A forked child has none of rayon's threads, and would wait for them: there this one does all.
    if parts.len() <= 1 || os::fork_generation() > 0 {
        return parts.iter().try_for_each(work);
    }
    parts.par_iter().try_for_each(work)
}

/// Copies each of `pieces` to its place, from several threads.
pub(crate) fn in_parallel<S: Source + ?Sized>(
    pieces: &[(usize, &S)],
    sink: &Sink<'_>,
) -> Result<()> {
    let parts: Vec<_> = pieces
        .iter()
        .flat_map(|&(place, source)| {
            let parts = source.parts().into_iter();
            parts.map(move |part| (place, source, part))
        })
        .collect();
    each_in_parallel(&parts, |(place, source, part)| {
        let placed = |offset: usize, bytes: &[u8]| sink(place + offset, bytes);
        source.write(part.clone(), &placed)
    })
}
