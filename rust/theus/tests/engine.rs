//! An engine of a Rust owner: tasks of this very executable, and Python functions where there is Python.

use std::pin::pin;
use std::sync::mpsc::{Sender, channel};
use std::sync::{Arc, Mutex};
use std::task::{Context, Poll, Wake, Waker};
use std::thread;
use std::time::Duration;

use serde_json::json;
use theus::worker::{Registry, TaskError, serve};
use theus::{CallOptions, Config, Engine, Error, Python, Session};

/// Not a test of its own: what the native workers of the others run.
#[test]
fn as_a_worker() {
    if std::env::var_os("THEUS_WORKER").is_some() {
        serve(tasks).unwrap();
    }
}

#[derive(serde::Deserialize)]
struct Column {
    column: String,
}

fn tasks(tasks: &mut Registry) {
    tasks.register("sum", |ctx| {
        let Column { column } = ctx.input()?;
        let items = ctx.heavy(&column)?.tensor::<f64>()?;
        Ok(items.view().iter().sum::<f64>())
    });
    tasks.register("fail", |_| -> theus::worker::Result<()> {
        Err(TaskError::new("bad", "it is not to be"))
    });
    tasks.register("abort", |_| -> theus::worker::Result<()> {
        std::process::abort()
    });
    tasks.register("report", |ctx| {
        ctx.progress(2, Some(4), "half");
        Ok(())
    });
    tasks.register("wait", |ctx| {
        while !ctx.is_cancelled() {
            thread::sleep(Duration::from_millis(1));
        }
        ctx.check_cancelled()
    });
}

fn put(session: &Session, name: &str, value: f64) {
    let mut column = session.alloc_tensor::<f64>(name, &[1000]).unwrap();
    column.as_mut_slice().fill(value);
    column.publish().unwrap();
}

fn engine(session: &Session) -> Engine {
    let arguments = ["--exact", "as_a_worker", "--nocapture", "--quiet"];
    Engine::builder(session)
        .program_with(std::env::current_exe().unwrap(), arguments, 2)
        .start()
        .unwrap()
}

#[test]
fn tasks_run_over_the_entries_of_the_moment_in_which_they_are_called() {
    let session = Session::create(Config::default()).unwrap();
    let engine = engine(&session);
    assert_eq!(engine.tasks(), ["abort", "fail", "report", "sum", "wait"]);
    for value in [1.0, 2.0, 3.0] {
        put(&session, "price", value);
        put(&session, &format!("other {value}"), 10.0 * value);
        let calls: Vec<_> = (0..20)
            .map(|_| engine.call("sum", &json!({"column": "price"})).unwrap())
            .collect();
        put(&session, "price", -1.0);
        for call in calls {
            let sum: f64 = call.wait().unwrap();
            assert!((sum - 1000.0 * value).abs() < 1e-9, "{sum}");
        }
    }
    engine.close();
}

#[test]
fn a_call_fails_as_its_task_does() {
    let session = Session::create(Config::default()).unwrap();
    let engine = engine(&session);
    let error = engine
        .call::<()>("fail", &json!({}))
        .unwrap()
        .wait()
        .unwrap_err();
    assert!(
        matches!(&error, Error::TaskFailed { kind, message, .. } if kind == "bad" && message == "it is not to be"),
        "{error}"
    );
    let error = engine.call::<()>("nobody", &json!({})).unwrap_err();
    assert!(
        error.to_string().contains("there are abort, fail"),
        "{error}"
    );
    let error = engine.call::<()>(Python("a:b"), &json!({})).unwrap_err();
    assert!(error.to_string().contains("no interpreter"), "{error}");
    let error = engine
        .call::<()>("abort", &json!({}))
        .unwrap()
        .wait()
        .unwrap_err();
    assert!(
        matches!(&error, Error::WorkerDied { death, .. } if death.status == -6),
        "{error}"
    );
    let options = CallOptions {
        timeout: Some(Duration::from_millis(50)),
        retries: 0,
    };
    let error = engine
        .call_with::<()>("wait", &json!({}), options)
        .unwrap()
        .wait()
        .unwrap_err();
    assert!(
        error.to_string().contains("did not end within 0.05 s"),
        "{error}"
    );
    put(&session, "x", 1.0);
    let call = engine
        .call::<String>("sum", &json!({"column": "x"}))
        .unwrap();
    assert!(matches!(call.wait().unwrap_err(), Error::PlainValue { .. }));
    engine.close();
}

#[test]
fn a_call_can_be_cancelled_reports_progress_and_is_a_future() {
    let session = Session::create(Config::default()).unwrap();
    let engine = engine(&session);
    let call = engine.call::<()>("wait", &json!({})).unwrap();
    assert!(!call.wait_for(Duration::from_millis(20)));
    assert!(call.cancel() && call.is_done());
    assert!(matches!(
        call.wait().unwrap_err(),
        Error::TaskCancelled { .. }
    ));
    let call = engine.call::<()>("report", &json!({})).unwrap();
    assert!(call.wait_for(Duration::from_secs(30)));
    assert_eq!(call.progress().unwrap().done, 2);
    block_on(call).unwrap();
    engine.close();
}

/// The smallest of executors.
fn block_on<F: Future>(future: F) -> F::Output {
    use std::pin::pin;
    use std::sync::Arc;
    use std::task::{Context, Poll, Wake, Waker};

    struct Unpark(thread::Thread);
    impl Wake for Unpark {
        fn wake(self: Arc<Self>) {
            self.0.unpark();
        }
    }
    let waker = Waker::from(Arc::new(Unpark(thread::current())));
    let mut future = pin!(future);
    loop {
        match future.as_mut().poll(&mut Context::from_waker(&waker)) {
            Poll::Ready(output) => return output,
            Poll::Pending => thread::park(),
        }
    }
}

/// Uses the engine whose task has ended, in the very moment in which it is told.
struct Looks(Arc<Engine>, Mutex<Sender<usize>>);

impl Wake for Looks {
    fn wake(self: Arc<Self>) {
        let pids = self.0.worker_pids().len();
        self.1.lock().unwrap().send(pids).unwrap();
    }
}

#[test]
fn a_waker_may_use_the_engine_however_its_task_ends() {
    let session = Session::create(Config::default()).unwrap();
    let engine = Arc::new(engine(&session));
    put(&session, "x", 1.0);
    let (told, tells) = channel();
    let waker = Waker::from(Arc::new(Looks(Arc::clone(&engine), Mutex::new(told))));
    for (task, timeout) in [("wait", Some(Duration::from_millis(20))), ("abort", None)] {
        let options = CallOptions {
            timeout,
            retries: 0,
        };
        let call = engine.call_with::<()>(task, &json!({}), options).unwrap();
        let mut call = pin!(call);
        let mut context = Context::from_waker(&waker);
        if call.as_mut().poll(&mut context).is_pending() {
            tells.recv_timeout(Duration::from_secs(20)).unwrap();
        }
        let Poll::Ready(outcome) = call.as_mut().poll(&mut context) else {
            panic!("{task} has ended");
        };
        assert!(
            matches!(
                outcome,
                Err(Error::TaskTimeout { .. } | Error::WorkerDied { .. })
            ),
            "{outcome:?}"
        );
    }
}
