"""Ctrl-C, forks, threads and loops: what one of them breaks off is nobody else's loss."""

import pytest

HEAD = """
import asyncio, os, signal, sys, threading, time
import theus
from theus import process

signal.signal(signal.SIGINT, signal.default_int_handler)

def interrupt_after(seconds):
    threading.Timer(seconds, os.kill, (os.getpid(), signal.SIGINT)).start()

@process(parallel=True)
def nap(ctx, seconds=60.0):
    time.sleep(seconds)
    return seconds

@process(parallel=True)
def double(ctx, n):
    return 2 * n

engine = theus.TheusEngine(workers=2)
assert engine.submit(double, n=1).result(20) == 2
"""

IN_EXECUTE = """
async def main():
    interrupt_after(0.3)
    await engine.execute(nap)
try:
    asyncio.run(main())
except KeyboardInterrupt:
    print("interrupted")
"""

IN_RESULT = """
future = engine.submit(nap, seconds=1.5)
interrupt_after(0.3)
try:
    future.result()
except KeyboardInterrupt:
    print("interrupted")
assert future.result(20) == 1.5  # only the waiting was broken off
"""

IN_MAP = """
interrupt_after(0.3)
try:
    for _ in engine.map(nap, range(60, 100)):
        pass
except KeyboardInterrupt:
    print("interrupted")
"""

IN_A_NOTEBOOK = """
async def cell():
    interrupt_after(0.3)
    engine.submit(nap).result()
loop = asyncio.new_event_loop()
try:
    loop.run_until_complete(cell())
except KeyboardInterrupt:
    print("interrupted")
async def next_cell():
    return engine.submit(double, n=3).result(20), await engine.execute(double, n=4)
assert loop.run_until_complete(next_cell()) == (6, 8)
loop.close()
"""

AFTER = """
assert engine.submit(double, n=21).result(20) == 42
assert asyncio.run(engine.execute(double, n=4)) == 8
engine.close()
print("works")
"""


@pytest.mark.parametrize("where", [IN_EXECUTE, IN_RESULT, IN_MAP, IN_A_NOTEBOOK])
def test_ctrl_c_breaks_off_the_waiting_and_the_engine_goes_on(python, where):
    done = python(HEAD + where + AFTER)
    assert done.stdout.split() == ["interrupted", "works"]


def test_no_interrupt_loses_what_others_wait_for(python):
    done = python(
        HEAD + "import random\n"
        "wrong, interrupts, futures = [], 0, []\n"
        "def others():\n"
        "    for n in range(300):\n"
        "        if engine.submit(double, n=n).result(40) != 2 * n:\n"
        "            wrong.append(n)\n"
        "threads = [threading.Thread(target=others) for _ in range(3)]\n"
        "for thread in threads:\n    thread.start()\n"
        "ready, ended = threading.Event(), threading.Event()\n"
        "def shoot():  # once, each time that the main thread can take it\n"
        "    while not ended.is_set():\n"
        "        if ready.wait(0.1):\n"
        "            ready.clear()\n"
        "            time.sleep(chance.random() * 0.005)\n"
        "            os.kill(os.getpid(), signal.SIGINT)\n"
        "chance = random.Random(3)\n"
        "shooter = threading.Thread(target=shoot)\n"
        "shooter.start()\n"
        "number, end = 0, time.monotonic() + 4\n"
        "while time.monotonic() < end:\n"
        "    try:\n"
        "        ready.set()\n"
        "        while True:\n"
        "            number += 1\n"
        "            future = engine.submit(double, n=number)\n"
        "            futures.append((number, future))\n"
        "            future.result(40)\n"
        "    except KeyboardInterrupt:\n        interrupts += 1\n"
        "ended.set()\n"
        "shooter.join()\n"
        "for n, future in futures:\n"
        "    if future.result(40) != 2 * n:\n        wrong.append(n)\n"
        "for thread in threads:\n    thread.join(40)\n    assert not thread.is_alive()\n"
        "assert not wrong, wrong\n"
        "assert interrupts > 20, interrupts\n" + AFTER
    )
    assert done.stdout.split() == ["works"]


def test_ctrl_c_while_it_closes_waits_until_nothing_is_left(python):
    done = python(
        HEAD + "(pid, *_) = engine.worker_pids\n"
        "os.kill(pid, signal.SIGSTOP)  # so that closing takes a while\n"
        "interrupt_after(0.1)\n"
        "session = engine.heavy.stats()['session']\n"
        "try:\n    engine.close()\n    time.sleep(5)\n"
        "except KeyboardInterrupt:\n    print('interrupted')\n"
        "assert not any(session in name for name in os.listdir('/dev/shm'))\n"
        "assert not os.path.exists(f'/proc/{pid}')\n"
    )
    assert done.stdout.split() == ["interrupted"]


