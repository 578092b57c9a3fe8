"""Futures of tasks: the standard library's, made of a task that the core holds.

A future reads its state from the core's task, so most futures cost next to nothing until somebody
waits for several of them or adds a callback. Only then its condition is made, and the callback
thread of the engine tells of its end. Results are loaded by the thread that asks for them.
"""

from __future__ import annotations

import logging
import threading
from concurrent.futures import CancelledError, Future
from contextlib import suppress
from typing import TYPE_CHECKING, Any, TypeVar

from theus.serialize.message import Message
from theus.tasks.native import Progress

if TYPE_CHECKING:
    from collections.abc import Callable

    from theus._theus import Task
    from theus.dispatch.deliveries import Deliveries
    from theus.tasks.calls import Codec

__all__ = ["ItemFuture", "TaskFuture", "load", "not_an_end"]

T = TypeVar("T")

_log = logging.getLogger("theus")

# The standard library's names for the states that concurrent.futures.wait looks at.
_PENDING, _RUNNING, _FINISHED = "PENDING", "RUNNING", "FINISHED"
_CANCELLED = "CANCELLED_AND_NOTIFIED"


class _Observed:
    """The parts of a future that somebody observes: made when they are first looked at."""

    __slots__ = ("callbacks", "condition", "state", "waiters")

    def __init__(self) -> None:
        self.condition = threading.Condition()
        self.waiters: list[Any] = []
        self.callbacks: list[Callable[[Any], object]] = []
        self.state = _PENDING


class TaskFuture(Future[T]):
    """The future of ``engine.submit``.

    Unlike the standard library's futures, cancelling one stops its task even when it is running
    already. ``result()`` may be called anywhere, inside a running event loop too. Callbacks run in
    a thread of the engine's, one after the other.
    """

    def __init__(
        self,
        task: Task,
        codec: Codec,
        name: str,
        deliveries: Deliveries,
        *,
        stoppable: bool = True,
    ) -> None:
        # Not the base's: it would make eight objects that most futures never need.
        self._task = task
        self._codec = codec
        self._name = name
        self._deliveries = deliveries
        self._stoppable = stoppable

    # --- what callers use ---

    @property
    def progress(self) -> Progress | None:
        """How far the task said it was when it last said so; None if it never did."""
        said = self._task.progress
        return None if said is None else Progress(*said)

    def done(self) -> bool:
        """Return whether the future is cancelled or has its outcome."""
        return self._task.done

    def cancelled(self) -> bool:
        """Return whether the future was cancelled."""
        return self._task.cancelled

    def running(self) -> bool:
        """Return whether a worker has the task."""
        return self._task.running

    def result(self, timeout: float | None = None) -> T:
        """Return the task's result; wait up to `timeout` seconds for it.

        Raises
        ------
        TimeoutError
            If the task is not done by then. It goes on running.
        CancelledError
            If the future was cancelled.
        """
        value, error = self._outcome(timeout)
        if error is None:
            return value
        try:
            raise error
        finally:
            # The traceback refers to this frame.
            del error, self

    def exception(self, timeout: float | None = None) -> BaseException | None:
        """Return the task's exception, or None; wait up to `timeout` seconds for it."""
        return self._outcome(timeout)[1]

    def cancel(self) -> bool:
        """Cancel the task; one that is running is stopped. Return whether it is cancelled."""
        cancelled = self._task.cancel(not self._stoppable) or self._task.cancelled
        if cancelled and "_observed" in self.__dict__:
            self.deliver()
        return cancelled

    def _outcome(self, timeout: float | None) -> tuple[Any, BaseException | None]:
        loaded = self.__dict__.get("_loaded")
        if loaded is None:
            if not self._task.wait(timeout):
                raise TimeoutError
            if self._task.cancelled:
                raise CancelledError
            loaded = self._load()
        return loaded

    def _load(self) -> tuple[Any, BaseException | None]:
        """Load the outcome, without a lock: of two threads that do so the first one's counts."""
        outcome = self._task.outcome()
        if outcome is None:  # another thread has loaded and discarded it
            return self.__dict__["_loaded"]
        loaded = self._translate(*load(self._codec, self._name, outcome))
        loaded = self.__dict__.setdefault("_loaded", loaded)
        self._task.discard()
        return loaded

    def _translate(
        self, value: Any, error: BaseException | None
    ) -> tuple[Any, BaseException | None]:
        return value, error

    # --- what the standard library's wait, as_completed and add_done_callback look at ---

    def _observe(self) -> _Observed:
        observed = self.__dict__.get("_observed")
        if self._task.foreign:  # a condition of the parent's may be held by a thread of its own
            observed = _Observed()
            observed.state = _FINISHED
        elif observed is None:
            self._deliveries.watch(self._task, self)
            observed = self.__dict__.setdefault("_observed", _Observed())
            if self._task.done:
                self.deliver()
        return observed

    @property
    def _condition(self) -> threading.Condition:  # pyright: ignore[reportIncompatibleVariableOverride]
        return self._observe().condition

    @property
    def _waiters(self) -> list[Any]:  # pyright: ignore[reportIncompatibleVariableOverride]
        return self._observe().waiters

    @property
    def _done_callbacks(self) -> list[Callable[[Any], object]]:
        return self._observe().callbacks

    @property
    def _state(self) -> str:  # pyright: ignore[reportIncompatibleVariableOverride]
        observed = self.__dict__.get("_observed")
        if self._task.foreign:
            return _FINISHED
        if observed is not None and observed.state is not _PENDING:
            return observed.state
        if observed is None and self._task.done:
            return _CANCELLED if self._task.cancelled else _FINISHED
        return _RUNNING if self._task.running else _PENDING

    @property
    def _result(self) -> Any:  # pyright: ignore[reportIncompatibleVariableOverride]
        return self.__dict__.get("_loaded", (None, None))[0]

    @property
    def _exception(self) -> BaseException | None:  # pyright: ignore[reportIncompatibleVariableOverride]
        return self.__dict__.get("_loaded", (None, None))[1]

    def deliver(self) -> None:
        """Tell waiters and callbacks that the task has ended; once, whoever is first."""
        observed: _Observed = self.__dict__.setdefault("_observed", _Observed())
        with observed.condition:
            if observed.state is not _PENDING:
                return
            cancelled = self._task.cancelled
            observed.state = _CANCELLED if cancelled else _FINISHED
            for waiter in observed.waiters:
                # Which of the two lists it joins is all that differs between these.
                if cancelled:
                    waiter.add_cancelled(self)
                else:
                    (waiter.add_exception if self._failed() else waiter.add_result)(self)
            observed.condition.notify_all()
        for callback in observed.callbacks:
            try:
                callback(self)
            except BaseException:  # noqa: BLE001 - it ends neither this thread nor the other callbacks
                with suppress(Exception):
                    _log.exception("a callback of %s raised", self._name)

    def _failed(self) -> bool:
        outcome = self._task.outcome()
        if outcome is None:
            return self._exception is not None
        return len(outcome) != _RETURNED


