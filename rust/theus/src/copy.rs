//! Copying large pieces with several threads.

use rayon::prelude::*;

use crate::error::Result;
use crate::os;

const CHUNK_BYTES: usize = 4 << 20;

/// Calls `write` with the place and the bytes of each chunk of `pieces`, from several threads.
///
/// A forked child has none of rayon's threads, and would wait for them: there this thread does all.
pub(crate) fn in_parallel(
    pieces: &[(usize, &[u8])],
    write: impl Fn(usize, &[u8]) -> Result<()> + Sync,
) -> Result<()> {
    let chunks: Vec<_> = pieces
        .iter()
        .flat_map(|(offset, bytes)| {
            let starts = (*offset..).step_by(CHUNK_BYTES);
            starts.zip(bytes.chunks(CHUNK_BYTES))
        })
        .collect();
    if chunks.len() == 1 || os::fork_generation() > 0 {
        return chunks
            .into_iter()
            .try_for_each(|(offset, bytes)| write(offset, bytes));
    }
    chunks
        .par_iter()
        .try_for_each(|(offset, bytes)| write(*offset, bytes))
}
