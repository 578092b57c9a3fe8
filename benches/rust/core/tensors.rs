//! Tensors made, copied in, and seen by another handle.

use std::fs;
use std::hint::black_box;
use std::sync::Arc;

use criterion::{Criterion, SamplingMode, Throughput};
use theus::layout::tensor::{ElementType, Order, TensorSpec};
use theus::{Config, Segment, Session};

use crate::fresh;

const SIZES: [(&str, usize); 3] = [
    ("4 KiB", 4 << 10),
    ("1 MiB", 1 << 20),
    ("256 MiB", 256 << 20),
];

pub(crate) fn measure(criterion: &mut Criterion) {
    for (name, bytes) in SIZES {
        let data = vec![1; bytes];
        make(criterion, name, &data);
        attach(criterion, name, &data);
    }
}

fn make(criterion: &mut Criterion, name: &str, data: &[u8]) {
    let mut group = criterion.benchmark_group(format!("tensor of {name}"));
    group.throughput(Throughput::Bytes(data.len() as u64));
    group.sample_size(10);
    group.sampling_mode(SamplingMode::Flat);
    let items = data.len() as u64;
    // For all samples, of which the first makes it warm.
    let session = Session::create(Config::default()).unwrap();
    let alloc = |session: &Session, name: &str| {
        let tensor = session.alloc_tensor::<u8>(name, &[items]).unwrap();
        tensor.publish().unwrap()
    };
    group.bench_function("alloc and publish, first", |bencher| {
        bencher.iter_custom(|times| fresh::time(times, data.len(), alloc));
    });
    group.bench_function("alloc and publish, repeat", |bencher| {
        bencher.iter(|| alloc(&session, "tensor"));
    });
    group.bench_function("put, first", |bencher| {
        bencher
            .iter_custom(|times| fresh::time(times, data.len(), |session, _| put(session, data)));
    });
    group.bench_function("put, repeat", |bencher| {
        bencher.iter(|| put(&session, data));
    });
    group.bench_function("memcpy into new memory", |bencher| {
        bencher.iter_with_large_drop(|| black_box(data).to_vec());
    });
    let mut target = data.to_vec();
    group.bench_function("memcpy into warm memory", |bencher| {
        bencher.iter(|| black_box(&mut target).copy_from_slice(black_box(data)));
    });
    group.finish();
}

fn attach(criterion: &mut Criterion, name: &str, data: &[u8]) {
    let mut group = criterion.benchmark_group(format!("attach {name}"));
    group.sample_size(20);
    let session = Session::create(Config::default()).unwrap();
    let tensor = session.alloc_tensor::<u8>("tensor", &[data.len() as u64]);
    tensor.unwrap().publish().unwrap();
    let reader = Session::attach(session.id().clone()).unwrap();
    group.bench_function("view", |bencher| {
        bencher.iter(|| {
            let tensor = reader.get("tensor").unwrap().tensor::<u8>().unwrap();
            black_box(tensor.as_slice().unwrap().last());
        });
    });
    let path = session.get("tensor").unwrap().name().path();
    group.bench_function("read into private memory", |bencher| {
        bencher.iter(|| fs::read(&path).unwrap());
    });
    group.finish();
}

fn put(session: &Session, data: &[u8]) -> Arc<Segment> {
    let spec = TensorSpec::dense("tensor", ElementType::U8, &[data.len() as u64], Order::C);
    let segment = session.create_tensor(spec.unwrap(), Some(data)).unwrap();
    session.publish(&segment).unwrap();
    segment
}
