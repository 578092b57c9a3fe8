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
        let (base, gone, entries) = match parse(attachments.next())? {
            Told::All(entries) => (None, Vec::new(), entries),
            Told::Changes { base, removed, set } => (base, removed, set),
        };
        let (gone_keys, keys) = match parse(attachments.next())? {
            Told::All(keys) => (Vec::new(), keys),
            Told::Changes { removed, set, .. } => (removed, set),
        };
        let mut state = match base {
            None => State::default(),
            Some(base) => {
                let known = self.0.get(&base);
                known
                    .cloned()
                    .ok_or(format!("version {base} was never sent"))?
            }
        };
        for key in &gone {
            state.entries.remove_mut(key);
        }
        for entry in entries {
            let entry: Descriptor = entry;
            state.entries.insert_mut(entry.key.clone(), Arc::new(entry));
        }
        for key in &gone_keys {
            state.domain.remove_mut(key);
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
