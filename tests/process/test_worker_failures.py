"""Workers that die again and again, do not start, hang, grow or write without end."""

import atexit
import os
import pickle
import signal
import sys
import time
from collections import Counter

import numpy as np
import psutil
import pytest

import theus
from theus import process
from theus.dispatch import dispatcher


def counted(path):
    """Note that a task ran, in a file that outlives its worker; how often it has."""
    with path.open("ab") as file:
        file.write(b"x")
    return path.stat().st_size


@process(parallel=True, retries=3)
def dies_twice(ctx, path):
    if counted(path) <= 2:
        os.kill(os.getpid(), signal.SIGKILL)
    return "done"


@process(parallel=True, retries=2)
def always_dies(ctx, path):
    counted(path)
    os.kill(os.getpid(), signal.SIGSEGV)


@process(parallel=True, retries=2)
def raises(ctx, path):
    counted(path)
    raise ValueError("mine")


@process(parallel=True, retries=2)
def sleeps(ctx, path):
    counted(path)
    time.sleep(60)


def test_a_task_that_may_be_run_again_survives_its_workers(engine, tmp_path):
    assert engine.submit(dies_twice, path=tmp_path / "runs").result(30) == "done"
    assert (tmp_path / "runs").stat().st_size == 3
    results = engine.map(dies_twice_item, [tmp_path / str(number) for number in range(5)])
    assert list(results) == ["done"] * 5


@process(parallel=True, retries=3)
def dies_twice_item(ctx, path):
    return dies_twice(ctx, path)


@pytest.mark.asyncio
async def test_execute_runs_it_again_too(tmp_path):
    async with theus.TheusEngine(workers=1) as engine:
        assert await engine.execute(dies_twice, path=tmp_path / "runs") == "done"


def test_a_task_that_kills_every_worker_is_quarantined_and_named(engine, tmp_path):
    neighbours = [engine.submit(lambda ctx, n: n, n=n) for n in range(20)]
    poison = engine.submit(always_dies, path=tmp_path / "runs")
    neighbours += [engine.submit(lambda ctx, n: n, n=n) for n in range(20, 40)]
    with pytest.raises(theus.PoisonTaskError, match="always_dies killed 3 workers") as caught:
        poison.result(30)
    assert (tmp_path / "runs").stat().st_size == 3
    error = caught.value
    assert isinstance(error, theus.WorkerDiedError)
    assert [death.signal for death in error.deaths] == [signal.SIGSEGV] * 3
    assert len({death.pid for death in error.deaths}) == 3
    assert "always_dies" in error.trace
    again = pickle.loads(pickle.dumps(error))
    assert (str(again), len(again.deaths)) == (str(error), 3)
    assert [future.result(30) for future in neighbours] == list(range(40))


@pytest.mark.parametrize(
    ("task", "timeout", "error"), [(raises, None, ValueError), (sleeps, 0.3, TimeoutError)]
)
def test_only_deaths_are_retried(engine, tmp_path, task, timeout, error):
    engine.submit(lambda ctx: None).result(30)  # so that the timeout is not the worker's start
    with pytest.raises(error):
        engine.submit(task, timeout=timeout, path=tmp_path / "runs").result(30)
    engine.submit(lambda ctx: None).result(30)
    assert (tmp_path / "runs").stat().st_size == 1


@pytest.mark.parametrize(("retries", "error"), [(-1, ValueError), (1.5, TypeError)])
def test_what_is_no_number_of_retries_is_refused(retries, error):
    with pytest.raises(error):
        process(parallel=True, retries=retries)


# --- limits ---


@pytest.mark.parametrize("name", ["max_tasks_per_worker", "max_worker_rss"])
def test_a_limit_is_positive(name):
    with pytest.raises(ValueError, match=name):
        theus.TheusEngine(**{name: 0})
    for value in ("5", 2.5, True):
        with pytest.raises(TypeError, match=name):
            theus.TheusEngine(**{name: value})


def test_a_worker_is_replaced_after_so_many_tasks_and_no_result_is_lost():
    with theus.TheusEngine(workers=2, max_tasks_per_worker=5) as engine:
        futures = [engine.submit(lambda ctx, n: (n, os.getpid()), n=n) for n in range(60)]
        found = [future.result(60) for future in futures]
    assert [n for n, _ in found] == list(range(60))
    pids = [pid for _, pid in found]
    assert max(Counter(pids).values()) == 5
    with theus.TheusEngine(workers=1, max_tasks_per_worker=1) as engine:
        one_by_one = [engine.submit(lambda ctx: os.getpid()).result(30) for _ in range(4)]
    assert len(set(one_by_one)) == 4


def test_a_worker_that_has_grown_is_replaced_but_what_it_maps_does_not_count():
    kept = []

    def grow(ctx, nbytes):
        kept.append(np.ones(nbytes, np.uint8))
        return os.getpid()

    with theus.TheusEngine(workers=1, max_worker_rss=300 << 20) as engine:
        engine.heavy.put("large", np.ones(400 << 20, np.uint8))
        look = engine.submit(lambda ctx: (os.getpid(), int(ctx.heavy["large"].sum())))
        first, total = look.result(60)
        assert total == 400 << 20
        assert engine.submit(lambda ctx: os.getpid()).result(30) == first
        assert engine.submit(grow, nbytes=400 << 20).result(60) == first
        assert engine.submit(lambda ctx: os.getpid()).result(60) != first


# --- starts ---


