//! Freed memory that the next segment is written in: whose it may be, and whose never.

use std::fs::{self, File};
use std::io::{ErrorKind, Read};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use arrow::array::{ArrayRef, Int8Array, RecordBatch, StringArray};
use memmap2::Mmap;
use theus::layout::tensor::{ElementType, Order, TensorSpec};
use theus::{Config, Error, Segment, Session};

const MIB: usize = 1 << 20;
const DEADLINE: Duration = Duration::from_secs(20);
/// Right reads, and puts into used pages, after which the test of stock readers has seen enough.
const ENOUGH: u64 = 500;

fn session(heavy_limit: Option<u64>, reserve: u64) -> Session {
    let config = Config {
        heavy_limit,
        reserve,
        ..Config::default()
    };
    Session::create(config).unwrap()
}

fn create(session: &Session, length: usize, data: Option<u8>) -> theus::Result<Arc<Segment>> {
    let spec = TensorSpec::dense("x", ElementType::U8, &[length as u64], Order::C).unwrap();
    let data = data.map(|value| vec![value; length]);
    session.create_tensor(spec, data.as_deref())
}

fn put(session: &Session, length: usize, value: u8) -> Arc<Segment> {
    let segment = create(session, length, Some(value)).unwrap();
    session.publish(&segment).unwrap();
    segment
}

fn inode(segment: &Segment) -> u64 {
    fs::metadata(segment.path().unwrap()).unwrap().ino()
}

fn is_all(path: &Path, value: u8) -> bool {
    fs::read(path).unwrap()[4096..]
        .iter()
        .all(|&byte| byte == value)
}

fn hidden(segment: &Segment) -> PathBuf {
    let path = segment.path().unwrap();
    let name = path.file_name().unwrap().to_str().unwrap();
    path.with_file_name(format!(".{name}"))
}

fn wait_until(what: &str, done: impl Fn() -> bool) {
    let start = Instant::now();
    while !done() {
        assert!(start.elapsed() < DEADLINE, "{what}");
        thread::sleep(Duration::from_millis(2));
    }
}

#[test]
fn the_next_of_about_the_length_has_the_pages_and_its_own_bytes() {
    let session = session(None, 0);
    let first = put(&session, 4 * MIB, 1);
    let (file, path) = (inode(&first), first.path().unwrap());
    drop(first);
    assert!(!path.exists());
    assert!(session.ready_bytes() >= 4 * MIB as u64);
    assert_eq!(session.used_bytes(), 0);
    for (length, value) in [(4 * MIB, 2), (3 * MIB + 5, 3), (7 * MIB / 2, 4)] {
        let next = put(&session, length, value);
        assert_eq!(inode(&next), file, "{length}");
        assert_eq!(session.ready_bytes(), 0);
        assert_eq!(next.length(), 4096 + length);
        assert!(is_all(&next.path().unwrap(), value));
    }
    let other = put(&session, 30 * MIB, 5);
    assert_ne!(inode(&other), file);
    assert!(is_all(&other.path().unwrap(), 5));
    session.close().unwrap();
    assert!(!left(&session));
}

fn left(session: &Session) -> bool {
    let names = fs::read_dir("/dev/shm").unwrap();
    let mut names = names.map(|entry| entry.unwrap().file_name());
    names.any(|name| name.to_string_lossy().contains(session.id().as_str()))
}

#[test]
fn freed_pages_are_put_in_place_while_they_wait() {
    let session = session(None, 0);
    let draft = create(&session, 20 * MIB, None).unwrap();
    let given_out = draft.mapping();
    session.publish(&draft).unwrap();
    drop(given_out);
    let file = inode(&draft);
    let path = hidden(&draft);
    drop(draft);
    let shows = |text: &str| {
        let maps = fs::read_to_string("/proc/self/smaps").unwrap();
        let ours = maps.split_once(path.to_str().unwrap());
        let resident = ours.and_then(|(_, rest)| rest.split_once("Rss:"));
        resident.is_some_and(|(_, rest)| rest.trim_start().starts_with(text))
    };
    wait_until("all of it is mapped", || {
        shows(&format!("{} kB", (20 * MIB + 4096) >> 10))
    });
    let next = put(&session, 20 * MIB, 2);
    assert_eq!(inode(&next), file);
    assert!(is_all(&next.path().unwrap(), 2));
}

