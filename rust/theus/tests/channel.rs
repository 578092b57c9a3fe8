//! Channels between two threads: large frames, many frames, ends that close.

use std::os::fd::{AsFd, OwnedFd};
use std::thread;
use std::time::{Duration, Instant};

use theus::dispatch::{Channel, Kind, Wait};
use theus::error::Error;

mod common;

use common::within_limit;

const SPIN: Duration = Duration::from_micros(50);

fn connected() -> (Channel, Channel) {
    let (owner, theirs) = Channel::pair().unwrap();
    (owner, Channel::from_fd(theirs).unwrap())
}

fn pattern(length: usize, seed: u8) -> Vec<u8> {
    (0..length)
        .map(|n| (n.wrapping_mul(31) >> 3).to_le_bytes()[0] ^ seed)
        .collect()
}

/// A worker's loop: answers each task with a result that has the same bytes, until SHUTDOWN.
fn echo(mut worker: Channel) {
    loop {
        let frame = worker.recv(SPIN).unwrap();
        let (kind, fields, attachments) = frame.into_parts();
        if kind == Kind::Shutdown {
            return;
        }
        worker
            .send_blocking(Kind::Result, &[fields[0], 0], &[&attachments[0]])
            .unwrap();
    }
}

#[test]
fn large_frames_cross_whole_in_both_directions() {
    within_limit(|| {
        let (mut owner, worker) = connected();
        let worker = thread::spawn(|| echo(worker));
        for (id, length) in [
            (1, 64 << 20),
            (2, 300_000),
            (3, 0),
            (4, 65_536),
            (5, 33_000),
        ] {
            let bytes = pattern(length, 7);
            owner
                .send_blocking(Kind::Task, &[id, 0, 0, 0], &[&bytes])
                .unwrap();
            let frame = owner.recv(SPIN).unwrap();
            assert_eq!(frame.fields().next(), Some(id));
            assert!(
                frame.attachments().next().unwrap() == bytes,
                "{length} bytes"
            );
        }
        owner.send_blocking(Kind::Shutdown, &[], &[]).unwrap();
        worker.join().unwrap();
    });
}

#[test]
fn an_owner_that_never_blocks_pumps_large_frames_both_ways_at_once() {
    within_limit(|| {
        let (mut owner, worker) = connected();
        let worker = thread::spawn(|| echo(worker));
        let bytes = pattern(64 << 20, 9);
        let mut partial = 0;
        for id in 0..3 {
            let done = owner.send(Kind::Task, &[id, 0, 0, 0], &[&bytes]).unwrap();
            partial += usize::from(!done);
        }
        assert_eq!(partial, 3, "64 MiB do not fit into a socket");
        let mut answers = 0;
        while answers < 3 {
            owner.flush().unwrap();
            if let Some(frame) = owner.try_recv().unwrap() {
                assert_eq!(frame.fields().next(), Some(answers));
                assert!(frame.attachments().next().unwrap() == bytes);
                answers += 1;
            } else {
                thread::yield_now();
            }
        }
        assert_eq!(owner.sender.queued_bytes(), 0);
        assert!(owner.traffic().sent_bytes() > 3 * (64 << 20));
        assert!(owner.traffic().received_bytes() > 3 * (64 << 20));
        owner.send_blocking(Kind::Shutdown, &[], &[]).unwrap();
        worker.join().unwrap();
    });
}

#[test]
fn a_hundred_thousand_small_frames_keep_their_order() {
    within_limit(|| {
        const FRAMES: u64 = 100_000;
        let (mut owner, worker) = connected();
        let worker = thread::spawn(|| echo(worker));
        let (mut sent, mut received) = (0, 0);
        while received < FRAMES {
            while sent < FRAMES && owner.sender.queued_bytes() == 0 {
                owner
                    .send(Kind::Task, &[sent, 1, 1, 0], &[&sent.to_le_bytes()])
                    .unwrap();
                sent += 1;
            }
            owner.flush().unwrap();
            while let Some(frame) = owner.try_recv().unwrap() {
                assert_eq!(frame.fields().next(), Some(received));
                assert_eq!(frame.attachments().next().unwrap(), received.to_le_bytes());
                received += 1;
            }
        }
        owner.send_blocking(Kind::Shutdown, &[], &[]).unwrap();
        worker.join().unwrap();
    });
}

#[test]
fn frames_that_were_sent_before_the_end_are_received() {
    let (owner, mut worker) = connected();
    for id in 0..5 {
        worker.send(Kind::Result, &[id, 0], &[b"x"]).unwrap();
    }
    let mut owner = owner;
    // Unread, so that the kernel reports a reset, not an end.
    owner.send(Kind::Task, &[1, 1, 1, 0], &[b"unread"]).unwrap();
    drop(worker);
    for id in 0..5 {
        let frame = owner.try_recv().unwrap().unwrap();
        assert_eq!(frame.fields().next(), Some(id));
    }
    for _ in 0..3 {
        assert!(matches!(
            owner.try_recv(),
            Err(Error::ChannelEnd { pending_bytes: 0 })
        ));
    }
    assert!(matches!(
        owner.send(Kind::Shutdown, &[], &[]),
        Err(Error::ChannelPeerGone { .. })
    ));
}

