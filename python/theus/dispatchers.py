"""The dispatchers of an engine: one for Python's workers, and one for each native program."""

from __future__ import annotations

import difflib
import os
import threading
from contextlib import ExitStack
from typing import TYPE_CHECKING, Any, NamedTuple

from theus.dispatcher import Dispatcher
from theus.errors import NativeTaskNotFoundError, NativeWorkerError, SessionClosedError
from theus.native_tasks import NativeTask, TaskInfo
from theus.program import NativeProgram, PythonProgram
from theus.seats import Seats

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping

    from theus._theus import Channel, Segment, Session
    from theus.functions import References
    from theus.pool import WorkerLimits
    from theus.program import Program
    from theus.state import State

__all__ = ["HELLO_S", "MAX_WORKERS", "Dispatchers"]

HELLO_S = 10.0
"""How long the first worker of a native program has to say hello."""

MAX_WORKERS = 1000
"""How many an engine has, of all programs together: there are few more seats at the budget."""


class _Native(NamedTuple):
    program: NativeProgram
    dispatcher: Dispatcher
    most: int


class Dispatchers:
    """Knows which dispatcher has the workers for a function, and does to all what is for all.

    Parameters
    ----------
    session : Session
        Whose budget all workers share.
    count : int
        How many Python workers at most.
    cores : int
        How many the workers of a program share among them.
    references, adopt, worker_limits
        As a `Dispatcher` takes them.

    Attributes
    ----------
    python : Dispatcher
        The one for Python functions.
    """

    def __init__(
        self,
        session: Session,
        count: int,
        cores: int,
        references: References,
        adopt: Callable[[Channel, int], Segment],
        *,
        worker_limits: WorkerLimits,
    ) -> None:
        self._session = session
        self._cores = cores
        self._references = references
        self._adopt = adopt
        self._worker_limits = worker_limits
        self._seats = Seats(session)
        self._closed = False
        self._lock = threading.Lock()
        self._count = count
        self._tasks: dict[str, _Native] = {}
        self.python = self._make(PythonProgram(), count)
        # Replaced as a whole: who looks at it may be the garbage collector, at any moment.
        self._all: tuple[Dispatcher, ...] = (self.python,)
        self._starting: tuple[_Native, ...] = ()

    def _make(self, program: Program, count: int) -> Dispatcher:
        return Dispatcher(
            self._session,
            count,
            max(1, self._cores // count),
            self._references,
            self._adopt,
            program=program,
            seats=self._seats,
            worker_limits=self._worker_limits,
        )

    def of(self, fn: Callable[..., Any] | NativeTask) -> Dispatcher:
        """Return the dispatcher whose workers run `fn`.

        Raises
        ------
        NativeTaskNotFoundError
            If it is a native task that nobody has.
        TypeError
            If it is neither that nor a function.
        """
        if not isinstance(fn, NativeTask):
            if not callable(fn):
                raise TypeError(_no_function(fn))
            return self.python
        found = self._tasks.get(fn.name)
        if found is None:
            raise NativeTaskNotFoundError(self._missing(fn.name))
        return found.dispatcher

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

    # --- native programs ---

    def start(
        self, path: str, count: int, arguments: Iterable[str], environment: Mapping[str, str]
    ) -> tuple[str, ...]:
        """Start a worker of a native program, and return the tasks that it has.

        One that was started before is not started again.

        Raises
        ------
        NativeWorkerError
            If it cannot be started, is no worker, or has a task that another one has.
        ValueError
            If there would be more workers than an engine may have.
        """
        program = NativeProgram(os.path.abspath(path), arguments, environment)  # noqa: PTH100 - no link is to be followed
        known = self._known(program.path)
        if known is not None:
            return known.same_as(program).tasks
        native = _Native(program, self._make(program, count), count)
        try:
            self._begin(native)
            self._start_first(program, native.dispatcher)
            registered = self._register(native)
        except BaseException:
            self._give_up(native)
            raise
        if registered is not program:  # another thread started it too, and was quicker
            self._give_up(native)
        return registered.same_as(program).tasks

    def _known(self, path: str) -> NativeProgram | None:
        programs = (native.program for native in self._tasks.values())
        return next((program for program in programs if program.path == path), None)

    def _begin(self, native: _Native) -> None:
        with self._lock:
            self._check_open()
            others = sum(it.most for it in self._starting)
            if self._count + others + native.most > MAX_WORKERS:
                msg = (
                    f"an engine has up to {MAX_WORKERS} workers of all programs together: "
                    f"there are {self._count + others}, and {native.most} more are asked for"
                )
                raise ValueError(msg)
            self._starting = (*self._starting, native)

    def _check_open(self) -> None:
        if self._closed:
            msg = "the engine was closed while the native worker started"
            raise SessionClosedError(msg)

    def _forget_start(self, native: _Native) -> None:
        self._starting = tuple(it for it in self._starting if it is not native)

    def _give_up(self, native: _Native) -> None:
        with self._lock:
            self._forget_start(native)
        native.dispatcher.close()

    @staticmethod
    def _start_first(program: NativeProgram, dispatcher: Dispatcher) -> None:
        failure = dispatcher.start_first(HELLO_S)
        if failure is None:
            return
        if failure.broken is not None:
            raise program.no_worker(failure.broken, failure.stderr)
        late_s = HELLO_S if failure.late else None
        raise program.first_start_error(failure.status, failure.stderr, late_s)

    def _register(self, native: _Native) -> NativeProgram:
        """Let the tasks of a program be called; return it, or the same if it was known by now."""
        hello = native.program.hello
        assert hello is not None  # noqa: S101 - its first worker is ready
        with self._lock:
            self._check_open()
            known = self._known(native.program.path)
            if known is not None:
                return known
            for name in hello.tasks:
                if name in self._tasks:
                    other = self._tasks[name].program.path
                    reason = f"it has a task {name!r}, which {other} has too: names are unique"
                    raise NativeWorkerError(native.program.path, reason)
            # Replaced as a whole, as others look at it meanwhile.
            self._tasks = self._tasks | dict.fromkeys(hello.tasks, native)
            self._all = (*self._all, native.dispatcher)
            self._count += native.most
            self._forget_start(native)
        return native.program

    def tasks(self) -> dict[str, TaskInfo]:
        """Return what the native programs have, by name."""
        infos: dict[str, TaskInfo] = {}
        for name, native in sorted(self._tasks.items()):
            hello = native.program.hello
            assert hello is not None  # noqa: S101 - as it is registered
            path = native.program.path
            infos[name] = TaskInfo(name, path, hello.language, hello.library, native.most)
        return infos

    # --- all of them ---

    def _with_starting(self) -> tuple[Dispatcher, ...]:
        return (*self._all, *(native.dispatcher for native in self._starting))

    @property
    def worker_pids(self) -> list[int]:
        """The process ids of the workers that run now."""
        return sorted(pid for dispatcher in self._all for pid in dispatcher.worker_pids)

    def release(self, number: int) -> None:
        """Note that segment `number` is gone; called by the garbage collector at any moment."""
        for dispatcher in self._all:
            dispatcher.release(number)

    def announce(self, state: State) -> None:
        """Let a few workers that have nothing to do see `state` before a task needs it."""
        python, *natives = self._all
        python.announce(state)
        # Whoever publishes may hold a lock, so the domain is not made plain for it.
        if natives and state.is_small() and state.is_plain:
            for dispatcher in natives:
                dispatcher.announce(state)

    def finish(self) -> None:
        """Let everything that was submitted end, also what is submitted meanwhile."""
        while busy := [dispatcher for dispatcher in self._all if dispatcher.is_busy()]:
            for dispatcher in busy:
                dispatcher.finish()

    def close(self) -> None:
        """End the workers; tasks that are not done fail."""
        with self._lock:
            self._closed = True
            them = self._with_starting()
        # Callbacks of the user may raise, and the others are closed too.
        with ExitStack() as closing:
            for dispatcher in them:
                closing.callback(dispatcher.close)

    def abandon(self) -> None:
        """Forget the workers in a forked child: they are the parent's."""
        self._lock = threading.Lock()
        self._closed = True
        for dispatcher in self._with_starting():
            dispatcher.abandon()


def _no_function(given: object) -> str:
    what = f"it takes a function, or what theus.native returns, not {given!r}"
    return f"{what}: did you mean theus.native({given!r})?" if isinstance(given, str) else what
