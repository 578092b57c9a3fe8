//! A worker's output: whoever dies or drops it at whatever moment, nothing stays reserved.

use theus::layout::Spec;
use theus::layout::tensor::{ElementType, Order, TensorSpec};
use theus::{Backend, Budget, Config, Error, Output, Segment, Session, Zone};

const ITEMS: u64 = 10_000;
const BYTES: u64 = 4096 + ITEMS;

fn spec() -> TensorSpec {
    TensorSpec::dense("out", ElementType::U8, &[ITEMS], Order::C).unwrap()
}

fn setup(backend: Backend) -> (Session, Zone) {
    let heavy_limit = Some(3 * BYTES);
    let config = Config {
        backend,
        heavy_limit,
        ..Config::default()
    };
    let session = Session::create(config).unwrap();
    let budget = Budget::from_fd(session.budget_file().unwrap(), 1).unwrap();
    (
        session.clone(),
        Zone::of_worker(session.id().clone(), budget),
    )
}

fn first_item(segment: &Segment) -> u8 {
    let at = segment
        .mapping()
        .unwrap()
        .as_ptr()
        .wrapping_add(segment.body_offset());
    #[expect(unsafe_code, reason = "a mapping offers pointers only")]
    // SAFETY: inside the mapping, which the segment keeps.
    unsafe {
        at.read()
    }
}

fn write(output: &Output, value: u8) {
    let at = output
        .mapping()
        .as_mut_ptr()
        .wrapping_add(output.body_offset());
    #[expect(unsafe_code, reason = "a mapping offers pointers only")]
    // SAFETY: inside the mapping, whose pages its maker may write, handed over or not.
    unsafe {
        at.write(value);
    }
}

#[test]
fn an_output_becomes_a_segment_of_the_owner() {
    for backend in Backend::ALL {
        let (session, zone) = setup(backend);
        let output = Output::create(&zone, spec(), Some(&[7; 10_000])).unwrap();
        assert_eq!(session.used_bytes(), BYTES);
        write(&output, 8);
        let file = output.hand_over().unwrap();
        write(&output, 9);
        let again = output.hand_over().unwrap_err();
        assert!(matches!(again, Error::HandedOver { .. }), "{again}");
        let segment = session.adopt(file, 1).unwrap();
        drop(output);
        assert_eq!(session.used_bytes(), BYTES);
        assert_eq!(first_item(&segment), 8);
        let opened = Segment::open(&segment.path().unwrap()).unwrap();
        assert_eq!(
            (opened.spec(), first_item(&opened)),
            (&Spec::Tensor(spec()), 8)
        );
        drop(segment);
        assert_eq!(session.used_bytes(), 0);
        assert!(!opened.is_linked());
    }
}

#[test]
fn what_nobody_takes_is_given_back() {
    let (session, zone) = setup(Backend::Linux);
    let create = || Output::create(&zone, spec(), None);
    let kept: Vec<_> = (0..3).map(|_| create().unwrap()).collect();
    let full = create().unwrap_err();
    assert!(
        matches!(
            full,
            Error::HeavyZoneFull { ref limit, .. } if limit == "heavy_limit"
        ),
        "{full}"
    );
    drop(kept);
    assert_eq!(session.used_bytes(), 0);
    // One that is on its way counts until the owner has it, or has buried the worker.
    let file = create().unwrap().hand_over().unwrap();
    assert_eq!(session.used_bytes(), BYTES);
    drop(file);
    session.zone().budget().clear(1);
    assert_eq!(session.used_bytes(), 0);
}

#[test]
fn a_file_that_somebody_can_still_write_is_copied() {
    let (session, _) = setup(Backend::Linux);
    let header = spec().header();
    let path = format!("/dev/shm/theus-test-{}", std::process::id());
    std::fs::write(&path, [header, vec![5; 10_000]].concat()).unwrap();
    let writer = std::fs::OpenOptions::new().write(true).open(&path).unwrap();
    let reader = std::fs::File::open(&path).unwrap();
    std::fs::remove_file(&path).unwrap();
    let segment = session.adopt(reader.into(), 1).unwrap();
    std::os::unix::fs::FileExt::write_all_at(&writer, &[6; 10_000], 4096).unwrap();
    assert_eq!(first_item(&segment), 5);
}

/// A description that can only read, of a file with these bytes that has no name.
fn nameless(bytes: &[u8]) -> std::os::fd::OwnedFd {
    use rustix::fs::{Mode, OFlags, open};
    let flags = OFlags::TMPFILE | OFlags::RDWR;
    let file = open("/dev/shm", flags, Mode::RUSR | Mode::WUSR).unwrap();
    rustix::io::pwrite(&file, bytes, 0).unwrap();
    let path = format!("/proc/self/fd/{}", std::os::fd::AsRawFd::as_raw_fd(&file));
    open(path, OFlags::RDONLY, Mode::empty()).unwrap()
}

#[test]
fn what_is_no_tensor_is_refused_and_not_counted() {
    let (session, _) = setup(Backend::Linux);
    let file = nameless(&[1; 5000]);
    let refused = session.adopt(file, 1).unwrap_err();
    assert!(matches!(refused, Error::CorruptSegment { .. }), "{refused}");
    assert_eq!(session.used_bytes(), 0);
    assert!(!session.id().segment(1).path().exists());
    let (pipe, _) = std::io::pipe().unwrap();
    assert!(session.adopt(pipe.into(), 1).is_err());
    let tensor = session.alloc_tensor::<u8>("x", &[5]).unwrap();
    let tensor = tensor.publish().unwrap();
    let path = session.get("x").unwrap().path().unwrap();
    let named = std::fs::File::open(path).unwrap().into();
    drop(tensor);
    let refused = session.adopt(named, 1).unwrap_err();
    assert!(refused.to_string().contains("nameless"), "{refused}");
    assert!(session.adopt(nameless(&[]), 1).is_err());
}