def test_a_worker_that_cannot_start_says_why_and_the_engine_recovers(tmp_path, monkeypatch):
    (tmp_path / "sitecustomize.py").write_text(
        "import os\nos.write(2, b'no such luck')\nos._exit(7)"
    )
    with theus.TheusEngine(workers=2) as engine:
        with monkeypatch.context() as broken:
            broken.setenv("PYTHONPATH", str(tmp_path))
            futures = [engine.submit(lambda ctx: 1) for _ in range(3)]
            for future in futures:
                with pytest.raises(theus.WorkerStartError, match="no such luck") as caught:
                    future.result(30)
        assert caught.value.status == 7
        assert pickle.loads(pickle.dumps(caught.value)).stderr == "no such luck"
        assert engine.submit(lambda ctx: 2).result(30) == 2


def test_a_python_that_is_not_there_is_named(monkeypatch):
    with theus.TheusEngine(workers=1) as engine:
        with monkeypatch.context() as broken:
            broken.setattr(sys, "executable", "/nowhere/python")
            with pytest.raises(FileNotFoundError, match="/nowhere/python"):
                engine.submit(lambda ctx: 1).result(30)
        assert engine.submit(lambda ctx: 2).result(30) == 2


@pytest.mark.timeout(60)
def test_a_worker_that_hangs_while_it_starts_is_given_up(tmp_path, monkeypatch):
    (tmp_path / "sitecustomize.py").write_text("import time\ntime.sleep(1000)")
    monkeypatch.setattr(dispatcher, "START_S", 3.0)
    with theus.TheusEngine(workers=1) as engine:
        with monkeypatch.context() as broken:
            broken.setenv("PYTHONPATH", str(tmp_path))
            with pytest.raises(theus.WorkerStartError, match="signal 9"):
                engine.submit(lambda ctx: 1).result(30)
        assert engine.submit(lambda ctx: 2).result(30) == 2


@pytest.mark.asyncio
@pytest.mark.timeout(60)
async def test_a_start_that_hangs_is_given_up_under_an_event_loop_too(tmp_path, monkeypatch):
    (tmp_path / "sitecustomize.py").write_text("import time\ntime.sleep(1000)")
    monkeypatch.setattr(dispatcher, "START_S", 0.5)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    with theus.TheusEngine(workers=1) as engine, pytest.raises(theus.WorkerStartError):
        await engine.execute(process(parallel=True)(lambda ctx: 1))


def test_what_a_worker_writes_while_it_starts_is_not_lost(python, tmp_path):
    (tmp_path / "sitecustomize.py").write_text("import sys\nprint('early', file=sys.stderr)")
    done = python(
        "import sys, theus, os\n"
        f"os.environ['PYTHONPATH'] = {str(tmp_path)!r}\n"
        "def late(ctx):\n    print('late', file=sys.stderr)\n    os.write(2, b'lower')\n"
        "with theus.TheusEngine(workers=1) as engine:\n"
        "    engine.submit(late).result(20)\n"
    )
    assert done.stderr.split() == ["early", "late", "lower"]


# --- stopped, hanging, talkative ---


def stop_itself(ctx):
    os.kill(os.getpid(), signal.SIGSTOP)


def test_a_stopped_worker_is_ended_by_its_timeout(engine):
    with pytest.raises(TimeoutError):
        engine.submit(stop_itself, timeout=0.3).result(30)
    assert engine.submit(lambda ctx: 1).result(30) == 1


@pytest.mark.parametrize("busy", [True, False])
def test_close_does_not_wait_for_a_stopped_worker(busy):
    engine = theus.TheusEngine(workers=1)
    pid = engine.submit(lambda ctx: os.getpid()).result(30)
    if busy:
        engine.submit(lambda ctx: time.sleep(1000))
        time.sleep(0.1)
    os.kill(pid, signal.SIGSTOP)
    started = time.monotonic()
    engine.close()
    assert time.monotonic() - started < 10
    assert not psutil.pid_exists(pid)


def hangs_at_exit(ctx):
    atexit.register(time.sleep, 1000)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    return os.getpid()


def test_close_does_not_wait_for_a_worker_that_does_not_end():
    engine = theus.TheusEngine(workers=1)
    pid = engine.submit(hangs_at_exit).result(30)
    engine.close()
    assert not psutil.pid_exists(pid)


def test_a_worker_that_does_not_end_when_it_is_replaced_is_killed(monkeypatch):
    monkeypatch.setattr(dispatcher, "EXIT_S", 0.3)
    with theus.TheusEngine(workers=1, max_tasks_per_worker=1) as engine:
        pid = engine.submit(hangs_at_exit).result(30)
        deadline = time.monotonic() + 20
        while psutil.pid_exists(pid) and time.monotonic() < deadline:
            assert engine.submit(lambda ctx: 1).result(30) == 1
        assert not psutil.pid_exists(pid)


@pytest.mark.timeout(60)
def test_output_without_end_neither_fills_the_owner_nor_keeps_it(python):
    done = python(
        "import os, sys, psutil, theus\n"
        "sys.stdout.flush()\n"
        "def talk(ctx):\n"
        "    while True:\n        os.write(1, b'x' * 65536)\n"
        "os.dup2(os.open(os.devnull, os.O_WRONLY), 1)\n"
        "with theus.TheusEngine(workers=1) as engine:\n"
        "    engine.submit(lambda ctx: 1).result(20)\n"
        "    before = psutil.Process().memory_info().rss\n"
        "    try:\n        engine.submit(talk, timeout=1).result(20)\n"
        "    except TimeoutError:\n        pass\n"
        "    grown = psutil.Process().memory_info().rss - before\n"
        "    assert grown < 8 << 20, grown\n"
        "    assert engine.submit(lambda ctx: 1).result(20) == 1\n"
        "print('done', file=sys.stderr)\n"
    )
    assert "done" in done.stderr