class ItemFuture(TaskFuture[T]):
    """A future of ``engine.map``, whose results are handed out by an iterator."""

    def _translate(
        self, value: Any, error: BaseException | None
    ) -> tuple[Any, BaseException | None]:
        return value, None if error is None else not_an_end(error)


def not_an_end(error: BaseException) -> BaseException:
    """Return what can leave an iterator or a coroutine without ending it, as PEP 479 has it."""
    if not isinstance(error, StopIteration | StopAsyncIteration):
        return error
    stand_in = RuntimeError(f"the process raised {type(error).__name__}")
    stand_in.__cause__ = error
    return stand_in


_RETURNED, _RAISED = 4, 6


def load(codec: Codec, name: str, outcome: tuple[Any, ...]) -> tuple[Any, BaseException | None]:
    """Load the outcome of a task in this thread: runs code of the user's classes.

    Parameters
    ----------
    codec : Codec
        How the task's program encodes values.
    name : str
        The task, for messages.
    outcome : tuple
        As :meth:`Task.outcome` returns it.

    Returns
    -------
    value : object
    error : BaseException or None
        The exception to raise instead of returning the value.
    """
    try:
        if len(outcome) == _RETURNED:
            data, parts, outputs, _ = outcome
            return codec.load(name, data, parts, outputs), None
        if len(outcome) == _RAISED:
            data, parts, outputs, _, cause, traceback = outcome
            message = Message(data, parts, outputs=outputs)
            return None, codec.load_error(name, cause, message, traceback)
    except KeyboardInterrupt:  # it is the caller's: the outcome can be loaded again
        raise
    except BaseException as error:  # noqa: BLE001 - loading runs code of the user's classes
        return None, error
    return None, outcome[0] if outcome else CancelledError()
