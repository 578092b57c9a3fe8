//! Frames that go by the page: to whoever polls, in their order among the socket's.

use std::fs::File;
use std::os::fd::OwnedFd;
use std::thread;
use std::time::{Duration, Instant};

use theus::dispatch::{Channel, Control, Kind, Side, Wait};
use theus::error::Error;

mod common;

use common::within_limit;

const MOMENT: Duration = Duration::from_millis(2);
const RESULT_BYTES: usize = 40;

struct Pair {
    owner: Channel,
    worker: Channel,
    page: Control,
}

fn connected() -> Pair {
    let (mut owner, theirs) = Channel::pair().unwrap();
    let mut worker = Channel::from_fd(theirs).unwrap();
    let (page, file) = Control::create().unwrap();
    owner.use_page(&page, Side::Owner);
    worker.use_page(&Control::from_fd(file).unwrap(), Side::Worker);
    Pair {
        owner,
        worker,
        page,
    }
}

fn forget(channel: &mut Channel, number: u64) {
    channel
        .send_blocking(Kind::ForgetState, &[number], &[])
        .unwrap();
}

fn next_number(channel: &mut Channel) -> u64 {
    let frame = channel.recv(MOMENT).unwrap();
    frame.fields().next().unwrap()
}

/// What the socket has, which letters pass by.
fn in_socket(channel: &Channel) -> u64 {
    rustix::io::ioctl_fionread(channel).unwrap()
}

#[test]
fn a_peer_that_polls_gets_letters_and_one_that_does_not_the_socket() {
    let mut pair = connected();
    forget(&mut pair.owner, 1);
    assert!(in_socket(&pair.worker) > 0, "nobody polls");
    assert_eq!(next_number(&mut pair.worker), 1);
    assert!(!pair.worker.receiver.poll(Duration::ZERO).unwrap());
    forget(&mut pair.owner, 2);
    assert_eq!(in_socket(&pair.worker), 0, "it was left in the page");
    assert!(pair.worker.receiver.poll(Duration::ZERO).unwrap());
    assert_eq!(next_number(&mut pair.worker), 2);
    pair.worker.receiver.stop_polling();
    forget(&mut pair.owner, 3);
    assert!(in_socket(&pair.worker) > 0);
    assert_eq!(next_number(&mut pair.worker), 3);
    let (owner, worker) = (pair.owner.traffic(), pair.worker.traffic());
    assert_eq!(
        owner.sent_bytes(),
        worker.received_bytes(),
        "letters are counted"
    );
}

#[test]
fn letters_stand_where_they_were_sent_among_the_others() {
    let mut pair = connected();
    forget(&mut pair.owner, 1);
    assert_eq!(next_number(&mut pair.worker), 1);
    // It has polled, and has not stopped.
    forget(&mut pair.owner, 2);
    assert_eq!(in_socket(&pair.worker), 0, "a letter");
    // What is too large for the page, and behind it what finds the box full.
    let large = vec![7; 30_000];
    for number in 3..6 {
        pair.owner
            .send(Kind::Task, &[number, 0, 0, 0], &[&large])
            .unwrap();
        forget(&mut pair.owner, number + 100);
    }
    assert_eq!(pair.page.running(), 0, "other words are left alone");
    let numbers: Vec<u64> = (0..7).map(|_| next_number(&mut pair.worker)).collect();
    assert_eq!(numbers, [2, 3, 103, 4, 104, 5, 105]);
    // A letter behind what is in the socket still.
    pair.owner
        .send(Kind::Task, &[6, 0, 0, 0], &[&large])
        .unwrap();
    let before = in_socket(&pair.worker);
    forget(&mut pair.owner, 7);
    assert_eq!(in_socket(&pair.worker), before, "a letter");
    assert_eq!([(); 2].map(|()| next_number(&mut pair.worker)), [6, 7]);
}

#[test]
fn only_what_fits_is_left_in_the_page() {
    let mut pair = connected();
    for length in [0, 1, 7, 8, 9, 1535 - 56, 1536 - 56, 1537 - 56, 5000] {
        assert!(!pair.worker.receiver.poll(Duration::ZERO).unwrap());
        let bytes: Vec<u8> = (0..=255).cycle().take(length).collect();
        pair.owner
            .send(Kind::Task, &[9, 0, 0, 0], &[&bytes])
            .unwrap();
        let by_socket = in_socket(&pair.worker) > 0;
        assert_eq!(by_socket, length + 56 > 1536, "{length} bytes");
        let frame = pair.worker.recv(MOMENT).unwrap();
        assert!(frame.attachments().next().unwrap() == bytes);
        pair.worker.receiver.stop_polling();
    }
}

#[test]
fn an_outcome_that_comes_behind_others_is_not_polled_for() {
    let mut pair = connected();
    assert!(!pair.owner.receiver.poll(Duration::ZERO).unwrap());
    let file = OwnedFd::from(File::open("/dev/null").unwrap());
    let output = &mut pair.worker.sender;
    assert!(output.send_carrying(Kind::Output, &[0, 0], file).unwrap());
    pair.worker
        .send_blocking(Kind::Result, &[1, 5], &[b"x"])
        .unwrap();
    let found = pair.owner.receiver.poll_page(Duration::from_secs(5));
    assert!(!found.unwrap(), "the output in the socket comes first");
    let kinds = [(); 2].map(|()| pair.owner.recv(MOMENT).unwrap().kind());
    assert_eq!(kinds, [Kind::Output, Kind::Result]);
}

