"""Workers in another language, by one that knows `schemas/` alone: by_the_book.py."""

import asyncio
import json
import logging
import os
import pickle
import signal
import sys
import time
from pathlib import Path

import numpy as np
import psutil
import pyarrow as pa
import pytest

import theus
from theus import dispatchers, native, process

HERE = Path(__file__).resolve().parent
BOOK = HERE / "by_the_book.py"
DEADLINE_S = 30


@pytest.fixture
def engine():
    with theus.TheusEngine({"rate": 0.5, "names": ["a", "b"]}, workers=2) as engine:
        engine.native_worker(BOOK)
        yield engine


def run(engine, name, **inputs):
    return engine.submit(native(f"book.{name}"), **inputs).result(DEADLINE_S)


def waits_for(condition):
    deadline = time.monotonic() + DEADLINE_S
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.005)


def program(tmp_path, source, *, name="program", interpreter=sys.executable):
    path = tmp_path / name
    path.write_text(f"#!{interpreter}\n{source}")
    path.chmod(0o755)
    return path


# --- values ---


def test_inputs_and_results_are_plain_values(engine):
    inputs = {
        "none": None,
        "numbers": [1, -1, 2**63, -(2**63), 0.1, float("inf")],
        "texts": ["größe", b"\x00\xff", "x" * 70_000],
        "map": {"a": {"b": [True, False]}},
        "many": list(range(70_000)),
    }
    assert run(engine, "echo", **inputs) == inputs
    assert run(engine, "echo") == {}
    assert run(engine, "noop") is None
    assert run(engine, "add", numbers=[1, 2.5]) == 3.5


def test_execute_awaits_and_executor_calls_by_name(engine):
    async def main():
        both = (engine.execute(native("book.add"), numbers=[n, 1], timeout=9) for n in range(9))
        return await asyncio.gather(*both)

    assert asyncio.run(main()) == list(range(1, 10))
    with engine.executor() as pool:
        assert pool.submit(native("book.add"), numbers=[3]).result(DEADLINE_S) == 3
        with pytest.raises(TypeError, match="by name alone"):
            pool.submit(native("book.add"), [3])


def test_entries_go_in_and_come_out_by_handle(engine):
    x = engine.heavy.put("x", np.arange(100_000.0))
    table = engine.heavy.put("t", pa.table({"a": range(100), "b": ["x"] * 100}))
    assert run(engine, "total", column="x") == x.sum()
    for view in x, x[10:20], x[::-3], np.asarray(x)[5:6]:
        assert run(engine, "total", column=view) == view.sum()
        arrived = run(engine, "echo", given=[view])["given"][0]
        assert isinstance(arrived, theus.ShmArray)
        np.testing.assert_array_equal(arrived, view)
        assert arrived.base is not None
    for part in table, table.slice(5, 10), table.select(["b"]):
        assert run(engine, "echo", given=part)["given"].equals(part)


def test_an_input_lives_until_its_task_has_ended(engine):
    x = engine.heavy.put("x", np.arange(1000.0))
    futures = [engine.submit(native("book.total"), column=x[n:]) for n in range(50)]
    engine.heavy.free("x")
    del x
    expected = np.arange(1000.0)
    assert [f.result(DEADLINE_S) for f in futures] == [expected[n:].sum() for n in range(50)]


def test_what_is_not_plain_is_refused_before_it_is_sent(engine):
    with pytest.raises(theus.NotPlainError, match=r"inputs\['x'\]\[0\] .*heavy\.put"):
        engine.submit(native("book.echo"), x=[np.arange(5)])
    with pytest.raises(theus.NotPlainError, match=r"inputs\['item'\]"):
        list(engine.map(native("book.double"), [{1}]))


