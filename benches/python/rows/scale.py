"""What costs grow with: workers, entries, an entry's size, its columns, and what the dead left.

Each turn takes all points of a curve, in an order drawn anew, so that its shape is one of the same
moments. Only Theus is here, and the floor where there is one.
"""

import asyncio
import random
import subprocess
import sys
import tempfile
import time
from contextlib import ExitStack, contextmanager
from pathlib import Path

import numpy as np
import pyarrow as pa

import floors
import theus
from floors import timed
from machine import spare_bytes
from peers.theus import nothing, whoami
from rounds import OURS, Contestant, Group, Row
from rows import GIB, KIB, MIB
from rows.attach import map_read_only
from samples import US, size_name
from theus import TheusEngine, process

_WARMING = 3
_WARM_LOOKS = 5
_BATCH = 1000  # each is a draft, with a descriptor, until all are published together
_ITEM = np.zeros(16)
_ROWS = 10
_SMALL = ("small tensor", "small table")
_FLOOR_TRIP = "floor: blocking socket pair"
_FLOOR_MAP = "floor: open and mmap"
_FLOOR_TABLE = "floor: pyarrow over a memory map"
_FLOOR_UNLINK = "floor: unlink"


def groups(scale):
    yield _workers(scale, scale.of([1, 4, 16, 64], [1, 2]))
    yield _entries(scale, scale.of([1, 100, 10_000, 100_000], [1, 300]))
    sizes = scale.of([KIB, 64 * KIB, MIB, 64 * MIB, GIB, 8 * GIB], [KIB, MIB])
    columns = scale.of([1, 10, 100, 1000, 10_000], [1, 10])
    yield from _attach(scale, sizes, columns)
    yield _sweep(scale, scale.of([1, 100, 10_000], [1, 10]))


def _rows(curve, points, title, unit=US):
    return [Row(f"scale-{curve}-{point}", title(point), unit) for point in points]


# --- dispatch ---


def _workers(scale, counts):
    rows = _rows("workers", counts, lambda n: f"no-op, {n} worker{'s' * (n > 1)}")

    @contextmanager
    def start():
        with ExitStack() as stack:
            engines = {}
            for count in counts:
                engine = stack.enter_context(TheusEngine(workers=count))
                engines[count] = engine
                while len(engine.worker_pids) < count:
                    for future in [engine.submit(whoami) for _ in range(count)]:
                        future.result()
            yield _in_turn(
                engines, lambda count, engine: {f"scale-workers-{count}": _no_ops(scale, engine)}
            )

    who = [Contestant(OURS, start), Contestant(_FLOOR_TRIP, _trips(scale, rows))]
    return Group("scale: workers", rows, who, scale.rounds(7))


def _entries(scale, counts):
    def titled(curve, what):
        return _rows(curve, counts, lambda n: f"{what}, {n:,} entr{'ies' if n > 1 else 'y'}")

    no_op = titled("entries", "no-op")
    rows = [
        *no_op,
        *titled("put", f"put {_ITEM.nbytes} B"),
        *titled("changed", "no-op in the next version"),
        *titled("freed", "free"),
    ]

    @contextmanager
    def start():
        with ExitStack() as stack:
            engines = {}
            for count in counts:
                engine = stack.enter_context(TheusEngine(workers=1))
                engines[count] = engine
                _fill(engine, count)
                asyncio.run(engine.execute(nothing))
            yield _in_turn(engines, measured)

    def measured(count, engine):
        changed, puts, frees = [], [], []

        async def change():
            for _ in range(scale.of(20, 3)):
                puts.append(timed(lambda: engine.heavy.put("0", _ITEM)))
                start = time.perf_counter()
                await engine.execute(nothing)
                changed.append(time.perf_counter() - start)
                engine.heavy.put("freed", _ITEM)
                frees.append(timed(lambda: engine.heavy.free("freed")))
                await engine.execute(nothing)

        asyncio.run(change())
        return {
            f"scale-entries-{count}": _no_ops(scale, engine),
            f"scale-put-{count}": puts,
            f"scale-changed-{count}": changed,
            f"scale-freed-{count}": frees,
        }

    who = [Contestant(OURS, start), Contestant(_FLOOR_TRIP, _trips(scale, no_op))]
    return Group("scale: entries", rows, who, scale.rounds(7))


