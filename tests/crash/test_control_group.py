"""A control group that is nearly full is an error; past its limit the kernel would kill."""

import os
from pathlib import Path

import pytest

GROUPS = Path("/sys/fs/cgroup/memory")  # version 1; version 2 is tested on made-up files, in Rust
LIMIT = 200 << 20


@pytest.fixture
def group():
    parent = next(
        (
            GROUPS / line.split(":", 2)[2].strip("/")
            for line in Path("/proc/self/cgroup").read_text().splitlines()
            if ":memory:" in line
        ),
        None,
    )
    if parent is None or not os.access(parent, os.W_OK):
        pytest.skip("needs to make a memory control group of version 1")
    group = parent / f"theus-test-{os.getpid()}"
    group.mkdir()
    (group / "memory.limit_in_bytes").write_text(str(LIMIT))
    yield group
    group.rmdir()


def test_a_full_group_is_an_error_and_not_a_kill(python, group):
    done = python(
        f"open({str(group / 'cgroup.procs')!r}, 'w').write('0')\n"
        "import numpy as np, theus\n"
        "with theus.TheusEngine(workers=1) as engine:\n"
        "    engine.heavy.put('a', np.ones(8 << 20, np.uint8))\n"
        "    total = lambda ctx: int(ctx.heavy['a'].sum())\n"
        "    for size in [300 << 20, 195 << 20]:\n"
        "        try:\n            engine.heavy.alloc('x', size, np.uint8)\n"
        "        except theus.HeavyZoneFullError as error:\n            print(error)\n"
        "    print(engine.submit(total).result(20))\n"
    )
    lines = done.stdout.splitlines()
    assert len(lines) == 3, done.stdout
    assert all("control group" in line for line in lines[:2])
    assert lines[2] == str(8 << 20)


PROGRAM = """
import numpy as np, theus
open({procs!r}, "w").write("0")
MIB = 1 << 20
with theus.TheusEngine(workers=1, spill_dir={spill!r}) as engine:
    engine.heavy.put("a", np.ones(8 * MIB, np.uint8))
    assert engine.submit(lambda ctx: int(ctx.heavy["a"].sum())).result(20) == 8 * MIB
    def attempt(name, work):
        try:
            print(name, work())
        except theus.HeavyZoneFullError as error:
            print(name, "full" if "control group" in str(error) else error)
    send = lambda fn, **inputs: engine.submit(fn, **inputs).result(60)
    value = np.ones(85 * MIB, np.uint8)
    attempt("input", lambda: send(lambda ctx, value: int(value.sum()), value=value))
    attempt("entry", lambda: int(engine.heavy.put("b", value).sum()))
    del value
    attempt("result", lambda: int(send(lambda ctx: np.ones(85 * MIB, np.uint8)).sum()))
    print("alive", send(lambda ctx: int(ctx.heavy["a"].sum())))
"""


@pytest.mark.parametrize("on_disk", [False, True])
def test_messages_look_first_too(python, group, tmp_path, on_disk):
    spill = tmp_path / "spill"
    spill.mkdir()
    source = PROGRAM.format(
        procs=str(group / "cgroup.procs"), spill=str(spill) if on_disk else None
    )
    found = dict(line.split(" ", 1) for line in python(source).stdout.splitlines())
    expected = str(85 << 20) if on_disk else "full"
    assert found == {
        **dict.fromkeys(["input", "entry", "result"], expected),
        "alive": str(8 << 20),
    }
    assert not list(spill.iterdir())
