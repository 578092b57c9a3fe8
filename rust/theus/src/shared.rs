//! Words that several processes read and write at once, and what may be done with them.
//!
//! The rules of this file are all that stands between processes that share such words: how they
//! are held to it is tried in every order that the memory model allows, by `make model`.

use std::sync::atomic::Ordering;

#[cfg(all(test, feature = "loom"))]
pub(crate) mod model;

/// Words by their numbers. Every access is relaxed: the only loads that memory mapped read-only
/// surely bears. [`fence`](Self::fence) orders them.
pub(crate) trait Words {
    fn load(&self, word: usize) -> u64;

    fn store(&self, word: usize, value: u64);

    /// Replaces a word by what `change` makes of it, in one step; what it was.
    fn update(&self, word: usize, change: impl Fn(u64) -> u64) -> u64;

    fn fence(order: Ordering);

    /// Lets somebody else go on.
    fn pause();
}

/// Makes `sequence` odd while `change` runs, so that nobody takes half of it for the whole. There
/// is one writer.
pub(crate) fn change<W: Words>(words: &W, sequence: usize, change: impl FnOnce()) {
    let before = words.load(sequence);
    words.store(sequence, before.wrapping_add(1));
    W::fence(Ordering::Release);
    change();
    W::fence(Ordering::Release);
    words.store(sequence, before.wrapping_add(2));
}

/// What `read` finds between two readings of `sequence` that are even and the same. Each pair that
/// is not takes one from `patience`; `None` when it is used up, as when the writer died.
pub(crate) fn read_unchanged<W: Words, T>(
    words: &W,
    sequence: usize,
    patience: &mut u32,
    read: impl Fn() -> T,
) -> Option<T> {
    loop {
        let before = words.load(sequence);
        W::fence(Ordering::Acquire);
        if before.is_multiple_of(2) {
            let found = read();
            W::fence(Ordering::Acquire);
            if words.load(sequence) == before {
                return Some(found);
            }
        }
        *patience = patience.checked_sub(1)?;
        W::pause();
    }
}

/// Writes `value` to a word that the peer reads before it writes its own, or after: of two that
/// [`tell`] and then load the other's word, at least one sees what the other wrote.
pub(crate) fn tell<W: Words>(words: &W, word: usize, value: u64) {
    W::fence(Ordering::Release);
    words.store(word, value);
    W::fence(Ordering::SeqCst);
}

/// Counters of one sum that has a limit: each is raised by its own process only.
pub(crate) struct Counters<'a, W> {
    words: &'a W,
    first: usize,
    count: usize,
}

impl<'a, W: Words> Counters<'a, W> {
    /// `count` words from `first` on; that one's process may take over what others have counted.
    pub(crate) const fn new(words: &'a W, first: usize, count: usize) -> Self {
        Self {
            words,
            first,
            count,
        }
    }

    /// The sum, or more than it while it changes: never less.
    pub(crate) fn sum(&self) -> u64 {
        let others = (1..self.count).map(|seat| self.words.load(self.first + seat));
        let others = others.fold(0, u64::saturating_add);
        // What is taken over is counted by the first before it is gone from another's.
        W::fence(Ordering::Acquire);
        others.saturating_add(self.words.load(self.first))
    }

    /// Adds to the counter in `seat`, unless the sum would then pass `limit`. Two that ask for the
    /// last at once may both be refused.
    pub(crate) fn raise(&self, seat: usize, amount: u64, limit: u64) -> bool {
        // Before anything is counted, since a sum that wraps would be small to others.
        let counted = self.words.load(self.first + seat);
        let sum = counted.checked_add(amount);
        if sum.is_none_or(|sum| sum > limit) {
            return false;
        }
        let own = self.first + seat;
        self.words
            .update(own, |counted| counted.wrapping_add(amount));
        // Of two that ask at once, at least one sees the other's.
        W::fence(Ordering::SeqCst);
        let fits = self.sum() <= limit;
        if !fits {
            self.lower(seat, amount);
        }
        fits
    }

    /// Takes from the counter in `seat` what it was raised by.
    pub(crate) fn lower(&self, seat: usize, amount: u64) {
        let own = self.first + seat;
        self.words
            .update(own, |counted| counted.wrapping_sub(amount));
    }

    /// Counts at the first seat what another one had counted, or says that it had.
    pub(crate) fn take_over(&self, seat: usize, amount: u64) {
        let other = self.first + seat;
        self.words
            .update(self.first, |counted| counted.wrapping_add(amount));
        W::fence(Ordering::Release);
        self.words
            .update(other, |counted| counted.saturating_sub(amount));
    }

    /// Forgets what a process that has died had counted.
    pub(crate) fn clear(&self, seat: usize) {
        self.words.store(self.first + seat, 0);
    }
}
