"""Machines that are short of something: descriptors, mappings, address space, a common clock."""

import ast
import contextlib
import glob
import re
import resource
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest

import theus

ROOT = Path(__file__).resolve().parent.parent.parent
MAPPINGS = int(Path("/proc/sys/vm/max_map_count").read_text())
# What a process may open decides how many entries can be made in one swap.
BATCH = min(5000, resource.getrlimit(resource.RLIMIT_NOFILE)[1] // 2)

# --- two PID namespaces ---

CONTAINER = ["unshare", "--mount", "--pid", "--fork", "--mount-proc", "--kill-child"]

INMATE = """
import os, sys
import numpy as np, theus
engine = theus.TheusEngine(workers=1)
engine.heavy.put("x", np.arange(9))
engine.submit(lambda ctx: int(ctx.heavy["x"].sum())).result(30)
print(os.getpid(), engine._session.id, flush=True)
for line in sys.stdin:
    if line.strip() == "sweep":
        print(theus.sweep(), flush=True)
    elif line.strip() == "sessions":
        print(sorted(info.id for info in theus.sessions() if info.alive), flush=True)
    else:
        print(int(theus.open(line.strip() + "/x").sum()), flush=True)
"""


@pytest.fixture
def container():
    """Start a session in a PID namespace of its own, over the same shared memory."""
    if shutil.which("unshare") is None:
        pytest.skip("needs util-linux's unshare")
    able = subprocess.run([*CONTAINER, "true"], capture_output=True, check=False, timeout=30)
    if able.returncode != 0:
        pytest.skip(f"may not make PID namespaces: {able.stderr.decode().strip()}")
    with contextlib.ExitStack() as ended:

        def start():
            command = [*CONTAINER, sys.executable, "-c", INMATE]
            pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
            process = ended.enter_context(subprocess.Popen(command, **pipes))
            ended.callback(process.kill)
            pid, session = process.stdout.readline().split()
            assert int(pid) < 10

            def ask(word):
                print(word, file=process.stdin, flush=True)
                return process.stdout.readline().strip()

            return process, session, ask

        yield start
    assert gone("*", theus.sweep)


def gone(session, sweep, deadline_s=10):
    """Sweep until the names are gone: a process that was killed may take its time to end."""
    deadline = time.monotonic() + deadline_s
    while glob.glob(f"/dev/shm/theus-{session}*") and time.monotonic() < deadline:
        sweep()
        time.sleep(0.01)
    return not glob.glob(f"/dev/shm/theus-{session}*")


def test_two_pid_namespaces_share_memory_and_leave_each_other_alone(container):
    first, one, ask_first = container()
    _, two, ask_second = container()
    both = str(sorted([one, two]))
    for ask, other in ((ask_first, two), (ask_second, one)):
        assert ask("sweep") == "[]"
        assert ask("sessions") == both
        assert ask(other) == "36"
    first.kill()
    first.wait(10)
    assert gone(one, lambda: ask_second("sweep"))
    assert ask_second("sessions") == str([two])


# --- directories ---

LAYERS = """
mount -t tmpfs tmpfs "$0" && mkdir "$0"/lower "$0"/upper "$0"/work "$0"/merged "$0"/ro "$0"/full
mount -t overlay -o lowerdir="$0"/lower,upperdir="$0"/upper,workdir="$0"/work overlay "$0"/merged
mount -t tmpfs -o ro tmpfs "$0"/ro && mount -t tmpfs -o size=4k tmpfs "$0"/full
head -c 4096 /dev/zero > "$0"/full/file && exec "$@"
"""
PROBES = """
import os, sys
from theus import _theus
for name in ["", "merged", "ro", "full"]:
    report = _theus.probe_directory(os.path.join(sys.argv[1], name))
    print(report.file_system, *(code for code, _ in report.missing))
    assert not [left for left in os.listdir(report.path) if left.startswith(".")]
"""


def test_a_directory_that_breaks_a_promise_is_found_out(tmp_path):
    command = ["unshare", "--mount", "sh", "-ec", LAYERS, str(tmp_path)]
    able = subprocess.run([*command, "true"], capture_output=True, check=False, timeout=30)
    if able.returncode != 0:
        pytest.skip(f"may not mount: {able.stderr.decode().strip()}")
    tried = [sys.executable, "-c", PROBES, str(tmp_path)]
    done = subprocess.run(
        [*command, *tried], capture_output=True, text=True, check=True, timeout=30
    )
    assert done.stdout.splitlines() == [
        "tmpfs",
        "overlayfs leases-see-mappings",
        "tmpfs writable",
        "tmpfs writable",
    ]


# --- descriptors ---


def test_thousands_of_entries_take_no_descriptors_and_drafts_say_what_is_short(python):
    done = python(
        "import resource, numpy as np, theus\n"
        "resource.setrlimit(resource.RLIMIT_NOFILE, (256, 256))\n"
        "with theus.TheusEngine(workers=1) as engine:\n"
        "    for start in range(0, 5000, 200):\n"
        "        entries = {str(i): np.array([i, 1]) for i in range(start, start + 200)}\n"
        "        engine.compare_and_swap(engine.state.version, heavy=entries)\n"
        "    total = lambda ctx: sum(int(ctx.heavy[name][0]) for name in ctx.heavy)\n"
        "    views = [engine.heavy[name] for name in engine.heavy]\n"
        "    assert sum(int(view[0]) for view in views) == sum(range(5000))\n"
        "    assert engine.submit(total).result(30) == sum(range(5000))\n"
        "    drafts = []\n"
        "    try:\n"
        "        while True:\n            drafts.append(engine.heavy.alloc(f'd{len(drafts)}', 4))\n"
        "    except theus.DescriptorLimitError as error:\n"
        "        print(error.errno, error)\n"
        "    assert engine.submit(total).result(30) == sum(range(5000))\n"
        "    for number in range(len(drafts)):\n        engine.heavy.free(f'd{number}')\n"
        "    drafts.clear()\n"
        "    engine.heavy.put('more', np.array([5]))\n"
        "    assert engine.submit(total).result(30) == sum(range(5000)) + 5\n"
    )
    assert done.stdout.startswith("24 [Errno 24] ")
    assert "all 256 descriptors" in done.stdout
    assert "ulimit -n" in done.stdout


def test_a_worker_that_cannot_be_started_says_so_too(python):
    done = python(
        "import os, resource, theus\n"
        "resource.setrlimit(resource.RLIMIT_NOFILE, (256, 256))\n"
        "with theus.TheusEngine(workers=1) as engine:\n"
        "    for left in range(12):\n"
        "        taken = []\n"
        "        try:\n            while True:\n                taken.append(os.dup(0))\n"
        "        except OSError:\n            pass\n"
        "        for _ in range(left):\n            os.close(taken.pop())\n"
        "        try:\n            engine.submit(lambda ctx: 3).result(30)\n"
        "        except theus.DescriptorLimitError as error:\n            print(error)\n"
        "        for descriptor in taken:\n            os.close(descriptor)\n"
        "    assert engine.submit(lambda ctx: 3).result(30) == 3\n"
    )
    lines = done.stdout.splitlines()
    assert {line.split(" failed")[0] for line in lines} >= {"[Errno 24] starting a worker"}
    assert all("256" in line and "ulimit -n" in line for line in lines)


# --- mappings ---


@pytest.mark.slow
@pytest.mark.skipif(MAPPINGS > 200_000, reason=f"{MAPPINGS} mappings take too long to make")
def test_the_limit_of_mappings_is_an_error_that_names_it(python):
    done = python(
        "import resource, numpy as np, theus\n"
        "hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]\n"
        "resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))\n"
        "item, views = np.arange(4), []\n"
        "with theus.TheusEngine(workers=1) as engine:\n"
        "    assert engine.submit(lambda ctx: 1).result(30) == 1\n"
        "    try:\n"
        f"        for start in range(0, {MAPPINGS}, {BATCH}):\n"
        f"            names = [str(number) for number in range(start, start + {BATCH})]\n"
        "            entries = dict.fromkeys(names, item)\n"
        "            engine.compare_and_swap(engine.state.version, heavy=entries)\n"
        "            views += [engine.heavy[name] for name in names]\n"
        "    except MemoryError as error:\n"
        "        print(type(error).__name__, error)\n"
        "    print(len(views))\n"
        "    assert engine.submit(lambda ctx: len(ctx.heavy)).result(30) == len(views)\n"
        "    last = views.pop()\n"
        "    del views\n"
        f"    freed = {{str(number): None for number in range({BATCH})}}\n"
        "    engine.compare_and_swap(engine.state.version, heavy=freed)\n"
        "    engine.heavy.put('again', last + 1)\n"
        "    assert engine.submit(lambda ctx: int(ctx.heavy['again'].sum())).result(30) == 10\n",
        timeout=55,
    )
    error, made = done.stdout.splitlines()
    assert error.startswith("MappingLimitError")
    assert f"of the {MAPPINGS} mappings that vm.max_map_count allows" in error
    assert "sysctl -w" in error
    assert MAPPINGS * 0.8 - BATCH < int(made) < MAPPINGS


def test_a_limited_address_space_is_an_error_that_names_it(python):
    done = python(
        "import re, resource, numpy as np, theus\n"
        "with theus.TheusEngine(workers=1) as engine:\n"
        "    engine.heavy.put('x', np.arange(9))\n"
        "    assert engine.submit(lambda ctx: int(ctx.heavy['x'].sum())).result(30) == 36\n"
        "    status = open('/proc/self/status').read()\n"
        "    size = int(re.search(r'VmSize:\\s+(\\d+)', status)[1]) << 10\n"
        "    resource.setrlimit(resource.RLIMIT_AS, (size + (64 << 20), -1))\n"
        "    try:\n        engine.heavy.alloc('big', 256 << 20, np.uint8)\n"
        "    except theus.MappingLimitError as error:\n        print(error)\n"
        "    assert engine.heavy.stats()['used_bytes'] < 1 << 20\n"
        "    engine.heavy.put('y', np.arange(4))\n"
        "    assert engine.submit(lambda ctx: int(ctx.heavy['y'].sum())).result(30) == 6\n"
    )
    assert "ulimit -v" in done.stdout
    assert re.search(r"limited to \d+ bytes", done.stdout)


# --- clocks ---

WALL_CLOCK = {"time", "time_ns", "localtime", "gmtime", "ctime", "now", "today", "utcnow"}
# When the worker started, to be compared with the times of source files.
ALLOWED = {("function_loader", "time_ns")}


def wall_clocks(path):
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute):
            module = node.func.value
            named = isinstance(module, ast.Name) and module.id in {"time", "datetime", "date"}
            if named and node.func.attr in WALL_CLOCK:
                yield path.stem, node.func.attr


