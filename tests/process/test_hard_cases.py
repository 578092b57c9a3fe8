"""Cases that broke an engine once: forks, cancellations, callbacks, odd exceptions."""

import asyncio
import concurrent.futures as cf
import functools
import gc
import glob
import os
import subprocess
import sys
import threading
import time

import numpy as np
import pytest

import theus
from theus import TheusEngine, process


def nap(ctx, seconds):
    time.sleep(seconds)
    return seconds


def one(ctx):
    return 1


@pytest.fixture
def engine():
    with TheusEngine(workers=1) as engine:
        assert engine.submit(one).result(20) == 1
        yield engine


def names():
    return set(glob.glob("/dev/shm/theus-*"))


def test_an_engine_that_is_let_go_is_closed():
    before = names()
    engine = TheusEngine(workers=1)
    engine.heavy.put("x", np.zeros(100_000))
    assert engine.submit(one).result(20) == 1
    del engine
    gc.collect()
    assert names() == before


def test_a_finished_task_holds_no_memory():
    item = np.zeros(1 << 20, np.uint8)
    gc.disable()
    try:
        with TheusEngine(workers=1, heavy_limit=8 << 20) as engine:
            for _ in range(12):
                engine.submit(one).result(20)
                view = engine.heavy.put("x", item)
                engine.submit(lambda ctx, part: 1, part=view, timeout=3600).result(20)
    finally:
        gc.enable()


def test_views_count_for_as_long_as_they_are_held():
    with TheusEngine(workers=1, heavy_limit=8 << 20) as engine:
        held = [engine.heavy.put("x", np.zeros(1 << 20, np.uint8)) for _ in range(7)]
        with pytest.raises(theus.HeavyZoneFullError):
            engine.heavy.put("x", np.zeros(1 << 20, np.uint8))
        del held
        engine.heavy.put("x", np.zeros(1 << 20, np.uint8))


@pytest.mark.parametrize("how", ["cancel", "timeout"])
def test_a_task_withdrawn_behind_a_short_one_does_not_run(engine, how):
    for _ in range(5):
        engine.submit(nap, seconds=0).result(20)
    engine.submit(nap, seconds=0.3)
    late = engine.submit(nap, seconds=60, timeout=0.2 if how == "timeout" else None)
    if how == "cancel":
        late.cancel()
    assert engine.submit(nap, seconds=0).result(10) == 0


def test_the_end_of_an_iterator_is_no_end_of_results(engine):
    def stop(ctx, item):
        if item == 2:
            next(iter([]))
        return item

    taken = []
    with pytest.raises(RuntimeError, match="StopIteration"):
        taken.extend(engine.map(stop, range(5)))
    with pytest.raises(StopIteration):
        engine.submit(stop, item=2).result(20)


async def test_the_end_of_an_iterator_in_a_loop(engine):
    @process(parallel=True)
    def stop(ctx):
        next(iter([]))

    with pytest.raises(RuntimeError, match="StopIteration"):
        await engine.execute(stop)
    with pytest.raises(RuntimeError, match="StopIteration"):
        async for _ in engine.map(lambda ctx, item: next(iter([])), range(3)):
            pass


def test_cancelled_futures_tell_those_who_wait(engine):
    executor = engine.executor()
    first = executor.submit(time.sleep, 0.2)
    second = executor.submit(time.sleep, 0.2)
    assert second.cancel()
    third = engine.submit(nap, seconds=30)
    third.cancel()
    assert not cf.wait([first, second, third], timeout=10).not_done

    def give_up():
        raise cf.CancelledError

    assert not cf.wait([executor.submit(give_up)], timeout=10).not_done


def test_a_callback_may_wait_for_a_result(engine):
    got = []
    first = engine.submit(nap, seconds=0.05)
    first.add_done_callback(lambda _: got.append(engine.submit(nap, seconds=0).result(10)))
    assert first.result(20) == 0.05
    deadline = time.monotonic() + 20
    while not got and time.monotonic() < deadline:
        time.sleep(0.01)
    assert got == [0]


async def test_leaving_an_engine_does_not_block_the_loop():
    async with TheusEngine(workers=1) as engine:
        last = engine.submit(nap, seconds=1.0)
        beats = []

        async def beat():
            while not last.done():
                beats.append(await asyncio.sleep(0.01))

        beating = asyncio.create_task(beat())
    await beating
    assert len(beats) > 5


class _Ends:
    def __reduce__(self):
        return exec, ("raise SystemExit(5)",)


