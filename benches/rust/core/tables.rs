//! Tables of the same bytes in few and in many columns.

use std::fs::File;
use std::hint::black_box;

use arrow::array::RecordBatch;
use arrow_ipc::reader::FileReader;
use arrow_ipc::writer::FileWriter;
use criterion::{Criterion, Throughput};
use theus::{Config, Session};

use crate::common::{put, table};
use crate::fresh;

const CELLS: i64 = 1 << 20;

pub(crate) fn measure(criterion: &mut Criterion) {
    for columns in [8, 1000] {
        let batch = table(columns, CELLS / i64::from(columns));
        write(criterion, columns, &batch);
        open(criterion, columns, &batch);
    }
}

fn write(criterion: &mut Criterion, columns: u32, batch: &RecordBatch) {
    let bytes = size_of::<i64>() * batch.num_columns() * batch.num_rows();
    let mut group = criterion.benchmark_group(format!("put a table of {columns} columns"));
    group.throughput(Throughput::Bytes(bytes as u64));
    group.sample_size(20);
    group.bench_function("first", |bencher| {
        bencher.iter_custom(|times| {
            fresh::time(times, bytes, |session, name| put(session, name, batch))
        });
    });
    let session = Session::create(Config::default()).unwrap();
    group.bench_function("repeat", |bencher| {
        bencher.iter(|| put(&session, "table", batch));
    });
    let mut file = Vec::new();
    group.bench_function("arrow-ipc into private memory", |bencher| {
        bencher.iter(|| {
            file.clear();
            let mut writer = FileWriter::try_new(&mut file, &batch.schema()).unwrap();
            writer.write(batch).unwrap();
            writer.finish().unwrap();
        });
    });
    group.finish();
}

fn open(criterion: &mut Criterion, columns: u32, batch: &RecordBatch) {
    let mut group = criterion.benchmark_group(format!("open a table of {columns} columns"));
    group.sample_size(20);
    let session = Session::create(Config::default()).unwrap();
    put(&session, "table", batch);
    let reader = Session::attach(session.id().clone()).unwrap();
    group.bench_function("view, its owner", |bencher| {
        bencher.iter(|| session.get("table").unwrap().batches().unwrap());
    });
    group.bench_function("view, another process", |bencher| {
        bencher.iter(|| reader.get("table").unwrap().batches().unwrap());
    });
    let path = session.get("table").unwrap().name().path();
    group.bench_function("arrow-ipc, into private memory", |bencher| {
        bencher.iter(|| {
            let file = FileReader::try_new(File::open(&path).unwrap(), None).unwrap();
            black_box(file.map(Result::unwrap).collect::<Vec<_>>())
        });
    });
    group.finish();
}
