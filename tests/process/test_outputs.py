"""What tasks make in place: without a copy to the caller, gone if nobody refers to it."""

import glob
import os
import signal
import sys
import time
from dataclasses import dataclass

import numpy as np
import pytest

import theus
from theus import TheusEngine

ITEMS = 300_000
WIRE_LIMIT = 4096


@pytest.fixture
def engine():
    with TheusEngine(workers=2, heavy_limit=64 << 20) as engine:
        engine.heavy.put("base", np.arange(10.0))
        yield engine


def names():
    return glob.glob("/dev/shm/theus-*")


def settle(engine, limit):
    deadline = time.monotonic() + 5
    while engine.heavy.stats()["used_bytes"] > limit and time.monotonic() < deadline:
        time.sleep(0.01)
    return engine.heavy.stats()["used_bytes"]


def settled(before):
    """Whether there are no names but those of before, soon."""
    deadline = time.monotonic() + 5
    while set(names()) != before and time.monotonic() < deadline:
        time.sleep(0.01)
    return set(names()) == before


def fill(ctx, value, dtype="f8"):
    out = ctx.heavy.alloc("out", ITEMS, dtype)
    out[:] = value
    return out


def received(engine):
    return engine._dispatcher.traffic[1]


def test_an_output_arrives_without_a_copy(engine):
    engine.submit(fill, value=0).result(20)
    before = received(engine)
    out = engine.submit(fill, value=7).result(20)
    assert received(engine) - before < WIRE_LIMIT
    assert isinstance(out, theus.ShmArray)
    assert not out.flags.writeable
    np.testing.assert_array_equal(out, np.full(ITEMS, 7.0))
    with pytest.raises(ValueError, match="WRITEABLE"):
        out.flags.writeable = True


@dataclass
class Parts:
    whole: object
    some: object


def test_parts_of_outputs_in_any_structure_share_one_segment(engine):
    def make(ctx):
        first = ctx.heavy.alloc("out", (1000, 40), "i4", order="F")
        first[:] = np.arange(40_000).reshape(1000, 40)
        second = ctx.heavy.put("other", np.arange(100_000).astype("datetime64[s]"))
        assert len(ctx.heavy) == 3
        assert set(ctx.heavy) == {"base", "out", "other"}
        assert ctx.heavy["out"].flags.f_contiguous
        return {"a": Parts(first, first[::-2, 3:]), "b": [second[5:], first.T, first[:0]]}

    before = set(names())
    result = engine.submit(make).result(20)
    first = np.arange(40_000, dtype="i4").reshape(1000, 40)
    np.testing.assert_array_equal(result["a"].whole, first)
    np.testing.assert_array_equal(result["a"].some, first[::-2, 3:])
    np.testing.assert_array_equal(result["b"][0], np.arange(5, 100_000).astype("datetime64[s]"))
    np.testing.assert_array_equal(result["b"][1], first.T)
    assert result["b"][2].shape == (0, 40)
    assert np.shares_memory(result["a"].whole, result["a"].some)
    assert len(set(names()) - before) == 2
    del result
    assert set(names()) == before


def test_a_result_travels_on_by_handle_and_becomes_an_entry(engine):
    out = engine.submit(fill, value=3).result(20)
    sent = engine._dispatcher.traffic[0]
    assert engine.submit(lambda ctx, part: float(part.sum()), part=out[10:]).result(20) == 3.0 * (
        ITEMS - 10
    )
    now = engine._dispatcher.traffic[0]
    assert now - sent < WIRE_LIMIT
    before = set(names())
    engine.compare_and_swap(engine.state.version, heavy={"kept": out})
    assert set(names()) == before
    del out
    assert engine.submit(lambda ctx: float(ctx.heavy["kept"][5])).result(20) == 3.0


def test_names_are_the_tasks_own(engine):
    outs = [engine.submit(fill, value=value) for value in range(20)]
    assert [float(out.result(20)[0]) for out in outs] == list(range(20))

    def shadow(ctx):
        ctx.heavy.put("base", np.ones(3))
        return float(ctx.heavy["base"].sum())

    assert engine.submit(shadow).result(20) == 3.0
    assert engine.submit(lambda ctx: float(ctx.heavy["base"].sum())).result(20) == 45.0


def test_what_the_result_does_not_refer_to_is_gone(engine):
    engine.submit(fill, value=0).result(20)
    base = settle(engine, 4096 + 80)

    def waste(ctx):
        out = ctx.heavy.alloc("out", ITEMS)
        out[:] = 1
        return float(out.sum())

    before = set(names())
    for _ in range(50):  # 120 MB in all, under a limit of 64 MiB
        assert engine.submit(waste).result(20) == ITEMS
    assert set(names()) == before
    assert settle(engine, base) == base


