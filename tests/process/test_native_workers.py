"""Workers in another language, by one that knows `schemas/` alone: by_the_book.py."""

import asyncio
import os
import pickle
import signal
import time

import numpy as np
import psutil
import pyarrow as pa
import pyarrow.compute as pc
import pytest
from book_tools import BOOK, DEADLINE_S, run, waits_for

import theus
from theus import native, process


@pytest.fixture
def engine():
    with theus.TheusEngine({"rate": 0.5, "names": ["a", "b"]}, workers=2) as engine:
        engine.native_worker(BOOK)
        yield engine


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
        with pytest.raises(TypeError, match=r"engine\.map\(task, items\) passes each as the input"):
            pool.map(native("book.double"), [3])


def test_an_executor_that_shuts_down_cancels_all_before_it_waits(tmp_path):
    marks = [tmp_path / str(number) for number in range(9)]
    with theus.TheusEngine(workers=1) as engine:
        pool = engine.executor()

        def call(mark):
            mark.touch()
            time.sleep(0.2)

        futures = [pool.submit(call, mark) for mark in marks]
        waits_for(marks[0].exists)
        pool.shutdown(cancel_futures=True)
        assert all(future.done() for future in futures)
        ended = [future for future in futures if not future.cancelled()]
        assert 1 <= len(ended) < 9
        assert [mark for mark in marks if mark.exists()] == marks[: len(ended)]


def test_a_text_is_no_function(engine):
    calls = (
        engine.submit,
        engine.executor().submit,
        lambda name: engine.map(name, [1]),
        lambda name: asyncio.run(engine.execute(name)),
    )
    for call in calls:
        with pytest.raises(TypeError, match=r"did you mean theus\.native\('book\.noop'\)\?"):
            call("book.noop")
        with pytest.raises(TypeError, match=r"not None$"):
            call(None)


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
    table = engine.heavy.put("t", pa.table({"a": range(9)}))
    with pytest.raises(theus.NotPlainError, match=r"inputs\['x'\] .*table\.select"):
        engine.submit(native("book.echo"), x=table.rename_columns(["b"]))
    with pytest.raises(theus.NotPlainError, match="pass its name instead"):
        engine.submit(native("book.echo"), x=table.filter(pc.greater(table["a"], 100)))


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


@pytest.mark.parametrize("value", [b"x" * (1 << 20), "x" * (1 << 20), list(range(300_000))])
def test_a_large_value_of_the_domain_is_a_plain_one_too(engine, value):
    engine.compare_and_swap(engine.state.version, domain={"large": value, "some": [value] * 2})
    seen = run(engine, "domain")
    assert seen["large"] == value
    assert seen["some"] == [value] * 2


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


@pytest.mark.parametrize(
    ("kind", "message", "text"),
    [
        ("error", "invalid digit", "a.b failed: invalid digit"),
        ("matmul", "matmul: shapes differ", "a.b failed: matmul: shapes differ"),
        ("matmul", "shapes differ", "a.b failed: shapes differ (matmul)"),
    ],
)
def test_an_error_says_nothing_twice(kind, message, text):
    error = theus.NativeTaskError("a.b", kind, message)
    assert str(error) == text
    assert (error.task, error.type, error.message) == ("a.b", kind, message)


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
        with pytest.raises(ValueError, match=r"retries|name"):
            theus.NativeTask(**wrong)
    with pytest.raises(TypeError, match=r"a native task's name is a str, .* not 3"):
        native(3)
    with pytest.raises(TypeError, match=r"on_progress .* 3 cannot be"):
        native("a", on_progress=3)


@pytest.mark.parametrize(
    ("timeout", "error"),
    [("1", TypeError), (1j, TypeError), (float("nan"), ValueError), (10**400, ValueError)],
)
def test_a_timeout_is_a_number_of_seconds(engine, timeout, error):
    with pytest.raises(error, match="number of seconds"):
        engine.submit(native("book.noop"), timeout=timeout)
    with pytest.raises(error, match="number of seconds"):
        asyncio.run(engine.execute(native("book.noop"), timeout=timeout))


# --- stopping, dying ---


def test_a_timeout_and_a_cancellation_stop_a_task(engine):
    async def main():
        with pytest.raises(TimeoutError):
            await engine.execute(native("book.nap"), seconds=60, timeout=0.1)
        with pytest.raises(asyncio.TimeoutError):
            await asyncio.wait_for(engine.execute(native("book.nap"), seconds=60), 0.1)

    for _ in range(3):  # on a busy machine a task may look too late
        pids = {run(engine, "pid") for _ in range(20)}
        with pytest.raises(TimeoutError):
            engine.submit(native("book.nap"), seconds=60, timeout=0.1).result(DEADLINE_S)
        future = engine.submit(native("book.nap"), seconds=60)
        waits_for(future.running)
        future.cancel()
        asyncio.run(main())
        if {run(engine, "pid") for _ in range(20)} & pids:
            return
    pytest.fail("a task that looks needs no killing")


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
