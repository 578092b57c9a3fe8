//! One suite for every backend. It counts what a backend's capabilities make it skip.

use std::fs;
use std::io::{BufRead, BufReader};
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use theus::catalog::read_catalog;
use theus::layout::tensor::{ElementType, Order, TensorSpec};
use theus::mapping::Mapping;
use theus::sweep::{SweepOutcome, sessions, sweep, sweep_session};
use theus::{Backend, Capabilities, Config, Error, Segment, Session, SessionId};

const OWNER_BACKEND: &str = "THEUS_TEST_BACKEND";
const OWNER_FORKS: &str = "THEUS_TEST_FORKS";

struct Check {
    name: &'static str,
    /// The capability it needs; `None`: every backend has to pass it.
    needs: Option<fn(Capabilities) -> bool>,
    run: fn(Backend),
}

const CHECKS: &[Check] = &[
    always("an unpublished segment has no name", unpublished),
    always("a published segment is exact, private and whole", published),
    always("a late write stays with its writer", late_write),
    always("a mutable segment is seen while it is written", mutable),
    always("a segment outlives its name while it is mapped", unlinked),
    always("close removes every name", close),
    always("no reader sees a part of a segment", racing_reader),
    always("the catalog grows and shows what was committed", catalog),
    always("the budget is kept and given back", budget),
    always("a living session is not swept, even unlocked", living),
    always("a killed owner's names are swept", killed_owner),
    always("what others planted is left, and keeps nothing", planted),
    always("a copy of a lock makes nobody dead", copied_lock),
    Check {
        name: "a name appears with all of its bytes",
        needs: Some(|capabilities| capabilities.atomic_publication),
        run: racing_stock_reader,
    },
    Check {
        name: "full memory is an error before anything is written",
        needs: Some(|capabilities| capabilities.reserves_space),
        run: full_memory,
    },
    Check {
        name: "a reader's pages are read-only",
        needs: Some(|capabilities| capabilities.read_only_readers),
        run: read_only_pages,
    },
    Check {
        name: "a forked child does not keep a dead session alive",
        needs: Some(|capabilities| capabilities.fork_proof_lock),
        run: killed_owner_with_a_child,
    },
    Check {
        name: "a dead session is swept without its lock",
        needs: Some(|capabilities| capabilities.proves_unused),
        run: killed_owner_without_a_lock,
    },
];

const fn always(name: &'static str, run: fn(Backend)) -> Check {
    let needs = None;
    Check { name, needs, run }
}

/// Runs the suite; how many checks ran, and which were skipped.
fn conform(backend: Backend) -> (usize, Vec<&'static str>) {
    let able = |check: &&Check| {
        check
            .needs
            .is_none_or(|needs| needs(backend.capabilities()))
    };
    let (run, skipped): (Vec<_>, Vec<_>) = CHECKS.iter().partition(able);
    for check in &run {
        println!("{backend}: {}", check.name);
        (check.run)(backend);
    }
    let skipped: Vec<_> = skipped.iter().map(|check| check.name).collect();
    println!(
        "{backend}: {} ran, {} skipped: {skipped:?}",
        run.len(),
        skipped.len()
    );
    (run.len(), skipped)
}

#[test]
fn linux_conforms() {
    assert_eq!(conform(Backend::Linux), (CHECKS.len(), Vec::new()));
}

#[test]
fn portable_conforms() {
    let (ran, skipped) = conform(Backend::Portable);
    assert_eq!((ran, skipped.len()), (13, 5));
}

fn create(backend: Backend) -> Session {
    let heavy_limit = None;
    Session::create(Config {
        backend,
        heavy_limit,
        ..Config::default()
    })
    .unwrap()
}

fn spec(key: &str, items: u64) -> TensorSpec {
    TensorSpec::dense(key, ElementType::U8, &[items], Order::C).unwrap()
}

fn put(session: &Session, data: &[u8]) -> Arc<Segment> {
    let segment = session.create_tensor(spec("x", data.len() as u64), Some(data));
    let segment = segment.unwrap();
    session.publish(&segment).unwrap();
    segment
}

fn items(mapping: &Mapping, segment: &Segment) -> Vec<u8> {
    let start = mapping.as_ptr().wrapping_add(segment.body_offset());
    let length = segment.length() - segment.body_offset();
    #[expect(unsafe_code, reason = "a mapping offers pointers only")]
    // SAFETY: the items lie inside the mapping, and no test writes them meanwhile.
    unsafe { std::slice::from_raw_parts(start, length) }.to_vec()
}

