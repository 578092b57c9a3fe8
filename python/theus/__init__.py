"""Zero-copy parallelism: arrays in managed shared memory, and workers that see the same bytes.

>>> import numpy as np
>>> from theus import TheusEngine, process
>>> @process(parallel=True)
... def total(ctx):
...     return float(ctx.heavy["x"].sum())
>>> with TheusEngine(workers=1) as engine:
...     x = engine.heavy.alloc("x", shape=1000)
...     x[:] = 0.5
...     _ = engine.compare_and_swap(engine.state.version, heavy={"x": x})
...     engine.submit(total).result()
500.0
"""

from theus._theus import __version__
from theus.array import ShmArray
from theus.context import ParallelContext, ProcessContext
from theus.contracts import process
from theus.engine import TheusEngine
from theus.errors import (
    CorruptSegmentError,
    EntryNotFoundError,
    HeavyZoneFullError,
    ProtocolError,
    RemoteError,
    SegmentNotFoundError,
    SessionClosedError,
    StaleSegmentError,
    StateConflictError,
    TheusError,
    UnpicklableError,
    UnpublishedError,
    UnsupportedDtypeError,
    WorkerDiedError,
)
from theus.segments import SessionInfo, sessions, sweep
from theus.segments import open_segment as open  # noqa: A004 - read as theus.open
from theus.state import State

__all__ = [
    "CorruptSegmentError",
    "EntryNotFoundError",
    "HeavyZoneFullError",
    "ParallelContext",
    "ProcessContext",
    "ProtocolError",
    "RemoteError",
    "SegmentNotFoundError",
    "SessionClosedError",
    "SessionInfo",
    "ShmArray",
    "StaleSegmentError",
    "State",
    "StateConflictError",
    "TheusEngine",
    "TheusError",
    "UnpicklableError",
    "UnpublishedError",
    "UnsupportedDtypeError",
    "WorkerDiedError",
    "__version__",
    "open",
    "process",
    "sessions",
    "sweep",
]
