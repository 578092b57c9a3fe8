"""The callback thread of an engine: runs what callers asked to be called with.

Callbacks of futures, progress callbacks and handlers of the logger ``theus.worker`` are code of the
user. They run here, in the order of the core's events, with no lock held and on nobody else's
stack. The thread starts with the first task and refers to nothing that keeps the engine.
"""

from __future__ import annotations

import _thread
import itertools
import logging
from contextlib import suppress
from typing import TYPE_CHECKING, Any, Protocol

from theus.tasks.native import Progress

if TYPE_CHECKING:
    from collections.abc import Callable

    from theus._theus import Dispatcher, Function, StaleTask, Task

__all__ = ["Deliveries"]

_workers_log = logging.getLogger("theus.worker")
_log = logging.getLogger("theus")


class Delivered(Protocol):
    """A future, as far as the callback thread knows it."""

    def deliver(self) -> None:
        """Tell waiters and callbacks that the task has ended."""
        ...


class Deliveries:
    """Passes the core's events on.

    Parameters
    ----------
    core : Dispatcher
        Where they come from.
    by_value : callable
        Returns a function in the form in which a worker need not import it.

    Attributes
    ----------
    when_idle : callable or None
        Called once when every task has ended, if the core was asked to tell.
    """

    def __init__(self, core: Dispatcher, by_value: Callable[[Any], Function]) -> None:
        self._core = core
        self._by_value = by_value
        self._numbers = itertools.count(1)
        self._watched: dict[int, Delivered] = {}
        self._progress: dict[int, tuple[str, Callable[[Progress], object]]] = {}
        self._runs = False
        self.when_idle: Callable[[], None] | None = None

    def start(self) -> None:
        """Start the thread, unless it runs.

        Raises
        ------
        RuntimeError
            If this process may start no thread.
        """
        if not self._runs:
            # Not by way of `threading`, whose start() waits in a way that an exception out of a
            # signal handler breaks. Two may run if one comes here: each event goes to one of them.
            _thread.start_new_thread(self._run, ())
            self._runs = True

    def watch(self, task: Task, future: Delivered) -> None:
        """Have ``future.deliver()`` called when its task has ended."""
        number = next(self._numbers)
        self._watched[number] = future
        task.tell_events(number)

    def new_progress(self, name: str, callback: Callable[[Progress], object]) -> int:
        """Return the number under which a task's progress goes to `callback`."""
        number = next(self._numbers)
        self._progress[number] = name, callback
        return number

    def end_progress(self, number: int, task: Task) -> None:
        """Let go of the callback of that number when the task has ended."""
        task.tell_events(number)

    def _run(self) -> None:
        while (event := self._core.next_event()) is not None:
            try:
                self._deliver(*event)
            except BaseException:  # noqa: BLE001 - code of the user, or a mistake: the others go on
                with suppress(Exception):
                    _log.exception("passing on an event of the kind %r failed", event[0])
            del event

    def _deliver(self, kind: str, *what: Any) -> None:
        if kind == "done":
            self._progress.pop(what[0], None)
            future = self._watched.pop(what[0], None)
            if future is not None:
                future.deliver()
        elif kind == "progress":
            self._report(*what)
        elif kind == "log":
            _tell(*what)
        elif kind == "stale":
            self._send_by_value(what[0])
        elif self.when_idle is not None:
            self.when_idle()

    def _report(self, number: int, done: int, total: int | None, message: str) -> None:
        name, callback = self._progress.get(number, ("", None))
        if callback is None:
            return
        try:
            callback(Progress(done, total, message))
        except BaseException:  # noqa: BLE001 - it is the user's code
            with suppress(Exception):  # a handler of the log is that too
                _log.exception("on_progress raised for what %s told", name)

    def _send_by_value(self, task: StaleTask) -> None:
        try:
            task.resend(self._by_value(task.keepalive))
        except Exception as error:  # noqa: BLE001 - it is the task's
            task.fail(error)


def _tell(pid: int, task: str | None, level: int, text: str) -> None:
    try:
        _workers_log.log(level, "%s", text, extra={"task": task, "pid": pid})
    except BaseException:  # noqa: BLE001 - handlers are the user's code
        with suppress(Exception):
            _log.exception("a handler of the logger theus.worker raised for what %s told", task)
