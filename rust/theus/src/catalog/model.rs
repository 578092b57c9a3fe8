//! A slot that is written and read at once, in every order that the memory model allows.

use loom::thread;

use super::*;
use crate::shared::model::Modelled;

const WRITTEN: [(&str, u64); 2] = [("first", 1), ("second", 2)];

fn write(words: &Modelled, (key, number): (&str, u64)) {
    write_slot(words, 0, key, 10 + number, number, 100 + number);
}

/// What a reader finds while `writer` runs, which has to be one of the two entries or none.
fn read_during(writer: fn(&Modelled)) {
    let session = SessionId::random().unwrap();
    let mut model = loom::model::Builder::new();
    model.preemption_bound = Some(2);
    model.check(move || {
        let words = Modelled::new(SLOT_WORDS);
        write(&words, WRITTEN[0]);
        let writing = {
            let words = words.clone();
            thread::spawn(move || writer(&words))
        };
        let slot = read_slot(&words, 0, &mut 1);
        if let Some(entry) = slot.and_then(|slot| entry_of(&slot, &session)) {
            let number = entry.segment.number;
            let expected = WRITTEN.iter().find(|(_, written)| *written == number);
            assert_eq!(entry.key, expected.unwrap().0);
            assert_eq!((entry.version, entry.length), (10 + number, 100 + number));
        }
        writing.join().unwrap();
        assert!(
            read_slot(&words, 0, &mut 0).is_some(),
            "a finished slot can be read at once"
        );
    });
}

#[test]
fn a_slot_that_is_replaced_is_read_as_before_or_as_after() {
    read_during(|words| write(words, WRITTEN[1]));
}

#[test]
fn a_slot_that_is_freed_and_used_again_is_never_mixed() {
    read_during(|words| {
        clear_slot(words, 0);
        write(words, WRITTEN[1]);
    });
}
