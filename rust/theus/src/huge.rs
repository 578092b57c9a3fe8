//! Large pages, asked for one by one: two mebibytes that are made, mapped and freed as one page.
//!
//! `MADV_COLLAPSE` has the kernel make one where small pages lie, or a single one of them. That is an
//! order and no hint: it is followed under each policy for shared memory but `deny`, and does not
//! change what others get.

use std::path::Path;
use std::sync::LazyLock;

use crate::os;

/// What has the kernel make one.
pub(crate) const ADVICE: libc::c_int = libc::MADV_COLLAPSE;

/// Where the kernel says what it does.
const SETTINGS: &str = "/sys/kernel/mm/transparent_hugepage";

/// `never` has this process ask for none.
const VARIABLE: &str = "THEUS_HUGE_PAGES";

/// The one size that is looked for. Others come with larger small pages, and are a waste here.
const LARGE_BYTES: usize = 2 << 20;

static PAGE_BYTES: LazyLock<Option<usize>> = LazyLock::new(|| {
    let unwanted = std::env::var_os(VARIABLE).is_some_and(|value| value == "never");
    let read = |name: &str| std::fs::read_to_string(Path::new(SETTINGS).join(name));
    let policy = read("shmem_enabled").ok()?;
    let size = read("hpage_pmd_size").ok()?;
    parse(&policy, &size).filter(|_| !unwanted && os::knows_advice(ADVICE))
});

/// The size of a large page; `None` if there are none to be had.
pub(crate) fn page_bytes() -> Option<usize> {
    *PAGE_BYTES
}

/// The size of a large page, from what the kernel says of its policy and of the size.
fn parse(policy: &str, size: &str) -> Option<usize> {
    let chosen = policy.split_once('[')?.1.split_once(']')?.0;
    let size: usize = size.trim().parse().ok()?;
    (chosen != "deny" && size == LARGE_BYTES).then_some(size)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_policy_but_one_allows_them() {
        let policies = ["always", "within_size", "advise", "never", "deny", "force"];
        for chosen in policies {
            let marked = |policy: &&str| {
                if *policy == chosen {
                    format!("[{policy}]")
                } else {
                    (*policy).to_owned()
                }
            };
            let text: Vec<_> = policies.iter().map(marked).collect();
            let found = parse(&text.join(" "), "2097152\n");
            assert_eq!(found, (chosen != "deny").then_some(2 << 20), "{chosen}");
        }
        for (policy, size) in [
            ("", "2097152"),
            ("[never]", ""),
            ("[never]", "33554432"),
            ("[never", "4"),
        ] {
            assert_eq!(parse(policy, size), None, "{policy} {size}");
        }
    }
}
