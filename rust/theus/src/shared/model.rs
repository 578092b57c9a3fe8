//! What threads do to shared words, in every order that the memory model allows.

use loom::sync::Arc;
use loom::sync::atomic::{AtomicU64, fence};
use loom::thread;

use super::*;

/// Words whose every possible value is tried. A clone shows the same ones.
#[derive(Clone)]
pub(crate) struct Modelled(Arc<Vec<AtomicU64>>);

impl Modelled {
    pub(crate) fn new(count: usize) -> Self {
        Self(Arc::new((0..count).map(|_| AtomicU64::new(0)).collect()))
    }
}

impl Words for Modelled {
    fn load(&self, word: usize) -> u64 {
        self.0[word].load(Ordering::Relaxed)
    }

    fn store(&self, word: usize, value: u64) {
        self.0[word].store(value, Ordering::Relaxed);
    }

    fn update(&self, word: usize, change: impl Fn(u64) -> u64) -> u64 {
        let change = |before| Some(change(before));
        let updated = self.0[word].fetch_update(Ordering::Relaxed, Ordering::Relaxed, change);
        updated.unwrap_or_else(|before| before)
    }

    fn fence(order: Ordering) {
        fence(order);
    }

    fn pause() {
        thread::yield_now();
    }
}

/// Runs `threads` over `count` words in every order, then `after`.
fn all_orders(
    count: usize,
    threads: &'static [fn(&Modelled)],
    after: impl Fn(&Modelled) + Send + Sync + 'static,
) {
    let model = loom::model::Builder::new();
    model.check(move || {
        let words = Modelled::new(count);
        let threads = threads.iter().map(|&run| {
            let words = words.clone();
            thread::spawn(move || run(&words))
        });
        for thread in threads.collect::<Vec<_>>() {
            thread.join().unwrap();
        }
        after(&words);
    });
}

// The word after the counters says what was granted, for the models themselves.
const SEATS: usize = 3;
const GRANTED: usize = SEATS;
const LIMIT: u64 = 10;

fn counters(words: &Modelled) -> Counters<'_, Modelled> {
    Counters::new(words, 0, SEATS)
}

/// What somebody who was granted an amount may check: that all grants together are inside the limit.
fn granted(words: &Modelled, amount: u64) {
    let before = words.0[GRANTED].fetch_add(amount, Ordering::SeqCst);
    assert!(
        before + amount <= LIMIT,
        "{before} and {amount} were granted"
    );
}

fn returned(words: &Modelled, amount: u64) {
    words.0[GRANTED].fetch_sub(amount, Ordering::SeqCst);
}

fn raise(words: &Modelled, seat: usize, amount: u64) -> bool {
    let fits = counters(words).raise(seat, amount, LIMIT);
    if fits {
        granted(words, amount);
    }
    fits
}

#[test]
fn two_that_raise_at_once_never_pass_the_limit() {
    fn one<const SEAT: usize>(words: &Modelled) {
        if raise(words, SEAT, 6) {
            returned(words, 6);
            counters(words).lower(SEAT, 6);
        }
    }
    all_orders(SEATS + 1, &[one::<1>, one::<2>], |words| {
        assert_eq!(counters(words).sum(), 0);
    });
}

#[test]
fn what_is_taken_over_is_counted_all_the_while() {
    fn asks(words: &Modelled) {
        assert!(!raise(words, 2, 5), "6 of 10 had been counted before");
    }
    let model = loom::model::Builder::new();
    model.check(|| {
        let words = Modelled::new(SEATS + 1);
        assert!(raise(&words, 1, 6));
        let asking = {
            let words = words.clone();
            thread::spawn(move || asks(&words))
        };
        counters(&words).take_over(1, 6);
        asking.join().unwrap();
        assert_eq!((words.load(0), words.load(1), words.load(2)), (6, 0, 0));
    });
}

#[test]
fn what_the_dead_had_is_free_and_nothing_else() {
    fn buries(words: &Modelled) {
        counters(words).clear(1);
    }
    fn asks(words: &Modelled) {
        let _ = counters(words).raise(2, 6, LIMIT);
    }
    let model = loom::model::Builder::new();
    model.check(|| {
        let words = Modelled::new(SEATS + 1);
        assert!(counters(&words).raise(1, 6, LIMIT));
        let threads = [buries as fn(&Modelled), asks].map(|run| {
            let words = words.clone();
            thread::spawn(move || run(&words))
        });
        for thread in threads {
            thread.join().unwrap();
        }
        let (first, dead, asked) = (words.load(0), words.load(1), words.load(2));
        assert!((first, dead) == (0, 0) && [0, 6].contains(&asked));
        assert_eq!(counters(&words).sum(), asked);
        assert!(counters(&words).raise(0, LIMIT - asked, LIMIT));
    });
}

#[test]
fn of_two_that_tell_at_least_one_sees_the_other() {
    // The last two words: what each of them saw.
    fn owner(words: &Modelled) {
        tell(words, 1, 7);
        words.store(2, words.load(0));
    }
    fn worker(words: &Modelled) {
        tell(words, 0, 7);
        words.store(3, words.load(1));
    }
    all_orders(4, &[owner, worker], |words| {
        assert!(
            [words.load(2), words.load(3)].contains(&7),
            "task 7 was lost"
        );
    });
}
