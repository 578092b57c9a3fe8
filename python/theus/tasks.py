"""A task on its way through the dispatcher, and the futures that stand for its outcome."""

from __future__ import annotations

import asyncio
import contextlib
import threading
import time
from concurrent.futures import CancelledError, Future, InvalidStateError
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

if TYPE_CHECKING:
    from theus.errors import WorkerDiedError
    from theus.functions import Reference
    from theus.state import State
    from theus.wire import Message

__all__ = ["ItemFuture", "LoopOutcome", "Outcome", "Task", "TaskFuture"]

T = TypeVar("T")


class Outcome(Protocol):
    """Where a task's result goes."""

    def start(self) -> bool:
        """Say that a worker gets the task; False if nobody wants it any more."""
        ...

    def resolve(self, value: object) -> None:
        """Deliver the result."""
        ...

    def fail(self, error: BaseException) -> None:
        """Deliver the exception."""
        ...


class Task:
    """One call on its way: what a worker needs to run it, and who waits for it.

    It holds the state and the entries it was sent with, so that nothing a worker may open is
    removed before the outcome has been loaded.
    """

    __slots__ = (
        "call",
        "deadline",
        "deaths",
        "done",
        "inputs",
        "number",
        "outcome",
        "reference",
        "spared",
        "state",
        "timeout",
    )

    def __init__(
        self,
        reference: Reference,
        state: State,
        *,
        call: int,
        inputs: Message | None,
        outcome: Outcome,
        timeout: float | None = None,
    ) -> None:
        self.number = 0
        self.reference = reference
        self.state = state
        self.call = call
        self.inputs = inputs
        self.outcome = outcome
        self.timeout = timeout
        self.deadline = None if timeout is None else time.monotonic() + timeout
        self.done = False
        self.spared = 0  # how many workers ended with this first in line, and not begun
        self.deaths: tuple[WorkerDiedError, ...] = ()


class Driver(Protocol):
    """What a future needs of the dispatcher."""

    def drive(self, future: Future[Any], timeout: float | None) -> None:
        """Move tasks forward from this thread until `future` is done or `timeout` has passed."""
        ...

    def cancel(self, task: Task) -> None:
        """Stop `task` wherever it is."""
        ...


class TaskFuture(Future[T]):
    """The future of ``engine.submit``: waiting for it moves the tasks forward.

    Unlike the standard library's futures, cancelling one stops its task even when it is running
    already. ``result()`` may be called anywhere, inside a running event loop too.
    """

    def __init__(self, driver: Driver, *, stoppable: bool = True) -> None:
        super().__init__()
        self._driver = driver
        self._stoppable = stoppable
        self.task: Task | None = None
        self._sent = False

    def result(self, timeout: float | None = None) -> T:
        """Return the task's result; wait up to `timeout` seconds for it.

        Raises
        ------
        TimeoutError
            If the task is not done by then. It goes on running.
        CancelledError
            If the future was cancelled.
        """
        self._driver.drive(self, timeout)
        return super().result(0)

    def exception(self, timeout: float | None = None) -> BaseException | None:
        """Return the task's exception, or None; wait up to `timeout` seconds for it."""
        self._driver.drive(self, timeout)
        return super().exception(0)

    def cancel(self) -> bool:
        """Cancel the task; one that is running is stopped. Return whether it is cancelled."""
        cancelled = super().cancel()
        if cancelled:
            self._notify()
            task, self.task = self.task, None
            if task is not None:
                self._driver.cancel(task)
        return cancelled

    def running(self) -> bool:
        """Say whether a worker has the task."""
        return self._sent and not self.done()

    # --- the dispatcher's side ---

    def start(self) -> bool:
        """See :class:`Outcome`."""
        self._sent = True
        if self._stoppable or self.cancelled() or super().running():
            return not self.cancelled()
        with contextlib.suppress(InvalidStateError):  # cancelled since the look above
            return self.set_running_or_notify_cancel()
        return False

    def resolve(self, value: object) -> None:
        """See :class:`Outcome`."""
        # The two refer to each other, and large results must not wait for the garbage collector.
        self.task = None
        self._settle(self.set_result, value)

    def fail(self, error: BaseException) -> None:
        """See :class:`Outcome`."""
        self.task = None
        if isinstance(error, CancelledError) and super().cancel():
            self._notify()
        else:
            self._settle(self.set_exception, error)

    def _notify(self) -> None:
        """Tell those who wait for several futures, once, that this one is cancelled."""
        with contextlib.suppress(InvalidStateError, RuntimeError):
            self.set_running_or_notify_cancel()

    def _settle(self, deliver: Any, value: object) -> None:
        # Cancelling from another thread may win between the look and the delivery.
        try:
            deliver(value)
        except Exception:
            if not self.cancelled():
                raise


class ItemFuture(TaskFuture[T]):
    """A future of ``engine.map``, whose results are handed out by an iterator."""

    def fail(self, error: BaseException) -> None:
        """See :class:`Outcome`."""
        super().fail(_not_an_end(error))


def _not_an_end(error: BaseException) -> BaseException:
    """Return what can leave an iterator or a coroutine without ending it, as PEP 479 has it."""
    if not isinstance(error, StopIteration | StopAsyncIteration):
        return error
    stand_in = RuntimeError(f"the process raised {type(error).__name__}")
    stand_in.__cause__ = error
    return stand_in


class LoopOutcome:
    """The outcome of ``engine.execute``: an asyncio future, completed in its own loop."""

    __slots__ = ("_loop", "_thread", "future")

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._thread = threading.get_ident()
        self.future: asyncio.Future[Any] = loop.create_future()

    def start(self) -> bool:
        """See :class:`Outcome`."""
        return not self.future.done()

    def resolve(self, value: object) -> None:
        """See :class:`Outcome`."""
        self._call(self._set_result, value)

    def fail(self, error: BaseException) -> None:
        """See :class:`Outcome`."""
        self._call(self._set_exception, error)

    def _call(self, deliver: Any, value: object) -> None:
        if threading.get_ident() == self._thread:
            deliver(value)
        elif not self._loop.is_closed():
            self._loop.call_soon_threadsafe(deliver, value)

    def _set_result(self, value: object) -> None:
        if not self.future.done():
            self.future.set_result(value)

    def _set_exception(self, error: BaseException) -> None:
        if not self.future.done():
            if isinstance(error, CancelledError):
                self.future.cancel()
            else:
                self.future.set_exception(_not_an_end(error))
