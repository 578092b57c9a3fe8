"""Shared memory of 64 MiB: an error before any write, or a file; never SIGBUS, whatever is sent."""

import subprocess
import sys

import pytest

PROGRAM = """
import os, sys, time
import numpy as np, pyarrow as pa, theus

MIB = 1 << 20
spill = sys.argv[1] if len(sys.argv) > 1 else None
engine = theus.TheusEngine(workers=2, spill_dir=spill)
big = np.ones(80 * MIB, np.uint8)

def attempt(name, work):
    try:
        print(name, work())
    except theus.HeavyZoneFullError as error:
        assert "spill" in str(error) or "/dev/shm" in str(error), error
        print(name, "full")
    assert engine.submit(lambda ctx: int(ctx.heavy["kept"].sum())).result(20) == 8 * MIB

engine.heavy.put("kept", np.ones(8 * MIB, np.uint8))
send = lambda fn, **inputs: engine.submit(fn, **inputs).result(40)

def filled(ctx):
    out = ctx.heavy.alloc("out", 80 * MIB, np.uint8)
    out[:] = 1
    return out

attempt("put", lambda: int(engine.heavy.put("x", big).sum()))
attempt("alloc", lambda: int(engine.heavy.alloc("y", 80 * MIB, np.uint8).sum()))
attempt("table", lambda: engine.heavy.put("t", pa.table({"n": big})).num_rows)
attempt("input", lambda: send(lambda ctx, value: int(value.sum()), value=big))
attempt("result", lambda: int(send(lambda ctx: np.ones(80 * MIB, np.uint8)).sum()))
attempt("output", lambda: int(send(filled).sum()))
attempt("domain", lambda: engine.compare_and_swap(engine.state.version, {"d": big}).version > 0)
attempt("function", lambda: send(lambda ctx: int(big.sum())))
# Memory that is ready gives way: to the owner, to messages, to what a worker makes.
def freed():
    status = os.statvfs("/dev/shm")
    while status.f_bavail * status.f_frsize < 50 * MIB:  # until messages are gone
        time.sleep(0.01)
        status = os.statvfs("/dev/shm")
    engine.heavy.put("freed", np.ones(18 * MIB, np.uint8))
    engine.heavy.free("freed")
    assert engine.heavy.stats()["ready_bytes"] > 18 * MIB
def made(ctx):
    out = ctx.heavy.alloc("out", 45 * MIB, np.uint8)
    out[:] = 1
    return out
room = np.ones(45 * MIB, np.uint8)
freed()
print("room-put", int(engine.heavy.put("room", room).sum()))
engine.heavy.free("room")
freed()
print("room-input", send(lambda ctx, value: int(value.sum()), value=room))
freed()
print("room-output", int(send(made).sum()))
freed()
print("room-result", int(send(lambda ctx: np.ones(45 * MIB, np.uint8)).sum()))
# Many at once, each of which would fit alone.
half = np.ones(30 * MIB, np.uint8)
more = lambda ctx, value: value + 1
futures = [engine.submit(more, value=half) for _ in range(6 if spill else 0)]
print("many", [int(f.result(40).sum()) for f in futures])
# Filled to the brim by others, after the segment was reserved.
draft = engine.heavy.alloc("reserved", 20 * MIB, np.uint8)
with open("/dev/shm/other", "wb") as file:
    try:
        while True:
            file.write(bytes(MIB))
            file.flush()
    except OSError:
        pass
draft[:] = 1
engine.heavy.seal("reserved")
print("brim", int(engine.heavy["reserved"].sum()))
attempt("small", lambda: send(lambda ctx, value: int(value.sum()), value=half))
attempt("tiny", lambda: int(engine.heavy.put("tiny", np.ones(MIB, np.uint8)).sum()))
engine.close()
import os
os.remove("/dev/shm/other")
print("left", os.listdir("/dev/shm"), os.listdir(spill) if spill else [])
"""

LARGE = 80 << 20
UNSHARE = "/usr/bin/unshare"


@pytest.fixture
def small_memory(tmp_path):
    if subprocess.run([UNSHARE, "-m", "true"], check=False, timeout=20).returncode:
        pytest.skip("needs to mount a small file system of its own")
    program = tmp_path / "program.py"
    program.write_text(PROGRAM)

    def run(*arguments):
        mount = "mount -t tmpfs -o size=64m tmpfs /dev/shm"
        command = f'{mount} && exec "$@"'
        return subprocess.run(
            [UNSHARE, "-m", "bash", "-c", command, "-", sys.executable, program, *arguments],
            capture_output=True,
            text=True,
            timeout=110,
            check=False,
        )

    return run


@pytest.mark.timeout(120)
def test_what_does_not_fit_is_an_error(small_memory):
    done = small_memory()
    assert done.returncode == 0, done.stderr
    found = dict(line.split(" ", 1) for line in done.stdout.splitlines())
    full = ["put", "alloc", "table", "input", "result", "output", "domain", "function"]
    assert {name: found[name] for name in full} == dict.fromkeys(full, "full")
    rooms = ["room-put", "room-input", "room-output", "room-result"]
    assert {name: found[name] for name in rooms} == dict.fromkeys(rooms, str(45 << 20))
    assert (found["small"], found["tiny"]) == ("full", "full")
    assert found["brim"] == str(20 << 20)
    assert found["left"] == "[] []"


@pytest.mark.timeout(120)
def test_what_does_not_fit_goes_to_disk(small_memory, tmp_path):
    spill = tmp_path / "spill"
    spill.mkdir()
    done = small_memory(spill)
    assert done.returncode == 0, done.stderr
    found = dict(line.split(" ", 1) for line in done.stdout.splitlines())
    sums = ["put", "table", "input", "result", "output", "function"]
    assert {name: found[name] for name in sums} == dict.fromkeys(sums, str(LARGE))
    assert found["alloc"] == "0"
    assert found["domain"] == "True"
    assert found["many"] == str([60 << 20] * 6)
    assert (found["brim"], found["small"], found["tiny"]) == tuple(
        str(size << 20) for size in (20, 30, 1)
    )
    assert found["left"] == "[] []"
