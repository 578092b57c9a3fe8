"""Plain values are what `schemas/values.json` says, and nothing else is one."""

import enum
import functools
import json
import time
from collections import OrderedDict, namedtuple
from collections.abc import Mapping
from pathlib import Path

import msgspec
import numpy as np
import pandas as pd
import pyarrow as pa
import pytest

import theus
from theus import NotPlainError, ProtocolError
from theus.serialize import plain
from theus.serialize.pickler import dumps

GOLDEN = json.loads(
    (Path(__file__).resolve().parents[2] / "schemas/golden/values.json").read_text()
)["values"]
INTS = {"the largest int", "the smallest int"}


class Described:
    """Stands for an entry that has this descriptor, and for an output of this number."""

    def __init__(self, text):
        self.text = text


def built(value, name):
    """The object that a golden vector describes."""
    if name in INTS:
        return int(value)
    if not isinstance(value, dict):
        return value
    if "bin" in value:
        return bytes.fromhex(value["bin"])
    if "map" in value:
        return {key: built(item, "") for key, item in value["map"]}
    if value["ext"] == 3:
        return plain.Opaque(value["text"])
    return Described(value.get("text", value.get("number")))


@pytest.mark.parametrize("vector", GOLDEN, ids=lambda vector: vector["name"])
def test_golden_values(vector, monkeypatch):
    value, data = built(vector["value"], vector["name"]), bytes.fromhex(vector["bytes"])
    seen = []
    monkeypatch.setattr(plain, "attach_segment", lambda name: name)
    monkeypatch.setattr(plain, "view_described", lambda _, descriptor: seen.append(descriptor))
    monkeypatch.setattr(plain, "view_entry", lambda segment, *_: seen.append(segment))
    decoded = plain.decode(data, ["first", "second"])
    if not isinstance(value, Described):
        assert (decoded, seen) == (value, [])
        assert type(decoded) is type(value)
        assert plain.encode(value, lambda _: None, label="it").data == data
    elif isinstance(value.text, int):  # an owner sends no outputs
        assert seen == [["first", "second"][value.text]]
    else:
        assert seen == [json.loads(value.text)]
        monkeypatch.setattr(plain, "describe", lambda it, _: (json.loads(it.text), "held"))
        message = plain.encode(value, lambda _: None, label="it")
        assert (message.data, message.pins) == (data, ["held"])


def test_every_golden_value_is_looked_at():
    assert len(GOLDEN) >= 15
    assert {
        v["value"]["ext"] for v in GOLDEN if isinstance(v["value"], dict) and "ext" in v["value"]
    } == {1, 2, 3}


Point = namedtuple("Point", "x y")  # noqa: PYI024 - as users have them


class Colour(enum.IntEnum):
    RED = 3


class Word(str):
    __slots__ = ()


@pytest.mark.parametrize(
    ("value", "arrives"),
    [
        ((1, 2), [1, 2]),
        (Point(1, [2.5]), [1, [2.5]]),
        (OrderedDict(a=1, b={"c": (None, True)}), {"a": 1, "b": {"c": [None, True]}}),
        ({3: "three"}, {3: "three"}),
        ([np.float32(0.5), np.int8(-3), np.bool_(1), np.str_("x")], [0.5, -3, True, "x"]),
        ([Colour.RED, Word("word"), bytearray(b"ab")], [3, "word", b"ab"]),
        ([float("inf"), -(2**63), 2**64 - 1], [float("inf"), -(2**63), 2**64 - 1]),
    ],
)
def test_what_python_has_besides_arrives_as_the_nearest(value, arrives):
    decoded = plain.decode(plain.encode(value, lambda _: None, label="it").data)
    assert decoded == arrives
    assert json.dumps(decoded, default=repr) == json.dumps(arrives, default=repr)


@pytest.mark.parametrize(
    ("value", "path", "what"),
    [
        ({"x": [np.arange(10)]}, "inputs['x'][0]", "a numpy.ndarray of 80 bytes outside the heavy"),
        ({"t": pa.table({"a": [1]})}, "inputs['t']", "pyarrow.lib.Table of 8 bytes outside"),
        ({"x": {"y": (1, {2})}}, "inputs['x']['y'][1]", "a set"),
        ({"x": 2**64}, "inputs['x']", "2**64 - 1"),
        ({"x": "\ud800"}, "inputs['x']", "surrogates"),
        ({"when": np.datetime64("2020-01-01")}, "inputs['when']", "a numpy.datetime64"),
        (
            {"x": {(1, 2): 3}},
            "inputs['x']",
            "its key (1, 2) is a tuple, and keys are",
        ),
        ({"x": {2**70: 3}}, "inputs['x']", "2**64 - 1"),
        ({"x": pa.array([1])}, "inputs['x']", "a pyarrow.lib.Int64Array of 8 bytes outside"),
        ({"x": np.array([{}])}, "inputs['x']", "of Python objects. The heavy zone has no"),
        ({"x": np.ma.masked_array([1.0], [True])}, "inputs['x']", "MaskedArray"),
        ({"x": msgspec.Raw(b"\xc1")}, "inputs['x']", "msgspec.Raw"),
    ],
)
def test_what_is_not_plain_is_named(value, path, what):
    with pytest.raises(NotPlainError) as caught:
        plain.encode(value, lambda _: None, label="inputs")
    assert str(caught.value).startswith(f"{path} cannot be sent to a native task: ")
    assert what in str(caught.value)
    assert isinstance(caught.value, TypeError)


