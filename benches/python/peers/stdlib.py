"""The standard library: ProcessPoolExecutor, which pickles arguments, and SharedMemory beside it.

Workers are spawned: what Python 3.14 no longer makes by default, fork, cannot be had beside
threads, and is not how Theus starts its own.
"""

import contextlib
import multiprocessing
from concurrent.futures import ProcessPoolExecutor
from multiprocessing.shared_memory import SharedMemory

import numpy as np
import pyarrow as pa

from peers.base import Peer

START_METHOD = "spawn"
_attached = {}
_kept = []


class Block(SharedMemory):
    """One that may be collected while pyarrow has its buffer, which it lets go when it likes."""

    def __del__(self):
        with contextlib.suppress(BufferError):
            self.close()


class Pool(Peer):
    """ProcessPoolExecutor."""

    shares = False

    def __init__(self, workers, *, warm=True):
        context = multiprocessing.get_context(START_METHOD)
        self.pool = ProcessPoolExecutor(workers, mp_context=context)
        if warm:
            self.warm(workers)

    def submit(self, function, *arguments):
        return self.pool.submit(function, *arguments)

    def put(self, data):
        return data

    def attach(self):
        return _itself

    def close(self):
        self.pool.shutdown()


class Shared(Pool):
    """ProcessPoolExecutor, and the data in a SharedMemory whose name is sent.

    ``cached`` has workers keep what they attached, by a table that a user would write himself.
    """

    shares = True

    def __init__(self, workers, *, warm=True, cached=False):
        super().__init__(workers, warm=warm)
        self.cached = cached
        self.looked_at = False
        self.blocks = {}

    def put(self, data):
        """Copy into a new block: its pages are fresh."""
        if isinstance(data, pa.Table):
            block = _write_table(data)
            described = (block.name, None, None)
        else:
            block = Block(create=True, size=data.nbytes)
            self.fill(block, data)
            described = (block.name, data.dtype.str, data.shape)
        self.blocks[block.name] = block
        return described

    def refill(self, handle, data):
        """Copy into a block that is there: nobody may be reading it, which nothing here proves."""
        self.fill(self.blocks[handle[0]], data)

    @staticmethod
    def fill(block, data):
        np.copyto(np.ndarray(data.shape, data.dtype, block.buf), data)

    def free(self, handle):
        if self.looked_at:
            self.call(detach)
        block = self.blocks.pop(handle[0])
        with contextlib.suppress(BufferError):
            block.close()
        block.unlink()

    def attach(self):
        self.looked_at = True
        return attach_cached if self.cached else attach_anew

    def close(self):
        for name in list(self.blocks):
            self.free((name,))
        super().close()


def _itself(data):
    return data


def attach_anew(handle):
    name, dtype, shape = handle
    block = Block(name=name)
    if dtype is None:
        view = pa.ipc.open_file(pa.py_buffer(block.buf)).read_all()
    else:
        view = np.ndarray(shape, dtype, block.buf)
    # Without its block the view's memory would be unmapped.
    _kept.append((block, view))
    return view


def detach():
    """Let go of what this worker has attached."""
    _attached.clear()
    _kept.clear()


def attach_cached(handle):
    if handle[0] not in _attached:
        _attached[handle[0]] = attach_anew(handle)
    return _attached[handle[0]]


def _write_table(table):
    """Write pyarrow's IPC file, with two threads that copy."""

    def write(sink):
        with pa.ipc.new_file(sink, table.schema) as writer:
            writer.write_table(table)

    size = pa.MockOutputStream()
    write(size)
    block = Block(create=True, size=size.size())
    sink = pa.FixedSizeBufferWriter(pa.py_buffer(block.buf))
    sink.set_memcopy_threads(2)
    write(sink)
    return block
