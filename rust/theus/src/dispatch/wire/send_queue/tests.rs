use super::super::testing::{Parts, Random};
use super::*;

/// Takes a random number of bytes at a time, up to `most`, and every so often none. With a `most`
/// of `usize::MAX` it takes everything.
struct Grudging {
    taken: Vec<u8>,
    random: Random,
    most: usize,
    writes: usize,
}

impl Grudging {
    fn new(most: usize) -> Self {
        Self {
            taken: Vec::new(),
            random: Random::new(most as u64),
            most,
            writes: 0,
        }
    }
}

impl Sink for Grudging {
    fn write_with(&mut self, bytes: &[u8], _: BorrowedFd<'_>) -> io::Result<usize> {
        self.write(bytes)
    }
}

impl Write for Grudging {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.write_vectored(&[IoSlice::new(bytes)])
    }

    fn write_vectored(&mut self, slices: &[IoSlice<'_>]) -> io::Result<usize> {
        self.writes += 1;
        let mut left = self.most;
        if self.most < usize::MAX {
            if self.random.up_to(3) == 0 {
                return Err(io::ErrorKind::WouldBlock.into());
            }
            left = 1 + self.random.up_to(self.most - 1);
        }
        let before = self.taken.len();
        for slice in slices {
            let count = left.min(slice.len());
            self.taken.extend_from_slice(&slice[..count]);
            left -= count;
        }
        Ok(self.taken.len() - before)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

fn send(outgoing: &mut Outgoing, writer: &mut Grudging, parts: &Parts) -> usize {
    let slices = parts.slices();
    let mut kept = 0;
    outgoing
        .send(
            writer,
            parts.kind,
            &parts.fields,
            &slices,
            &mut |index, skip| {
                kept += 1;
                Box::new(slices[index][skip..].to_vec())
            },
        )
        .unwrap()
        .unwrap();
    kept
}

#[test]
fn everything_arrives_once_and_in_order_however_little_is_taken() {
    let mut random = Random::new(7);
    let frames: Vec<Parts> = (0..300)
        .map(|n| random.frame(if n % 20 == 0 { 80_000 } else { 500 }))
        .collect();
    let bytes: Vec<u8> = frames.iter().flat_map(Parts::encoded).collect();
    for most in [7, 1_000, 50_000, 1_000_000] {
        let mut outgoing = Outgoing::default();
        let mut writer = Grudging::new(most);
        for frame in &frames {
            send(&mut outgoing, &mut writer, frame);
            assert_eq!(
                outgoing
                    .queue
                    .iter()
                    .map(|c| c.bytes().len())
                    .sum::<usize>(),
                outgoing.queued_bytes + outgoing.sent_of_first
            );
        }
        while outgoing.queued_bytes() > 0 {
            outgoing.flush(&mut writer).unwrap();
        }
        assert!(outgoing.queue.is_empty() && outgoing.sent_of_first == 0);
        assert!(writer.taken == bytes, "{most} at a time");
    }
}

#[test]
fn a_frame_that_is_taken_whole_is_one_write_and_keeps_nothing() {
    for length in [10, PACKED_BYTES, 5_000_000] {
        let parts = Parts {
            kind: Kind::Result,
            fields: vec![1, 2],
            attachments: vec![vec![3; length]],
        };
        let mut outgoing = Outgoing::default();
        let mut writer = Grudging::new(usize::MAX);
        assert_eq!(send(&mut outgoing, &mut writer, &parts), 0);
        assert_eq!(writer.writes, 1, "{length} bytes");
        assert_eq!(outgoing.queued_bytes(), 0);
    }
}

#[test]
fn only_what_is_large_and_has_to_wait_is_kept() {
    let parts = Parts {
        kind: Kind::State,
        fields: vec![1],
        attachments: vec![
            vec![1; 100],
            vec![2; 200_000],
            vec![3; 100],
            vec![4; KEEP_BYTES],
        ],
    };
    let mut outgoing = Outgoing::default();
    let mut writer = Grudging::new(1_000);
    assert_eq!(send(&mut outgoing, &mut writer, &parts), 2);
    // Head and first attachment may be gone; the small ones between are copies.
    assert!(outgoing.queue.len() <= 4);
}

#[test]
fn small_frames_that_wait_are_sent_together() {
    let parts = Parts {
        kind: Kind::Task,
        fields: vec![1, 2, 3, 0],
        attachments: vec![vec![5; 60]],
    };
    let mut outgoing = Outgoing::default();
    outgoing.push_copy(b"x");
    let mut writer = Grudging::new(usize::MAX);
    for _ in 0..1_000 {
        outgoing.push_copy(&parts.encoded());
    }
    assert_eq!(outgoing.queue.len(), 1);
    outgoing.flush(&mut writer).unwrap();
    assert_eq!((writer.writes, outgoing.queued_bytes()), (1, 0));
}

#[test]
fn a_frame_that_its_kind_forbids_sends_nothing() {
    let mut outgoing = Outgoing::default();
    let mut writer = Grudging::new(usize::MAX);
    let refused = outgoing.send(
        &mut writer,
        Kind::Hello,
        &[],
        &[],
        &mut |_, _| unreachable!(),
    );
    assert!(refused.is_err());
    assert_eq!((writer.writes, outgoing.queued_bytes()), (0, 0));
}
