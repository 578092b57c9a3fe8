"""Tasks that are polled for: whatever happens meanwhile, they are tasks like others."""

import asyncio
import importlib
import os
import signal
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest

import theus
from theus import TheusEngine, process
from theus.errors import WorkerDiedError

MODULE = """
import os, signal, time
import numpy as np
from theus import process

FACTOR = 2

@process(parallel=True)
def scaled(ctx, n=0):
    return FACTOR * n + ctx.domain.get("add", 0)

@process(parallel=True)
def moody(ctx, mood="good"):
    if mood == "slow":
        time.sleep(0.2)
    elif mood == "hanging":
        time.sleep(60)
    elif mood == "failing":
        raise KeyError(mood)
    elif mood == "dying":
        os.kill(os.getpid(), signal.SIGKILL)
    elif mood == "large":
        return np.arange(1_000_000)
    elif mood == "making":
        return ctx.heavy.put("made", np.arange(1_000_000))
    elif mood == "printing":
        print("printed", flush=False)
    return mood

@process(parallel=True)
def seen(ctx):
    return float(ctx.heavy["x"].sum())
"""


@pytest.fixture
def tasks(tmp_path, monkeypatch):
    (tmp_path / "short_tasks.py").write_text(MODULE)
    monkeypatch.syspath_prepend(str(tmp_path))
    importlib.invalidate_caches()
    yield importlib.import_module("short_tasks")
    del sys.modules["short_tasks"]


async def warm(engine, function, *more):
    """Call it until it is known to be short, so that the caller polls for it."""
    for _ in range(50):
        await engine.execute(function)
    for other in more:
        await warm(engine, other)


def cores():
    return len(os.sched_getaffinity(0))


pytestmark = pytest.mark.skipif(cores() < 2, reason="polling needs a core beside the worker's")


def run(scenario, **options):
    async def main():
        async with TheusEngine(workers=2, **options) as engine:
            return await scenario(engine)

    return asyncio.run(main())


def test_what_a_short_function_reads_is_never_stale(tasks):
    async def scenario(engine):
        await warm(engine, tasks.scaled)
        assert await engine.execute(tasks.scaled, n=4) == 8
        tasks.FACTOR = 3
        assert await engine.execute(tasks.scaled, n=4) == 12
        engine.compare_and_swap(engine.state.version, domain={"add": 100})
        assert await engine.execute(tasks.scaled, n=4) == 112
        tasks.FACTOR = 2
        for n in range(50):
            assert await engine.execute(tasks.scaled, n=n) == 2 * n + 100
        tasks.scaled.__code__ = (lambda ctx, n=0: -n).__code__
        assert await engine.execute(tasks.scaled, n=4) == -4

    run(scenario)


def test_a_reloaded_module_runs_its_new_code(tasks, tmp_path):
    async def scenario(engine):
        await warm(engine, tasks.scaled)
        (tmp_path / "short_tasks.py").write_text(MODULE.replace("FACTOR = 2", "FACTOR = 77"))
        importlib.reload(tasks)
        assert await engine.execute(tasks.scaled, n=1) == 77

    run(scenario)


def test_each_state_is_the_one_of_its_moment(tasks):
    async def scenario(engine):
        for number in range(200):
            engine.heavy.put("x", np.full(10, number))
            for _ in range(number % 5):
                assert await engine.execute(tasks.seen) == 10 * number

    run(scenario)


def test_what_is_freed_is_not_kept_for_the_next_call(tasks):
    async def scenario(engine):
        engine.heavy.put("x", np.arange(1000))
        await warm(engine, tasks.seen)
        assert await engine.execute(tasks.seen) == 499_500
        name = Path(engine.heavy.path("x")).name
        engine.heavy.free("x")
        return name in os.listdir("/dev/shm")

    assert not run(scenario)


