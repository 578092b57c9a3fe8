"""Programs that are killed at a step: an owner, an owner of workers, a sweeper, an orphan's owner.

Each runs on the package built with kill points, and prints what it saw as one line of JSON. Every
entry's items equal the number in its name, so that anybody can tell right bytes from wrong ones.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import sys
import time

import numpy as np
import pyarrow as pa

import theus
from theus import _theus

MIB = 1 << 20
DEADLINE_S = 30.0
KEYS = 245  # more than a new catalog has room for


def arm(ctx, point, hit):
    _theus.arm_kill_point(point, hit)


def hits(ctx=None):
    """Return how often each step was passed; in a worker, with those of the thread that watches."""
    deadline = time.monotonic() + DEADLINE_S
    while True:
        passed = dict(_theus.kill_point_hits())
        if ctx is None or passed.get("watch.started") or time.monotonic() > deadline:
            return passed
        time.sleep(0.001)


def array(number, nbytes=MIB):
    return np.full(nbytes, number, np.uint8)


def table(number, rows=1000):
    return pa.table({"n": np.full(rows, number, np.uint8)})


def stream(number, nbytes):
    batch = table(number, MIB).to_batches()[0]
    return pa.RecordBatchReader.from_batches(batch.schema, (batch for _ in range(nbytes // MIB)))


def outputs(ctx):
    made = ctx.heavy.alloc("o31", MIB, np.uint8)
    made[:] = 31
    filled = ctx.heavy.alloc_table("o32", pa.schema([("n", pa.uint8())]), 1000)
    filled["n"][:] = 32
    return made, filled.seal(), ctx.heavy.put("o33", pa.table({"n": np.full(1000, 33, np.uint8)}))


def spilled(ctx):
    made = ctx.heavy.alloc("o34", 6 * MIB, np.uint8)
    made[:] = 34
    return made


def double(ctx, value):
    return value + value


def work(engine, *, streams):
    """What an owner does that has one worker; every way to make, name, change and drop an entry."""
    heavy = engine.heavy
    heavy.put("a1", array(1))
    for number, nbytes in [(9, 3 * MIB), (10, 3 * MIB), (11, 5 * MIB // 2)]:
        heavy.put(f"p{number}", array(number, nbytes))  # in the pages of the one before
        heavy.free(f"p{number}")
    draft = heavy.alloc("a2", MIB, np.uint8)
    draft[:] = 2
    heavy.seal("a2")
    heavy.put("t3", table(3))
    blank = heavy.alloc_table("t4", pa.schema([("n", pa.uint8())]), 1000)
    blank["n"][:] = 4
    blank.seal()
    heavy.alloc("m5", MIB, np.uint8, mutable=True)[:] = 5
    many = {f"k{number}": array(number % 251, 8) for number in range(KEYS)}
    engine.compare_and_swap(engine.state.version, {"n": 1}, many)
    if streams:
        heavy.put("s6", stream(6, 70 * MIB))
        heavy.free("s6")
    if engine.heavy.stats()["limit_bytes"]:
        heavy.put("g7", array(7, 90 * MIB))
        if streams:
            heavy.put("s8", stream(8, 100 * MIB))
    assert engine.submit(double, value=array(4, 2 * MIB)).result(DEADLINE_S)[-1] == 8
    kept = engine.submit(outputs).result(DEADLINE_S)
    assert kept[0][0] == 31
    heavy.put("a1", array(1, 2 * MIB))
    heavy.free("a2")
    del kept


def owner(point, hit, spill):
    limit = 80 * MIB if spill else None
    _theus.arm_kill_point(point, hit or 1)
    engine = theus.TheusEngine(workers=1, heavy_limit=limit, spill_dir=spill, reserve=2 * MIB)
    deadline = time.monotonic() + DEADLINE_S
    while engine._session.backend == "linux" and engine.heavy.stats()["ready_bytes"] < 2 * MIB:
        assert time.monotonic() < deadline
        time.sleep(0.001)
    work(engine, streams=point is None or point.startswith("draft."))
    engine.close()
    return {"hits": hits()}


def worker(point, hit, spill, *, from_start=False):
    limit = 4 * MIB if spill else None
    seen = {}
    with theus.TheusEngine(workers=1, heavy_limit=limit, spill_dir=spill) as engine:
        engine.heavy.put("a1", array(1))
        before = engine.heavy.stats()
        names = own_names(engine)
        descriptors = len(os.listdir("/proc/self/fd"))
        if from_start:
            os.environ["THEUS_KILL_POINT"] = f"{point}:{hit}"
            first = engine.submit(hits)  # which starts the worker
            del os.environ["THEUS_KILL_POINT"]
            tasks = [lambda: first.result(DEADLINE_S)]
        else:
            tasks = [
                lambda: engine.submit(arm, point=point, hit=hit or 1).result(DEADLINE_S),
                lambda: engine.submit(double, value=array(4, 2 * MIB)).result(DEADLINE_S),
                lambda: engine.submit(outputs).result(DEADLINE_S),
                lambda: engine.submit(spilled).result(DEADLINE_S) if spill else None,
            ]
            passed = engine.submit(hits).result(DEADLINE_S)  # before it is armed
        while not (started := engine.worker_pids):  # the engine's own thread starts it
            time.sleep(0.001)
        (started,) = started
        for task in tasks:
            try:
                found = task()
            except theus.WorkerDiedError:
                continue
            except theus.WorkerStartError:
                # Those that replace a worker that was not ready yet have its environment.
                assert from_start
                continue
            if isinstance(found, dict):
                seen = found
            elif isinstance(found, tuple):
                assert (found[0].min(), found[0].max()) == (31, 31)
                assert found[1]["n"].to_pylist() == [32] * 1000
                assert found[2]["n"].to_pylist() == [33] * 1000
            elif found is not None:
                assert found.min() == found.max()
                assert found[0] in (8, 34)
        del task, tasks
        found = None
        # The engine is as it was, and works. A thread of the worker may pass its step only now.
        with contextlib.suppress(theus.WorkerDiedError, theus.WorkerStartError):
            engine.submit(hits).result(DEADLINE_S)
        assert engine.submit(lambda ctx: int(ctx.heavy["a1"].sum())).result(DEADLINE_S) == MIB
        died = started not in engine.worker_pids
        if point is None and not from_start:
            now = engine.submit(hits).result(DEADLINE_S)
            seen = {name: count - passed[name] for name, count in now.items()}
        after = engine.heavy.stats()
        assert after == before, (before, after)
        grown = len(os.listdir("/proc/self/fd")) - descriptors
        assert grown <= 8, grown  # one worker's channel, control page, trace and pidfd, once
        assert own_names(engine) == names
    return {"hits": seen, "died": died}


def own_names(engine):
    return sorted(n for n in os.listdir("/dev/shm") if engine.heavy.stats()["session"] in n)


def starting_worker(point, hit, spill):
    return worker(point, hit, spill, from_start=True)


def corpse(spill):
    """A session whose owner is killed with names in memory and on disk; it has no workers."""
    engine = theus.TheusEngine(workers=1, heavy_limit=4 * MIB if spill else None, spill_dir=spill)
    for number in range(5):
        engine.heavy.put(f"a{number}", array(number, 1000))
    engine.heavy.put("p9", array(9, 2 * MIB))
    engine.heavy.free("p9")
    if spill:
        engine.heavy.put("g6", array(6, 6 * MIB))
    return engine


def dying(point, hit, spill):
    engine = corpse(spill)
    assert len(engine.heavy) >= 5
    os.kill(os.getpid(), signal.SIGKILL)


def sweeper(point, hit, spill):
    _theus.arm_kill_point(point, hit or 1)
    theus.sweep(spill)
    return {"hits": hits()}


def orphan(point, hit, spill):
    """The owner's worker is armed, then the owner killed: the worker sweeps."""
    engine = corpse(spill)
    engine.submit(arm, point=point, hit=hit).result(DEADLINE_S)
    os.kill(os.getpid(), signal.SIGKILL)


ROLES = {role.__name__: role for role in (owner, worker, starting_worker, sweeper, dying, orphan)}

if __name__ == "__main__":
    order = json.loads(sys.argv[1])
    print(json.dumps(ROLES[order["role"]](order["point"], order["hit"], order["spill"])))
