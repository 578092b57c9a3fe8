//! Looking names up, with few and with many of them.

use criterion::{BenchmarkId, Criterion};
use theus::Session;
use theus::catalog::read_catalog;

use crate::common::{crowded, key};

pub(crate) fn measure(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("catalog");
    for entries in [10, 1000] {
        let session = crowded(entries);
        let name = key(entries / 2);
        group.bench_function(BenchmarkId::new("get, its owner", entries), |bencher| {
            bencher.iter(|| session.get(&name).unwrap());
        });
        let reader = Session::attach(session.id().clone()).unwrap();
        group.bench_function(
            BenchmarkId::new("get, another process", entries),
            |bencher| {
                bencher.iter(|| reader.get(&name).unwrap());
            },
        );
        group.bench_function(BenchmarkId::new("copy of all", entries), |bencher| {
            bencher.iter(|| read_catalog(session.id()).unwrap());
        });
    }
    group.finish();
}