def test_a_function_that_turns_slow_large_or_wrong_is_a_task_like_others(tasks):
    async def scenario(engine):
        for mood in ["slow", "large", "failing", "making", "dying", "good", "hanging"] * 2:
            await warm(engine, tasks.moody, tasks.scaled)
            if mood == "failing":
                with pytest.raises(KeyError, match=mood) as raised:
                    await engine.execute(tasks.moody, mood=mood)
                assert "short_tasks.py" in str(raised.value.__cause__)
            elif mood == "dying":
                with pytest.raises(WorkerDiedError, match="SIGKILL"):
                    await engine.execute(tasks.moody, mood=mood)
            elif mood == "hanging":
                with pytest.raises(TimeoutError):
                    await engine.execute(tasks.moody, mood=mood, timeout=0.2)
                cancelled = asyncio.ensure_future(engine.execute(tasks.moody, mood=mood))
                await asyncio.sleep(0.05)
                cancelled.cancel()
                with pytest.raises(asyncio.CancelledError):
                    await cancelled
            elif mood in ("large", "making"):
                assert (await engine.execute(tasks.moody, mood=mood)).sum() == 499_999_500_000
            else:
                assert await engine.execute(tasks.moody, mood=mood) == mood
            assert await engine.execute(tasks.scaled, n=5) == 10

    run(scenario)


def test_inputs_of_any_kind_go_with_a_short_function(tasks):
    async def scenario(engine):
        view = engine.heavy.put("x", np.arange(5.0))
        large = np.ones(1_000_000)
        await warm(engine, tasks.scaled)
        for value in [1, 2.5, view, large, view[::-1], np.arange(3)]:
            got = await engine.execute(tasks.scaled, n=value)
            assert np.array_equal(got, 2 * value)

    run(scenario)


def test_other_coroutines_run_beside_a_loop_of_short_tasks(tasks):
    async def scenario(engine):
        await warm(engine, tasks.scaled)
        ticks = 0

        async def tick():
            nonlocal ticks
            while True:
                ticks += 1
                await asyncio.sleep(0.001)

        ticking = asyncio.ensure_future(tick())
        until = time.monotonic() + 0.5
        while time.monotonic() < until:
            await engine.execute(tasks.scaled, n=1)
        ticking.cancel()
        return ticks

    assert run(scenario) > 20


def test_many_at_once_come_back_each_to_its_own(tasks):
    async def scenario(engine):
        await warm(engine, tasks.scaled)
        got = await asyncio.gather(*[engine.execute(tasks.scaled, n=n) for n in range(3000)])
        assert got == [2 * n for n in range(3000)]

    run(scenario)


def test_threads_with_loops_and_without_share_the_workers(tasks):
    wrong = []
    with TheusEngine(workers=2) as engine:

        async def looped():
            for n in range(1500):
                got = await engine.execute(tasks.scaled, n=n)
                wrong.extend([n] if got != 2 * n else [])

        def plain():
            for n in range(500):
                got = engine.submit(tasks.scaled, n=n).result(60)
                wrong.extend([n] if got != 2 * n else [])

        kinds = [lambda: asyncio.run(looped()), plain] * 2
        threads = [threading.Thread(target=kind) for kind in kinds]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(60)
            assert not thread.is_alive()
    assert not wrong


def test_workers_killed_between_short_tasks_cost_at_most_those_they_ran(tasks):
    async def scenario(engine):
        await warm(engine, tasks.scaled)
        died = 0
        for n in range(600):
            if n % 100 == 50:
                for pid in engine.worker_pids:
                    os.kill(pid, signal.SIGKILL)
            try:
                assert await engine.execute(tasks.scaled, n=n) == 2 * n
            except WorkerDiedError:
                died += 1
        return died

    assert run(scenario) <= 6


def test_limits_of_workers_hold_for_short_tasks(tasks):
    async def scenario(engine):
        pids = set()
        for _ in range(12):
            pids |= set(engine.worker_pids)
            await engine.execute(tasks.scaled)
        return pids

    assert len(run(scenario, max_tasks_per_worker=3)) >= 3


