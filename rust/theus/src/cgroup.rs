//! How much memory the control groups leave: past their limit the kernel kills instead of failing.
//!
//! Source: the kernel's `cgroup-v2` ("Memory") and `cgroup-v1/memory` documents, and `proc(5)` for
//! `mountinfo`.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::OnceLock;

/// One version's files.
#[derive(Debug, Clone, Copy)]
struct Files {
    limit: &'static str,
    usage: &'static str,
    /// What the kernel gives back before it kills: pages of files, in `memory.stat`.
    reclaimable: [&'static str; 2],
}

const V1: Files = Files {
    limit: "memory.limit_in_bytes",
    usage: "memory.usage_in_bytes",
    reclaimable: ["total_inactive_file", "total_active_file"],
};
const V2: Files = Files {
    limit: "memory.max",
    usage: "memory.current",
    reclaimable: ["inactive_file", "active_file"],
};

/// What is not offered: page tables and whatever else the processes of the group need.
const MARGIN_BYTES: u64 = 64 << 20;

/// The control group that leaves its processes the least.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MemoryLimit {
    /// Where it is looked at.
    pub group: PathBuf,
    /// What its processes may have together.
    pub limit_bytes: u64,
    /// What of it may be reserved: less what is used and cannot be given back, and a margin.
    pub available_bytes: u64,
}

/// The tightest limit of this process's control groups, as the files under `root` say, which is `/`
/// but in tests; `None` without a limit.
#[must_use]
pub fn memory_limit(root: &Path) -> Option<MemoryLimit> {
    tightest(&groups_under(root))
}

/// The bytes that this process's control groups leave it; `None` without a limit.
pub(crate) fn available_bytes() -> Option<u64> {
    static GROUPS: OnceLock<Vec<(PathBuf, Files)>> = OnceLock::new();
    let groups = GROUPS.get_or_init(|| groups_under(Path::new("/")));
    tightest(groups).map(|limit| limit.available_bytes)
}

fn groups_under(root: &Path) -> Vec<(PathBuf, Files)> {
    let read = |path| fs::read_to_string(root.join(path)).unwrap_or_default();
    let found = groups(&read("proc/self/cgroup"), &read("proc/self/mountinfo"));
    let here = |path: PathBuf| match path.strip_prefix("/") {
        Ok(inside) => root.join(inside),
        Err(_) => path,
    };
    let found = found.into_iter();
    found.map(|(path, files)| (here(path), files)).collect()
}

fn tightest(groups: &[(PathBuf, Files)]) -> Option<MemoryLimit> {
    groups
        .iter()
        .filter_map(|(directory, files)| remaining(directory, *files))
        .min_by_key(|limit| limit.available_bytes)
}

/// The directories of the process's memory group and all its ancestors, of both versions.
fn groups(membership: &str, mounts: &str) -> Vec<(PathBuf, Files)> {
    let mut found = Vec::new();
    for line in mounts.lines() {
        // "36 35 98:0 /root /mount/point options - type source super,options"
        let Some((place, kind)) = line.split_once(" - ") else {
            continue;
        };
        let mut place = place.split(' ').skip(3);
        let mut kind = kind.split(' ');
        let (Some(root), Some(point), Some(name)) = (place.next(), place.next(), kind.next())
        else {
            continue;
        };
        let mut has_memory = || kind.nth(1).is_some_and(|options| has(options, "memory"));
        let (files, path) = match name {
            "cgroup2" => (V2, path_in(membership, str::is_empty)),
            "cgroup" if has_memory() => {
                let is_memory = |controllers: &str| has(controllers, "memory");
                (V1, path_in(membership, is_memory))
            }
            _ => continue,
        };
        let Some(path) = path else { continue };
        // The mount may show a part of the tree only, or one above what this process may see.
        let inside = Path::new(path).strip_prefix(root).unwrap_or(Path::new(""));
        let own = Path::new(point).join(inside);
        let ancestors = own.ancestors().take(inside.components().count() + 1);
        found.extend(ancestors.map(|directory| (directory.to_owned(), files)));
    }
    found
}

fn has(list: &str, name: &str) -> bool {
    list.split(',').any(|item| item == name)
}

