//! Frames, and their way there and back.

use std::hint::black_box;
use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::thread::{self, JoinHandle};
use std::time::Duration;

use criterion::Criterion;
use theus::dispatch::{Channel, Kind, decode, encode};
use theus::{Config, Session};

use crate::common::{PICKLE, TASK, connected};

const SPIN: Duration = Duration::from_micros(100);
const PAYLOAD_BYTES: usize = 1 << 20;

pub(crate) fn measure(criterion: &mut Criterion) {
    bytes(criterion);
    round_trip(criterion);
    hand_over(criterion);
}

fn bytes(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("frame");
    let frame = encode(Kind::Task, &TASK, &[&PICKLE]).unwrap();
    group.bench_function("encode", |bencher| {
        bencher.iter(|| encode(Kind::Task, black_box(&TASK), &[black_box(&PICKLE)]).unwrap());
    });
    group.bench_function("decode", |bencher| {
        bencher.iter(|| {
            let frame = decode(black_box(&frame)).unwrap();
            frame.attachments().map(<[u8]>::len).sum::<usize>()
        });
    });
    group.bench_function("decode, copying", |bencher| {
        bencher.iter(|| decode(black_box(&frame)).unwrap().into_parts());
    });
    group.finish();
}

fn round_trip(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("round trip");
    for (name, spin) in [("spinning", SPIN), ("blocking", Duration::ZERO)] {
        group.bench_function(name, |bencher| {
            let (mut owner, worker) = connected();
            let worker = serve(worker, spin, |_| ());
            bencher.iter(|| ask(&mut owner, spin, &PICKLE));
            end(owner, worker);
        });
    }
    group.bench_function("a plain socket, blocking", |bencher| {
        let (mut ours, mut theirs) = UnixStream::pair().unwrap();
        let task = encode(Kind::Task, &TASK, &[&PICKLE]).unwrap();
        let result = encode(Kind::Result, &[TASK[0], 0], &[&[]]).unwrap();
        let (mut asked, mut answer) = (task.clone(), result.clone());
        let peer = thread::spawn(move || {
            while theirs.read_exact(&mut asked).is_ok() {
                theirs.write_all(&result).unwrap();
            }
        });
        bencher.iter(|| {
            ours.write_all(&task).unwrap();
            ours.read_exact(&mut answer).unwrap();
        });
        drop(ours);
        peer.join().unwrap();
    });
    group.finish();
}

/// What a task reads reaches its worker: as a name, or as bytes.
fn hand_over(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("hand over 1 MiB");
    let session = Session::create(Config::default()).unwrap();
    let items = PAYLOAD_BYTES as u64;
    let payload = session.alloc_tensor::<u8>("payload", &[items]).unwrap();
    let payload = payload.publish().unwrap();
    group.bench_function("by name", |bencher| {
        let (mut owner, worker) = connected();
        let reader = Session::attach(session.id().clone()).unwrap();
        let worker = serve(worker, SPIN, move |name| {
            let segment = reader.get(str::from_utf8(name).unwrap()).unwrap();
            look(segment.tensor().unwrap().as_slice().unwrap());
        });
        bencher.iter(|| ask(&mut owner, SPIN, b"payload"));
        end(owner, worker);
    });
    group.bench_function("in the frame", |bencher| {
        let (mut owner, worker) = connected();
        let worker = serve(worker, SPIN, look);
        bencher.iter(|| ask(&mut owner, SPIN, payload.as_slice().unwrap()));
        end(owner, worker);
    });
    group.finish();
}

fn look(bytes: &[u8]) {
    black_box(bytes.last());
}

/// A worker that does `task` with each attachment, until SHUTDOWN.
fn serve(
    mut channel: Channel,
    spin: Duration,
    task: impl Fn(&[u8]) + Send + 'static,
) -> JoinHandle<()> {
    thread::spawn(move || {
        loop {
            let frame = channel.recv(spin).unwrap();
            if frame.kind() == Kind::Shutdown {
                return;
            }
            let id = frame.fields().next().unwrap();
            frame.attachments().for_each(&task);
            channel
                .send_blocking(Kind::Result, &[id, 0], &[&[]])
                .unwrap();
        }
    })
}

fn ask(owner: &mut Channel, spin: Duration, attachment: &[u8]) {
    owner
        .send_blocking(Kind::Task, &TASK, &[attachment])
        .unwrap();
    assert_eq!(owner.recv(spin).unwrap().kind(), Kind::Result);
}

fn end(mut owner: Channel, worker: JoinHandle<()>) {
    owner.send_blocking(Kind::Shutdown, &[], &[]).unwrap();
    worker.join().unwrap();
}