def test_what_a_short_task_prints_is_shown_at_once(python, tasks, tmp_path):
    done = python(
        "import asyncio, os, sys\n"
        f"sys.path.insert(0, {str(tmp_path)!r})\n"
        "import short_tasks as tasks\n"
        "from theus import TheusEngine\n"
        "async def main():\n"
        "    async with TheusEngine(workers=1) as engine:\n"
        "        for _ in range(50):\n"
        "            await engine.execute(tasks.moody)\n"
        "        await engine.execute(tasks.moody, mood='printing')\n"
        "        await asyncio.sleep(0.2)\n"
        "        os.kill(engine.worker_pids[0], 9)\n"
        "asyncio.run(main())\n"
    )
    assert done.stdout == "printed\n"


def test_ctrl_c_among_short_tasks_leaves_the_engine_whole(python, tmp_path, tasks):
    done = python(
        "import asyncio, os, random, signal, sys, threading, time\n"
        f"sys.path.insert(0, {str(tmp_path)!r})\n"
        "import short_tasks as tasks\n"
        "from theus import TheusEngine\n"
        "signal.signal(signal.SIGINT, signal.default_int_handler)\n"
        "engine = TheusEngine(workers=2)\n"
        "async def many():\n"
        "    n = 0\n"
        "    while True:\n"
        "        n += 1\n"
        "        assert await engine.execute(tasks.scaled, n=n) == 2 * n\n"
        "ready, ended = threading.Event(), threading.Event()\n"
        "def shoot():\n"
        "    chance = random.Random(5)\n"
        "    while not ended.is_set():\n"
        "        if ready.wait(0.1):\n"
        "            ready.clear()\n"
        "            time.sleep(chance.random() * 0.01)\n"
        "            os.kill(os.getpid(), signal.SIGINT)\n"
        "def others():\n"
        "    while not ended.is_set():\n"
        "        assert engine.submit(tasks.scaled, n=8).result(30) == 16\n"
        "threads = [threading.Thread(target=f) for f in (shoot, others)]\n"
        "for thread in threads:\n"
        "    thread.start()\n"
        "interrupts, until = 0, time.monotonic() + 4\n"
        "while time.monotonic() < until:\n"
        "    loop = asyncio.new_event_loop()\n"
        "    try:\n"
        "        ready.set()\n"
        "        loop.run_until_complete(many())\n"
        "    except KeyboardInterrupt:\n"
        "        interrupts += 1\n"
        "    finally:\n"
        "        try:\n"
        "            loop.close()\n"
        "        except RuntimeError:\n"
        "            pass\n"
        "ended.set()\n"
        "for thread in threads:\n"
        "    thread.join(40)\n"
        "    assert not thread.is_alive()\n"
        "assert asyncio.run(engine.execute(tasks.scaled, n=4)) == 8\n"
        "engine.close()\n"
        "print(interrupts > 20)\n"
    )
    assert done.stdout.split() == ["True"]


def test_an_engine_that_waits_uses_no_processor_time(tasks):
    async def scenario(engine):
        await warm(engine, tasks.scaled)
        pids = [os.getpid(), *engine.worker_pids]
        await asyncio.sleep(0.2)
        before = [switches(pid) for pid in pids]
        await asyncio.sleep(1)
        return [now - then for now, then in zip(map(switches, pids), before, strict=True)]

    own, *workers = run(scenario)
    assert max(workers) == 0, "a worker that waits is not woken"
    assert own < 20


def switches(pid):
    texts = [status.read_text() for status in Path(f"/proc/{pid}/task").glob("*/status")]
    lines = [line for text in texts for line in text.splitlines() if "ctxt_switches" in line]
    assert lines
    return sum(int(line.split()[1]) for line in lines)


# --- items that travel together ---


def square(ctx, n):
    return n * n


