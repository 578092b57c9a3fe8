//! The draft of a segment: a file without a name, or with one that nobody opens.

use std::fs::File;
use std::ops::Range;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::spare::{Hidden, Warm};
use super::{Access, Draft, Published};
use crate::error::Result;
use crate::kill_point::KillPoint;
use crate::lease;
use crate::mapping::Mapping;
use crate::os;

const COPY_BYTES: usize = 4 << 20;
const PAGE_BYTES: usize = 4096;

/// Another file with what `read` gives for each range; `None`: no space.
pub(super) fn copy(
    directory: &Path,
    length: usize,
    read: impl Fn(usize, usize) -> Result<Vec<u8>>,
) -> Result<Option<File>> {
    let file = os::create_nameless(directory)?;
    if !os::reserve(&file, 0, length as u64)? {
        return Ok(None);
    }
    let copy = File::from(file);
    for offset in (0..length).step_by(COPY_BYTES) {
        let piece = read(offset, COPY_BYTES.min(length - offset))?;
        os::write_at(&copy, &piece, offset as u64)?;
    }
    Ok(Some(copy))
}

/// Makes what is in `file` no segment for whoever opened it under its old name.
pub(super) fn spoil(file: &File, length: usize) -> Result<()> {
    let page = vec![0; PAGE_BYTES.min(length)];
    os::write_at(file, &page, 0)?;
    os::write_at(file, &page, (length - page.len()) as u64)
}

/// A file without a name, which the kernel frees with its last reference, or with a hidden one.
#[derive(Debug)]
pub(super) struct Nameless {
    path: PathBuf,
    file: File,
    access: Access,
    mapping: Arc<Mapping>,
    forks: u64,
    /// Whose pages it has.
    pages: Pages,
}

/// Where a draft's pages come from.
#[derive(Debug)]
pub(super) enum Pages {
    /// They are large ones, zero and in place, up to here; from there on the kernel makes each as it
    /// is written.
    Fresh { large: usize },
    /// They are zero, and mapped.
    Faulted,
    /// A freed segment had them, and its bytes are in them. A lease says that nobody else looks. Up
    /// to `in_place` they are mapped.
    Reused { hidden: Hidden, in_place: usize },
}

impl Nameless {
    pub(super) fn new(
        path: PathBuf,
        file: impl Into<File>,
        access: Access,
        mapping: Arc<Mapping>,
        forks: u64,
    ) -> Self {
        Self {
            path,
            file: file.into(),
            access,
            mapping,
            forks,
            pages: Pages::Fresh { large: 0 },
        }
    }

    pub(super) fn with_pages(self, pages: Pages) -> Self {
        Self { pages, ..self }
    }

    /// Ends all writing to the file, or to a copy of it.
    fn close(&self) -> Result<Option<Closed>> {
        let alone = match &self.pages {
            Pages::Reused { .. } => lease::holds(&self.file),
            Pages::Fresh { .. } | Pages::Faulted => true,
        };
        if alone {
            // Who opens the file while it is leased waits, this process too.
            if let Pages::Reused { .. } = self.pages {
                lease::let_go(&self.file);
                KillPoint::SpareReleased.pass();
            }
            let (file, mapping) = self.close_to_writes(&self.file)?;
            if self.forks == os::forks() {
                let copied = false;
                return Ok(Some(Closed {
                    file,
                    mapping,
                    copied,
                }));
            }
        }
        // A child that was forked since has the old pages mapped and could still write them; who
        // has opened what was freed looks for another segment.
        let directory = self.path.parent().unwrap_or(Path::new(os::DIRECTORY));
        let read = |offset, length| Ok(self.mapping.read(offset, length));
        let Some(copy) = copy(directory, self.mapping.len(), read)? else {
            return Ok(None);
        };
        let (file, mapping) = self.close_to_writes(&copy)?;
        if !alone {
            spoil(&self.file, self.mapping.len())?;
        }
        let copied = true;
        Ok(Some(Closed {
            file,
            mapping,
            copied,
        }))
    }

