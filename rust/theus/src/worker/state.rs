//! The versions of the state that tasks refer to.

use std::collections::HashMap;
use std::sync::Arc;

use rpds::HashTrieMapSync;
use serde::Deserialize;
use serde::de::DeserializeOwned;

use super::descriptor::Descriptor;

/// One version: what a task is given. Versions share what they have in common.
#[derive(Debug, Clone, Default)]
pub(super) struct State {
    pub(super) entries: HashTrieMapSync<String, Arc<Descriptor>>,
    pub(super) domain: HashTrieMapSync<String, Arc<[u8]>>,
}

/// A list in a STATE frame: all, or how it differs from that of another version.
#[derive(Debug, Deserialize)]
#[serde(untagged)]
enum Told<T> {
    All(Vec<T>),
    Changes {
        base: Option<u64>,
        removed: Vec<String>,
        set: Vec<T>,
    },
}

/// The versions that the owner has sent and did not have forgotten.
#[derive(Debug, Default)]
pub(super) struct States(HashMap<u64, State>);

impl States {
    /// The version of this number.
    pub(super) fn get(&self, version: u64) -> Option<&State> {
        self.0.get(&version)
    }

    pub(super) fn forget(&mut self, version: u64) {
        self.0.remove(&version);
    }

    /// Takes the attachments of a STATE frame; the error says what is wrong with them.
    pub(super) fn take<'a>(
        &mut self,
        version: u64,
        mut attachments: impl Iterator<Item = &'a [u8]>,
    ) -> Result<(), String> {
        let entries: Told<Descriptor> = parse(attachments.next())?;
        let keys: Told<String> = parse(attachments.next())?;
        let (mut state, entries, keys) = match (entries, keys) {
            (Told::All(entries), Told::All(keys)) => (State::default(), entries, keys),
            (
                Told::Changes { base, removed, set },
                Told::Changes {
                    removed: removed_keys,
                    set: set_keys,
                    ..
                },
            ) => {
                let base = base.ok_or("it does not say what it differs from")?;
                let known = self.get(base).cloned();
                let mut state = known.ok_or(format!("version {base} was never sent"))?;
                for key in &removed {
                    state.entries.remove_mut(key);
                }
                for key in &removed_keys {
                    state.domain.remove_mut(key);
                }
                (state, set, set_keys)
            }
            _ => return Err("one half of it is whole, the other a difference".to_owned()),
        };
        for entry in entries {
            state.entries.insert_mut(entry.key.clone(), Arc::new(entry));
        }
        let values: Vec<Arc<[u8]>> = attachments.map(Arc::from).collect();
        if values.len() != keys.len() {
            return Err(format!(
                "{} domain keys have {} values",
                keys.len(),
                values.len()
            ));
        }
        for (key, value) in keys.into_iter().zip(values) {
            state.domain.insert_mut(key, value);
        }
        self.0.insert(version, state);
        Ok(())
    }
}

fn parse<T: DeserializeOwned>(attachment: Option<&[u8]>) -> Result<Told<T>, String> {
    serde_json::from_slice(attachment.unwrap_or_default()).map_err(|error| error.to_string())
}
