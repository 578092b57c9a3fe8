"""The figures of this very machine, for ``theus bench``: Theus, and what nobody can do without.

The benches of the repository hold the same figures against other libraries.
"""

from __future__ import annotations

import asyncio
import mmap
import os
import pickle
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Generator, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np

from theus.cli.leftovers import SHARED_MEMORY
from theus.engine.engine import TheusEngine
from theus.errors import CorruptSegmentError, HeavyZoneFullError
from theus.tasks.contract import process

__all__ = ["DEFAULT_BYTES", "SMALLEST_BYTES", "Figure", "measure", "render"]

DEFAULT_BYTES = 256 << 20
SMALLEST_BYTES = 1 << 20

_ROUND_TRIPS = 1000
_IN_FLIGHT = 10_000
_ENGINES = 3
_REPEATS = 5
_ATTACHED = 9
# The first of several find everybody asleep.
_WARMING = 5
_BAR = 30
_ECHO = """
import pickle, socket, sys
end = socket.socket(fileno=int(sys.argv[1]))
while data := end.recv(4096):
    end.sendall(pickle.dumps(pickle.loads(data), 5))
"""


@dataclass(frozen=True)
class Figure:
    """What some samples say.

    Attributes
    ----------
    key : str
        What was measured; that of a floor ends in ``-floor``.
    what : str
        The same for people.
    median_s, best_s, p99_s : float
        Seconds; of fewer than a hundred samples, ``p99_s`` is the worst.
    samples : int
        How many there were.
    amount : int
        How many bytes or tasks those seconds were for; 1 if it is the time itself that counts.
    unit : str
        ``s``, ``B`` or ``tasks``: what `amount` counts.
    """

    key: str
    what: str
    median_s: float
    best_s: float
    p99_s: float
    samples: int
    amount: int = 1
    unit: str = "s"

    @property
    def is_floor(self) -> bool:
        """Whether it is what the machine does without Theus."""
        return self.key.endswith("-floor")

    @property
    def shown(self) -> str:
        """The median as a time or a rate."""
        if self.unit == "B":
            return f"{self.amount / self.median_s / 1e9:.2f} GB/s"
        if self.unit == "tasks":
            return f"{self.amount / self.median_s:,.0f} /s"
        if self.median_s < 1e-3:  # noqa: PLR2004 - a millisecond
            return f"{self.median_s * 1e6:.1f} us"
        return f"{self.median_s * 1e3:.1f} ms"


