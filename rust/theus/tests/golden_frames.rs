//! The codec against `schemas/frames.json` and its golden vectors.

use serde_json::Value;
use theus::dispatch::{Count, Kind, PROTOCOL_VERSION, decode, encode};
use theus::error::Error;

const FRAMES: &str = include_str!("../../../schemas/frames.json");
const GOLDEN: &str = include_str!("../../../schemas/golden/frames-2.json");

fn load(text: &str) -> Value {
    serde_json::from_str(text).unwrap()
}

fn text<'a>(value: &'a Value, key: &str) -> &'a str {
    value[key].as_str().unwrap_or_else(|| panic!("{key}"))
}

fn list<'a>(value: &'a Value, key: &str) -> &'a [Value] {
    value[key].as_array().unwrap_or_else(|| panic!("{key}"))
}

fn from_hex(hex: &str) -> Vec<u8> {
    assert_eq!(hex.len() % 2, 0);
    (0..hex.len())
        .step_by(2)
        .map(|at| u8::from_str_radix(&hex[at..at + 2], 16).unwrap())
        .collect()
}

fn bounds(count: Count) -> (u64, u64) {
    match count {
        Count::Exactly(count) => (count.into(), count.into()),
        Count::AtLeast(count) => (count.into(), u16::MAX.into()),
    }
}

#[test]
fn the_kinds_are_those_of_the_schema() {
    let schema = load(FRAMES);
    assert_eq!(schema["version"], PROTOCOL_VERSION);
    let mut parts = list(&schema["frame"], "parts").iter();
    let version = parts.find(|part| part["name"] == "version").unwrap();
    assert_eq!(version["value"], PROTOCOL_VERSION);
    let kinds = list(&schema, "kinds");
    assert_eq!(kinds.len(), Kind::ALL.len());
    for (kind, entry) in Kind::ALL.into_iter().zip(kinds) {
        assert_eq!(entry["id"], kind.number());
        assert_eq!(text(entry, "name"), kind.name());
        for (key, count) in [
            ("field_count", kind.fields()),
            ("attachment_count", kind.attachments()),
        ] {
            let (min, max) = bounds(count);
            assert_eq!(entry[key]["min"], min, "{kind} {key}");
            assert_eq!(entry[key]["max"], max, "{kind} {key}");
        }
    }
}

#[test]
fn the_counts_are_those_of_the_listed_parts() {
    for entry in list(&load(FRAMES), "kinds") {
        for (key, count) in [
            ("fields", "field_count"),
            ("attachments", "attachment_count"),
        ] {
            let parts = list(entry, key);
            let repeated = parts.iter().filter(|part| part["repeated"] == true).count();
            assert_eq!(entry[count]["min"], parts.len() - repeated);
            assert_eq!(repeated > 0, entry[count]["min"] != entry[count]["max"]);
        }
    }
}

#[test]
fn golden_frames_encode_and_decode_to_the_byte() {
    let golden = load(GOLDEN);
    let mut seen = Vec::new();
    for vector in list(&golden, "frames") {
        let name = text(vector, "name");
        let kind = Kind::from_number(vector["kind"].as_u64().unwrap().try_into().unwrap()).unwrap();
        let fields: Vec<u64> = list(vector, "fields")
            .iter()
            .map(|field| field.as_str().unwrap().parse().unwrap())
            .collect();
        let attachments: Vec<Vec<u8>> = list(vector, "attachments")
            .iter()
            .map(|hex| from_hex(hex.as_str().unwrap()))
            .collect();
        let slices: Vec<&[u8]> = attachments.iter().map(Vec::as_slice).collect();
        let bytes = from_hex(text(vector, "frame"));

        assert_eq!(encode(kind, &fields, &slices).unwrap(), bytes, "{name}");
        let frame = decode(&bytes).unwrap();
        assert_eq!(frame.into_parts(), (kind, fields, attachments), "{name}");
        seen.push(kind);
    }
    for kind in Kind::ALL {
        assert!(seen.contains(&kind), "no golden vector for {kind}");
    }
}

#[test]
fn golden_refusals_are_refused_for_their_reason() {
    let golden = load(GOLDEN);
    let refused = list(&golden, "refused");
    assert!(!refused.is_empty());
    for vector in refused {
        let reason = match decode(&from_hex(text(vector, "frame"))).unwrap_err() {
            Error::FrameMagic { .. } => "magic",
            Error::FrameVersion { .. } => "version",
            Error::FrameKind { .. } => "kind",
            Error::FrameCount { .. } => "count",
            Error::FrameLength { .. } => "length",
            Error::FrameIncomplete { .. } => "incomplete",
            other => panic!("{other}"),
        };
        assert_eq!(reason, text(vector, "reason"), "{}", text(vector, "name"));
    }
}
