"""Round trips without end: nothing may grow with their number.

``THEUS_ROUND_TRIPS`` says how many; the default is a short run.
"""

import os
from pathlib import Path

import numpy as np
import psutil

from theus import TheusEngine

ROUND_TRIPS = int(os.environ.get("THEUS_ROUND_TRIPS", "300"))
NUMBERS = np.random.default_rng(5).random(1_250_000)  # 10 MB
MARGIN_BYTES = 40 << 20  # the allocator's, not one array a trip


def add_one(ctx, value):
    value += 1
    return value


def make(ctx, value):
    out = ctx.heavy.alloc("out", value.shape)
    np.add(value, 1, out=out)
    return out


def measure(engine):
    processes = [psutil.Process(), *map(psutil.Process, engine._dispatcher.worker_pids)]
    space = os.statvfs("/dev/shm")
    return {
        "names": len(os.listdir("/dev/shm")),
        "segment bytes": (space.f_blocks - space.f_bfree) * space.f_frsize,
        "descriptors": sum(process.num_fds() for process in processes),
        "mappings": sum(len(_maps(process.pid)) for process in processes),
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
