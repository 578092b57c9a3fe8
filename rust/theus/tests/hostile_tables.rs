//! IPC files whose bytes are not what they claim: an error that says where, and nothing worse.

use std::fs;
use std::path::PathBuf;
use std::sync::Arc;

use arrow::array::{
    Array, ArrayRef, BinaryViewArray, BooleanArray, Decimal128Array, Decimal256Array,
    DictionaryArray, FixedSizeListArray, Float64Array, Int32Array, Int64Array, LargeListArray,
    LargeStringArray, ListArray, ListViewArray, MapArray, NullArray, RecordBatch, RunArray,
    StringArray, StringViewArray, StructArray, UnionArray,
};
use arrow::buffer::{Buffer, NullBuffer, OffsetBuffer, ScalarBuffer};
use arrow::datatypes::{DataType, Field, Fields, Int8Type, Int32Type, Schema, UnionFields, i256};
use theus::layout::table;
use theus::{Config, Error, Segment, Session};

/// Which share of the bits is flipped: one in so many, a prime so that all places in a byte come up.
fn step() -> usize {
    let step = std::env::var("THEUS_BIT_STEP");
    step.map_or(13, |step| step.parse().unwrap())
}

fn field(name: &str, array: &dyn Array) -> Arc<Field> {
    Arc::new(Field::new(name, array.data_type().clone(), true))
}

#[expect(clippy::too_many_lines, reason = "an array of every kind")]
fn columns() -> Vec<(&'static str, ArrayRef)> {
    let ints: Int64Array = (0..6).map(|n| (n != 2).then_some(n)).collect();
    let texts = StringArray::from(vec![
        Some("a"),
        None,
        Some("ccc"),
        Some(""),
        Some("e"),
        Some("f"),
    ]);
    let long = "a text that does not fit into a view";
    let views = (0..6).map(|n| (n != 4).then_some(long));
    let views: StringViewArray = views.collect();
    let codes: DictionaryArray<Int8Type> = ["x", "y", "x", "z", "x", "y"].into_iter().collect();
    let offsets = || OffsetBuffer::from_lengths([2, 0, 1, 1, 2, 0]);
    let nulls = || Some(NullBuffer::from(vec![true, true, false, true, true, true]));
    let items: ArrayRef = Arc::new(ints.clone());
    let runs = RunArray::<Int32Type>::try_new(
        &Int32Array::from(vec![2, 5, 6]),
        &StringArray::from(vec![Some("r"), None, Some("s")]),
    );
    let pair = StructArray::from(vec![
        (
            Arc::new(Field::new("keys", DataType::Utf8, false)),
            Arc::new(StringArray::from_iter_values([
                "a", "b", "c", "d", "e", "f",
            ])) as ArrayRef,
        ),
        (field("values", &codes), Arc::new(codes.clone()) as ArrayRef),
    ]);
    let union_fields = UnionFields::from_fields([
        Field::new("i", DataType::Int64, true),
        Field::new("s", DataType::Utf8, true),
    ]);
    let ids = || ScalarBuffer::from(vec![0_i8, 1, 0, 1, 0, 1]);
    let children = || {
        vec![
            Arc::new(ints.clone()) as ArrayRef,
            Arc::new(texts.clone()) as ArrayRef,
        ]
    };
    let dense = UnionArray::try_new(
        union_fields.clone(),
        ids(),
        Some(vec![0, 0, 1, 1, 2, 2].into()),
        children(),
    );
    let entries = field("entries", &pair)
        .as_ref()
        .clone()
        .with_nullable(false);
    vec![
        ("null", Arc::new(NullArray::new(6))),
        (
            "bool",
            Arc::new(BooleanArray::from(vec![
                true, false, true, true, false, false,
            ])),
        ),
        ("int", items.clone()),
        (
            "double",
            Arc::new(Float64Array::from_iter_values((0..6).map(f64::from))),
        ),
        ("decimal", Arc::new(Decimal128Array::from_iter_values(0..6))),
        (
            "wide",
            Arc::new(Decimal256Array::from_iter_values(
                (0..6).map(i256::from_i128),
            )),
        ),
        ("text", Arc::new(texts.clone())),
        (
            "large text",
            Arc::new(LargeStringArray::from_iter_values([
                "1", "22", "", "4", "5", "6",
            ])),
        ),
        ("views", Arc::new(views)),
        (
            "binary views",
            Arc::new(BinaryViewArray::from_iter_values([long.as_bytes(); 6])),
        ),
        ("codes", Arc::new(codes)),
        (
            "list",
            Arc::new(ListArray::new(
                field("item", &items),
                offsets(),
                items.clone(),
                nulls(),
            )),
        ),
        (
            "large list",
            Arc::new(LargeListArray::new(
                field("item", &texts),
                OffsetBuffer::from_lengths([1; 6]),
                Arc::new(texts.clone()),
                None,
            )),
        ),
        (
            "list view",
            Arc::new(ListViewArray::new(
                field("item", &items),
                vec![0, 2, 4, 1, 0, 0].into(),
                vec![1, 2, 2, 0, 3, 6].into(),
                items.clone(),
                nulls(),
            )),
        ),
        (
            "fixed",
            Arc::new(FixedSizeListArray::new(
                field("item", &texts),
                1,
                Arc::new(texts.clone()),
                nulls(),
            )),
        ),
        (
            "struct",
            Arc::new(StructArray::new(
                Fields::from(vec![field("a", &items), field("b", &texts)]),
                children(),
                nulls(),
            )),
        ),
        (
            "map",
            Arc::new(MapArray::new(
                Arc::new(entries),
                offsets(),
                pair,
                nulls(),
                false,
            )),
        ),
        ("dense", Arc::new(dense.unwrap())),
        (
            "sparse",
            Arc::new(UnionArray::try_new(union_fields, ids(), None, children()).unwrap()),
        ),
        ("runs", Arc::new(runs.unwrap())),
    ]
}

