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

    def no_ops(call):
        return [timed(call) for _ in range(alone + _WARMING)][_WARMING:]

    def in_flight(it):
        return [timed(lambda: it.calls(tasks.nothing, [()] * together))]

    def plain(it):
        return lambda: {
            "no-op": no_ops(lambda: it.call(tasks.nothing)),
            "in-flight": in_flight(it),
        }

    def ours(it):
        from peers.theus import nothing, nothing_with

        async def executed():
            costs = []
            for _ in range(alone + _WARMING):
                start = time.perf_counter()
                await it.engine.execute(nothing)
                costs.append(time.perf_counter() - start)
            return costs[_WARMING:]

        def mapped():
            return list(it.engine.map(nothing_with, range(together)))

        async def gathered():
            await asyncio.gather(*[it.engine.execute(nothing) for _ in range(together)])

        return lambda: {
            "no-op": asyncio.run(executed()),
            ("no-op", "theus, submit().result()"): no_ops(lambda: it.call(tasks.nothing)),
            "in-flight": in_flight(it),
            ("in-flight", "theus, execute and gather"): [timed(lambda: asyncio.run(gathered()))],
            ("in-flight", "theus, map"): [timed(mapped)],
        }

    def executor(it):
        def mapped():
            return list(it.pool.map(tasks.echo, range(together), chunksize=_CHUNK))

        return lambda: {
            **plain(it)(),
            ("in-flight", f"ProcessPoolExecutor, map, {_CHUNK} a chunk"): [timed(mapped)],
        }

    def ray(it):
        return lambda: {
            **plain(it)(),
            ("no-op", "Ray, tasks"): no_ops(lambda: it.task(tasks.nothing)),
        }

    @contextmanager
    def floor():
        with (
            floors.ping_pong() as trip,
            floors.pipelined(1) as trips,
            floors.pipelined(128) as batched,
        ):
            yield lambda: {
                "no-op": no_ops(trip),
                "in-flight": [timed(lambda: trips(together))],
                ("in-flight", f"{_FLOOR}, 128 in a write"): [timed(lambda: batched(together))],
            }

    rows = [
        Row("no-op", "no-op, one at a time", US),
        Row("in-flight", f"{together:,} no-ops in flight", per_s(together)),
    ]
    who = [
        contestant(OURS, with_peer(OURS, ours, CORES)),
        contestant(_FLOOR, floor),
        *(
            contestant(name, with_peer(name, plain, CORES))
            for name in ("joblib", "Dask")
        ),
        contestant("ProcessPoolExecutor", with_peer("ProcessPoolExecutor", executor, CORES)),
        contestant("Ray", with_peer("Ray", ray, CORES)),
    ]
    yield Group("dispatch", rows, who, scale.rounds(5))