fn write_first_item(mapping: &Mapping, segment: &Segment, value: u8) {
    let first = mapping.as_mut_ptr().wrapping_add(segment.body_offset());
    #[expect(unsafe_code, reason = "a mapping offers pointers only")]
    // SAFETY: inside the mapping, whose pages are writable for its owner, sealed or not.
    unsafe {
        first.write(value);
    }
}

fn names_of(id: &SessionId) -> usize {
    let mine = |directory: &Path| {
        let names = fs::read_dir(directory)
            .unwrap()
            .map(|entry| entry.unwrap().file_name());
        names
            .filter(|name| name.to_string_lossy().contains(id.as_str()))
            .count()
    };
    mine(Path::new("/dev/shm")) + mine(&std::env::temp_dir())
}

fn unpublished(backend: Backend) {
    let session = create(backend);
    let segment = session.create_tensor(spec("x", 10_000), None).unwrap();
    assert!(matches!(segment.path(), Err(Error::Unpublished { .. })));
    let opened = Segment::open_with(backend, &segment.name().path());
    assert!(
        matches!(opened, Err(Error::SegmentNotFound { .. })),
        "{opened:?}"
    );
    assert!(segment.mapping().unwrap().is_writable());
}

fn published(backend: Backend) {
    let session = create(backend);
    let data: Vec<u8> = (0..=255).cycle().take(9_000_001).collect();
    let segment = put(&session, &data);
    session.publish(&segment).unwrap();
    let status = fs::metadata(segment.path().unwrap()).unwrap();
    assert_eq!(status.len(), 4096 + data.len() as u64);
    assert_eq!(status.permissions().mode() & 0o777, 0o600);
    assert!(!segment.mapping().unwrap().is_writable());
    assert!(items(&segment.mapping().unwrap(), &segment) == data);
    for reader in [backend, Backend::default()] {
        let opened = Segment::open_with(reader, &segment.path().unwrap()).unwrap();
        assert_eq!(opened.spec(), segment.spec());
        assert!(items(&opened.mapping().unwrap(), &opened) == data);
    }
}

fn late_write(backend: Backend) {
    let session = create(backend);
    let segment = session.create_tensor(spec("x", 5), Some(b"hello")).unwrap();
    let draft = segment.mapping().unwrap();
    session.publish(&segment).unwrap();
    write_first_item(&draft, &segment, b'J');
    let opened = Segment::open_with(backend, &segment.path().unwrap()).unwrap();
    assert_eq!(items(&opened.mapping().unwrap(), &opened), b"hello");
    assert_eq!(items(&segment.mapping().unwrap(), &segment), b"hello");
    assert_eq!(items(&draft, &segment), b"Jello");
}

fn mutable(backend: Backend) {
    let session = create(backend);
    let mutable = true;
    let spec = TensorSpec {
        mutable,
        ..spec("x", 5)
    };
    let segment = session.create_tensor(spec, Some(b"hello")).unwrap();
    let opened = Segment::open_with(backend, &segment.path().unwrap()).unwrap();
    write_first_item(&segment.mapping().unwrap(), &segment, b'J');
    assert_eq!(items(&opened.mapping().unwrap(), &opened), b"Jello");
}

fn unlinked(backend: Backend) {
    let session = create(backend);
    let segment = put(&session, b"hello");
    let path = segment.path().unwrap();
    let opened = Segment::open_with(backend, &path).unwrap();
    drop(segment);
    let gone = Segment::open_with(backend, &path);
    assert!(
        matches!(gone, Err(Error::SegmentNotFound { .. })),
        "{gone:?}"
    );
    assert!(!opened.is_linked());
    assert_eq!(items(&opened.mapping().unwrap(), &opened), b"hello");
}

fn close(backend: Backend) {
    let session = create(backend);
    let held = put(&session, b"hello");
    let info = sessions()
        .unwrap()
        .into_iter()
        .find(|info| info.id == *session.id())
        .unwrap();
    assert_eq!((info.alive, info.entries, info.bytes), (true, 1, 4096 + 5));
    session.close().unwrap();
    assert_eq!(names_of(session.id()), 0);
    assert_eq!(items(&held.mapping().unwrap(), &held), b"hello");
    let late = session.create_tensor(spec("y", 1), None);
    assert!(matches!(late, Err(Error::SessionClosed { .. })));
}

/// Publishes while `look` is called again and again on each path, until it has seen the bytes.
fn race(backend: Backend, look: impl Fn(&Path) -> bool + Sync) {
    let session = create(backend);
    let data = vec![7; 3 << 20];
    for number in 1..=40 {
        let path = session.id().segment(number).path();
        let ended = AtomicBool::new(false);
        thread::scope(|scope| {
            let reader = scope.spawn(|| {
                let mut seen = 0;
                while !ended.load(Ordering::SeqCst) || seen == 0 {
                    seen += u32::from(look(&path));
                }
            });
            let segment = put(&session, &data);
            ended.store(true, Ordering::SeqCst);
            reader.join().unwrap();
            drop(segment);
        });
    }
}