    /// A description of `file` and a mapping that cannot write. What is written from now on to the
    /// draft's mapping, if anybody else has it, stays out of `file`, which it then shows.
    fn close_to_writes(&self, file: &File) -> Result<(OwnedFd, Arc<Mapping>)> {
        let reader = os::reopen_read_only(file)?;
        if self.is_given_out() {
            self.mapping.make_private(&reader)?;
        }
        let mapping = Mapping::read_only(&reader, self.mapping.len())?;
        Ok((reader, Arc::new(mapping)))
    }

    /// Has all of `range` mapped, of which there is what lies before `in_place`.
    fn put_in_place(&self, range: Range<usize>, in_place: usize) -> Result<()> {
        if range.end <= in_place {
            return Ok(());
        }
        self.mapping.populate(range.start.max(in_place)..range.end)
    }

    /// How much of the mapping has its pages in place when all of it has been written.
    fn in_place(&self) -> usize {
        match self.pages {
            // A system call writes without the mapping.
            Pages::Fresh { large } => large,
            Pages::Faulted | Pages::Reused { .. } => self.mapping.len(),
        }
    }

    fn is_given_out(&self) -> bool {
        Arc::strong_count(&self.mapping) > 1
    }
}

/// What a draft is when nobody can write it any more.
struct Closed {
    file: OwnedFd,
    mapping: Arc<Mapping>,
    copied: bool,
}

impl Draft for Nameless {
    fn mapping(&self) -> &Arc<Mapping> {
        &self.mapping
    }

    fn write(&self, offset: usize, data: &[u8]) -> Result<()> {
        match self.pages {
            Pages::Fresh { large } => {
                let (there, new) = data.split_at(large.saturating_sub(offset).min(data.len()));
                self.mapping.stream(offset, there);
                // By a system call the page need not be zeroed first, as at a fault.
                os::write_at(&self.file, new, (offset + there.len()) as u64)?;
            }
            Pages::Reused { in_place, .. } => {
                self.put_in_place(offset..offset + data.len(), in_place)?;
                self.mapping.stream(offset, data);
            }
            Pages::Faulted => self.mapping.stream(offset, data),
        }
        KillPoint::DraftWritten.pass();
        Ok(())
    }

    fn zero(&self, range: Range<usize>) -> Result<()> {
        if let Pages::Reused { in_place, .. } = self.pages {
            self.put_in_place(range.clone(), in_place)?;
            self.mapping.zero(range);
        }
        Ok(())
    }

    fn grow(&self, length: u64) -> Result<bool> {
        os::reserve(&self.file, 0, length)
    }

    fn resize(&mut self, length: u64) -> Result<bool> {
        let length = usize::try_from(length).unwrap_or(usize::MAX);
        let before = self.mapping.len();
        if length > before && !os::reserve(&self.file, before as u64, (length - before) as u64)? {
            return Ok(false);
        }
        os::truncate(&self.file, length as u64)?;
        self.mapping = Arc::new(Mapping::writable(&self.file, length)?);
        match &mut self.pages {
            // What is mapped now, and has come in between, is not in place.
            Pages::Reused { in_place, .. } => *in_place = 0,
            Pages::Fresh { large } => *large = length.min(*large),
            Pages::Faulted => self.pages = Pages::Fresh { large: 0 },
        }
        KillPoint::DraftResized.pass();
        Ok(true)
    }

    fn hand_over(&self) -> Result<Option<OwnedFd>> {
        Ok(self.close()?.map(|closed| closed.file))
    }

    fn publish(&self) -> Result<Option<Published>> {
        if self.access == Access::Shared {
            os::link(&self.file, &self.path)?;
            KillPoint::SegmentLinked.pass();
            return Ok(Some(Published {
                mapping: Arc::clone(&self.mapping),
                copied: false,
                warm: None,
            }));
        }
        let Some(Closed {
            file,
            mapping,
            copied,
        }) = self.close()?
        else {
            return Ok(None);
        };
        KillPoint::DraftSealed.pass();
        match &self.pages {
            Pages::Reused { hidden, .. } if !copied => hidden.become_segment(&self.path)?,
            _ => os::link(&file, &self.path)?,
        }
        KillPoint::SegmentLinked.pass();
        let keeps = !copied && !self.is_given_out();
        let warm = keeps.then(|| Warm::keep(&self.file, &self.mapping, self.in_place()));
        Ok(Some(Published {
            mapping,
            copied,
            warm: warm.flatten(),
        }))
    }
}
