"""Futures behave as the standard library's, and nobody's code runs where another one waits."""

import asyncio
import concurrent.futures as cf
import os
import threading
import time

import numpy as np
import pytest

from theus import TheusEngine

DEADLINE_S = 30


def nap(ctx, seconds=0.0):
    time.sleep(seconds)
    return seconds


def add(ctx, a, b):
    return a + b


def waits_for(condition):
    deadline = time.monotonic() + DEADLINE_S
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.005)


def test_a_callback_runs_in_a_thread_that_waits_for_nothing(engine):
    gate = threading.Event()
    slow = engine.submit(nap)
    slow.result(DEADLINE_S)
    slow = engine.submit(nap, seconds=0.05)
    slow.add_done_callback(lambda _: gate.wait(DEADLINE_S))
    waits_for(slow.done)
    started = time.monotonic()
    assert engine.submit(add, a=1, b=2).result(DEADLINE_S) == 3
    with pytest.raises(TimeoutError):
        engine.submit(nap, seconds=5).result(0.2)
    assert time.monotonic() - started < 10, "it waited for somebody else's callback"
    gate.set()


def test_a_callback_that_ends_its_thread_costs_nobody_a_result(engine):
    def leave(_):
        raise SystemExit(3)

    future = engine.submit(add, a=1, b=1)
    future.add_done_callback(leave)
    other = engine.submit(add, a=2, b=2)
    seen = []
    other.add_done_callback(seen.append)
    assert (future.result(DEADLINE_S), other.result(DEADLINE_S)) == (2, 4)
    waits_for(lambda: seen == [other])


class Loads:
    """Uses an engine while it is loaded."""

    engine = None

    def __reduce__(self):
        return _load, ()


def _load():
    if Loads.engine is None:  # in the worker
        return Loads()
    return Loads.engine.submit(add, a=3, b=4).result(DEADLINE_S)


def make(ctx):
    return Loads()


def test_a_value_may_use_the_engine_while_it_is_loaded(engine):
    Loads.engine = engine
    try:
        assert engine.submit(make).result(DEADLINE_S) == 7
        assert asyncio.run(_awaited(engine)) == 7
    finally:
        Loads.engine = None


async def _awaited(engine):
    return await asyncio.wrap_future(engine.submit(make))


def first(ctx, view):
    return int(view[0])


# A task or a function may be the last to keep a segment, whose end the engine tells its workers.


def test_functions_that_a_worker_forgets_may_be_the_last_to_keep_an_entry(engine):
    def reads(view):
        return lambda ctx: int(view[0])

    for n in range(600):  # a worker knows 256
        read = reads(engine.heavy.put("captured", np.full(512, n)))
        assert engine.submit(read).result(DEADLINE_S) == n
        del read
    engine.heavy.free("captured")


def test_results_that_nobody_takes_may_be_the_last_to_keep_an_entry(engine):
    for n in range(600):
        engine.submit(first, view=engine.heavy.put("given", np.full(512, n)), timeout=1000)
        if n % 20 == 0:
            assert engine.submit(first, view=np.full(1, n)).result(DEADLINE_S) == n
    engine.heavy.free("given")


@pytest.mark.parametrize("timeout", [3e6, 1e300, float("inf"), None])
def test_no_timeout_is_too_long(engine, timeout):
    assert engine.submit(nap, seconds=0.05, timeout=timeout).result(timeout) == 0.05
    assert cf.wait([engine.submit(nap)], timeout=DEADLINE_S).not_done == set()


def test_a_loop_that_is_blocked_has_its_tasks_run_all_the_same(engine):
    async def main():
        engine.submit(nap).result(DEADLINE_S)
        tasks = [engine.submit(nap, seconds=0.1) for _ in range(6)]
        time.sleep(1.5)  # noqa: ASYNC251 - nobody moves anything but the engine's own thread
        return [task.done() for task in tasks]

    assert asyncio.run(main()) == [True] * 6


def test_a_submit_that_raises_has_submitted_nothing(engine, monkeypatch, tmp_path):
    mark = tmp_path / "ran"
    with TheusEngine(workers=1) as fresh:
        with monkeypatch.context() as broken:
            broken.setattr("sys.executable", None)
            with pytest.raises(TypeError):
                fresh.submit(lambda ctx: mark.touch())
        assert fresh.submit(add, a=1, b=2).result(DEADLINE_S) == 3
    assert not mark.exists()


def test_what_the_standard_library_makes_of_futures(engine):
    futures = [engine.submit(nap, seconds=n / 50) for n in range(6)]
    assert set(cf.as_completed(futures, DEADLINE_S)) == set(futures)
    done, not_done = cf.wait(futures, timeout=0)
    assert (len(done), len(not_done)) == (6, 0)
    long = engine.submit(nap, seconds=60)
    assert cf.wait([*futures, long], return_when=cf.FIRST_COMPLETED).not_done == {long}
    assert long.cancel()
    assert long.cancelled()
    assert cf.wait([long], timeout=DEADLINE_S).done == {long}
    with pytest.raises(cf.CancelledError):
        long.result()
    failed = engine.submit(add, a=1, b="x")
    assert cf.wait([failed], return_when=cf.FIRST_EXCEPTION, timeout=DEADLINE_S).done == {failed}
    assert isinstance(failed.exception(), TypeError)


def test_many_wait_for_one_and_all_have_the_same_value(engine):
    future = engine.submit(lambda ctx: [1, 2, 3])
    with cf.ThreadPoolExecutor(8) as pool:
        values = [f.result() for f in [pool.submit(future.result, DEADLINE_S) for _ in range(16)]]
    assert all(value is values[0] for value in values)


def test_an_engine_that_nobody_holds_ends_what_it_was_given(python, tmp_path):
    mark = tmp_path / "written"
    done = python(
        "import theus, time\n"
        "def add(ctx, a, b):\n    return a + b\n"
        "def write(path):\n    time.sleep(0.5)\n    open(path, 'w').write('all of it')\n"
        "print(theus.TheusEngine(workers=1).submit(add, a=1, b=2).result(30))\n"
        "executor = theus.TheusEngine(workers=1).executor()\n"
        f"executor.submit(write, {str(mark)!r})\n"
        "del executor\n"
    )
    assert done.stdout == "3\n"
    assert done.stderr == ""
    assert mark.read_text() == "all of it"


def test_a_forked_child_runs_no_callback_of_its_parent(engine, tmp_path):
    mark = tmp_path / "called"
    future = engine.submit(nap, seconds=0.5)
    future.add_done_callback(lambda _: mark.write_text(f"{mark.exists()} {os.getpid()}"))
    child = os.fork()
    if child == 0:
        os._exit(0 if future.done() else 1)
    assert os.waitpid(child, 0)[1] == 0
    assert future.result(DEADLINE_S) == 0.5
    waits_for(mark.exists)
    waits_for(lambda: mark.read_text() == f"False {os.getpid()}")


def slow_once(ctx, n):
    time.sleep(3.0 if n == 0 else 0.0005)
    return n


def test_one_slow_item_does_not_hold_up_the_others():
    with TheusEngine(workers=2) as engine:
        list(engine.map(slow_once, range(1, 400)))  # it is known as a short one
        futures = [engine.submit(slow_once, n=n) for n in range(260)]
        started = time.monotonic()
        cf.wait(futures[1:], timeout=DEADLINE_S)
        beside = time.monotonic() - started
        assert not futures[0].done(), f"the short ones waited for the long one ({beside:.1f} s)"
        assert [f.result(DEADLINE_S) for f in futures] == list(range(260))
