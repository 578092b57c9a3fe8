//! What each fuzz target does with bytes: any bytes have to end in an error or in something valid.
//!
//! `tests/corpora.rs` runs the same over the seeds, with every build.

use std::fs::{self, File};
use std::io::{Seek, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::sync::OnceLock;

use arrow::buffer::Buffer;
use rustix::net::{SendAncillaryBuffer, SendAncillaryMessage, SendFlags, sendmsg};
use theus::catalog::read_catalog;
use theus::dispatch::{Channel, Frame, decode, encode};
use theus::layout::{table, tensor};
use theus::{Error, SegmentName, SessionId, Transient};

/// An Arrow IPC file: an error or valid batches.
pub(crate) fn table(bytes: &[u8]) {
    let _ = table::validate(&Buffer::from(bytes));
}

/// A tensor segment: an error or items that lie in it, each once.
pub(crate) fn tensor(bytes: &[u8]) {
    let length = bytes.len() as u64;
    let Ok(start) = tensor::body_offset(bytes, length) else {
        return;
    };
    let Ok(spec) = tensor::read_header(&bytes[..start], length) else {
        return;
    };
    let body = length - start as u64;
    assert!(spec.body_bytes() <= body, "{spec:?} in {body} bytes");
    if spec.body_bytes() == 0 {
        return;
    }
    let dims = spec.shape.iter().zip(&spec.strides);
    let last: u64 = dims.map(|(size, stride)| (size - 1) * stride).sum();
    let reach = last + spec.element.bytes();
    assert!(reach <= body, "{spec:?} in {body} bytes");
    assert_eq!(reach, spec.body_bytes(), "{spec:?} has gaps or overlaps");
    // What it says of itself makes the same header again.
    let header = spec.header();
    let again = tensor::read_header(&header, header.len() as u64 + spec.body_bytes());
    assert_eq!(again.as_ref(), Ok(&spec));
}

/// A stream of frames, in pieces and with descriptors as the first two bytes say: frames, then an
/// error. After the error there is nothing else.
pub(crate) fn frame(bytes: &[u8]) {
    let [piece, pattern, stream @ ..] = bytes else {
        return;
    };
    if let Ok(frame) = decode(stream) {
        assert_eq!(encoded(&frame), stream);
    }
    let (theirs, ours) = UnixStream::pair().unwrap();
    ours.set_nonblocking(true).unwrap();
    let mut channel = Channel::from_fd(OwnedFd::from(ours)).unwrap();
    let pieces = stream.chunks(match piece {
        0 => usize::MAX,
        &length => length.into(),
    });
    let mut seen = Vec::new();
    for (number, piece) in pieces.enumerate() {
        let descriptors = usize::from(pattern & 3) * usize::from(pattern >> (2 + number % 6) & 1);
        send(&theirs, piece, descriptors);
        if !take_all(&mut channel, &mut seen) {
            assert!(!take_all(&mut channel, &mut seen), "an error stays");
            break;
        }
    }
    // Whatever came out is what went in, in its order and without a gap.
    assert_eq!(seen, stream[..seen.len()]);
}

fn take_all(channel: &mut Channel, seen: &mut Vec<u8>) -> bool {
    loop {
        let kind = match channel.try_recv() {
            Ok(Some(frame)) => {
                seen.extend(encoded(&frame));
                frame.kind()
            }
            Ok(None) => return true,
            Err(Error::Os { operation, source }) => panic!("{operation}: {source}"),
            Err(_) => return false,
        };
        if kind.carries_descriptor() {
            let _ = channel.receiver.take_descriptor(kind);
        }
    }
}

fn encoded(frame: &Frame<'_>) -> Vec<u8> {
    let fields: Vec<u64> = frame.fields().collect();
    let attachments: Vec<&[u8]> = frame.attachments().collect();
    encode(frame.kind(), &fields, &attachments).unwrap()
}

fn send(socket: &UnixStream, piece: &[u8], descriptors: usize) {
    let descriptors = [socket.as_fd(); 3][..descriptors].to_vec();
    let mut space = [std::mem::MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(3))];
    let mut control = SendAncillaryBuffer::new(&mut space);
    if !descriptors.is_empty() {
        control.push(SendAncillaryMessage::ScmRights(&descriptors));
    }
    let slices = [std::io::IoSlice::new(piece)];
    // A socket that is full or closed takes no more of the input, which is as good as its end.
    let _ = sendmsg(
        socket,
        &slices,
        &mut control,
        SendFlags::DONTWAIT | SendFlags::NOSIGNAL,
    );
}

/// A name, or the places in a transient segment: one spelling, places that lie inside.
pub(crate) fn descriptor(bytes: &[u8]) {
    if let Ok(text) = std::str::from_utf8(bytes) {
        if let Ok(name) = text.parse::<SegmentName>() {
            assert_eq!(name.to_string(), text);
            assert!(text.len() <= 40 && name.path().ends_with(text));
        }
        if let Ok(id) = text.parse::<SessionId>() {
            assert_eq!(id.as_str(), text);
        }
    }
    let fields: Vec<u64> = bytes
        .chunks(8)
        .map(|word| {
            let mut whole = [0; 8];
            whole[..word.len()].copy_from_slice(word);
            u64::from_le_bytes(whole)
        })
        .collect();
    let file = rustix::fs::memfd_create("parts", rustix::fs::MemfdFlags::CLOEXEC).unwrap();
    rustix::fs::ftruncate(&file, 300).unwrap();
    let Ok(parts) = Transient::received(file, &fields) else {
        return;
    };
    let mapping = parts.private().unwrap();
    for part in parts.parts() {
        assert!(part.offset + part.length <= mapping.len());
    }
}

/// What lies under a catalog's name: an error, or entries with keys that fit.
pub(crate) fn catalog(bytes: &[u8]) {
    static PLACE: OnceLock<SessionId> = OnceLock::new();
    let session = PLACE.get_or_init(|| SessionId::random().unwrap());
    let path = session.segment(0).path();
    let mut file = File::create(&path).unwrap();
    file.write_all(bytes).unwrap();
    file.rewind().unwrap();
    let found = read_catalog(session);
    fs::remove_file(&path).unwrap();
    match found {
        Ok((_, entries)) => {
            assert!(entries.len() <= bytes.len() / 256);
            for entry in entries {
                // Bytes that are no UTF-8 become a sign of three bytes each.
                assert!(entry.key.len() <= 3 * theus::catalog::MAX_KEY_BYTES);
                assert!(entry.segment.number > 0 && entry.segment.session == *session);
            }
        }
        Err(Error::CorruptSegment { .. }) => {}
        Err(other) => panic!("{other}"),
    }
}
