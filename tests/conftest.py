"""Every test leaves shared memory and the process table as it found them."""

import glob
import os
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

import theus

# The first is run by make fuzz-worker: it needs what the tests do not. The others have no examples,
# and of modules of one name pytest takes only one.
collect_ignore = ["fuzz", "conftest.py", "conformance/conftest.py"]

SHARED_MEMORY = "/dev/shm/theus-*"
GRACE_S = 3.0


ROOT = Path(__file__).resolve().parent.parent


def present():
    children = [p for p in psutil.Process().children() if p.status() != psutil.STATUS_ZOMBIE]
    return set(glob.glob(SHARED_MEMORY)), {p.pid: p.cmdline() for p in children}


def leftovers(before):
    names, children = present()
    known_names, known_children = before
    new = [command for pid, command in children.items() if pid not in known_children]
    return sorted(names - known_names), new


@pytest.fixture(autouse=True)
def nothing_left():
    before = present()
    yield
    deadline = time.monotonic() + GRACE_S
    while any(leftovers(before)) and time.monotonic() < deadline:
        time.sleep(0.01)
    names, children = leftovers(before)
    assert not names, f"left in shared memory: {names}"
    assert not children, f"left running: {children}"


@pytest.fixture
def engine():
    with theus.TheusEngine(workers=2) as engine:
        yield engine


@pytest.fixture
def python(tmp_path):
    """Run a script as a process of its own, with a deadline; return what it printed."""

    def run(source, *, check=True, timeout=50):
        path = tmp_path / "script.py"
        path.write_text(source)
        done = subprocess.run(
            [sys.executable, path],
            capture_output=True,
            text=True,
            timeout=timeout,
            check=False,
            cwd=tmp_path,
            env={**os.environ, "PYTHONUNBUFFERED": "1"},
        )
        if check:
            assert done.returncode == 0, done.stderr
        return done

    return run
