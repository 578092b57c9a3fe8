use serde_json::{Value as Json, json};

use super::*;
use crate::worker::output::tests::output;

const GOLDEN: &str = include_str!("../../../../../schemas/golden/values.json");

/// A golden value as what it is here; `None` if only bytes say it.
fn of_json(name: &str, value: &Json) -> Option<Value> {
    Some(match (name, value) {
        ("the largest int", _) => Value::Unsigned(u64::MAX),
        ("the smallest int", _) => Value::Int(i64::MIN),
        (_, Json::Null) => Value::Nil,
        (_, Json::Bool(value)) => Value::Bool(*value),
        (_, Json::Number(number)) => match number.as_i64() {
            Some(value) => Value::Int(value),
            None => Value::Float(number.as_f64()?),
        },
        (_, Json::String(text)) => Value::Text(text.clone()),
        (_, Json::Array(items)) => {
            Value::List(items.iter().filter_map(|item| of_json("", item)).collect())
        }
        (_, Json::Object(object)) if object.contains_key("bin") => Value::Bytes(vec![0, 0xff]),
        (_, Json::Object(object)) => {
            let pairs = object.get("map")?.as_array()?.iter();
            let pair = |pair: &Json| Some((pair[0].as_str()?.to_owned(), of_json("", &pair[1])?));
            Value::Map(pairs.filter_map(pair).collect())
        }
    })
}

fn golden() -> Vec<(String, Json, Vec<u8>)> {
    let golden: Json = serde_json::from_str(GOLDEN).unwrap();
    let values = golden["values"].as_array().unwrap().iter();
    let text = |value: &Json| value.as_str().unwrap().to_owned();
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
fn golden_values_encode_and_decode_to_the_byte() {
    let mut seen = 0;
    for (name, json, bytes) in golden() {
        if let Some(value) = of_json(&name, &json) {
            assert_eq!(encode(&value).unwrap(), bytes, "{name}");
            let decoded: Value = decode(&bytes).unwrap();
            assert_eq!(format!("{decoded:?}"), format!("{value:?}"), "{name}");
            seen += 1;
        }
    }
    assert_eq!(seen, 11);
}

#[test]
fn golden_extensions_are_handles_and_opaque_values() {
    let scope = Scope::new(7);
    let mut seen = 0;
    for (name, json, bytes) in golden() {
        let Some(kind) = json.get("ext").and_then(Json::as_i64) else {
            continue;
        };
        match kind {
            1 => {
                let handle: Handle = scope.enter(|| decode(&bytes)).unwrap();
                let Target::Entry(descriptor) = &handle.target else {
                    panic!("{name}");
                };
                let expected: Descriptor =
                    serde_json::from_str(json["text"].as_str().unwrap()).unwrap();
                assert_eq!(**descriptor, expected);
                assert_eq!(scope.enter(|| encode(&handle)).unwrap(), bytes, "{name}");
                let any: Value = scope.enter(|| decode(&bytes)).unwrap();
                assert_eq!(scope.enter(|| encode(&any)).unwrap(), bytes, "{name}");
            }
            2 => {
                assert!(scope.enter(|| decode::<Handle>(&bytes)).is_err());
                let output = || Handle::of_output(Arc::new(output(&[1])), 7);
                let (first, second) = (output(), output());
                let order = scope.enter(|| encode(&(&first, &second, &first))).unwrap();
                assert_eq!(order[11..21], bytes, "{name}");
                assert_eq!(order[1..11], order[21..31]);
                assert_eq!(scope.referred().len(), 2);
            }
            _ => assert_eq!(opaque(&bytes).as_deref(), json["text"].as_str()),
        }
        seen += 1;
    }
    assert_eq!(seen, 4);
    assert_eq!(opaque(&encode("text").unwrap()), None);
}

#[test]
fn a_handle_is_of_no_use_to_another_task() {
    let handle = Handle::of_output(Arc::new(output(&[1])), 7);
    let (own, other) = (Scope::new(7), Scope::new(8));
    assert!(own.enter(|| encode(&handle)).is_ok());
    let error = other.enter(|| encode(&handle)).unwrap_err().to_string();
    assert!(error.contains("make the entry again"), "{error}");
    assert!(other.referred().is_empty());
    assert!(serde_json::to_string(&handle).is_err());
    // Within a task, too: what its own code writes is not its result.
    assert!(encode(&handle).is_err());
}

#[test]
fn what_is_no_handle_is_refused_by_what_it_is() {
    let error = decode::<Handle>(&encode("price").unwrap())
        .unwrap_err()
        .to_string();
    assert!(
        error.contains("an array or a table of the heavy zone"),
        "{error}"
    );
    assert!(error.contains("price"), "{error}");
}

#[test]
fn the_type_of_a_result_does_not_depend_on_its_values() {
    for numbers in [[10_u8, 0], [200, 1]] {
        assert_eq!(encode(&numbers).unwrap()[0], 0x92);
        assert_eq!(encode(&numbers.to_vec()).unwrap()[0], 0x92);
        assert_eq!(encode(&ByteBuf::from(numbers)).unwrap()[0], 0xc4);
    }
    assert_eq!(encode(&(200_u8, "a")).unwrap()[0], 0x92);
}

#[test]
fn numbers_are_taken_as_what_they_can_be() {
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
    assert!(decode::<u8>(&encode(&300).unwrap()).is_err());
    let value: Value = decode(&encode(&json!({"a": [1, "b"]})).unwrap()).unwrap();
    assert_eq!(
        format!("{value:?}"),
        r#"Map({"a": List([Int(1), Text("b")])})"#
    );
}

#[test]
fn what_does_not_fit_is_named_with_its_place() {
    #[derive(Debug, Deserialize)]
    #[expect(dead_code, reason = "nothing is looked at but the error")]
    struct Input {
        counts: Vec<u8>,
        name: Option<String>,
    }

    #[derive(Debug, Deserialize)]
    #[expect(dead_code, reason = "nothing is looked at but the error")]
    struct Named {
        name: String,
    }

    let why = |value: Json| {
        let bytes = encode(&value).unwrap();
        let error = decode::<Input>(&bytes).unwrap_err();
        explain::<Input>(&bytes, &error)
    };
    assert_eq!(
        why(json!({"counts": [1, "2"]})),
        "counts[1]: a str does not fit"
    );
    assert!(why(json!({"counts": [1, 0.5]})).starts_with("counts[1]: "));
    assert!(why(json!({"counts": [1, 300]})).starts_with("counts[1]: "));
    assert_eq!(why(json!({"name": null})), "missing field `counts`");
    assert!(why(json!({"counts": [], "name": {}})).starts_with("name: "));
    let handle = [0x81, 0xa4, b'n', b'a', b'm', b'e', 0xd4, 1, b'x'];
    let error = decode::<Named>(&handle).unwrap_err();
    assert_eq!(
        explain::<Named>(&handle, &error),
        "name: invalid type: an array or a table of the heavy zone, expected a string"
    );
    assert_eq!(named(0xd8), named(0xc7));
    assert_eq!(named(7), "an int");
}
