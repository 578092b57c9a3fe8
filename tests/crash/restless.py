"""An owner that never rests: it makes, replaces, drops and executes until somebody kills it."""

import os
import random
import sys

import numpy as np
import pyarrow as pa

import theus

MIB = 1 << 20
WRONG_BYTES = 99


def made(ctx, number, nbytes):
    out = ctx.heavy.alloc(f"o{number}", nbytes, np.uint8)
    out[:] = number
    return out


def doubled(ctx, value):
    return value + value


class Restless:
    """An engine, and what is done to it next."""

    def __init__(self, seed, spill):
        self._chance = random.Random(seed)
        self._spill = spill
        self._pending = []
        self._start()
        self._steps = [self._put, self._put_table, self._alloc, self._free, self._swap]
        self._steps += [self._make, self._double, self._restart]

    def _start(self):
        self._engine = theus.TheusEngine(workers=2, heavy_limit=8 * MIB, spill_dir=self._spill)

    def step(self):
        number = self._chance.randrange(1, 120)
        nbytes = self._chance.choice([8, 5000, MIB, 6 * MIB])
        try:
            self._chance.choice(self._steps)(number, nbytes)
            if len(self._pending) > 20 or len(self._engine.heavy) > 60:
                self._settle()
        except theus.HeavyZoneFullError:
            self._settle()

    def _put(self, number, nbytes):
        self._engine.heavy.put(f"a{number}", np.full(nbytes, number, np.uint8))

    def _put_table(self, number, nbytes):
        column = np.full(nbytes, number, np.uint8)
        self._engine.heavy.put(f"t{number}", pa.table({"n": column}))

    def _alloc(self, number, nbytes):
        self._engine.heavy.alloc(f"d{number}", nbytes, np.uint8)[:] = number
        self._engine.heavy.seal(f"d{number}")

    def _free(self, number, nbytes):
        names = list(self._engine.heavy)
        for name in self._chance.sample(names, min(3, len(names))):
            self._engine.heavy.free(name)

    def _swap(self, number, nbytes):
        version = self._engine.state.version
        entries = {f"k{number}": np.full(8, number, np.uint8)}
        self._engine.compare_and_swap(version, {"n": number}, entries)

    def _make(self, number, nbytes):
        self._pending.append(self._engine.submit(made, number=number, nbytes=nbytes))

    def _double(self, number, nbytes):
        value = np.full(nbytes, number, np.uint8)
        self._pending.append(self._engine.submit(doubled, value=value))

    def _restart(self, number, nbytes):
        if self._chance.random() < 0.05:
            self._engine.close()
            self._pending.clear()
            self._start()

    def _settle(self):
        """Wait for all results, look at them, and free everything."""
        for future in self._pending:
            try:
                found = future.result(30)
            except (theus.WorkerDiedError, theus.WorkerStartError, theus.HeavyZoneFullError):
                continue  # a worker may be killed while it starts, too, and the next, and the next
            if found.min() != found.max():
                os._exit(WRONG_BYTES)
        self._pending.clear()
        for name in list(self._engine.heavy):
            self._engine.heavy.free(name)


if __name__ == "__main__":
    owner = Restless(int(sys.argv[1]), sys.argv[2] if len(sys.argv) > 2 else None)
    while True:
        owner.step()
