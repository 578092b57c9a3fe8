"""What ``theus ls`` lists, and how the command line ends."""

import itertools
import json
import os
import subprocess
import sys

import numpy as np
import pyarrow as pa
import pytest

from theus.cli import app, inspection


def only(found):
    (one,) = found
    return one


def test_usage_is_2_and_a_closed_pipe_is_silent_and_a_full_disk_is_not(engine):
    with pytest.raises(SystemExit) as ended:
        app.main(["list"])
    assert ended.value.code == 2
    for number in range(2000):
        engine.heavy.put(str(number), np.arange(1))
    command = f"{sys.executable} -m theus ls | head -1; echo ${{PIPESTATUS[0]}}"
    done = subprocess.run(
        ["/bin/bash", "-c", command], capture_output=True, text=True, timeout=50, check=True
    )
    lines = done.stdout.splitlines()
    assert lines[0].startswith(engine._session.id)
    assert lines[1:] == ["0"]
    assert done.stderr == ""
    with open("/dev/full", "w") as full:
        done = subprocess.run(
            [sys.executable, "-m", "theus", "ls"], stdout=full, stderr=subprocess.PIPE, check=False
        )
    assert done.returncode == 1
    assert done.stderr.startswith(b"theus: ")
    assert done.stderr.count(b"\n") == 1


def test_listing_says_what_there_is_and_who_reads_it(engine, capsys):
    engine.heavy.put("matrix", np.zeros((3, 4), "f4"))
    engine.heavy.put("table\x1b[0m", pa.table({"id": [1, 2], "name": ["a", "b"]}))
    seen = engine.submit(lambda ctx: ctx.heavy["matrix"].shape).result(30)
    assert seen == (3, 4)
    assert app.main(["ls", "--json"]) == 0
    listed = json.loads(capsys.readouterr().out)
    session = only(item for item in listed["sessions"] if item["id"] == engine._session.id)
    assert (session["alive"], session["owner"], session["segments"]) == (True, os.getpid(), 2)
    matrix, table = sorted(session["entries"], key=lambda entry: entry["entry"])
    assert (matrix["kind"], matrix["shape"], matrix["dtype"]) == ("tensor", [3, 4], "float32")
    assert matrix["readers"] == 1
    assert (table["kind"], table["rows"], table["readers"]) == ("table", 2, 0)
    assert table["columns"] == {"id": "int64", "name": "string"}
    assert session["nbytes"] == matrix["nbytes"] + table["nbytes"]
    assert app.main(["ls"]) == 0
    text = capsys.readouterr().out
    assert "(3, 4) float32" in text
    assert "\x1b" not in text


def test_what_is_freed_while_it_is_listed_is_left_out(engine, monkeypatch):
    for name in "abc":
        engine.heavy.put(name, np.arange(9))
    described = inspection._describe
    free = itertools.chain("b", itertools.repeat(None))

    def describe(segment):
        if (name := next(free)) is not None:
            engine.heavy.free(name)
        return described(segment)

    monkeypatch.setattr(inspection, "_describe", describe)
    session = only(
        item for item in inspection.list_sessions()["sessions"] if item["id"] == engine._session.id
    )
    assert [entry["entry"] for entry in session["entries"]] == ["a", "c"]
    assert session["problem"] is None
