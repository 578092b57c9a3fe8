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