fn racing_reader(backend: Backend) {
    race(backend, |path| match Segment::open_with(backend, path) {
        Ok(opened) => {
            let whole = items(&opened.mapping().unwrap(), &opened);
            assert!(whole.iter().all(|item| *item == 7));
            true
        }
        Err(Error::SegmentNotFound { .. } | Error::CorruptSegment { .. }) => false,
        Err(error) => panic!("{error}"),
    });
}

fn racing_stock_reader(backend: Backend) {
    race(backend, |path| match fs::read(path) {
        Ok(bytes) => {
            assert_eq!(bytes.len(), 4096 + (3 << 20));
            assert!(bytes[4096..].iter().all(|item| *item == 7));
            true
        }
        Err(_) => false,
    });
}

fn catalog(backend: Backend) {
    let session = create(backend);
    let segment = put(&session, b"hello");
    let enter = |i| (format!("key {i}"), Some(Arc::clone(&segment)));
    let changes: Vec<_> = (0..1000).map(enter).collect();
    session.commit(7, &changes).unwrap();
    session.commit(8, &[("key 500".to_owned(), None)]).unwrap();
    let (version, entries) = read_catalog(session.id()).unwrap();
    assert_eq!((version, entries.len()), (8, 999));
    assert!(entries.iter().all(|entry| entry.segment == *segment.name()));
    assert!(entries.iter().all(|entry| entry.key != "key 500"));
}

fn budget(backend: Backend) {
    let heavy_limit = Some(1 << 20);
    let session = Session::create(Config {
        backend,
        heavy_limit,
        ..Config::default()
    })
    .unwrap();
    let first = session.create_tensor(spec("x", 900_000), None).unwrap();
    let full = session.create_tensor(spec("y", 900_000), None).unwrap_err();
    let Error::HeavyZoneFull {
        requested, limit, ..
    } = full
    else {
        panic!("{full}");
    };
    assert_eq!((requested, limit.as_ref()), (4096 + 900_000, "heavy_limit"));
    drop(first);
    session.create_tensor(spec("y", 900_000), None).unwrap();
}

fn living(backend: Backend) {
    let session = create(backend);
    let id = session.id();
    assert_eq!(sweep_session(id).unwrap(), SweepOutcome::StillAlive);
    let locks = [Path::new("/dev/shm"), &std::env::temp_dir()].map(|at| at.join(id.lock_name()));
    let lock = locks.iter().find(|path| path.exists()).unwrap();
    fs::remove_file(lock).unwrap();
    assert_eq!(sweep_session(id).unwrap(), SweepOutcome::StillAlive);
    put(&session, b"hello");
    assert!(lock.exists(), "its owner puts the file back");
    session.close().unwrap();
    assert_eq!(sweep_session(id).unwrap(), SweepOutcome::NothingLeft);
}

fn full_memory(backend: Backend) {
    let session = create(backend);
    let too_much = 1 << 50;
    let full = session
        .create_tensor(spec("x", too_much), None)
        .unwrap_err();
    assert!(matches!(full, Error::HeavyZoneFull { requested, .. } if requested == 4096 + too_much));
    let segment = session.create_tensor(spec("x", 1 << 20), None).unwrap();
    session.publish(&segment).unwrap();
    let status = fs::metadata(segment.path().unwrap()).unwrap();
    assert!(status.blocks() * 512 >= status.len(), "{status:?}");
}

fn read_only_pages(backend: Backend) {
    let session = create(backend);
    let segment = put(&session, b"hello");
    let opened = Segment::open_with(backend, &segment.path().unwrap()).unwrap();
    let maps = fs::read_to_string("/proc/self/maps").unwrap();
    for mapping in [opened.mapping().unwrap(), segment.mapping().unwrap()] {
        let start = format!("{:x}-", mapping.address());
        let line = maps.lines().find(|line| line.starts_with(&start)).unwrap();
        assert_eq!(line.split(' ').nth(1), Some("r--s"), "{line}");
    }
}