def test_the_budget_is_one_for_all(engine):
    def greedy(ctx, items):
        return ctx.heavy.alloc("out", items, "u1")

    with pytest.raises(theus.HeavyZoneFullError, match="heavy_limit"):
        engine.submit(greedy, items=65 << 20).result(20)
    kept = engine.submit(greedy, items=40 << 20).result(20)
    with pytest.raises(theus.HeavyZoneFullError, match="heavy_limit"):
        engine.submit(greedy, items=40 << 20).result(20)
    with pytest.raises(theus.HeavyZoneFullError, match="heavy_limit"):
        engine.heavy.alloc("mine", 40 << 20, "u1")
    del kept
    assert engine.submit(greedy, items=40 << 20).result(20).nbytes == 40 << 20


def test_a_late_write_in_the_worker_reaches_nobody():
    def keep(ctx):
        out = ctx.heavy.alloc("out", 100)
        out[:] = 1
        np.kept_by_the_test = out
        return out

    def spoil(ctx):
        np.kept_by_the_test[:] = 2
        return float(np.kept_by_the_test.sum())

    with TheusEngine(workers=1) as engine:
        out = engine.submit(keep).result(20)
        assert engine.submit(spoil).result(20) == 200.0
        assert out.sum() == 100.0


def test_a_cancelled_or_closed_engine_keeps_nothing(engine):
    before = set(names())

    def slow(ctx):
        out = ctx.heavy.alloc("out", ITEMS)
        time.sleep(30)
        return out

    future = engine.submit(slow)
    time.sleep(0.3)
    future.cancel()
    assert engine.submit(fill, value=1).result(20)[0] == 1
    assert set(names()) == before
    assert settle(engine, 4096 + 80) == 4096 + 80


@pytest.mark.parametrize("moment", ["building", "sending"])
def test_a_worker_killed_with_an_output_leaves_nothing(engine, moment):
    before = set(names())

    def die(ctx, moment):
        out = ctx.heavy.alloc("out", ITEMS)
        out[:] = 1
        if moment == "building":
            os.kill(os.getpid(), signal.SIGKILL)

        class Trap:
            def __reduce__(self):
                os.kill(os.getpid(), signal.SIGKILL)

        return [out, Trap()]

    for _ in range(5):
        with pytest.raises(theus.WorkerDiedError):
            engine.submit(die, moment=moment).result(20)
    assert engine.submit(fill, value=1).result(20)[0] == 1
    assert settled(before), set(names()) - before
    assert settle(engine, 4096 + 80) == 4096 + 80


@pytest.mark.parametrize("moment", ["before the result", "after the result"])
def test_a_worker_killed_after_sending_an_output_leaves_nothing(engine, moment):
    before = set(names())

    def die(ctx, moment):
        worker = sys.modules["theus.worker.loop"].Worker
        send = worker._send

        def send_and_die(self, kind, fields, message, *more):
            if moment == "after the result":
                send(self, kind, fields, message, *more)
            else:
                self._channel.send_output_blocking(0, message.outputs[0])
            os.kill(os.getpid(), signal.SIGKILL)

        worker._send = send_and_die
        out = ctx.heavy.alloc("out", ITEMS)
        out[:] = 1
        return out

    for _ in range(5):
        future = engine.submit(die, moment=moment)
        if moment == "after the result":
            assert future.result(20).sum() == ITEMS
        else:
            with pytest.raises(theus.WorkerDiedError):
                future.result(20)
        del future
    assert engine.submit(fill, value=1).result(20)[0] == 1
    assert settled(before), set(names()) - before
    assert settle(engine, 4096 + 80) == 4096 + 80


def test_workers_killed_at_random_while_they_send(engine):
    before = set(names())
    results = deaths = 0
    for number in range(20):
        assert engine.submit(fill, value=9).result(20)[0] == 9  # a worker runs
        futures = [engine.submit(fill, value=value) for value in range(4)]
        time.sleep(0.0004 * number)
        for pid in engine.worker_pids:
            os.kill(pid, signal.SIGKILL)
        for value, future in enumerate(futures):
            try:
                assert (future.result(30) == value).all()
                results += 1
            except theus.WorkerDiedError:
                deaths += 1
        del future, futures
    assert results + deaths == 20 * 4
    assert deaths, "none was killed at work"
    assert settled(before), set(names()) - before
    assert settle(engine, 4096 + 80) == 4096 + 80
