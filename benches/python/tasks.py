"""What the benches run in workers; importable, as the tasks of a program are."""

import contextlib
import statistics
import time
from multiprocessing.shared_memory import SharedMemory

import pyarrow as pa

import theus
from theus import process


@process(parallel=True)
def nothing(ctx):
    return None


def nothing_plain():
    return None


@process(parallel=True)
def echo(ctx, item):
    return item


def echo_plain(item):
    return item


@process(parallel=True)
def part_sum(ctx, item):
    start, stop = item
    return float(ctx.heavy["x"][start:stop].sum())


@process(parallel=True)
def rows_of(ctx):
    return len(ctx.heavy)


@process(parallel=True)
def open_heavy(ctx, path):
    first = timed(lambda: ctx.heavy["table"].num_rows)
    return *first, again(lambda: theus.open(path, trusted=True).num_rows)


def open_shared(name):
    return *timed(lambda: rows_in(name)), again(lambda: rows_in(name))


def rows_in(name):
    block = SharedMemory(name=name)
    rows = pa.ipc.open_file(pa.py_buffer(block.buf)).read_all().num_rows
    with contextlib.suppress(BufferError):  # pyarrow lets go of the buffer when it likes
        block.close()
    return rows


def timed(work):
    start = time.perf_counter()
    rows = work()
    return time.perf_counter() - start, rows


def again(work):
    return statistics.median(timed(work)[0] for _ in range(15))
