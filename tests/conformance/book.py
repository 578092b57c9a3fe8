#!/usr/bin/env python3
"""The suite's tasks for a worker that knows ``schemas/`` alone: by_the_book.py."""

import os
import signal
import struct
import time

import by_the_book as book

ENTRY, OPAQUE = 1, 3


def unfit(text):
    return book.TaskError("inputs", text, cause=book.INPUTS)


def number(value):
    if not isinstance(value, int | float):
        raise unfit(f"{value!r} is no number")
    return value


def handle(value):
    if not isinstance(value, book.Extension) or value.code != ENTRY:
        raise unfit(f"{value!r} is no entry")
    return value


def add_up(context, given):
    """Return the sum of the float64 that an entry shows."""
    descriptor = context.entry(given)
    view = descriptor.get("view")
    if view is None or len(view["shape"]) == 1:
        return float(sum(book.read_f8(descriptor)))
    with open("/dev/shm/" + descriptor["segment"], "rb") as file:
        data = file.read()

    def part(offset, shape, strides):
        if not shape:
            return struct.unpack_from("<d", data, offset)[0]
        return sum(part(offset + strides[0] * i, shape[1:], strides[1:]) for i in range(shape[0]))

    return part(view["offset"], view["shape"], view["strides"])


def nothing(context):
    return None


def echo(context, value):
    return value


def double(context, item):
    return 2 * number(item)


def domain(context, value):
    found = book.unpack(context.state["domain"][value])
    if isinstance(found, book.Extension) and found.code == OPAQUE:
        raise book.TaskError("domain", f"it is {found.data.decode()}")
    return found


def entries(context):
    return sorted(context.state["entries"])


def pid(context):
    return os.getpid()


def threads(context):
    return [int(os.environ["OMP_NUM_THREADS"])] * 2


def sum_(context, column):
    return add_up(context, column)


def sum_of(context, array):
    return add_up(context, handle(array))


def same(context, array):
    return handle(array)


def squares(context, count):
    output = book.Output(context, count)
    for n in range(count):
        output.items[n] = n * n
    return output


def forgets(context, count):
    book.Output(context, count // 8)


def fail(context, message):
    raise book.TaskError("Failed", message)


def panic(context, message):
    raise AssertionError(message)


def panic_in_parallel(context, message):
    from concurrent.futures import ThreadPoolExecutor  # noqa: PLC0415 - others start without it

    def check(n):
        assert n != 50, message

    with ThreadPoolExecutor(2) as pool:
        list(pool.map(check, range(100)))


def unsendable(context):
    return object()


def kill(context):
    os.kill(os.getpid(), signal.SIGKILL)


def exit_(context, code):
    os._exit(code)


def abort(context):
    os.abort()


def sleep(context, seconds, polite):
    until = time.monotonic() + number(seconds)
    while time.monotonic() < until:
        time.sleep(0.001)
        if polite:
            context.check_stopped()


def log(context, message):
    for level in (10, 20, 30, 40):
        context.tell(book.LOG, (level,), message)


def progress(context, count):
    for done in range(1, count + 1):
        context.tell(book.PROGRESS, (done, count), "counting")
    context.tell(book.PROGRESS, (count, 0), "")
    return count


def by_name(function):
    """Return `function` as it is called by the worker: with the context alone."""
    code = function.__code__
    names = set(code.co_varnames[1 : code.co_argcount])

    def run(context):
        if set(context.inputs) != names:
            raise unfit(f"it takes {names}, not {set(context.inputs)}")
        return function(context, **context.inputs)

    return run


FUNCTIONS = (
    nothing,
    echo,
    double,
    domain,
    entries,
    pid,
    threads,
    sum_,
    sum_of,
    same,
    squares,
    forgets,
    fail,
    panic,
    panic_in_parallel,
    unsendable,
    kill,
    exit_,
    abort,
    sleep,
    log,
    progress,
)

if __name__ == "__main__":
    book.TASKS = {f.__name__.removesuffix("_"): by_name(f) for f in FUNCTIONS}
    book.main()