#[test]
fn what_is_allocated_in_used_pages_is_zero() {
    let session = session(None, 0);
    let first = put(&session, 8 * MIB + 3, 255);
    let file = inode(&first);
    drop(first);
    let draft = create(&session, 7 * MIB, None).unwrap();
    session.publish(&draft).unwrap();
    assert_eq!(inode(&draft), file);
    assert!(is_all(&draft.path().unwrap(), 0));
}

#[test]
fn a_table_in_used_pages_is_the_same_to_the_last_byte() {
    let session = session(None, 0);
    let numbers = (0..2_000_001).map(|i| (i % 7 > 0).then(|| i8::try_from(i % 100).unwrap()));
    let column: ArrayRef = Arc::new(numbers.collect::<Int8Array>());
    let words: ArrayRef = Arc::new(StringArray::from_iter_values(
        (0..2_000_001).map(|i| if i % 3 == 0 { "three" } else { "" }),
    ));
    let batch = RecordBatch::try_from_iter([("n", column), ("s", words)]).unwrap();
    let put_table = || {
        session
            .put("t", batch.schema(), [Ok(batch.clone())])
            .unwrap()
    };
    let table = put_table();
    let (length, fresh) = (table.length(), fs::read(table.path().unwrap()).unwrap());
    let dirty = put(&session, length, 255);
    let file = inode(&dirty);
    drop(dirty);
    let again = put_table();
    assert_eq!(inode(&again), file);
    assert!(fs::read(again.path().unwrap()).unwrap() == fresh);
}

/// Reads a byte of what it has open, at last.
type Look = Box<dyn FnMut() -> u8>;

#[test]
fn what_somebody_looks_at_is_never_written() {
    let session = session(None, 0);
    let looks: [fn(&Segment) -> Look; 4] = [
        |segment| {
            let mapping = segment.mapping().unwrap();
            let place = mapping.as_ptr().wrapping_add(4096 + MIB);
            #[expect(unsafe_code, reason = "a mapping offers pointers only")]
            // SAFETY: inside the mapping, which the closure keeps.
            Box::new(move || unsafe {
                let _kept = &mapping;
                place.read()
            })
        },
        |segment| {
            let file = File::open(segment.path().unwrap()).unwrap();
            #[expect(unsafe_code, reason = "what a reader of the standard tools does")]
            // SAFETY: the test is about the bytes not changing.
            let mapped = unsafe { Mmap::map(&file) }.unwrap();
            Box::new(move || mapped[4096 + MIB])
        },
        |segment| {
            let mut file = File::open(segment.path().unwrap()).unwrap();
            let mut bytes = vec![0; 4096 + MIB];
            file.read_exact(&mut bytes).unwrap();
            Box::new(move || {
                let mut byte = [0];
                file.read_exact(&mut byte).unwrap();
                byte[0]
            })
        },
        |segment| {
            // Another name, by which somebody may come at any time.
            let link = PathBuf::from(format!("/dev/shm/test-{}", segment.name()));
            fs::hard_link(segment.path().unwrap(), &link).unwrap();
            Box::new(move || {
                let byte = fs::read(&link).unwrap()[4096 + MIB];
                let _ = fs::remove_file(&link);
                byte
            })
        },
    ];
    for look in looks {
        let segment = put(&session, 4 * MIB, 1);
        let mut byte = look(&segment);
        let file = inode(&segment);
        drop(segment);
        for value in [2, 3] {
            let next = put(&session, 4 * MIB, value);
            assert_ne!(inode(&next), file);
            assert!(is_all(&next.path().unwrap(), value));
        }
        assert_eq!(byte(), 1);
        drop(byte);
    }
}