/// The path in `/proc/self/cgroup` of the line whose controllers are `wanted`.
fn path_in(membership: &str, wanted: impl Fn(&str) -> bool) -> Option<&str> {
    membership.lines().find_map(|line| {
        let mut parts = line.splitn(3, ':').skip(1);
        let controllers = parts.next()?;
        wanted(controllers).then(|| parts.next()).flatten()
    })
}

fn remaining(directory: &Path, files: Files) -> Option<MemoryLimit> {
    let number = |name: &str| -> Option<u64> {
        let text = fs::read_to_string(directory.join(name)).ok()?;
        text.trim().parse().ok()
    };
    let limit = number(files.limit)?; // "max" is no number, and no limit
    let used = number(files.usage)?;
    // Version 1 says "no limit" by the largest number of pages.
    if limit >= i64::MAX as u64 / 2 {
        return None;
    }
    let left = limit.saturating_sub(used);
    let stat = fs::read_to_string(directory.join("memory.stat")).unwrap_or_default();
    let reclaimable = stat.lines().filter_map(|line| {
        let (name, value) = line.split_once(' ')?;
        files.reclaimable.contains(&name).then_some(value)
    });
    let reclaimable: u64 = reclaimable
        .filter_map(|value| value.parse::<u64>().ok())
        .sum();
    let left = left.saturating_add(reclaimable).min(limit);
    Some(MemoryLimit {
        group: directory.to_owned(),
        limit_bytes: limit,
        available_bytes: left.saturating_sub(MARGIN_BYTES.min(limit / 32)),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const MOUNTS: &str = "\
31 23 0:28 / /sys/fs/cgroup rw - tmpfs tmpfs rw,mode=755
32 31 0:29 / /sys/fs/cgroup/cpu rw,relatime - cgroup cgroup rw,cpu
35 31 0:32 / /sys/fs/cgroup/memory rw,relatime shared:9 - cgroup cgroup rw,memory
41 31 0:38 / /sys/fs/cgroup/unified rw,relatime - cgroup2 cgroup2 rw
";

    fn paths(membership: &str, mounts: &str) -> Vec<PathBuf> {
        let found = groups(membership, mounts).into_iter();
        found.map(|(path, _)| path).collect()
    }

    #[test]
    fn every_ancestor_of_both_versions_counts() {
        let membership = "4:memory:/job/step\n1:cpu:/\n0::/user\n";
        let expected = [
            "/sys/fs/cgroup/memory/job/step",
            "/sys/fs/cgroup/memory/job",
            "/sys/fs/cgroup/memory",
            "/sys/fs/cgroup/unified/user",
            "/sys/fs/cgroup/unified",
        ];
        assert_eq!(paths(membership, MOUNTS), expected.map(PathBuf::from));
    }

    #[test]
    fn a_container_sees_its_part_of_the_tree() {
        let mounts = "8 7 0:26 /docker/abc /sys/fs/cgroup ro - cgroup2 cgroup rw,nsdelegate\n";
        assert_eq!(
            paths("0::/docker/abc/inner\n", mounts),
            ["/sys/fs/cgroup/inner", "/sys/fs/cgroup"].map(PathBuf::from)
        );
        let point = [PathBuf::from("/sys/fs/cgroup")];
        assert_eq!(paths("0::/elsewhere\n", mounts), point);
        assert!(paths("", "").is_empty());
    }

    #[test]
    fn the_tightest_limit_counts_and_caches_are_no_use() {
        let root = std::env::temp_dir().join(format!("cgroup-{}", std::process::id()));
        let inner = root.join("inner");
        fs::create_dir_all(&inner).unwrap();
        let write = |directory: &Path, name, text| fs::write(directory.join(name), text).unwrap();
        write(&root, "memory.max", "1000\n");
        write(&root, "memory.current", "900\n");
        write(
            &root,
            "memory.stat",
            "anon 5\nfile 800\ninactive_file 30\nactive_file 4\n",
        );
        write(&inner, "memory.max", "max\n");
        write(&inner, "memory.current", "1\n");
        let groups = [(inner.clone(), V2), (root.clone(), V2)];
        let left = || tightest(&groups).map(|limit| limit.available_bytes);
        let tight = left();
        write(&inner, "memory.max", "101\n");
        let tighter = left();
        fs::remove_dir_all(&root).unwrap();
        assert_eq!(
            (tight, tighter, left()),
            (Some(134 - 31), Some(100 - 3), None)
        );
    }
}
