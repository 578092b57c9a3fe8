//! The dispatcher with real workers: this very executable, started again as one.

use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use theus::dispatch::{
    Codec, Completion, Dispatcher, Event, Function, Launch, Message, Outcome, ProgramId,
    ProgramSpec, Snapshot, TaskSpec, Woken,
};
use theus::worker::{Registry, TaskError, serve};
use theus::{Config, Error, Session};

const DEADLINE: Duration = Duration::from_secs(30);
/// No inputs, as a plain value.
const NOTHING: [u8; 1] = [0x80];
const BY_NAME_PLAIN: u64 = 4;

/// Not a test of its own: what the workers of the others run.
#[test]
fn as_a_worker() {
    if std::env::var_os("THEUS_WORKER").is_some() {
        serve(tasks).unwrap();
    }
}

fn tasks(tasks: &mut Registry) {
    tasks.register("nothing", |_| Ok(()));
    tasks.register("pid", |_| Ok(std::process::id()));
    tasks.register("nap", |_| {
        thread::sleep(Duration::from_millis(300));
        Ok(())
    });
    tasks.register("sleep", |ctx| {
        while !ctx.is_cancelled() {
            thread::sleep(Duration::from_millis(1));
        }
        ctx.check_cancelled()
    });
    tasks.register("hang", |_| -> theus::worker::Result<()> {
        thread::sleep(Duration::from_secs(3600));
        Ok(())
    });
    tasks.register("abort", |_| -> theus::worker::Result<()> {
        std::process::abort()
    });
    tasks.register("fail", |_| -> theus::worker::Result<()> {
        Err(TaskError::new("no", "it is not to be"))
    });
    tasks.register("progress", |ctx| {
        ctx.progress(3, Some(4), "nearly");
        Ok(())
    });
}

struct Fixture {
    dispatcher: Dispatcher,
    program: ProgramId,
    snapshot: Arc<Snapshot>,
}

fn launch(program: &str, arguments: &[&str]) -> Launch {
    Launch {
        program: program.into(),
        arguments: arguments.iter().map(Into::into).collect(),
        environment: std::env::vars_os().collect(),
    }
}

fn own(workers: usize) -> ProgramSpec {
    let path = std::env::current_exe().unwrap();
    spec(
        launch(
            path.to_str().unwrap(),
            &["--exact", "as_a_worker", "--nocapture", "--quiet"],
        ),
        workers,
    )
}

fn spec(launch: Launch, workers: usize) -> ProgramSpec {
    ProgramSpec {
        launch,
        codec: Codec::Plain,
        pinned: true,
        workers,
        start_time: DEADLINE,
        exit_time: DEADLINE,
        threads: 1,
        max_tasks: None,
        max_rss: None,
    }
}

impl Fixture {
    fn new(workers: usize) -> Self {
        Self::of(own(workers))
    }

    fn of(spec: ProgramSpec) -> Self {
        let session = Session::create(Config::default()).unwrap();
        let dispatcher = Dispatcher::new(session, 2).unwrap();
        let program = dispatcher.add_program(spec).unwrap();
        Self {
            dispatcher,
            program,
            snapshot: Arc::default(),
        }
    }

    fn spec(&self, name: &str) -> TaskSpec {
        TaskSpec {
            program: self.program,
            function: Arc::new(Function::by_name(name, 0)),
            snapshot: Arc::clone(&self.snapshot),
            setup: None,
            call: BY_NAME_PLAIN,
            inputs: Message::inline(NOTHING),
            weight: 1,
            timeout: None,
            progress: None,
            keepalive: None,
        }
    }

    fn submit(&self, name: &str) -> Arc<Completion> {
        self.dispatcher.submit(self.spec(name)).unwrap()
    }

    fn run(&self, name: &str) -> Outcome {
        outcome(&self.submit(name))
    }

    fn close(self) {
        self.dispatcher.close();
        assert_eq!(self.dispatcher.wait_closed(Some(DEADLINE)), Woken::Set);
        assert!(self.dispatcher.worker_pids().is_empty());
    }
}

fn outcome(completion: &Completion) -> Outcome {
    assert_eq!(
        completion.wait(Some(DEADLINE)),
        Woken::Set,
        "it never ended"
    );
    completion.outcome().unwrap().0
}

fn returned(outcome: Outcome) -> Arc<[u8]> {
    match outcome {
        Outcome::Returned(message) => message.data,
        other => panic!("{other:?}"),
    }
}

fn failed(outcome: Outcome) -> Arc<Error> {
    match outcome {
        Outcome::Failed(error) => error,
        other => panic!("{other:?}"),
    }
}

#[test]
fn a_task_is_run_by_a_worker_that_starts_for_it() {
    let fixture = Fixture::new(2);
    assert!(fixture.dispatcher.worker_pids().is_empty());
    assert_eq!(&*returned(fixture.run("nothing")), [0xc0]);
    assert_eq!(fixture.dispatcher.worker_pids().len(), 1);
    match fixture.run("fail") {
        Outcome::Raised(failure) => assert!(!failure.message.data.is_empty()),
        other => panic!("{other:?}"),
    }
    fixture.close();
}