#[test]
fn who_opens_freed_memory_ends_its_use() {
    let session = session(None, 0);
    let first = put(&session, 4 * MIB, 1);
    let (path, file) = (hidden(&first), inode(&first));
    drop(first);
    wait_until("it is leased", || {
        // Without waiting, as a stock reader may not; the attempt itself ends the lease.
        let open = File::options()
            .read(true)
            .custom_flags(libc::O_NONBLOCK)
            .open(&path);
        matches!(
            open.map_err(|error| error.kind()),
            Err(ErrorKind::WouldBlock)
        )
    });
    let next = put(&session, 4 * MIB, 2);
    assert_ne!(inode(&next), file);
    assert!(!path.exists());

    let path = hidden(&next);
    let file = inode(&next);
    drop(next);
    let draft = create(&session, 4 * MIB, None).unwrap();
    let late = {
        let path = path.clone();
        thread::spawn(move || fs::read(path).map(|bytes| bytes.starts_with(b"ARROW1")))
    };
    wait_until("the reader waits", || {
        let status = fs::read_to_string("/proc/locks").unwrap();
        status.contains("BREAKING") && status.contains(&format!(":{file} "))
    });
    session.publish(&draft).unwrap();
    assert!(draft.was_copied());
    assert_ne!(inode(&draft), file);
    assert!(is_all(&draft.path().unwrap(), 0));
    drop(draft);
    let seen = late.join().unwrap();
    assert!(!matches!(seen, Ok(true)), "what was being written showed");
    wait_until("the name is gone", || !path.exists());
}

#[test]
fn a_fork_ends_the_use_of_what_was_mapped() {
    let session = session(None, 0);
    let first = put(&session, 4 * MIB, 1);
    let file = inode(&first);
    #[expect(unsafe_code, reason = "a child that does not execute anything")]
    // SAFETY: the child ends at once.
    let child = unsafe { libc::fork() };
    if child == 0 {
        #[expect(
            unsafe_code,
            reason = "a child leaves without running its parent's code"
        )]
        // SAFETY: it ends this process, whatever its state.
        unsafe {
            libc::_exit(0);
        }
    }
    let pid = rustix::process::Pid::from_raw(child);
    rustix::process::waitpid(pid, rustix::process::WaitOptions::empty()).unwrap();
    drop(first);
    assert_eq!(session.ready_bytes(), 0);
    let next = put(&session, 4 * MIB, 2);
    assert_ne!(inode(&next), file);
}

#[test]
fn what_moves_to_disk_from_used_pages_takes_nothing_of_theirs_along() {
    let spill = std::env::temp_dir().join(format!("theus-test-{}", std::process::id()));
    fs::create_dir(&spill).unwrap();
    let session = Session::create(Config {
        heavy_limit: Some(10 * MIB as u64),
        spill_dir: Some(spill.clone()),
        ..Config::default()
    });
    let session = session.unwrap();
    let kept = put(&session, 4 * MIB, 1);
    drop(put(&session, 5 * MIB, 255));
    assert!(session.ready_bytes() > 0);
    let draft = create(&session, 6 * MIB, None).unwrap();
    session.publish(&draft).unwrap();
    let more = create(&session, MIB, None).unwrap();
    session.publish(&more).unwrap();
    for (segment, value) in [(&kept, 1), (&draft, 0), (&more, 0)] {
        assert!(is_all(&segment.path().unwrap(), value));
    }
    assert!(draft.is_spilled());
    session.close().unwrap();
    fs::remove_dir(&spill).unwrap();
}

#[test]
fn the_budget_holds_with_what_is_ready() {
    let session = session(Some(10 * MIB as u64), 0);
    drop(put(&session, 4 * MIB, 1));
    assert!(session.ready_bytes() > 0);
    let large = put(&session, 9 * MIB, 2);
    assert_eq!(session.ready_bytes(), 0);
    let full = create(&session, 4 * MIB, None).unwrap_err();
    assert!(matches!(full, Error::HeavyZoneFull { .. }), "{full}");
    drop(large);
    // It was more than the budget leaves beside itself.
    assert!(session.ready_bytes() + session.used_bytes() <= 10 * MIB as u64);
}

