"""docs/what-travels.md, measured: how values go, what crosses the socket, how often it is copied.

``THEUS_WRITE_TABLES=1`` writes the table anew; without it the test compares.
"""

import gc
import os
import re
import tracemalloc
from pathlib import Path

import numpy as np
import pandas as pd
import polars as pl
import pyarrow as pa
import pytest
import scipy.sparse

from memory import anonymous
from theus import TheusEngine
from theus.serialize.pickler import dumps
from theus.serialize.unpickler import loads

PAGE = Path(__file__).resolve().parent.parent.parent / "docs" / "what-travels.md"
SIZES = {"1 KiB": 1 << 10, "1 MiB": 1 << 20, "64 MiB": 64 << 20}


def floats(size):
    return np.random.default_rng(1).random(size // 8)


def words(size):
    return [f"{number:015d}" for number in range(size // 16)]


def objects(engine, size):
    entry = engine.heavy.put(f"entry {size}", floats(size))
    columns = {"a": floats(size // 2), "b": floats(size // 2), "w": words(size)}
    table = engine.heavy.put(f"table {size}", pa.table(columns))
    return {
        "heavy table": table,
        "heavy table, slice": table.slice(5, size // 64),
        "heavy table, two columns": table.select(["w", "a"]),
        "heavy table, one column": table.column("b"),
        "heavy table, as a pandas frame": engine.heavy.pandas(f"table {size}"),
        "heavy table, as a Polars frame of numbers": pl.from_arrow(table.select(["a", "b"])),
        "heavy entry": entry,
        "heavy entry, slice": entry[10:-10],
        "heavy entry, every other": entry[::2],
        "ndarray": floats(size),
        "ndarray, Fortran": np.asfortranarray(floats(size).reshape(8, -1)),
        "ndarray, strided": floats(2 * size)[::2],
        "ndarray, datetime64": np.arange(size // 8).astype("datetime64[s]"),
        "ndarray, structured": floats(size).view([("a", "f4"), ("b", "i4")]),
        "masked array": np.ma.masked_array(floats(size), np.zeros(size // 8, bool)),
        "bytes": floats(size).tobytes(),
        "str": "x" * size,
        "pandas, numbers": pd.DataFrame(floats(size).reshape(-1, 4), columns=list("abcd")),
        "pandas, Arrow numbers": pd.DataFrame({"a": floats(size)}, dtype="double[pyarrow]"),
        "pyarrow Table": pa.table({"a": floats(size)}),
        "pyarrow Table, strings": pa.table({"a": words(size)}),
        "pyarrow Table, a tenth": pa.table({"a": floats(10 * size)}).slice(size // 8, size // 8),
        "Polars, numbers": pl.DataFrame({"a": floats(size)}),
        "Polars, strings": pl.DataFrame({"a": words(size)}),
        "SciPy CSR": scipy.sparse.csr_array(floats(size).reshape(8, -1)),
    }


def peak():
    text = Path("/proc/self/status").read_text()
    return int(re.search(r"VmHWM:\s+(\d+)", text)[1]) << 10


def measured(action):
    """Return what `action` returns, and the most memory that it had for itself, native too."""
    gc.collect()
    pa.default_memory_pool().release_unused()  # or what is freed later hides what is taken
    Path("/proc/self/clear_refs").write_text("5")  # the peak begins anew
    before, before_peak = anonymous(), peak()
    tracemalloc.start()
    result = action()
    traced = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    return result, max(traced, anonymous() - before), max(traced, peak() - before_peak)


def row(engine, value, size):
    message, _, made = measured(lambda: dumps(value, engine._heavy.pin, label="value"))
    moved = 0 if message.parts is None else len(message.parts)
    back, kept, _ = measured(lambda: loads(message))
    del back
    route = "one segment" if moved else ("by handle" if message.pins else "inline")
    return {
        "route": route,
        "wire": len(message.data) if not moved else 16 + 8 * (1 + 2 * len(message.parts.parts)),
        "out": round((made + moved) / (moved or size)),
        "in": round(kept / (moved or size)),
    }


def show(kind, rows):
    ways = [rows[size]["route"] for size in SIZES]
    crossing = []
    for size in SIZES:
        count = rows[size]["wire"]
        limit = next(limit for limit in (256, 1024, 2048, 4096, 1 << 16) if count <= limit)
        crossing.append(f"{limit}")
    last = rows["64 MiB"]
    return (
        f"| {kind} | {' / '.join(ways)} | {' / '.join(crossing)} | {last['out']} | {last['in']} |"
    )


@pytest.mark.timeout(120)
def test_the_table_is_what_is_measured():
    with TheusEngine(workers=1) as engine:
        values = {name: objects(engine, size) for name, size in SIZES.items()}
        lines = []
        for kind in list(values["1 KiB"]):
            rows = {name: row(engine, values[name].pop(kind), SIZES[name]) for name in SIZES}
            lines.append(show(kind, rows))
        values.clear()
    table = "\n".join(lines)
    text = PAGE.read_text()
    head, rule = "<!-- measured -->\n", "|---|---|---|---|---|\n"
    start = text.index(rule, text.index(head)) + len(rule)
    end = text.index("\n\n", start)
    if os.environ.get("THEUS_WRITE_TABLES"):
        PAGE.write_text(text[:start] + table + text[end:])
    else:
        assert text[start:end] == table
