//! Removing what a dead session left.

use std::fs::{self, File};
use std::path::PathBuf;

use criterion::{BatchSize, Criterion};
use rustix::fs::{FlockOperation, flock};
use theus::SessionId;
use theus::sweep::{SweepOutcome, sweep_session};

const SEGMENTS: u64 = 100;

pub(crate) fn measure(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("sweep 100 segments");
    group.sample_size(20);
    group.bench_function("sweep", |bencher| {
        let sweep = |left: Left| {
            let Left { id, paths, lock } = left;
            drop(lock);
            let outcome = sweep_session(&id).unwrap();
            assert!(matches!(outcome, SweepOutcome::Swept(names) if names.len() == paths.len()));
        };
        bencher.iter_batched(Left::new, sweep, BatchSize::PerIteration);
    });
    group.bench_function("unlink alone", |bencher| {
        let unlink = |left: Left| {
            left.paths
                .iter()
                .for_each(|path| fs::remove_file(path).unwrap());
        };
        bencher.iter_batched(Left::new, unlink, BatchSize::PerIteration);
    });
    group.finish();
}

/// What a process that was killed leaves, but for the lock: who creates a session meanwhile would
/// sweep it first.
struct Left {
    id: SessionId,
    paths: Vec<PathBuf>,
    lock: File,
}

impl Left {
    fn new() -> Self {
        let id = SessionId::random().unwrap();
        let mut paths: Vec<PathBuf> = (1..=SEGMENTS)
            .map(|number| id.segment(number).path())
            .collect();
        let lock_path = paths[0].with_file_name(id.lock_name());
        let lock = File::create(&lock_path).unwrap();
        flock(&lock, FlockOperation::LockExclusive).unwrap();
        for path in &paths {
            fs::write(path, [0; 4096]).unwrap();
        }
        paths.push(lock_path);
        Self { id, paths, lock }
    }
}