def test_the_state_is_seen_in_each_version(engine):
    assert run(engine, "domain") == {"rate": 0.5, "names": ["a", "b"]}
    for number in range(5):
        entry = engine.heavy.put("x", np.full(10, float(number)))
        engine.compare_and_swap(engine.state.version, domain={"rate": number, "x": entry[:2]})
        assert run(engine, "total", column="x") == 10 * number
        seen = run(engine, "domain")
        assert (seen["rate"], seen["x"].tolist()) == (number, [number] * 2)
    engine.heavy.free("x")
    with pytest.raises(theus.EntryNotFoundError, match="no entry 'x'"):
        run(engine, "total", column="x")


class Model:
    loaded = 0

    def __setstate__(self, state):
        Model.loaded += 1


def test_what_the_domain_has_besides_is_described(engine):
    model = Model()
    model.weight = 1
    engine.compare_and_swap(
        engine.state.version, domain={"model": model, "large": np.zeros(10_000_000)}
    )
    Model.loaded = 0
    for _ in range(3):
        seen = run(engine, "domain")
    engine.compare_and_swap(engine.state.version, domain={"rate": 1})
    assert run(engine, "domain")["rate"] == 1
    assert Model.loaded == 1
    assert seen["model"].text == "a test_native_workers.Model"
    assert seen["large"].text == "a numpy.ndarray of 80 MB outside the heavy zone"


def test_python_and_native_workers_share_an_entry(engine):
    x = engine.heavy.put("x", np.arange(1000.0))
    mine = process(lambda ctx, n: float(ctx.heavy["x"][:n].sum()))
    futures = [
        engine.submit(native("book.total"), column=x[:n]) if n % 2 else engine.submit(mine, n=n)
        for n in range(1, 41)
    ]
    assert [f.result(DEADLINE_S) for f in futures] == [x[:n].sum() for n in range(1, 41)]
    native_pids = {run(engine, "pid") for _ in range(5)}
    assert native_pids < set(engine.worker_pids)
    assert len(engine.worker_pids) > len(native_pids)


def test_a_map_of_many_items(engine):
    assert list(engine.map(native("book.double"), range(1000))) == [2 * n for n in range(1000)]

    async def main():
        return [value async for value in engine.map(native("book.double"), [1.5, 2.5])]

    assert asyncio.run(main()) == [3.0, 5.0]


