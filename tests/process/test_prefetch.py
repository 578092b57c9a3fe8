"""Idle workers map what was just published, and let go of it when it is freed."""

import time
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from theus import SegmentNotFoundError, TheusEngine
from theus.worker.prefetch import look_ahead

MIB = 1 << 20
DEADLINE_S = 30


@pytest.fixture
def engine():
    with TheusEngine(workers=1) as engine:
        assert engine.submit(lambda ctx: __import__("pyarrow").__name__).result(DEADLINE_S)
        yield engine


def maps(engine, name):
    (pid,) = engine.worker_pids
    return Path(engine.heavy.path(name)).name in Path(f"/proc/{pid}/maps").read_text()


def wait_until(done):
    deadline = time.monotonic() + DEADLINE_S
    while not done():
        assert time.monotonic() < deadline
        time.sleep(0.005)


@pytest.mark.parametrize("data", [np.ones(MIB), pa.table({"n": np.ones(MIB)})])
def test_an_idle_worker_maps_a_new_entry_and_lets_go_of_the_old(engine, data):
    engine.heavy.put("x", data)
    wait_until(lambda: maps(engine, "x"))
    (pid,) = engine.worker_pids
    old = Path(engine.heavy.path("x")).name
    engine.heavy.put("x", data)
    wait_until(lambda: maps(engine, "x"))
    wait_until(lambda: old not in Path(f"/proc/{pid}/maps").read_text())
    assert engine.submit(lambda ctx: len(ctx.heavy["x"])).result(DEADLINE_S) == MIB


def test_published_drafts_are_mapped_and_small_entries_are_not(engine):
    engine.heavy.alloc("draft", MIB)
    engine.heavy.put("small", np.ones(10))
    engine.heavy.seal("draft")
    wait_until(lambda: maps(engine, "draft"))
    engine.heavy.put("small", np.ones(20))
    time.sleep(0.1)
    assert not maps(engine, "small")


def test_what_is_freed_at_once_leaves_nothing_behind(engine):
    for _ in range(30):
        engine.heavy.put("x", np.ones(MIB // 8 + 1))
        engine.heavy.free("x")
    assert engine.submit(lambda ctx: len(ctx.heavy)).result(DEADLINE_S) == 0
    (pid,) = engine.worker_pids
    session = engine.heavy.stats()["session"]
    wait_until(lambda: f"theus-{session}-" not in Path(f"/proc/{pid}/maps").read_text())


def test_a_loop_of_puts_is_told_a_few_times(engine):
    for _ in range(5):
        engine.heavy.put("x", np.ones(MIB))
    time.sleep(0.1)
    assert not maps(engine, "x")
    engine.submit(lambda ctx: None).result(DEADLINE_S)
    engine.heavy.put("x", np.ones(MIB))
    wait_until(lambda: maps(engine, "x"))


def test_many_entries_are_not_sent_in_vain(engine):
    engine.compare_and_swap(0, heavy={f"k{number}": np.ones(1) for number in range(65)})
    engine.heavy.put("x", np.ones(MIB))
    time.sleep(0.1)
    assert not maps(engine, "x")
    assert engine.submit(lambda ctx: float(ctx.heavy["x"].sum())).result(DEADLINE_S) == MIB


def test_the_newest_come_first_until_something_arrives(engine):
    engine.heavy.put("x", np.ones(1))
    whole = engine.state.entries["x"].segment
    mapped = []

    def attach(name):
        mapped.append(name)
        return whole

    names = [f"theus-s-{number}" for number in (9, 10, 11, 2)]
    look_ahead(names, attach, lambda: len(mapped) == 2)
    assert mapped == ["theus-s-11", "theus-s-10"]


def test_a_segment_that_is_gone_ends_it():
    mapped = []

    def attach(name):
        mapped.append(name)
        raise SegmentNotFoundError(name)

    look_ahead(["theus-s-1", "theus-s-2"], attach, lambda: False)
    assert mapped == ["theus-s-2"]
