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

#[cfg(test)]
mod tests {
    use super::*;

    fn entry(key: &str, number: u64) -> String {
        format!(
            r#"{{"key":"{key}","segment":"theus-k7f3q2mzb4ax-{number}","kind":"tensor","length":8}}"#
        )
    }

    fn take(states: &mut States, version: u64, attachments: &[&str]) -> Result<(), String> {
        states.take(version, attachments.iter().map(|text| text.as_bytes()))
    }

    fn keys(state: &State) -> (Vec<&str>, Vec<&str>) {
        let mut entries: Vec<&str> = state.entries.keys().map(String::as_str).collect();
        let mut domain: Vec<&str> = state.domain.keys().map(String::as_str).collect();
        entries.sort_unstable();
        domain.sort_unstable();
        (entries, domain)
    }

    #[test]
    fn a_version_is_what_differs_from_another_and_leaves_that_as_it_is() {
        let mut states = States::default();
        let all = format!("[{},{}]", entry("a", 1), entry("b", 2));
        take(&mut states, 1, &[&all, r#"["x","y"]"#, "1", "2"]).unwrap();
        let entries = format!(
            r#"{{"base":1,"removed":["a","no"],"set":[{},{}]}}"#,
            entry("b", 3),
            entry("c", 4)
        );
        take(
            &mut states,
            2,
            &[&entries, r#"{"removed":["x"],"set":["y"]}"#, "3"],
        )
        .unwrap();

        assert_eq!(
            keys(states.get(1).unwrap()),
            (vec!["a", "b"], vec!["x", "y"])
        );
        let second = states.get(2).unwrap();
        assert_eq!(keys(second), (vec!["b", "c"], vec!["y"]));
        assert_eq!(
            second.entries.get("b").unwrap().segment,
            "theus-k7f3q2mzb4ax-3"
        );
        assert_eq!(&**second.domain.get("y").unwrap(), b"3");
        states.forget(1);
        assert!(states.get(1).is_none() && states.get(2).is_some());
    }

    #[test]
    fn what_makes_no_version_changes_nothing() {
        let mut states = States::default();
        take(&mut states, 1, &["[]", "[]"]).unwrap();
        for attachments in [
            &["{", "[]"][..],
            &["[7]", "[]"],
            &[r#"[{"key":"a"}]"#, "[]"],
            &["[]", r#"["a","b"]"#, "1"],
            &["[]", "[]", "1"],
            &[r#"{"base":9,"removed":[],"set":[]}"#, "[]"],
        ] {
            assert!(
                take(&mut states, 2, attachments).is_err(),
                "{attachments:?}"
            );
            assert!(states.get(2).is_none());
        }
    }
}
