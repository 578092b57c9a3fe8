"""What an engine's tasks are given and return, with workers of each implementation."""

import asyncio
import gc
import json
import logging
import math
import os
import time
from pathlib import Path

import msgspec
import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from values import MANY, PLAIN

import theus
from theus.heavy.array import handle_of

DEADLINE_S = 30
SCHEMAS = Path(__file__).resolve().parents[2] / "schemas"
GOLDEN = json.loads((SCHEMAS / "golden/values.json").read_text())["values"]
VALUES = [
    msgspec.msgpack.decode(bytes.fromhex(vector["bytes"]))
    for vector in GOLDEN
    if "ext" not in str(vector["value"])
]


@pytest.fixture
def engine(dialect):
    with dialect.engine({"rate": 0.5, "names": ["ä", "b"], "thing": {1, 2}}) as engine:
        yield engine


def used_falls_to(engine, limit):
    until = time.monotonic() + 5
    while engine.heavy.stats()["used_bytes"] > limit and time.monotonic() < until:
        gc.collect()
        time.sleep(0.01)
    return engine.heavy.stats()["used_bytes"] <= limit


# --- values ---


def test_golden_values_come_back(run):
    assert len(VALUES) >= 10
    for value in VALUES:
        found = run("echo", value=value)
        assert found == value
        assert type(found) is type(value)


@pytest.mark.parametrize("value", [math.inf, -math.inf, -0.0, 5e-324, 2**64 - 1, -(2**63)])
def test_extreme_numbers_come_back(run, value):
    found = run("echo", value=[value, {"a": value}])
    assert repr(found) == repr([value, {"a": value}])


def test_nan_comes_back(run):
    assert math.isnan(run("echo", value=math.nan))


@MANY
@given(value=PLAIN)
def test_any_plain_value_comes_back(run, value):
    assert run("echo", value=value) == value


def test_large_values_come_back(run):
    value = ["größe" * 100_000, bytes(range(256)) * 2000, list(range(70_000))]
    assert run("echo", value=value) == value


def test_the_domain_is_that_of_the_call(run, engine):
    assert run("domain", value="rate") == 0.5
    assert run("domain", value="names") == ["ä", "b"]
    engine.compare_and_swap(engine.state.version, {"rate": 0.75})
    assert run("domain", value="rate") == 0.75


@pytest.mark.needs("plain")
def test_what_is_not_plain_in_the_domain_is_told(run):
    with pytest.raises(theus.NativeTaskError, match="set"):
        run("domain", value="thing")


# --- the heavy zone ---


def test_arrays_go_in_by_handle_whatever_part_of_them(run, engine):
    x = engine.heavy.put("x", np.arange(10_000.0))
    m = engine.heavy.put("m", np.arange(600.0).reshape(20, 30))
    for part in x, x[10:20], x[::-1], x[::7], m, m.T, m[::2, 5:], m.T[3], m[:, ::-1]:
        assert run("sum_of", array=part) == part.sum()
        back = run("same", array=part)
        np.testing.assert_array_equal(back, part)
        assert handle_of(back) == handle_of(part)


def test_an_empty_part_goes_in_too(run, engine):
    x = engine.heavy.put("x", np.arange(10.0))
    for nothing in x[3:3], engine.heavy.put("empty", np.zeros(0)):
        assert run("sum_of", array=nothing) == 0.0


def test_the_state_has_empty_entries(run, engine):
    x = engine.heavy.put("x", np.arange(10.0))
    empty = {"part": x[3:3], "whole": engine.heavy.put("whole", np.zeros(0))}
    engine.compare_and_swap(engine.state.version, heavy=empty)
    assert [run("sum", column=key) for key in empty] == [0.0, 0.0]


def test_the_state_has_its_entries(run, engine):
    x = engine.heavy.put("größe", np.arange(100.0))
    engine.compare_and_swap(engine.state.version, heavy={"größe": x, "part": x[::-2]})
    assert run("entries") == ["größe", "part"]
    assert run("sum", column="größe") == 4950.0
    assert run("sum", column="part") == x[::-2].sum()