def measure(size_bytes: int = DEFAULT_BYTES) -> Iterator[Figure]:
    """Measure what Theus does on this machine, and what the machine does without it.

    Parameters
    ----------
    size_bytes : int, default 256 MiB
        How large the arrays are that are put, attached and summed. Two of them are in shared
        memory at a time, and one outside.

    Yields
    ------
    Figure
        One after the other, as they are measured; all within seconds.

    Raises
    ------
    ValueError
        If `size_bytes` is below 1 MiB.
    HeavyZoneFullError
        If the machine, or shared memory, has no space for the arrays.
    """
    if size_bytes < SMALLEST_BYTES:
        msg = f"an array of {size_bytes} bytes is too small to measure: give 1 MiB or more"
        raise ValueError(msg)
    free = _available_bytes()
    if 3 * size_bytes > free:
        msg = (
            f"arrays of {size_bytes:,} bytes need three times as much memory, and {free:,} bytes "
            "are free: measure smaller ones (theus bench --size 64M)"
        )
        raise HeavyZoneFullError(msg)
    with TheusEngine() as engine:
        yield from _dispatch(engine)
    data = np.ones(size_bytes // 8)
    yield from _put(data)
    with TheusEngine(workers=1) as engine:
        yield from _attach(engine, data)
    with TheusEngine() as engine:
        yield from _sum(engine, data)


def render(figures: list[Figure]) -> str:
    """Return a table with a bar for each figure, scaled to the longest of its own kind."""
    wide = max(len(figure.what) for figure in figures) + 2
    kinds: dict[str, list[float]] = {}
    for figure in figures:
        kinds.setdefault(_kind(figure), []).append(figure.median_s)
    lines = [f"{'':{wide}}  {'MEDIAN':>11}  TIME, SHORTER IS BETTER"]
    for figure in figures:
        name = f"  {figure.what}" if figure.is_floor else figure.what
        compared = kinds[_kind(figure)]
        length = max(1, round(_BAR * figure.median_s / max(compared)))
        bar = ("░" if figure.is_floor else "█") * length if len(compared) > 1 else ""
        lines.append(f"{name:{wide}}  {figure.shown:>11}  {bar}".rstrip())
    return "\n".join(lines)


def _kind(figure: Figure) -> str:
    return figure.key.partition("-")[0]


def _figure(key: str, what: str, samples: list[float], amount: int = 1, unit: str = "s") -> Figure:
    ordered = sorted(samples)
    p99 = ordered[min(len(ordered) - 1, round(0.99 * len(ordered)))]
    median = statistics.median(ordered)
    return Figure(key, what, median, ordered[0], p99, len(ordered), amount, unit)


def _timed(work: Callable[[], object]) -> float:
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


# --- tasks ---


@process(parallel=True)
def _nothing(_: Any) -> None:
    """Do nothing."""


@process(parallel=True)
def _attach_s(ctx: Any) -> float:
    """Return the seconds until the array is there."""
    return _timed(lambda: ctx.heavy["data"])


@process(parallel=True)
def _part_sum(ctx: Any, item: tuple[int, int]) -> float:
    start, stop = item
    return float(ctx.heavy["data"][start:stop].sum())


# --- what is measured ---


def _dispatch(engine: TheusEngine) -> Iterator[Figure]:
    def in_flight() -> None:
        for future in [engine.submit(_nothing) for _ in range(_IN_FLIGHT)]:
            future.result()

    in_flight()  # starts the workers
    yield _figure("no-op", "a task that does nothing", asyncio.run(_executed(engine)))
    with _round_trip() as trip:
        samples = [_timed(trip) for _ in range(_ROUND_TRIPS + _WARMING)][_WARMING:]
    yield _figure("no-op-floor", "a pickle over a socket and back", samples)
    samples = [_timed(in_flight) for _ in range(_REPEATS)]
    yield _figure("in-flight", f"{_IN_FLIGHT:,} of them in flight", samples, _IN_FLIGHT, "tasks")


async def _executed(engine: TheusEngine) -> list[float]:
    samples: list[float] = []
    for _ in range(_ROUND_TRIPS + _WARMING):
        start = time.perf_counter()
        await engine.execute(_nothing)
        samples.append(time.perf_counter() - start)
    return samples[_WARMING:]


@contextmanager
def _round_trip() -> Generator[Callable[[], object]]:
    """Give a function that sends a pickle to another process and has it back."""
    ours, theirs = socket.socketpair()
    command = [sys.executable, "-S", "-c", _ECHO, str(theirs.fileno())]
    message = ("nothing", 1)

    def trip() -> object:
        ours.sendall(pickle.dumps(message, 5))
        return pickle.loads(ours.recv(4096))

    with subprocess.Popen(command, pass_fds=[theirs.fileno()]) as child, ours:  # noqa: S603 - ours
        theirs.close()
        try:
            yield trip
        finally:
            ours.close()
            child.wait()


def _put(data: np.ndarray[Any, Any]) -> Iterator[Figure]:
    first: list[float] = []
    again: list[float] = []
    for _ in range(_ENGINES):
        with TheusEngine(workers=1) as engine:
            # The second is written while the first is still seen; only then is there old memory.
            all_of_them = [
                _timed(lambda: engine.heavy.put("data", data)) for _ in range(2 + _REPEATS)
            ]
        first.append(all_of_them[0])
        again += all_of_them[2:]
    much = data.nbytes, "B"
    yield _figure("put-first", "put an array, first", first, *much)
    fresh = [_written_s(data) for _ in range(_ENGINES)]
    yield _figure("put-first-floor", "write(2) into fresh pages", fresh, *much)
    yield _figure("put-repeat", "put an array, again", again, *much)
    with _shared_file() as file:
        os.truncate(file, data.nbytes)
        mapping = mmap.mmap(file, data.nbytes)
        target = np.frombuffer(mapping, data.dtype)
        copied = [_timed(lambda: np.copyto(target, data)) for _ in range(1 + _REPEATS)]
    # The first made the pages.
    yield _figure("put-repeat-floor", "copy into warm pages, 1 thread", copied[1:], *much)


def _available_bytes() -> int:
    """Return what the kernel could give: free memory, and what it caches."""
    for line in Path("/proc/meminfo").read_text().splitlines():
        if line.startswith("MemAvailable:"):
            return int(line.split()[1]) * 1024
    return sys.maxsize


@contextmanager
def _shared_file() -> Generator[int]:
    """Give the descriptor of a file in shared memory that nobody else can find."""
    with tempfile.TemporaryFile(dir=SHARED_MEMORY) as file:
        yield file.fileno()


def _written_s(data: np.ndarray[Any, Any]) -> float:
    """Return the seconds that writing into a new file takes."""
    rest = data.view(np.uint8).data
    with _shared_file() as file:
        start = time.perf_counter()
        place = 0
        while place < len(rest):
            place += os.pwrite(file, rest[place:], place)
        return time.perf_counter() - start


def _attach(engine: TheusEngine, data: np.ndarray[Any, Any]) -> Iterator[Figure]:
    cold: list[float] = []
    warm: list[float] = []
    for _ in range(1 + _ATTACHED):
        engine.heavy.put("data", data)
        cold.append(engine.submit(_attach_s).result())
        warm += [engine.submit(_attach_s).result() for _ in range(_REPEATS)]
    # The first of all imports numpy.
    yield _figure("attach-cold", "a worker sees a new array", cold[1:])
    yield _figure("attach-warm", "a later task sees it again", warm)
    path = engine.heavy.path("data")
    mapped = [_timed(lambda: _map(path)) for _ in range(_ATTACHED)]
    yield _figure("attach-cold-floor", "open and mmap", mapped)


def _map(path: str) -> mmap.mmap:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        return mmap.mmap(descriptor, 0, prot=mmap.PROT_READ)
    finally:
        os.close(descriptor)


def _sum(engine: TheusEngine, data: np.ndarray[Any, Any]) -> Iterator[Figure]:
    engine.heavy.put("data", data)
    edges = [len(data) * part // engine.workers for part in range(engine.workers + 1)]
    parts = list(pairwise(edges))

    def summed() -> None:
        if sum(engine.map(_part_sum, parts)) != len(data):
            msg = "the workers saw something else than what was put"
            raise CorruptSegmentError(msg)

    for _ in range(_WARMING):  # each worker has seen the whole array then
        summed()
    samples = [_timed(summed) for _ in range(_REPEATS)]
    yield _figure("sum", f"sum by {engine.workers} workers", samples, data.nbytes, "B")
    alone = [_timed(data.sum) for _ in range(_REPEATS)]
    yield _figure("sum-floor", "sum in this process", alone, data.nbytes, "B")
