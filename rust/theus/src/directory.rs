//! Whether a directory keeps the promises that segments need, found out by trying.
//!
//! File systems differ in ways that no name tells: on overlayfs leases are granted although
//! somebody has the file mapped, on network file systems there may be none.

use std::fmt;
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::time::Duration;

use rustix::fs::{FallocateFlags, FileType, Mode, OFlags, StatVfsMountFlags};
use rustix::io::Errno;

use crate::descriptor::SessionId;
use crate::error::Result;
use crate::kill_point::KillPoint;
use crate::lease;
use crate::mapping::Mapping;
use crate::os;

/// How much is reserved to see whether space can be.
const SAMPLE_BYTES: usize = 4096;

/// Something that segments need and a directory does not give.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Missing {
    /// It is not there, or is no directory.
    Directory,
    /// This user cannot make files in it.
    Writable,
    /// Everybody may remove and replace this user's files in it.
    Protected,
    /// Files without a name (`O_TMPFILE`).
    NamelessFiles,
    /// Giving such a file its name (`linkat`).
    Linking,
    /// Space that is reserved before it is written (`fallocate`).
    Reservations,
    /// Leases (`fcntl(F_SETLEASE)`).
    Leases,
    /// Leases that are refused while another has the file mapped.
    LeasesSeeMappings,
}

impl Missing {
    /// One word for it, which stays the same.
    #[must_use]
    pub fn code(self) -> &'static str {
        match self {
            Self::Directory => "directory",
            Self::Writable => "writable",
            Self::Protected => "protected",
            Self::NamelessFiles => "nameless-files",
            Self::Linking => "linking",
            Self::Reservations => "reservations",
            Self::Leases => "leases",
            Self::LeasesSeeMappings => "leases-see-mappings",
        }
    }
}

impl fmt::Display for Missing {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(match self {
            Self::Directory => "it is not there, or is no directory",
            Self::Writable => "files cannot be made in it",
            Self::Protected => "others may remove and replace files in it (chmod +t)",
            Self::NamelessFiles => "its file system has no nameless files (O_TMPFILE)",
            Self::Linking => "a nameless file cannot be given a name in it",
            Self::Reservations => "its file system cannot reserve space (fallocate)",
            Self::Leases => "its file system has no leases (F_SETLEASE)",
            Self::LeasesSeeMappings => "its file system grants leases on files that are mapped",
        })
    }
}

/// What was found out about a directory.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DirectoryReport {
    /// The directory.
    pub path: PathBuf,
    /// Its file system's kind, by name or magic number; empty if it is not there.
    pub file_system: String,
    /// The file system's size.
    pub total_bytes: u64,
    /// What of it this user may still take.
    pub free_bytes: u64,
    missing: Vec<Missing>,
}

impl DirectoryReport {
    /// What segments would miss in it; empty if nothing.
    #[must_use]
    pub fn missing(&self) -> &[Missing] {
        &self.missing
    }
}

/// Tries in `path` what segments need. Nothing is left there; if this process is killed in the
/// microseconds in which an empty file has a name, the next sweep of `path` removes it.
///
/// # Errors
/// [`crate::Error::DescriptorLimit`] and the like: if it cannot be tried.
pub fn probe(path: &Path) -> Result<DirectoryReport> {
    let mut report = DirectoryReport {
        path: path.to_owned(),
        file_system: String::new(),
        total_bytes: 0,
        free_bytes: 0,
        missing: Vec::new(),
    };
    let Some(status) = rustix::fs::stat(path).ok().filter(is_directory) else {
        report.missing.push(Missing::Directory);
        return Ok(report);
    };
    report.file_system = rustix::fs::statfs(path).map_or_else(
        |errno| errno.to_string(),
        |status| file_system(u64::try_from(status.f_type).unwrap_or(0)),
    );
    let mut read_only = false;
    if let Ok(space) = rustix::fs::statvfs(path) {
        report.total_bytes = space.f_blocks * space.f_frsize;
        report.free_bytes = space.f_bavail * space.f_frsize;
        read_only = space.f_flag.contains(StatVfsMountFlags::RDONLY);
    }
    let mode = Mode::from_raw_mode(status.st_mode);
    let shared = mode.intersects(Mode::WGRP | Mode::WOTH) && !mode.contains(Mode::SVTX);
    // Its owner may replace what is in it, whatever its mode.
    let trusted = status.st_uid == os::user() || status.st_uid == 0;
    if shared || !trusted && !mode.contains(Mode::SVTX) {
        report.missing.push(Missing::Protected);
    }
    if read_only {
        report.missing.push(Missing::Writable);
        return Ok(report);
    }
    if let Some(file) = nameless(path, &mut report.missing)? {
        try_file(&file, &mut report.missing)?;
    }
    Ok(report)
}

fn is_directory(status: &rustix::fs::Stat) -> bool {
    FileType::from_raw_mode(status.st_mode).is_dir()
}