/// Not a test by itself: the program that the checks below start as an owner.
#[test]
fn owner() {
    let Ok(backend) = std::env::var(OWNER_BACKEND) else {
        return;
    };
    let session = create(backend.parse().unwrap());
    let _segment = put(&session, b"hello");
    if std::env::var_os(OWNER_FORKS).is_some() {
        #[expect(unsafe_code, reason = "a child that does not execute anything")]
        // SAFETY: the child calls only what a child of a threaded process may.
        match unsafe { libc::fork() } {
            0 => loop {
                #[expect(unsafe_code, reason = "a child that does not execute anything")]
                // SAFETY: as above.
                unsafe {
                    libc::pause();
                }
            },
            child => println!("child {child}"),
        }
    }
    println!("session {}", session.id());
    loop {
        thread::park();
    }
}

struct Owner {
    process: Child,
    session: SessionId,
    child: Option<i32>,
}

impl Owner {
    fn start(backend: Backend, forks: bool) -> Self {
        let mut command = Command::new(std::env::current_exe().unwrap());
        command.args(["owner", "--exact", "--nocapture"]);
        command.env(OWNER_BACKEND, backend.to_string());
        if forks {
            command.env(OWNER_FORKS, "1");
        }
        let mut process = command.stdout(Stdio::piped()).spawn().unwrap();
        let mut child = None;
        let lines = BufReader::new(process.stdout.take().unwrap()).lines();
        for line in lines.map_while(Result::ok) {
            if let Some(pid) = line.strip_prefix("child ") {
                child = pid.parse().ok();
            } else if let Some(id) = line.strip_prefix("session ") {
                let session = id.parse().unwrap();
                return Self {
                    process,
                    session,
                    child,
                };
            }
        }
        panic!("the owner ended: {:?}", process.wait());
    }

    fn kill(&mut self) {
        assert!(
            names_of(&self.session) >= 3,
            "a lock, a catalog and a segment"
        );
        self.process.kill().unwrap();
        self.process.wait().unwrap();
    }

    /// Whoever sweeps first, this process or a test beside it.
    fn assert_swept(&self) {
        let deadline = Instant::now() + Duration::from_secs(5);
        while names_of(&self.session) > 0 {
            assert!(
                Instant::now() < deadline,
                "{:?}",
                sweep_session(&self.session)
            );
            sweep(None).unwrap();
        }
    }
}

impl Drop for Owner {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
        if let Some(pid) = self.child.and_then(rustix::process::Pid::from_raw) {
            let _ = rustix::process::kill_process(pid, rustix::process::Signal::KILL);
        }
    }
}

fn killed_owner(backend: Backend) {
    let mut owner = Owner::start(backend, false);
    owner.kill();
    owner.assert_swept();
}

fn planted(backend: Backend) {
    let mut owner = Owner::start(backend, false);
    let number = |number| owner.session.segment(number).path();
    let (link, directory) = (number(77), number(78));
    std::os::unix::fs::symlink("/nowhere/at/all", &link).unwrap();
    fs::create_dir(&directory).unwrap();
    for path in [&link, &directory] {
        assert!(Segment::open_with(backend, path).is_err());
    }
    owner.kill();
    let deadline = Instant::now() + Duration::from_secs(5);
    while names_of(&owner.session) > 2 {
        assert!(Instant::now() < deadline);
        sweep(None).unwrap();
    }
    assert!(link.is_symlink() && directory.is_dir());
    let known = sessions().unwrap();
    fs::remove_file(link).unwrap();
    fs::remove_dir(directory).unwrap();
    assert!(known.iter().all(|info| info.id != owner.session));
}

fn copied_lock(backend: Backend) {
    let session = create(backend);
    let segment = put(&session, b"hello");
    let id = session.id();
    let places = [Path::new("/dev/shm"), &std::env::temp_dir()];
    let locks = places.map(|place| place.join(id.lock_name()));
    let copy = locks.iter().find(|path| !path.exists()).unwrap();
    fs::write(copy, b"x").unwrap();
    let outcome = sweep_session(id);
    let alive = sessions()
        .unwrap()
        .iter()
        .any(|info| info.id == *id && info.alive);
    fs::remove_file(copy).unwrap();
    assert_eq!(outcome.unwrap(), SweepOutcome::StillAlive);
    assert!(alive && segment.path().unwrap().exists());
}

fn killed_owner_with_a_child(backend: Backend) {
    let mut owner = Owner::start(backend, true);
    assert!(owner.child.is_some());
    owner.kill();
    owner.assert_swept();
}

fn killed_owner_without_a_lock(backend: Backend) {
    let mut owner = Owner::start(backend, false);
    let catalog = owner.session.segment(0).path();
    fs::remove_file(catalog.with_file_name(owner.session.lock_name())).unwrap();
    assert_eq!(
        sweep_session(&owner.session).unwrap(),
        SweepOutcome::StillAlive
    );
    owner.process.kill().unwrap();
    owner.process.wait().unwrap();
    owner.assert_swept();
}
