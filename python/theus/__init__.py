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

from importlib import import_module
from typing import TYPE_CHECKING, Any

from theus._theus import __version__

if TYPE_CHECKING:
    from theus.engine.engine import TheusEngine
    from theus.errors import (
        CopyRequiredError,
        CorruptSegmentError,
        DescriptorLimitError,
        EntryNotFoundError,
        HeavyZoneFullError,
        MappingLimitError,
        NativeInputError,
        NativePanicError,
        NativeTaskError,
        NativeTaskNotFoundError,
        NativeTypeError,
        NativeWorkerError,
        NotPlainError,
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
    from theus.heavy.array import ShmArray
    from theus.heavy.copies import CopyRecord, copy_report, zero_copy
    from theus.heavy.sessions import SessionInfo, sessions, sweep
    from theus.heavy.sessions import open_segment as open  # noqa: A004 - read as theus.open
    from theus.state.snapshot import State
    from theus.tasks.context import ProcessContext
    from theus.tasks.contract import process
    from theus.tasks.native import NativeTask, Progress, TaskInfo, native
    from theus.worker.context import ParallelContext

__all__ = [
    "CopyRecord",
    "CopyRequiredError",
    "CorruptSegmentError",
    "DescriptorLimitError",
    "EntryNotFoundError",
    "HeavyZoneFullError",
    "MappingLimitError",
    "NativeInputError",
    "NativePanicError",
    "NativeTask",
    "NativeTaskError",
    "NativeTaskNotFoundError",
    "NativeTypeError",
    "NativeWorkerError",
    "NotPlainError",
    "ParallelContext",
    "PoisonTaskError",
    "ProcessContext",
    "Progress",
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
    "TaskInfo",
    "TheusEngine",
    "TheusError",
    "UnpicklableError",
    "UnpublishedError",
    "UnsupportedDtypeError",
    "WorkerDiedError",
    "WorkerStartError",
    "__version__",
    "copy_report",
    "native",
    "open",
    "process",
    "sessions",
    "sweep",
    "zero_copy",
]

# Where each lies. A module is imported when something of it is first asked for: a worker, which is
# started by way of this package too, needs few of them.
_PLACES = {
    "CopyRecord": "heavy.copies",
    "CopyRequiredError": "errors",
    "CorruptSegmentError": "errors",
    "DescriptorLimitError": "errors",
    "EntryNotFoundError": "errors",
    "HeavyZoneFullError": "errors",
    "MappingLimitError": "errors",
    "NativeInputError": "errors",
    "NativePanicError": "errors",
    "NativeTask": "tasks.native",
    "NativeTaskError": "errors",
    "NativeTaskNotFoundError": "errors",
    "NativeTypeError": "errors",
    "NativeWorkerError": "errors",
    "NotPlainError": "errors",
    "ParallelContext": "worker.context",
    "PoisonTaskError": "errors",
    "ProcessContext": "tasks.context",
    "Progress": "tasks.native",
    "ProtocolError": "errors",
    "RemoteError": "errors",
    "SegmentNotFoundError": "errors",
    "SessionClosedError": "errors",
    "SessionInfo": "heavy.sessions",
    "ShmArray": "heavy.array",
    "SpillDirectoryError": "errors",
    "StaleSegmentError": "errors",
    "State": "state.snapshot",
    "StateConflictError": "errors",
    "TaskInfo": "tasks.native",
    "TheusEngine": "engine.engine",
    "TheusError": "errors",
    "UnpicklableError": "errors",
    "UnpublishedError": "errors",
    "UnsupportedDtypeError": "errors",
    "WorkerDiedError": "errors",
    "WorkerStartError": "errors",
    "copy_report": "heavy.copies",
    "native": "tasks.native",
    "open": "heavy.sessions:open_segment",
    "process": "tasks.contract",
    "sessions": "heavy.sessions",
    "sweep": "heavy.sessions",
    "zero_copy": "heavy.copies",
}


def __getattr__(name: str) -> Any:
    place = _PLACES.get(name)
    if place is None:
        msg = f"module {__name__!r} has no attribute {name!r}"
        raise AttributeError(msg)
    module, _, attribute = place.partition(":")
    value = getattr(import_module(f"{__name__}.{module}"), attribute or name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