def test_the_environment_of_a_native_worker(tmp_path):
    with theus.TheusEngine(workers=1) as engine:
        engine.native_worker(str(BOOK), count=2, env={"COLOUR": "blue"}, args=["--flag"])
        threads = str(max(1, len(os.sched_getaffinity(0)) // 2))
        assert run(engine, "environment", variable="COLOUR") == "blue"
        assert run(engine, "environment", variable="RAYON_NUM_THREADS") == threads
        assert run(engine, "environment", variable="THEUS_WORKER") is None
        process_ = psutil.Process(run(engine, "pid"))
        assert process_.cmdline()[-2:] == [str(BOOK), "--flag"]


# --- errors ---


def error_of(engine, name, **inputs):
    with pytest.raises(theus.TheusError) as caught:
        run(engine, name, **inputs)
    return caught.value


@pytest.mark.parametrize(
    ("inputs", "kind", "builtin"),
    [
        ({}, theus.NativeTaskError, RuntimeError),
        ({"cause": 3}, theus.NativeInputError, TypeError),
        ({"cause": 4}, theus.NativePanicError, RuntimeError),
        ({"meaning": "wrong type"}, theus.NativeTypeError, TypeError),
        ({"meaning": "entry not found"}, theus.EntryNotFoundError, KeyError),
        ({"meaning": "heavy zone full"}, theus.HeavyZoneFullError, MemoryError),
        ({"meaning": "corrupt"}, theus.CorruptSegmentError, ValueError),
        ({"meaning": "something new"}, theus.NativeTaskError, RuntimeError),
        ({"cause": 2}, theus.NativeTaskError, RuntimeError),
    ],
)
def test_each_error_is_an_exception_of_its_kind(engine, inputs, kind, builtin):
    error = error_of(engine, "fail", **inputs)
    assert type(error) is kind
    assert isinstance(error, builtin)
    assert "book.fail" in str(error)
    copy = pickle.loads(pickle.dumps(error))
    assert (type(copy), str(copy), vars(copy)) == (kind, str(error), vars(error))
    if isinstance(error, theus.NativeTaskError) and inputs.get("cause") != 2:
        assert (error.task, error.type, error.message) == ("book.fail", "Deliberate", "as asked")
    assert run(engine, "add", numbers=[1]) == 1


def test_a_panic_has_its_traceback_for_a_cause(engine):
    error = error_of(engine, "total", column=3.5)
    assert type(error) is theus.EntryNotFoundError
    error = error_of(engine, "nap", seconds="long")
    assert type(error) is theus.NativePanicError
    assert isinstance(error.__cause__, theus.errors.RemoteTraceback)
    assert "in nap" in str(error.__cause__)


def test_a_result_that_is_not_plain(engine):
    assert "no plain value" in str(error_of(engine, "unsendable"))
    table = engine.heavy.put("t", pa.table({"a": [1.0]}))
    assert type(error_of(engine, "total", column=table)) is theus.NativeTypeError


def test_an_unknown_name_says_what_there_is(engine):
    for call in (engine.submit, lambda task: engine.map(task, [1]), engine.executor().submit):
        with pytest.raises(theus.NativeTaskNotFoundError, match=r"book\.add,.*mean 'book\.noop'"):
            call(native("book.nop"))
    with (
        theus.TheusEngine() as other,
        pytest.raises(theus.NativeTaskNotFoundError, match="native_worker"),
    ):
        asyncio.run(other.execute(native("book.noop")))


def test_tasks_are_listed(engine):
    tasks = engine.tasks()
    assert list(tasks) == sorted(tasks)
    assert tasks["book.add"] == theus.TaskInfo(
        "book.add", str(BOOK), "python, by the book", "none", 2
    )


def test_a_native_task_is_a_value():
    task = native("a", retries=2)
    assert task == pickle.loads(pickle.dumps(task))
    assert len({task, native("a", retries=2), native("a")}) == 2
    with pytest.raises(AttributeError):
        task.name = "b"
    for wrong in {"name": ""}, {"name": "a", "retries": -1}:
        with pytest.raises(ValueError, match=r"retries|name"):
            native(**wrong)


# --- stopping, dying ---


def test_a_timeout_and_a_cancellation_stop_a_task(engine):
    pids = {run(engine, "pid") for _ in range(20)}
    with pytest.raises(TimeoutError):
        engine.submit(native("book.nap"), seconds=60, timeout=0.1).result(DEADLINE_S)
    future = engine.submit(native("book.nap"), seconds=60)
    waits_for(future.running)
    future.cancel()

    async def main():
        with pytest.raises(TimeoutError):
            await engine.execute(native("book.nap"), seconds=60, timeout=0.1)
        with pytest.raises(asyncio.TimeoutError):
            await asyncio.wait_for(engine.execute(native("book.nap"), seconds=60), 0.1)

    asyncio.run(main())
    assert {run(engine, "pid") for _ in range(20)} & pids, "a task that looks needs no killing"


def test_a_task_that_does_not_look_is_killed_with_its_worker(engine):
    with pytest.raises(TimeoutError):
        engine.submit(native("book.nap"), seconds=60, deaf=True, timeout=0.1).result(DEADLINE_S)
    assert run(engine, "add", numbers=[2]) == 2


def test_a_worker_that_dies_fails_its_task_alone(engine):
    run(engine, "noop")
    futures = [
        engine.submit(native("book.die" if n == 50 else "book.noop"), item=n) for n in range(100)
    ]
    errors = [future.exception(DEADLINE_S) for future in futures]
    (error,) = filter(None, errors)
    assert errors.index(error) == 50
    assert isinstance(error, theus.WorkerDiedError)
    assert (error.task, error.signal) == ("book.die", signal.SIGKILL)


def test_a_task_that_may_be_run_again_survives_its_workers(engine, tmp_path):
    task = native("book.die", retries=1)
    assert engine.submit(task, path=str(tmp_path / "mark")).result(DEADLINE_S) == "survived"
    with pytest.raises(theus.PoisonTaskError, match="killed 2 workers"):
        engine.submit(task).result(DEADLINE_S)


def test_workers_are_replaced_at_their_limit():
    with theus.TheusEngine(workers=1, max_tasks_per_worker=3) as engine:
        engine.native_worker(BOOK)
        assert len({run(engine, "pid") for _ in range(9)}) == 3


def test_an_engine_closes_while_native_workers_are_busy():
    engine = theus.TheusEngine(workers=2)
    engine.native_worker(BOOK)
    futures = [engine.submit(native("book.nap"), seconds=60) for _ in range(3)]
    waits_for(futures[0].running)
    engine.close()
    for future in futures:
        assert isinstance(future.exception(1), theus.SessionClosedError)
    with pytest.raises(theus.SessionClosedError):
        engine.submit(native("book.noop"))
    with pytest.raises(theus.SessionClosedError):
        engine.native_worker(BOOK)


def test_leaving_the_engine_waits_for_native_tasks():
    with theus.TheusEngine(workers=1) as engine:
        engine.native_worker(BOOK)
        future = engine.submit(native("book.nap"), seconds=0.2)
    assert future.result(0) == "slept"


def test_a_forked_child_has_no_native_workers(engine):
    future = engine.submit(native("book.nap"), seconds=0.3)
    child = os.fork()
    if child == 0:
        closed = isinstance(future.exception(1), theus.SessionClosedError)
        try:
            engine.submit(native("book.noop"))
        except theus.SessionClosedError:
            os._exit(0 if closed else 2)
        os._exit(3)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    assert future.result(DEADLINE_S) == "slept"


def test_workers_end_with_their_owner(python):
    done = python(
        "import os, signal, theus\n"
        "engine = theus.TheusEngine(workers=1)\n"
        f"engine.native_worker({str(BOOK)!r})\n"
        "print(*engine.worker_pids, flush=True)\n"
        "os.kill(os.getpid(), signal.SIGKILL)\n",
        check=False,
    )
    (pid,) = map(int, done.stdout.split())
    waits_for(lambda: not psutil.pid_exists(pid))
    theus.sweep()  # by_the_book.py leaves that to others


# --- what is no worker ---


def refusal(path, **options):
    with theus.TheusEngine(workers=1) as engine:
        with pytest.raises(theus.NativeWorkerError) as caught:
            engine.native_worker(path, **options)
        assert engine.tasks() == {}
        assert engine.submit(lambda ctx: 7).result(DEADLINE_S) == 7
    error = caught.value
    assert str(path) in str(error)
    copy = pickle.loads(pickle.dumps(error))
    assert (str(copy), vars(copy)) == (str(error), vars(error))
    return error


def hello(**changes):
    said = {"language": "python", "library": "none 1", "capabilities": ["plain"], "tasks": []}
    return (
        "import sys, time\n"
        f"sys.path.insert(0, {str(HERE)!r})\n"
        "import by_the_book as book, json, os\n"
        "worker = book.Worker(json.loads(os.environ['THEUS_WORKER']))\n"
        f"said = {json.dumps(json.dumps({**said, **changes}))}.encode()\n"
        "worker.send(book.HELLO, (2, os.getpid()), (said,))\n"
        "worker.serve()\n"
    )


def test_a_program_that_is_not_there(tmp_path):
    assert "no such file" in refusal(tmp_path / "nothing").reason
    assert "interpreter" in refusal(program(tmp_path, "", interpreter="/no/such")).reason
    plain_file = tmp_path / "file"
    plain_file.write_text("")
    assert "chmod +x" in refusal(plain_file).reason
    plain_file.write_bytes(b"\x7fELF, but not quite")
    plain_file.chmod(0o755)
    assert "no program for this machine" in refusal(plain_file).reason


def test_a_program_that_is_no_worker(tmp_path, monkeypatch):
    assert "left with exit code 0 before it said hello, and wrote nothing" in str(
        refusal("/bin/true")
    )
    complains = program(tmp_path, "import sys\nsys.exit('out of cheese')")
    assert "exit code 1" in (reason := refusal(complains).reason)
    assert "out of cheese" in reason
    assert "ended by signal 9" in refusal("/bin/sh", args=["-c", "kill -9 $$"]).reason
    monkeypatch.setattr(dispatchers, "HELLO_S", 0.2)
    assert "no hello within 0.2 s" in refusal("/bin/sleep", args=["60"]).reason


GOLDEN = HERE.parents[1] / "schemas/golden/frames-1.json"


def test_an_old_worker_is_told_from_a_broken_one(tmp_path):
    frames = json.loads(GOLDEN.read_text())["frames"]
    old = next(vector for vector in frames if vector["name"] == "hello")["frame"]
    source = (
        "import json, os, time\n"
        "channel = json.loads(os.environ['THEUS_WORKER'])['channel']\n"
        f"os.write(channel, bytes.fromhex({old!r}))\n"
        "time.sleep(60)\n"
    )
    error = refusal(program(tmp_path, source))
    assert error.version == 1
    assert "speaks version 1 " in str(error)
    assert "this engine speaks version 2: build it again" in str(error)
    chats = source.replace(repr(old), repr(b"GET / HTTP/1.1\r\n\r\n".hex()))
    error = refusal(program(tmp_path, chats))
    assert (error.version, "no worker" in error.reason) == (None, True)


def test_a_worker_that_says_something_else_of_itself(tmp_path):
    assert "'tasks'" in refusal(program(tmp_path, hello(tasks=3))).reason
    assert "no plain values" in refusal(program(tmp_path, hello(capabilities=["dance"]))).reason


def test_names_are_unique_among_programs(engine, tmp_path):
    other = program(tmp_path, hello(tasks=["mine", "book.add"]))
    with pytest.raises(theus.NativeWorkerError, match=r"'book\.add', which .*by_the_book\.py has"):
        engine.native_worker(other)
    assert "mine" not in engine.tasks()
    alone = program(tmp_path, hello(tasks=["mine", "größe"]), name="alone")
    assert engine.native_worker(alone, count=1) == ("mine", "größe")
    assert engine.tasks()["größe"].program == str(alone)


def replaced(engine, path, source):
    path.write_text(f"#!{sys.executable}\n{source}")
    for pid in engine.worker_pids:
        os.kill(pid, signal.SIGKILL)
    return engine.submit(native("mine")).exception(DEADLINE_S)


def test_a_program_that_is_replaced_while_the_engine_runs(tmp_path):
    path = program(tmp_path, hello(tasks=["mine"]))
    with theus.TheusEngine(workers=1) as engine:
        engine.native_worker(path)
        error = replaced(engine, path, hello(tasks=["yours"]))
        assert isinstance(error, theus.NativeWorkerError)
        assert "no longer has mine" in str(error)
        error = replaced(engine, path, "raise SystemExit('out of cheese')")
        assert isinstance(error, theus.WorkerStartError)
        assert str(path) in str(error)
        assert "out of cheese" in str(error)
        path.unlink()
        error = engine.submit(native("mine")).exception(DEADLINE_S)
        assert isinstance(error, theus.NativeWorkerError)
        assert "no such file" in str(error)


def test_there_are_only_so_many_seats():
    with theus.TheusEngine(workers=1) as engine:
        for count in 0, 1001:
            with pytest.raises(ValueError, match="count must be"):
                engine.native_worker(BOOK, count=count)
        with pytest.raises(ValueError, match="up to 1000 workers"):
            engine.native_worker(BOOK, count=1000)


# --- log and progress ---


def test_lines_reach_the_log(engine, caplog):
    caplog.set_level(logging.DEBUG, "theus.worker")
    assert run(engine, "log", levels=[10, 20, 30, 40]) == "logged"
    lines = [record for record in caplog.records if record.name == "theus.worker"]
    assert [record.levelno for record in lines] == [10, 20, 30, 40]
    assert lines[0].getMessage() == "a line of level 10"
    assert {record.task for record in lines} == {"book.log"}
    assert {record.pid for record in lines} <= set(engine.worker_pids)


def test_a_level_that_there_is_not_ends_the_worker(engine):
    with pytest.raises(theus.ProtocolError, match="not 35"):
        run(engine, "log", levels=[35])
    assert run(engine, "noop") is None


@process(parallel=True)
def says(ctx, text="hello"):
    ctx.log(text, "warning")
    return text


@pytest.mark.parametrize("task", [native("book.log"), says], ids=["native", "python"])
def test_a_short_task_that_logs(engine, caplog, task):
    caplog.set_level(logging.INFO, "theus.worker")

    async def main():
        return [await engine.execute(task) for _ in range(1000)]

    assert len(set(asyncio.run(main()))) == 1
    assert len(caplog.records) == 1000


def test_progress_is_told_and_kept(engine):
    told = []
    task = native("book.progress", on_progress=told.append)
    future = engine.submit(task, total=3)
    assert future.progress is None
    assert future.result(DEADLINE_S) == "done"
    assert told == [theus.Progress(n, 3, f"step {n}") for n in (1, 2, 3)]
    assert future.progress == told[-1]
    future = engine.submit(task, total=0, seconds=60)
    waits_for(lambda: future.progress is not None and future.progress.done == 3)
    assert future.progress.total is None
    future.cancel()


def test_what_a_callback_of_progress_raises_is_logged(engine, caplog):
    def fails(_):
        raise KeyError("mine")

    future = engine.submit(native("book.progress", on_progress=fails), total=3)
    assert future.result(DEADLINE_S) == "done"
    assert sum("on_progress of book.progress" in r.getMessage() for r in caplog.records) == 3


def test_a_callback_of_progress_may_run_tasks(engine):
    results = []
    task = native(
        "book.progress", on_progress=lambda p: results.append(run(engine, "add", numbers=[p.done]))
    )
    assert engine.submit(task, total=3).result(DEADLINE_S) == "done"
    assert results[0] == 1  # while it waited the task has ended, and what it told is old


def tells(ctx, total):
    for done in range(total):
        ctx.progress(done, total, "going")
    return total


def test_python_tasks_tell_too(engine, caplog):
    caplog.set_level(logging.INFO, "theus.worker")
    future = engine.submit(tells, total=5)
    assert future.result(DEADLINE_S) == 5
    assert future.progress == theus.Progress(4, 5, "going")
    assert engine.submit(says, text="größe").result(DEADLINE_S) == "größe"
    (record,) = caplog.records
    assert (record.getMessage(), record.levelname) == ("größe", "WARNING")
    assert record.task == "test_native_workers.says"
    for wrong in (lambda ctx: ctx.log("", "loud"), lambda ctx: ctx.progress(-1)):
        with pytest.raises(ValueError, match=r"loud|at least 0"):
            engine.submit(wrong).result(DEADLINE_S)


def test_a_process_that_runs_here_logs_here(engine, caplog):
    async def main():
        assert await engine.execute(tells, total=3) == 3
        return await engine.execute(here)

    assert asyncio.run(main()) == "here"
    (record,) = [r for r in caplog.records if r.name == "theus.worker"]
    assert record.getMessage() == "from here"


def here(ctx):
    ctx.log("from here", "error")
    return "here"