def test_small_items_are_sent_together(monkeypatch):
    weights = []
    with TheusEngine(workers=2) as engine:
        list(engine.map(square, range(300)))
        submit = engine._dispatcher.submit

        def counted(program, call, state, **options):
            weights.append(call.weight)
            return submit(program, call, state, **options)

        monkeypatch.setattr(engine._dispatcher, "submit", counted)
        assert list(engine.map(square, range(20_000))) == [n * n for n in range(20_000)]
    assert sum(weights) == 20_000
    assert len(weights) < 2_000


def fails_at(ctx, n):
    if n == 7_777:
        raise ValueError(n)
    return n


def test_an_item_that_fails_among_others_ends_where_it_stands():
    with TheusEngine(workers=2) as engine:
        list(engine.map(fails_at, range(300)))
        got = []
        with pytest.raises(ValueError, match="7777") as raised:
            got.extend(engine.map(fails_at, range(10_000)))
    assert got == list(range(7_777))
    assert "fails_at" in str(raised.value.__cause__)


def stops_at(ctx, n):
    if n == 500:
        raise StopIteration
    return n


def large_at_times(ctx, n):
    if n % 400 == 399:
        return ctx.heavy.put("a", np.full(200_000, n)) if n % 800 == 799 else np.full(200_000, n)
    return [n]


def test_large_results_among_small_ones_stay_in_their_place():
    with TheusEngine(workers=2) as engine:
        list(engine.map(large_at_times, range(390)))
        results = list(engine.map(large_at_times, range(3_000)))
    assert [int(r[-1]) for r in results] == list(range(3_000))
    assert all(len(r) == (200_000 if n % 400 == 399 else 1) for n, r in enumerate(results))


def test_an_item_that_stops_iterating_is_an_error_of_its_own():
    with TheusEngine(workers=2) as engine:
        list(engine.map(stops_at, range(300)))
        with pytest.raises(RuntimeError, match="StopIteration"):
            list(engine.map(stops_at, range(1_000)))


def identity(ctx, item):
    return item


SHARED = [1, 2]


def test_items_and_results_that_travel_together_share_nothing():
    with TheusEngine(workers=1) as engine:
        list(engine.map(identity, range(300)))
        results = list(engine.map(identity, [SHARED] * 600))
    assert results == [SHARED] * 600
    assert len({id(result) for result in results}) == 600


def test_items_are_taken_a_bounded_number_ahead():
    taken = 0

    def numbers():
        nonlocal taken
        for number in range(1_000_000):
            taken += 1
            yield number

    with TheusEngine(workers=2) as engine:
        list(engine.map(square, range(300)))
        results = engine.map(square, numbers())
        for _ in range(10):
            next(results)
        assert taken <= 8 * 256 + 256
        results.close()


def test_a_slow_source_of_items_is_not_waited_for():
    def numbers():
        for number in range(5):
            yield number
            time.sleep(0.1)

    with TheusEngine(workers=2) as engine:
        list(engine.map(square, range(300)))
        started = time.monotonic()
        results = engine.map(square, numbers())
        assert next(results) == 0
        assert list(results) == [1, 4, 9, 16]
        assert time.monotonic() - started < 20


def test_a_worker_that_dies_with_several_items_loses_only_tasks(tmp_path):
    def kill_once(ctx, n):
        if n == 900 and not (tmp_path / "killed").exists():
            (tmp_path / "killed").touch()
            os.kill(os.getpid(), signal.SIGKILL)
        return n

    with TheusEngine(workers=2) as engine:
        list(engine.map(kill_once, range(300)))
        with pytest.raises(theus.WorkerDiedError):
            list(engine.map(kill_once, range(2_000)))
        assert list(engine.map(kill_once, range(2_000))) == list(range(2_000))
        again = process(parallel=True, retries=1)(kill_once)
        list(engine.map(again, range(300)))
        (tmp_path / "killed").unlink()
        assert list(engine.map(again, range(2_000))) == list(range(2_000))
