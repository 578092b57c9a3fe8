"""Tasks in workers: calls, failures, stopping, and functions that never run stale."""

import asyncio
import ctypes
import importlib
import os
import signal
import sys
import threading
import time
from concurrent.futures import CancelledError, wait

import numpy as np
import pytest

import theus
from theus import TheusEngine, process


@process(parallel=True)
def whole(ctx):
    return ctx.heavy["x"]


def test_execute_runs_parallel_processes_in_a_worker_and_plain_ones_here(engine):
    pid = process(parallel=True)(lambda ctx: os.getpid())
    assert asyncio.run(engine.execute(pid)) != os.getpid()
    assert asyncio.run(engine.execute(lambda ctx: os.getpid())) == os.getpid()


def test_inputs_are_arguments_and_overlay_the_domain():
    with TheusEngine({"rate": 2, "kept": 1}, workers=1) as engine:
        got = engine.submit(lambda ctx, rate: (rate, ctx.domain["rate"], ctx.input.kept), rate=5)
        assert got.result() == (5, 5, 1)


def test_result_works_inside_a_running_loop(engine):
    async def cell():
        return engine.submit(lambda ctx: 42).result(timeout=20)

    assert asyncio.run(cell()) == 42


def test_futures_complete_while_nobody_waits_on_them_by_our_means(engine):
    futures = [engine.submit(lambda ctx, i: i * i, i=i) for i in range(20)]
    done, pending = wait(futures, timeout=20)
    assert not pending
    assert sorted(f.result() for f in done) == [i * i for i in range(20)]


def test_map_keeps_the_order_in_both_kinds_of_loops(engine):
    assert list(engine.map(lambda ctx, i: i + 1, range(200))) == list(range(1, 201))

    async def collect():
        return [r async for r in engine.map(lambda ctx: ctx.input.item * 2, range(50))]

    assert asyncio.run(collect()) == [2 * i for i in range(50)]


def test_executor_calls_plain_functions(engine):
    with engine.executor() as pool:
        assert list(pool.map(pow, [2, 3], [5, 2])) == [32, 9]


def test_a_function_without_a_context_is_refused_by_name(engine):
    with pytest.raises(TypeError, match="takes no ctx"):
        engine.submit(lambda: 1)


def test_an_exception_arrives_as_itself_with_the_remote_traceback(engine):
    def fail(ctx):
        raise ZeroDivisionError("the cause")

    with pytest.raises(ZeroDivisionError, match="the cause") as caught:
        engine.submit(fail).result()
    assert "in fail" in str(caught.value.__cause__)


def test_unpicklable_input_names_the_path_and_nothing_is_lost(engine):
    with pytest.raises(theus.UnpicklableError, match=r"inputs\['cfg'\]\['lock'\]"):
        engine.submit(lambda ctx: 0, cfg={"lock": threading.Lock()})
    assert engine.submit(lambda ctx: 1).result() == 1


def test_writes_to_a_published_entry_fail_in_the_worker(engine):
    engine.heavy.put("x", np.arange(4.0))

    def attempts(ctx):
        x = ctx.heavy["x"]
        found = []
        for attempt in (
            lambda: x.__setitem__(0, 1),
            lambda: x.setflags(write=True),
            lambda: np.add(x, 1, out=x),
        ):
            try:
                attempt()
            except ValueError:
                found.append("refused")
        return found

    assert engine.submit(attempts).result() == ["refused"] * 3


def test_a_forced_write_kills_that_task_alone(engine):
    engine.heavy.put("x", np.arange(4.0))

    def force(ctx):
        ctypes.memset(ctx.heavy["x"].__array_interface__["data"][0], 0, 8)

    with pytest.raises(theus.WorkerDiedError) as caught:
        engine.submit(force).result()
    assert caught.value.signal == signal.SIGSEGV
    assert "force" in caught.value.trace
    assert engine.submit(whole).result().tolist() == [0, 1, 2, 3]


