//! Segments as their owner and their readers see them.

use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt};

use theus::catalog::read_catalog;
use theus::layout::tensor::{ElementType, Order, TensorSpec};
use theus::sweep::{SweepOutcome, sweep_session};
use theus::{Config, Error, Segment, Session};

fn spec(key: &str, items: u64) -> TensorSpec {
    TensorSpec::dense(key, ElementType::U8, &[items], Order::C).unwrap()
}

#[test]
fn a_segment_is_nameless_until_it_is_published() {
    let session = Session::create(Config::default()).unwrap();
    let segment = session.create_tensor(spec("x", 10_000), None).unwrap();
    assert!(matches!(segment.path(), Err(Error::Unpublished { .. })));
    assert!(!segment.name().path().exists());
    session.publish(&segment).unwrap();
    let status = fs::metadata(segment.path().unwrap()).unwrap();
    assert_eq!(status.len(), 4096 + 10_000);
    assert_eq!(status.permissions().mode() & 0o777, 0o600);
    assert!(status.blocks() * 512 >= status.len(), "space is reserved");
    session.close().unwrap();
    assert!(!segment.name().path().exists());
}

#[test]
fn a_late_write_stays_with_its_writer() {
    let session = Session::create(Config::default()).unwrap();
    let segment = session.create_tensor(spec("x", 5), Some(b"hello")).unwrap();
    let draft = segment.mapping();
    session.publish(&segment).unwrap();
    let body = draft.as_mut_ptr().wrapping_add(segment.body_offset());
    #[expect(unsafe_code, reason = "the late write is what is tested")]
    // SAFETY: the mapping is alive, and its pages are private and writable after publication.
    unsafe {
        body.write(b'J');
    }
    let file = fs::read(segment.path().unwrap()).unwrap();
    assert_eq!(&file[segment.body_offset()..], b"hello");
}

#[test]
fn hostile_files_are_errors() {
    let session = Session::create(Config::default()).unwrap();
    let segment = session.create_tensor(spec("x", 300), None).unwrap();
    session.publish(&segment).unwrap();
    let good = fs::read(segment.path().unwrap()).unwrap();
    let place = std::env::temp_dir().join(segment.name().to_string());
    let mut refused = 0;
    let used = good[..4096].iter().rposition(|byte| *byte != 0).unwrap() + 1;
    for bit in 0..used * 8 {
        let mut bad = good.clone();
        bad[bit / 8] ^= 1 << (bit % 8);
        fs::write(&place, &bad).unwrap();
        match Segment::open(&place) {
            Ok(opened) => assert!(opened.spec().body_bytes() <= 300),
            Err(Error::InvalidSegment { .. }) => refused += 1,
            Err(other) => panic!("bit {bit}: {other}"),
        }
    }
    for length in [0, 1, 7, 8, 100, 4095, 4096, good.len() - 1] {
        fs::write(&place, &good[..length]).unwrap();
        assert!(Segment::open(&place).is_err(), "{length} bytes");
    }
    fs::remove_file(&place).unwrap();
    assert!(refused > 100, "{refused} of {} flips refused", used * 8);
}

#[test]
fn the_catalog_grows_and_shows_what_was_committed() {
    let session = Session::create(Config::default()).unwrap();
    let segment = session.create_tensor(spec("x", 8), None).unwrap();
    session.publish(&segment).unwrap();
    let changes: Vec<_> = (0..1000)
        .map(|i| (format!("key {i}"), Some(segment.clone())))
        .collect();
    session.commit(7, &changes).unwrap();
    session.commit(8, &[("key 500".to_owned(), None)]).unwrap();
    let (version, entries) = read_catalog(session.id()).unwrap();
    assert_eq!((version, entries.len()), (8, 999));
    assert!(entries.iter().all(|entry| entry.segment == *segment.name()));
    assert!(entries.iter().all(|entry| entry.key != "key 500"));
}

#[test]
fn the_budget_is_kept_and_given_back() {
    let limit = Config {
        heavy_limit: Some(1 << 20),
    };
    let session = Session::create(limit).unwrap();
    let first = session.create_tensor(spec("x", 900_000), None).unwrap();
    let full = session.create_tensor(spec("y", 900_000), None).unwrap_err();
    assert!(matches!(
        full,
        Error::HeavyZoneFull {
            requested: 900_000,
            ..
        }
    ));
    drop(first);
    session.create_tensor(spec("y", 900_000), None).unwrap();
}

#[test]
fn a_living_session_is_not_swept_even_without_its_lock_file() {
    let session = Session::create(Config::default()).unwrap();
    assert_eq!(
        sweep_session(session.id()).unwrap(),
        SweepOutcome::StillAlive
    );
    let lock = session
        .id()
        .segment(0)
        .path()
        .with_file_name(session.id().lock_name());
    fs::remove_file(&lock).unwrap();
    assert_eq!(
        sweep_session(session.id()).unwrap(),
        SweepOutcome::StillAlive
    );
    let segment = session.create_tensor(spec("x", 8), None).unwrap();
    session.publish(&segment).unwrap();
    assert!(lock.exists(), "its owner puts the file back");
    session.close().unwrap();
    assert_eq!(
        sweep_session(session.id()).unwrap(),
        SweepOutcome::NothingLeft
    );
}
