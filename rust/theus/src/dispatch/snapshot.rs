//! One version of the state that tasks see, and the STATE frame that tells it to a worker.
//!
//! A snapshot has descriptors and encoded values, no segments: keeping these alive is the caller's
//! affair (`TaskSpec::keepalive`). Versions share what they have in common.

use std::sync::{Arc, Mutex, OnceLock, PoisonError};

use rpds::HashTrieMapSync;

use super::change_log::{ChangeLog, Changed};
use super::message::Message;

/// A state of so few keys and bytes may be sent to a worker that might not need it.
const FEW: usize = 64;
const SMALL_BYTES: usize = 64 << 10;

/// A value of the domain.
#[derive(Debug, Default)]
pub struct DomainValue {
    /// The pickle, for workers that take pickles.
    pub pickle: Message,
    /// The plain value, for the others; set before a task is sent to one of these.
    pub plain: OnceLock<Box<[u8]>>,
}

/// A value under a key, with the number under which the key came in.
#[derive(Debug)]
struct Numbered<T: ?Sized> {
    order: u64,
    value: Arc<T>,
}

type Map<T> = HashTrieMapSync<Arc<str>, Numbered<T>>;

/// One version of the state; it never changes.
#[derive(Debug, Clone)]
pub struct Snapshot {
    version: u64,
    /// JSON descriptors by key, see `schemas/descriptor.json`.
    entries: Map<[u8]>,
    domain: Map<DomainValue>,
    next: u64,
    log: Arc<Mutex<ChangeLog>>,
}

/// A key to set, or to remove where there is no value.
pub type Change<T> = (Arc<str>, Option<Arc<T>>);

impl Default for Snapshot {
    fn default() -> Self {
        Self {
            version: 0,
            entries: Map::new_sync(),
            domain: Map::new_sync(),
            next: 0,
            log: Arc::default(),
        }
    }
}

/// The attachments of a STATE frame.
#[derive(Debug)]
pub(super) struct StateFrame {
    pub(super) entries: Vec<u8>,
    pub(super) domain_keys: Vec<u8>,
    pub(super) values: Vec<Arc<DomainValue>>,
}

impl Snapshot {
    /// The number of the version.
    #[must_use]
    pub fn version(&self) -> u64 {
        self.version
    }

    /// Returns the next version: this one with some keys changed. New keys come last, in this order.
    #[must_use]
    pub fn changed(
        &self,
        version: u64,
        entries: &[Change<[u8]>],
        domain: &[Change<DomainValue>],
    ) -> Self {
        let mut next = self.clone();
        next.version = version;
        for (key, value) in entries {
            change(&mut next.entries, &mut next.next, key, value.as_ref());
        }
        for (key, value) in domain {
            change(&mut next.domain, &mut next.next, key, value.as_ref());
        }
        let keys = Changed {
            entries: entries.iter().map(|(key, _)| Arc::clone(key)).collect(),
            domain: domain.iter().map(|(key, _)| Arc::clone(key)).collect(),
        };
        let everything = next.entries.size() + next.domain.size();
        let mut log = self.log.lock().unwrap_or_else(PoisonError::into_inner);
        log.note(version, keys, everything);
        drop(log);
        next
    }

    /// Returns whether telling it costs next to nothing, so that it may be sent ahead of a task.
    pub(super) fn is_small(&self) -> bool {
        if self.entries.size() + self.domain.size() > FEW {
            return false;
        }
        let mut values = self.domain.values().map(|it| &it.value.pickle);
        let mut bytes = 0;
        values.all(|pickle| {
            bytes += pickle.data.len();
            pickle.parts.is_none() && bytes <= SMALL_BYTES
        })
    }

    /// Returns whether a worker without pickles can be told it.
    pub(super) fn is_plain(&self) -> bool {
        let mut values = self.domain.values();
        values.all(|it| it.value.plain.get().is_some())
    }

    /// Sets the plain value that stands for a value of the domain.
    pub fn set_plain(&self, key: &str, plain: Box<[u8]>) {
        if let Some(found) = self.domain.get(key) {
            // Of two that are equal the first stays.
            let _ = found.value.plain.set(plain);
        }
    }

    /// Returns the frame that tells this version to a worker that holds `base`, or none.
    pub(super) fn frame(&self, base: Option<&Self>) -> StateFrame {
        base.and_then(|base| self.difference(base))
            .unwrap_or_else(|| self.whole())
    }

    fn whole(&self) -> StateFrame {
        let entries = ordered(&self.entries);
        let domain = ordered(&self.domain);
        StateFrame {
            entries: array(entries.iter().map(|(_, it)| &*it.value)),
            domain_keys: json(&domain.iter().map(|(key, _)| &***key).collect::<Vec<_>>()),
            values: domain.iter().map(|(_, it)| Arc::clone(&it.value)).collect(),
        }
    }

