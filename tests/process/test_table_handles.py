"""Tables over a segment travel as columns and rows, or buffer by buffer, and as nothing else."""

import numpy as np
import pandas as pd
import polars as pl
import pyarrow as pa
import pyarrow.compute as pc
import pytest

import theus
from theus import TheusEngine

ROWS = 100_000
WIRE_LIMIT = 4096


@pytest.fixture(scope="module")
def zone():
    with TheusEngine(workers=1) as engine:
        words = [f"word {number % 97}" for number in range(ROWS)]
        chunks = [ROWS // 4, ROWS // 2, ROWS // 4]
        table = pa.table(
            {
                "n": pa.array(range(ROWS), mask=np.arange(ROWS) % 5 == 0),
                "x": np.random.default_rng(0).random(ROWS),
                "w": words,
                "d": pa.array(words).dictionary_encode(),
                "b": pa.array(np.arange(ROWS) % 3 == 0),
                "l": pa.array([[number, 1] for number in range(ROWS)]),
            },
            metadata={"who": "a test"},
        )
        ends = np.cumsum(chunks)
        pieces = [table.slice(end - size, size) for end, size in zip(ends, chunks, strict=True)]
        engine.heavy.put("table", pa.concat_tables(pieces))
        engine.submit(echo, value=0).result(30)
        yield engine


@pytest.fixture(scope="module", autouse=True)
def nothing_left():
    """The module's engine lives longer than a test."""


def echo(ctx, value):
    return value


def traffic(engine):
    return np.array(engine._dispatcher.traffic)


def places(table):
    for column in table.columns:
        for chunk in column.chunks:
            yield from ((b.address, b.size) for b in chunk.buffers() if b is not None and b.size)


def all_in_a_segment(table):
    return all(theus._theus.locate(*place) is not None for place in places(table))


VIEWS = {
    "all": lambda t: t,
    "a slice": lambda t: t.slice(10, 500),
    "over chunks": lambda t: t.slice(ROWS // 4 - 10, ROWS // 2 + 20),
    "no rows": lambda t: t.slice(7, 0),
    "two columns": lambda t: t.select(["w", "n"]),
    "flat columns, sliced": lambda t: t.select(["d", "b", "x"]).slice(99_000),
    "a column twice": lambda t: t.select(["n", "n"]),
    "other names": lambda t: t.select(["n", "x"]).rename_columns(["a", "b"]),
    "other metadata": lambda t: t.select(["x"]).replace_schema_metadata({"who": "else"}),
    "columns of different rows": lambda t: pa.table(
        {"a": t["n"].slice(0, 50), "b": t["n"].slice(50, 50)}
    ),
    "chunks in another order": lambda t: pa.table({"n": pa.chunked_array(t["n"].chunks[::-1])}),
    "nested": lambda t: t.select(["l"]).slice(3, 1000),
}


@pytest.mark.parametrize("view", VIEWS)
def test_a_view_of_a_table_travels_without_its_bytes(zone, view):
    value = VIEWS[view](zone.heavy["table"])
    before = traffic(zone)
    back = zone.submit(echo, value=value).result(30)
    assert max(traffic(zone) - before) < WIRE_LIMIT
    back.validate(full=True)
    assert back.equals(value, check_metadata=True)
    assert all_in_a_segment(back)


def test_what_only_looks_like_a_part_is_not_taken_for_one(zone):
    table = zone.heavy["table"]
    first = table["d"].chunk(0)
    renamed = pa.DictionaryArray.from_arrays(first.indices, [f"v{n}" for n in range(97)])
    column = table["n"].chunk(0)
    seen = pa.Array.from_buffers(column.type, len(column), [None, column.buffers()[1]])
    made = {
        "another dictionary": pa.table({"d": renamed}),
        "no bitmap": pa.table({"n": seen}),
        "another type": pa.table({"n": column.view(pa.timestamp("us"))}),
        "computed": pa.table({"x": pc.add(table["x"], 1)}),
        "a union of its numbers": pa.table(
            {"u": pa.UnionArray.from_sparse(pa.array([0] * len(seen), pa.int8()), [seen])}
        ),
    }
    for name, value in made.items():
        back = zone.submit(echo, value=value).result(30)
        assert back.equals(value), name
        assert back.schema.equals(value.schema), name


def test_frames_and_buffers_over_a_table_travel_by_handle(zone):
    table = zone.heavy["table"].select(["n", "x", "w"])
    frame = table.to_pandas(types_mapper=pd.ArrowDtype)
    before = traffic(zone)
    back = zone.submit(echo, value=frame).result(30)
    assert max(traffic(zone) - before) < 2 * WIRE_LIMIT
    pd.testing.assert_frame_equal(back, frame)
    polars = pl.from_arrow(table.select(["n", "x"]), rechunk=False)
    before = traffic(zone)
    assert zone.submit(echo, value=polars).result(30).equals(polars)
    buffer = table["x"].chunk(1).buffers()[1]
    assert zone.submit(echo, value=buffer).result(30).equals(buffer)
    assert max(traffic(zone) - before) < 2 * WIRE_LIMIT
    numbers = table["x"].chunk(0).to_numpy()
    shown = zone.submit(echo, value={"deep": [numbers[::2]]}).result(30)["deep"][0]
    assert not shown.flags.writeable
    np.testing.assert_array_equal(shown, numbers[::2])


def test_a_result_that_a_task_put_comes_back_in_place(zone):
    def make(ctx):
        table = ctx.heavy["table"]
        chosen = ctx.heavy.put("chosen", table.filter(pc.field("b")))
        return {"all": chosen, "some": chosen.slice(5, 5), "text": chosen["w"], "old": table}

    back = zone.submit(make).result(30)
    expected = zone.heavy["table"].filter(pc.field("b"))
    assert back["all"].equals(expected, check_metadata=True)
    assert back["some"].equals(expected.slice(5, 5))
    assert all_in_a_segment(back["all"])
    assert all_in_a_segment(pa.table({"w": back["text"]}))
    assert back["old"].equals(zone.heavy["table"])
    zone.compare_and_swap(zone.state.version, heavy={"chosen": back["all"]})
    assert zone.submit(lambda ctx: ctx.heavy["chosen"].num_rows).result(30) == len(expected)
    zone.heavy.free("chosen")


def test_a_part_becomes_an_entry_without_a_copy(zone):
    part = zone.heavy["table"].select(["x", "w"]).slice(100, 50)
    with theus.zero_copy(strict=True) as copies:
        zone.compare_and_swap(zone.state.version, heavy={"part": part})
    assert copies == []
    for found in (zone.heavy["part"], zone.submit(lambda ctx: ctx.heavy["part"]).result(30)):
        assert found.equals(part)
        assert all_in_a_segment(found)
    zone.heavy.free("part")


def test_a_buffer_is_the_same_bytes_through_whatever_mapping_it_was_made(engine):
    written = engine.heavy.alloc("x", 1000, "i8")
    written[:] = np.arange(1000)
    before = pa.py_buffer(written)
    sealed = engine.heavy.seal("x")
    opened = theus.open(engine.heavy.path("x"))
    buffers = before, pa.py_buffer(sealed), pa.py_buffer(opened)
    assert len({buffer.address for buffer in buffers}) == 3
    for buffer in buffers:
        for part, first in (buffer, 0), (buffer.slice(800), 100):
            found = engine.submit(lambda ctx, part: part.to_pybytes(), part=part).result(30)
            assert np.frombuffer(found, "i8").tolist() == list(range(first, 1000))