#[test]
fn thousands_of_tasks_in_flight_all_end_and_polling_finds_short_ones() {
    let fixture = Fixture::new(2);
    let all: Vec<_> = (0..5_000).map(|_| fixture.submit("nothing")).collect();
    for completion in &all {
        returned(outcome(completion));
    }
    // On a busy machine it may take a while until an answer comes within the time of a poll.
    let since = Instant::now();
    let mut polled = false;
    while !polled {
        assert!(since.elapsed() < DEADLINE, "no answer is found by polling");
        let spec = fixture.spec("nothing");
        let completion = fixture.dispatcher.submit_polling(spec).unwrap();
        polled = completion.is_done();
        returned(outcome(&completion));
    }
    assert!(!fixture.dispatcher.is_busy());
    fixture.close();
}

#[test]
fn tasks_from_many_threads_end() {
    let fixture = Fixture::new(2);
    thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| {
                for _ in 0..500 {
                    let completion = fixture.submit("nothing");
                    fixture.dispatcher.poll(fixture.program, &completion);
                    returned(outcome(&completion));
                }
            });
        }
    });
    fixture.close();
}

#[test]
fn a_death_fails_the_task_that_ran_and_no_other() {
    let fixture = Fixture::new(1);
    fixture.run("nothing");
    let dies = fixture.submit("abort");
    let waits = fixture.submit("nothing");
    match &*failed(outcome(&dies)) {
        Error::WorkerDied { task, death } => {
            assert_eq!((task.as_str(), death.status), ("abort", -libc_sigabrt()));
        }
        other => panic!("{other:?}"),
    }
    returned(outcome(&waits));
    fixture.close();
}

const fn libc_sigabrt() -> i32 {
    6
}

#[test]
fn a_task_that_may_be_retried_is_poison_when_it_kills_each_worker() {
    let fixture = Fixture::new(1);
    let mut spec = fixture.spec("abort");
    spec.function = Arc::new(Function::by_name("abort", 2));
    let completion = fixture.dispatcher.submit(spec).unwrap();
    match &*failed(outcome(&completion)) {
        Error::PoisonTask { deaths, .. } => assert_eq!(deaths.len(), 3),
        other => panic!("{other:?}"),
    }
    fixture.close();
}

#[test]
fn a_late_task_is_stopped_and_a_deaf_one_killed() {
    let fixture = Fixture::new(1);
    for name in ["sleep", "hang"] {
        let mut spec = fixture.spec(name);
        spec.timeout = Some(Duration::from_millis(50));
        let completion = fixture.dispatcher.submit(spec).unwrap();
        assert!(
            matches!(&*failed(outcome(&completion)), Error::TaskTimeout { task, .. } if task == name)
        );
        returned(fixture.run("nothing"));
    }
    fixture.close();
}

#[test]
fn the_longest_of_timeouts_is_no_timeout() {
    let fixture = Fixture::new(1);
    let mut spec = fixture.spec("nap");
    spec.timeout = Some(Duration::MAX);
    returned(outcome(&fixture.dispatcher.submit(spec).unwrap()));
    fixture.close();
}

#[test]
fn cancelling_stops_what_runs_and_what_waits() {
    let fixture = Fixture::new(1);
    let runs = fixture.submit("sleep");
    let waits = fixture.submit("nothing");
    while fixture.dispatcher.worker_pids().is_empty() {
        thread::sleep(Duration::from_millis(1));
    }
    assert!(fixture.dispatcher.cancel(fixture.program, &waits, true));
    assert!(!fixture.dispatcher.cancel(fixture.program, &waits, false));
    assert!(fixture.dispatcher.cancel(fixture.program, &runs, false));
    assert!(matches!(outcome(&runs), Outcome::Cancelled));
    assert!(matches!(outcome(&waits), Outcome::Cancelled));
    returned(fixture.run("nothing"));
    fixture.close();
}

#[test]
fn many_cancelled_tasks_leave_the_queue() {
    let fixture = Fixture::new(1);
    let runs = fixture.submit("sleep");
    let waiting: Vec<_> = (0..1_000).map(|_| fixture.submit("nothing")).collect();
    for completion in &waiting {
        fixture
            .dispatcher
            .cancel(fixture.program, completion, false);
    }
    fixture.dispatcher.cancel(fixture.program, &runs, false);
    assert_eq!(fixture.dispatcher.wait_idle(Some(DEADLINE)), Woken::Set);
    returned(fixture.run("nothing"));
    fixture.close();
}