def _fill(engine, count):
    for first in range(0, count, _BATCH):
        names = map(str, range(first, min(count, first + _BATCH)))
        engine.compare_and_swap(engine.state.version, heavy=dict.fromkeys(names, _ITEM))


def _no_ops(scale, engine):
    async def execute():
        costs = []
        for _ in range(scale.of(100, 5) + _WARMING):
            start = time.perf_counter()
            await engine.execute(nothing)
            costs.append(time.perf_counter() - start)
        return costs[_WARMING:]

    return asyncio.run(execute())


def _trips(scale, rows):
    """Return the floor of some rows, which is one, whatever they count."""

    @contextmanager
    def start():
        with floors.ping_pong() as trip:

            def take():
                costs = [timed(trip) for _ in range(scale.of(100, 5) + _WARMING)][_WARMING:]
                return {row.key: costs for row in rows}

            yield take

    return start


def _in_turn(points, measure):
    shuffled = _shuffler()

    def take():
        costs = {}
        for point in shuffled(points):
            costs |= measure(point, points[point])
        return costs

    return take


# --- attach ---


@process(parallel=True)
def look(ctx, names):
    """Return what the first look at each entry took, and later ones."""
    for name in _SMALL:  # numpy and pyarrow are imported by then
        ctx.heavy[name]
    return {
        name: [timed(lambda name=name: ctx.heavy[name]) for _ in range(1 + _WARM_LOOKS)]
        for name in names
    }


@process(parallel=True)
def open_each(ctx, opener, small, paths):
    """Return what the first opening of each file took."""
    opener(small)
    return {key: [timed(lambda path=path: opener(path))] for key, path in paths}


def open_table(path):
    return pa.ipc.open_file(pa.memory_map(path)).read_all()


def _attach(scale, sizes, columns):
    fitting = [size for size in sizes if size + 2 * GIB < spare_bytes() or size <= MIB]
    yield _attach_those_that_fit(scale, fitting, columns)
    left = [size for size in sizes if size not in fitting]
    if left:
        rows = _rows("size-cold", left, _first_look_at)
        yield Group("scale: size", rows, [Contestant(OURS, _no_space)], 0)


def _first_look_at(size):
    return f"first look at {size_name(size)}"


def _attach_those_that_fit(scale, sizes, columns):
    cold = _rows("size-cold", sizes, _first_look_at)
    warm = _rows("size-warm", sizes, lambda n: f"next look at {size_name(n)}")
    first = _rows("columns-cold", columns, lambda n: f"first look at a table, columns: {n:,}")
    later = _rows("columns-warm", columns, lambda n: f"next look at a table, columns: {n:,}")

    @contextmanager
    def start():
        with _fresh_workers() as engine:
            for name, data in zip(_SMALL, (_ITEM, _table(1)), strict=True):
                engine.heavy.put(name, data)
            for size in sizes:
                # No source is written, and none is there: half of the memory is enough.
                engine.heavy.alloc(f"size-cold-{size}", size, np.uint8)
                engine.heavy.seal(f"size-cold-{size}")
            for count in columns:
                engine.heavy.put(f"columns-cold-{count}", _table(count))
            names = [row.key.removeprefix("scale-") for row in (*cold, *first)]
            shuffled = _shuffler()

            def take():
                costs = {}
                for name, looks in engine.submit(look, names=shuffled(names)).result().items():
                    costs[f"scale-{name}"] = looks[:1]
                    costs[f"scale-{name}".replace("cold", "warm")] = looks[1:]
                return costs

            yield take

    who = [
        Contestant(OURS, start),
        Contestant(_FLOOR_MAP, _opened(map_read_only, _write_zeros, "size-cold", sizes)),
        Contestant(_FLOOR_TABLE, _opened(open_table, _write_table, "columns-cold", columns)),
    ]
    return Group("scale: attach", [*cold, *warm, *first, *later], who, scale.rounds(25))


