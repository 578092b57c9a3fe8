"""Large values outside the heavy zone: one nameless segment a message, whatever the type."""

import copy
import pickle
import time
from pathlib import Path

import numpy as np
import pandas as pd
import polars as pl
import pyarrow as pa
import pytest
import scipy.sparse

import theus
from theus import TheusEngine

ROWS = 200_000
WIRE_LIMIT = 32 * 1024


def echo(ctx, value):
    return value


def describe(ctx, value):
    return type(value).__name__, len(value)


class Tagged(np.ndarray):
    """A subclass with an attribute and no pickling of its own."""


def tagged(array):
    array = array.view(Tagged)
    array.unit = "m"
    return array


NUMBERS = np.random.default_rng(3).random((ROWS, 4))
TIMES = np.arange(ROWS * 2).astype("datetime64[s]")
WORDS = [f"word {number % 977}" for number in range(ROWS)]
FRAME = pd.DataFrame({"x": NUMBERS[:, 0], "n": np.arange(ROWS), "t": TIMES[:ROWS], "w": WORDS})
TABLE = pa.table({"x": NUMBERS[:, 0], "w": WORDS, "c": pa.array(WORDS).dictionary_encode()})
POLARS = pl.DataFrame({"x": NUMBERS[:, 0], "w": WORDS, "l": [[1, 2], [3]] * (ROWS // 2)})

ARRAYS = {
    "C": NUMBERS,
    "Fortran": np.asfortranarray(NUMBERS),
    "transposed": NUMBERS.T,
    "strided": NUMBERS[::2, ::-1],
    "negative": NUMBERS[::-1],
    "broadcast": np.broadcast_to(np.arange(4.0), (ROWS, 4)),
    "3-D permuted": NUMBERS.reshape(50, 40, 400).transpose(2, 0, 1),
    "datetime64": TIMES,
    "timedelta64": TIMES - TIMES[0],
    "strings": np.array(WORDS),
    "structured": NUMBERS.view([("a", "f8"), ("b", "i4", 2), ("c", "S16")]),
    "big-endian": NUMBERS.astype(">f8"),
    "bool": NUMBERS > 0.5,
    "complex": NUMBERS + 1j,
    "subclass": tagged(NUMBERS),
    "matrix": np.matrix(NUMBERS),
    "record": np.rec.array(NUMBERS.view([("a", "f8"), ("b", "f8"), ("c", "f8"), ("d", "f8")])),
}
OTHERS = {
    "masked": np.ma.masked_array(NUMBERS, NUMBERS > 0.5, fill_value=7),
    "masked, no mask": np.ma.masked_array(NUMBERS),
    "objects": np.array(WORDS, dtype=object),
    "bytes": NUMBERS.tobytes(),
    "bytearray": bytearray(NUMBERS.tobytes()),
    "str": "é" * (2 * ROWS),
    "list": NUMBERS.ravel().tolist(),
    "DataFrame": FRAME,
    "DataFrame, Arrow types": FRAME.convert_dtypes(dtype_backend="pyarrow"),
    "DataFrame, categories": FRAME.astype({"w": "category"}),
    "Series": FRAME["t"],
    "MultiIndex": FRAME.set_index(["w", "n"]),
    "Table": TABLE,
    "RecordBatch": TABLE.to_batches()[0],
    "Array": TABLE["x"].chunk(0),
    "ChunkedArray": TABLE["c"],
    "Polars frame": POLARS,
    "Polars series": POLARS["w"],
    "Polars categories": POLARS.select(pl.col("w").cast(pl.Categorical)),
    "CSR": scipy.sparse.random(2000, 2000, 0.05, "csr", random_state=1),
    "CSC": scipy.sparse.random(2000, 2000, 0.05, "csc", random_state=1),
}


def assert_equal(found, expected):
    assert type(found) is type(expected)
    match expected:
        case pd.DataFrame():
            pd.testing.assert_frame_equal(found, expected)
        case pd.Series():
            pd.testing.assert_series_equal(found, expected)
        case pl.DataFrame() | pl.Series():
            assert found.equals(expected)
        case pa.Table() | pa.RecordBatch() | pa.Array() | pa.ChunkedArray():
            assert found.equals(expected)
        case _ if scipy.sparse.issparse(expected):
            assert (found != expected).nnz == 0
        case np.ma.MaskedArray():
            np.testing.assert_array_equal(found.mask, expected.mask)
            np.testing.assert_array_equal(found.filled(), expected.filled())
            assert found.fill_value == expected.fill_value
        case np.ndarray():
            assert found.dtype == expected.dtype
            np.testing.assert_array_equal(found, expected)
        case _:
            assert found == expected


def traffic(engine):
    return np.array(engine._dispatcher.traffic)


@pytest.fixture(scope="module")
def engine():
    with TheusEngine(workers=1) as engine:
        engine.submit(echo, value=0).result(30)
        yield engine


@pytest.mark.parametrize("name", [*ARRAYS, *OTHERS])
def test_a_large_value_arrives_equal_and_not_through_the_socket(engine, name):
    value = ARRAYS.get(name, OTHERS.get(name))
    before = traffic(engine)
    back = engine.submit(echo, value=value).result(30)
    sent, received = traffic(engine) - before
    assert_equal(back, value)
    assert max(sent, received) < WIRE_LIMIT


@pytest.mark.parametrize("name", ARRAYS)
def test_what_arrives_is_private_and_writable(engine, name):
    value = ARRAYS[name]
    first = value.flat[0]

    def overwrite(ctx, value):
        value[...] = np.zeros(1, value.dtype)
        return value

    back = engine.submit(overwrite, value=value).result(30)
    assert back.flags.writeable
    assert back.flat[0] == np.zeros(1, value.dtype)[0]
    assert value.flat[0] == first
    if name == "subclass":
        assert back.unit == "m"


def test_an_array_that_occurs_twice_arrives_once(engine):
    first, second, view = engine.submit(echo, value=(NUMBERS, NUMBERS, NUMBERS[1:])).result(30)
    assert first is second
    assert not np.shares_memory(first, view)


def test_a_slice_of_arrow_data_does_not_drag_its_table_along(engine):
    big = pa.table({"x": np.arange(4_000_000), "w": np.arange(4_000_000).astype("S8")})
    small = big.slice(1_000_000, 10)
    before = traffic(engine)
    assert engine.submit(echo, value=small).result(30).equals(small)
    assert max(traffic(engine) - before) < WIRE_LIMIT
    batch = small.to_batches()[0]
    assert engine.submit(echo, value=batch).result(30).equals(batch)
    column = batch.column(0)
    assert engine.submit(echo, value=column).result(30).equals(column)


def test_every_route_takes_large_values(engine):
    engine.compare_and_swap(engine.state.version, domain={"big": NUMBERS, "small": 1})

    def read_and_spoil(ctx):
        values = ctx.domain["big"]
        total = values.sum()
        values[...] = 0
        return total + ctx.domain["small"]

    for _ in range(2):  # each task has a copy of its own
        assert engine.submit(read_and_spoil).result(30) == NUMBERS.sum() + 1
    np.testing.assert_array_equal(engine.state.domain["big"], NUMBERS)
    assert engine.executor().submit(np.sum, NUMBERS).result(30) == NUMBERS.sum()
    parts = [NUMBERS[:80_000], NUMBERS[80_000:]]
    assert [part.shape for part in engine.map(echo, parts)] == [part.shape for part in parts]

    def fail(ctx, value):
        error = ValueError("with a payload")
        error.payload = value * 2
        raise error

    with pytest.raises(ValueError, match="payload") as caught:
        engine.submit(fail, value=NUMBERS).result(30)
    np.testing.assert_array_equal(caught.value.payload, NUMBERS * 2)


def test_what_does_not_fit_says_so(engine):
    huge = np.broadcast_to(np.float64(1), (1 << 45,))
    with pytest.raises(theus.HeavyZoneFullError, match="inputs"):
        engine.submit(echo, value=huge)

    def make(ctx):
        return np.broadcast_to(np.float64(1), (1 << 45,))

    with pytest.raises(theus.HeavyZoneFullError, match="result"):
        engine.submit(make).result(30)


def test_what_fails_to_load_fails_its_task_alone(engine):
    class Grenade:
        def __reduce__(self):
            return (int, ("not a number",))

    with pytest.raises(ValueError, match="not a number"):
        engine.submit(describe, value=[Grenade(), NUMBERS]).result(30)
    assert engine.submit(describe, value=NUMBERS).result(30) == ("ndarray", ROWS)


def test_copies_of_a_shm_array_are_private():
    with TheusEngine(workers=1) as engine:
        entry = engine.heavy.put("entry", NUMBERS)
        for made in [copy.copy(entry), copy.deepcopy(entry), entry.copy()]:
            assert made.flags.writeable
            made[0] = 5
            np.testing.assert_array_equal(entry, NUMBERS)
            assert not np.shares_memory(made, entry)
        deep = copy.deepcopy({"entry": entry, "again": entry})
        assert deep["entry"] is deep["again"]


def test_a_handle_saved_to_disk_is_explained_when_it_is_stale(tmp_path):
    path = tmp_path / "saved.pickle"
    with TheusEngine(workers=1) as engine:
        entry = engine.heavy.put("entry", NUMBERS)
        path.write_bytes(pickle.dumps(entry))
        np.testing.assert_array_equal(pickle.loads(path.read_bytes()), NUMBERS)
        del entry
    with pytest.raises(theus.StaleSegmentError, match=r"entry 'entry'.*np\.array\(arr\)"):
        pickle.loads(path.read_bytes())


def test_a_function_may_close_over_large_values(engine):
    before = traffic(engine)

    def total(ctx, item=0):
        NUMBERS[0, 0] += 0  # the closure's copy is the worker's own, as any module global would be
        assert nameless_maps("self")
        return float(NUMBERS.sum()) + item

    expected = float(NUMBERS.sum())
    assert engine.submit(total).result(30) == expected
    assert list(engine.map(total, range(20))) == [expected + item for item in range(20)]
    assert max(traffic(engine) - before) < 2 * WIRE_LIMIT
    (pid,) = engine._dispatcher.worker_pids
    wait_for(lambda: not nameless_maps(pid), "the worker to let go of the closure")


def nameless_maps(pid):
    """The worker's mappings of nameless segments, as /proc shows them."""
    lines = Path(f"/proc/{pid}/maps").read_text().splitlines()
    return [line for line in lines if "/dev/shm/#" in line]


def wait_for(condition, what, timeout=10):
    deadline = time.monotonic() + timeout
    while not condition():
        assert time.monotonic() < deadline, f"waited {timeout} s for {what}"
        time.sleep(0.01)


def test_torch_tensors(engine):
    torch = pytest.importorskip("torch")
    numbers = torch.arange(1_000_000, dtype=torch.float32).reshape(1000, 1000)
    tensors = {
        "plain": numbers,
        "transposed": numbers.T,
        "strided": numbers[::2, ::2],
        "bfloat16": numbers.to(torch.bfloat16),
        "complex": numbers.to(torch.complex64),
        "bool": numbers > 7,
        "float8": numbers.to(torch.float8_e4m3fn),
        "gradient": numbers.clone().requires_grad_(),
        "parameter": torch.nn.Parameter(numbers),
    }
    for name, tensor in tensors.items():
        before = traffic(engine)
        back = engine.submit(echo, value=tensor).result(60)
        assert max(traffic(engine) - before) < WIRE_LIMIT, name
        assert type(back) is type(tensor)
        assert back.dtype is tensor.dtype
        assert back.requires_grad == tensor.requires_grad
        same = tensor.to(torch.float32) if name == "float8" else tensor
        assert torch.equal(back.to(same.dtype), same), name

    model = torch.nn.Linear(2000, 500)
    before = traffic(engine)
    back = engine.submit(echo, value=model).result(60)
    assert max(traffic(engine) - before) < WIRE_LIMIT
    assert torch.equal(back.weight, model.weight)

    def fill(ctx, value):
        value += 1
        return value

    assert torch.equal(engine.submit(fill, value=numbers).result(60), numbers + 1)
