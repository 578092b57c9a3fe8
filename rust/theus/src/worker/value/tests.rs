use std::collections::BTreeMap;

use serde_json::{Value, json};

use super::*;
use crate::worker::output::Referred;

const GOLDEN: &str = include_str!("../../../../../schemas/golden/values.json");

/// The values that no extension is.
fn plain(name: &str, value: &Value) -> Option<Vec<u8>> {
    let bytes = match (name, value) {
        ("the largest int", _) => encode(&u64::MAX),
        ("the smallest int", _) => encode(&i64::MIN),
        (_, Value::Object(object)) if object.contains_key("ext") => return None,
        (_, Value::Object(object)) if object.contains_key("bin") => encode(&vec![0_u8, 0xff]),
        (_, Value::Object(object)) => {
            let pairs = object["map"].as_array().unwrap().iter();
            let map: BTreeMap<&str, &Value> = pairs
                .map(|pair| (pair[0].as_str().unwrap(), &pair[1]))
                .collect();
            encode(&map)
        }
        _ => encode(value),
    };
    Some(bytes.unwrap())
}

fn golden() -> Vec<(String, Value, Vec<u8>)> {
    let golden: Value = serde_json::from_str(GOLDEN).unwrap();
    let values = golden["values"].as_array().unwrap().iter();
    let text = |value: &Value| value.as_str().unwrap().to_owned();
    values
        .map(|vector| {
            let hex = text(&vector["bytes"]);
            let bytes = (0..hex.len()).step_by(2);
            let bytes = bytes.map(|at| u8::from_str_radix(&hex[at..at + 2], 16).unwrap());
            (
                text(&vector["name"]),
                vector["value"].clone(),
                bytes.collect(),
            )
        })
        .collect()
}

#[test]
fn golden_values_encode_to_the_byte() {
    let mut seen = 0;
    for (name, value, bytes) in golden() {
        if let Some(encoded) = plain(&name, &value) {
            assert_eq!(encoded, bytes, "{name}");
            seen += 1;
        }
    }
    assert!(seen >= 10, "{seen}");
}

#[test]
fn golden_values_decode() {
    let mut seen = 0;
    for (name, value, bytes) in golden() {
        match (name.as_str(), &value) {
            ("the largest int", _) => assert_eq!(decode::<u64>(&bytes).unwrap(), u64::MAX),
            ("the smallest int", _) => assert_eq!(decode::<i64>(&bytes).unwrap(), i64::MIN),
            (_, Value::Object(object)) if object.contains_key("ext") => continue,
            (_, Value::Object(object)) if object.contains_key("bin") => {
                assert_eq!(decode::<ByteBuf>(&bytes).unwrap(), [0, 0xff]);
                assert_eq!(decode::<&[u8]>(&bytes).unwrap(), [0, 0xff]);
            }
            (_, Value::Object(object)) => {
                let expected: BTreeMap<String, Value> =
                    serde_json::from_value(json!({"column": "price", "limits": [1, 2.5]})).unwrap();
                assert!(object.contains_key("map"));
                assert_eq!(decode::<BTreeMap<String, Value>>(&bytes).unwrap(), expected);
            }
            _ => assert_eq!(decode::<Value>(&bytes).unwrap(), value, "{name}"),
        }
        seen += 1;
    }
    assert!(seen >= 10, "{seen}");
}

#[test]
fn golden_extensions_are_handles_and_opaque_values() {
    let mut seen = 0;
    for (name, value, bytes) in golden() {
        let Some(kind) = value.get("ext").and_then(Value::as_i64) else {
            continue;
        };
        match kind {
            1 => {
                let handle: Handle = decode(&bytes).unwrap();
                let Target::Entry(descriptor) = &handle.0 else {
                    panic!("{name}");
                };
                let text = value["text"].as_str().unwrap();
                let expected: Descriptor = serde_json::from_str(text).unwrap();
                assert_eq!(**descriptor, expected);
                assert_eq!(encode(&handle).unwrap(), bytes, "{name}");
            }
            2 => {
                assert!(decode::<Handle>(&bytes).is_err());
                let referred = Referred::default();
                let output = || crate::worker::output::tests::output(&referred);
                let (first, second) = (output(), output());
                let (first, second) = (
                    Handle(Target::Output(first)),
                    Handle(Target::Output(second)),
                );
                let order = encode(&(&first, &second, &first)).unwrap();
                assert_eq!(&order[11..21], bytes, "{name}");
                assert_eq!(order[1..11], order[21..31]);
                assert_eq!(referred.lock().unwrap().len(), 2);
            }
            _ => assert_eq!(opaque(&bytes).as_deref(), value["text"].as_str()),
        }
        seen += 1;
    }
    assert_eq!(seen, 4);
    assert_eq!(opaque(&encode("text").unwrap()), None);
}

#[test]
fn values_are_taken_as_what_they_can_be() {
    assert!(decode::<Handle>(&encode("price").unwrap()).is_err());
    assert_eq!(
        decode::<Vec<u8>>(&encode(&[1_u16, 2]).unwrap()).unwrap(),
        [1, 2]
    );
    assert_eq!(
        decode::<Vec<f64>>(&encode(&[3, -1]).unwrap()).unwrap(),
        [3.0, -1.0]
    );
    assert_eq!(
        decode::<Vec<u8>>(&encode(&ByteBuf::from([7])).unwrap()).unwrap(),
        [7]
    );
}
