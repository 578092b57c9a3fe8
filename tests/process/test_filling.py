"""Tables that are laid out first and filled in place, here and in workers."""

import datetime as dt
from decimal import Decimal

import numpy as np
import pyarrow as pa
import pytest

import theus
from theus import TheusEngine

ROWS = 1000

SCHEMA = pa.schema(
    [
        pa.field("i", pa.int32()),
        pa.field("f", pa.float64(), nullable=False),
        pa.field("h", pa.float16()),
        pa.field("b", pa.bool_()),
        pa.field("day", pa.date32()),
        pa.field("at", pa.timestamp("us", tz="UTC")),
        pa.field("took", pa.duration("ms")),
        pa.field("price", pa.decimal128(12, 2)),
        pa.field("id", pa.binary(4)),
        pa.field("point", pa.list_(pa.float32(), 3)),
        pa.field("months", pa.month_day_nano_interval()),
    ],
    metadata={"made": "in place"},
)

VALUES = {
    "i": list(range(ROWS)),
    "f": [number / 4 for number in range(ROWS)],
    "h": [float(number % 100) for number in range(ROWS)],
    "b": [number % 3 == 0 for number in range(ROWS)],
    "day": [dt.date(2020, 1, 1 + number % 28) for number in range(ROWS)],
    "at": [dt.datetime(2020, 1, 1 + n % 28, tzinfo=dt.UTC) for n in range(ROWS)],
    "took": [dt.timedelta(milliseconds=number) for number in range(ROWS)],
    "price": [Decimal(number) / 4 for number in range(ROWS)],
    "id": [number.to_bytes(4, "little") for number in range(ROWS)],
    "point": [[number, 0.5, -number] for number in range(ROWS)],
    "months": [pa.MonthDayNano([number, 1, 2]) for number in range(ROWS)],
}


@pytest.fixture
def zone():
    with TheusEngine(workers=1) as engine:
        yield engine


def expected(mask=None):
    return pa.table(
        {
            name: pa.array(values, SCHEMA.field(name).type, mask=mask if name != "f" else None)
            for name, values in VALUES.items()
        },
        schema=SCHEMA,
    )


def check(table, wanted):
    table.validate(full=True)
    assert table.equals(wanted, check_metadata=True)
    assert [c.null_count for c in table.columns] == [c.null_count for c in wanted.columns]


def test_it_begins_as_zeros(zone):
    table = zone.heavy.alloc_table("t", SCHEMA, ROWS).seal()
    table.validate(full=True)
    assert table.schema.equals(SCHEMA, check_metadata=True)
    assert table.column("i").to_pylist() == [0] * ROWS
    assert all(column.null_count == 0 for column in table.columns)


@pytest.mark.parametrize("nulls", [False, True])
def test_every_column_takes_values_and_nulls(zone, nulls):
    mask = np.arange(ROWS) % 7 == 2 if nulls else None
    draft = zone.heavy.alloc_table("t", SCHEMA, ROWS)
    for name, values in VALUES.items():
        draft.set(name, values, mask=mask if name != "f" else None)
    check(draft.seal(), expected(mask))
    stock = pa.ipc.open_file(pa.memory_map(zone.heavy.path("t"))).read_all()
    check(stock, expected(mask))


def test_columns_are_memory(zone):
    draft = zone.heavy.alloc_table("t", SCHEMA, ROWS)
    draft["i"][:] = np.arange(ROWS)
    draft["at"][:] = 86_400_000_000
    draft["point"][:, 1] = 0.5
    draft["id"][3] = list(b"abcd")
    draft["price"].view("i8")[:, 0] = 250
    with pytest.raises(TypeError, match=r"bools.*set\('b'"):
        draft["b"]
    assert zone.heavy["t"] is draft
    with pytest.raises(TypeError, match="seal it first"):
        zone.heavy.pandas("t")
    late = draft["i"]
    table = draft.seal()
    late[0] = 99
    assert table.column("i").to_pylist() == VALUES["i"]
    assert table.column("at")[5].as_py() == dt.datetime(1970, 1, 2, tzinfo=dt.UTC)
    assert table.column("point")[7].as_py() == [0, 0.5, 0]
    assert table.column("id")[3].as_py() == b"abcd"
    assert table.column("price")[1].as_py() == Decimal("2.50")
    assert not draft["i"].flags.writeable


def test_one_that_was_replaced_is_not_taken_for_the_other(zone):
    old = zone.heavy.alloc_table("t", SCHEMA, 3)
    new = zone.heavy.alloc_table("t", SCHEMA, 5)
    with pytest.raises(theus.EntryNotFoundError, match="replaced or freed"):
        old.seal()
    assert new.seal().num_rows == 5
    assert new.seal().num_rows == 5
    with pytest.raises(theus.EntryNotFoundError, match="replaced or freed"):
        zone.compare_and_swap(zone.state.version, heavy={"other": old})


def test_it_is_published_by_a_swap_too(zone):
    draft = zone.heavy.alloc_table("t", SCHEMA, ROWS)
    draft.set("i", VALUES["i"])
    zone.compare_and_swap(zone.state.version, heavy={"again": draft})
    for name in ("t", "again"):
        total = zone.submit(lambda ctx, name: sum(ctx.heavy[name]["i"].to_pylist()), name=name)
        assert total.result(20) == sum(VALUES["i"])
    assert zone.heavy.path("t") == zone.heavy.path("again")


def test_a_task_fills_and_returns_one(zone):
    def fill(ctx, schema, rows):
        draft = ctx.heavy.alloc_table("out", schema, rows)
        draft.set("i", np.arange(rows, dtype=np.int32), mask=np.arange(rows) % 2 == 0)
        draft["f"][:] = 0.25
        return {"all": draft.seal(), "some": ctx.heavy["out"].slice(10, 5).select(["i"])}

    found = zone.submit(fill, schema=SCHEMA, rows=ROWS).result(20)
    assert found["all"].column("i").null_count == ROWS // 2
    assert found["some"].column("i").to_pylist() == [None, 11, None, 13, None]
    address = found["all"].column("i").chunk(0).buffers()[1].address
    assert theus._theus.locate(address, 4 * ROWS) is not None
    assert zone.heavy.stats()["pinned_bytes"] > ROWS
    del found


def test_what_cannot_be_filled_says_why(zone):
    with pytest.raises(ValueError, match=r"\"s\".*no fixed width.*put the table"):
        zone.heavy.alloc_table("t", pa.schema([("s", pa.string())]), 3)
    with pytest.raises(ValueError, match="same name"):
        zone.heavy.alloc_table("t", pa.schema([("s", pa.int8()), ("s", pa.int8())]), 3)
    with pytest.raises(ValueError, match="num_rows"):
        zone.heavy.alloc_table("t", SCHEMA, -1)
    with pytest.raises(theus.HeavyZoneFullError, match='"huge"'):
        zone.heavy.alloc_table("huge", SCHEMA, 1 << 42)
    draft = zone.heavy.alloc_table("t", SCHEMA, ROWS)
    with pytest.raises(KeyError, match="no column 'nope'"):
        draft["nope"]
    with pytest.raises(ValueError, match="takes 1000 values, 3"):
        draft.set("i", [1, 2, 3])
    with pytest.raises(ValueError, match="has none"):
        draft.set("f", VALUES["f"], mask=[True] * ROWS)
    with pytest.raises(pa.ArrowInvalid):
        draft.set("i", ["text"] * ROWS)
    assert len(zone.heavy.alloc_table("empty", SCHEMA, 0).seal()) == 0
