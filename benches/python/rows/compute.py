"""A gigabyte summed by several workers, against one process that has it in its own memory."""

from contextlib import contextmanager

import numpy as np

import tasks
from floors import timed
from rounds import OURS, Contestant, Group, Row
from rows import CORES, GIB, contestant, with_peer
from samples import MS, size_name

_REPEATS = 3
ALONE = "one process"


def groups(scale):
    size = scale.size(GIB)
    data = np.ones(size // 8)
    what = f"sum of {size_name(size)} by {CORES} workers"
    rows = [
        Row("sum-warm", f"{what}, who have it mapped", MS),
        Row("sum-first", f"{what}, who never saw it", MS),
    ]
    parts = [(part, CORES) for part in range(CORES)]
    halves = [(half,) for half in np.array_split(data, CORES)]

    def shared(it):
        def summed(handle):
            assert sum(it.looks(tasks.part_sum, handle, parts)) == len(data)

        def take():
            handle = it.put(data)
            first = timed(lambda: summed(handle))
            # Which worker gets which part is for the dispatcher to say: all see all.
            for _ in range(_REPEATS):
                summed(handle)
            again = [timed(lambda: summed(handle)) for _ in range(_REPEATS)]
            it.free(handle)
            return {"sum-first": [first], "sum-warm": again}

        return take

    def sent(it):
        def summed():
            assert sum(it.calls(tasks.total, halves)) == len(data)

        return lambda: {"sum-warm": [timed(summed)]}

    @contextmanager
    def alone():
        yield lambda: {
            key: [timed(data.sum) for _ in range(_REPEATS)] for key in ("sum-warm", "sum-first")
        }

    who = [
        contestant(OURS, with_peer(OURS, shared, CORES)),
        Contestant(ALONE, alone, everywhere=True),
        contestant("shared_memory", with_peer("shared_memory", shared, CORES, cached=True)),
        contestant("joblib", with_peer("joblib", shared, CORES)),
        contestant("ProcessPoolExecutor", with_peer("ProcessPoolExecutor", sent, CORES)),
        contestant("Ray", with_peer("Ray", shared, CORES, store_gib=-(-3 * size // GIB))),
        contestant("Dask", with_peer("Dask", sent, CORES)),
    ]
    yield Group("sum", rows, who, scale.rounds(5))
