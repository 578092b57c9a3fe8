"""When a pool starts workers whose like have not come up."""

from types import SimpleNamespace

import pytest

from theus import pool as module
from theus.pool import WorkerLimits, WorkerPool


@pytest.fixture
def clock(monkeypatch):
    clock = SimpleNamespace(now=100.0)
    monkeypatch.setattr(module.time, "monotonic", lambda: clock.now)
    return clock


@pytest.fixture
def pool(monkeypatch, clock):
    """A pool with one worker that is up, and room for another."""
    monkeypatch.setattr(module, "CORES", 2)
    pool = WorkerPool(None, 2, 1, None, program=None, seats=None, worker_limits=WorkerLimits())
    pool._workers.append(SimpleNamespace(queue=[1], retiring=False, ready=True))
    pool.starts = []
    monkeypatch.setattr(pool, "start", lambda: pool.starts.append(clock.now))
    return pool


def starts_after(pool, clock):
    """Return how many seconds pass until the pool starts a worker again."""
    began, before = clock.now, len(pool.starts)
    while len(pool.starts) == before:
        clock.now += 0.25
        pool.warm_up()
    return clock.now - began


def test_each_failure_has_it_wait_longer_and_a_worker_that_comes_up_as_at_first(pool, clock):
    waits = []
    for _ in range(8):
        pool.hold_off()
        assert not pool.warm_up()
        waits.append(starts_after(pool, clock))
    assert waits == [1, 2, 4, 8, 16, 32, 60, 60]
    pool.note_ready(SimpleNamespace(ready=False, deadline=1.0))
    pool.hold_off()
    assert starts_after(pool, clock) == 1


def test_without_a_worker_nothing_is_waited_for(pool, clock):
    pool._workers.clear()
    pool.hold_off()
    assert pool.warm_up()
    assert pool.starts == [clock.now]
