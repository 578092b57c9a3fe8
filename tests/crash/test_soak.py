"""Owners and workers that live, work and are killed at any moment, side by side, for a while.

``THEUS_SOAK_S`` says for how many seconds.
"""

import gc
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest
from crash_tools import MARK, SHARED_MEMORY, Bystander, Machine, Reader
from restless import WRONG_BYTES

import theus

SECONDS = float(os.environ.get("THEUS_SOAK_S", "60"))
RESTLESS = Path(__file__).with_name("restless.py")
OWNERS = 3


class Owner:
    """A process that works until it is killed, and its children."""

    def __init__(self, machine, spill, seed):
        environment = {**os.environ, MARK: machine.mark}
        self._process = subprocess.Popen(
            [sys.executable, RESTLESS, str(seed), *spill],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env=environment,
        )

    def workers(self):
        try:
            return psutil.Process(self._process.pid).children()
        except psutil.NoSuchProcess:
            return []

    def kill(self, *, how):
        self._process.send_signal(how)

    def bury(self):
        """Kill it, and return what it wrote to its standard error."""
        self._process.kill()
        _, errors = self._process.communicate(timeout=30)
        return errors

    def end(self):
        errors = self.bury()
        assert self._process.returncode != WRONG_BYTES, "a result had other bytes"
        assert self._process.returncode < 0, errors


def descriptors():
    """Return what this process has open that is not garbage."""
    gc.collect()
    return sorted(link.readlink().name for link in Path("/proc/self/fd").iterdir() if link.exists())


def end_worker(process):
    """Kill it, unless it has ended by itself; whether it was killed."""
    try:
        process.kill()
    except psutil.NoSuchProcess:
        return False
    return True


@pytest.mark.slow
@pytest.mark.timeout(SECONDS + 120)
def test_a_while_of_deaths_leaves_nothing_and_shows_nobody_wrong_bytes(tmp_path):
    spill = tmp_path / "spill"
    spill.mkdir()
    chance = random.Random(11)
    bystander = Bystander(spill)
    counts = dict.fromkeys(["owners", "owners killed", "workers killed", "sweeps"], 0)
    owners = []
    try:
        machine = Machine(spill)
        before = descriptors()
        end = time.monotonic() + SECONDS
        with Reader([SHARED_MEMORY, spill], expect_partial=False) as reader:
            while time.monotonic() < end:
                while len(owners) < OWNERS:
                    on_disk = [str(spill)] if chance.random() < 0.7 else []
                    owners.append(Owner(machine, on_disk, chance.randrange(1 << 30)))
                    counts["owners"] += 1
                time.sleep(chance.random() * 0.4)
                owner = chance.choice(owners)
                what = chance.random()
                if what < 0.45:
                    for worker in chance.sample(workers := owner.workers(), min(1, len(workers))):
                        counts["workers killed"] += end_worker(worker)
                elif what < 0.9:
                    if what < 0.6:  # workers first, so that nobody is left to sweep
                        for worker in owner.workers():
                            end_worker(worker)
                    owner.kill(how=chance.choice([signal.SIGKILL, signal.SIGKILL, signal.SIGTERM]))
                    owner.end()
                    owners.remove(owner)
                    counts["owners killed"] += 1
                else:
                    theus.sweep(spill)
                    counts["sweeps"] += 1
                bystander.check()
            for owner in owners:
                owner.end()
        machine.wait_for_survivors()
        machine.start_once()
        assert not machine.names()
        assert not machine.processes()
        assert not reader.wrong, reader.wrong[:5]
        assert descriptors() == before
        counts["entries read"] = reader.looks
        print(f"\n{SECONDS:.0f} s: {counts}, wrong 0, left 0")
    finally:
        for owner in owners:
            owner.bury()
        bystander.close()
