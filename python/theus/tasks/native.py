"""Tasks in other languages as Python sees them: by name, with plain values."""

from __future__ import annotations

import operator
from collections.abc import Callable
from dataclasses import dataclass, field

from theus.tasks.contract import ProcessContract

__all__ = ["NativeTask", "Progress", "TaskInfo", "native"]


@dataclass(frozen=True, slots=True)
class Progress:
    """How far a task is, as it says itself.

    Attributes
    ----------
    done : int
        How much of it is done, in a unit of its own.
    total : int or None
        How much it is in all, if it knows.
    message : str
        What it does now; may be empty.
    """

    done: int
    total: int | None = None
    message: str = ""


@dataclass(frozen=True, slots=True)
class NativeTask:
    """A task of a native worker, to be executed where a process function could be.

    Attributes
    ----------
    name : str
        Under which a program of :meth:`TheusEngine.native_worker` has it.
    retries : int
        How often it is run again when its worker dies.
    on_progress : callable, optional
        Called here with each `Progress` that the task tells.
    """

    name: str
    retries: int = 0
    on_progress: Callable[[Progress], object] | None = field(default=None, hash=False)

    def __post_init__(self) -> None:
        """Refuse what is no task, as :func:`native` says."""
        if not isinstance(self.name, str):
            msg = f"a native task's name is a str, such as 'tasks.sum', not {self.name!r}"
            raise TypeError(msg)
        if not self.name:
            msg = "a native task has a name, such as 'tasks.sum': see engine.tasks()"
            raise ValueError(msg)
        if operator.index(self.retries) < 0:
            msg = f"retries is how often a task is run again, at least 0, not {self.retries}"
            raise ValueError(msg)
        if self.on_progress is not None and not callable(self.on_progress):
            msg = f"on_progress is called with each Progress, and {self.on_progress!r} cannot be"
            raise TypeError(msg)

    @property
    def __theus_process__(self) -> ProcessContract:
        """What ``@process`` would record of it: it always runs in a worker."""
        return ProcessContract(parallel=True, retries=self.retries)


def native(
    name: str, *, retries: int = 0, on_progress: Callable[[Progress], object] | None = None
) -> NativeTask:
    """Return the task of this name, for `execute`, `submit`, `map` and `executor` of an engine.

    Its inputs are given by name. They are plain values (None, numbers, str, bytes, lists, dicts)
    and arrays and tables of the heavy zone, which travel by handle.

    Parameters
    ----------
    name : str
        Under which one of the engine's native workers has it; see :meth:`TheusEngine.tasks`.
    retries : int, default 0
        How often it is run again, from its start, when the worker that runs it dies, as for
        :func:`theus.process`.
    on_progress : callable, optional
        Called with a `Progress` each time the task reports how far it is, in the engine's thread
        for callbacks, one call after the other. So the last reports may come after the result. It
        may run tasks and wait for them by ``result()``; other callbacks wait meanwhile. An
        exception that it raises is logged.

    Returns
    -------
    NativeTask
        Immutable and hashable. Whether there is a task of that name shows when it is executed.

    Raises
    ------
    ValueError
        If `retries` is negative, or `name` empty.
    TypeError
        If `name` is no text, `retries` no int, or `on_progress` cannot be called.

    Examples
    --------
    >>> total = native("tasks.sum", retries=1)
    >>> total.name
    'tasks.sum'
    """
    return NativeTask(name, operator.index(retries), on_progress)


@dataclass(frozen=True, slots=True)
class TaskInfo:
    """A task that an engine's native workers have.

    Attributes
    ----------
    name : str
        What :func:`theus.native` takes.
    program : str
        The path of the executable that has it.
    language, library : str
        What that is written in, and what speaks the protocol for it.
    workers : int
        How many processes of it there are at most.
    """

    name: str
    program: str
    language: str
    library: str
    workers: int
