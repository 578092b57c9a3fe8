"""An owner, a worker, a sweeper killed after each step that changes what exists: nothing is left.

``THEUS_KILLS=all`` kills at the first, the last and eight other passes of each step, not at one;
``THEUS_WRITE_TABLES=1`` writes the table in docs/reliability.md.
"""

import json
import os
import random
import signal
from dataclasses import dataclass
from pathlib import Path

import pytest
from crash_tools import ROOT, SHARED_MEMORY, VICTIMS, Bystander, Machine, Reader, order

THOROUGH = os.environ.get("THEUS_KILLS") == "all"
REPORT = ROOT / "docs" / "reliability.md"
BEGIN, END = "<!-- kill points -->\n", "<!-- end of kill points -->\n"


@dataclass
class Row:
    """What killing at one step came to."""

    runs: int = 0
    put_right_by_survivors: int = 0
    left_to_next_start: int = 0
    leaks: int = 0
    wrong: int = 0


ROWS: dict[tuple[str, str, str], Row] = {}


@pytest.fixture(scope="module", autouse=True)
def report():
    yield
    if os.environ.get("THEUS_WRITE_TABLES"):
        write_report()


def write_report():
    head = (
        "| step | who is killed | backend | runs | put right by survivors | left to the next start "
        "| leaks | wrong bytes |\n|---|---|---|---|---|---|---|---|\n"
    )
    rows = [
        f"| `{point}` | {role.replace('_', ' ')} | {backend} | {row.runs} | "
        f"{row.put_right_by_survivors} | {row.left_to_next_start} | {row.leaks} | {row.wrong} |\n"
        for (point, role, backend), row in sorted(ROWS.items())
    ]
    before, rest = REPORT.read_text().split(BEGIN)
    _, after = rest.split(END)
    REPORT.write_text(before + BEGIN + head + "".join(rows) + END + after)


def passes(count, chance):
    """Return which passes of a step are fatal, one run each."""
    if not THOROUGH:
        return [chance.randint(1, count)]
    return sorted({1, count, *(chance.randint(1, count) for _ in range(8))})


@pytest.fixture
def spill(tmp_path):
    directory = tmp_path / "spill"
    directory.mkdir()
    return directory


def steps_of(role, machine, backend, spill):
    """Return how often each step is passed when nobody is killed."""
    if role == "orphan":
        role = "sweeper"  # the same steps, by the thread that watches the owner
    if role == "sweeper":
        leave_a_dead_session(machine, backend, spill)
    done = machine.run(VICTIMS, order(role, spill=spill), backend=backend)
    assert done.returncode == 0, done.stderr
    assert not machine.wait_for_survivors()
    return {name: hits for name, hits in json.loads(done.stdout)["hits"].items() if hits}


def leave_a_dead_session(machine, backend, spill):
    done = machine.run(VICTIMS, order("dying", spill=spill), backend=backend)
    assert done.returncode == -signal.SIGKILL
    assert machine.names()


@pytest.mark.slow
@pytest.mark.timeout(3600 if THOROUGH else 240)
@pytest.mark.parametrize("role", ["owner", "worker", "starting_worker", "sweeper", "orphan"])
@pytest.mark.parametrize("backend", ["linux", "portable"])
def test_whoever_is_killed_wherever_nothing_is_left(role, backend, spill):
    disk = spill if backend == "linux" else None
    bystander = Bystander(spill)
    chance = random.Random(f"{role} {backend}")
    try:
        machine = Machine(spill)
        steps = steps_of(role, machine, backend, disk)
        if role in ("sweeper", "orphan"):
            steps = {name: hits for name, hits in steps.items() if name.startswith("sweep.")}
        directories = [SHARED_MEMORY, spill]
        with Reader(directories, expect_partial=backend == "portable") as reader:
            for point, count in steps.items():
                row = ROWS.setdefault((point, role, backend), Row())
                case = Case(machine, role, point, backend, disk, row)
                for hit in passes(count, chance):
                    wrong = len(reader.wrong)
                    kill(case, hit)
                    row.wrong += len(reader.wrong) - wrong
                    bystander.check()
        assert not reader.wrong, reader.wrong[:5]
        assert reader.looks
        assert sum(row.runs for (_, r, b), row in ROWS.items() if (r, b) == (role, backend))
    finally:
        bystander.close()


@dataclass
class Case:
    """Who is killed at which step."""

    machine: Machine
    role: str
    point: str
    backend: str
    disk: Path | None
    row: Row


def kill(case, hit):
    """Kill at one pass of the step, and see what comes of it."""
    machine, row = case.machine, case.row
    what = (case.role, case.point, hit)
    if case.role == "sweeper":
        leave_a_dead_session(machine, case.backend, case.disk)
    argument = order(case.role, case.point, hit, case.disk)
    done = machine.run(VICTIMS, argument, backend=case.backend)
    if case.role in ("worker", "starting_worker"):
        assert done.returncode == 0, (what, done.stderr)
        died = json.loads(done.stdout)["died"]
    else:
        # How often a step is passed varies a little from run to run: the last may not come.
        assert done.returncode in (-signal.SIGKILL, 0), (what, done.stderr)
        died = done.returncode != 0
    row.runs += died
    left = machine.wait_for_survivors()
    if left:
        row.left_to_next_start += 1
        machine.start_once()
    elif died:
        row.put_right_by_survivors += 1
    left, alive = machine.names(), machine.processes()
    row.leaks += len(left) + len(alive)
    assert not left, (what, left)
    assert not alive, (what, alive)


def test_every_step_is_passed_by_somebody(spill):
    machine = Machine(spill)
    passed = set()
    for backend, disk in [("linux", spill), ("portable", None)]:
        for role in ("owner", "worker", "starting_worker", "sweeper"):
            passed |= set(steps_of(role, machine, backend, disk))
    source = (ROOT / "rust/theus/src/kill_point.rs").read_text()
    known = {line.split('"')[1] for line in source.splitlines() if line.endswith('",')}
    assert known == passed
