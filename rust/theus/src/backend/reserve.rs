//! Space for a file's bytes: large pages as far as there are such, and small ones.

use std::fs::File;
use std::io;
use std::ops::Range;
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use crate::copy;
use crate::error::Result;
use crate::huge;
use crate::mapping::Mapping;
use crate::os;

/// How many large pages are asked for at a time.
const STEP_PAGES: usize = 8;

/// For how many it is worth to ask.
const LEAST_PAGES: usize = 4;

/// A large page that takes longer costs more than small ones: memory has to be cleared up for it, or a
/// virtual machine's host has to give it first.
const DEAR: Duration = Duration::from_millis(1);

/// For how long no more are asked for then.
const DEAR_FOR: Duration = Duration::from_secs(1);

static DEAR_SINCE: Mutex<Option<Instant>> = Mutex::new(None);

/// Whether somebody waits for the space.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Hurry {
    /// Then large pages are taken only while they cost no more than small ones.
    Yes,
    No,
}

/// Reserves all of `file` from `start` to `length`, which is then the file's; `None`: no space. Else up
/// to where the pages are large, zero and in place: `start`, if none are. `mapping` is of the whole.
pub(super) fn reserve(
    file: &File,
    mapping: &Mapping,
    start: usize,
    length: usize,
    hurry: Hurry,
) -> Result<Option<usize>> {
    let large = match huge::page_bytes() {
        Some(page) if start.is_multiple_of(page) && start + LEAST_PAGES * page <= length => {
            os::truncate(file, length as u64)?;
            let pages = Pages {
                file,
                mapping,
                page,
                hurry,
            };
            pages.make(start..length - length % page)
        }
        _ => start,
    };
    let small = os::reserve(file, large as u64, (length - large) as u64)?;
    Ok(small.then_some(large))
}

/// Makes the pages of `range` large, if that costs no more than they are worth. What was in them is
/// lost.
pub(super) fn enlarge(file: &File, mapping: &Mapping, range: Range<usize>) -> Result<()> {
    let Some(page) = huge::page_bytes() else {
        return Ok(());
    };
    let whole = range.start.next_multiple_of(page)..range.end - range.end % page;
    if whole.is_empty() || were_dear() {
        return Ok(());
    }
    let (start, length) = (whole.start as u64, whole.len() as u64);
    os::punch(file, start, length)?;
    let hurry = Hurry::Yes;
    let pages = Pages {
        file,
        mapping,
        page,
        hurry,
    };
    pages.make_step(whole);
    if os::reserve(file, start, length)? {
        return Ok(());
    }
    Err(os::failed("keeping pages", io::ErrorKind::StorageFull))
}

/// Large pages to be made.
struct Pages<'a> {
    file: &'a File,
    mapping: &'a Mapping,
    page: usize,
    hurry: Hurry,
}

/// What came of asking for some.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Made {
    All,
    /// All, at a price at which no more are wanted.
    Last,
    No,
}

impl Pages<'_> {
    /// Makes those of `range`; up to where there are such.
    fn make(&self, range: Range<usize>) -> usize {
        if self.hurry == Hurry::Yes && were_dear() {
            return range.start;
        }
        // One tells what they cost now.
        let first = range.start + self.page;
        match self.make_step(range.start..first) {
            Made::All => {}
            Made::Last => return first,
            Made::No => return range.start,
        }
        let end = range.end;
        let steps: Vec<_> = (first..end).step_by(STEP_PAGES * self.page).collect();
        let reached = AtomicUsize::new(end);
        // None of them fails: what cannot be had is made of small pages.
        let _ = copy::each_in_parallel(&steps, |&start| {
            let step = start..end.min(start + STEP_PAGES * self.page);
            let after = step.end;
            if start < reached.load(Ordering::Relaxed) {
                match self.make_step(step) {
                    Made::All => {}
                    Made::Last => drop(reached.fetch_min(after, Ordering::Relaxed)),
                    Made::No => drop(reached.fetch_min(start, Ordering::Relaxed)),
                }
            }
            Ok(())
        });
        reached.into_inner()
    }

    fn make_step(&self, step: Range<usize>) -> Made {
        let before = os::thread_time();
        let pages = u32::try_from(step.len() / self.page).unwrap_or(u32::MAX);
        // A large page comes of a small one: of none at all the kernel makes nothing.
        let mut seeds = step.clone().step_by(self.page);
        let seeded = seeds.all(|place| matches!(os::reserve(self.file, place as u64, 1), Ok(true)));
        if !seeded || !self.mapping.collapse(step) {
            return Made::No;
        }
        let took = os::thread_time().saturating_sub(before);
        if self.hurry == Hurry::Yes && took > DEAR * pages {
            if let Ok(mut since) = DEAR_SINCE.try_lock() {
                *since = Some(Instant::now());
            }
            return Made::Last;
        }
        Made::All
    }
}

fn were_dear() -> bool {
    // Who holds it may be a thread that this process, a forked child, does not have.
    let since = DEAR_SINCE.try_lock().map_or(None, |since| *since);
    since.is_some_and(|since| since.elapsed() < DEAR_FOR)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_pages_are_large_as_far_as_they_can_be_and_zero() {
        let length = (9 << 20) + 4097;
        let file = File::from(os::create_nameless(os::DIRECTORY.as_ref()).unwrap());
        let mapping = Mapping::writable(&file, length).unwrap();
        let large = reserve(&file, &mapping, 0, length, Hurry::No).unwrap();
        let expected = huge::page_bytes().map_or(0, |page| length - length % page);
        assert_eq!(large, Some(expected));
        assert_eq!(os::status(&file).unwrap().length, length as u64);
        assert!(mapping.read(0, length).iter().all(|&byte| byte == 0));
        let maps = std::fs::read_to_string("/proc/self/smaps").unwrap();
        let place = format!("{:x}-", mapping.address());
        let ours = maps.split_once(&place).unwrap().1;
        let (_, mapped) = ours.split_once("ShmemPmdMapped:").unwrap();
        let mapped: usize = mapped.split_whitespace().next().unwrap().parse().unwrap();
        assert_eq!(mapped << 10, expected);
    }
}
