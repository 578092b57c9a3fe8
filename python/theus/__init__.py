"""Zero-copy parallelism: arrays and tables in managed shared memory, seen by worker processes.

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
from theus.copies import CopyRecord, copy_report, zero_copy
from theus.engine import TheusEngine
from theus.errors import (
    CopyRequiredError,
    CorruptSegmentError,
    DescriptorLimitError,
    EntryNotFoundError,
    HeavyZoneFullError,
    MappingLimitError,
    PoisonTaskError,
    ProtocolError,
    RemoteError,
    SegmentNotFoundError,
    SessionClosedError,
    SpillDirectoryError,
    StaleSegmentError,
    StateConflictError,
    TheusError,
    UnpicklableError,
    UnpublishedError,
    UnsupportedDtypeError,
    WorkerDiedError,
    WorkerStartError,
)
from theus.segments import SessionInfo, sessions, sweep
from theus.segments import open_segment as open  # noqa: A004 - read as theus.open
from theus.state import State

__all__ = [
    "CopyRecord",
    "CopyRequiredError",
    "CorruptSegmentError",
    "DescriptorLimitError",
    "EntryNotFoundError",
    "HeavyZoneFullError",
    "MappingLimitError",
    "ParallelContext",
    "PoisonTaskError",
    "ProcessContext",
    "ProtocolError",
    "RemoteError",
    "SegmentNotFoundError",
    "SessionClosedError",
    "SessionInfo",
    "ShmArray",
    "SpillDirectoryError",
    "StaleSegmentError",
    "State",
    "StateConflictError",
    "TheusEngine",
    "TheusError",
    "UnpicklableError",
    "UnpublishedError",
    "UnsupportedDtypeError",
    "WorkerDiedError",
    "WorkerStartError",
    "__version__",
    "copy_report",
    "open",
    "process",
    "sessions",
    "sweep",
    "zero_copy",
]
