"""Tasks in Rust: what one costs that does nothing, and TPC-H query 1 against engines of queries.

Query 1 is answered in memory, over columns that lie there as Arrow has them: by as many workers in
Rust as cores, each with its part of the rows; by DuckDB and by Polars with as many threads, in one
process. DuckDB is measured over its own table, too, into which it copied all beforehand. Polars
rounds products of decimals, so it sums floats, which it is given; its sums are right to nine
digits.
"""

import asyncio
import itertools
import os
import subprocess
import sys
import sysconfig
import time
from contextlib import contextmanager
from decimal import Decimal
from pathlib import Path

import floors
import theus
from floors import timed
from rounds import OURS, Contestant, Group, Row
from rows import CORES, contestant
from samples import MS, US

ROOT = Path(__file__).resolve().parents[3]
sys.path.append(str(ROOT / "examples"))

_WARMING = 3
_REPEATS = 3
_COLUMNS = ["quantity", "extendedprice", "discount", "tax", "returnflag", "linestatus", "shipdate"]


def groups(scale):
    yield _no_op(scale)
    yield _query(scale)


def _program(variable):
    program = os.environ.get(variable)
    if program is None:
        msg = f"{variable} is not set: make bench builds the program and sets it"
        raise RuntimeError(msg)
    return program


# --- nothing ---


@theus.process(parallel=True)
def _nothing(_):
    return None


def _no_op(scale):
    row = Row("native-no-op", "no-op of a task in Rust, one at a time", US)
    repeats = scale.of(300, 10) + _WARMING

    async def timed_await(engine, task):
        start = time.perf_counter()
        await engine.execute(task)
        return time.perf_counter() - start

    async def awaited(engine, task):
        return [await timed_await(engine, task) for _ in range(repeats)][_WARMING:]

    @contextmanager
    def ours():
        with theus.TheusEngine(workers=1) as engine, asyncio.Runner() as runner:
            engine.native_worker(_program("THEUS_CONFORMANCE"), count=1)
            yield lambda: {
                row.key: runner.run(awaited(engine, theus.native("nothing"))),
                (row.key, f"{OURS}, a Python worker"): runner.run(awaited(engine, _nothing)),
            }

    @contextmanager
    def floor():
        with floors.ping_pong() as trip:
            yield lambda: {row.key: [timed(trip) for _ in range(repeats)][_WARMING:]}

    who = [contestant(OURS, ours), Contestant("floor: blocking socket pair", floor)]
    return Group("native no-op", [row], who, scale.rounds(10))


# --- query 1 ---


def _query(scale):
    factor = scale.of(1, 0.01)
    row = Row("native-query1", f"TPC-H query 1 by tasks in Rust, scale factor {factor}", MS)
    table = _lineitem(factor)
    known = {}

    def answered(ask):
        for key, sums in ask().items():
            for found, expected in zip(sums, known.setdefault(key, sums), strict=True):
                assert abs(found / expected - 1) < Decimal("1e-9"), (key, found, expected)
        return [timed(ask) for _ in range(_REPEATS)]

    def takes_part(name, start):
        @contextmanager
        def turn():
            with start(table) as asks:
                yield lambda: {
                    ((row.key, variant) if variant else row.key): answered(ask)
                    for variant, ask in asks.items()
                }

        return contestant(name, turn)

    who = [takes_part(OURS, _rust), takes_part("DuckDB", _duckdb)]
    who.append(takes_part("Polars, floats", _polars))
    return Group("query 1", [row], who, scale.rounds(5))


def _lineitem(factor):
    """Return lineitem of TPC-H, of six million rows for each unit of `factor`."""
    import pyarrow.parquet as pq

    place = ROOT / "target" / f"tpch-{factor}"
    file = place / "lineitem.parquet"
    if not file.exists():
        tool = Path(sysconfig.get_path("scripts")) / "tpchgen-cli"
        command = [tool, "parquet", f"--scale-factor={factor}", "--tables=lineitem"]
        subprocess.run([*command, f"--output-dir={place}"], check=True, capture_output=True)
    return pq.read_table(file, columns=[f"l_{name}" for name in _COLUMNS])


@contextmanager
def _rust(table):
    import query1

    with theus.TheusEngine(workers=1) as engine:
        engine.native_worker(_program("THEUS_NATIVE_WORKER"), count=CORES)
        entry = engine.heavy.put("lineitem", table)
        edges = [len(table) * part // CORES for part in range(CORES + 1)]
        parts = [entry.slice(a, b - a) for a, b in itertools.pairwise(edges)]

        def ask():
            futures = [engine.submit(query1.RUST, lineitem=part) for part in parts]
            return query1.total(future.result() for future in futures)

        yield {"": ask}


@contextmanager
def _duckdb(table):
    import duckdb
    import query1

    with duckdb.connect(config={"threads": CORES}) as connection:
        connection.register("lineitem", table)
        connection.execute("create table stored as from lineitem")
        stored = query1.QUERY.replace("from lineitem", "from stored")
        yield {
            "": lambda: query1.total([connection.sql(query1.QUERY).fetchall()]),
            "DuckDB, its own table": lambda: query1.total([connection.sql(stored).fetchall()]),
        }


@contextmanager
def _polars(table):
    os.environ["POLARS_MAX_THREADS"] = str(CORES)  # read when it is imported
    import polars as pl
    import query1

    frame = pl.from_arrow(table).with_columns(pl.col(pl.Decimal).cast(pl.Float64)).lazy()
    price, discount, tax = (pl.col(f"l_{name}") for name in ("extendedprice", "discount", "tax"))
    query = (
        frame.filter(pl.col("l_shipdate") <= pl.date(1998, 9, 2))
        .group_by("l_returnflag", "l_linestatus")
        .agg(
            pl.col("l_quantity").sum(),
            price.sum().alias("price"),
            (price * (1 - discount)).sum().alias("discounted"),
            (price * (1 - discount) * (1 + tax)).sum().alias("charged"),
            discount.sum().alias("discount"),
            pl.len(),
        )
    )
    yield {"": lambda: query1.total([query.collect().rows()])}
