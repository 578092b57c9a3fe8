use std::io;

use super::super::frame::encode;
use super::super::kind::Kind;
use super::super::testing::{Parts, Random};
use super::*;

/// Gives at most a random number of bytes at a time.
struct Trickle<'a> {
    bytes: &'a [u8],
    random: Random,
    most: usize,
    reads: usize,
}

impl<'a> Trickle<'a> {
    fn new(bytes: &'a [u8], most: usize) -> Self {
        Self {
            bytes,
            random: Random::new(most as u64),
            most,
            reads: 0,
        }
    }

    fn next(&mut self, room: usize) -> &'a [u8] {
        self.reads += 1;
        let count = (1 + self.random.up_to(self.most - 1))
            .min(room)
            .min(self.bytes.len());
        let (next, rest) = self.bytes.split_at(count);
        self.bytes = rest;
        next
    }
}

impl Source for Trickle<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let next = self.next(buffer.len());
        buffer[..next.len()].copy_from_slice(next);
        Ok(next.len())
    }

    fn append(&mut self, part: &mut Vec<u8>, room: usize) -> io::Result<usize> {
        let next = self.next(room);
        part.extend_from_slice(next);
        Ok(next.len())
    }
}

fn receive_all(incoming: &mut Incoming, source: &mut Trickle<'_>) -> Result<Vec<Parts>> {
    let mut frames = Vec::new();
    loop {
        while incoming.ready()? {
            frames.push(Parts::from(incoming.take().unwrap()));
        }
        if incoming.fill(source)?.unwrap() == Filled::End {
            return Ok(frames);
        }
    }
}

#[test]
fn frames_arrive_whole_however_their_bytes_are_cut() {
    let mut random = Random::new(5);
    let mut frames: Vec<Parts> = (0..400).map(|_| random.frame(2_000)).collect();
    frames.extend((0..40).map(|_| random.frame(90_000)));
    frames.push(Parts {
        kind: Kind::Result,
        fields: vec![1, 2],
        attachments: vec![random.bytes(3_000_000)],
    });
    frames.extend((0..20).map(|_| random.frame(50)));
    let bytes: Vec<u8> = frames.iter().flat_map(Parts::encoded).collect();
    for most in [3, 100, 5_000, 200_000, usize::MAX >> 2] {
        let mut incoming = Incoming::new();
        let mut source = Trickle::new(&bytes, most);
        let received = receive_all(&mut incoming, &mut source).unwrap();
        assert_eq!(received.len(), frames.len(), "{most} at a time");
        assert!(received == frames, "{most} at a time");
        assert_eq!(incoming.pending_bytes(), 0);
        assert_eq!(
            incoming.buffer.len(),
            PACKED_BYTES,
            "it did not have to grow"
        );
    }
}

#[test]
fn one_read_brings_many_small_frames() {
    let frame = encode(Kind::Task, &[1, 1, 1, 0], &[&[7; 80]]).unwrap();
    let bytes = frame.repeat(1_000);
    let mut source = Trickle::new(&bytes, usize::MAX >> 2);
    let frames = receive_all(&mut Incoming::new(), &mut source).unwrap();
    assert_eq!(frames.len(), 1_000);
    assert!(
        source.reads <= 2 + bytes.len() / (PACKED_BYTES / 2),
        "{}",
        source.reads
    );
}

#[test]
fn a_head_larger_than_the_buffer_is_read() {
    let names: Vec<Vec<u8>> = (0..60_000_u32).map(|n| n.to_le_bytes().to_vec()).collect();
    let frames = [
        Parts {
            kind: Kind::State,
            fields: vec![9],
            attachments: names,
        },
        Parts {
            kind: Kind::Release,
            fields: (0..65_535).collect(),
            attachments: vec![],
        },
    ];
    let bytes: Vec<u8> = frames.iter().flat_map(Parts::encoded).collect();
    let mut source = Trickle::new(&bytes, 50_000);
    let received = receive_all(&mut Incoming::new(), &mut source).unwrap();
    assert!(received == frames);
    assert!(
        source.reads < 100,
        "{} reads of small attachments",
        source.reads
    );
}

#[test]
fn a_made_up_length_allocates_little() {
    for announced in [1 << 40, u64::MAX - 100] {
        let mut head = encode(Kind::Result, &[1, 2], &[&[]]).unwrap();
        let total = announced + head.len() as u64;
        head[8..16].copy_from_slice(&total.to_le_bytes());
        head[32..40].copy_from_slice(&announced.to_le_bytes());
        head.extend_from_slice(&[1; 100]);
        let mut incoming = Incoming::new();
        let mut source = Trickle::new(&head, usize::MAX >> 2);
        assert!(receive_all(&mut incoming, &mut source).unwrap().is_empty());
        assert_eq!(incoming.pending_bytes(), head.len() as u64);
        let Stage::Large(large) = &incoming.stage else {
            panic!("{:?}", incoming.stage)
        };
        assert!(large.parts[0].capacity() as u64 <= 2 * DIRECT_START_BYTES);
    }
}

#[test]
fn what_is_not_a_frame_stays_an_error() {
    let mut bytes = encode(Kind::Shutdown, &[], &[]).unwrap();
    bytes.extend_from_slice(b"GET / HTTP/1.1\r\n\r\n");
    let mut incoming = Incoming::new();
    let mut source = Trickle::new(&bytes, usize::MAX >> 2);
    assert!(!incoming.ready().unwrap());
    incoming.fill(&mut source).unwrap().unwrap();
    assert!(incoming.ready().unwrap());
    assert_eq!(incoming.take().unwrap().kind(), Kind::Shutdown);
    for _ in 0..3 {
        assert!(matches!(incoming.ready(), Err(Error::FrameMagic { .. })));
        assert!(incoming.take().is_none());
    }
}

#[test]
fn room_that_an_attachment_does_not_need_is_the_next_frames() {
    let mut random = Random::new(6);
    let frames: Vec<Parts> = (0..3)
        .map(|id| Parts {
            kind: Kind::Result,
            fields: vec![id, 0],
            attachments: vec![random.bytes(200_000)],
        })
        .collect();
    let bytes: Vec<u8> = frames.iter().flat_map(Parts::encoded).collect();
    let mut source = Trickle::new(&bytes, usize::MAX >> 2);
    let mut incoming = Incoming::new();
    let mut received = Vec::new();
    loop {
        while incoming.ready().unwrap() {
            received.push(Parts::from(incoming.take().unwrap()));
        }
        // What an allocator that rounds up would do.
        if let Stage::Large(large) = &mut incoming.stage
            && let Some((part, _)) = large.current()
        {
            part.reserve(300_000);
        }
        if incoming.fill(&mut source).unwrap().unwrap() == Filled::End {
            break;
        }
    }
    assert!(received == frames);
}
