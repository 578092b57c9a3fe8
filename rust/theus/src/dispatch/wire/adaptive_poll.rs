//! Whether the next frame is worth polling for.

use std::time::{Duration, Instant};

/// One polls for the next frame only if it should come within so many times the limit.
const PATIENCE: u32 = 2;

/// How long a worker's frames take to come, so that it polls where they come fast and sleeps
/// elsewhere.
#[derive(Debug, Clone)]
pub struct Pace {
    limit: Duration,
    expected: Duration,
}

impl Pace {
    /// Of somebody who polls for up to `limit` before it sleeps.
    #[must_use]
    pub const fn new(limit: Duration) -> Self {
        Self {
            limit,
            expected: Duration::ZERO,
        }
    }

    /// For how long the next frame is to be polled for: the limit, or not at all.
    #[must_use]
    pub fn spin(&self) -> Duration {
        if self.expected <= self.limit * PATIENCE {
            self.limit
        } else {
            Duration::ZERO
        }
    }

    /// Notes that a frame came that was waited for since then.
    pub fn note(&mut self, since: Instant) {
        // What is longer than any pace is no measure of one.
        let waited = since.elapsed().min(self.limit * PATIENCE * 4);
        self.expected = (self.expected * 3 + waited) / 4;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn frames_that_come_slowly_are_not_polled_for_and_fast_ones_are_again() {
        let limit = Duration::from_micros(50);
        let mut pace = Pace::new(limit);
        assert_eq!(pace.spin(), limit);
        let long_ago = Instant::now().checked_sub(Duration::from_secs(1)).unwrap();
        pace.note(long_ago);
        pace.note(long_ago);
        assert_eq!(pace.spin(), Duration::ZERO);
        for _ in 0..20 {
            pace.note(Instant::now());
        }
        assert_eq!(pace.spin(), limit);
    }
}
