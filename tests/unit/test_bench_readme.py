"""The figures in README.md: whom a ratio is taken against, and that losses are said."""

import importlib
import sys
from pathlib import Path

import pytest

BENCHES = Path(__file__).resolve().parents[2] / "benches" / "python"


@pytest.fixture
def benches(monkeypatch):
    """Import modules of the benches, whose plain names are nobody's afterwards."""
    before = set(sys.modules)
    monkeypatch.syspath_prepend(str(BENCHES))
    yield importlib.import_module
    for name in set(sys.modules) - before:
        if str(BENCHES) in str(getattr(sys.modules[name], "__file__", "")):
            del sys.modules[name]


@pytest.fixture
def result(benches):
    results, rounds, samples = map(benches, ("results", "rounds", "samples"))
    machine = {
        "virtual": True,
        "cores": 2,
        "processor": "P",
        "memory_gib": 8,
        "kernel": "6",
        "python": "3",
        "commit": "c",
        "measured": "today",
    }
    made = results.Result(machine)

    def add(key, **lines):
        row = rounds.Row(key, f"row {key}", samples.US)
        for name, (block, cost) in lines.items():
            made.add(rounds.Measured(row, name.replace("_", " "), block, [cost, cost, 9]))

    add("no-op", theus=("quiet", 2.0), floor=("quiet", 1.0), ProcessPoolExecutor=("quiet", 8.0))
    # Beside Ray everything takes four times as long; its ratio is to the Theus of those rounds.
    add("script", theus=("quiet", 1.0), ProcessPoolExecutor=("quiet", 0.5))
    add("script", theus=("Ray", 4.0), Ray=("Ray", 3.0))
    add("there-1024", theus=("quiet", 2.0), ProcessPoolExecutor=("quiet", 1.0))
    add("there-4096", theus=("quiet", 2.0), ProcessPoolExecutor=("quiet", 3.0))
    return made


def test_a_ratio_is_to_theus_in_the_same_rounds_and_every_loss_is_said(benches, result):
    text = benches("readme").block(result)
    assert "| row no-op | 2,000,000 us | 1,000,000 us | ProcessPoolExecutor 4.00 x |" in text
    assert "ProcessPoolExecutor **0.50 x**; Ray **0.75 x** |" in text
    losses = [line for line in text.splitlines() if line.startswith("- ")]
    assert losses == [
        "- row script: ProcessPoolExecutor (0.50 x), Ray (0.75 x).",
        "- row there-1024: ProcessPoolExecutor (0.50 x).",
    ]
    assert "is faster by Theus than by ProcessPoolExecutor from 4 KiB on." in text


def test_what_is_saved_is_what_is_loaded(benches, result, tmp_path):
    path = tmp_path / "latest.json"
    result.save(path)
    assert type(result).load(path) == result
    page = benches("report").markdown
    result.machine |= {"versions": {}, "huge_pages_of_shared_memory": "never", "load": 0.0}
    assert "| Ray | 0.75 x | 3,000,000 us |" in page(result)
    assert page(result).count("| **theus** |") == 4