def test_a_value_that_holds_itself_is_not_plain():
    value = []
    value.append(value)
    with pytest.raises(NotPlainError, match=r"^inputs\['x'\]"):
        plain.encode({"x": value}, lambda _: None, label="inputs")


def test_a_value_that_is_nested_too_deeply_is_refused_at_once():
    value = functools.reduce(lambda inner, _: [inner], range(10_000), 1)
    since = time.monotonic()
    with pytest.raises(
        NotPlainError,
        match=r"^inputs\['x'\] .*: it is nested too deeply, or contains itself$",
    ):
        plain.encode({"a": 1, "x": value}, lambda _: None, label="inputs")
    assert time.monotonic() - since < 1


def test_a_long_path_has_no_middle():
    value = functools.reduce(lambda inner, _: [inner], range(300), {1})
    with pytest.raises(NotPlainError) as caught:
        plain.encode({"x": value}, lambda _: None, label="inputs")
    path = str(caught.value).partition(" cannot be sent")[0]
    assert path.startswith("inputs['x'][0]")
    assert " ... " in path
    assert path.endswith("[0][0]")
    assert len(path) < 250


def refusal(engine, value):
    with pytest.raises(NotPlainError) as caught:
        plain.encode({"x": value}, engine.heavy.pin, label="inputs")
    return str(caught.value)


def test_a_draft_is_to_be_published_first(engine):
    draft = engine.heavy.alloc("draft", 3)
    table = engine.heavy.alloc_table("table", pa.schema({"a": pa.int64()}), 3)
    for value in draft, draft[1:], np.asarray(draft):
        assert "not published yet. Publish it first, engine.heavy.seal(name)" in refusal(
            engine, value
        )
    engine.heavy.seal("draft")
    assert both_ways(engine, draft)
    assert "Seal it, and pass the table that its seal() returns" in refusal(engine, table)
    assert both_ways(engine, table.seal())


class Unreadable(Mapping):
    def __getitem__(self, key):
        raise ConnectionError("no line")

    def __iter__(self):
        return iter("ab")

    def __len__(self):
        return 2


def test_a_mapping_whose_own_code_fails_is_named(engine):
    said = refusal(engine, [Unreadable()])
    assert said.startswith("inputs['x'][0] cannot be sent to a native task: reading it raised ")
    assert "ConnectionError: no line" in said


def test_a_frame_is_to_be_put_first(engine):
    for frame in pd.DataFrame({"a": [1]}), pd.Series([1]):
        assert "pandas." in (said := refusal(engine, frame))
        assert "Pass a table of the heavy zone: what engine.heavy.put(name, ...) returns" in said


def test_what_a_task_takes_of_a_table_is_said(engine):
    table = engine.heavy.put("t", pa.table({"a": [1, 2, 3], "b": ["x", "y", "z"]}))
    other = engine.heavy.put("u", pa.table({"a": [1, 2, 3], "b": ["x", "y", "z"]}))
    parts = [
        table.to_batches()[0],
        table.rename_columns(["c", "d"]),
        pa.concat_tables([table, table.slice(1)]),
        pa.chunked_array([table["a"].chunk(0), table["a"].chunk(0)]),
    ]
    for part in parts:
        said = refusal(engine, part)
        assert "of entry 't'. Pass a table, without a copy: engine.heavy['t']" in said
        assert "table.select([...])" in said
    assert "of entries 't' and 'u'. Pass the tables" in refusal(
        engine, pa.concat_tables([table, other])
    )
    mixed = table.append_column("c", pa.array([1, 2, 3]))
    assert "partly outside the heavy zone. Put it there" in refusal(engine, mixed)
    nested = engine.heavy.put("n", pa.table({"a": [[1], [2]]}))
    assert "pass the name 'n' instead" in refusal(engine, nested.slice(1))
    nulls = engine.heavy.put("nulls", pa.table({"a": pa.nulls(3)}))
    assert "without any bytes, of nulls alone. Pass the name" in refusal(engine, nulls.slice(1))
    masked = np.ma.masked_array(engine.heavy.put("x", np.arange(3)))
    assert "over an entry of the heavy zone. Pass plain arrays" in refusal(engine, masked)


def test_what_is_another_engines_or_was_freed_is_called_so(engine):
    with theus.TheusEngine(workers=1) as other:
        array = other.heavy.put("x", np.arange(3))
        table = other.heavy.put("t", pa.table({"a": [1]}))
        for value in array, table, table["a"]:
            said = refusal(engine, value)
            assert "of another engine's heavy zone. Put it into this engine's" in said
    mine = engine.heavy.put("x", np.arange(3))
    engine.heavy.free("x")
    assert "whose entry was freed. Put it anew" in refusal(engine, mine)