    fn difference(&self, base: &Self) -> Option<StateFrame> {
        let log = self.log.lock().unwrap_or_else(PoisonError::into_inner);
        let steps = log.between(base.version, self.version)?;
        let newer = self.version >= base.version;
        let keys = steps.iter().flat_map(|step| &step.entries);
        let entries = Difference::of(&base.entries, &self.entries, keys, newer)?;
        let keys = steps.iter().flat_map(|step| &step.domain);
        let domain = Difference::of(&base.domain, &self.domain, keys, newer)?;
        let mut told = format!(
            r#"{{"base":{},"removed":{},"set":"#,
            base.version,
            String::from_utf8_lossy(&json(&entries.removed)),
        )
        .into_bytes();
        told.extend(array(entries.set.iter().map(|(_, it)| &*it.value)));
        told.push(b'}');
        let names: Vec<&str> = domain.set.iter().map(|(key, _)| &***key).collect();
        Some(StateFrame {
            entries: told,
            domain_keys: json(&serde_json::json!({"removed": domain.removed, "set": names})),
            values: domain
                .set
                .iter()
                .map(|(_, it)| Arc::clone(&it.value))
                .collect(),
        })
    }
}

fn change<T: ?Sized>(map: &mut Map<T>, next: &mut u64, key: &Arc<str>, value: Option<&Arc<T>>) {
    let Some(value) = value else {
        map.remove_mut(&**key);
        return;
    };
    let order = map.get(&**key).map_or(*next, |known| known.order);
    *next += u64::from(order == *next);
    let value = Arc::clone(value);
    map.insert_mut(Arc::clone(key), Numbered { order, value });
}

/// The changes that make one version's keys another's.
struct Difference<'a, T: ?Sized> {
    removed: Vec<&'a str>,
    set: Vec<(&'a Arc<str>, &'a Numbered<T>)>,
}

impl<'a, T: ?Sized> Difference<'a, T> {
    /// The difference in these keys; none if it would not give a key its place among the others, which
    /// can be so if `to` is not the newer one.
    fn of(
        from: &'a Map<T>,
        to: &'a Map<T>,
        keys: impl Iterator<Item = &'a Arc<str>>,
        newer: bool,
    ) -> Option<Self> {
        let mut removed = Vec::new();
        let mut set: Vec<(&Arc<str>, &Numbered<T>)> = Vec::new();
        let mut seen = std::collections::HashSet::new();
        for key in keys {
            if !seen.insert(&**key) {
                continue;
            }
            let known = from.get(&**key);
            let Some((key, wanted)) = to.get_key_value(&**key) else {
                removed.extend(known.map(|_| &**key));
                continue;
            };
            match known {
                Some(known) if known.order == wanted.order => {
                    if !Arc::ptr_eq(&known.value, &wanted.value) {
                        set.push((key, wanted));
                    }
                }
                _ if !newer => return None,
                known => {
                    removed.extend(known.map(|_| &**key));
                    set.push((key, wanted));
                }
            }
        }
        set.sort_by_key(|(_, it)| it.order);
        Some(Self { removed, set })
    }
}

fn ordered<T: ?Sized>(map: &Map<T>) -> Vec<(&Arc<str>, &Numbered<T>)> {
    let mut items: Vec<_> = map.iter().collect();
    items.sort_by_key(|(_, it)| it.order);
    items
}

fn array<'a>(items: impl Iterator<Item = &'a [u8]>) -> Vec<u8> {
    let mut text = vec![b'['];
    for item in items {
        if text.len() > 1 {
            text.push(b',');
        }
        text.extend_from_slice(item);
    }
    text.push(b']');
    text
}

