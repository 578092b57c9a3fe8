"""A peer in a process of its own, for what concerns all its processes: their start, their memory.

    python household.py PEER WORKERS cold|warm

prints what starting it took and answers each line of its input, a number of bytes, when all workers
hold an array of that size; it ends with its input.
"""

import json
import subprocess
import sys
import time
from contextlib import contextmanager
from importlib import import_module
from pathlib import Path


class Household:
    """The process and all that come from it, seen from outside."""

    def __init__(self, peer, workers, state):
        command = [sys.executable, __file__, peer, str(workers), state]
        pipe = subprocess.PIPE
        started = time.perf_counter()
        self.process = subprocess.Popen(command, stdin=pipe, stdout=pipe, stderr=pipe, text=True)
        try:
            self.started = self.answer()
        except BaseException:
            self.process.kill()
            self.process.communicate()
            raise
        self.started["all"] = time.perf_counter() - started

    def answer(self):
        line = self.process.stdout.readline()
        if not line:
            said = self.process.communicate()[1].strip().splitlines()
            raise RuntimeError(said[-1] if said else "it ended without a word")
        return json.loads(line)

    def hold(self, size):
        self.process.stdin.write(f"{size}\n")
        self.process.stdin.flush()
        return self.answer()

    def processes(self):
        """Return the directories in /proc of the process and of all that descend from it."""
        import psutil

        parent = psutil.Process(self.process.pid)
        return [Path(f"/proc/{it.pid}") for it in (parent, *parent.children(recursive=True))]

    def close(self):
        self.process.stdin.close()
        self.process.stdout.read()
        self.process.stderr.read()
        self.process.wait(60)


@contextmanager
def household(peer, workers, state="warm"):
    it = Household(peer, workers, state)
    try:
        yield it
    finally:
        it.close()


def main(name, workers, state):
    import peers
    import tasks

    started = time.perf_counter()
    for module in peers.imported_for(name):
        import_module(module)
    imported = time.perf_counter()
    answer = {"import": imported - started}
    if name not in peers.ONLY_IMPORTED:
        with peers.peer(name)(workers, warm=state == "warm") as it:
            it.call(tasks.nothing)
            answer["first"] = time.perf_counter() - imported
            say(answer)
            for line in sys.stdin:
                say(hold(it, workers, int(line)))
    else:
        say(answer)


def say(answer):
    print(json.dumps(answer), flush=True)


def hold(it, workers, size):
    import numpy as np

    import tasks

    handle = it.put(np.ones(size // 8))
    found = it.reach_all(workers, lambda count: it.looks(tasks.hold, handle, [()] * count))
    assert all(total == size // 8 for _, total in found)
    return len(found)


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]), sys.argv[3])
