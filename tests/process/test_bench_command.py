"""``theus bench`` measures what it says, and leaves nothing."""

import json
import subprocess
import sys

from theus.cli.bench import Figure, render

BENCH = [sys.executable, "-m", "theus", "bench"]


def test_every_figure_has_samples_and_its_floor_beside_it():
    command = [*BENCH, "--json", "--size", "1M"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=50, check=True)
    assert done.stderr == ""
    found = json.loads(done.stdout)
    assert found["size_bytes"] == 1 << 20
    figures = {each["key"]: Figure(**each) for each in found["figures"]}
    assert [key for key in figures if not key.endswith("-floor")] == [
        "no-op",
        "in-flight",
        "put-first",
        "put-repeat",
        "attach-cold",
        "attach-warm",
        "sum",
    ]
    floors = {key for key in figures if key.endswith("-floor")}
    assert {key.removesuffix("-floor") for key in floors} == {
        "no-op",
        "put-first",
        "put-repeat",
        "attach-cold",
        "sum",
    }
    for figure in figures.values():
        assert figure.samples >= 3
        assert 0 < figure.best_s <= figure.median_s <= figure.p99_s < 10
    # No thread or process of ours is faster than memory can be, or a task than a processor.
    assert figures["put-repeat"].amount / figures["put-repeat"].best_s < 1e12
    assert figures["no-op"].best_s > 1e-6


def test_bars_are_as_long_as_the_times_they_are_compared_with():
    text = render(
        [
            Figure("put-first", "put", 0.5, 0.5, 0.5, 1, 10**9, "B"),
            Figure("put-first-floor", "write", 0.25, 0.2, 0.3, 1, 10**9, "B"),
            Figure("in-flight", "many", 0.1, 0.1, 0.1, 3, 10_000, "tasks"),
        ]
    )
    _, put, write, many = text.splitlines()
    assert put.split() == ["put", "2.00", "GB/s", "█" * 30]
    assert write.split() == ["write", "4.00", "GB/s", "░" * 15]
    assert many.split() == ["many", "100,000", "/s"]


def test_a_size_that_cannot_be_measured_is_said_before_anything_is_made():
    for size, status, said in [
        ("12", 2, "too small"),
        ("1X", 2, "no size"),
        ("1000000G", 1, "are free"),
    ]:
        command = [*BENCH, "--size", size]
        done = subprocess.run(command, capture_output=True, text=True, timeout=50, check=False)
        assert done.returncode == status, done.stderr
        assert said in done.stderr
        assert "Traceback" not in done.stderr
