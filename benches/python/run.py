"""Theus beside its peers in one run: medians, and ratios against each peer.

``--smoke`` runs everything a few times, to see that it works; its figures mean nothing.
"""

import argparse
import asyncio
import pickle
import socket
import statistics
import time
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import Process
from multiprocessing.shared_memory import SharedMemory

import numpy as np
from rich.console import Console
from rich.table import Table

from tasks import echo, nothing, nothing_plain, part_sum
from theus import TheusEngine


def median_s(work, runs):
    samples = []
    for _ in range(runs):
        start = time.perf_counter()
        work()
        samples.append(time.perf_counter() - start)
    return statistics.median(samples)


def echo_forever(end):
    while data := end.recv(4096):
        end.sendall(data)


def floor_round_trip(runs):
    """Return the median of a pickle sent over a blocking socket pair and back."""
    ours, theirs = socket.socketpair()
    peer = Process(target=echo_forever, args=(theirs,), daemon=True)
    peer.start()

    def trip():
        ours.sendall(pickle.dumps(("nothing", 1), 5))
        pickle.loads(ours.recv(4096))

    median = median_s(trip, runs)
    ours.close()
    peer.kill()
    peer.join()
    return median


async def execute_round_trip(engine, runs):
    samples = []
    for _ in range(runs):
        start = time.perf_counter()
        await engine.execute(nothing)
        samples.append(time.perf_counter() - start)
    return statistics.median(samples)


def round_trips(engine, pool, runs):
    ours = asyncio.run(execute_round_trip(engine, runs))
    yield "no-op, p50", "theus execute", ours, ours
    pooled = median_s(lambda: pool.submit(nothing_plain).result(), runs)
    yield "", "ProcessPoolExecutor", pooled, ours
    yield "", "blocking socket pair + pickle", floor_round_trip(runs), ours


def in_flight(engine, pool, count):
    def ours():
        for future in [engine.submit(nothing) for _ in range(count)]:
            future.result()

    def theirs():
        for future in [pool.submit(nothing_plain) for _ in range(count)]:
            future.result()

    mine = median_s(ours, 3)
    yield f"{count} no-ops in flight", "theus submit", mine, mine
    yield "", "ProcessPoolExecutor", median_s(theirs, 3), mine


def puts(engine, size, runs):
    data = np.ones(size, np.uint8)

    def copy_into_shared_memory():
        block = SharedMemory(create=True, size=size)
        np.copyto(np.ndarray(size, np.uint8, block.buf), data)
        block.close()
        block.unlink()

    ours = median_s(lambda: engine.heavy.put("put", data), runs)
    yield f"put {size >> 20} MiB", "theus", ours, ours
    yield "", "shared_memory + copyto", median_s(copy_into_shared_memory, runs), ours


def sums(engine, pool, size, runs):
    data = np.ones(size // 8)
    engine.heavy.put("x", data)
    half = len(data) // 2
    ranges = [(0, half), (half, len(data))]
    ours = median_s(lambda: sum(engine.map(part_sum, ranges)), runs)
    yield f"sum of {size >> 20} MiB", "theus, 2 workers", ours, ours
    yield "", "one process", median_s(data.sum, runs), ours
    halves = [data[:half], data[half:]]
    pickled = median_s(lambda: sum(pool.map(np.sum, halves)), max(1, runs // 3))
    yield "", "ProcessPoolExecutor, pickled", pickled, ours


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--smoke", action="store_true")
    smoke = parser.parse_args().smoke
    table = Table("what", "who", "median", "against theus")
    with TheusEngine(workers=2) as engine, ProcessPoolExecutor(2) as pool:
        list(pool.map(abs, range(8)))
        list(engine.map(echo, range(8)))
        rows = [
            *round_trips(engine, pool, 50 if smoke else 3000),
            *in_flight(engine, pool, 100 if smoke else 10_000),
            *puts(engine, (1 if smoke else 256) << 20, 3 if smoke else 15),
            *sums(engine, pool, (8 if smoke else 1024) << 20, 3 if smoke else 15),
        ]
    for what, who, seconds, ours in rows:
        table.add_row(what, who, f"{seconds * 1e6:,.0f} us", f"{seconds / ours:.2f} x")
    Console().print(table)


if __name__ == "__main__":
    main()
