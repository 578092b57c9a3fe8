//! A slot that is written and read at once, in every order that the memory model allows.

use loom::thread;

use super::*;
use crate::shared::model::Modelled;

const WRITTEN: [(&str, u64); 2] = [("first", 1), ("second", 2)];

fn write(words: &Modelled, (key, number): (&str, u64)) {
    write_slot(words, 0, key, 10 + number, number, 100 + number);
}

/// What a reader finds while `writer` runs, which has to be one of the two entries or none.
///
/// Only without a bound for preemptions are all orders tried: with one, loom takes some that it has
/// not tried for others that it has.
fn read_during(writer: fn(&Modelled), preemptions: Option<usize>) {
    let session = SessionId::random().unwrap();
    let mut model = loom::model::Builder::new();
    model.preemption_bound = preemptions;
    model.check(move || {
        let words = Modelled::new(SLOT_WORDS);
        write(&words, WRITTEN[0]);
        let writing = {
            let words = words.clone();
            thread::spawn(move || writer(&words))
        };
        let reading = {
            let (words, session) = (words.clone(), session.clone());
            thread::spawn(move || {
                let slot = read_slot(&words, 0, &mut 1);
                let Some(entry) = slot.and_then(|slot| entry_of(&slot, &session)) else {
                    return;
                };
                let number = entry.segment.number;
                let expected = WRITTEN.iter().find(|(_, written)| *written == number);
                assert_eq!(entry.key, expected.unwrap().0);
                assert_eq!((entry.version, entry.length), (10 + number, 100 + number));
            })
        };
        writing.join().unwrap();
        reading.join().unwrap();
        assert!(
            read_slot(&words, 0, &mut 0).is_some(),
            "a finished slot can be read at once"
        );
    });
}

#[test]
fn a_slot_that_is_replaced_is_read_as_before_or_as_after() {
    read_during(|words| write(words, WRITTEN[1]), None);
}

#[test]
fn a_slot_that_is_freed_and_used_again_is_never_mixed() {
    let freed_and_used = |words: &Modelled| {
        clear_slot(words, 0);
        write(words, WRITTEN[1]);
    };
    read_during(freed_and_used, Some(3));
}
