//! The keys that the last versions of a state changed.
//!
//! A worker that holds one version is told another one by their difference. The log goes back as far
//! as telling the difference costs less than telling everything.

use std::collections::VecDeque;
use std::sync::Arc;

/// Fewer changes than this are always kept.
const LEAST: usize = 1024;

/// The keys of entries and of the domain that one version changed.
#[derive(Debug, Clone, Default)]
pub(super) struct Changed {
    pub(super) entries: Vec<Arc<str>>,
    pub(super) domain: Vec<Arc<str>>,
}

impl Changed {
    fn length(&self) -> usize {
        1 + self.entries.len() + self.domain.len()
    }
}

/// The changes of the last versions, one after the other.
#[derive(Debug, Default)]
pub(super) struct ChangeLog {
    /// The first version in `steps`.
    first: u64,
    steps: VecDeque<Changed>,
    length: usize,
}

impl ChangeLog {
    /// Notes what `version` changed, which follows the last one; it has `everything` keys.
    pub(super) fn note(&mut self, version: u64, changed: Changed, everything: usize) {
        if self.first + self.steps.len() as u64 != version {
            // Somebody made two versions of one: the log of the newer begins here.
            self.steps.clear();
            self.length = 0;
        }
        if self.steps.is_empty() {
            self.first = version;
        }
        self.length += changed.length();
        self.steps.push_back(changed);
        while self.length > everything.max(LEAST)
            && let Some(oldest) = self.steps.pop_front()
        {
            self.first += 1;
            self.length -= oldest.length();
        }
    }

    /// The steps between two versions, or none if the log does not go back so far.
    pub(super) fn between(&self, one: u64, other: u64) -> Option<Vec<&Changed>> {
        let (low, high) = (one.min(other), one.max(other));
        let start = usize::try_from((low + 1).checked_sub(self.first)?).ok()?;
        let end = usize::try_from((high + 1).checked_sub(self.first)?).ok()?;
        (end <= self.steps.len()).then(|| self.steps.range(start..end).collect())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn changed(keys: &[&str]) -> Changed {
        Changed {
            entries: keys.iter().map(|&key| key.into()).collect(),
            domain: Vec::new(),
        }
    }

    #[test]
    fn the_steps_between_two_versions_are_those_of_the_newer() {
        let mut log = ChangeLog::default();
        for version in 1..=5 {
            log.note(version, changed(&[&format!("k{version}")]), 5);
        }
        let keys = |one, other| {
            let steps = log.between(one, other)?;
            Some(
                steps
                    .iter()
                    .map(|step| step.entries[0].to_string())
                    .collect::<Vec<_>>(),
            )
        };
        assert_eq!(keys(2, 4).unwrap(), ["k3", "k4"]);
        assert_eq!(keys(4, 2), keys(2, 4));
        assert_eq!(keys(0, 1).unwrap(), ["k1"]);
        assert_eq!(keys(3, 3).unwrap(), Vec::<String>::new());
        assert_eq!(keys(3, 9), None);
    }

    #[test]
    fn it_goes_back_no_further_than_it_pays() {
        let mut log = ChangeLog::default();
        for version in 1..=10_000 {
            log.note(version, changed(&["k"]), 2);
        }
        assert!(log.between(1, 10_000).is_none());
        assert!(log.between(9_900, 10_000).is_some());
        assert!(log.steps.len() <= LEAST);
    }
}
