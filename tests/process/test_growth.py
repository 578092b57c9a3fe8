"""Round trips without end: nothing may grow with their number.

``THEUS_ROUND_TRIPS`` and ``THEUS_LIVES`` say how many; the default is a short run.
"""

import asyncio
import gc
import os
from pathlib import Path

import numpy as np
import psutil
import pyarrow as pa
import pytest

from theus import TheusEngine, process

ROUND_TRIPS = int(os.environ.get("THEUS_ROUND_TRIPS", "300"))
NUMBERS = np.random.default_rng(5).random(1_250_000)  # 10 MB
MIB = 1 << 20
LIVES = int(os.environ.get("THEUS_LIVES", "20"))
MARGIN_BYTES = 40 << 20  # the allocator's, not one array a trip


def add_one(ctx, value):
    value += 1
    return value


def make(ctx, value):
    out = ctx.heavy.alloc("out", value.shape)
    np.add(value, 1, out=out)
    return out


def measure(engine=None):
    workers = engine.worker_pids if engine else []
    processes = [psutil.Process(), *map(psutil.Process, workers)]
    space = os.statvfs("/dev/shm")
    return {
        "names": len(os.listdir("/dev/shm")),
        "segment bytes": (space.f_blocks - space.f_bfree) * space.f_frsize,
        "descriptors": sum(process.num_fds() for process in processes),
        "mappings": sum(len(_maps(process.pid)) for process in processes),
        "threads": sum(process.num_threads() for process in processes),
        "resident bytes": sum(process.memory_info().rss for process in processes),
    }


def _maps(pid):
    return Path(f"/proc/{pid}/maps").read_text().splitlines()


def test_round_trips_leave_no_trace():
    with TheusEngine(workers=2) as engine:
        entry = engine.heavy.put("entry", NUMBERS)

        def go(times):
            for number in range(times):
                value, function = [(NUMBERS, add_one), (NUMBERS, make), (entry, make)][number % 3]
                back = engine.submit(function, value=value).result(60)
                assert back[number] == NUMBERS[number] + 1

        go(60)
        before = measure(engine)
        go(ROUND_TRIPS)
        after = measure(engine)
        print(f"{ROUND_TRIPS} round trips of 10 MB: before {before}, after {after}")
        assert after["names"] <= before["names"]
        assert after["descriptors"] <= before["descriptors"]
        assert after["mappings"] <= before["mappings"] + 8
        assert after["segment bytes"] <= before["segment bytes"] + MARGIN_BYTES
        assert after["resident bytes"] <= before["resident bytes"] + MARGIN_BYTES


async def live(number, spill):
    """A whole life of an engine, with an entry on disk, a failure and a table."""
    async with TheusEngine(
        {"number": number}, workers=1, heavy_limit=MIB, spill_dir=spill
    ) as engine:
        engine.heavy.put("small", NUMBERS[:1000])
        engine.heavy.put("large", NUMBERS)
        engine.heavy.put("table", pa.table({"n": NUMBERS[:1000]}))
        assert await engine.execute(look) == (number, NUMBERS.sum(), 1000)
        assert engine.submit(add_one, value=np.zeros(100_000)).result(60)[-1] == 1
        with pytest.raises(ZeroDivisionError):
            engine.submit(lambda ctx: 1 / 0).result(60)
        engine.submit(look)  # nobody waits for it


@process(parallel=True)
def look(ctx):
    heavy = ctx.heavy
    return ctx.domain["number"], heavy["large"].sum(), heavy["table"].num_rows


@pytest.mark.timeout(60 + LIVES)
def test_an_engine_that_has_lived_leaves_no_trace(tmp_path):
    def go(times):
        for number in range(times):
            asyncio.run(live(number, tmp_path))
        gc.collect()

    go(10)
    before = measure()
    go(LIVES)
    after = measure()
    print(f"{LIVES} lives of an engine: before {before}, after {after}")
    assert not list(tmp_path.iterdir())
    for what in ("names", "descriptors", "segment bytes"):
        assert after[what] <= before[what], what
    assert (
        after["threads"] <= before["threads"] + LIVES // 4
    )  # libraries start theirs when they like
    assert after["mappings"] <= before["mappings"] + 8
    assert after["resident bytes"] <= before["resident bytes"] + MARGIN_BYTES
