//! Measured durations of functions, by which tasks are called short.

use std::collections::HashMap;
use std::time::Duration;

use super::function::Function;

/// More functions than this are not kept.
const MAX_MEASURED: usize = 4096;

/// How long a call of each function takes, as far as it was measured.
#[derive(Debug, Default)]
pub(super) struct Durations(HashMap<u64, Duration>);

impl Durations {
    /// Returns how long a call of `function` takes; none if it was never measured.
    pub(super) fn get(&self, function: &Function) -> Option<Duration> {
        self.0.get(&function.hash()).copied()
    }

    /// Notes how long a task of `weight` calls ran. The estimate rises at once and falls slowly: one
    /// long run is enough to queue nothing behind the function.
    pub(super) fn note(&mut self, function: &Function, weight: u32, took: Duration) {
        let took = took / weight.max(1);
        if self.0.len() >= MAX_MEASURED && !self.0.contains_key(&function.hash()) {
            self.0.clear();
        }
        let known = self.0.entry(function.hash()).or_default();
        *known = took.max(*known / 10 * 9);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_estimate_rises_at_once_and_falls_slowly() {
        let mut durations = Durations::default();
        let function = Function::by_name("f", 0);
        assert_eq!(durations.get(&function), None);
        durations.note(&function, 2, Duration::from_millis(20));
        assert_eq!(durations.get(&function), Some(Duration::from_millis(10)));
        durations.note(&function, 1, Duration::from_millis(1));
        assert_eq!(durations.get(&function), Some(Duration::from_millis(9)));
    }
}
