"""What it costs to put a gigabyte into shared memory, and to open a table there."""

import inspect
import time
from contextlib import contextmanager

import numpy as np
import pyarrow as pa

import floors
import peers
import tasks
from floors import timed
from rounds import OURS, Group, Row
from rows import CORES, GIB, contestant, with_peer
from samples import US, gb_per_s, size_name
from theus import TheusEngine

_REPEATS = 3
_READY_WITHIN_S = 60
_BYTES_A_ROW = 8 * 6 + 4 + 9 + 4


def groups(scale):
    yield _arrays(scale, scale.size(GIB))
    yield _tables(scale, scale.size(GIB))


def _arrays(scale, size):
    data = np.ones(size // 8)
    what = f"put a numpy array of {size_name(size)}"
    unit = gb_per_s(size)
    rows = [
        Row("put-first", f"{what}, first", unit),
        Row("put-repeat", f"{what}, repeated", unit),
    ]

    rounds = scale.rounds(5)
    store_gib = -(-(rounds + 2) * size // GIB)
    who = [
        contestant(OURS, lambda: _fresh_engines(data)),
        contestant("floor: copies", lambda: _array_floor(size)),
        *(
            contestant(name, with_peer(name, lambda it: _blocks(it, data), 1, warm=False))
            for name in ("shared_memory", "joblib")
        ),
        contestant("Ray", with_peer("Ray", lambda it: _growing(it, data), 1, store_gib=store_gib)),
    ]
    return Group("put an array", rows, who, rounds)


def _put_s(it, data):
    """Return the seconds of a put after which, and before which, nothing goes on."""
    time.sleep(it.settling_s)
    return timed(lambda: it.put(data))


@contextmanager
def _fresh_engines(data):
    """Take each turn with a new engine, which has no memory yet."""
    reserves = "reserve" in inspect.signature(TheusEngine).parameters

    def take():
        with peers.peer(OURS)(1, warm=False) as it:
            first, _, *repeats = (_put_s(it, data) for _ in range(_REPEATS + 2))
        costs = {"put-first": [first], "put-repeat": repeats}
        return costs | {("put-first", "theus, reserve="): [reserved()]} if reserves else costs

    def reserved():
        with peers.peer(OURS)(1, warm=False, reserve=data.nbytes) as it:
            deadline = time.monotonic() + _READY_WITHIN_S
            while it.engine.heavy.stats()["ready_bytes"] < data.nbytes:
                assert time.monotonic() < deadline, "the reserve is never ready"
                time.sleep(it.settling_s)
            return _put_s(it, data)

    yield take


def _blocks(it, data):
    """Copy into a new block, and again into the same: what a user would write for himself."""

    def take():
        held = []
        first = timed(lambda: held.append(it.put(data)))
        (handle,) = held
        repeats = [timed(lambda: it.refill(handle, data)) for _ in range(_REPEATS)]
        it.free(handle)
        return {"put-first": [first], "put-repeat": repeats}

    return take


def _growing(it, data):
    """Keep one array more in each turn, so that the next first put takes fresh memory."""
    kept = []

    def put():
        return timed(lambda: kept.append(it.put(data)))

    def take():
        first = put()
        repeats = []
        for _ in range(_REPEATS):
            it.free(kept.pop())
            time.sleep(it.settling_s)
            repeats.append(put())
        return {"put-first": [first], "put-repeat": repeats}

    return take


@contextmanager
def _array_floor(size):
    with floors.copier(size) as seconds:

        def copied():
            return [seconds("copy", CORES) for _ in range(_REPEATS)]

        yield lambda: {
            ("put-first", "floor: write(2)"): [seconds("write", 1)],
            ("put-first", f"floor: write(2), {CORES} threads"): [seconds("write", CORES)],
            ("put-repeat", f"floor: copy, {CORES} threads"): copied(),
        }


def table_of(size):
    """Return about ``size`` bytes in 8 columns, one dictionary and one of strings."""
    numbers = np.random.default_rng(0)
    rows = size // _BYTES_A_ROW // 1000 * 1000
    words = pa.array(numbers.integers(0, 10**9, 1000).astype("S9")).cast(pa.string())
    return pa.table(
        {
            **{f"x{number}": numbers.random(rows) for number in range(4)},
            "id": np.arange(rows),
            "day": pa.array(np.arange(rows, dtype=np.int32)).cast(pa.date32()),
            "word": pa.concat_arrays([words] * (rows // 1000)),
            "code": pa.array(np.arange(rows) % 100).dictionary_encode(),
        }
    )


def _tables(scale, size):
    table = table_of(size)
    what = f"a table of {size_name(size)}"
    rows = [
        Row("table-repeat", f"put {what}, repeated", gb_per_s(table.nbytes)),
        Row("table-get", f"see {what} in a worker, first", US),
        Row("table-again", f"see {what} in a worker, again", US),
    ]

    def looked(it, handle):
        seconds, length = it.look(tasks.attach_s, handle)
        assert length == len(table)
        return seconds

    def turn(it):
        held = [it.put(table)]
        looked(it, held[0])  # its first look at any table imports pyarrow

        def take():
            it.free(held.pop())
            time.sleep(it.settling_s)
            taken = timed(lambda: held.append(it.put(table)))
            first = looked(it, held[0])
            again = [looked(it, held[0]) for _ in range(_REPEATS)]
            return {"table-repeat": [taken], "table-get": [first], "table-again": again}

        return take

    def ours(it):
        take = turn(it)

        def stock():
            path = it.engine.heavy.path("data")
            name = "stock: pyarrow.ipc over its path"
            first, *again = (it.call_plain(stock_open_s, path) for _ in range(_REPEATS + 1))
            return {("table-get", name): [first], ("table-again", name): again}

        return lambda: {**take(), **stock()}

    @contextmanager
    def floor():
        with floors.copier(table.nbytes) as seconds:
            yield lambda: {"table-repeat": [seconds("copy", CORES)]}

    who = [
        contestant(OURS, with_peer(OURS, ours, 1)),
        contestant(f"floor: copy, {CORES} threads", floor),
        contestant("shared_memory", with_peer("shared_memory", turn, 1)),
        contestant("Ray", with_peer("Ray", turn, 1, store_gib=-(-5 * size // GIB))),
    ]
    return Group("put a table", rows, who, scale.rounds(9))


def stock_open_s(path):
    return timed(lambda: pa.ipc.open_file(pa.memory_map(path)).read_all())
