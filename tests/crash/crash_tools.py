"""What a test of crashes looks at: names, processes, a reader's bytes, a bystander's session."""

from __future__ import annotations

import contextlib
import json
import os
import random
import re
import subprocess
import sys
import tempfile
import threading
import time
import uuid
from pathlib import Path

import numpy as np
import pyarrow as pa

import theus
from theus import _theus

ROOT = Path(__file__).resolve().parents[2]
VICTIMS = Path(__file__).with_name("victims.py")
MARK = "THEUS_TEST_RUN"
SHARED_MEMORY = Path("/dev/shm")
REACTION_S = 8.0


class Machine:
    """Everything a session can leave: names in memory, on disk and among the locks, processes."""

    def __init__(self, spill: Path) -> None:
        self.spill = spill
        self.mark = uuid.uuid4().hex
        self._known = set(self._all())

    def _all(self):
        for directory in (SHARED_MEMORY, self.spill, Path(tempfile.gettempdir())):
            for entry in os.scandir(directory):
                if entry.name.lstrip(".").startswith("theus-"):
                    yield entry.path

    def names(self):
        """Return the paths that were not there when this was made."""
        return sorted(set(self._all()) - self._known)

    def processes(self):
        """Return the ids of the processes that this machine started, and theirs."""
        mark = f"{MARK}={self.mark}".encode()
        found = []
        for entry in os.listdir("/proc"):
            with contextlib.suppress(OSError):
                if entry.isdigit() and mark in Path("/proc", entry, "environ").read_bytes():
                    found.append(int(entry))
        return found

    def run(self, program, *arguments, backend, timeout=60.0):
        """Run `program` on the package with kill points."""
        environment = {
            **os.environ,
            MARK: self.mark,
            "PYTHONPATH": str(killed_package().parent),
            "THEUS_BACKEND": backend,
        }
        return subprocess.run(
            [sys.executable, program, *arguments],
            capture_output=True,
            text=True,
            timeout=timeout,
            check=False,
            env=environment,
        )

    def wait_for_survivors(self):
        """Wait until nothing is left, or nobody is left to remove it; return what is left."""
        deadline = time.monotonic() + REACTION_S
        while (self.names() or self.processes()) and time.monotonic() < deadline:
            if not self.processes():
                break
            time.sleep(0.01)
        return self.names()

    def start_once(self):
        """Do what the next user does: start an engine, which sweeps."""
        with theus.TheusEngine(spill_dir=self.spill):
            pass


def killed_package():
    """Return the package that was built with kill points."""
    target = Path(os.environ.get("CARGO_TARGET_DIR", ROOT / "target"))
    package = target / "kill-points" / "theus"
    assert (package / "_theus.abi3.so").exists(), "make kill-points builds what these tests kill"
    return package


def order(role, point=None, hit=None, spill=None):
    """Return the argument by which a victim is told what to do."""
    spill = spill and str(spill)
    return json.dumps({"role": role, "point": point, "hit": hit, "spill": spill})


def number_of(key):
    return int(re.sub(r"\D", "", key)) % 251


class Reader:
    """Opens whatever has a name, again and again, and checks each byte it sees.

    Attributes
    ----------
    looks : int
        How many entries were read.
    wrong : list of str
        What was not as it should be: other bytes, or an error that is not a clear one.
    """

    def __init__(self, directories, *, expect_partial):
        self.looks = 0
        self.wrong: list[str] = []
        self._directories = directories
        self._allowed = (theus.SegmentNotFoundError, theus.StaleSegmentError)
        if expect_partial:  # the portable backend names a segment before its bytes are there
            self._allowed += (theus.CorruptSegmentError,)
        self._chance = random.Random(1)
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run)

    def __enter__(self):
        self._thread.start()
        return self

    def __exit__(self, *_):
        self._stop.set()
        self._thread.join()

    def _run(self):
        while not self._stop.is_set():
            paths = [e.path for d in self._directories for e in os.scandir(d)]
            segments = [p for p in paths if re.search(r"/theus-[a-z2-7]{12}-[1-9]\d*$", p)]
            for path in self._chance.sample(segments, min(20, len(segments))):
                self._try(path, lambda path=path: self._look_at_segment(path))
            for path in paths:
                if found := re.search(r"/theus-([a-z2-7]{12})-0$", path):
                    self._try(path, lambda found=found: self._look_at_catalog(found[1]))
            self._stop.wait(0.002)

    def _try(self, path, look):
        try:
            look()
        except self._allowed:
            pass
        except Exception as error:  # noqa: BLE001 - whatever else it is, it is wrong
            self.wrong.append(f"{path}: {error!r}")

    def _look_at_segment(self, path):
        segment = _theus.open_segment(path)
        self._check(segment.key, theus.open(path))

    def _check(self, key, view):
        allowed = {number_of(key)} | ({0} if key.startswith("m") else set())
        values = view["n"].to_numpy() if isinstance(view, pa.Table) else view
        seen = set(np.unique(values).tolist())
        self.looks += 1
        if not seen <= allowed:
            self.wrong.append(f"{key}: {seen}")

    def _look_at_catalog(self, session):
        _, rows = _theus.catalog(session)
        for key, name, *_ in self._chance.sample(rows, min(5, len(rows))):
            with contextlib.suppress(*self._allowed):
                if _theus.open_segment(name).key != key:
                    self.wrong.append(f"catalog: {key} at {name}")
                self.looks += 1


class Bystander:
    """A living session that nobody else may touch."""

    def __init__(self, spill):
        limit = 1 << 20
        self._engine = theus.TheusEngine(workers=1, heavy_limit=limit, spill_dir=spill)
        self._engine.heavy.put("a7", np.full(100_000, 7, np.uint8))
        self._engine.heavy.put("g8", np.full(2 << 20, 8, np.uint8))
        self._draft = self._engine.heavy.alloc("d9", 100_000, np.uint8)
        self._draft[:] = 9

    def close(self):
        self._engine.close()

    def check(self):
        """Raise unless everything is there, in each of its places, as it was made."""
        for key in ("a7", "g8"):
            path = self._engine.heavy.path(key)
            view = theus.open(path)
            assert (view.min(), view.max()) == (number_of(key), number_of(key))
        assert (self._draft.min(), self._draft.max()) == (9, 9)
        alive = {info.id: info.alive for info in theus.sessions()}
        assert alive[self._engine.heavy.stats()["session"]]