#[test]
fn closing_ends_what_runs_and_what_waits() {
    let fixture = Fixture::new(1);
    let tasks = [fixture.submit("hang"), fixture.submit("nothing")];
    while fixture.dispatcher.worker_pids().is_empty() {
        thread::sleep(Duration::from_millis(1));
    }
    let since = Instant::now();
    fixture.dispatcher.close();
    for task in &tasks {
        assert!(matches!(&*failed(outcome(task)), Error::EngineClosed));
    }
    assert!(matches!(
        fixture.dispatcher.submit(fixture.spec("nothing")),
        Err(Error::EngineClosed)
    ));
    assert!(since.elapsed() < DEADLINE);
    fixture.close();
}

#[test]
fn closing_before_a_worker_ever_started_is_nothing() {
    Fixture::new(1).close();
}

#[test]
fn reports_of_progress_come_as_events_before_the_end() {
    let fixture = Fixture::new(1);
    let mut spec = fixture.spec("progress");
    spec.progress = Some(17);
    let completion = fixture.dispatcher.submit(spec).unwrap();
    returned(outcome(&completion));
    assert_eq!(completion.progress().unwrap().done, 3);
    match fixture.dispatcher.events().take(Some(DEADLINE)) {
        Some(Event::Progress(17, progress)) => {
            assert_eq!(
                (progress.total, progress.message.as_str()),
                (Some(4), "nearly")
            );
        }
        other => panic!("{other:?}"),
    }
    fixture.close();
}

#[test]
fn one_slow_task_does_not_hold_up_the_short_ones_behind_it() {
    let fixture = Fixture::new(2);
    for _ in 0..50 {
        fixture.run("nothing");
        fixture.run("pid");
    }
    // A function that was always short, so that others wait behind it, and is long this once.
    let slow = fixture.submit("nap");
    let slow_again = fixture.submit("nap");
    let short: Vec<_> = (0..500).map(|_| fixture.submit("nothing")).collect();
    returned(outcome(&slow));
    returned(outcome(&slow_again));
    for completion in &short {
        returned(outcome(completion));
    }
    fixture.close();
}

#[test]
fn workers_are_replaced_after_so_many_tasks() {
    let mut spec = own(1);
    spec.max_tasks = Some(3);
    let fixture = Fixture::of(spec);
    let pids: Vec<_> = (0..9).map(|_| returned(fixture.run("pid"))).collect();
    let mut different = pids.clone();
    different.dedup();
    assert_eq!(different.len(), 3, "{pids:?}");
    fixture.close();
}

#[test]
fn a_program_that_is_no_worker_is_an_error_that_says_why() {
    for (launch, expected) in [
        (
            launch("/bin/sh", &["-c", "echo oh no >&2; exit 7"]),
            "exit code 7",
        ),
        (launch("/bin/sh", &["-c", "kill -9 $$"]), "signal 9"),
        (launch("/no/such/file", &[]), "no such file"),
        (launch("/etc/passwd", &[]), "may not be executed"),
        (launch("/tmp", &[]), "a directory"),
    ] {
        let fixture = Fixture::of(spec(launch, 1));
        let error = failed(fixture.run("nothing"));
        assert!(
            matches!(&*error, Error::NativeWorker { reason, .. } if reason.contains(expected)),
            "{error}"
        );
        fixture.close();
    }
}

#[test]
fn the_first_worker_has_a_time_to_say_hello() {
    let fixture = Fixture::of(spec(launch("/bin/sleep", &["60"]), 1));
    let first = fixture
        .dispatcher
        .start_first(fixture.program, Duration::from_millis(100))
        .unwrap();
    let error = failed(outcome(&first));
    assert!(
        error.to_string().contains("it said no hello within 0.1 s"),
        "{error}"
    );
    fixture.close();

    let fixture = Fixture::new(1);
    let first = fixture
        .dispatcher
        .start_first(fixture.program, DEADLINE)
        .unwrap();
    returned(outcome(&first));
    let hello = fixture.dispatcher.hello(fixture.program).unwrap();
    assert!(hello.tasks.contains(&"nap".to_owned()));
    fixture.close();
}

#[test]
fn nothing_is_due_in_an_idle_engine() {
    let fixture = Fixture::new(2);
    fixture.run("nothing");
    // What the start of the worker has left to do comes first, whenever that is.
    let sleeps = (0..20).any(|_| {
        let before = wakeups();
        assert_eq!(before.len(), 1);
        thread::sleep(Duration::from_millis(300));
        wakeups() == before
    });
    assert!(sleeps, "the engine's thread never sleeps for long");
    fixture.close();
}

/// How often the engine's thread slept.
fn wakeups() -> Vec<(String, u64)> {
    let mut found = Vec::new();
    for task in std::fs::read_dir("/proc/self/task").unwrap() {
        let status =
            std::fs::read_to_string(task.unwrap().path().join("status")).unwrap_or_default();
        let field = |name: &str| {
            let line = status.lines().find(|line| line.starts_with(name))?;
            Some(line.split_whitespace().nth(1)?.to_owned())
        };
        if let (Some(name), Some(switches)) = (field("Name:"), field("voluntary_ctxt_switches:"))
            && name == "theus-io"
        {
            found.push((name, switches.parse().unwrap()));
        }
    }
    found
}
