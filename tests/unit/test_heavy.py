"""The heavy zone: dtypes, orders, publication, and what a late write can do."""

import os
import pickle
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.ipc
import pytest

import theus

DTYPES = [
    "?", "i1", "u2", "<i4", ">i4", "u8", "f2", "f4", ">f8", "c8", "c16", "g", "S5", "U3",
    "M8[ns]", "m8[25s]", "V7",
    [("a", "i4"), ("b", "f8", (2,))],
    np.dtype({"names": ["x", "y"], "formats": ["u1", ">f4"], "offsets": [3, 8], "itemsize": 16}),
]  # fmt: skip


def sample(dtype, shape, order):
    rng = np.random.default_rng(1)
    dtype = np.dtype(dtype)
    flat = np.frombuffer(rng.bytes(dtype.itemsize * int(np.prod(shape))), np.uint8)
    if dtype.kind in "bfcUgS" or dtype.names:
        flat = flat % 2
    return np.asarray(flat.view(dtype).reshape(shape), order=order)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("order", ["C", "F"])
@pytest.mark.parametrize("shape", [(), (3,), (2, 3, 4)], ids=str)
def test_every_dtype_and_order_comes_back(engine, dtype, order, shape):
    source = sample(dtype, shape, order)
    put = engine.heavy.put("put", source)
    made = engine.heavy.alloc("made", shape, dtype, order)
    made[...] = source
    sealed = engine.heavy.seal("made")
    for got in (put, sealed, theus.open(engine.heavy.path("put"))):
        assert got.dtype == source.dtype
        assert got.shape == source.shape
        if source.dtype.names:  # numpy does not copy the padding between fields
            assert repr(got.tolist()) == repr(source.tolist())
        else:
            assert got.tobytes() == source.tobytes()
        assert not got.flags.writeable
    if len(shape) > 1:
        assert put.strides == source.strides == sealed.strides


@pytest.mark.parametrize("shape", [0, (3, 0), (0, 5)])
def test_empty_arrays(engine, shape):
    assert engine.heavy.put("e", np.zeros(shape)).shape == np.zeros(shape).shape
    assert engine.submit(lambda ctx: ctx.heavy["e"].size).result() == 0


def test_objects_are_refused(engine):
    with pytest.raises(theus.UnsupportedDtypeError, match="Python objects"):
        engine.heavy.put("o", np.array([object()]))


def test_a_stock_reader_sees_the_same_bytes(engine):
    matrix = engine.heavy.put("matrix", np.arange(12.0, dtype="f4").reshape(3, 4))
    mapped = pa.memory_map(engine.heavy.path("matrix"))
    tensor = pyarrow.ipc.read_tensor(mapped).to_numpy()
    np.testing.assert_array_equal(tensor, matrix)
    del tensor
    mapped.close()


def test_arrow_takes_a_column_without_a_copy(engine):
    column = engine.heavy.put("c", np.arange(1000))
    arrow = pa.array(column[10:20])
    assert arrow.to_pylist() == list(range(10, 20))
    assert theus._theus.locate(arrow.buffers()[1].address, 80) is not None


def test_a_draft_has_no_name_and_says_so(engine):
    engine.heavy.alloc("d", 3)
    with pytest.raises(theus.UnpublishedError, match="seal"):
        engine.heavy.path("d")


def test_a_late_write_neither_crashes_nor_reaches_a_reader(engine):
    draft = engine.heavy.alloc("x", 5000, "i8")
    late = np.asarray(draft)
    draft[:] = 1
    engine.compare_and_swap(engine.state.version, heavy={"x": draft})
    late[:] = 9
    with pytest.raises(ValueError, match="read-only"):
        draft[0] = 2
    with pytest.raises(ValueError, match="WRITEABLE"):
        draft.setflags(write=True)
    assert engine.heavy["x"].sum() == 5000
    assert engine.submit(lambda ctx: int(ctx.heavy["x"].sum())).result() == 5000


def test_each_look_is_an_array_of_its_own_over_the_same_bytes(engine):
    engine.heavy.put("x", np.arange(6))
    first, second = engine.heavy["x"], engine.heavy["x"]
    assert first is not second
    assert first.base is not second
    assert first.__array_interface__["data"] == second.__array_interface__["data"]
    path = engine.heavy.path("x")
    engine.heavy.free("x")
    assert first.tolist() == second.tolist() == list(range(6))
    del first, second
    assert not os.path.exists(path)
    assert path not in Path("/proc/self/maps").read_text()


def test_what_a_fork_could_write_is_copied_at_publication(engine):
    draft = engine.heavy.alloc("x", 4)
    draft[:] = 3
    read, write = os.pipe()
    child = os.fork()
    if child == 0:
        os.read(read, 1)
        np.asarray(draft)[:] = 8
        os._exit(0)
    sealed = engine.heavy.seal("x")
    os.write(write, b"x")
    os.waitpid(child, 0)
    assert sealed.tolist() == [3] * 4
    os.close(read)
    os.close(write)


