//! What is counted.

use std::hint::black_box;

use theus::catalog::read_catalog;
use theus::dispatch::{Kind, decode, encode};
use theus::{Config, Segment, Session};

use crate::common::{PICKLE, TASK, connected, crowded, key, put, table};

/// An operation that is done over and over.
pub(crate) struct Scenario {
    pub(crate) name: &'static str,
    /// Repetitions that take a few million instructions: starting differs by some thousand.
    pub(crate) times: u64,
    pub(crate) run: fn(u64),
}

pub(crate) const SCENARIOS: &[Scenario] = &[
    Scenario {
        name: "encode and decode a task",
        times: 20_000,
        run: frame,
    },
    Scenario {
        name: "channel, there and back in one thread",
        times: 2_000,
        run: channel,
    },
    Scenario {
        name: "publish a tensor of 4 KiB",
        times: 200,
        run: publish,
    },
    Scenario {
        name: "put a table of 8 columns",
        times: 200,
        run: put_table,
    },
    Scenario {
        name: "open a tensor",
        times: 1_000,
        run: open_tensor,
    },
    Scenario {
        name: "open a table of 8 columns",
        times: 200,
        run: |times| open_table(8, times),
    },
    Scenario {
        name: "open a table of 1000 columns",
        times: 5,
        run: |times| open_table(1000, times),
    },
    Scenario {
        name: "get one of 10 entries",
        times: 200,
        run: |times| get(10, times),
    },
    Scenario {
        name: "get one of 1000 entries",
        times: 10,
        run: |times| get(1000, times),
    },
    Scenario {
        name: "read a catalog of 1000 entries",
        times: 10,
        run: catalog,
    },
];

fn frame(times: u64) {
    for _ in 0..times {
        let bytes = encode(Kind::Task, black_box(&TASK), &[black_box(&PICKLE)]).unwrap();
        let frame = decode(&bytes).unwrap();
        black_box((frame.fields().sum::<u64>(), frame.attachments().last()));
    }
}

fn channel(times: u64) {
    let (mut owner, mut worker) = connected();
    for _ in 0..times {
        owner.send_blocking(Kind::Task, &TASK, &[&PICKLE]).unwrap();
        let task = worker.try_recv().unwrap().unwrap();
        let result = [task.fields().next().unwrap(), 0];
        worker.send_blocking(Kind::Result, &result, &[&[]]).unwrap();
        black_box(owner.try_recv().unwrap().unwrap());
    }
}

fn publish(times: u64) {
    let session = Session::create(Config::default()).unwrap();
    for _ in 0..times {
        let mut tensor = session.alloc_tensor::<u8>("tensor", &[4096]).unwrap();
        tensor.as_mut_slice()[0] = 1;
        black_box(tensor.publish().unwrap());
    }
}

fn put_table(times: u64) {
    let session = Session::create(Config::default()).unwrap();
    let batch = table(8, 100);
    for _ in 0..times {
        put(&session, "table", &batch);
    }
}

fn open_tensor(times: u64) {
    let session = crowded(1);
    let path = session.get(&key(0)).unwrap().name().path();
    for _ in 0..times {
        let segment = Segment::open(&path).unwrap();
        black_box(segment.tensor::<u8>().unwrap().as_slice().unwrap().last());
    }
}

fn open_table(columns: u32, times: u64) {
    let session = Session::create(Config::default()).unwrap();
    put(&session, "table", &table(columns, 100));
    let path = session.get("table").unwrap().name().path();
    for _ in 0..times {
        black_box(Segment::open(&path).unwrap().batches().unwrap());
    }
}

fn get(entries: usize, times: u64) {
    let session = crowded(entries);
    let reader = Session::attach(session.id().clone()).unwrap();
    let name = key(entries / 2);
    for _ in 0..times {
        black_box(reader.get(&name).unwrap());
    }
}

fn catalog(times: u64) {
    let session = crowded(1000);
    for _ in 0..times {
        black_box(read_catalog(session.id()).unwrap());
    }
}