def _opened(opener, write, curve, points):
    """Return what starts a floor: files are written, and each opened in a fresh worker."""

    @contextmanager
    def start():
        with tempfile.TemporaryDirectory(dir="/dev/shm") as place, _fresh_workers() as engine:
            small, *paths = (str(Path(place, name)) for name in ("small", *map(str, points)))
            for path, point in zip((small, *paths), (points[0], *points), strict=True):
                write(Path(path), point)
            keys = [f"scale-{curve}-{point}" for point in points]
            shuffled = _shuffler()
            yield lambda: engine.submit(
                open_each,
                opener=opener,
                small=small,
                paths=shuffled(zip(keys, paths, strict=True)),
            ).result()

    return start


def _shuffler():
    """Return a function that gives the items in an order drawn anew at each call."""
    draw = random.Random(0)  # noqa: S311 - an order, no secret

    def shuffled(items):
        listed = list(items)
        draw.shuffle(listed)
        return listed

    return shuffled


def _fresh_workers():
    """Return an engine each of whose tasks has a worker of its own: first looks are first ones."""
    return TheusEngine(workers=1, max_tasks_per_worker=1)


def _write_zeros(path, size):
    with path.open("xb") as file:
        file.truncate(size)


def _write_table(path, columns):
    table = _table(columns)
    with pa.ipc.new_file(path, table.schema) as writer:
        writer.write_table(table)


def _table(columns):
    return pa.table({f"column {number}": np.arange(_ROWS) for number in range(columns)})


@contextmanager
def _no_space():
    msg = "there is no space in memory for it"
    raise MemoryError(msg)
    yield


# --- sweep ---

_DYING = """
import os, signal, sys, numpy as np, theus
engine, item, count = theus.TheusEngine(workers=1), np.zeros(16), int(sys.argv[1])
for first in range(0, count, 1000):
    names = map(str, range(first, min(count, first + 1000)))
    engine.compare_and_swap(engine.state.version, heavy=dict.fromkeys(names, item))
os.kill(os.getpid(), signal.SIGKILL)
"""


def _sweep(scale, counts):
    rows = [
        *_rows("sweep", counts, lambda n: f"sweep of {n:,} dead segment{'s' * (n > 1)}"),
        *_rows("sweep-each", counts, lambda n: f"sweep of {n:,}, each"),
    ]

    def costs(count, seconds):
        return {f"scale-sweep-{count}": [seconds], f"scale-sweep-each-{count}": [seconds / count]}

    def died_and_swept(count, _):
        subprocess.run([sys.executable, "-c", _DYING, str(count)], check=False)
        start = time.perf_counter()
        removed = theus.sweep()
        seconds = time.perf_counter() - start
        # An engine of somebody else's that starts just then sweeps, too.
        assert len(removed) >= count, f"{len(removed)} of {count} were left to sweep"
        return costs(count, seconds)

    def unlinked(count, _):
        with tempfile.TemporaryDirectory(dir="/dev/shm") as place:
            paths = [Path(place, str(number)) for number in range(count)]
            for path in paths:
                path.write_bytes(bytes(2 * 4096))
            return costs(count, timed(lambda: [path.unlink() for path in paths]))

    def turns(measure):
        @contextmanager
        def start():
            yield _in_turn(dict.fromkeys(counts), measure)

        return start

    who = [Contestant(OURS, turns(died_and_swept)), Contestant(_FLOOR_UNLINK, turns(unlinked))]
    return Group("scale: sweep", rows, who, scale.rounds(3))