fn json(value: &impl serde::Serialize) -> Vec<u8> {
    // Text and lists of it can always be written.
    serde_json::to_vec(value).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entry(key: &str, value: &str) -> Change<[u8]> {
        let json = format!(r#"{{"key":"{key}","v":"{value}"}}"#);
        (key.into(), Some(json.into_bytes().into()))
    }

    fn value(key: &str) -> Change<DomainValue> {
        let value = DomainValue {
            pickle: Message::inline(key.as_bytes()),
            plain: OnceLock::new(),
        };
        (key.into(), Some(Arc::new(value)))
    }

    fn text(bytes: &[u8]) -> &str {
        std::str::from_utf8(bytes).unwrap()
    }

    #[test]
    fn a_worker_without_a_version_is_told_all_of_it_in_order() {
        let first =
            Snapshot::default().changed(1, &[entry("b", "1"), entry("a", "1")], &[value("x")]);
        let second = first.changed(2, &[entry("b", "2")], &[]);
        let frame = second.frame(None);
        assert_eq!(
            text(&frame.entries),
            r#"[{"key":"b","v":"2"},{"key":"a","v":"1"}]"#
        );
        assert_eq!(text(&frame.domain_keys), r#"["x"]"#);
        assert_eq!(&*frame.values[0].pickle.data, b"x");
    }

    #[test]
    fn a_worker_with_a_version_is_told_the_difference() {
        let first =
            Snapshot::default().changed(1, &[entry("a", "1"), entry("b", "1")], &[value("x")]);
        let second = first.changed(2, &[entry("b", "2"), ("a".into(), None)], &[value("y")]);
        let third = second.changed(3, &[entry("a", "3")], &[("x".into(), None)]);
        let frame = third.frame(Some(&first));
        // What was removed and came again has its place at the end.
        assert_eq!(
            text(&frame.entries),
            r#"{"base":1,"removed":["a"],"set":[{"key":"b","v":"2"},{"key":"a","v":"3"}]}"#
        );
        assert_eq!(text(&frame.domain_keys), r#"{"removed":["x"],"set":["y"]}"#);
        // Its place among the others is not known to a worker of the newer version.
        assert!(text(&first.frame(Some(&third)).entries).starts_with('['));
    }

    #[test]
    fn a_long_history_is_told_as_a_whole() {
        let mut snapshot = Snapshot::default().changed(1, &[entry("a", "0")], &[]);
        let first = snapshot.clone();
        for version in 2..3_000 {
            snapshot = snapshot.changed(version, &[entry("a", "1")], &[]);
        }
        assert!(text(&snapshot.frame(Some(&first)).entries).starts_with('['));
    }

    #[test]
    fn small_and_plain_are_told_from_large_and_pickled() {
        let snapshot = Snapshot::default().changed(1, &[], &[value("x")]);
        assert!(snapshot.is_small() && !snapshot.is_plain());
        snapshot.set_plain("x", Box::from([0xc0]));
        assert!(snapshot.is_plain());
        let many: Vec<_> = (0..=FEW).map(|n| entry(&n.to_string(), "")).collect();
        assert!(!snapshot.changed(2, &many, &[]).is_small());
    }

    /// A worker's keys after a STATE frame, in its order.
    fn told(held: &[(String, String)], frame: &StateFrame) -> Vec<(String, String)> {
        let said: serde_json::Value = serde_json::from_slice(&frame.entries).unwrap();
        let (mut held, removed, set) = match &said {
            serde_json::Value::Array(all) => (Vec::new(), Vec::new(), all.clone()),
            said => {
                let removed = said["removed"].as_array().unwrap().clone();
                (
                    held.to_vec(),
                    removed,
                    said["set"].as_array().unwrap().clone(),
                )
            }
        };
        held.retain(|(key, _)| removed.iter().all(|it| it != key));
        for entry in set {
            let text = |field: &str| entry[field].as_str().unwrap().to_owned();
            let (key, value) = (text("key"), text("v"));
            match held.iter_mut().find(|it| it.0 == key) {
                Some(known) => known.1 = value,
                None => held.push((key, value)),
            }
        }
        held
    }

    #[test]
    fn what_differs_makes_any_version_of_any_other() {
        let mut seed = 7_u64;
        let mut random = |limit: u64| {
            seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
            (seed >> 33) % limit
        };
        for _ in 0..40 {
            let mut snapshots = vec![Snapshot::default()];
            let mut models: Vec<Vec<(String, String)>> = vec![Vec::new()];
            for version in 1..=10 {
                let (mut changes, mut model) = (Vec::new(), models[models.len() - 1].clone());
                for _ in 0..random(4) {
                    let (key, value) = (format!("k{}", random(6)), random(100).to_string());
                    if changes
                        .iter()
                        .any(|(known, _): &Change<[u8]>| **known == *key)
                    {
                        continue;
                    }
                    if random(3) == 0 {
                        model.retain(|it| it.0 != key);
                        changes.push((key.as_str().into(), None));
                        continue;
                    }
                    changes.push(entry(&key, &value));
                    match model.iter_mut().find(|it| it.0 == key) {
                        Some(known) => known.1 = value,
                        None => model.push((key, value)),
                    }
                }
                let last = &snapshots[snapshots.len() - 1];
                snapshots.push(last.changed(version, &changes, &[]));
                models.push(model);
            }
            for (target, expected) in snapshots.iter().zip(&models) {
                for (base, held) in snapshots.iter().zip(&models) {
                    assert_eq!(&told(held, &target.frame(Some(base))), expected);
                }
            }
        }
    }
}
