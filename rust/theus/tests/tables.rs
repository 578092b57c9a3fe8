//! Tables and typed tensors by the crate alone: an owner, and a reader that attaches.

use std::sync::Arc;

use arrow::array::{
    Array, ArrayRef, AsArray, DictionaryArray, Float64Array, Int64Array, RecordBatch, StringArray,
};
use arrow::datatypes::{DataType, Field, Int8Type, Int64Type, Schema, SchemaRef};
use arrow::error::ArrowError;
use rayon::prelude::*;
use theus::{Backend, Config, Error, Segment, Session};

#[expect(dead_code, reason = "its main is not called")]
#[path = "../examples/aggregate.rs"]
mod aggregate;
#[expect(dead_code, reason = "its main is not called")]
#[path = "../examples/stock_reader.rs"]
mod stock_reader;

fn session() -> Session {
    Session::create(Config::default()).unwrap()
}

fn schema() -> SchemaRef {
    let coded = DataType::Dictionary(Box::new(DataType::Int8), Box::new(DataType::Utf8));
    Arc::new(Schema::new(vec![
        Field::new("price", DataType::Float64, true),
        Field::new("id", DataType::Int64, false),
        Field::new("symbol", coded, true),
    ]))
}

fn batch(first: i32, symbols: &[&str]) -> RecordBatch {
    let ids = || (first..).take(symbols.len());
    let prices: Float64Array = ids()
        .map(|id| (id % 3 != 0).then_some(f64::from(id)))
        .collect();
    let ids = Int64Array::from_iter_values(ids().map(i64::from));
    let symbols: DictionaryArray<Int8Type> = symbols.iter().copied().collect();
    let columns: Vec<ArrayRef> = vec![Arc::new(prices), Arc::new(ids), Arc::new(symbols)];
    RecordBatch::try_new(schema(), columns).unwrap()
}

fn symbols(batches: &[RecordBatch]) -> Vec<String> {
    let texts = batches.iter().flat_map(|batch| {
        let column = arrow::compute::cast(batch.column(2), &DataType::Utf8).unwrap();
        let column: &StringArray = column.as_string();
        column
            .iter()
            .map(|text| text.unwrap().to_owned())
            .collect::<Vec<_>>()
    });
    texts.collect()
}

#[test]
fn a_table_is_put_once_and_read_by_who_attaches() {
    let session = session();
    let batches = [batch(0, &["a", "b", "a"]), batch(3, &["c", "a"])];
    session
        .put("trades", schema(), batches.clone().map(Ok))
        .unwrap();
    let attached = Session::attach(session.id().clone()).unwrap();
    assert_eq!(attached.names().unwrap(), ["trades"]);
    for segment in [
        session.get("trades").unwrap(),
        attached.get("trades").unwrap(),
    ] {
        assert_eq!(segment.schema().unwrap().fields().len(), 3);
        let found = segment.batches().unwrap();
        assert_eq!(found[0].column(0), batches[0].column(0));
        assert_eq!(found[1].column(1), batches[1].column(1));
        assert_eq!(symbols(&found), ["a", "b", "a", "c", "a"]);
        let inside = segment.mapping().unwrap().address()
            ..segment.mapping().unwrap().address() + segment.length();
        let place = found[1].column(1).to_data().buffers()[0].as_ptr().addr();
        assert!(inside.contains(&place) && place.is_multiple_of(64));
        let again = segment.batches().unwrap();
        assert_eq!(
            again[1].column(1).to_data().buffers()[0].as_ptr().addr(),
            place
        );
    }
    // Batches keep their bytes mapped, whatever becomes of the session.
    let kept = attached.get("trades").unwrap().batches().unwrap();
    session.close().unwrap();
    assert!(matches!(
        attached.get("trades"),
        Err(Error::SegmentNotFound { .. })
    ));
    assert_eq!(kept[0].num_rows() + kept[1].num_rows(), 5);
}

#[test]
fn a_stream_is_taken_batch_by_batch_and_may_fail() {
    let session = session();
    let long = (0..300).map(|number| Ok(batch(number, &["x", "y"])));
    let segment = session.put("stream", schema(), long).unwrap();
    let batches = segment.batches().unwrap();
    let total: i64 = batches
        .par_iter()
        .map(|batch| {
            batch
                .column(1)
                .as_primitive::<Int64Type>()
                .values()
                .iter()
                .sum::<i64>()
        })
        .sum();
    assert_eq!(
        (batches.len(), total),
        (300, (0..300).map(|n| 2 * n + 1).sum())
    );
    let used = session.used_bytes();
    let broken = (0..3).map(|number| match number {
        2 => Err(ArrowError::ComputeError("the source broke".to_owned())),
        _ => Ok(batch(number, &["x"])),
    });
    let error = session.put("broken", schema(), broken).unwrap_err();
    assert!(error.to_string().contains("the source broke"), "{error}");
    assert_eq!(session.used_bytes(), used);
    assert!(matches!(
        session.get("broken"),
        Err(Error::EntryNotFound { .. })
    ));
}