class _Unspeakable(Exception):  # noqa: N818 - it is one
    def __str__(self):
        raise SystemExit(6)

    def __reduce__(self):
        raise SystemExit(7)


def test_ends_of_the_program_inside_pickles_end_nothing(engine):
    ended = engine.submit(lambda ctx: _Ends())
    assert not cf.wait([ended], timeout=10).not_done
    assert isinstance(ended.exception(), SystemExit)

    def fail(ctx):
        raise _Unspeakable

    with pytest.raises(theus.RemoteError, match="_Unspeakable"):
        engine.submit(fail).result(20)
    assert not cf.wait([engine.submit(one)], timeout=10).not_done


def test_the_domain_can_be_returned(engine):
    domain = engine.submit(lambda ctx: ctx.domain, given=3).result(20)
    assert domain["given"] == 3


def test_a_partial_of_a_parallel_process_is_parallel():
    marked = process(parallel=True)(nap)
    assert theus.tasks.contract.contract_of(functools.partial(marked, seconds=1)).parallel


def test_a_masked_array_is_refused_everywhere(engine):
    masked = np.ma.masked_array([1, 2], [True, False])
    for refuse in [
        lambda: engine.heavy.put("m", masked),
        lambda: engine.compare_and_swap(engine.state.version, heavy={"m": masked}),
    ]:
        with pytest.raises(TypeError, match="masked"):
            refuse()


def test_odd_places_to_import_from(tmp_path, monkeypatch):
    (tmp_path / "json.py").write_text("raise RuntimeError('the wrong one')\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path, tmp_path, b"bytes", None])
    with TheusEngine(workers=1) as engine:
        assert engine.submit(one).result(20) == 1


FORKS = """
import multiprocessing as mp, os, sys, time, numpy as np
from theus import TheusEngine, SessionClosedError

def one(ctx):
    return float(ctx.heavy["x"].sum())

def own_engine(end, wait):
    engine = TheusEngine(workers=1)
    engine.heavy.put("y", np.ones(3_000_000))
    end.send(engine.submit(lambda ctx: float(ctx.heavy["y"].sum())).result(20))
    time.sleep(wait)

if __name__ == "__main__":
    mp.set_start_method("fork")
    engine = TheusEngine(workers=1)
    engine.heavy.put("x", np.ones(3_000_000))
    assert engine.submit(one).result(20) == 3_000_000
    for wait in [30, 0]:
        # No queue: who is terminated just after a put may keep its lock.
        end, theirs = mp.Pipe()
        child = mp.Process(target=own_engine, args=(theirs, wait))
        child.start()
        assert end.poll(30) and end.recv() == 3_000_000
        if wait:
            child.terminate()
        child.join(20)
        assert not child.is_alive()
        assert engine.submit(one).result(20) == 3_000_000, "the parent's session is whole"
    pending = engine.submit(lambda ctx: time.sleep(2))
    if os.fork() == 0:
        try:
            pending.result(10)
        except SessionClosedError:
            os._exit(0)
        os._exit(1)
    assert os.wait()[1] == 0
    pending.result(20)
    engine.close()
    print("done", [name for name in os.listdir("/dev/shm") if engine._session.id in name])
"""


def test_forks_take_nothing_with_them(tmp_path):
    script = tmp_path / "script.py"
    script.write_text(FORKS)
    before = names()
    done = subprocess.run(
        [sys.executable, script], capture_output=True, text=True, timeout=50, check=False
    )
    assert done.stdout == "done []\n", done.stderr
    assert names() == before, "children of multiprocessing clean up too"


def test_views_in_a_forked_child_while_others_publish(engine):
    view = engine.heavy.put("x", np.arange(1000))
    ended = threading.Event()

    def publish():
        while not ended.is_set():
            engine.heavy.put("y", np.arange(1000))

    threads = [threading.Thread(target=publish) for _ in range(3)]
    for thread in threads:
        thread.start()
    try:
        for _ in range(8):
            child = os.fork()
            if child == 0:
                good = engine.heavy["x"].sum() == view.sum() == 499_500
                os._exit(0 if good else 1)
            deadline = time.monotonic() + 10
            while (status := os.waitpid(child, os.WNOHANG)) == (0, 0):
                if time.monotonic() > deadline:
                    os.kill(child, 9)
                    os.waitpid(child, 0)
                    pytest.fail("the child hangs")
                time.sleep(0.001)
            assert status[1] == 0
    finally:
        ended.set()
        for thread in threads:
            thread.join()
