//! The kernel's limits on a process: which one made it refuse, so that an error can say what to
//! raise, and how many mappings there may be.

use std::fs::File;
use std::io::{self, Read};
use std::sync::atomic::{AtomicU64, Ordering};

use rustix::process::{Resource, getrlimit};

use crate::error::{Error, Result};

/// How far below `vm.max_map_count` a process may be and still be refused: a call that splits a
/// mapping asks for two.
const SLACK: u64 = 4;

/// One part in so many of the mappings is left for what is not ours: a process that cannot map its
/// next page of memory ends in the middle of whatever it does.
const PART_OF_OTHERS: u64 = 16;

/// How many mappings of segments there are in this process.
static MAPPINGS: AtomicU64 = AtomicU64::new(0);
/// How many there may be, as far as was looked.
static ALLOWED: AtomicU64 = AtomicU64::new(0);

/// One mapping of a segment, counted as long as this lives.
#[derive(Debug)]
pub(crate) struct Counted(());

impl Counted {
    pub(crate) fn new() -> Self {
        MAPPINGS.fetch_add(1, Ordering::Relaxed);
        Self(())
    }
}

impl Drop for Counted {
    fn drop(&mut self) {
        MAPPINGS.fetch_sub(1, Ordering::Relaxed);
    }
}

/// Refuses one more segment when nearly all mappings of this process are taken.
pub(crate) fn check_mappings(operation: &'static str) -> Result<()> {
    let found = MAPPINGS.load(Ordering::Relaxed);
    if found < ALLOWED.load(Ordering::Relaxed) {
        return Ok(());
    }
    // Looked at again, as somebody may have raised it.
    let Some(limit) = allowed_mappings() else {
        return Ok(());
    };
    let allowed = ours(limit);
    ALLOWED.store(allowed, Ordering::Relaxed);
    if found < allowed {
        return Ok(());
    }
    Err(Error::MappingLimit {
        operation,
        limit,
        found,
    })
}

/// How many mappings of segments this process may have; `None` if the system does not say.
pub(crate) fn mappings() -> Option<u64> {
    allowed_mappings().map(ours)
}

const fn ours(limit: u64) -> u64 {
    limit - limit / PART_OF_OTHERS
}

/// How many descriptors this process may have.
pub(crate) fn descriptors() -> usize {
    let limit = getrlimit(Resource::Nofile).current;
    limit.map_or(usize::MAX, |limit| {
        usize::try_from(limit).unwrap_or(usize::MAX)
    })
}

/// The error of an operation that the kernel refused.
pub(crate) fn explain(operation: &'static str, source: io::Error) -> Error {
    match source.raw_os_error() {
        Some(libc::EMFILE) => Error::DescriptorLimit {
            operation,
            limit: getrlimit(Resource::Nofile).current,
            source,
        },
        Some(libc::ENFILE) => Error::DescriptorLimit {
            operation,
            limit: None,
            source,
        },
        Some(libc::ENOMEM) => memory(operation, source),
        _ => Error::Os { operation, source },
    }
}

fn memory(operation: &'static str, source: io::Error) -> Error {
    if let (Some(limit), Ok(found)) = (allowed_mappings(), count_mappings())
        && found + SLACK >= limit
    {
        return Error::MappingLimit {
            operation,
            limit,
            found,
        };
    }
    match getrlimit(Resource::As).current {
        Some(limit) => Error::AddressSpaceLimit { operation, limit },
        None => Error::OutOfMemory { operation, source },
    }
}

fn allowed_mappings() -> Option<u64> {
    let text = std::fs::read_to_string("/proc/sys/vm/max_map_count").ok()?;
    text.trim().parse().ok()
}

/// The lines of `/proc/self/maps`, of which there may be many when no memory can be mapped.
fn count_mappings() -> io::Result<u64> {
    let mut maps = File::open("/proc/self/maps")?;
    let mut buffer = [0; 16 << 10];
    let mut lines = 0;
    loop {
        match maps.read(&mut buffer)? {
            0 => return Ok(lines),
            length => {
                let ends = buffer[..length].iter().filter(|byte| **byte == b'\n');
                lines += ends.count() as u64;
            }
        }
    }
}