#[test]
fn what_was_left_before_the_end_is_received() {
    let mut pair = connected();
    assert!(!pair.worker.receiver.poll(Duration::ZERO).unwrap());
    pair.owner.send_blocking(Kind::Shutdown, &[], &[]).unwrap();
    drop(pair.owner);
    assert_eq!(
        pair.worker.recv(MOMENT).unwrap().kind(),
        Kind::Shutdown,
        "the end comes after it"
    );
    assert!(matches!(
        pair.worker.recv(MOMENT),
        Err(Error::ChannelEnd { pending_bytes: 0 })
    ));
}

#[test]
fn what_is_told_aside_goes_by_the_socket_and_stays_before_what_follows() {
    let Pair {
        mut owner,
        mut worker,
        page: _page,
    } = connected();
    assert!(!owner.receiver.poll(Duration::ZERO).unwrap());
    worker
        .sender
        .send_aside(Kind::Log, &[7, 20], &[b"a line"])
        .unwrap();
    assert!(in_socket(&owner) > 0);
    worker
        .send_blocking(Kind::Result, &[7, 1], &[b"\xc0"])
        .unwrap();
    let kinds = [Kind::Log, Kind::Result];
    assert_eq!(kinds.map(|_| owner.recv(MOMENT).unwrap().kind()), kinds);
}

#[test]
fn one_end_may_know_nothing_of_the_page() {
    let (mut owner, theirs) = Channel::pair().unwrap();
    let mut worker = Channel::from_fd(theirs).unwrap();
    let (page, _file) = Control::create().unwrap();
    owner.use_page(&page, Side::Owner);
    assert!(!owner.receiver.poll(Duration::ZERO).unwrap());
    worker
        .send_blocking(Kind::Hello, &[2, 1], &[b"{}"])
        .unwrap();
    assert_eq!(owner.recv(MOMENT).unwrap().kind(), Kind::Hello);
    assert!(!worker.receiver.poll(Duration::ZERO).unwrap());
    forget(&mut owner, 4);
    assert_eq!(next_number(&mut worker), 4);
}

/// Answers each task with its own number, until SHUTDOWN; polls and sleeps by turns.
fn answer(mut worker: Channel) {
    for turn in 0_u64.. {
        let spin = [Duration::ZERO, Duration::from_micros(3), MOMENT][(turn % 3) as usize];
        let frame = worker.recv(spin).unwrap();
        if frame.kind() == Kind::Shutdown {
            return;
        }
        let number = frame.fields().next().unwrap();
        let bytes = vec![1; RESULT_BYTES * (number % 80) as usize];
        worker
            .send_blocking(Kind::Result, &[number, 0], &[&bytes])
            .unwrap();
    }
}

#[test]
fn nothing_is_lost_between_two_that_poll_and_sleep_when_they_like() {
    within_limit(|| {
        let Pair {
            mut owner, worker, ..
        } = connected();
        let worker = thread::spawn(|| answer(worker));
        let count = 30_000_u64;
        let (mut sent, mut answered) = (0, 0);
        while answered < count {
            // Never more on their way than the sockets hold.
            for _ in 0..=sent % 5 {
                if sent < count && sent - answered < 20 {
                    let bytes = vec![0; (sent % 1700) as usize];
                    let done = owner.send(Kind::Task, &[sent, 0, 0, 0], &[&bytes]);
                    assert!(done.unwrap(), "the socket has room");
                    sent += 1;
                }
            }
            let polled = match answered % 3 {
                0 => owner.receiver.poll(Duration::from_micros(5)).unwrap(),
                1 => owner.receiver.poll_page(Duration::from_micros(5)).unwrap(),
                _ => false,
            };
            owner.receiver.stop_polling();
            if !polled && sent - answered < 15 && sent < count {
                continue;
            }
            let frame = owner.recv(Duration::ZERO).unwrap();
            assert_eq!(frame.fields().next(), Some(answered));
            let length = RESULT_BYTES * (answered % 80) as usize;
            assert_eq!(frame.attachments().next().unwrap().len(), length);
            answered += 1;
        }
        owner.send_blocking(Kind::Shutdown, &[], &[]).unwrap();
        worker.join().unwrap();
    });
}

#[test]
fn who_sleeps_is_woken() {
    within_limit(|| {
        let Pair {
            mut owner,
            mut worker,
            ..
        } = connected();
        let woken = thread::spawn(move || {
            assert_eq!(worker.receiver.wait(MOMENT).unwrap(), Wait::Ready);
            next_number(&mut worker)
        });
        thread::sleep(20 * MOMENT);
        let before = Instant::now();
        forget(&mut owner, 5);
        assert_eq!(woken.join().unwrap(), 5);
        assert!(before.elapsed() < Duration::from_secs(20));
    });
}
