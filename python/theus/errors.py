"""Every exception that theus raises on purpose, in one place.

Each class is also the builtin whose meaning it shares, so that ``except MemoryError`` or ``except
FileNotFoundError`` in code that has never heard of theus still does the right thing.
"""

from __future__ import annotations

import pickle
import signal as signals
import sys
from concurrent.futures import BrokenExecutor
from typing import Any

__all__ = [
    "CopyRequiredError",
    "CorruptSegmentError",
    "DescriptorLimitError",
    "EntryNotFoundError",
    "HeavyZoneFullError",
    "MappingLimitError",
    "NativeInputError",
    "NativePanicError",
    "NativeTaskError",
    "NativeTaskNotFoundError",
    "NativeTypeError",
    "NativeWorkerError",
    "NotPlainError",
    "PoisonTaskError",
    "ProtocolError",
    "RemoteError",
    "RemoteTraceback",
    "SegmentNotFoundError",
    "SessionClosedError",
    "SpillDirectoryError",
    "StaleSegmentError",
    "StateConflictError",
    "TheusError",
    "UnpicklableError",
    "UnpublishedError",
    "UnsupportedDtypeError",
    "WorkerDiedError",
    "WorkerStartError",
]


class TheusError(Exception):
    """Base class of every error of this package."""


class SegmentNotFoundError(TheusError, FileNotFoundError):
    """No segment has this name or path."""


class EntryNotFoundError(TheusError, KeyError):
    """The heavy zone, or a snapshot of it, has no entry with this name."""

    def __str__(self) -> str:
        """Return the message itself: KeyError would show its repr."""
        return str(self.args[0]) if self.args else ""


class StaleSegmentError(TheusError, LookupError):
    """A handle outlived its segment: the session ended or the entry was freed."""


class HeavyZoneFullError(TheusError, MemoryError):
    """A reservation does not fit: into ``heavy_limit``, shared memory, or the control group."""


class SpillDirectoryError(TheusError, OSError):
    """The directory given as ``spill_dir`` cannot keep segments; the message says what it lacks."""


class MappingLimitError(TheusError, MemoryError):
    """The process can map no more: ``vm.max_map_count``, ``ulimit -v``, or no memory at all."""


class DescriptorLimitError(TheusError, OSError):
    """No descriptor is left, in this process (``ulimit -n``) or on the machine."""


class CorruptSegmentError(TheusError, ValueError):
    """The bytes of a segment are not what its format promises."""


class CopyRequiredError(TheusError, ValueError):
    """Data would have to be copied where ``zero_copy(strict=True)`` forbids it."""


class UnpublishedError(TheusError, ValueError):
    """The operation needs a published entry, and this one is still being written."""


class SessionClosedError(TheusError, RuntimeError):
    """The engine is closed, or this process is a forked child, which owns nothing."""


class UnsupportedDtypeError(TheusError, TypeError):
    """A numpy dtype that cannot lie in shared memory, such as one with Python objects in it."""


class UnpicklableError(TheusError, pickle.PicklingError):
    """An input, a domain value, a function or a result that cannot be sent to another process."""


class ProtocolError(TheusError, RuntimeError):
    """A dispatcher frame does not follow ``schemas/frames.json``."""


class StateConflictError(TheusError):
    """A ``compare_and_swap`` met keys that changed since the version it was computed from.

    Attributes
    ----------
    keys : tuple of str
        The keys in conflict, as ``domain.<key>`` or ``heavy.<key>``.
    expected : int
        The version the caller started from.
    current : int
        The version it met.
    """

    def __init__(self, keys: tuple[str, ...], expected: int, current: int) -> None:
        self.keys = keys
        self.expected = expected
        self.current = current
        changed = ", ".join(keys) if keys else "the state"
        super().__init__(
            f"{changed} changed between version {expected} and version {current}: "
            "read engine.state again, redo the change on it and swap with its version"
        )

    def __reduce__(self) -> tuple[type[StateConflictError], tuple[tuple[str, ...], int, int]]:
        return type(self), (self.keys, self.expected, self.current)


class WorkerDiedError(TheusError, BrokenExecutor):
    """The worker process died while it ran this task; no other task is affected.

    Attributes
    ----------
    task : str
        The function that ran.
    pid : int
        The worker that died.
    signal : int or None
        The signal that ended it.
    exit_code : int or None
        Its exit code, if it was no signal.
    trace : str
        The Python stack at the moment of a fatal signal, as written by faulthandler.
    """

    def __init__(self, task: str, pid: int, status: int, trace: str = "") -> None:
        self.task = task
        self.pid = pid
        self.status = status
        self.signal = -status if status < 0 else None
        self.exit_code = status if status >= 0 else None
        self.trace = trace
        if self.signal is None:
            how = f"left with exit code {status}"
        else:
            try:
                how = f"was killed by {signals.Signals(self.signal).name}"
            except ValueError:
                how = f"was killed by signal {self.signal}"
        message = f"worker {pid} {how} while it ran {task}"
        super().__init__(f"{message}\n\n{trace}" if trace else message)

    def __reduce__(self) -> tuple[type[WorkerDiedError], tuple[Any, ...]]:
        return type(self), (self.task, self.pid, self.status, self.trace)


