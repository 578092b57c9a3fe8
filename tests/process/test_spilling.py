"""What does not fit in memory lies in files, behaves like the rest, and goes like the rest."""

import json
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

import theus
from theus.cli.app import main

LIMIT = 4 << 20
LARGE = 8 << 20
UNSHARE = "/usr/bin/unshare"


@pytest.fixture
def disk(tmp_path):
    directory = tmp_path / "spill"
    directory.mkdir()
    yield directory
    assert not list(directory.iterdir())


@pytest.fixture
def engine(disk):
    with theus.TheusEngine(workers=2, heavy_limit=LIMIT, spill_dir=disk) as engine:
        yield engine


def spilled(directory):
    return [path for path in directory.iterdir() if path.suffix != ".lock"]


def test_what_is_over_the_limit_goes_to_disk_and_workers_read_it_there(engine, disk):
    small = engine.heavy.put("small", np.ones(1 << 20, np.uint8))
    view = engine.heavy.put("x", np.ones(LARGE, np.uint8))
    assert Path(engine.heavy.path("x")).parent == disk
    assert Path(engine.heavy.path("small")).parent == Path("/dev/shm")
    stats = engine.heavy.stats()
    assert stats["spilled_bytes"] == LARGE + 4096
    assert stats["used_bytes"] <= LIMIT

    def look(ctx, view, path):
        return int(view.sum()), int(theus.open(path).sum()), int(ctx.heavy["x"].sum())

    sent = engine.submit(look, view=view, path=str(engine.heavy.path("x")))
    assert sent.result(20) == (LARGE, LARGE, LARGE)
    with pytest.raises(ValueError, match="read-only"):
        view[0] = 2
    assert small.sum() == 1 << 20
    engine.heavy.free("x")
    del view, sent
    engine.submit(lambda ctx: None).result(20)
    assert not spilled(disk)


