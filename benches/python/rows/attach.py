"""How long a worker takes until it sees data that another process put into shared memory.

*Cold* is the first look at an entry that the worker has not seen, in a worker that has seen others;
*warm* is a later task's look at the same entry.
"""

import mmap
import os
import tempfile
from contextlib import contextmanager

import numpy as np

import tasks
import theus
from floors import timed
from machine import spare_bytes
from rounds import OURS, Contestant, Group, Row
from rows import GIB, MIB, contestant, with_peer
from samples import US, size_name

_WARM_LOOKS = 5


def groups(scale):
    for size in scale.of([MIB, 64 * MIB, GIB, 4 * GIB], [MIB]):
        yield _group(scale, size)


def _group(scale, size):
    # Never written, so that its pages are not there: what is put is a copy, whose pages are.
    data = np.zeros(size // 8)
    rows = [
        Row(f"attach-cold-{size}", f"attach {size_name(size)}, cold", US),
        Row(f"attach-warm-{size}", f"attach {size_name(size)}, warm", US),
    ]
    cold, warm = (row.key for row in rows)
    if 4 * size > spare_bytes():
        return Group(f"attach {size_name(size)}", rows, [Contestant("everybody", _no_space)], 0)

    def looked(it, handle):
        seconds, length = it.look(tasks.attach_s, handle)
        assert length == len(data)
        return seconds

    def turn(it):
        # Its first look at anything imports numpy.
        handle = it.put(data[:1])
        it.look(tasks.attach_s, handle)
        it.free(handle)

        def take():
            handle = it.put(data)
            first = looked(it, handle)
            later = [looked(it, handle) for _ in range(_WARM_LOOKS)]
            it.free(handle)
            return {cold: [first], warm: later}

        return take

    def ours(it):
        take = turn(it)

        def opened():
            """Open it by its path, as a process that is none of the engine's would."""
            handle = it.put(data)
            path = it.engine.heavy.path(handle)
            first = it.call_plain(opened_s, path)
            later = [it.call_plain(opened_s, path) for _ in range(_WARM_LOOKS)]
            it.free(handle)
            return {(cold, "theus.open(path)"): [first], (warm, "theus.open(path)"): later}

        return lambda: {**take(), **opened()}

    @contextmanager
    def floor():
        with tempfile.NamedTemporaryFile(dir="/dev/shm") as file:
            file.truncate(size)

            def mapped():
                return [timed(lambda: map_read_only(file.name)) for _ in range(_WARM_LOOKS)]

            yield lambda: {cold: mapped(), warm: mapped()}

    who = [
        contestant(OURS, with_peer(OURS, ours, 1)),
        contestant("floor: open and mmap", floor),
        contestant("shared_memory", with_peer("shared_memory", turn, 1)),
        contestant("joblib", with_peer("joblib", turn, 1)),
        contestant("Ray", with_peer("Ray", turn, 1, store_gib=max(1, 2 * size // GIB))),
    ]
    return Group(f"attach {size_name(size)}", rows, who, scale.rounds(5 if size >= GIB else 15))


@contextmanager
def _no_space():
    msg = "there is no space in memory for four of them"
    raise MemoryError(msg)
    yield


def map_read_only(path):
    descriptor = os.open(path, os.O_RDONLY)
    mapping = mmap.mmap(descriptor, 0, prot=mmap.PROT_READ)
    os.close(descriptor)
    return mapping


def opened_s(path):
    return timed(lambda: theus.open(path, trusted=True))
