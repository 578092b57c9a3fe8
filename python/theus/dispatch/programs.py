"""The programs that workers run: how they are started, and which task is whose."""

from __future__ import annotations

import difflib
import json
import os
import sys
import threading
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeGuard

from theus._theus import Setup
from theus.errors import NativeTaskNotFoundError, NativeWorkerError
from theus.tasks.native import NativeTask, TaskInfo

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping

    from theus import _theus
    from theus.tasks.calls import Codec

__all__ = ["MAX_WORKERS", "Native", "NativePrograms", "Program", "PythonProgram"]

MAX_WORKERS = 1000
"""How many an engine has, of all programs together: there are few more slots at the budget."""

_PACKAGE_PARENT = str(Path(__file__).resolve().parent.parent.parent)
_REPLACED = (
    "it was replaced since it was started first, and the workers of an engine run one program: "
    "make a new engine for the new one"
)

Launch = tuple[str, list[str], list[tuple[str, str]]]
"""The path, the arguments, and all variables of the environment."""


class Program:
    """A program as callers see it.

    Attributes
    ----------
    core : _theus.Program
        The core's.
    codec : Codec
        How its workers encode values.
    workers : int
        How many at most.
    """

    core: _theus.Program

    def __init__(self, codec: Codec, workers: int) -> None:
        self.codec = codec
        self.workers = workers

    def launch(self) -> Launch:
        """Return how its next worker is started."""
        raise NotImplementedError

    def setup(self) -> Setup | None:
        """Return the environment that its workers need before a task, if they take one over."""
        return None


class PythonProgram(Program):
    """The worker's loop of this package, in this very interpreter."""

    def __init__(self, codec: Codec, workers: int) -> None:
        super().__init__(codec, workers)
        self._path: list[str] | None = None
        self._setup: Setup | None = None

    def launch(self) -> Launch:
        """See :class:`Program`.

        Raises
        ------
        TypeError
            If this interpreter does not know its own path.
        """
        environment = dict(os.environ)
        # Only until the owner's sys.path arrives: the worker must find this very package first.
        known = [_PACKAGE_PARENT, *filter(None, [environment.get("PYTHONPATH")])]
        environment["PYTHONPATH"] = os.pathsep.join(known)
        # Without -P a file json.py in the current directory would be taken for the library's.
        arguments = ["-P", "-m", "theus._worker"]
        return os.fspath(sys.executable), arguments, list(environment.items())

    def setup(self) -> Setup | None:
        """See :class:`Program`."""
        path = sys.path
        if path != self._path:
            places: list[Any] = [item for item in path if isinstance(item, str | os.PathLike)]
            said = {
                "sys_path": [os.fspath(p) or str(Path.cwd()) for p in places],
                "environ": {"PYTHONPATH": os.environ.get("PYTHONPATH")},
            }
            self._setup = Setup(json.dumps(said).encode())
            self._path = list(path)
        return self._setup


class Native(Program):
    """An executable that runs tasks by name.

    Attributes
    ----------
    path : str
        Where it is.
    hello : tuple
        Language, library, capabilities and tasks, as its first worker said.
    """

    hello: tuple[str, str, list[str], list[str]]

    def __init__(
        self,
        codec: Codec,
        path: str,
        arguments: Iterable[str],
        environment: Mapping[str, str],
        workers: int,
    ) -> None:
        super().__init__(codec, workers)
        self.path = path
        self._arguments = [os.fspath(argument) for argument in arguments]
        self._environment = dict(environment)
        self._stamp = _stamp(path)

    def launch(self) -> Launch:
        """See :class:`Program`."""
        environment = {**os.environ, **self._environment}
        return self.path, self._arguments, list(environment.items())

    @property
    def tasks(self) -> tuple[str, ...]:
        """The names of its tasks."""
        return tuple(self.hello[3])

    def check_same(self, other: Native) -> None:
        """Refuse `other` of the same path if it would not say the same.

        Raises
        ------
        NativeWorkerError
            If that would be another program, or run in another way.
        """
        if self._stamp != other._stamp:
            raise NativeWorkerError(self.path, _REPLACED)
        mine = self._arguments, self._environment
        if mine != (other._arguments, other._environment):
            reason = "it runs already, with other arguments or variables: names of tasks are unique"
            raise NativeWorkerError(self.path, reason)


class NativePrograms:
    """The native programs of an engine, and the tasks that they have."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        # Replaced as a whole, as others look at it meanwhile.
        self._tasks: dict[str, Native] = {}

    def __bool__(self) -> bool:
        """Whether there are any."""
        return bool(self._tasks)

    def of(self, name: str) -> Native:
        """Return the program that has the task of this name.

        Raises
        ------
        NativeTaskNotFoundError
            If none has.
        """
        found = self._tasks.get(name)
        if found is None:
            raise NativeTaskNotFoundError(self._missing(name))
        return found

    def known(self, path: str) -> Native | None:
        """Return the program of this path, if it runs."""
        return next((native for native in self._tasks.values() if native.path == path), None)

    def add(self, native: Native) -> Native:
        """Let the tasks of a program be called; return it, or the one of its path that was quicker.

        Raises
        ------
        NativeWorkerError
            If it has a task that another one has.
        """
        with self._lock:
            known = self.known(native.path)
            if known is not None:
                return known
            for name in native.tasks:
                if name in self._tasks:
                    other = self._tasks[name].path
                    reason = f"it has a task {name!r}, which {other} has too: names are unique"
                    raise NativeWorkerError(native.path, reason)
            self._tasks = self._tasks | dict.fromkeys(native.tasks, native)
        return native

    def tasks(self) -> dict[str, TaskInfo]:
        """Return what the programs have, by name."""
        infos: dict[str, TaskInfo] = {}
        for name, native in sorted(self._tasks.items()):
            language, library, _, _ = native.hello
            infos[name] = TaskInfo(name, native.path, language, library, native.workers)
        return infos

    def _missing(self, name: str) -> str:
        known = sorted(self._tasks)
        if not known:
            return (
                f"no native worker has a task {name!r}: there is no native worker at all. "
                "Start one by engine.native_worker(path)"
            )
        near = difflib.get_close_matches(name, known, 1)
        meant = f" Did you mean {near[0]!r}?" if near else ""
        return f"no native worker has a task {name!r}; there are {', '.join(known)}.{meant}"


def refuse_function(fn: Callable[..., Any] | object) -> TypeError:
    """Return the error for what is neither a function nor a native task."""
    what = f"it takes a function, or what theus.native returns, not {fn!r}"
    if isinstance(fn, str):
        what = f"{what}: did you mean theus.native({fn!r})?"
    return TypeError(what)


def is_native(fn: object) -> TypeGuard[NativeTask]:
    """Return whether a call of `fn` goes to a native program: the one place that asks."""
    return isinstance(fn, NativeTask)


def _stamp(path: str) -> tuple[int, ...] | None:
    try:
        status = Path(path).stat()
    except OSError:
        return None
    return status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns
