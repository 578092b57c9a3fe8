"""Exceptions out of a user's signal handlers, at any moment, leave the engine whole."""

import os

import pytest

ALARMS = int(os.environ.get("THEUS_ALARMS", "4000"))

STORM = """
import asyncio, itertools, signal, threading, time
import numpy as np
import theus
from theus import TheusEngine, process

class Alarm(Exception): pass

@process(parallel=True)
def double(ctx, n):
    return 2 * n

rung = 0
def ring(number, frame):
    global rung
    rung += 1
    raise Alarm

engine = TheusEngine(workers=2)
assert engine.submit(double, n=1).result(30) == 2

def items(ctx, n):
    return n

def close_another():
    other = TheusEngine(workers=1)
    try:
        other.submit(double, n=4).result(30)
    finally:
        other.close()

def put():
    engine.heavy.put("x", np.arange(1000))

operations = [
    lambda: engine.submit(double, n=2).result(30),
    lambda: list(engine.map(items, range(20))),
    put,
    lambda: engine.submit(double, n=2).cancel(),
]
wrong, done = [], threading.Event()

def beside():
    try:
        for n in itertools.count():
            if done.is_set():
                return
            assert engine.submit(double, n=n).result(30) == 2 * n
            assert list(engine.map(items, range(10))) == list(range(10))
            assert asyncio.run(engine.execute(double, n=n)) == 2 * n
            time.sleep(0.001)
    except BaseException as error:
        wrong.append(error)

threads = [threading.Thread(target=beside) for _ in range(2)]
for thread in threads:
    thread.start()
signal.signal(signal.SIGALRM, ring)
ended = 0
for number in itertools.count():
    if rung >= {alarms}:
        break
    try:
        signal.setitimer(signal.ITIMER_REAL, 1e-4 * (1 + number % 30), 2e-4)
        operation = close_another if number % 200 == 199 else operations[number % len(operations)]
        operation()
        ended += 1
    except Alarm:
        pass
    except theus.UnpicklableError as error:
        assert isinstance(error.__cause__, Alarm)  # while an input was pickled
    finally:
        while True:
            try:
                signal.setitimer(signal.ITIMER_REAL, 0)
                break
            except Alarm:
                pass
signal.signal(signal.SIGALRM, signal.SIG_IGN)
done.set()
for thread in threads:
    thread.join(30)
    assert not thread.is_alive()
assert not wrong, wrong
assert engine.submit(double, n=21).result(30) == 42
assert list(engine.map(items, range(500))) == list(range(500))
assert asyncio.run(engine.execute(double, n=5)) == 10
engine.close()
print(rung >= {alarms}, ended > 10)
"""


@pytest.mark.timeout(55 if ALARMS < 10_000 else 3600)
def test_alarms_at_every_moment_leave_the_engine_whole(python):
    done = python(STORM.replace("{alarms}", str(ALARMS)), timeout=50 if ALARMS < 10_000 else 3500)
    assert done.stdout.split() == ["True", "True"], done.stderr


def test_a_handler_may_close_the_engine_that_it_interrupts(python):
    done = python(
        "import signal, theus, time\n"
        "engine = theus.TheusEngine(workers=1)\n"
        "def nap(ctx): time.sleep(60)\n"
        "signal.signal(signal.SIGALRM, lambda *_: engine.close())\n"
        "engine.submit(lambda ctx: 1).result(30)\n"
        "signal.setitimer(signal.ITIMER_REAL, 0.3)\n"
        "try:\n    engine.submit(nap).result(30)\n"
        "except theus.SessionClosedError:\n    print('closed')\n"
    )
    assert done.stdout == "closed\n"


def test_a_handler_may_cancel_what_is_waited_for(python):
    done = python(
        "import signal, theus, time\n"
        "from concurrent.futures import CancelledError\n"
        "engine = theus.TheusEngine(workers=1)\n"
        "def nap(ctx): time.sleep(60)\n"
        "first, second = engine.submit(nap), engine.submit(nap)\n"
        "signal.signal(signal.SIGALRM, lambda *_: second.cancel())\n"
        "signal.setitimer(signal.ITIMER_REAL, 0.3)\n"
        "try:\n    second.result(30)\n"
        "except CancelledError:\n    print('cancelled')\n"
        "first.cancel()\n"
    )
    assert done.stdout == "cancelled\n"
