//! Segments whose bytes are not what they claim.

use std::fs;

use theus::layout::Spec;
use theus::layout::tensor::{ElementType, Order, TensorSpec};
use theus::{Config, Error, Segment, Session};

fn spec(key: &str, items: u64) -> TensorSpec {
    TensorSpec::dense(key, ElementType::U8, &[items], Order::C).unwrap()
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
            Ok(opened) => assert!(tensor(&opened).body_bytes() <= 300),
            Err(Error::CorruptSegment { .. }) => refused += 1,
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

fn tensor(segment: &Segment) -> &TensorSpec {
    match segment.spec() {
        Spec::Tensor(spec) => spec,
        Spec::Table(spec) => panic!("{spec:?}"),
    }
}