#[test]
fn a_name_is_replaced_while_readers_look() {
    let session = session();
    let attached = Session::attach(session.id().clone()).unwrap();
    for round in 0..200 {
        session
            .put("x", schema(), [Ok(batch(round, &["a"]))])
            .unwrap();
        let found = attached.get("x").unwrap().batches().unwrap();
        assert_eq!(
            found[0].column(1).as_primitive::<Int64Type>().value(0),
            i64::from(round)
        );
    }
    let names = std::fs::read_dir("/dev/shm").unwrap();
    let prefix = format!("theus-{}-", session.id());
    let own = names.filter(|name| {
        let name = name.as_ref().unwrap().file_name();
        name.to_string_lossy().starts_with(&prefix)
    });
    assert_eq!(own.count(), 2, "the catalog and one entry");
}

#[test]
fn a_tensor_is_filled_by_many_and_read_as_a_slice() {
    for backend in Backend::ALL {
        let config = Config {
            backend,
            ..Config::default()
        };
        let session = Session::create(config).unwrap();
        let mut matrix = session.alloc_tensor::<f32>("matrix", &[100, 200]).unwrap();
        matrix
            .as_mut_slice()
            .par_iter_mut()
            .enumerate()
            .for_each(|(place, item)| *item = f32::from(u16::try_from(place).unwrap()));
        let published = matrix.publish().unwrap();
        assert_eq!(
            (published.shape(), published.strides()),
            (&[100, 200][..], &[800, 4][..])
        );
        assert!((published.as_slice().unwrap()[205] - 205.0).abs() < f32::EPSILON);
        let attached = Session::attach(session.id().clone()).unwrap();
        let segment = attached.get("matrix").unwrap();
        assert_eq!(segment.tensor::<f32>().unwrap().items(), published.items());
        let wrong = segment.tensor::<f64>().unwrap_err();
        assert!(matches!(wrong, Error::DtypeMismatch { .. }), "{wrong}");
        assert!(matches!(segment.batches(), Err(Error::NotATable { .. })));
    }
}

#[test]
fn only_what_is_published_can_be_read() {
    let session = session();
    let schema = Schema::new(vec![Field::new("x", DataType::Int64, true)]);
    let spec = theus::layout::table::TableSpec {
        key: "t".to_owned(),
        kind: theus::layout::table::TableKind::Table,
    };
    let draft = session.alloc_table(spec, &schema, 10).unwrap();
    assert!(matches!(draft.batches(), Err(Error::Unpublished { .. })));
    session.publish(&draft).unwrap();
    let opened = Segment::open(&draft.path().unwrap()).unwrap();
    assert_eq!(opened.batches().unwrap()[0].column(0).null_count(), 0);
    assert!(matches!(
        session.get("nothing"),
        Err(Error::EntryNotFound { .. })
    ));
}

#[test]
fn the_examples_read_a_live_table() {
    let session = session();
    let batches = [batch(0, &["a", "b", "a"]), batch(3, &["c", "a"])];
    let segment = session.put("trades", schema(), batches.map(Ok)).unwrap();
    let sums = aggregate::sums(session.id().clone(), "trades").unwrap();
    assert_eq!(sums, [("price".to_owned(), 7.0), ("id".to_owned(), 10.0)]);
    let path = segment.path().unwrap();
    let found = stock_reader::read(path.to_str().unwrap()).unwrap();
    assert_eq!(symbols(&found), ["a", "b", "a", "c", "a"]);
    assert_eq!(found[1].column(1), segment.batches().unwrap()[1].column(1));
}

#[test]
fn a_panic_in_the_making_of_batches_is_its_own_and_leaves_nothing_reserved() {
    let session = session();
    let batches = (0..3).map(|n| {
        assert!(n < 2, "batch {n} is not there yet");
        Ok(batch(n, &["a"]))
    });
    let put = std::panic::AssertUnwindSafe(|| session.put("broken", schema(), batches));
    let payload = std::panic::catch_unwind(put).unwrap_err();
    let said = payload.downcast_ref::<String>().unwrap();
    assert_eq!(said, "batch 2 is not there yet");
    assert_eq!(session.used_bytes(), 0);
    assert!(matches!(
        session.get("broken"),
        Err(Error::EntryNotFound { .. })
    ));
}
