//! A worker ends with its owner, told apart by real processes and a real SIGKILL.

use std::io::Read;
use std::os::fd::OwnedFd;
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use rustix::process::{Pid, PidfdFlags, pidfd_open};
use theus::dispatch::{Attempt, watch_process};

const OWNER: &str = "THEUS_TEST_OWNER";

fn open_pidfd(pid: u32) -> OwnedFd {
    let pid = Pid::from_raw(i32::try_from(pid).unwrap()).unwrap();
    pidfd_open(pid, PidfdFlags::empty()).unwrap()
}

/// Not a test by itself: the program that the test below starts as the worker.
#[test]
fn worker() {
    let Ok(owner) = std::env::var(OWNER) else {
        return;
    };
    let attempts = AtomicU32::new(0);
    watch_process(open_pidfd(owner.parse().unwrap()), move || {
        // The kernel takes a while to finish with an owner.
        if attempts.fetch_add(1, Ordering::Relaxed) < 3 {
            return Attempt::Held;
        }
        println!("swept");
        Attempt::Finished
    })
    .unwrap();
    println!("watching");
    loop {
        std::hint::spin_loop();
    }
}

#[test]
fn a_busy_worker_is_gone_within_a_second_of_its_owner() {
    let mut owner = Command::new("sleep").arg("60").spawn().unwrap();
    let mut worker = Command::new(std::env::current_exe().unwrap())
        .args(["worker", "--exact", "--nocapture"])
        .env(OWNER, owner.id().to_string())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    thread::sleep(Duration::from_millis(300));
    assert!(
        worker.try_wait().unwrap().is_none(),
        "it waits for its owner"
    );

    owner.kill().unwrap();
    let killed = Instant::now();
    let status = loop {
        if let Some(status) = worker.try_wait().unwrap() {
            break status;
        }
        if killed.elapsed() > Duration::from_secs(5) {
            worker.kill().unwrap();
            panic!("the worker outlived its owner by 5 s");
        }
        thread::sleep(Duration::from_millis(5));
    };
    let took = killed.elapsed();
    owner.wait().unwrap();
    let mut said = String::new();
    let mut stdout = worker.stdout.take().unwrap();
    stdout.read_to_string(&mut said).unwrap();
    assert!(
        said.contains("watching") && said.contains("swept"),
        "{said}"
    );
    assert_eq!(status.code(), Some(1));
    // A sanitizer lets the process end when it has looked at its memory.
    let sanitized = std::env::var_os("THEUS_SANITIZED").is_some();
    assert!(sanitized || took < Duration::from_secs(1), "{took:?}");
    assert!(
        took > Duration::from_millis(50),
        "three attempts found the lock held: {took:?}"
    );
}
