"""What is loaded and started when: packages when they are needed, workers when there is work."""

import json
import os
import time

import numpy as np
import pyarrow as pa
import pytest

from theus import TheusEngine

MIB = 1 << 20
DEADLINE_S = 30


def has_workers(engine, count):
    deadline = time.monotonic() + DEADLINE_S
    while len(engine.worker_pids) < count:
        assert time.monotonic() < deadline
        time.sleep(0.005)
    return engine.worker_pids


def test_an_engine_alone_and_small_entries_start_nothing():
    with TheusEngine(workers=2) as engine:
        engine.heavy.put("small", np.zeros(MIB))
        engine.heavy.alloc("draft", MIB)
        time.sleep(0.2)
        assert engine.worker_pids == []


@pytest.mark.parametrize("how", ["put", "alloc", "alloc_table"])
def test_workers_start_beside_the_first_large_entry(how):
    make = {
        "put": lambda heavy: heavy.put("x", np.zeros(64 * MIB, np.uint8)),
        "alloc": lambda heavy: heavy.alloc("x", 64 * MIB, np.uint8),
        "alloc_table": lambda heavy: heavy.alloc_table(
            "x", pa.schema([("n", pa.uint8())]), 64 * MIB
        ),
    }[how]
    cores = len(os.sched_getaffinity(0))
    with TheusEngine(workers=cores + 1) as engine:
        make(engine.heavy)
        pids = has_workers(engine, cores)
        assert engine.submit(lambda ctx: os.getpid()).result(DEADLINE_S) in pids
        assert engine.worker_pids == pids


def test_an_engine_that_is_closed_while_its_workers_start_leaves_none():
    for _ in range(5):
        engine = TheusEngine(workers=2)
        engine.heavy.alloc("x", 64 * MIB, np.uint8)
        engine.close()
        assert engine.worker_pids == []


def test_the_package_loads_its_parts_when_they_are_asked_for(python):
    source = """
import json, sys
import theus
early = sorted(name for name in sys.modules if name.startswith("theus."))
names = set(theus.__all__) - set(dir(theus))
values = [getattr(theus, name) for name in theus.__all__]
try:
    theus.nothing
except AttributeError as error:
    said = str(error)
print(json.dumps([early, "numpy" in sys.modules, sorted(names), len(values), said]))
"""
    early, has_numpy, unnamed, count, said = json.loads(python(source).stdout)
    assert early == ["theus._theus"]
    assert has_numpy
    assert unnamed == []
    assert count > 30
    assert said == "module 'theus' has no attribute 'nothing'"


def test_a_worker_imports_no_more_than_its_loop_needs():
    with TheusEngine(workers=1) as engine:
        names = engine.submit(lambda ctx: sorted(__import__("sys").modules)).result(DEADLINE_S)
    assert "theus._worker" in names or "__main__" in names
    assert "numpy" in names
    for name in ("asyncio", "pyarrow", "pandas", "theus.engine", "theus.dispatch"):
        assert name not in names
