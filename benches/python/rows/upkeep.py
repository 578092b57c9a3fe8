"""What workers cost before and while they do nothing: start, memory, and an idle processor."""

import os
import time
from contextlib import contextmanager

import peers
from household import household
from rounds import OURS, Contestant, Group, Row
from rows import CORES, GIB, contestant
from samples import MIB, MS, PER_S, PERCENT, size_name

_WORKERS = 8
_SETTLING_S = 1
_SMALL_BYTES = 8192
_POOLS = (OURS, "ProcessPoolExecutor", "joblib", "Ray", "Dask")


def groups(scale):
    yield _starts(scale)
    yield _memory(scale, scale.size(GIB))
    yield _idle(scale)


def _starts(scale):
    """Start each in a process of its own, and wait for its end, so that no daemon is left."""
    rows = [
        Row("import", "import", MS),
        Row("first-result", "start workers, first result", MS),
        Row("script", "a script that runs one task, to its result", MS),
    ]

    def starting(name):
        @contextmanager
        def start():
            _check_installed(name)

            def take():
                with household(name, CORES, "cold") as it:
                    took = it.started
                costs = {"import": [took["import"]]}
                if name not in peers.ONLY_IMPORTED:
                    costs |= {"first-result": [took["first"]], "script": [took["all"]]}
                return costs

            yield take

        return start

    who = [Contestant(name, starting(name)) for name in (*_POOLS, peers.IMPORTS)]
    return Group("start", rows, who, scale.rounds(7))


def _memory(scale, size):
    """Measure one household at a time; the array itself is part of what is counted."""
    what = f"memory for {size_name(size)} that {_WORKERS} workers read"
    rows = [Row("memory", what, MIB)]

    def holding(name):
        @contextmanager
        def start():
            _check_installed(name)

            def take():
                with household(name, _WORKERS) as it:
                    # What working on any array costs, numpy's import say, is not the array's.
                    it.hold(_SMALL_BYTES)
                    before = _pss(it)
                    it.hold(size)
                    return {"memory": [_pss(it) - before]}

            yield take

        return start

    names = (OURS, "shared_memory", "joblib", "Ray", "ProcessPoolExecutor")
    who = [
        Contestant("floor: the bytes once", lambda: _always({"memory": [size]})),
        *(contestant(name, holding(name)) for name in names),
    ]
    return Group("memory", rows, who, 1 if scale.smoke else 2)


def _idle(scale):
    """Watch all households over the same seconds: what a process used is counted for itself."""
    seconds = scale.of(60, 2)
    rows = [
        Row("idle-cpu", f"{_WORKERS} idle workers: share of a processor", PERCENT),
        Row("idle-wakes", f"{_WORKERS} idle workers: wake-ups", PER_S),
    ]

    def idling(name):
        @contextmanager
        def start():
            _check_installed(name)
            with household(name, _WORKERS) as it:
                yield lambda: _used(it)

        return start

    def play(group, turns):
        time.sleep(_SETTLING_S)
        before = {name: turn() for name, turn in turns.items()}
        time.sleep(seconds)
        for name, turn in list(turns.items()):
            yield name, lambda name=name, turn=turn: _rates(before[name], turn(), seconds)

    return Group("idle", rows, [Contestant(name, idling(name)) for name in _POOLS], 1, play)


def _check_installed(name):
    if name not in peers.ONLY_IMPORTED:
        peers.peer(name)


@contextmanager
def _always(costs):
    yield lambda: costs


def _pss(it):
    """Return the bytes of all processes, those they share divided among them."""
    texts = [_read(process / "smaps_rollup") for process in it.processes()]
    return 1024 * sum(int(_after(text, "\nPss:")) for text in texts)


def _used(it):
    """Return the seconds of processor time and the wake-ups of all processes so far."""
    ticks = wakes = 0
    for process in it.processes():
        # Fields 14 and 15 of all, counted after the name, which may have spaces.
        fields = _read(process / "stat").rpartition(")")[2].split()
        ticks += sum(map(int, fields[11:13]))
        for thread in (process / "task").glob("*"):
            wakes += int(_after(_read(thread / "status"), "\nvoluntary_ctxt_switches:"))
    return {"idle-cpu": ticks / os.sysconf("SC_CLK_TCK"), "idle-wakes": wakes}


def _rates(before, after, seconds):
    return {key: [(after[key] - before[key]) / seconds] for key in after}


def _read(path):
    """Return the text of a file in /proc; nothing of a process that has ended."""
    try:
        return path.read_text()
    except (FileNotFoundError, ProcessLookupError):
        return ""


def _after(text, name):
    return (text.partition(name)[2].split() or ["0"])[0]
