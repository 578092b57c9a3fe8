"""What the benches run in workers; importable, as the tasks of a program are. Imports no peer.

A *look* is a task over data that lies in shared memory: it is called with ``view``, which attaches
the data and returns it, in the way of the peer that runs it.
"""

import os
import time

_held = []


def nothing():
    return None


def size_of(value):
    return len(value)


def echo(value):
    return value


def total(values):
    return float(values.sum())


def look_with(attach, handle, function, arguments):
    return function(lambda: attach(handle), *arguments)


def attach_s(view):
    """Return the seconds that attaching takes, and how long it is, for the caller to check."""
    start = time.perf_counter()
    data = view()
    seconds = time.perf_counter() - start
    return seconds, len(data)


def part_sum(view, part, parts):
    values = view()
    start, stop = (len(values) * number // parts for number in (part, part + 1))
    return float(values[start:stop].sum())


def hold(view):
    """Read all of it and keep it; stay so long that every worker gets one of these tasks."""
    data = view()
    _held.append(data)
    checked = float(data.sum())
    time.sleep(1)
    return os.getpid(), checked


def whoami(_=None):
    """Stay so long that every worker gets one of these tasks; say which did."""
    time.sleep(0.3)
    return os.getpid()
