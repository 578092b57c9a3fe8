//! Moments at which something is due, the earliest first.
//!
//! A timeout is a deadline in a heap, so that no number of the caller's reaches a system call.

use std::cmp::Reverse;
use std::collections::BinaryHeap;
use std::sync::Weak;
use std::time::{Duration, Instant};

use super::completion::Completion;
use super::program::ProgramId;
use super::worker_process::WorkerKey;

/// As good as never, and no clock overflows by it.
const FAR: Duration = Duration::from_secs(10 * 365 * 24 * 3600);

/// Returns the moment in which `delay` is over, at most ten years from now.
pub(super) fn after(delay: Duration) -> Instant {
    Instant::now() + delay.min(FAR)
}

/// The action that is due.
#[derive(Debug)]
pub(super) enum Due {
    /// A task fails with a timeout unless it has ended. It is not kept: its outcome refers to objects
    /// of the caller, and the heap lies under the lock.
    Timeout {
        completion: Weak<Completion>,
        program: ProgramId,
        name: String,
        timeout: Duration,
    },
    /// A worker is killed that still runs the task of this number.
    Kill(WorkerKey, u64),
    /// A worker is killed whose own deadline has passed.
    Worker(WorkerKey),
    /// Tasks are taken back from a worker that still runs the task of this number.
    Recall(WorkerKey, u64),
    /// A program may start workers again.
    Assign(ProgramId),
}

struct Entry {
    moment: Instant,
    order: u64,
    due: Due,
}

impl PartialEq for Entry {
    fn eq(&self, other: &Self) -> bool {
        (self.moment, self.order) == (other.moment, other.order)
    }
}

impl Eq for Entry {}

impl PartialOrd for Entry {
    fn partial_cmp(&self, other: &Self) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for Entry {
    fn cmp(&self, other: &Self) -> std::cmp::Ordering {
        (self.moment, self.order).cmp(&(other.moment, other.order))
    }
}

/// The heap of deadlines.
#[derive(Default)]
pub(super) struct Deadlines {
    heap: BinaryHeap<Reverse<Entry>>,
    order: u64,
    /// From this length on those of tasks that nobody has any more are removed: most end long before
    /// their timeout.
    compact_at: usize,
}

impl Deadlines {
    pub(super) fn push(&mut self, moment: Instant, due: Due) {
        if self.heap.len() >= self.compact_at.max(64) {
            self.heap.retain(|Reverse(entry)| match &entry.due {
                Due::Timeout { completion, .. } => completion.strong_count() > 0,
                _ => true,
            });
            self.compact_at = 2 * self.heap.len();
        }
        self.order += 1;
        self.heap.push(Reverse(Entry {
            moment,
            order: self.order,
            due,
        }));
    }

    /// Returns when the first one is due.
    pub(super) fn next(&self) -> Option<Instant> {
        self.heap.peek().map(|Reverse(entry)| entry.moment)
    }

    /// Takes one that is due at `now`.
    pub(super) fn take(&mut self, now: Instant) -> Option<Due> {
        if self.next()? > now {
            return None;
        }
        self.heap.pop().map(|Reverse(entry)| entry.due)
    }

    pub(super) fn clear(&mut self) {
        self.heap.clear();
    }
}

#[cfg(all(test, not(feature = "loom")))]
mod tests {
    use std::sync::Arc;

    use super::super::completion::Outcome;
    use super::*;

    fn timeout(completion: &Arc<Completion>) -> Due {
        Due::Timeout {
            completion: Arc::downgrade(completion),
            program: ProgramId(0),
            name: String::new(),
            timeout: Duration::ZERO,
        }
    }

    #[test]
    fn the_earliest_comes_first_and_none_before_its_moment() {
        let mut deadlines = Deadlines::default();
        let now = Instant::now();
        for seconds in [3, 1, 2] {
            deadlines.push(
                now + Duration::from_secs(seconds),
                Due::Assign(ProgramId(0)),
            );
        }
        assert_eq!(deadlines.next(), Some(now + Duration::from_secs(1)));
        assert!(deadlines.take(now).is_none());
        let later = now + Duration::from_secs(2);
        assert!(deadlines.take(later).is_some() && deadlines.take(later).is_some());
        assert!(deadlines.take(later).is_none());
    }

    #[test]
    fn those_of_ended_tasks_do_not_pile_up() {
        let mut deadlines = Deadlines::default();
        for _ in 0..10_000 {
            let completion = Arc::new(Completion::default());
            deadlines.push(after(Duration::MAX), timeout(&completion));
            completion.finish(Outcome::Cancelled, None);
        }
        assert!(deadlines.heap.len() < 200, "{}", deadlines.heap.len());
    }
}
