"""docs/interop.md, measured: what other libraries see in place, and what they copy.

``THEUS_WRITE_TABLES=1`` writes the tables anew; without it the tests compare.
"""

import os
from decimal import Decimal
from pathlib import Path

import duckdb
import nanoarrow
import numpy as np
import pandas as pd
import polars as pl
import pyarrow as pa
import pytest

import theus
from memory import peak_of
from theus import TheusEngine

PAGE = Path(__file__).resolve().parent.parent.parent / "docs" / "interop.md"
ROWS = 1_000_000
NUMBERS = np.arange(ROWS)
HIDDEN = NUMBERS % 10 == 0
WORDS = pa.array(NUMBERS.astype("U7")).cast(pa.string())


def columns():
    return {
        "int64": pa.array(NUMBERS),
        "int64, nulls": pa.array(NUMBERS, mask=HIDDEN),
        "double": pa.array(NUMBERS.astype(float)),
        "bool": pa.array(NUMBERS % 2 == 0),
        "date32": pa.array(NUMBERS % 1000).cast(pa.int32()).cast(pa.date32()),
        "timestamp[us]": pa.array(NUMBERS).cast(pa.timestamp("us")),
        "decimal128": pa.array([Decimal(1), Decimal(2)] * (ROWS // 2), pa.decimal128(20, 2)),
        "string": WORDS,
        "large_string": WORDS.cast(pa.large_string()),
        "string_view": WORDS.cast(pa.string_view()),
        "dictionary": WORDS.take(pa.array(NUMBERS % 100)).dictionary_encode(),
        "list": pa.ListArray.from_arrays(pa.array(np.arange(ROWS + 1), pa.int32()), NUMBERS),
        "struct": pa.StructArray.from_arrays([pa.array(NUMBERS), WORDS], ["n", "s"]),
    }


def share(places):
    """What share of these bytes lies in a segment."""
    sizes = [(nbytes, theus._theus.locate(at, nbytes) is not None) for at, nbytes in places]
    total = sum(nbytes for nbytes, _ in sizes)
    return sum(nbytes for nbytes, inside in sizes if inside) / total if total else 1.0


def arrow_places(array):
    chunks = array.chunks if isinstance(array, pa.ChunkedArray) else [array]
    for chunk in chunks:
        parts = [chunk, chunk.dictionary] if pa.types.is_dictionary(chunk.type) else [chunk]
        yield from ((b.address, b.size) for part in parts for b in part.buffers() if b and b.size)


def numpy_place(array):
    return [(array.__array_interface__["data"][0], array.nbytes)]


def word(part):
    return "in place" if part > 0.99 else "copy" if part < 0.01 else f"{part:.0%} in place"


def in_pyarrow(engine, table):
    return word(share(arrow_places(table.column("x"))))


def in_pandas_arrow(engine, table):
    return word(share(arrow_places(engine.heavy.pandas("t")["x"].array.__arrow_array__())))


def in_pandas_numpy(engine, table):
    values = table.to_pandas()["x"].array
    if hasattr(values, "__arrow_array__") and not isinstance(values, pd.arrays.NumpyExtensionArray):
        return word(share(arrow_places(pa.chunked_array(values.__arrow_array__()))))
    return word(share(numpy_place(np.asarray(values))))


def in_numpy(engine, table):
    try:
        return word(share(numpy_place(table.column("x").chunk(0).to_numpy(zero_copy_only=True))))
    except pa.ArrowInvalid:
        return "refused"


def in_polars(engine, table):
    series = engine.heavy.polars("t")["x"]
    return word(share(arrow_places(series.to_arrow(compat_level=pl.CompatLevel.newest()))))


def in_nanoarrow(engine, table):
    array = nanoarrow.c_array(table.column("x").chunk(0))

    def places(view):
        for number in range(view.n_buffers):
            buffer = view.buffer(number)
            if buffer.size_bytes:
                yield buffer._addr(), buffer.size_bytes
        for child in view.children:
            yield from places(child)

    return word(share(places(array.view())))


def in_duckdb(engine, table):
    connection = duckdb.connect(config={"threads": 1})
    connection.register("t", table)
    query = "select count(*) from t where x is not null"
    rows = ROWS - table.column("x").null_count
    assert connection.sql(query).fetchall() == [(rows,)]  # what it loads once is loaded
    taken = peak_of(lambda: connection.sql(query).fetchall())
    connection.close()
    return "in place" if taken < table.nbytes / 4 else "copy"


def in_rust(engine, table):
    """arrow-rs looks at every value when a path is opened without trust."""
    path = engine.heavy.path("t")
    taken = peak_of(lambda: theus._theus.open_segment(path).validate())
    return "in place" if taken < table.nbytes / 4 else "copy"


TARGETS = [
    in_pyarrow,
    in_pandas_arrow,
    in_pandas_numpy,
    in_numpy,
    in_polars,
    in_duckdb,
    in_nanoarrow,
    in_rust,
]


def sources():
    yield "pyarrow", pa.table({"n": NUMBERS, "s": WORDS})
    yield (
        "pyarrow, dictionaries that differ",
        pa.table(
            {"d": pa.chunked_array([pa.array(list(t)).dictionary_encode() for t in ("ab", "bc")])}
        ),
    )
    yield "pandas, numpy numbers", pd.DataFrame({"n": NUMBERS, "f": NUMBERS / 2})
    yield "pandas, numpy numbers with gaps", pd.DataFrame({"f": np.where(HIDDEN, np.nan, NUMBERS)})
    yield (
        "pandas, Arrow types",
        pa.table({"n": NUMBERS, "s": WORDS}).to_pandas(types_mapper=pd.ArrowDtype),
    )
    yield "pandas, objects", pd.DataFrame({"s": pd.Series(["a", "bc", None] * 1000, dtype=object)})
    yield "Polars", pl.DataFrame({"n": NUMBERS, "s": WORDS.to_numpy(zero_copy_only=False)})
    yield "DuckDB relation", duckdb.sql("select range as n, range::varchar as s from range(100000)")
    yield "nanoarrow", nanoarrow.Array(range(1000), nanoarrow.int64())
    yield "numpy", NUMBERS
    yield "numpy, strided", NUMBERS[::2]


def compare(mark, lines):
    table = "\n".join(lines)
    text = PAGE.read_text()
    start = text.index("|\n", text.index("|---", text.index(f"<!-- {mark} -->"))) + 2
    end = text.index("\n\n", start - 1)
    if os.environ.get("THEUS_WRITE_TABLES"):
        PAGE.write_text(text[:start] + table + text[end:])
    else:
        assert text[start:end] == table


@pytest.mark.timeout(120)
def test_what_others_see_in_place():
    lines = []
    with TheusEngine(workers=1) as engine:
        for name, array in columns().items():
            table = engine.heavy.put("t", pa.table({"x": array}), views=True)
            found = [target(engine, table) for target in TARGETS]
            lines.append(f"| {name} | {' | '.join(found)} |")
            del table
    compare("out", lines)


def test_what_sources_cost():
    lines = []
    with TheusEngine(workers=1) as engine:
        for name, source in sources():
            with theus.zero_copy() as copies:
                engine.heavy.put("t", source)
            extra = [copy.reason for copy in copies if copy.reason != "it was put"]
            lines.append(f"| {name} | {'; '.join(dict.fromkeys(extra)) or 'none'} |")
    compare("in", lines)
