//! Plain values as bytes: `MessagePack`, with the extensions of `schemas/values.json`.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;

use serde::de::{Deserializer, MapAccess, SeqAccess, Visitor};
use serde::ser::{Error as _, Serializer};
use serde::{Deserialize, Serialize};
use serde_bytes::ByteBuf;

use super::descriptor::Descriptor;
use super::narrow::Narrow;
use super::scope::Scope;
use crate::output::Output;

const ENTRY: i8 = 1;
const OUTPUT: i8 = 2;
const OPAQUE: i8 = 3;

/// What an extension is to `rmp_serde`, which knows it by this name.
#[derive(Serialize, Deserialize)]
#[serde(rename = "_ExtStruct")]
struct Extension((i8, ByteBuf));

/// An array or table in shared memory as an input or a part of a result, whatever its size: in an input
/// what the caller gave of its heavy zone, in a result what the task made, or was given.
///
/// As an input it is [opened](crate::worker::Context::open) by the task. `serde` carries it through any
/// struct, list or map. It belongs to its task: kept for a later one, or written in another format, it
/// is an error.
#[derive(Debug, Clone)]
pub struct Handle {
    pub(super) target: Target,
    pub(super) task: u64,
}

#[derive(Debug, Clone)]
pub(super) enum Target {
    Entry(Arc<Descriptor>),
    Output(Arc<Output>),
}

impl Handle {
    pub(super) fn of_output(output: Arc<Output>, task: u64) -> Self {
        let target = Target::Output(output);
        Self { target, task }
    }

    pub(super) fn of_entry(descriptor: Arc<Descriptor>, task: u64) -> Self {
        let target = Target::Entry(descriptor);
        Self { target, task }
    }

    /// What the payload of an extension refers to.
    fn read<E: serde::de::Error>(kind: i8, payload: &[u8]) -> Result<Self, E> {
        if kind != ENTRY {
            let reason = format!("extension {kind} is no entry of the heavy zone");
            return Err(E::custom(reason));
        }
        let scope = Scope::current();
        let scope = scope.ok_or_else(|| E::custom("a handle comes with the inputs of a task"))?;
        let descriptor = serde_json::from_slice(payload).map_err(E::custom)?;
        Ok(Self::of_entry(Arc::new(descriptor), scope.task()))
    }
}

impl Serialize for Handle {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let scope = Scope::current().filter(|scope| scope.task() == self.task);
        let scope = scope.ok_or_else(|| {
            S::Error::custom(
                "a handle goes into the result of the task that it was given to, or made by: make \
                 the entry again, or have the caller keep it and pass it",
            )
        })?;
        let (kind, payload) = match &self.target {
            Target::Entry(descriptor) => {
                let json = serde_json::to_vec(descriptor.as_ref()).map_err(S::Error::custom)?;
                (ENTRY, json)
            }
            Target::Output(output) => (OUTPUT, scope.refer(output).to_le_bytes().to_vec()),
        };
        Extension((kind, ByteBuf::from(payload))).serialize(serializer)
    }
}

impl<'de> Deserialize<'de> for Handle {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(HandleVisitor)
    }
}

struct HandleVisitor;

impl<'de> Visitor<'de> for HandleVisitor {
    type Value = Handle;

    fn expecting(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str("an array or a table of the heavy zone")
    }

    fn visit_newtype_struct<D: Deserializer<'de>>(self, inner: D) -> Result<Handle, D::Error> {
        let (kind, payload) = <(i8, ByteBuf)>::deserialize(inner)?;
        Handle::read(kind, &payload)
    }
}

/// Any plain value, for inputs and results whose types are not known beforehand. Keys of maps are texts;
/// where they are numbers, take a `BTreeMap` of them.
#[derive(Debug, Clone, Default)]
#[expect(missing_docs, reason = "the names say it")]
pub enum Value {
    /// Python's None.
    #[default]
    Nil,
    Bool(bool),
    Int(i64),
    /// An int that is too large for `Int`.
    Unsigned(u64),
    Float(f64),
    Text(String),
    Bytes(Vec<u8>),
    List(Vec<Value>),
    Map(BTreeMap<String, Value>),
    /// An array or a table in shared memory.
    Handle(Handle),
}

impl Serialize for Value {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self {
            Self::Nil => serializer.serialize_unit(),
            Self::Bool(value) => serializer.serialize_bool(*value),
            Self::Int(value) => serializer.serialize_i64(*value),
            Self::Unsigned(value) => serializer.serialize_u64(*value),
            Self::Float(value) => serializer.serialize_f64(*value),
            Self::Text(value) => serializer.serialize_str(value),
            Self::Bytes(value) => serializer.serialize_bytes(value),
            Self::List(values) => values.serialize(serializer),
            Self::Map(values) => values.serialize(serializer),
            Self::Handle(handle) => handle.serialize(serializer),
        }
    }
}

