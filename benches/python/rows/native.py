"""Tasks in Rust: what one costs that does nothing, and TPC-H query 1 against engines of queries.

Query 1 is answered in memory, over columns that lie there as Arrow has them: by as many workers in Rust
as cores, each with its part of the rows; by DuckDB and by Polars with as many threads, in one process.
DuckDB is measured over its own table, too, into which it copied all beforehand. Polars rounds products of
decimals, so it sums floats, which it is given; its sums are right to nine digits.
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
_COLUMNS = [
    f"l_{name}"
    for name in ("quantity extendedprice discount tax returnflag linestatus shipdate").split()
]


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


def _no_op(scale):
    row = Row("native-no-op", "no-op of a task in Rust, one at a time", US)
    repeats = scale.of(300, 10)

    def samples(call):
        return [timed(call) for _ in range(repeats + _WARMING)][_WARMING:]

    @contextmanager
    def ours():
        with theus.TheusEngine(workers=1) as engine, asyncio.Runner() as runner:
            engine.native_worker(_program("THEUS_CONFORMANCE"), count=1)
            rust, python = theus.native("nothing"), _nothing

            async def awaited(task):
                found = []
                for _ in range(repeats + _WARMING):
                    found.append(await _timed(engine, task))
                return found[_WARMING:]

            yield lambda: {
                row.key: runner.run(awaited(rust)),
                (row.key, f"{OURS}, a Python worker"): runner.run(awaited(python)),
            }

    @contextmanager
    def floor():
        with floors.ping_pong() as trip:
            yield lambda: {row.key: samples(trip)}

    who = [contestant(OURS, ours), Contestant("floor: blocking socket pair", floor)]
    return Group("native no-op", [row], who, scale.rounds(10))


@theus.process(parallel=True)
def _nothing(_):
    return None


async def _timed(engine, task):
    start = time.perf_counter()
    await engine.execute(task)
    return time.perf_counter() - start


# --- query 1 ---


def lineitem(factor):
    """Return lineitem of TPC-H, of six million rows for each unit of `factor`."""
    import pyarrow.parquet as pq

    place = ROOT / "target" / f"tpch-{factor}"
    file = place / "lineitem.parquet"
    if not file.exists():
        tool = Path(sysconfig.get_path("scripts")) / "tpchgen-cli"
        command = [tool, "parquet", f"--scale-factor={factor}", "--tables=lineitem"]
        subprocess.run([*command, f"--output-dir={place}"], check=True, capture_output=True)
    return pq.read_table(file, columns=_COLUMNS)


def _query(scale):
    import query1

    factor = scale.of(1, 0.01)
    row = Row("native-query1", f"TPC-H query 1, scale factor {factor}", MS)
    table = lineitem(factor)
    expected = None

    def checked(groups):
        nonlocal expected
        expected = expected or groups
        assert groups.keys() == expected.keys()
        for key, sums in groups.items():
            for found, known in zip(sums, expected[key], strict=True):
                assert abs(found / known - 1) < Decimal("1e-9"), (key, found, known)

    def turn(ask, key=row.key):
        def take():
            checked(ask())
            return {key: [timed(ask) for _ in range(3)]}

        return take

    @contextmanager
    def ours():
        with theus.TheusEngine(workers=1) as engine:
            engine.native_worker(_program("THEUS_NATIVE_WORKER"), count=CORES)
            entry = engine.heavy.put("lineitem", table)
            edges = [len(table) * part // CORES for part in range(CORES + 1)]
            parts = [entry.slice(a, b - a) for a, b in itertools.pairwise(edges)]

            def ask():
                futures = [engine.submit(query1.RUST, lineitem=part) for part in parts]
                return query1.total(future.result() for future in futures)

            yield turn(ask)

    @contextmanager
    def duckdb():
        import duckdb

        with duckdb.connect(config={"threads": CORES}) as connection:
            connection.register("lineitem", table)
            connection.execute("create table stored as from lineitem")

            def ask(source):
                rows = connection.sql(query1.QUERY.replace("from lineitem", f"from {source}"))
                return query1.total([rows.fetchall()])

            stored = turn(lambda: ask("stored"), (row.key, "DuckDB, its own table"))
            arrow = turn(lambda: ask("lineitem"))
            yield lambda: {**arrow(), **stored()}

    @contextmanager
    def polars():
        os.environ["POLARS_MAX_THREADS"] = str(CORES)
        import polars as pl

        frame = pl.from_arrow(table).with_columns(pl.col(pl.Decimal).cast(pl.Float64)).lazy()
        price, discount, tax = (pl.col(f"l_{n}") for n in ("extendedprice", "discount", "tax"))
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
        yield turn(lambda: query1.total([query.collect().rows()]))

    who = [
        contestant(OURS, ours),
        contestant("DuckDB", duckdb),
        contestant("Polars, floats", polars),
    ]
    return Group("query 1", [row], who, scale.rounds(5))
