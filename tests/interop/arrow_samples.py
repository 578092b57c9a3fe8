"""One array of every Arrow type, with nulls where the type has them."""

from decimal import Decimal

import numpy as np
import pyarrow as pa

ROWS = 100


def words(rows=ROWS):
    return [None if row % 7 == 3 else "väl" * (row % 9) for row in range(rows)]


def numbers(kind, through=None):
    values = pa.array(
        [None if row % 11 == 5 else row for row in range(ROWS)], through or pa.int64()
    )
    return values.cast(kind)


def some(make):
    return [None if row % 6 == 0 else make(row) for row in range(ROWS)]


def samples():
    found = {"null": pa.nulls(ROWS), "bool": pa.array(some(lambda row: row % 2 == 0))}
    for kind in ["int8", "int16", "int32", "int64", "uint8", "uint16", "uint32", "uint64"]:
        found[kind] = numbers(kind)
    found["halffloat"] = pa.array(np.arange(ROWS, dtype=np.float16))
    found |= {kind: numbers(kind) for kind in ["float", "double"]}
    found["date64"] = numbers(pa.date32(), pa.int32()).cast(pa.date64())
    found |= {kind: numbers(kind, pa.int32()) for kind in ["date32", "time32[s]", "time32[ms]"]}
    for unit in ["s", "ms", "us", "ns"]:
        found[f"duration[{unit}]"] = numbers(pa.duration(unit))
        found[f"timestamp[{unit}]"] = numbers(pa.timestamp(unit))
    found |= {kind: numbers(kind) for kind in ["time64[us]", "time64[ns]"]}
    found["timestamp, zone"] = numbers(pa.timestamp("us", tz="Europe/Berlin"))
    found["interval"] = pa.array(some(lambda row: pa.MonthDayNano([row, 2 * row, 3 * row])))
    found["binary, fixed"] = pa.array(some(lambda row: bytes([row]) * 5), pa.binary(5))
    found |= {str(kind): pa.array(some(Decimal), kind) for kind in decimals()}
    texts = [pa.string(), pa.large_string(), pa.binary(), pa.large_binary()]
    found |= {str(kind): pa.array(words(), kind) for kind in texts}
    found |= {str(kind): pa.array(words(), kind) for kind in [pa.string_view(), pa.binary_view()]}
    return found | lists() | composed() | extensions()


def decimals():
    return [pa.decimal32(7, 2), pa.decimal64(15, 3), pa.decimal128(30, 4), pa.decimal256(60, 5)]


def lists():
    few = some(lambda row: list(range(row % 5)))
    texts = some(lambda row: ["a" * number for number in range(row % 5)])
    deep = some(lambda row: [[{"a": row, "b": "x" * (row % 4)}], [], None][: row % 4])
    return {
        "list": pa.array(few, pa.list_(pa.int32())),
        "large list": pa.array(texts, pa.large_list(pa.string())),
        "list of views": pa.array(texts, pa.list_(pa.string_view())),
        "list view": pa.array(few, pa.list_view(pa.int32())),
        "large list view": pa.array(texts, pa.large_list_view(pa.string())),
        "fixed size list": pa.array(some(lambda row: [row, None, 3]), pa.list_(pa.int16(), 3)),
        "deep": pa.array(
            deep, pa.list_(pa.large_list(pa.struct([("a", pa.int64()), ("b", pa.string())])))
        ),
    }


def composed():
    fields = [pa.field("a", pa.int8(), metadata={"unit": "m"}), pa.field("b", pa.string())]
    coded = pa.array(words()).dictionary_encode()
    numbered = pa.array([0, 1, None, 2] * (ROWS // 4), pa.int8())
    either = pa.array([0, 5] * (ROWS // 2), pa.int8())
    halves = pa.array([row // 2 for row in range(ROWS)], pa.int32())
    runs = pa.array([10, 40, ROWS], pa.int32())
    return {
        "struct": pa.array(some(lambda row: {"a": row, "b": "s" * (row % 3)}), pa.struct(fields)),
        "map": pa.array(
            some(lambda row: [(str(number), number) for number in range(row % 4)]),
            pa.map_(pa.string(), pa.int64(), keys_sorted=True),
        ),
        "dictionary": coded,
        "dictionary, ordered": pa.DictionaryArray.from_arrays(
            numbered, pa.array(["a", "b", "c"]), ordered=True
        ),
        "list of dictionaries": pa.ListArray.from_arrays([0, 0, 3, 3, *range(4, 101)], coded),
        "struct of dictionaries": pa.StructArray.from_arrays([coded, numbered], ["d", "n"]),
        "run-end encoded": pa.RunEndEncodedArray.from_arrays(runs, pa.array(["a", None, "c"])),
        "union, sparse": pa.UnionArray.from_sparse(
            either, [pa.array(range(ROWS)), pa.array(words())], ["i", "s"], [0, 5]
        ),
        "union, dense": pa.UnionArray.from_dense(
            either, halves, [pa.array(range(50)), pa.array(words(50))], ["i", "s"], [0, 5]
        ),
    }


class Celsius(pa.ExtensionType):
    """An extension type of a user's own, which readers may not know."""

    def __init__(self):
        super().__init__(pa.float32(), "theus.test.celsius")

    def __arrow_ext_serialize__(self):
        return b"degrees"

    @classmethod
    def __arrow_ext_deserialize__(cls, storage, serialized):
        return cls()


pa.register_extension_type(Celsius())


def extensions():
    flags = pa.array([1, 0] * (ROWS // 2), pa.int8())
    degrees = pa.array(some(float), pa.float32())
    return {
        "uuid": pa.array(some(lambda row: bytes([row]) * 16), pa.uuid()),
        "json": pa.array(['{"a": 1}'] * ROWS, pa.json_()),
        "bool8": pa.ExtensionArray.from_storage(pa.bool8(), flags),
        "own extension": pa.ExtensionArray.from_storage(Celsius(), degrees),
        "fixed shape tensor": pa.FixedShapeTensorArray.from_numpy_ndarray(
            np.arange(6 * ROWS, dtype=np.float32).reshape(ROWS, 2, 3)
        ),
    }


def as_stored(kind):
    """What views become, wherever they are."""
    changes = [
        (pa.string_view(), pa.large_string()),
        (pa.binary_view(), pa.large_binary()),
        (pa.list_(pa.string_view()), pa.list_(pa.large_string())),
    ]
    return next((after for before, after in changes if kind == before), kind)
