//! Which limit it was that made the kernel refuse, so that an error can say what to raise.

use std::fs::File;
use std::io::{self, Read};

use rustix::process::{Resource, getrlimit};

use crate::error::Error;

/// How far below `vm.max_map_count` a process may be and still be refused: a call that splits a
/// mapping asks for two.
const SLACK: u64 = 4;

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