def test_a_fork_while_tasks_run_is_the_parents_alone(python):
    done = python(
        HEAD + "futures = [engine.submit(nap, seconds=0.5) for _ in range(4)]\n"
        "if os.fork() == 0:\n"
        "    try:\n        futures[0].result(10)\n"
        "    except theus.SessionClosedError:\n        os._exit(0)\n"
        "    os._exit(1)\n"
        "assert os.wait()[1] == 0\n"
        "assert [future.result(20) for future in futures] == [0.5] * 4\n" + AFTER
    )
    assert done.stdout.split() == ["works"]


@pytest.mark.parametrize(
    "wait",
    ["engine.submit(nap, seconds=2).result()", "asyncio.run(engine.execute(nap, seconds=2))"],
)
def test_daemon_threads_keep_the_interpreter_no_longer_than_their_tasks(python, wait):
    done = python(
        HEAD + f"def background():\n    {wait}\n"
        "for _ in range(3):\n    threading.Thread(target=background, daemon=True).start()\n"
        "time.sleep(0.3)\nprint('leaves')\n",
        timeout=20,
    )
    assert done.stdout.split() == ["leaves"]


def test_threads_and_loops_share_an_engine(python):
    done = python(
        HEAD + "async def gather(engine, base):\n"
        "    calls = [engine.execute(double, n=base + n) for n in range(40)]\n"
        "    return await asyncio.gather(*calls)\n"
        "def in_a_loop(engine, base):\n    found[base] = asyncio.run(gather(engine, base))\n"
        "def by_result(engine, base):\n"
        "    found[base] = [engine.submit(double, n=base + n).result(40) for n in range(40)]\n"
        "for _ in range(6):  # while workers start, loops and threads meet at every moment\n"
        "    found = {}\n"
        "    with theus.TheusEngine(workers=2) as fresh:\n"
        "        threads = [\n"
        "            threading.Thread(\n"
        "                target=(in_a_loop, by_result)[n % 2], args=(fresh, 100 * n), daemon=True\n"
        "            )\n            for n in range(8)\n        ]\n"
        "        for thread in threads:\n            thread.start()\n"
        "        for thread in threads:\n"
        "            thread.join(10)\n            assert not thread.is_alive()\n"
        "        for n in range(8):\n"
        "            assert found[100 * n] == [2 * (100 * n + m) for m in range(40)]\n" + AFTER
    )
    assert done.stdout.split() == ["works"]


def test_an_impatient_ctrl_c_loses_nothing_of_others(python):
    done = python(
        HEAD + "theirs, got = engine.submit(nap, seconds=1.0), []\n"
        "follower = threading.Thread(target=lambda: got.append(theirs.result(20)))\n"
        "follower.start()\n"
        "def twice():\n"
        "    for _ in range(2):\n        os.kill(os.getpid(), signal.SIGINT)\n"
        "threading.Timer(0.3, twice).start()\n"
        "try:\n    engine.submit(nap, seconds=3.0).result(20)\n"
        "except KeyboardInterrupt:\n    follower.join(20)\n    print('interrupted', got)\n" + AFTER
    )
    assert done.stdout.split() == ["interrupted", "[1.0]", "works"]


def test_ctrl_c_on_the_way_out_closes_the_engine(python):
    done = python(
        HEAD + "try:\n"
        "    with engine:\n        engine.submit(nap)\n        interrupt_after(0.5)\n"
        "except KeyboardInterrupt:\n    print(engine, engine.worker_pids)\n"
    )
    assert done.stdout == "TheusEngine(closed) []\n"


def test_a_callback_that_ends_the_program_costs_nobody_else_a_result(python):
    done = python(
        HEAD + "def leave(_):\n    raise SystemExit(3)\n"
        "for n in range(5):\n    engine.submit(double, n=n).result(20)\n"
        "gate = engine.submit(nap, seconds=0.2)\n"
        "futures = [engine.submit(nap, seconds=0.1)]  # not done before it has its callback\n"
        "futures[0].add_done_callback(leave)\n"
        "futures += [engine.submit(double, n=n) for n in range(1, 40)]\n"
        "time.sleep(0.3)  # so that one step finds many results\n"
        "def take(future):  # the one who delivers gets it, or the helper's thread\n"
        "    try:\n        return future.result(20)\n"
        "    except SystemExit:\n        return future.result(20)\n"
        "assert take(futures[-1]) == 78 and take(futures[0]) == 0.1\n"
        "assert [take(f) for f in futures[1:]] == [2 * n for n in range(1, 40)]\n" + AFTER
    )
    assert done.stdout.split() == ["works"]