#[test]
fn a_reserve_is_made_used_cut_and_made_again() {
    let reserve = 24 * MIB as u64;
    let session = session(None, reserve);
    wait_until("it is ready", || session.ready_bytes() == reserve);
    let first = put(&session, 24 * MIB, 1);
    assert!(is_all(&first.path().unwrap(), 1));
    assert_eq!(session.used_bytes(), first.length() as u64);
    wait_until("it is made again", || session.ready_bytes() == reserve);
    // Nothing fits; from then on something does.
    let small = put(&session, 4 * MIB, 2);
    wait_until("a part of it is as long as what was missed", || {
        let before = session.ready_bytes();
        let next = create(&session, 4 * MIB, None).unwrap();
        let length = next.length() as u64;
        before >= reserve && session.ready_bytes() <= before - length
    });
    assert!(is_all(&small.path().unwrap(), 2));
    session.close().unwrap();
    assert!(!left(&session));
    assert!(matches!(
        Session::create(Config {
            heavy_limit: Some(1),
            reserve: 2,
            ..Config::default()
        }),
        Err(Error::HeavyZoneFull { requested: 2, .. })
    ));
}

/// Readers with the tools of the system, and mapping ones, at the moment when segments are freed and
/// their pages written again.
#[test]
fn stock_readers_see_the_bytes_of_the_name_they_opened() {
    let session = session(None, 0);
    put(&session, MIB + 4096, 1);
    let current = AtomicU64::new(1);
    let (ended, reads, reused) = (AtomicBool::new(false), AtomicU64::new(0), AtomicU64::new(0));
    let path_of = |number: u64| session.id().segment(number).path();
    let value_of = |number: u64| u8::try_from(number % 251).unwrap();
    let right = |bytes: &[u8], number: u64| {
        if bytes[..8] == [0; 8] {
            // It was opened between its last use and its next, and is no segment.
            return;
        }
        assert_eq!(
            bytes.len(),
            4096 + MIB + 4096 * usize::from(value_of(number) % 3)
        );
        let wrong = bytes[4096..].iter().find(|&&byte| byte != value_of(number));
        assert_eq!(wrong, None, "segment {number}");
        reads.fetch_add(1, Ordering::SeqCst);
    };
    thread::scope(|scope| {
        for reader in 0..4 {
            let (current, ended, right, path_of) = (&current, &ended, &right, &path_of);
            scope.spawn(move || {
                while !ended.load(Ordering::SeqCst) {
                    let number = current.load(Ordering::SeqCst);
                    let path = path_of(number);
                    if reader % 2 == 0 {
                        if let Ok(bytes) = fs::read(path) {
                            right(&bytes, number);
                        }
                    } else if let Ok(file) = File::open(path) {
                        #[expect(unsafe_code, reason = "what a stock reader does")]
                        // SAFETY: the test is about the bytes not changing.
                        if let Ok(mapped) = unsafe { Mmap::map(&file) } {
                            drop(file);
                            right(&mapped, number);
                        }
                    }
                }
            });
        }
        let start = Instant::now();
        let mut files: Vec<u64> = Vec::new();
        let mut held: Vec<Arc<Segment>> = Vec::new();
        // So much work, however long it takes beside others; or a time, for a long run by hand.
        let time = std::env::var("THEUS_POOL_S").map(|seconds| seconds.parse::<u64>().unwrap());
        let goes_on = || match time {
            Ok(time) => start.elapsed() < Duration::from_secs(time),
            Err(_) => {
                reads
                    .load(Ordering::SeqCst)
                    .min(reused.load(Ordering::SeqCst))
                    < ENOUGH
            }
        };
        while goes_on() {
            let next = session
                .id()
                .segment(current.load(Ordering::SeqCst) + 1)
                .number;
            let length = MIB + 4096 * usize::from(value_of(next) % 3);
            let segment = put(&session, length, value_of(next));
            assert_eq!(segment.name().number, next);
            let file = inode(&segment);
            reused.fetch_add(u64::from(files.contains(&file)), Ordering::SeqCst);
            files.push(file);
            files.drain(..files.len().saturating_sub(8));
            current.store(next, Ordering::SeqCst);
            held.push(segment);
            held.drain(..held.len().saturating_sub(2));
        }
        ended.store(true, Ordering::SeqCst);
    });
    let (reads, reused) = (reads.into_inner(), reused.into_inner());
    println!(
        "{reads} reads, none wrong, beside {} puts, {reused} in used pages",
        current.into_inner()
    );
    assert!(reads > 100 && reused > 100);
}