def test_nothing_waits_by_the_wall_clock():
    modules = list((ROOT / "python" / "theus").rglob("*.py"))
    sources = {path: path.read_text() for path in (ROOT / "rust").glob("*/src/**/*.rs")}
    assert len(modules) > 20
    assert len(sources) > 30
    assert {use for path in modules for use in wall_clocks(path)} == ALLOWED
    assert [
        path for path in sources if re.search(r"SystemTime|CLOCK_REALTIME", path.read_text())
    ] == []


def test_a_clock_that_jumps_by_a_day_ends_nothing_early_or_late(python):
    python(
        "import itertools, time, numpy as np, theus\n"
        "real, days = time.time, itertools.cycle([0, 86400, -86400])\n"
        "time.time = lambda: real() + next(days)\n"
        "time.time_ns = lambda: int(time.time() * 1e9)\n"
        "def waits(ctx, seconds):\n    time.sleep(seconds)\n    return seconds\n"
        "with theus.TheusEngine(workers=1) as engine:\n"
        "    engine.heavy.put('x', np.arange(9))\n"
        "    assert engine.submit(waits, seconds=0.2, timeout=20).result(20) == 0.2\n"
        "    started = time.monotonic()\n"
        "    try:\n        engine.submit(waits, seconds=40, timeout=0.2).result(30)\n"
        "    except TimeoutError:\n        assert time.monotonic() - started < 20\n"
        "    else:\n        raise AssertionError\n"
        "    assert list(engine.map(waits, [0.0, 0.01])) == [0.0, 0.01]\n"
        "    assert theus.sweep() == []\n"
    )
    assert theus.sweep() == []
