//! Segments of pages that no other had before.

use std::hint::black_box;
use std::time::{Duration, Instant};

use theus::{Config, Session};

/// What a session keeps before the next one takes over.
const KEPT_BYTES: usize = 256 << 20;
const MOST_KEPT: usize = 64;

/// How long `make` takes `times` times. What it makes is kept, with all its session's: what is freed
/// would give the next one its pages.
pub(crate) fn time<T>(
    times: u64,
    bytes: usize,
    mut make: impl FnMut(&Session, &str) -> T,
) -> Duration {
    let each = (KEPT_BYTES / bytes).clamp(1, MOST_KEPT);
    let mut taken = Duration::ZERO;
    let mut left = times;
    while left > 0 {
        let session = Session::create(Config::default()).unwrap();
        let mut kept = Vec::with_capacity(each);
        while left > 0 && kept.len() < each {
            let name = kept.len().to_string();
            let start = Instant::now();
            let result = black_box(make(&session, &name));
            taken += start.elapsed();
            kept.push(result);
            left -= 1;
        }
    }
    taken
}
