"""What it costs to send plain values with a task: there, and there and back."""

import numpy as np
import pandas as pd

import tasks
from floors import timed
from rounds import OURS, Group, Row
from rows import CORES, KIB, MIB, contestant, with_peer
from samples import US, size_name

_THERE = [KIB << (2 * step) for step in range(9)]  # 1 KiB to 64 MiB
_THERE_AND_BACK = [KIB, 64 * KIB, MIB, 16 * MIB]
_SENT_IN_A_TURN = 16 * MIB


def array(size):
    return np.ones(size, np.uint8)


def frame(size):
    return pd.DataFrame(np.ones((max(1, size // 32), 4)), columns=list("abcd"))


_KINDS = [
    ("there", "array of {} to a worker", tasks.size_of, array, _THERE),
    ("echo", "array of {} there and back", tasks.echo, array, _THERE_AND_BACK),
    ("frame", "pandas frame of {} there and back", tasks.echo, frame, _THERE_AND_BACK),
]


def groups(scale):
    for kind, title, function, make, full in _KINDS:
        sizes = full[:2] if scale.smoke else full
        rows = [Row(f"{kind}-{size}", title.format(size_name(size)), US) for size in sizes]
        values = {size: make(size) for size in sizes}

        def turn(it, function=function, kind=kind, values=values):
            def sent(size, value):
                times = 2 if scale.smoke else max(2, min(30, _SENT_IN_A_TURN // size))
                it.call(function, value)
                return [timed(lambda: it.call(function, value)) for _ in range(times)]

            return lambda: {f"{kind}-{size}": sent(size, value) for size, value in values.items()}

        names = (OURS, "ProcessPoolExecutor", "joblib", "Ray", "Dask")
        who = [contestant(name, with_peer(name, turn, CORES)) for name in names]
        yield Group(f"payload, {kind}", rows, who, scale.rounds(5))
