"""Every Arrow type into the heavy zone and back: here, in a worker, and by a stock reader."""

import json
import mmap
import os
from pathlib import Path

import numpy as np
import pandas as pd
import polars as pl
import pyarrow as pa
import pytest
from arrow_samples import ROWS, as_stored, samples

import theus
from memory import peak_of
from theus import TheusEngine
from theus.cli.app import main
from theus.cli.inspection import inspect

SAMPLES = samples()
SHAPES = {
    "whole": lambda array: array,
    "slice": lambda array: array.slice(13, 50),
    "empty": lambda array: array.slice(20, 0),
    "tail": lambda array: array.slice(ROWS - 5),
}


@pytest.fixture(scope="module")
def zone():
    with TheusEngine(workers=1) as engine:
        yield engine


@pytest.fixture(scope="module", autouse=True)
def nothing_left():
    """The module's engine lives longer than a test; what it leaves is looked at when it is gone."""


def look(ctx, name):
    import arrow_samples  # noqa: PLC0415 - which registers the extension type

    assert arrow_samples
    return ctx.heavy[name]


def lies_in(array, start, length):
    buffers = [buffer for buffer in array.buffers() if buffer is not None and buffer.size]
    return all(start <= b.address and b.address + b.size <= start + length for b in buffers)


def read_stock(path):
    """The table as a reader sees it who has never heard of us, after looking where it lies."""
    file = pa.memory_map(path)
    bytes_ = file.read_buffer(file.size())
    table = pa.ipc.open_file(pa.memory_map(path)).read_all()
    table.validate(full=True)
    again = pa.ipc.open_file(bytes_).read_all()
    for column in again.columns:
        for chunk in column.chunks:
            assert lies_in(chunk, bytes_.address, bytes_.size)
            addresses = [b.address for b in chunk.buffers() if b is not None and b.size]
            assert all((address - bytes_.address) % 64 == 0 for address in addresses)
    return table


def same(found, expected):
    found.validate(full=True)
    return found.type == expected.type and found.equals(expected)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("name", SAMPLES)
def test_every_type_comes_back(zone, name, shape):
    given = SHAPES[shape](SAMPLES[name])
    stored = as_stored(given.type)
    expected = given if stored == given.type else given.cast(stored)
    view = zone.heavy.put("array", given)
    assert type(view) is type(expected)
    assert same(view, expected)
    assert same(zone.submit(look, name="array").result(20), expected)
    assert same(read_stock(zone.heavy.path("array")).column(0).combine_chunks(), expected)
    if stored != given.type:
        assert same(zone.heavy.put("array", given, views=True), given)


@pytest.mark.parametrize("shape", SHAPES)
def test_a_table_of_every_type_comes_back(zone, shape):
    columns = {name: SHAPES[shape](array) for name, array in SAMPLES.items()}
    fields = [
        pa.field(name, array.type, metadata={"no.": str(place)})
        for place, (name, array) in enumerate(columns.items())
    ]
    schema = pa.schema(fields, metadata={"made by": "a test", "ключ": "значение"})
    given = pa.table(list(columns.values()), schema=schema)
    stored = pa.schema(
        [f.with_type(as_stored(f.type)) for f in fields], metadata=given.schema.metadata
    )
    arrays = [
        a if as_stored(a.type) == a.type else a.cast(as_stored(a.type)) for a in columns.values()
    ]
    expected = pa.table(arrays, schema=stored)
    assert zone.heavy.put("table", given).equals(expected, check_metadata=True)
    assert zone.submit(look, name="table").result(20).equals(expected, check_metadata=True)
    assert read_stock(zone.heavy.path("table")).equals(expected, check_metadata=True)


def test_what_has_no_rows_or_no_columns(zone):
    no_rows = pa.table({"a": pa.array([], pa.int64()), "b": pa.array([], pa.string())})
    no_chunks = pa.table({"a": pa.chunked_array([], pa.int32())})
    no_columns = pa.table({"a": [1, 2, 3]}).select([])
    batch = pa.RecordBatch.from_pydict({"x": []}, pa.schema([("x", pa.int8())]))
    for given in [no_rows, no_chunks, no_columns, pa.Table.from_batches([batch])]:
        assert zone.heavy.put("empty", given).equals(given, check_metadata=True)
        rows = zone.submit(lambda ctx: ctx.heavy["empty"].num_rows).result(20)
        assert rows == given.num_rows
        assert read_stock(zone.heavy.path("empty")).equals(given, check_metadata=True)
    chunked = pa.chunked_array([], pa.string())
    assert zone.heavy.put("chunks", chunked).equals(chunked)


