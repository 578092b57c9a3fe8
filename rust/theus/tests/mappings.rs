//! More entries than a process may have mappings: what nobody looks at is unmapped, and comes back.

use std::fs;
use std::sync::{Arc, Mutex};

use arrow::array::{ArrayRef, Int64Array, RecordBatch};
use theus::layout::tensor::{ElementType, Order, TensorSpec};
use theus::mapping::locate;
use theus::{Config, Segment, Session};

/// More than are kept mapped, whatever the machine allows.
const MANY: u64 = 17_000;

/// What is kept is the process's: one test at a time.
static ALONE: Mutex<()> = Mutex::new(());

fn put(session: &Session, value: u64) -> Arc<Segment> {
    let key = value.to_string();
    let spec = TensorSpec::dense(&key, ElementType::U64, &[1], Order::C).unwrap();
    let data = value.to_ne_bytes();
    let segment = session.create_tensor(spec, Some(&data)).unwrap();
    session.publish(&segment).unwrap();
    segment
}

fn value(segment: &Segment) -> u64 {
    segment.tensor::<u64>().unwrap().as_slice().unwrap()[0]
}

fn mapped() -> usize {
    let maps = fs::read_to_string("/proc/self/maps").unwrap();
    maps.matches(" /dev/shm/").count()
}

fn is_mapped_at(address: usize, segment: &Segment) -> bool {
    locate(address, 1).is_some_and(|(name, ..)| &name == segment.name())
}

fn crowd(session: &Session) -> Vec<Arc<Segment>> {
    (0..MANY).map(|value| put(session, value)).collect()
}

#[test]
fn entries_that_nobody_looks_at_are_unmapped_and_found_again() {
    let _alone = ALONE.lock();
    let session = Session::create(Config::default()).unwrap();
    let before = mapped();
    let (viewed, left) = (put(&session, MANY), put(&session, MANY));
    let promised = Segment::find_promised(left.name()).unwrap();
    let view = viewed.mapping().unwrap();
    let places = [&left, &promised].map(|segment| segment.mapping().unwrap().address());
    let others = crowd(&session);
    let kept = mapped() - before;
    assert!((1_000..=16_400).contains(&kept), "{kept} of {MANY}");

    let again = viewed.mapping().unwrap();
    assert_eq!(again.address(), view.address(), "it has one mapping");
    let there = places.iter().filter(|place| is_mapped_at(**place, &left));
    assert_eq!(there.count(), 0, "they were looked at longest ago");
    for segment in [&left, &promised] {
        assert_eq!(value(segment), MANY);
        let place = segment.mapping().unwrap().address();
        assert!(is_mapped_at(place, segment));
    }
    for (expected, segment) in (0..).zip(&others) {
        assert_eq!(value(segment), expected);
    }
    assert!(mapped() - before <= kept + 1, "looking takes no more");
    drop((viewed, view, again, left, promised, others));
    assert_eq!(mapped(), before);
}

#[test]
fn what_is_held_stays_readable_when_names_go() {
    let _alone = ALONE.lock();
    let session = Session::create(Config::default()).unwrap();
    let column: ArrayRef = Arc::new(Int64Array::from(vec![7, 8]));
    let batch = RecordBatch::try_from_iter([("n", column)]).unwrap();
    let table = session
        .put("table", batch.schema(), [Ok(batch.clone())])
        .unwrap();
    let segment = put(&session, MANY);
    let attached = Session::attach(session.id().clone()).unwrap();
    let opened = attached.get("table").unwrap();
    let mut others = crowd(&session);
    session.close().unwrap();
    others.truncate(3);
    assert_eq!(value(&segment), MANY);
    assert_eq!(value(&others[0]), 0);
    for table in [table, opened] {
        assert_eq!(table.batches().unwrap(), std::slice::from_ref(&batch));
    }
}