/// A file without a name in `directory`, whatever its file system can do.
///
/// The name that it has for a moment is that of a lock of a session that nobody else knows: should
/// this process die then, a sweep takes it for a dead session's.
fn nameless(directory: &Path, missing: &mut Vec<Missing>) -> Result<Option<OwnedFd>> {
    let mode = Mode::RUSR | Mode::WUSR;
    let flags = OFlags::RDWR | OFlags::CLOEXEC;
    let path = directory.join(SessionId::random()?.lock_name());
    match rustix::fs::open(directory, flags | OFlags::TMPFILE, mode) {
        Ok(file) => {
            // A sweep that comes by has to see somebody alive. Where there are no locks it removes
            // the name, which is gone then as it should be.
            let _ = os::try_lock(&file);
            match os::link(&file, &path) {
                Ok(()) => {
                    KillPoint::TrialLinked.pass();
                    os::unlink(&path)?;
                }
                Err(_) => missing.push(Missing::Linking),
            }
            return Ok(Some(file));
        }
        Err(errno @ (Errno::MFILE | Errno::NFILE | Errno::NOMEM)) => {
            return Err(os::failed("creating a trial file", errno));
        }
        Err(Errno::ACCESS | Errno::PERM | Errno::ROFS | Errno::NOSPC | Errno::DQUOT) => {
            missing.push(Missing::Writable);
            return Ok(None);
        }
        Err(_) => missing.extend([Missing::NamelessFiles, Missing::Linking]),
    }
    let flags = flags | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW;
    let Ok(file) = rustix::fs::open(&path, flags, mode) else {
        missing.push(Missing::Writable);
        return Ok(None);
    };
    os::unlink(&path)?;
    Ok(Some(file))
}

fn try_file(file: &OwnedFd, missing: &mut Vec<Missing>) -> Result<()> {
    let reserved = rustix::fs::fallocate(file, FallocateFlags::empty(), 0, SAMPLE_BYTES as u64);
    match reserved {
        Ok(()) => {}
        Err(Errno::NOSPC | Errno::DQUOT) => {
            missing.push(Missing::Writable);
            return Ok(());
        }
        Err(_) => {
            missing.push(Missing::Reservations);
            os::truncate(file, SAMPLE_BYTES as u64)?;
        }
    }
    match is_soon_unused(file) {
        None => missing.push(Missing::Leases),
        // Refused although nobody has it.
        Some(false) => missing.push(Missing::LeasesSeeMappings),
        Some(true) => {
            // What a stock reader does: open, map, close.
            let reader = os::reopen_read_only(&file.as_fd())?;
            let mapping = Mapping::read_only(&reader, SAMPLE_BYTES)?;
            drop(reader);
            let seen = lease::is_unused(file) == Some(false);
            drop(mapping);
            if !seen || is_soon_unused(file) != Some(true) {
                missing.push(Missing::LeasesSeeMappings);
            }
        }
    }
    Ok(())
}

/// As [`lease::is_unused`], with some patience: a child that another thread has just forked has the
/// descriptor until it executes its program.
fn is_soon_unused(file: &OwnedFd) -> Option<bool> {
    for _ in 0..100 {
        if lease::is_unused(file)? {
            return Some(true);
        }
        std::thread::sleep(Duration::from_millis(1));
    }
    Some(false)
}

/// The names of kinds that one meets, from the kernel's `magic.h` and `statfs(2)`.
fn file_system(magic: u64) -> String {
    let name = match magic {
        0x0102_1994 => "tmpfs",
        0x8584_58f6 => "ramfs",
        0x9584_58f6 => "hugetlbfs",
        0xef53 => "ext4",
        0x5846_5342 => "xfs",
        0x9123_683e => "btrfs",
        0x2fc1_2fc1 => "zfs",
        0xf2f5_2010 => "f2fs",
        0x794c_7630 => "overlayfs",
        0x6969 => "nfs",
        0xff53_4d42 | 0xfe53_4d42 => "smb",
        0x6573_5546 => "fuse",
        0x0102_1997 => "9p",
        0x00c3_6400 => "ceph",
        0x0bd0_0bd0 => "lustre",
        other => return format!("{other:#x}"),
    };
    name.to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    use std::fs;
    use std::os::unix::fs::PermissionsExt;

    fn missing(path: &Path) -> Vec<Missing> {
        probe(path).unwrap().missing().to_vec()
    }

    #[test]
    fn shared_memory_keeps_every_promise() {
        let report = probe(Path::new(os::DIRECTORY)).unwrap();
        assert_eq!(report.missing(), []);
        assert_eq!(report.file_system, "tmpfs");
        assert!(report.free_bytes <= report.total_bytes && report.total_bytes > 0);
    }

    #[test]
    fn what_is_no_safe_directory_is_said_and_nothing_is_left() {
        let root = std::env::temp_dir().join(format!("theus-directory-{}", std::process::id()));
        fs::create_dir(&root).unwrap();
        let file = root.join("file");
        fs::write(&file, "x").unwrap();
        let found = [missing(&file), missing(&root.join("nowhere"))];
        let mut open = Vec::new();
        for mode in [0o777, 0o1777, 0o700] {
            fs::set_permissions(&root, fs::Permissions::from_mode(mode)).unwrap();
            open.push(missing(&root).contains(&Missing::Protected));
        }
        let left = fs::read_dir(&root).unwrap().count();
        fs::remove_dir_all(&root).unwrap();
        assert_eq!(found, [[Missing::Directory], [Missing::Directory]]);
        assert_eq!(open, [true, false, false]);
        assert_eq!(left, 1);
    }

    #[test]
    fn a_file_system_of_another_kind_is_refused_by_name() {
        // Files can neither be made nor leased there, whoever asks.
        let report = probe(Path::new("/proc/self")).unwrap();
        assert!(!report.missing().is_empty(), "{report:?}");
        assert_eq!(report.file_system, "0x9fa0");
    }
}
