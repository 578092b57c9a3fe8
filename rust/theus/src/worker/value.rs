//! Plain values as bytes: `MessagePack`, with the extensions of `schemas/values.json`.

use std::sync::Arc;

use rmp_serde::config::BytesMode;
use serde::de::Error as _;
use serde::ser::Error as _;
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use serde_bytes::ByteBuf;

use super::descriptor::Descriptor;
use super::output::Made;

const ENTRY: i8 = 1;
const OUTPUT: i8 = 2;
const OPAQUE: i8 = 3;

/// What an extension is to `rmp_serde`, which knows it by this name.
#[derive(Serialize, Deserialize)]
#[serde(rename = "_ExtStruct")]
struct Extension((i8, ByteBuf));

/// An entry in an input or a result, whatever its size: in an input what the caller gave of its heavy
/// zone, in a result what the task made, or was given.
///
/// As an input it is [opened](crate::worker::Context::open) by the task. `serde` carries it through any
/// struct, list or map; with other formats than the engine's, it fails.
#[derive(Debug, Clone)]
pub struct Handle(pub(super) Target);

#[derive(Debug, Clone)]
pub(super) enum Target {
    Entry(Arc<Descriptor>),
    Output(Arc<Made>),
}

impl Serialize for Handle {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let (kind, payload) = match &self.0 {
            Target::Entry(descriptor) => {
                let json = serde_json::to_vec(descriptor.as_ref()).map_err(S::Error::custom)?;
                (ENTRY, json)
            }
            Target::Output(made) => (OUTPUT, made.refer().to_le_bytes().to_vec()),
        };
        Extension((kind, ByteBuf::from(payload))).serialize(serializer)
    }
}

impl<'de> Deserialize<'de> for Handle {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let Extension((kind, payload)) = Extension::deserialize(deserializer)?;
        if kind != ENTRY {
            let reason = format!("extension {kind} is no entry of the heavy zone");
            return Err(D::Error::custom(reason));
        }
        let descriptor = serde_json::from_slice(&payload).map_err(D::Error::custom)?;
        Ok(Self(Target::Entry(Arc::new(descriptor))))
    }
}

/// The plain value of `value`; `Vec<u8>` and `&[u8]` become bytes.
pub(super) fn encode(
    value: &(impl Serialize + ?Sized),
) -> Result<Vec<u8>, rmp_serde::encode::Error> {
    let mut bytes = Vec::new();
    let serializer = rmp_serde::Serializer::new(&mut bytes).with_struct_map();
    let mut serializer = serializer.with_bytes(BytesMode::ForceAll);
    value.serialize(&mut serializer)?;
    Ok(bytes)
}

/// The value that `bytes` begin with.
pub(super) fn decode<'de, T: Deserialize<'de>>(
    bytes: &'de [u8],
) -> Result<T, rmp_serde::decode::Error> {
    rmp_serde::from_slice(bytes)
}

/// What the value is that its owner could not send, if it is such a one.
pub(super) fn opaque(bytes: &[u8]) -> Option<String> {
    let Extension((kind, payload)) = decode(bytes).ok()?;
    (kind == OPAQUE).then(|| String::from_utf8_lossy(&payload).into_owned())
}

#[cfg(test)]
mod tests;