#[test]
fn an_end_within_a_frame_says_so() {
    within_limit(end_within_a_frame);
}

fn end_within_a_frame() {
    let (mut owner, mut worker) = connected();
    let done = worker
        .send(Kind::Result, &[1, 0], &[&vec![1; 32 << 20]])
        .unwrap();
    assert!(!done);
    let sent = worker.traffic().sent_bytes();
    drop(worker);
    let mut end = None;
    while end.is_none() {
        match owner.try_recv() {
            Ok(None) => {}
            Ok(Some(frame)) => panic!("{frame:?}"),
            Err(error) => end = Some(error),
        }
    }
    match end.unwrap() {
        Error::ChannelEnd { pending_bytes } => assert_eq!(pending_bytes, sent),
        other => panic!("{other}"),
    }
}

#[test]
fn a_wait_spins_and_then_sleeps_until_a_frame_comes() {
    within_limit(|| {
        let (mut owner, mut worker) = connected();
        let late = thread::spawn(move || {
            thread::sleep(Duration::from_millis(100));
            worker.send(Kind::Hello, &[2, 1], &[b"{}"]).unwrap();
            worker
        });
        let started = Instant::now();
        assert_eq!(owner.receiver.wait(SPIN).unwrap(), Wait::Ready);
        assert!(started.elapsed() >= Duration::from_millis(90));
        // Waited for is not taken.
        assert_eq!(owner.receiver.wait(SPIN).unwrap(), Wait::Ready);
        assert_eq!(owner.try_recv().unwrap().unwrap().kind(), Kind::Hello);
        assert!(owner.try_recv().unwrap().is_none());
        late.join().unwrap();
    });
}

#[test]
fn what_has_arrived_is_more_until_it_is_taken() {
    let (mut owner, mut worker) = connected();
    assert!(!owner.receiver.has_more().unwrap());
    for id in 0..2 {
        worker.send(Kind::Result, &[id, 0], &[b"x"]).unwrap();
    }
    assert!(owner.receiver.has_more().unwrap());
    assert!(owner.try_recv().unwrap().is_some());
    // The second one came by the same read, and no longer shows at the socket.
    assert!(owner.receiver.has_more().unwrap());
    assert!(owner.try_recv().unwrap().is_some());
    assert!(!owner.receiver.has_more().unwrap());
    drop(worker);
    assert!(owner.receiver.has_more().unwrap());
}

#[test]
fn both_ends_are_close_on_exec_and_other_descriptors_are_refused() {
    let (owner, theirs) = Channel::pair().unwrap();
    for fd in [owner.as_fd(), theirs.as_fd()] {
        let flags = rustix::io::fcntl_getfd(fd).unwrap();
        assert!(flags.contains(rustix::io::FdFlags::CLOEXEC));
    }
    rustix::io::fcntl_setfd(&theirs, rustix::io::FdFlags::empty()).unwrap();
    let worker = Channel::from_fd(theirs).unwrap();
    let flags = rustix::io::fcntl_getfd(&worker).unwrap();
    assert!(flags.contains(rustix::io::FdFlags::CLOEXEC));

    let file = std::fs::File::open("/dev/null").unwrap();
    assert!(matches!(
        Channel::from_fd(OwnedFd::from(file)),
        Err(Error::ChannelSocket)
    ));
    let udp = std::net::UdpSocket::bind("127.0.0.1:0").unwrap();
    assert!(matches!(
        Channel::from_fd(OwnedFd::from(udp)),
        Err(Error::ChannelSocket)
    ));
}

#[test]
fn descriptors_arrive_with_their_frames_whatever_is_sent_between() {
    within_limit(|| {
        let (mut owner, mut worker) = connected();
        let sender = thread::spawn(move || {
            for number in 0..600_u64 {
                let file = rustix::fs::memfd_create("part", rustix::fs::MemfdFlags::CLOEXEC);
                let file = file.unwrap();
                rustix::io::write(&file, &number.to_le_bytes()).unwrap();
                let mut done = owner.sender.send_carrying(Kind::Parts, &[8, 0, 8], file);
                while !done.unwrap() {
                    owner.sender.wait().unwrap();
                    done = owner.flush();
                }
                // Some large enough to be read straight into their own memory.
                let length = [0, 10, 50_000, 700_000][usize::try_from(number % 4).unwrap()];
                let bytes = pattern(length, 3);
                owner
                    .send_blocking(Kind::Result, &[number, 0], &[&bytes])
                    .unwrap();
            }
        });
        for number in 0..600_u64 {
            assert_eq!(worker.recv(SPIN).unwrap().kind(), Kind::Parts);
            let file = worker.receiver.take_descriptor(Kind::Parts).unwrap();
            let mut content = [0; 8];
            rustix::io::pread(&file, &mut content, 0).unwrap();
            assert_eq!(u64::from_le_bytes(content), number);
            let flags = rustix::io::fcntl_getfd(&file).unwrap();
            assert!(flags.contains(rustix::io::FdFlags::CLOEXEC));
            let frame = worker.recv(SPIN).unwrap();
            assert_eq!(frame.fields().next(), Some(number));
        }
        let none = worker.receiver.take_descriptor(Kind::Parts);
        assert!(matches!(none, Err(Error::FrameDescriptor { .. })));
        sender.join().unwrap();
    });
}