@pytest.mark.needs("tables")
def test_tables_go_in_by_handle_whatever_part_of_them(run, engine):
    table = engine.heavy.put("t", pa.table({"a": range(1000), "b": [str(n) for n in range(1000)]}))
    for part in (
        table,
        table.slice(10, 7),
        table.slice(10, 0),
        table.select(["b"]),
        table.select(["b", "a"])[990:],
    ):
        assert run("rows_of", array=part) == [part.num_rows, part.column_names]
        assert run("same", array=part).equals(part)


@pytest.mark.needs("tables")
def test_arrays_and_columns_go_in_by_handle_whatever_part_of_them(run, engine):
    array = engine.heavy.put("array", pa.array([str(n) for n in range(100)]))
    chunked = engine.heavy.put("chunked", pa.chunked_array([range(50), range(3)]))
    column = engine.heavy.put("t", pa.table({"a": range(100), "b": range(100)}))["b"]
    for whole in array, chunked, column:
        for part in whole, whole.slice(1), whole.slice(10, 41), whole.slice(5, 0):
            back = run("same", array=part)
            assert type(back) is type(part)
            assert back.equals(part)


@pytest.mark.needs("tables")
def test_a_table_that_a_task_makes_is_an_entry_too(run, engine):
    before = engine.heavy.stats()["used_bytes"]
    table = run("numbers", count=50_000)["table"]
    assert table["n"].to_pylist() == list(range(50_000))
    assert engine.heavy.stats()["used_bytes"] >= before + 400_000
    assert run("rows_of", array=table) == [50_000, ["n"]]
    del table
    assert used_falls_to(engine, before)


def test_what_many_tasks_make_is_counted_to_the_byte(dialect, engine):
    before = engine.heavy.stats()["used_bytes"]
    kept = [engine.submit(dialect.task("squares"), count=n) for n in range(1, 200)]
    for n, future in enumerate(kept, 1):
        assert future.result(DEADLINE_S).sum() == sum(i * i for i in range(n))
        assert engine.submit(dialect.task("forgets"), count=n).result(DEADLINE_S) is None
    lengths = [4096 + 8 * n for n in range(1, 200)]  # a tensor begins on its second page
    assert engine.heavy.stats()["used_bytes"] == before + sum(lengths)
    del kept, future
    assert used_falls_to(engine, before)


def test_what_does_not_fit_the_heavy_zone_fails_its_task_alone(dialect):
    with dialect.engine(heavy_limit=8 << 20) as engine:

        def run(name, **inputs):
            return engine.submit(dialect.task(name), **inputs).result(DEADLINE_S)

        assert run("nothing") is None
        with pytest.raises(theus.HeavyZoneFullError):
            run("squares", count=2 << 20)
        for _ in range(20):  # more than fits at once
            assert run("forgets", count=2 << 20) is None
        assert len(run("squares", count=1000)) == 1000


# --- many, log, progress ---


def test_ten_thousand_tasks_by_map(dialect, engine):
    found = list(engine.map(dialect.task("double"), range(10_000)))
    assert found == [2 * n for n in range(10_000)]


async def test_ten_thousand_tasks_at_once(dialect, engine):
    task = dialect.task("double")
    found = await asyncio.gather(*(engine.execute(task, item=n) for n in range(10_000)))
    assert found == [2 * n for n in range(10_000)]


def test_lines_reach_the_log(run, caplog):
    caplog.set_level(logging.DEBUG, "theus.worker")
    assert run("log", message="größe") is None
    deadline = time.monotonic() + DEADLINE_S
    while len(caplog.records) < 4 and time.monotonic() < deadline:
        time.sleep(0.01)
    lines = [(r.levelno, r.getMessage()) for r in caplog.records if r.name == "theus.worker"]
    assert lines == [(level, "größe") for level in (10, 20, 30, 40)]


def test_progress_is_told(dialect, engine):
    future = engine.submit(dialect.task("progress"), count=3)
    assert future.result(DEADLINE_S) == 3
    assert future.progress == theus.Progress(3, None, "")


@pytest.mark.parametrize("workers", [1, 2])
def test_tasks_may_use_their_share_of_the_cores(dialect, workers, monkeypatch):
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    monkeypatch.delenv("RAYON_NUM_THREADS", raising=False)
    share = max(1, len(os.sched_getaffinity(0)) // workers)
    with dialect.engine(workers=workers) as engine:
        found = engine.submit(dialect.task("threads")).result(DEADLINE_S)
    assert found == [share, share]
