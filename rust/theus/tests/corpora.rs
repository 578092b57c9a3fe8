//! The fuzzers' seeds, whole, cut and bent, without a fuzzer.

use std::fs;
use std::path::PathBuf;

use theus::dispatch::{Kind, encode};
use theus::layout::tensor::{ElementType, Order, TensorSpec};
use theus::{Config, Session};

#[path = "../fuzz/harness.rs"]
mod harness;

fn place(target: &str) -> PathBuf {
    let corpus = concat!(env!("CARGO_MANIFEST_DIR"), "/fuzz/corpus");
    PathBuf::from(corpus).join(target)
}

/// Gives `run` each seed of `target`, its starts, and copies of it with one bit flipped: some
/// `variants` of each, evenly spread.
fn replay(target: &str, at_least: usize, variants: usize, run: fn(&[u8])) {
    let mut seeds = 0;
    for file in fs::read_dir(place(target)).unwrap() {
        let mut bytes = fs::read(file.unwrap().path()).unwrap();
        run(&bytes);
        for length in (0..bytes.len()).step_by(1 + bytes.len() / variants) {
            run(&bytes[..length]);
        }
        // An odd step, so that all bits of a byte come up.
        let bits = bytes.len() * 8;
        for bit in (0..bits).step_by((bits / variants) | 1) {
            bytes[bit / 8] ^= 1 << (bit % 8);
            run(&bytes);
            bytes[bit / 8] ^= 1 << (bit % 8);
        }
        seeds += 1;
    }
    assert!(seeds >= at_least, "{seeds} seeds of {target}");
}

#[test]
fn tables() {
    replay("table", 6, 50, harness::table);
}

#[test]
fn tensors() {
    replay("tensor", 5, 3_000, harness::tensor);
}

#[test]
fn frames() {
    replay("frame", 5, 200, harness::frame);
}

#[test]
fn descriptors() {
    replay("descriptor", 4, 200, harness::descriptor);
}

#[test]
fn catalogs() {
    replay("catalog", 2, 500, harness::catalog);
}

/// Seeds that are what a session, a worker or an owner really writes.
#[test]
#[ignore = "writes the seeds anew"]
fn write_the_seeds() {
    let write = |target: &str, name: &str, bytes: &[u8]| {
        fs::create_dir_all(place(target)).unwrap();
        fs::write(place(target).join(name), bytes).unwrap();
    };

    let golden = include_str!("../../../schemas/golden/frames-2.json");
    let golden: serde_json::Value = serde_json::from_str(golden).unwrap();
    let mut all = Vec::new();
    let bytes_of = |hex: &str| -> Vec<u8> {
        let bytes = (0..hex.len()).step_by(2);
        bytes
            .map(|at| u8::from_str_radix(&hex[at..at + 2], 16).unwrap())
            .collect()
    };
    for frame in golden["frames"].as_array().unwrap() {
        all.extend(bytes_of(frame["frame"].as_str().unwrap()));
    }
    let with = |piece: u8, descriptors: u8, frames: &[u8]| [&[piece, descriptors], frames].concat();
    write("frame", "all", &with(0, 0, &all));
    write("frame", "all-in-pieces", &with(23, 0, &all));
    let parts = encode(Kind::Parts, &[64, 0, 64], &[]).unwrap();
    write("frame", "parts", &with(0, 0b0000_0101, &parts));
    let stray = encode(Kind::Shutdown, &[], &[]).unwrap().repeat(3);
    write("frame", "stray", &with(16, 0b0000_1001, &stray));
    let state = encode(
        Kind::State,
        &[1],
        &[
            b"[]",
            b"[\"a\"]",
            &[7; 9_000].repeat(4),
            &[8; 10_000].repeat(3),
        ],
    );
    write("frame", "large", &with(0, 0, &state.unwrap()));

    let tensors = [
        ("vector", ElementType::U8, &[3_u64][..], Order::C),
        ("matrix", ElementType::F32, &[3, 5], Order::Fortran),
        ("items", ElementType::I16, &[2, 3, 4], Order::FortranItems),
        ("scalar", ElementType::F64, &[], Order::C),
        ("empty", ElementType::F16, &[4, 0], Order::C),
    ];
    for (name, element, shape, order) in tensors {
        let spec = TensorSpec::dense(name, element, shape, order).unwrap();
        let body = vec![1; usize::try_from(spec.body_bytes()).unwrap()];
        write("tensor", name, &[spec.header(), body].concat());
    }

    let session = Session::create(Config::default()).unwrap();
    let name = session.id().segment(17).to_string();
    write("descriptor", "segment", name.as_bytes());
    write("descriptor", "session", session.id().as_str().as_bytes());
    let words = |words: &[u64]| words.iter().flat_map(|word| word.to_le_bytes()).collect();
    let one: Vec<u8> = words(&[300, 0, 300]);
    let two: Vec<u8> = words(&[300, 0, 3, 64, 236]);
    write("descriptor", "part", &one);
    write("descriptor", "parts", &two);

    let catalog = || fs::read(session.id().segment(0).path()).unwrap();
    write("catalog", "empty", &catalog()[..4096 + 256]);
    for key in ["a", "a longer key of more than one word", "\u{e9}"] {
        let mut tensor = session.alloc_tensor::<u8>(key, &[1]).unwrap();
        tensor.as_mut_slice().fill(1);
        tensor.publish().unwrap();
    }
    write("catalog", "three", &catalog()[..4096 + 4 * 256]);
}