impl<'de> Deserialize<'de> for Value {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(ValueVisitor)
    }
}

struct ValueVisitor;

impl<'de> Visitor<'de> for ValueVisitor {
    type Value = Value;

    fn expecting(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str("a plain value")
    }

    fn visit_unit<E>(self) -> Result<Value, E> {
        Ok(Value::Nil)
    }

    fn visit_bool<E>(self, value: bool) -> Result<Value, E> {
        Ok(Value::Bool(value))
    }

    fn visit_i64<E>(self, value: i64) -> Result<Value, E> {
        Ok(Value::Int(value))
    }

    fn visit_u64<E>(self, value: u64) -> Result<Value, E> {
        Ok(i64::try_from(value).map_or(Value::Unsigned(value), Value::Int))
    }

    fn visit_f64<E>(self, value: f64) -> Result<Value, E> {
        Ok(Value::Float(value))
    }

    fn visit_str<E>(self, value: &str) -> Result<Value, E> {
        Ok(Value::Text(value.to_owned()))
    }

    fn visit_bytes<E>(self, value: &[u8]) -> Result<Value, E> {
        Ok(Value::Bytes(value.to_vec()))
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut items: A) -> Result<Value, A::Error> {
        let mut list = Vec::new();
        while let Some(item) = items.next_element()? {
            list.push(item);
        }
        Ok(Value::List(list))
    }

    fn visit_map<A: MapAccess<'de>>(self, mut items: A) -> Result<Value, A::Error> {
        let mut map = BTreeMap::new();
        while let Some((key, item)) = items.next_entry()? {
            map.insert(key, item);
        }
        Ok(Value::Map(map))
    }

    fn visit_newtype_struct<D: Deserializer<'de>>(self, inner: D) -> Result<Value, D::Error> {
        HandleVisitor.visit_newtype_struct(inner).map(Value::Handle)
    }
}

/// The plain value of `value`.
pub(super) fn encode(
    value: &(impl Serialize + ?Sized),
) -> Result<Vec<u8>, rmp_serde::encode::Error> {
    rmp_serde::to_vec_named(&Narrow(value))
}

/// The value that `bytes` begin with.
pub(super) fn decode<'de, T: Deserialize<'de>>(
    bytes: &'de [u8],
) -> Result<T, rmp_serde::decode::Error> {
    rmp_serde::from_slice(bytes)
}

/// Why `bytes` are no `T`, and where in them, if that can be told.
pub(super) fn explain<'de, T: Deserialize<'de>>(
    bytes: &'de [u8],
    error: &rmp_serde::decode::Error,
) -> String {
    let mut deserializer = rmp_serde::Deserializer::from_read_ref(bytes);
    let found = serde_path_to_error::deserialize::<_, T>(&mut deserializer);
    let place = match &found {
        Err(error) if error.path().iter().len() > 0 => format!("{}: ", error.path()),
        _ => String::new(),
    };
    let what = match error {
        rmp_serde::decode::Error::TypeMismatch(marker) => {
            format!("{} does not fit", named(marker.to_u8()))
        }
        // serde knows an extension as such.
        other => other
            .to_string()
            .replace("newtype struct", "an array or a table of the heavy zone"),
    };
    format!("{place}{what}")
}

/// What a value is that begins with this byte of `MessagePack`, in the words of its sender.
fn named(first: u8) -> &'static str {
    match first {
        0xc0 => "None",
        0xc2 | 0xc3 => "a bool",
        0xca | 0xcb => "a float",
        0xa0..=0xbf | 0xd9..=0xdb => "a str",
        0xc4..=0xc6 => "bytes",
        0x90..=0x9f | 0xdc | 0xdd => "a list",
        0x80..=0x8f | 0xde | 0xdf => "a dict",
        0xc7..=0xc9 | 0xd4..=0xd8 => "an array or a table of the heavy zone",
        _ => "an int",
    }
}

/// What the value is that its owner could not send, if it is such a one.
pub(super) fn opaque(bytes: &[u8]) -> Option<String> {
    let Extension((kind, payload)) = decode(bytes).ok()?;
    (kind == OPAQUE).then(|| String::from_utf8_lossy(&payload).into_owned())
}

#[cfg(test)]
mod tests;