def test_chunks_whose_dictionaries_differ_get_one(zone):
    chunks = [pa.array(list(text)).dictionary_encode() for text in ["abca", "cda", "zz", "ab"]]
    lists = [pa.ListArray.from_arrays([0, 1, len(chunk)], chunk) for chunk in chunks]
    given = pa.table({"d": pa.chunked_array(chunks), "n": range(11)})
    with theus.zero_copy() as copies:
        found = zone.heavy.put("table", given)
    assert found.equals(given.unify_dictionaries(), check_metadata=True)
    assert {copy.column for copy in copies} == {None, "d"}
    assert read_stock(zone.heavy.path("table")).equals(given.unify_dictionaries())
    nested = pa.chunked_array(lists)
    assert zone.heavy.put("nested", nested).to_pylist() == nested.to_pylist()
    same_values = pa.chunked_array([chunks[0], chunks[0].slice(2), chunks[0].slice(0, 1)])
    with theus.zero_copy() as copies:
        zone.heavy.put("same", same_values)
    assert [copy.column for copy in copies] == [None]
    many = [pa.array([str(n) for n in range(s, s + 100)]) for s in (0, 100)]
    small = [pa.DictionaryArray.from_arrays(pa.array(range(100), pa.int8()), v) for v in many]
    with pytest.raises(ValueError, match=r"200 values together.*Int8.*wider keys"):
        zone.heavy.put("overflow", pa.chunked_array(small))


def test_copies_that_nobody_asked_for_can_be_forbidden(zone):
    chunks = [pa.array(list(text)).dictionary_encode() for text in ["ab", "cd"]]
    plain = pa.table({"x": np.arange(1_000_000)})
    with theus.zero_copy(strict=True):
        assert zone.heavy.put("fine", plain).equals(plain)
        with pytest.raises(theus.CopyRequiredError, match="bad, column 'd'"):
            zone.heavy.put("bad", pa.table({"d": pa.chunked_array(chunks)}))
        with pytest.raises(theus.CopyRequiredError, match="inputs"):
            zone.submit(look, name=plain)
        with pytest.raises(theus.CopyRequiredError, match="plain: "):
            zone.compare_and_swap(zone.state.version, heavy={"plain": plain})
        assert zone.submit(lambda ctx, t: t.num_rows, t=zone.heavy["fine"]).result(20) == 1_000_000
    assert "bad" not in zone.heavy
    assert "plain" not in zone.heavy


def test_slices_do_not_drag_their_parents_along(zone):
    big = pa.table(
        {
            "x": np.arange(1_000_000),
            "s": pa.array(np.arange(1_000_000).astype("S8")),
            "v": pa.array([f"a text that is not inline {n}" for n in range(100_000)] * 10).cast(
                pa.string_view()
            ),
            "l": pa.array([[n] for n in range(1_000_000)]),
        }
    )
    for views in (False, True):
        found = zone.heavy.put("slice", big.slice(500_000, 10), views=views)
        assert found.to_pylist() == big.slice(500_000, 10).to_pylist()
        assert os.path.getsize(zone.heavy.path("slice")) < 8192


def test_offsets_inside_offsets(zone):
    inner = pa.StructArray.from_arrays([pa.array(range(100)).slice(5, 90)], ["n"]).slice(7, 80)
    either = pa.UnionArray.from_sparse(pa.array([0, 0, 0, 0] * 20, pa.int8()), [inner])
    given = {
        "struct": pa.StructArray.from_arrays([inner], ["inner"]).slice(3, 20),
        "fixed": pa.FixedSizeListArray.from_arrays(inner, 2).slice(3, 20),
        "union": either.slice(3, 20),
        "list of unions": pa.ListArray.from_arrays([0, 10, 80], either).slice(1, 1),
    }
    for array in given.values():
        assert zone.heavy.put("array", array).to_pylist() == array.to_pylist()