def test_drafts_tables_and_mutable_entries_spill_too(engine, disk):
    draft = engine.heavy.alloc("a", LARGE, np.uint8)
    draft[:] = 3
    late = draft[1:]
    engine.heavy.seal("a")
    late[:] = 4  # stays with this process
    live = engine.heavy.alloc("live", LARGE, np.uint8, mutable=True)
    live[:] = 5
    table = pa.table({"n": np.arange(LARGE // 8), "s": ["x"] * (LARGE // 8)})
    engine.heavy.put("t", table)
    blank = engine.heavy.alloc_table("b", pa.schema([("v", pa.int64())]), LARGE // 8)
    blank["v"][:] = np.arange(LARGE // 8)
    blank.seal()
    assert len(spilled(disk)) == 4

    def look(ctx):
        return (
            int(ctx.heavy["a"].max()),
            int(ctx.heavy["live"].min()),
            ctx.heavy["t"].equals(
                pa.table({"n": np.arange(LARGE // 8), "s": ["x"] * (LARGE // 8)})
            ),
            ctx.heavy["b"]["v"].to_numpy().sum(),
        )

    expected = (3, 5, True, np.arange(LARGE // 8).sum())
    assert engine.submit(look).result(30) == expected
    stock = pa.ipc.open_file(pa.memory_map(str(engine.heavy.path("t"))))
    assert stock.read_all().num_rows == LARGE // 8


def test_a_stream_that_outgrows_memory_moves_to_disk(engine, disk):
    schema = pa.schema([("n", pa.int64())])
    batch = pa.record_batch([np.arange(1 << 16)], schema=schema)
    reader = pa.RecordBatchReader.from_batches(schema, (batch for _ in range(300)))
    engine.heavy.put("s", reader)  # 150 MiB, planned 64 at a time
    assert len(spilled(disk)) == 1
    assert engine.heavy["s"].num_rows == 300 << 16
    assert engine.heavy["s"]["n"].chunk(299).equals(batch.column(0))


def test_a_workers_outputs_spill_and_are_the_owners_after(engine, disk):
    def make(ctx):
        out = ctx.heavy.alloc("out", LARGE, np.uint8)
        out[:] = 7
        return out, ctx.heavy.put("table", pa.table({"n": np.arange(LARGE // 8)}))

    array, table = engine.submit(make).result(30)
    assert len(spilled(disk)) == 2
    assert (array.min(), table.num_rows) == (7, LARGE // 8)
    del array, table
    engine.submit(lambda ctx: None).result(20)
    assert not spilled(disk)
    assert engine.heavy.stats()["used_bytes"] < LIMIT


def test_a_killed_owners_files_are_removed_by_its_workers(disk, tmp_path):
    script = tmp_path / "owner.py"
    script.write_text(
        "import sys, time, numpy as np, theus\n"
        f"engine = theus.TheusEngine(workers=1, heavy_limit={LIMIT}, spill_dir={str(disk)!r})\n"
        f"engine.heavy.put('x', np.ones({LARGE}, np.uint8))\n"
        "engine.submit(lambda ctx: None).result()\n"
        "print('ready', flush=True)\ntime.sleep(60)\n"
    )
    for number in [signal.SIGKILL, signal.SIGTERM]:
        with subprocess.Popen([sys.executable, script], stdout=subprocess.PIPE) as owner:
            assert owner.stdout.readline()
            assert len(list(disk.iterdir())) == 2
            owner.send_signal(number)
        deadline = time.monotonic() + 10
        while list(disk.iterdir()) and time.monotonic() < deadline:
            time.sleep(0.01)
        assert not list(disk.iterdir())


def leave_from_another_boot(disk):
    session = "a" * 12
    (disk / f"theus-{session}.lock").write_text("another boot")
    (disk / f"theus-{session}-1").write_bytes(b"old")
    (disk / "theus-notes.txt").write_text("mine")
    return session


def test_files_that_outlived_the_machine_go_at_the_next_start(disk):
    session = leave_from_another_boot(disk)
    with theus.TheusEngine(spill_dir=disk):
        left = {path.name for path in disk.iterdir()} - {"theus-notes.txt"}
        assert len(left) == 1
        assert session not in left.pop()
    assert [path.name for path in disk.iterdir()] == ["theus-notes.txt"]
    (disk / "theus-notes.txt").unlink()


def test_files_that_outlived_the_machine_go_by_the_command_line(engine, disk, capsys):
    engine.heavy.put("x", np.ones(LARGE, np.uint8))
    session = leave_from_another_boot(disk)
    assert main(["sweep", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["removed"] == []
    assert main(["sweep", "--json", "--spill-dir", str(disk)]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["removed"] == [f"theus-{session}-1", f"theus-{session}.lock"]
    assert {item["why"] for item in found["kept"]} == {"name", "alive"}
    assert int(engine.heavy["x"].sum()) == LARGE
    (disk / "theus-notes.txt").unlink()


@pytest.mark.parametrize("path", ["nowhere", "file", "/dev/shm"])
def test_a_directory_that_cannot_keep_segments_is_refused_by_name(tmp_path, path):
    (tmp_path / "file").touch()
    with pytest.raises(theus.errors.SpillDirectoryError, match=path):
        theus.TheusEngine(spill_dir=tmp_path / path)


def test_a_full_disk_is_an_error_that_names_it(tmp_path):
    if subprocess.run([UNSHARE, "-m", "true"], check=False, timeout=20).returncode:
        pytest.skip("needs to mount a small file system")
    done = subprocess.run(
        [
            UNSHARE,
            "-m",
            "bash",
            "-c",
            f"mount -t tmpfs -o size=16m tmpfs {tmp_path} && exec {sys.executable} -",
        ],
        input=(
            "import numpy as np, theus\n"
            f"engine = theus.TheusEngine(heavy_limit={LIMIT}, spill_dir={str(tmp_path)!r})\n"
            f"engine.heavy.put('x', np.ones({LARGE}, np.uint8))\n"
            "try:\n    engine.heavy.put('y', np.ones(12 << 20, np.uint8))\n"
            f"except theus.HeavyZoneFullError as error:\n    print(error)\n"
            "try:\n    engine.submit(lambda ctx: np.ones(1 << 40, np.uint8)).result(20)\n"
            "except MemoryError as error:\n    print(type(error).__name__)\n"
            "def fill(ctx):\n"
            "    return ctx.heavy.put('z', np.ones(12 << 20, np.uint8))\n"
            "try:\n    engine.submit(fill).result(20)\n"
            "except theus.HeavyZoneFullError as error:\n    print(error)\n"
            "print(engine.heavy['x'].sum())\n"
        ),
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    lines = done.stdout.splitlines()
    assert lines[0].endswith("or raise the limit"), done.stderr
    assert f"the spill directory {tmp_path}" in lines[0]
    assert f"the spill directory {tmp_path}" in lines[2]
    assert lines[3] == str(LARGE)


def test_locks_that_somebody_removed_come_back(engine, disk):
    session = engine.heavy.stats()["session"]
    locks = [Path("/dev/shm", f"theus-{session}.lock"), disk / f"theus-{session}.lock"]
    engine.heavy.put("x", np.ones(LARGE, np.uint8))
    for lock in locks:
        lock.unlink()
        theus.sweep(disk)  # nobody else's business: the owner still maps what is there
        assert int(theus.open(engine.heavy.path("x")).sum()) == LARGE
    engine.heavy.put("y", np.ones(8, np.uint8))
    assert all(lock.exists() for lock in locks)
    assert locks[0].read_text() == str(disk)
    assert engine.submit(lambda ctx: int(ctx.heavy["x"].sum())).result(20) == LARGE


def test_what_spilled_is_copied_when_a_fork_could_still_write_it(python, disk):
    done = python(
        "import os, numpy as np, theus\n"
        f"engine = theus.TheusEngine(heavy_limit={LIMIT}, spill_dir={str(disk)!r})\n"
        f"draft = engine.heavy.alloc('x', {LARGE}, np.uint8)\n"
        "draft[:] = 1\n"
        "reader, writer = os.pipe()\n"
        "if (child := os.fork()) == 0:\n"
        "    os.read(reader, 1)\n"
        "    draft[:] = 2\n"
        "    os._exit(0)\n"
        "engine.heavy.seal('x')\n"
        "os.write(writer, b'x')\n"
        "os.waitpid(child, 0)\n"
        "print(engine.heavy['x'].max(), engine.heavy.stats()['spilled_bytes'])\n"
    )
    assert done.stdout.split() == ["1", str(LARGE + 4096)]