@pytest.mark.parametrize(
    "data",
    ["d6ff00000001", "d7ff0000000000000001", "c70cff000000000000000000000001", "c704ff00000001"],
)
def test_the_timestamps_of_messagepack_are_no_plain_values(data):
    time_ = bytes.fromhex(data)
    for value in time_, b"\x92\xff" + time_, b"\x81\xa1x" + time_, b"\x81" + time_ + b"\x01":
        with pytest.raises(ProtocolError, match="no extension -1"):
            plain.decode(value)


def test_what_only_looks_like_a_timestamp_is_a_value():
    for value in b"\xd6\xff\0\0\0\1", [-1, {"a": [-1, (-1.5,)]}, "\xff"], {-1: [[]]}:
        encoded = plain.encode(value, lambda _: None, label="it").data
        assert plain.encode(plain.decode(encoded), lambda _: None, label="it").data == encoded


@pytest.mark.parametrize(
    "data", [b"", b"\xc1", b"\x92\x01", b"\xd4\x07x", b"\xd4\x02x", b"\xd4\x01{"]
)
def test_what_is_no_plain_value_is_refused(data):
    with pytest.raises(ProtocolError):
        plain.decode(data)


def test_an_output_that_was_not_sent_is_refused():
    with pytest.raises(ProtocolError, match="output 1 of 0"):
        plain.decode(bytes.fromhex("d7020100000000000000"))


def test_outputs_are_viewed_whole(engine):
    x = engine.heavy.put("x", np.arange(12.0).reshape(3, 4))
    table = engine.heavy.put("t", pa.table({"a": range(9)}))
    segments = [engine.state.entries[key].segment for key in ("x", "t")]
    data = bytes.fromhex("92d7020000000000000000d7020100000000000000")
    array, arrived = plain.decode(data, segments)
    np.testing.assert_array_equal(array, x)
    assert not array.flags.writeable
    assert arrived.equals(table)


def both_ways(engine, value):
    message = plain.encode(value, engine.heavy.pin, label="it")
    assert len(message.pins) == 1
    return plain.decode(message.data), len(message.data)


def test_arrays_and_tables_travel_by_handle(engine):
    x = engine.heavy.put("x", np.arange(100_000.0).reshape(100, 1000))
    table = engine.heavy.put("t", pa.table({"a": range(9), "b": [str(i) for i in range(9)]}))
    column = engine.heavy.put("c", pa.array([1, 2, None]))
    for array in x, x[3], x[::-2, 5:9], x.T, np.asarray(x)[1:2]:
        arrived, nbytes = both_ways(engine, array)
        assert isinstance(arrived, theus.ShmArray)
        np.testing.assert_array_equal(arrived, array)
        assert nbytes < 300
    for part in (
        *(table, table.slice(2, 3), table.select(["b"]), table.slice(2, 0)),
        *(column, column.slice(1, 1), column.slice(3)),
        *(table["a"], table["b"].slice(4), table["b"].slice(9), table["b"].chunk(0)),
        *(pa.chunked_array([column]), pa.table({"": column}), pa.table({"": column.slice(1)})),
    ):
        arrived, nbytes = both_ways(engine, part)
        assert type(arrived) is type(part)
        assert arrived.equals(part)
        assert nbytes < 300
    assert b'"view"' not in plain.encode(x, engine.heavy.pin, label="it").data
    assert b'"part"' not in plain.encode(table, engine.heavy.pin, label="it").data
    renamed = table.rename_columns(["c", "d"])
    for other in renamed, pa.chunked_array([table["a"].chunk(0)] * 2), x * 2:
        with pytest.raises(NotPlainError):
            plain.encode(other, engine.heavy.pin, label="it")


class Model:
    pass


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (Model(), "a test_plain_values.Model"),
        ({"model": [Model()]}, "a dict, whose ['model'][0] is a test_plain_values.Model"),
        (np.zeros(10_000_000), "a numpy.ndarray of 80 MB outside the heavy zone"),
        (np.zeros(3), "a numpy.ndarray of 24 bytes outside the heavy zone"),
    ],
)
def test_what_the_domain_has_besides_is_opaque(value, text):
    message = dumps(value, lambda _: None, label="domain")
    data = plain.encode_domain(message)
    assert plain.decode(data) == plain.Opaque(text)
    assert plain.encode_domain(message) is data


def test_plain_values_of_the_domain_are_themselves(engine):
    x = engine.heavy.put("x", np.arange(5))
    message = dumps({"rate": 0.5, "x": x[1:]}, engine.heavy.pin, label="domain")
    decoded = plain.decode(plain.encode_domain(message))
    assert decoded["rate"] == 0.5
    assert decoded["x"].tolist() == [1, 2, 3, 4]
