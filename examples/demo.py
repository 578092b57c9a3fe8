"""The main job on real input, beside the same job with pickled arguments: ``make demo``."""

import asyncio
import os
import subprocess
import sys
import sysconfig
import time
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import numpy as np
import pyarrow.compute as pc
import query1
import tpch
from determinant import heavy_compute
from frames import add_total, add_total_in_worker, orders
from query6 import ANSWER, COLUMNS, load, part, part_of_pickled, ranges
from rich.console import Console

from theus import TheusEngine

DATA = Path(__file__).resolve().parent.parent / "data"
console = Console()
PARTS = 16


def det_of_pickled(matrix):
    np.linalg.det(matrix)
    return np.linalg.slogdet(matrix)


def show(seconds):
    return f"{seconds:.3f} s" if seconds >= 0.01 else f"{seconds * 1e6:.0f} us"


def timed(label, work):
    with console.status(label):
        start = time.perf_counter()
        result = work()
        seconds = time.perf_counter() - start
    console.print(f"  {label}: {show(seconds)}")
    return result, seconds


async def determinant(engine, pool):
    console.rule("Determinant of a 5000 x 5000 float32 matrix (100 MB)")
    arr = engine.heavy.alloc("matrix", shape=(5000, 5000), dtype=np.float32)
    arr[:] = np.random.default_rng(0).random((5000, 5000))
    engine.compare_and_swap(engine.state.version, heavy={"matrix": arr})
    start = time.perf_counter()
    result = await engine.execute(heavy_compute)
    seconds, threads = time.perf_counter() - start, max(1, os.cpu_count() // engine.workers)
    console.print(f"  theus, det and slogdet, {threads} BLAS thread(s): {show(seconds)}")
    sign, logabsdet = result["slogdet"]
    console.print(f"  Determinant: {result['det']} - float32 overflows past 3e38, so slogdet too:")
    console.print(f"  slogdet: {sign:+.0f} * exp({logabsdet:.2f})")
    plain = np.array(arr)
    label = "ProcessPoolExecutor, the same, pickled, all cores' BLAS threads"
    (sign2, log2), _ = timed(label, pool.submit(det_of_pickled, plain).result)
    if sign2 != sign or abs(log2 - logabsdet) > 1.0:
        sys.exit(f"the two disagree: {sign2} * exp({log2})")
    # What getting the matrix to the worker costs, without the arithmetic.
    engine.submit(shape_of).result()
    _, ours = timed("theus, only the way there", lambda: engine.submit(shape_of).result())
    _, theirs = timed(
        "ProcessPoolExecutor, only the way there", lambda: pool.submit(np.shape, plain).result()
    )
    console.print(f"  [bold]{theirs / ours:,.0f} times[/] faster to the worker\n")


def shape_of(ctx):
    return ctx.heavy["matrix"].shape


def make_data(name):
    """Generate a table of TPC-H at scale factor 1, unless it is there."""
    if not (DATA / f"{name}.parquet").exists():
        tool = Path(sysconfig.get_path("scripts")) / "tpchgen-cli"
        make = [tool, "parquet", "--scale-factor=1", f"--tables={name}", f"--output-dir={DATA}"]
        timed(f"making {name}", lambda: subprocess.run(make, check=True, capture_output=True))


def query6(engine, pool):
    console.rule("TPC-H query 6, scale factor 1: 6 million rows of lineitem")
    make_data("lineitem")
    columns, _ = timed("reading four columns", lambda: load(DATA / "lineitem.parquet"))
    timed("into the heavy zone", lambda: [engine.heavy.put(n, c) for n, c in columns.items()])
    pieces = ranges(len(columns[COLUMNS[0]]), PARTS)
    total, ours = timed(
        "theus, row ranges sent", lambda: sum(engine.map(part, pieces, progress=True))
    )
    chunks = [[columns[name][a:b] for name in COLUMNS] for a, b in pieces]
    theirs_total, theirs = timed(
        "ProcessPoolExecutor, pickled", lambda: sum(pool.map(part_of_pickled, chunks))
    )
    answer = total / 10_000
    console.print(f"  revenue {answer:.4f}, known answer {ANSWER:.4f}")
    console.print(f"  [bold]{theirs / ours:.1f} times[/] faster than with pickled arguments")
    if total != theirs_total or abs(answer - ANSWER) > 1e-4:
        sys.exit("query 6 is wrong")


def queries(engine, pool):
    console.rule("TPC-H queries by DuckDB in a worker, over lineitem and orders as Arrow tables")
    make_data("orders")
    loaded, _ = timed("reading lineitem and orders", lambda: tpch.load(DATA))
    for name, table in loaded.items():
        timed(f"{name} into the heavy zone", lambda n=name, t=table: engine.heavy.put(n, t))
    for name, query in tpch.QUERIES.items():
        rows, ours = timed(
            f"theus, {name}", lambda q=query: engine.submit(tpch.ask, query=q).result()
        )
        if rows != tpch.ANSWERS[name]:
            sys.exit(f"{name} is wrong: {rows}")
    label = f"ProcessPoolExecutor, {name}, pickled"
    rows, theirs = timed(label, lambda: pool.submit(tpch.ask_of_pickled, loaded, query).result())
    if rows != tpch.ANSWERS[name]:
        sys.exit(f"{name} is wrong there: {rows}")
    console.print(f"  [bold]{theirs / ours:.1f} times[/] faster than with pickled tables")
    expected = float(pc.sum(loaded["orders"]["o_totalprice"]).as_py())
    futures = [engine.submit(tpch.total_by_pandas), engine.submit(tpch.total_by_polars)]
    totals = {"pandas": futures[0], "Polars": futures[1]}
    totals = {reader: future.result() for reader, future in totals.items()}
    if program := os.environ.get("THEUS_AGGREGATE"):  # an example of the Rust crate
        totals["Rust"] = tpch.total_by_rust(program, engine.heavy.stats()["session"])
    if any(abs(total / expected - 1) > 1e-9 for total in totals.values()):
        sys.exit(f"the totals of orders differ: {totals}")
    paths = tuple(engine.heavy.path(name) for name in loaded)
    size = sum(map(os.path.getsize, paths))
    held = tpch.resident([os.getpid(), *engine.worker_pids], paths)
    console.print(
        f"  {', '.join(['DuckDB', *totals])} read the same bytes: {held / size:.2f} copies of "
        f"{size / 1e6:,.0f} MB in memory, {engine.workers} workers and this process together\n"
    )


def summary(engine):
    console.rule("TPC-H query 1, all of it, by halves of lineitem in two workers each")
    if program := os.environ.get("THEUS_NATIVE_WORKER"):
        engine.native_worker(program, count=2)
    lineitem = engine.heavy["lineitem"]
    middle = lineitem.num_rows // 2
    halves = lineitem.slice(0, middle), lineitem.slice(middle)
    ways = {"DuckDB": query1.by_duckdb, "numpy": query1.by_numpy, "Rust": query1.RUST}
    if program is None:
        del ways["Rust"]
    seconds = {}
    for way, task in ways.items():
        ask = lambda t=task: [engine.submit(t, lineitem=half) for half in halves]  # noqa: E731
        query1.total(future.result() for future in ask())  # once, for who has to load a library
        groups, seconds[way] = timed(
            f"theus, by {way}", lambda a=ask: query1.total(future.result() for future in a())
        )
        if query1.shown(groups) != query1.ANSWERS:
            sys.exit(f"query 1 is wrong by {way}: {query1.shown(groups)}")
    fastest = min(seconds, key=seconds.get)
    ratios = [f"{way} {s / seconds[fastest]:.1f} x" for way, s in seconds.items() if way != fastest]
    console.print(
        f"  the same answer, to the last digit; of {fastest}'s time: {', '.join(ratios)}\n"
    )


def frames(engine, pool):
    frame = orders()
    size = frame.memory_usage(index=False).sum() / 1e6
    console.rule(f"A plain pandas frame of {size:.0f} MB, changed in a worker and returned")
    send = lambda: engine.submit(add_total_in_worker, frame=frame).result()  # noqa: E731
    send()
    back, ours = timed("theus", send)
    theirs_back, theirs = timed(
        "ProcessPoolExecutor, pickled", lambda: pool.submit(add_total, frame).result()
    )
    if "total" in frame or not back.equals(theirs_back):
        sys.exit("the frames are wrong")
    console.print(f"  [bold]{theirs / ours:.1f} times[/] faster; the frame here is as it was\n")


async def main():
    async with TheusEngine() as engine:
        with ProcessPoolExecutor(engine.workers) as pool:
            list(pool.map(abs, range(engine.workers)))  # started beforehand, as ours are
            list(engine.map(lambda ctx, i: i, range(engine.workers)))
            await determinant(engine, pool)
            frames(engine, pool)
            query6(engine, pool)
            queries(engine, pool)
            summary(engine)


if __name__ == "__main__":
    asyncio.run(main())