class PoisonTaskError(WorkerDiedError):
    """A task that may be run again has killed a worker each time; it is not sent to another.

    Attributes
    ----------
    deaths : tuple of WorkerDiedError
        One for each worker, the last one last; the other attributes are the last one's.
    """

    def __init__(self, task: str, deaths: tuple[WorkerDiedError, ...]) -> None:
        last = deaths[-1]
        super().__init__(task, last.pid, last.status, last.trace)
        self.deaths = deaths
        ends = "; ".join(str(death).partition(" while it ran ")[0] for death in deaths)
        message = f"{task} killed {len(deaths)} workers and is not run again: {ends}"
        self.args = (f"{message}\n\n{last.trace}" if last.trace else message,)

    def __reduce__(self) -> tuple[type[PoisonTaskError], tuple[Any, ...]]:
        return type(self), (self.task, self.deaths)


class WorkerStartError(TheusError, BrokenExecutor):
    """Workers end, or hang, before they can take a task; the message has what the last one wrote.

    Attributes
    ----------
    status : int
        The exit code of the last one, negative for a signal.
    stderr : str
        What it wrote to its standard error.
    program : str
        What the workers run.
    """

    def __init__(
        self, attempts: int, status: int, stderr: str, program: str = sys.executable
    ) -> None:
        self.attempts = attempts
        self.status = status
        self.stderr = stderr
        self.program = program
        how = f"exit code {status}" if status >= 0 else f"signal {-status}"
        message = (
            f"no worker starts: {attempts} in a row ended before they were ready, the last with "
            f"{how}. It runs {program}"
        )
        wrote = f", and wrote:\n\n{stderr}" if stderr else ", and wrote nothing"
        super().__init__(message + wrote)

    def __reduce__(self) -> tuple[type[WorkerStartError], tuple[int, int, str, str]]:
        return type(self), (self.attempts, self.status, self.stderr, self.program)


class RemoteTraceback(Exception):  # noqa: N818 - a cause to be printed, never raised by itself
    """The traceback of an exception as it was in the worker; the cause of the one raised here."""

    def __init__(self, text: str) -> None:
        self.text = text
        super().__init__(text)

    def __str__(self) -> str:
        return f'\n"""\n{self.text}"""'


class RemoteError(TheusError, RuntimeError):
    """Stands for a worker's exception that could not itself be sent."""


# --- tasks in other languages ------------------------------------------------------------------


class NotPlainError(TheusError, TypeError):
    """An input of a native task is no plain value, nor an array or table of the heavy zone."""


class NativeWorkerError(TheusError, BrokenExecutor):
    """A program cannot be started as a worker, is none, or speaks another version.

    Attributes
    ----------
    program : str
        Its path.
    reason : str
        What is wrong with it.
    version : int or None
        The version of the protocol that it speaks, if that is what is wrong.
    """

    def __init__(self, program: str, reason: str, version: int | None = None) -> None:
        self.program = program
        self.reason = reason
        self.version = version
        super().__init__(f"{program} does not work as a worker: {reason}")

    def __reduce__(self) -> tuple[type[NativeWorkerError], tuple[str, str, int | None]]:
        return type(self), (self.program, self.reason, self.version)


class NativeTaskNotFoundError(TheusError, LookupError):
    """No native worker of the engine has a task with this name."""


class NativeTaskError(TheusError, RuntimeError):
    """A native task returned an error.

    Attributes
    ----------
    task : str
        Its name.
    type : str
        What the program calls the error.
    message : str
        What it says.
    """

    def __init__(self, task: str, type: str, message: str) -> None:  # noqa: A002 - the attribute's name
        self.task = task
        self.type = type
        self.message = message
        super().__init__(self.describe())

    def describe(self) -> str:
        """Return the message of the exception."""
        said = f"{self.task} failed: {self.message}"
        tells = self.type != "error" and self.type not in self.message
        return f"{said} ({self.type})" if tells else said

    def __reduce__(self) -> tuple[type[NativeTaskError], tuple[str, str, str]]:
        return type(self), (self.task, self.type, self.message)


class NativePanicError(NativeTaskError):
    """A native task panicked: a mistake of the program. Its worker goes on with other tasks."""

    def describe(self) -> str:
        """Return the message of the exception."""
        return f"{self.task} panicked: {self.message}"


class NativeInputError(NativeTaskError, TypeError):
    """The inputs are not those that a native task takes."""

    def describe(self) -> str:
        """Return the message of the exception."""
        return f"{self.task} does not take these inputs: {self.message}"


class NativeTypeError(NativeTaskError, TypeError):
    """The items of an entry are not of the type that a native task asked for."""
