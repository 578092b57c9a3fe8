"""Owners and workers die by real signals; nothing is left."""

import contextlib
import glob
import os
import random
import signal
import subprocess
import sys
import time

import psutil
import pytest

import theus

OWNER = """
import os, signal, sys, time
# Whoever runs the tests in the background may have had these ignored.
signal.signal(signal.SIGINT, signal.default_int_handler)
signal.signal(signal.SIGHUP, signal.SIG_DFL)
import numpy as np
from theus import TheusEngine
engine = TheusEngine(workers=2)
engine.heavy.put("x", np.arange(100_000))
if {fork}:
    if os.fork() == 0:
        time.sleep(1.5)
        os._exit(0)
futures = [engine.submit(lambda ctx: int(ctx.heavy["x"].sum())) for _ in range(4)]
futures[0].result()
print(*engine.worker_pids, flush=True)
while True:
    engine.heavy.put("y", np.zeros(10_000))
    draft = engine.heavy.alloc("z", 10_000)
    engine.submit(lambda ctx: ctx.heavy["y"].sum())
    time.sleep(0.001)
"""


def names():
    return set(glob.glob("/dev/shm/theus-*"))


@contextlib.contextmanager
def an_owner(*, fork=False):
    with subprocess.Popen(
        [sys.executable, "-c", OWNER.format(fork=fork)], stdout=subprocess.PIPE, text=True
    ) as process:
        try:
            workers = [int(pid) for pid in process.stdout.readline().split()]
            assert workers
            yield process, workers
        finally:
            process.kill()


def gone(workers, before, deadline_s):
    deadline = time.monotonic() + deadline_s
    while time.monotonic() < deadline:
        alive = [
            pid
            for pid in workers
            if psutil.pid_exists(pid) and psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
        ]
        if not alive and not names() - before:
            return True
        time.sleep(0.01)
    return False


@pytest.mark.slow
@pytest.mark.timeout(240)
def test_a_killed_owner_leaves_nothing():
    rounds = int(os.environ.get("THEUS_KILLS", "12"))
    chance = random.Random(7)
    for number in range(rounds):
        before = names()
        with an_owner(fork=number % 3 == 0) as (owner, workers):
            time.sleep(chance.random() * 0.1)
            owner.kill()
            owner.wait()
            assert gone(workers, before, 1.5), (number, names() - before)


@pytest.mark.timeout(60)
def test_a_new_engine_removes_what_owner_and_workers_left():
    before = names()
    with an_owner() as (owner, workers):
        for pid in workers:
            os.kill(pid, signal.SIGSTOP)  # so that none of them sweeps in between
        owner.kill()
        for pid in workers:
            os.kill(pid, signal.SIGKILL)
        owner.wait()
    assert names() - before
    with theus.TheusEngine():
        pass
    assert gone(workers, before, 1.0)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
def test_an_owner_that_a_signal_ends_leaves_nothing(number):
    before = names()
    with an_owner() as (owner, workers):
        owner.send_signal(number)
        owner.wait(10)
        assert gone(workers, before, 1.0)


@pytest.mark.parametrize("last", ["sys.exit(3)", "raise ValueError", "del engine", "pass"])
def test_an_owner_without_workers_leaves_nothing_either(python, last):
    before = names()
    python(
        "import sys, numpy as np\nfrom theus import TheusEngine\n"
        f"engine = TheusEngine()\nengine.heavy.put('x', np.arange(9))\n{last}\n",
        check=False,
    )
    assert not names() - before


def test_sigterm_without_workers_leaves_nothing(python):
    before = names()
    done = python(
        "import os, signal, numpy as np\nfrom theus import TheusEngine\n"
        "engine = TheusEngine()\nengine.heavy.put('x', np.arange(9))\n"
        "os.kill(os.getpid(), signal.SIGTERM)\n",
        check=False,
    )
    assert done.returncode == -signal.SIGTERM
    assert not names() - before


def test_a_forked_child_owns_nothing(python):
    python(
        "import os, numpy as np\nimport theus\n"
        "engine = theus.TheusEngine()\nview = engine.heavy.put('x', np.arange(9))\n"
        "if os.fork() == 0:\n"
        "    assert view.sum() == 36\n"
        "    try:\n        engine.heavy.put('y', view)\n"
        "    except theus.SessionClosedError:\n        raise SystemExit(0)\n"
        "    os._exit(1)\n"
        "assert os.wait()[1] == 0\n"
        "assert os.path.exists(engine.heavy.path('x'))\n"
    )
