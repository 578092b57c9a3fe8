use super::super::testing::{Parts, Random};
use super::super::{Count, Kind};
use super::*;

#[test]
fn random_frames_survive_encoding_and_decoding() {
    let mut random = Random::new(1);
    for _ in 0..2_000 {
        let parts = random.frame(300);
        assert_eq!(Parts::from(decode(&parts.encoded()).unwrap()), parts);
    }
}

#[test]
fn every_prefix_of_a_frame_is_incomplete() {
    let mut random = Random::new(2);
    for _ in 0..100 {
        let bytes = random.frame(100).encoded();
        for length in 0..bytes.len() {
            match decode(&bytes[..length]) {
                Err(Error::FrameIncomplete { expected, found }) => {
                    assert_eq!(found, length);
                    assert!((length as u64 + 1..=bytes.len() as u64).contains(&expected));
                }
                other => panic!("{length} of {} bytes: {other:?}", bytes.len()),
            }
        }
    }
}

#[test]
fn a_flipped_bit_in_the_head_is_an_error_or_a_frame_of_the_same_length() {
    let mut random = Random::new(3);
    let mut decoded = 0;
    for _ in 0..300 {
        let parts = random.frame(60);
        let bytes = parts.encoded();
        let head = PREFIX_BYTES + WORD_BYTES * (parts.fields.len() + parts.attachments.len());
        for bit in 0..head * 8 {
            let mut flipped = bytes.clone();
            flipped[bit / 8] ^= 1 << (bit % 8);
            if let Ok(frame) = decode(&flipped) {
                decoded += 1;
                let other = Parts::from(frame);
                assert_eq!(other.encoded(), flipped, "bit {bit}");
            }
        }
    }
    assert!(decoded > 0, "flips in fields decode");
}

#[test]
fn random_bytes_never_panic() {
    let mut random = Random::new(4);
    for _ in 0..20_000 {
        let length = random.up_to(80);
        let mut bytes = random.bytes(length);
        let start = random.up_to(4).min(length);
        bytes[..start].copy_from_slice(&[b'T', b'H', PROTOCOL_VERSION, 7][..start]);
        let _ = decode(&bytes);
    }
}

#[test]
fn each_fault_has_its_own_error() {
    let good = encode(Kind::Task, &[1, 2, 3, 4], &[b"pickle"]).unwrap();
    let with = |at: usize, value: u8| {
        let mut bytes = good.clone();
        bytes[at] = value;
        decode(&bytes).map(drop)
    };
    assert!(matches!(
        with(0, b'X'),
        Err(Error::FrameMagic {
            found: [b'X', b'H']
        })
    ));
    assert!(matches!(
        with(2, 1),
        Err(Error::FrameVersion {
            found: 1,
            expected: 2
        })
    ));
    assert!(matches!(with(3, 0), Err(Error::FrameKind { found: 0 })));
    assert!(matches!(with(3, 200), Err(Error::FrameKind { found: 200 })));
    assert!(matches!(
        with(4, 5),
        Err(Error::FrameCount {
            part: "fields",
            found: 5,
            ..
        })
    ));
    assert!(matches!(
        with(6, 0),
        Err(Error::FrameCount {
            part: "attachments",
            found: 0,
            ..
        })
    ));
    // Total shorter than the head, then shorter than the attachments, then longer.
    assert!(matches!(
        with(8, 20),
        Err(Error::FrameLength {
            expected: 56,
            found: 20,
            ..
        })
    ));
    assert!(matches!(
        with(8, 61),
        Err(Error::FrameLength {
            expected: 62,
            found: 61,
            ..
        })
    ));
    assert!(matches!(
        with(48, 7),
        Err(Error::FrameLength {
            expected: 63,
            found: 62,
            ..
        })
    ));
    let mut longer = good.clone();
    longer.push(0);
    assert!(matches!(
        decode(&longer),
        Err(Error::FrameLength {
            expected: 63,
            found: 62,
            ..
        })
    ));
}

#[test]
fn lengths_that_overflow_are_an_error() {
    let mut bytes = encode(Kind::Error, &[1, 2, 0], &[b"", b""]).unwrap();
    let lengths = bytes.len() - 2 * WORD_BYTES;
    bytes[lengths..].fill(0xFF);
    assert!(matches!(
        decode(&bytes),
        Err(Error::FrameLength {
            expected: u64::MAX,
            ..
        })
    ));
    bytes[8..16].fill(0xFF);
    assert!(matches!(
        decode(&bytes),
        Err(Error::FrameLength {
            found: u64::MAX,
            ..
        })
    ));
}

#[test]
fn encoding_refuses_what_the_kind_does_not_have() {
    assert!(encode(Kind::Shutdown, &[1], &[]).is_err());
    assert!(encode(Kind::State, &[1], &[b"[]"]).is_err());
    let too_many = vec![0; usize::from(u16::MAX) + 1];
    assert!(encode(Kind::Release, &too_many, &[]).is_err());
    assert!(encode(Kind::Release, &too_many[1..], &[]).is_ok());
}

#[test]
fn the_attachments_know_how_many_they_are() {
    let bytes = encode(Kind::State, &[1], &[b"[]", b"", b"xyz"]).unwrap();
    let frame = decode(&bytes).unwrap();
    let mut attachments = frame.attachments();
    assert_eq!(attachments.len(), 3);
    assert_eq!(attachments.nth(2), Some(&b"xyz"[..]));
    assert_eq!(attachments.len(), 0);
    assert_eq!(attachments.next(), None);
    assert_eq!(frame.fields().collect::<Vec<_>>(), [1]);
    assert_eq!(Kind::State.attachments(), Count::AtLeast(2));
}