struct Sample {
    session: Session,
    bytes: Vec<u8>,
    place: PathBuf,
}

impl Sample {
    fn new(columns: Vec<(&'static str, ArrayRef)>) -> Self {
        let fields: Vec<_> = columns
            .iter()
            .map(|(name, array)| field(name, array))
            .collect();
        let schema = Arc::new(Schema::new(fields));
        let arrays = columns.into_iter().map(|(_, array)| array).collect();
        let batch = RecordBatch::try_new(Arc::clone(&schema), arrays).unwrap();
        let session = Session::create(Config::default()).unwrap();
        let batches = [Ok(batch.slice(0, 4)), Ok(batch.slice(4, 2))];
        let segment = session.put("sample", schema, batches).unwrap();
        let bytes = fs::read(segment.path().unwrap()).unwrap();
        let place = std::env::temp_dir().join(segment.name().to_string());
        Self {
            session,
            bytes,
            place,
        }
    }

    /// What is found of `bytes`: the reason for which they are refused, or batches that are valid.
    fn look_at(&self, bytes: &[u8]) -> Result<usize, String> {
        fs::write(&self.place, bytes).unwrap();
        let batches = Segment::open(&self.place).and_then(|segment| segment.batches());
        match batches {
            Ok(batches) => {
                for column in batches.iter().flat_map(RecordBatch::columns) {
                    column.to_data().validate_full().unwrap();
                }
                Ok(batches.len())
            }
            Err(Error::CorruptSegment { reason, .. }) => Err(reason),
            Err(other) => panic!("{other}"),
        }
    }
}

impl Drop for Sample {
    fn drop(&mut self) {
        let _ = fs::remove_file(&self.place);
        self.session.close().unwrap();
    }
}

/// An allocation that a claimed length asks for fails, and ends the test. Not under a sanitizer,
/// whose own memory is terabytes of addresses.
fn limit_memory() {
    if std::env::var_os("THEUS_SANITIZED").is_some() {
        return;
    }
    let limit = rustix::process::Rlimit {
        current: Some(4 << 30),
        maximum: Some(4 << 30),
    };
    rustix::process::setrlimit(rustix::process::Resource::As, limit).unwrap();
}

#[test]
fn every_type_is_valid_as_it_is() {
    let sample = Sample::new(columns());
    assert_eq!(sample.look_at(&sample.bytes), Ok(2));
}

#[test]
fn no_flipped_bit_does_harm() {
    limit_memory();
    let sample = Sample::new(columns());
    let mut bytes = sample.bytes.clone();
    let (mut refused, mut gave_up) = (0, Vec::new());
    for bit in (0..bytes.len() * 8).step_by(step()) {
        bytes[bit / 8] ^= 1 << (bit % 8);
        if let Err(reason) = sample.look_at(&bytes) {
            refused += 1;
            if reason.contains("gave up") {
                gave_up.push((bit / 8, reason));
            }
        }
        bytes[bit / 8] ^= 1 << (bit % 8);
    }
    assert!(refused > 1000, "only {refused} were refused");
    assert_eq!(
        gave_up,
        [],
        "our own walk let these through to Arrow's code, which panicked"
    );
}

#[test]
fn no_truncation_does_harm() {
    limit_memory();
    let sample = Sample::new(columns());
    for length in (1..sample.bytes.len()).rev() {
        let reason = sample.look_at(&sample.bytes[..length]).unwrap_err();
        assert!(!reason.contains("gave up"), "{length}: {reason}");
    }
}

/// The reason for which a column is refused after `change` of the bytes that it says are its own.
fn refused(column: (&'static str, ArrayRef), find: &[u8], change: &[u8]) -> String {
    let sample = Sample::new(vec![column]);
    let mut bytes = sample.bytes.clone();
    let places: Vec<_> = (0..bytes.len() - find.len())
        .filter(|&start| &bytes[start..start + find.len()] == find)
        .collect();
    let &[place, ..] = &places[..] else {
        panic!("the bytes are not there");
    };
    bytes[place..place + change.len()].copy_from_slice(change);
    sample.look_at(&bytes).unwrap_err()
}

#[test]
fn values_that_break_the_rules_are_found() {
    let words = |texts: [&str; 6]| Arc::new(StringArray::from_iter_values(texts)) as ArrayRef;
    let texts = words(["first word", "b", "c", "d", "e", "f"]);
    let reason = refused(("text", texts), b"first word", b"\xff\xfe");
    assert!(
        reason.contains("record batch 0") && reason.contains("UTF"),
        "{reason}"
    );

    let offsets: Vec<u8> = [0_i32, 7, 8, 9]
        .iter()
        .flat_map(|n| n.to_le_bytes())
        .collect();
    let texts = words(["1234567", "b", "c", "d", "e", "f"]);
    let reason = refused(("text", texts), &offsets, &[0, 0, 0, 0, 200]);
    assert!(reason.contains("record batch 0"), "{reason}");

    let codes: DictionaryArray<Int8Type> = ["x", "y", "z", "x", "x", "y"].into_iter().collect();
    let reason = refused(
        ("codes", Arc::new(codes)),
        &[0, 1, 2, 0, 0, 0, 0, 0],
        &[0, 100],
    );
    assert!(reason.contains("record batch 0"), "{reason}");
}

#[test]
fn the_fuzzers_corpus_is_valid_and_does_no_harm_when_cut() {
    limit_memory();
    let corpus = concat!(env!("CARGO_MANIFEST_DIR"), "/fuzz/corpus/table");
    let mut seen = 0;
    for file in fs::read_dir(corpus).unwrap() {
        let bytes = fs::read(file.unwrap().path()).unwrap();
        assert!(table::validate(&Buffer::from(bytes.as_slice())).unwrap() > 0);
        for length in (0..bytes.len()).step_by(17) {
            assert!(table::validate(&Buffer::from(&bytes[..length])).is_err());
        }
        seen += 1;
    }
    assert!(seen >= 6);
}