def test_a_worker_killed_amid_fifty_tasks_fails_one_of_them(engine):
    def task(ctx, i):
        if i == 20:
            os.kill(os.getpid(), signal.SIGKILL)
        return i

    futures = [engine.submit(task, i=i) for i in range(50)]
    errors = [f.exception() for f in futures]
    assert sum(isinstance(e, theus.WorkerDiedError) for e in errors) == 1
    assert sum(e is None for e in errors) == 49
    assert engine.submit(lambda ctx: "on").result() == "on"


def test_a_timeout_stops_the_task(engine, tmp_path):
    marker = tmp_path / "marker"

    def slow(ctx, path):
        time.sleep(0.6)
        path.write_text("ran on")

    with pytest.raises(TimeoutError, match=r"0\.2 s"):
        engine.submit(slow, path=marker, timeout=0.2).result()
    time.sleep(0.8)
    assert not marker.exists()


def test_a_task_that_ignores_interrupts_is_killed(engine):
    def stubborn(ctx):
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        time.sleep(30)

    async def run():
        await engine.execute(process(parallel=True)(stubborn), timeout=0.3)

    with pytest.raises(TimeoutError):
        asyncio.run(run())
    assert engine.submit(lambda ctx: 3).result(timeout=20) == 3


def test_cancelling_a_running_future_stops_its_task(engine):
    future = engine.submit(lambda ctx: time.sleep(30))
    while not future.running():
        time.sleep(0.01)
    time.sleep(0.3)
    assert future.cancel()
    with pytest.raises(CancelledError):
        future.result()
    assert engine.submit(lambda ctx: 1).result(timeout=10) == 1


FACTOR = 2


def scaled(ctx):
    return FACTOR


def test_a_changed_global_is_seen(engine, monkeypatch):
    assert engine.submit(scaled).result() == 2
    monkeypatch.setattr(sys.modules[__name__], "FACTOR", 7)
    assert engine.submit(scaled).result() == 7


def test_a_redefined_function_and_a_reloaded_module_are_seen(engine, tmp_path, monkeypatch):
    source = tmp_path / "reloaded_module.py"
    source.write_text("K = 1\ndef f(ctx):\n    return K\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    module = importlib.import_module("reloaded_module")
    assert engine.submit(module.f).result() == 1
    source.write_text("K = 2\ndef f(ctx):\n    return K\n")
    module = importlib.reload(module)
    module.K = 2  # a bytecode cache of the same second would keep the old source
    assert engine.submit(module.f).result() == 2
    namespace = {}
    for value in (10, 20):
        exec(f"def g(ctx): return {value}", namespace)
        assert engine.submit(namespace["g"]).result() == value


def test_close_is_idempotent_and_views_outlive_it():
    engine = TheusEngine(workers=1)
    view = engine.heavy.put("x", np.arange(3))
    got = engine.submit(whole).result()
    engine.close()
    engine.close()
    assert view.tolist() == got.tolist() == [0, 1, 2]
    with pytest.raises(theus.SessionClosedError):
        engine.submit(whole)


def test_the_portable_backend_serves_the_same_engine(monkeypatch, tmp_path):
    monkeypatch.setenv("THEUS_BACKEND", "portable")
    monkeypatch.setenv("TMPDIR", str(tmp_path))  # where this backend keeps its locks
    with theus.TheusEngine(workers=1) as engine:
        draft = engine.heavy.alloc("x", 1000)
        late = draft[:]
        draft[:] = 2
        engine.heavy.seal("x")
        late[:] = 3
        assert engine.submit(lambda ctx: float(ctx.heavy["x"].sum())).result(20) == 2000
        assert [info.alive for info in theus.sessions()] == [True]
        assert [path.suffix for path in tmp_path.iterdir()] == [".lock"]
    assert list(tmp_path.iterdir()) == []
    monkeypatch.setenv("THEUS_BACKEND", "posix")
    with pytest.raises(ValueError, match="backend"):
        theus.TheusEngine()
