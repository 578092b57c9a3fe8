"""A program in Rust owns a session; Python's processes read it."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import theus

ROOT = Path(__file__).resolve().parents[2]
EXAMPLES = Path(os.environ.get("CARGO_TARGET_DIR", ROOT / "target"), "release/examples")
OWNER = EXAMPLES / "owner"
ENGINE = EXAMPLES / "engine"


SIGNALS = [signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT]


@pytest.fixture
def owner():
    """Start the example; the process, and its session's id."""
    assert OWNER.exists(), f"{OWNER} is not built: make test does"
    # What is ignored here would be there: shells have jobs in the background ignore some.
    before = [signal.signal(number, signal.SIG_DFL) for number in SIGNALS]
    try:
        process = subprocess.Popen(
            [OWNER], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
    finally:
        for number, handler in zip(SIGNALS, before, strict=True):
            signal.signal(number, handler)
    with process:
        yield process, process.stdout.readline().strip()


def test_its_entries_are_arrays_and_tables_here_without_a_copy(owner):
    process, session = owner
    matrix, trades = theus.open(f"{session}/matrix"), theus.open(f"{session}/trades")
    assert np.array_equal(matrix, np.eye(1000, dtype="f4"))
    assert not matrix.flags.writeable
    assert trades.num_rows == 25_000
    assert trades["id"].to_pylist() == list(range(25_000))
    with theus.zero_copy(strict=True):
        assert trades["price"].chunk(249).to_numpy()[-1] == 49.5
    assert [info.id for info in theus.sessions()] == [session]
    process.communicate(timeout=10)
    assert process.returncode == 0
    assert theus.sessions() == []
    assert matrix[999, 999] == 1  # what was opened outlives the session
    with pytest.raises(theus.SegmentNotFoundError):
        theus.open(f"{session}/matrix")


def test_other_processes_read_it_by_its_name(owner):
    _, session = owner
    script = (
        "import json, sys, theus\n"
        "trades = theus.open(sys.argv[1] + '/trades')\n"
        "print(json.dumps([trades.num_rows, sum(trades['price'].to_pylist())]))\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", script, session], capture_output=True, text=True, check=True
    )
    assert json.loads(done.stdout) == [25_000, 250 * 2475.0]


def test_nothing_of_it_stays_when_it_is_killed(owner):
    process, session = owner
    matrix = theus.open(f"{session}/matrix")
    process.send_signal(signal.SIGKILL)
    process.wait(10)
    assert any(session in name for name in theus.sweep())
    assert theus.sessions() == []
    assert matrix.sum() == 1000


@pytest.mark.parametrize("number", SIGNALS)
def test_it_leaves_nothing_itself_when_a_signal_ends_it(owner, number):
    process, session = owner
    process.send_signal(number)
    assert process.wait(10) == -number
    assert session not in [info.id for info in theus.sessions()]


# --- an engine in Rust ---


def test_an_engine_in_rust_calls_tasks_in_both_languages_over_its_table(tmp_path):
    (tmp_path / "scores.py").write_text(
        "def mean(ctx, column):\n"
        "    return float(ctx.heavy['trades'][column].to_numpy().mean())\n"
        "def missing(ctx, column):\n"
        "    raise LookupError(f'no {column}')\n"
    )
    program = ENGINE
    assert program.exists(), f"{program} is not built: make test does"
    package = Path(theus.__file__).resolve().parent.parent
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(tmp_path), str(package)])}

    def run(function):
        command = [program, sys.executable, function]
        return subprocess.run(
            command, env=environment, capture_output=True, text=True, timeout=50, check=False
        )

    done = run("scores:mean")
    assert done.returncode == 0, done.stderr
    total = sum(n / 2 for n in range(1_000_000))
    assert done.stdout.split() == ["scores:mean:", f"{total / 1e6}", "sum:", f"{total:.0f}"]
    said = run("scores:missing").stderr
    assert 'kind: "LookupError", message: "no price"' in said
    assert "in missing" in said
    assert "scores:nobody" in run("scores:nobody").stderr
