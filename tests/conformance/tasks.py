"""The tasks of the suite in Python; rust/theus/examples/conformance.rs has the same."""

import os
import signal
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pyarrow as pa

from theus import process

TASKS = {}


def task(function):
    """Enter `function` under its name, without the underscore that keeps a builtin's apart."""
    TASKS[function.__name__.removesuffix("_")] = process(parallel=True)(function)
    return function


class Failed(Exception):  # noqa: N818 - it has this name in every language
    pass


@task
def nothing(ctx):
    return None


@task
def echo(ctx, value):
    return value


@task
def domain(ctx, value):
    return ctx.domain[value]


@task
def entries(ctx):
    return sorted(ctx.heavy)


@task
def pid(ctx):
    return os.getpid()


@task
def threads(ctx):
    share = int(os.environ["OMP_NUM_THREADS"])
    return [share, share]


@task
def sum_(ctx, column):
    return float(ctx.heavy[column].sum())


@task
def sum_of(ctx, array):
    return float(array.sum())


@task
def rows_of(ctx, array):
    return [array.num_rows, array.column_names]


@task
def same(ctx, array):
    return array


@task
def squares(ctx, count):
    squares = ctx.heavy.alloc("squares", count, np.uint64)
    squares[:] = np.arange(count, dtype=np.uint64) ** 2
    return squares


@task
def numbers(ctx, count):
    return {"table": ctx.heavy.put("numbers", pa.table({"n": range(count)}))}


@task
def forgets(ctx, count):
    ctx.heavy.alloc("forgotten", count, np.uint8)


@task
def double(ctx, item):
    return 2 * item


@task
def log(ctx, message):
    for level in ("debug", "info", "warning", "error"):
        ctx.log(message, level)


@task
def progress(ctx, count):
    for done in range(1, count + 1):
        ctx.progress(done, count, "counting")
    ctx.progress(count)
    return count


@task
def fail(ctx, message):
    raise Failed(message)


@task
def panic(ctx, message):
    raise AssertionError(message)


@task
def panic_in_parallel(ctx, message):
    def check(n):
        assert n != 50, message

    with ThreadPoolExecutor(2) as pool:
        list(pool.map(check, range(100)))


@task
def unsendable(ctx):
    return threading.Lock()


@task
def kill(ctx):
    os.kill(os.getpid(), signal.SIGKILL)


@task
def exit_(ctx, code):
    os._exit(code)


@task
def abort(ctx):
    os.abort()


@task
def sleep(ctx, seconds, polite):
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        try:
            time.sleep(0.001)
        except BaseException:
            if polite:
                raise