def test_old_snapshots_keep_their_entries_and_names_go_with_them(engine):
    engine.heavy.put("x", np.arange(3))
    path, held = engine.heavy.path("x"), engine.state
    engine.heavy.put("x", np.arange(5))
    assert os.path.exists(path)
    assert held.heavy["x"].size == 3
    assert engine.heavy.stats()["pinned_bytes"] > 0
    del held
    assert not os.path.exists(path)
    assert engine.heavy["x"].size == 5


def test_free_removes_the_name_while_views_stay(engine):
    view = engine.heavy.put("x", np.arange(3))
    path = engine.heavy.path("x")
    by_hand = pickle.dumps(view)
    assert pickle.loads(by_hand).tolist() == [0, 1, 2]
    engine.heavy.free("x")
    assert not os.path.exists(path)
    assert view.tolist() == [0, 1, 2]
    with pytest.raises(theus.StaleSegmentError, match=r"'x'.*np\.array"):
        pickle.loads(by_hand)
    with pytest.raises(theus.EntryNotFoundError, match="no entry 'x'"):
        engine.heavy["x"]


def test_the_limit_says_what_was_asked_and_what_is_left():
    with theus.TheusEngine(heavy_limit=10_000) as engine:
        with pytest.raises(theus.HeavyZoneFullError, match=r"84096 bytes.*heavy_limit"):
            engine.heavy.alloc("x", 10_000)
        assert len(engine.heavy) == 0


def test_a_swap_merges_by_key_and_strict_does_not(engine):
    base = engine.state.version
    engine.compare_and_swap(base, domain={"a": 1})
    engine.compare_and_swap(base, domain={"b": 2})
    with pytest.raises(theus.StateConflictError) as caught:
        engine.compare_and_swap(base, domain={"a": 3})
    assert caught.value.keys == ("domain.a",)
    with pytest.raises(theus.StateConflictError):
        engine.compare_and_swap(base, domain={"c": 3}, strict=True)
    assert dict(engine.state.domain) == {"a": 1, "b": 2}


def test_an_entry_has_its_own_name_and_the_key_it_was_swapped_in_as(engine):
    draft = engine.heavy.alloc("own", 4)
    engine.compare_and_swap(engine.state.version, heavy={"alias": draft, "part": draft[1:3]})
    assert set(engine.state.heavy) == {"own", "alias", "part"}
    assert engine.heavy.path("own") == engine.heavy.path("alias")
    assert engine.submit(lambda ctx: ctx.heavy["part"].shape).result() == (2,)
    engine.heavy.free("alias")
    assert set(engine.heavy) == {"part"}


def test_arithmetic_is_plain_and_in_place_returns_the_array(engine):
    draft = engine.heavy.alloc("x", 3)
    same = draft
    same += 1
    assert same is draft
    assert type(draft + 1) is np.ndarray
    assert type(np.sort(draft) + 0) is np.ndarray


def test_names_that_cannot_be_entered_are_refused_before_anything_happens(engine):
    draft = engine.heavy.alloc("x", 3)
    with pytest.raises(ValueError, match="216 bytes"):
        engine.compare_and_swap(engine.state.version, heavy={"n" * 217: draft})
    with pytest.raises(ValueError, match="empty"):
        engine.heavy.put("", np.arange(3))
    draft[:] = 1
    assert engine.state.version == 0


@pytest.mark.slow
def test_arrays_over_four_gibibytes(engine):
    items = (4 << 30) + 4096
    draft = engine.heavy.alloc("big", items, "u1")
    draft[-1] = 7
    engine.heavy.seal("big")
    last = engine.submit(lambda ctx: (ctx.heavy["big"][-2:].tolist(), ctx.heavy["big"].nbytes))
    assert last.result() == ([0, 7], items)


def test_a_missing_entry_is_said_with_some_of_those_there_are(engine):
    engine.compare_and_swap(0, heavy={f"e{number}": np.arange(2) for number in range(25)})
    with pytest.raises(theus.EntryNotFoundError, match=r"'e0', .*'e19' and 5 others\. What was"):
        engine.heavy["nobody"]


def test_free_takes_an_entry_away_under_all_its_names_and_no_other(engine):
    engine.heavy.put("x", np.arange(6))
    view = engine.heavy["x"][2:4]
    swap = engine.compare_and_swap
    swap(engine.state.version, heavy={"same": engine.heavy["x"], "part": view})
    engine.heavy.put("y", np.arange(3))
    engine.heavy.free("same")
    assert list(engine.heavy) == ["part", "y"]
    assert engine.heavy["part"].tolist() == [2, 3]
    engine.heavy.free("part")
    assert list(engine.heavy) == ["y"]
