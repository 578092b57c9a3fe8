"""What it costs to run a function that does nothing: one at a time, and many in flight."""

import asyncio
import time
from contextlib import contextmanager

import floors
import tasks
from floors import timed
from rounds import OURS, Group, Row
from rows import CORES, contestant, with_peer
from samples import US, per_s

# The first tasks of a turn find everybody asleep, after the others' turns.
_WARMING = 3
_FLOOR = "floor: blocking socket pair"
_CHUNK = 256


def groups(scale):
    alone, together = scale.of(200, 10), scale.of(10_000, 100)
    rows = [
        Row("no-op", "no-op, one at a time", US),
        Row("in-flight", f"{together:,} no-ops in flight", per_s(together)),
    ]

    def costs(turn):
        return lambda it: lambda: turn(it, alone, together)

    who = [
        contestant(OURS, with_peer(OURS, costs(_ours), CORES)),
        contestant(_FLOOR, lambda: _floor(alone, together)),
        *(
            contestant(name, with_peer(name, costs(turn), CORES))
            for name, turn in [
                ("ProcessPoolExecutor", _executor),
                ("joblib", _plain),
                ("Dask", _plain),
                ("Ray", _ray),
            ]
        ),
    ]
    yield Group("dispatch", rows, who, scale.rounds(5))


def _no_ops(call, alone):
    return [timed(call) for _ in range(alone + _WARMING)][_WARMING:]


def _plain(it, alone, together):
    return {
        "no-op": _no_ops(lambda: it.call(tasks.nothing), alone),
        "in-flight": [timed(lambda: it.calls(tasks.nothing, [()] * together))],
    }


def _executor(it, alone, together):
    def mapped():
        return list(it.pool.map(tasks.echo, range(together), chunksize=_CHUNK))

    name = f"ProcessPoolExecutor, map by {_CHUNK}"
    return {**_plain(it, alone, together), ("in-flight", name): [timed(mapped)]}


def _ray(it, alone, together):
    tasks_s = _no_ops(lambda: it.task(tasks.nothing), alone)
    return {**_plain(it, alone, together), ("no-op", "Ray, tasks"): tasks_s}


def _ours(it, alone, together):
    from peers.theus import nothing, nothing_with

    execute = it.engine.execute

    async def executed():
        costs = []
        for _ in range(alone + _WARMING):
            start = time.perf_counter()
            await execute(nothing)
            costs.append(time.perf_counter() - start)
        return costs[_WARMING:]

    async def gathered():
        await asyncio.gather(*[execute(nothing) for _ in range(together)])

    def mapped():
        return list(it.engine.map(nothing_with, range(together)))

    others = _plain(it, alone, together)
    return {
        "no-op": asyncio.run(executed()),
        ("no-op", "theus, submit().result()"): others["no-op"],
        "in-flight": others["in-flight"],
        ("in-flight", "theus, execute and gather"): [timed(lambda: asyncio.run(gathered()))],
        ("in-flight", "theus, map"): [timed(mapped)],
    }


@contextmanager
def _floor(alone, together):
    with (
        floors.ping_pong() as trip,
        floors.pipelined(1) as trips,
        floors.pipelined(128) as batched,
    ):
        yield lambda: {
            "no-op": _no_ops(trip, alone),
            "in-flight": [timed(lambda: trips(together))],
            ("in-flight", f"{_FLOOR}, 128 in a write"): [timed(lambda: batched(together))],
        }
