"""What a version, a task and an entry cost does not grow with the entries that there are."""

import os
from itertools import count
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from theus import TheusEngine, _theus
from theus.heavy import tables

MAPPINGS = int(Path("/proc/sys/vm/max_map_count").read_text())
ITEM = np.arange(4)
BATCH = 5000


def look(ctx):
    return [(name, int(ctx.heavy[name][0])) for name in ctx.heavy], dict(ctx.domain)


def look_at(ctx, item):
    return int(ctx.heavy[item][0])


def put(engine, **values):
    arrays = {key: None if v is None else np.array([v]) for key, v in values.items()}
    engine.compare_and_swap(engine.state.version, heavy=arrays)


def sent(engine):
    return engine._dispatcher.traffic[0]


def test_workers_see_each_version_as_it_is():
    with TheusEngine({"rate": 1, "kept": [1]}, workers=1) as engine:

        def seen():
            state = engine.state
            expected = [(name, int(state.heavy[name][0])) for name in state.heavy]
            domain = {key: state.domain[key] for key in state.domain}
            assert engine.submit(look).result(30) == (expected, domain)
            return [name for name, _ in expected]

        put(engine, a=1, b=2, c=3)
        assert seen() == ["a", "b", "c"]
        put(engine, d=4, b=5)
        assert seen() == ["a", "b", "c", "d"]
        put(engine, a=None)
        put(engine, e=6, a=7)
        engine.compare_and_swap(engine.state.version, domain={"rate": 2, "new": "x"})
        assert seen() == ["b", "c", "d", "e", "a"]
        engine.heavy.free("c")
        engine.compare_and_swap(engine.state.version, heavy={"other": engine.heavy["d"]})
        engine.heavy.free("d")
        assert seen() == ["b", "e", "a"]
        assert seen() == ["b", "e", "a"]


def test_a_task_of_an_older_version_sees_that_one(engine):
    put(engine, a=1, b=2)
    names = ["a", "b"] * 40
    held = engine.map(look_at, names)
    assert next(held) == 1
    for number in range(20):
        put(engine, a=-number, c=number)
        assert engine.submit(look_at, item="c").result(30) == number
    assert list(held) == [2] + [1, 2] * 39


def test_a_worker_that_was_idle_for_long_is_told_what_differs():
    with TheusEngine(workers=1) as engine:
        entries = {str(number): ITEM for number in range(2000)}
        engine.compare_and_swap(engine.state.version, heavy=entries)
        engine.submit(look_at, item="7").result(30)
        before = sent(engine)
        assert before > 2000 * 50
        for number in range(900):
            put(engine, again=number)
        assert engine.submit(look_at, item="again").result(30) == 899
        # That, and that 900 segments are gone, takes little; telling everything took much.
        assert sent(engine) - before < before / 2
        before = sent(engine)
        for number in range(5000):
            put(engine, again=number)
        assert engine.submit(look_at, item="again").result(30) == 4999
        assert sent(engine) - before > 2000 * 50


def keep_a_view(ctx):
    global view  # noqa: PLW0603 - what a task keeps for the next ones
    view = ctx.heavy["x"]


def test_a_view_kept_from_an_earlier_task_goes_back_by_handle():
    with TheusEngine(workers=1) as engine:
        kept = engine.heavy.put("x", np.arange(1000))
        engine.submit(keep_a_view).result(30)
        engine.heavy.put("y", ITEM)
        found = engine.submit(lambda ctx: __import__(__name__).view[10:20]).result(30)
        name, offset, _ = _theus.locate(found.__array_interface__["data"][0], 80)
        assert name == _theus.locate(kept.__array_interface__["data"][0], 8000)[0]
        assert offset == 4096 + 80


def total(heavy):
    return sum(heavy[str(number)]["n"][0].as_py() for number in range(1200)), len(tables._opened)


def test_tables_that_nobody_looks_at_are_not_kept_open():
    tables = {str(number): pa.table({"n": [number, 0]}) for number in range(1200)}
    with TheusEngine(workers=1) as engine:
        engine.compare_and_swap(engine.state.version, heavy=tables)
        there = engine.submit(lambda ctx: total(ctx.heavy)).result(30)
        for values, opened in (total(engine.heavy), there):
            assert values == sum(range(1200))
            assert 0 < opened <= 1024
        part = engine.heavy["0"].slice(1)
        assert engine.submit(lambda ctx, part: part.num_rows, part=part).result(30) == 1


@pytest.mark.slow
@pytest.mark.timeout(180)
@pytest.mark.skipif(MAPPINGS > 200_000, reason=f"{MAPPINGS} mappings take too long to make")
def test_there_can_be_more_entries_than_mappings():
    many = MAPPINGS + BATCH
    numbers = count()
    with TheusEngine(workers=1) as engine:
        while len(engine.state.heavy) < many:
            values = {f"e{next(numbers)}": ITEM for _ in range(BATCH)}
            engine.compare_and_swap(engine.state.version, heavy=values)
        engine.heavy.put("last", ITEM + 1)
        first = engine.heavy["e0"]
        assert first.tolist() == ITEM.tolist()

        def all_of_them(ctx):
            values = sum(int(ctx.heavy[name][-1]) for name in ctx.heavy)
            with open("/proc/self/maps") as maps:
                return values, sum(1 for line in maps if "/dev/shm/" in line)

        values, mapped = engine.submit(all_of_them).result(150)
        assert values == 3 * len(engine.state.heavy) + 1
        assert 1000 < mapped < MAPPINGS / 2
        held = engine.state
    assert held.heavy["e1"].tolist() == ITEM.tolist()
    assert first.tolist() == ITEM.tolist()
    del held


def look_in_child(engine, names):
    reader, writer = os.pipe()
    child = os.fork()
    if not child:
        try:
            os.write(writer, str([int(engine.state.heavy[name][1]) for name in names]).encode())
        finally:
            os._exit(0)
    os.close(writer)
    with os.fdopen(reader) as answer:
        text = answer.read()
    os.waitpid(child, 0)
    return text


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:.*multi-threaded.*:DeprecationWarning")
def test_a_forked_child_finds_what_its_parent_has_unmapped():
    with TheusEngine(workers=1) as engine:
        for start in range(0, 20_000, BATCH):
            values = {f"e{number}": ITEM for number in range(start, start + BATCH)}
            engine.compare_and_swap(engine.state.version, heavy=values)
        assert look_in_child(engine, ["e0", "e1", "e19999"]) == "[1, 1, 1]"
        assert engine.heavy["e0"][1] == 1