def test_readers_are_streamed(zone):
    schema = pa.schema([("x", pa.int64()), ("d", pa.dictionary(pa.int32(), pa.string()))])

    def batches(count, fail_at=None):
        for number in range(count):
            if number == fail_at:
                raise RuntimeError("the source broke")
            values = pa.array([f"{number % 5}", f"{number}"]).dictionary_encode()
            yield pa.record_batch([pa.array([number, None]), values], schema=schema)

    reader = pa.RecordBatchReader.from_batches(schema, batches(50))
    expected = pa.Table.from_batches(batches(50), schema).unify_dictionaries()
    assert zone.heavy.put("stream", reader).equals(expected, check_metadata=True)
    assert read_stock(zone.heavy.path("stream")).equals(expected, check_metadata=True)
    used = zone.heavy.stats()["used_bytes"]
    names = sorted(os.listdir("/dev/shm"))
    broken = pa.RecordBatchReader.from_batches(schema, batches(50, fail_at=30))
    with pytest.raises(ValueError, match="the source broke"):
        zone.heavy.put("broken", broken)
    assert "broken" not in zone.heavy
    assert zone.heavy.stats()["used_bytes"] == used
    assert sorted(os.listdir("/dev/shm")) == names


@pytest.mark.skipif(
    os.environ.get("THEUS_BACKEND") == "portable", reason="its drafts are private memory"
)
def test_nothing_is_encoded_into_memory_first(zone):
    rows = 8_000_000
    texts = pa.array([f"text number {n % 1000:06}" for n in range(rows // 8)])
    table = pa.table(
        {
            "x": np.arange(rows),
            "y": np.random.default_rng(1).random(rows),
            "s": pa.concat_arrays([texts] * 8),
            "v": pa.chunked_array([texts.cast(pa.string_view())] * 8),
        }
    )
    assert table.nbytes > 500 << 20
    peak = peak_of(lambda: zone.heavy.put("big", table))
    assert zone.heavy["big"].column("x").equals(table["x"])
    zone.heavy.free("big")
    assert peak < 48 << 20, f"{peak >> 20} MiB of private memory for {table.nbytes >> 20} MiB"

    def batches():
        for start in range(0, rows, 100_000):
            yield pa.record_batch({"x": np.arange(start, start + 100_000), "y": np.ones(100_000)})

    schema = pa.schema([("x", pa.int64()), ("y", pa.float64())])
    reader = pa.RecordBatchReader.from_batches(schema, batches())
    peak = peak_of(lambda: zone.heavy.put("stream", reader))
    assert peak < 100 << 20, f"{peak >> 20} MiB of private memory for a stream"
    zone.heavy.free("stream")


# --- from and to others ------------------------------------------------------------------------


def test_pandas_keeps_its_index(zone):
    frame = pd.DataFrame(
        {"x": [1.5, None, 3.0], "s": ["a", None, "c"], "t": pd.date_range("2020", periods=3)},
        index=pd.Index([10, 20, 30], name="key"),
    )
    table = zone.heavy.put("frame", frame)
    assert table.to_pandas().equals(frame)
    back = zone.submit(lambda ctx: ctx.heavy.pandas("frame").index.tolist()).result(20)
    assert back == [10, 20, 30]
    arrow = zone.heavy.pandas("frame")
    assert all(isinstance(dtype, pd.ArrowDtype) for dtype in arrow.dtypes)
    assert arrow.index.name == "key"
    series = zone.heavy.put("series", pd.Series([1, 2, 3], name="n"))
    assert series.column("n").to_pylist() == [1, 2, 3]


def test_polars_and_the_capsule_protocols(zone):
    frame = pl.DataFrame({"x": [1, 2, None], "s": ["a", "b", None], "l": [[1], [], None]})
    zone.heavy.put("frame", frame)
    assert zone.heavy.polars("frame").equals(frame)
    assert zone.submit(lambda ctx: ctx.heavy.polars("frame")["x"].sum()).result(20) == 3
    zone.heavy.put("series", frame["s"])
    assert zone.heavy.polars("series").to_list() == ["a", "b", None]

    class Stream:
        def __arrow_c_stream__(self, requested_schema=None):
            return pa.table({"x": [1, 2]}).__arrow_c_stream__(requested_schema)

    class Array:
        def __arrow_c_array__(self, requested_schema=None):
            return pa.array([1, None, 3]).__arrow_c_array__(requested_schema)

    class Tensor:
        def __init__(self):
            self.inside = np.arange(6.0).reshape(2, 3)

        def __dlpack__(self, **more):
            return self.inside.__dlpack__(**more)

        def __dlpack_device__(self):
            return self.inside.__dlpack_device__()

    assert zone.heavy.put("stream", Stream()).to_pydict() == {"x": [1, 2]}
    assert zone.heavy.put("array", Array()).to_pylist() == [1, None, 3]
    assert zone.heavy.put("tensor", Tensor()).tolist() == [[0, 1, 2], [3, 4, 5]]
    with pytest.raises(TypeError, match="'wrong' takes numpy arrays, pyarrow"):
        zone.heavy.put("wrong", [1, 2, 3])
    with pytest.raises(TypeError, match="'tensor' is a tensor"):
        zone.heavy.pandas("tensor")


def test_a_path_or_a_name_opens_from_anywhere(zone, python):
    table = pa.table({"x": [1, 2, 3]})
    zone.heavy.put("table", table)
    assert theus.open(zone.heavy.path("table")).equals(table)
    script = f"""
import theus
print(theus.open({zone.heavy.path("table")!r}).column("x").to_pylist())
print(theus.open("{zone.heavy.stats()["session"]}/table").num_rows)
"""
    assert python(script).stdout.split("\n")[:2] == ["[1, 2, 3]", "3"]


def test_what_is_not_valid_is_refused_unless_it_is_trusted(zone, tmp_path):
    given = pa.table({"text": ["first text", "b", "c"], "n": [1, 2, 3]})
    zone.heavy.put("table", given)
    path = Path(zone.heavy.path("table"))
    good = path.read_bytes()
    place = tmp_path / path.name
    place.write_bytes(good)
    assert theus.open(place).equals(given)
    assert theus.open(str(place), trusted=True).equals(given)
    place.write_bytes(good.replace(b"first", b"\xff\xfe\xff\xfe\xff"))
    with pytest.raises(theus.CorruptSegmentError, match=r"record batch 0.*UTF"):
        theus.open(place)
    assert theus.open(place, trusted=True).column("n").to_pylist() == [1, 2, 3]
    for length in (6, 100, len(good) // 2, len(good) - 1):
        place.write_bytes(good[:length])
        with pytest.raises(theus.CorruptSegmentError):
            theus.open(place, trusted=True)
    place.write_bytes(good + b"\0")
    with pytest.raises(theus.CorruptSegmentError, match="end as an Arrow file"):
        theus.open(place, trusted=True)


def test_inspect_says_what_is_there_or_what_is_wrong(zone, tmp_path, capsys):
    zone.heavy.put("table", pa.table({"text": ["first text", "b"], "n": [1, 2]}))
    zone.heavy.put("tensor", np.zeros((2, 3), "f4"))
    zone.heavy.put("array", pa.array([1, None, 3]))
    session = zone.heavy.stats()["session"]
    assert main(["inspect", f"{session}/table"]) == 0
    shown = capsys.readouterr().out
    assert "rows     2" in shown
    assert "text: string" in shown
    assert main(["inspect", "--json", zone.heavy.path("tensor")]) == 0
    found = json.loads(capsys.readouterr().out)
    assert (found["shape"], found["dtype"], found["name"]) == ([2, 3], "float32", "tensor")
    assert inspect(f"{session}/array")["columns"] == {"array": "int64"}
    path = Path(zone.heavy.path("table"))
    place = tmp_path / path.name
    for bad in (
        path.read_bytes()[:-9],
        path.read_bytes().replace(b"first", b"\xff\xfe\xff\xfe\xff"),
    ):
        place.write_bytes(bad)
        assert main(["inspect", str(place)]) == 1
        assert "is not a valid segment" in capsys.readouterr().err
    assert main(["inspect", f"{session}/nothing"]) == 1
    assert main(["inspect", "nobody/nothing"]) == 1
    assert 'theus: "nobody" is not the name of a session' in capsys.readouterr().err


def test_opening_looks_at_no_rows(zone, python):
    script = """
import re, sys, theus
table = theus.open(PATH, trusted=True)
regions = re.split("^(?=[0-9a-f]+-)", open("/proc/self/smaps").read(), flags=re.M)
looked_at = [re.search(r"^Rss: +([0-9]+)", r, re.M)[1] for r in regions if PATH in r[:200]]
print(table.num_rows, *looked_at)
"""
    words = pa.array([f"text {row % 1000:04}" for row in range(1000)])
    for rows in (1_000, 10_000_000):
        zone.heavy.put("texts", pa.table({"s": pa.concat_arrays([words] * (rows // 1000))}))
        source = script.replace("PATH", repr(zone.heavy.path("texts")))
        found, kilobytes = python(source).stdout.split()
        assert int(found) == rows
        # Of some 100 MB: the schema and the footer, each with what the kernel maps around a page,
        # which is a large page where the segment has them.
        assert int(kilobytes) <= 256 + 2 * 2048
    zone.heavy.free("texts")


@pytest.mark.parametrize("kind", [pa.string_view(), pa.dictionary(pa.int8(), pa.string())])
@pytest.mark.parametrize("rows", [(0, 4), (3, 5), (5, 3), (7, 1)])
def test_slices_of_runs_whose_values_are_changed_on_the_way(engine, kind, rows):
    words = ["alpha", "b" * 40, "gamma", "d" * 30]
    values = [pa.array(order).cast(kind) for order in (words, words[::-1])]
    chunks = [pa.RunEndEncodedArray.from_arrays([2, 3, 6, 8], held) for held in values]
    whole = pa.chunked_array(chunks)
    expected = [
        word
        for order in (words, words[::-1])
        for word in ([order[0]] * 2 + [order[1]] + [order[2]] * 3 + [order[3]] * 2)
    ]
    begin, length = rows
    for first in (begin, begin + 6):
        shown = engine.heavy.put("runs", pa.table({"c": whole.slice(first, length)}))
        shown.validate(full=True)
        assert shown["c"].to_pylist() == expected[first : first + length]


def test_a_streams_buffers_are_not_taken_for_those_of_an_earlier_batch(engine):
    schema = pa.schema([("s", pa.string_view()), ("n", pa.int64())])
    rows = 100_000

    def batches():
        for number in range(12):
            anonymous = mmap.mmap(-1, rows * 8)
            np.frombuffer(anonymous, np.int64)[:] = number
            column = pa.Array.from_buffers(pa.int64(), rows, [None, pa.py_buffer(anonymous)])
            texts = pa.array(["x" * 20] * rows).cast(pa.string_view())
            yield pa.record_batch([texts, column], schema=schema)

    table = engine.heavy.put("t", pa.RecordBatchReader.from_batches(schema, batches()))
    for number, chunk in enumerate(table["n"].chunks):
        assert set(chunk.to_numpy()) == {number}


def test_a_column_with_a_part_of_its_dictionary_is_not_the_whole_column(engine):
    words = pa.DictionaryArray.from_arrays(pa.array([0, 1], pa.int8()), ["aa", "bb", "cc"])
    column = engine.heavy.put("t", pa.table({"c": words}))["c"].chunk(0)
    other = pa.DictionaryArray.from_arrays(column.indices, column.dictionary.slice(1))
    back = engine.submit(lambda ctx, table: table, table=pa.table({"c": other})).result(30)
    assert back["c"].to_pylist() == ["bb", "cc"]


def types_of(heavy):
    return {name: type(heavy[name]).__name__ for name in heavy}


def types_seen(ctx):
    return types_of(ctx.heavy)


def test_parts_in_the_state_are_of_the_same_type_everywhere(engine):
    array = engine.heavy.put("array", pa.array([str(n) for n in range(20)]))
    chunked = engine.heavy.put("chunked", pa.chunked_array([range(10), range(10)]))
    table = engine.heavy.put("table", pa.table({"a": range(10), "b": range(10)}))
    parts = {"of array": pa.table({"": array.slice(2, 3)}), "of table": table.select(["b"])[3:]}
    parts |= {"array": array, "chunked": chunked, "rows": array.slice(1), "column": table["a"]}
    state = engine.compare_and_swap(engine.state.version, heavy=parts).heavy
    assert types_of(state) == {key: type(value).__name__ for key, value in parts.items()} | {
        "table": "Table"
    }
    assert engine.submit(types_seen).result(30) == types_of(state)


def test_a_part_without_rows_keeps_no_segment(engine):
    before = engine.heavy.stats()["used_bytes"]
    large = engine.heavy.put("large", pa.table({"a": range(1_000_000)}))
    engine.compare_and_swap(engine.state.version, heavy={"none": large.slice(7, 0)})
    del large
    engine.heavy.free("large")
    assert engine.heavy.stats()["used_bytes"] < before + 100_000


def test_nulls_within_fixed_size_lists_have_no_place_in_a_table_that_is_filled(engine):
    draft = engine.heavy.alloc_table("l", pa.schema([("v", pa.list_(pa.int64(), 2))]), 2)
    with pytest.raises(ValueError, match="nulls within its lists"):
        draft.set("v", [[1, None], [2, 3]])
