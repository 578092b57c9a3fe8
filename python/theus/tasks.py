"""A task on its way through the dispatcher, and the futures that stand for its outcome."""

from __future__ import annotations

import asyncio
import contextlib
import threading
import time
from concurrent.futures import CancelledError, Future, InvalidStateError
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

from theus.futures import LateFuture

if TYPE_CHECKING:
    from collections.abc import Callable

    from theus.errors import WorkerDiedError
    from theus.functions import Reference
    from theus.native_tasks import Progress
    from theus.state import State
    from theus.wire import Message

__all__ = [
    "CALL_CONTEXT",
    "CALL_ITEM",
    "CALL_ITEMS",
    "CALL_NATIVE",
    "CALL_NATIVE_ITEMS",
    "CALL_PLAIN",
    "ItemFuture",
    "LoopOutcome",
    "Outcome",
    "Task",
    "TaskFuture",
    "not_an_end",
]

T = TypeVar("T")

CALL_CONTEXT, CALL_ITEM, CALL_PLAIN, CALL_ITEMS, CALL_NATIVE, CALL_NATIVE_ITEMS = range(6)
"""How a function is called, as in TASK frames."""


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

    def advance(self, progress: Progress) -> None:
        """Note how far the task is."""
        ...


class Task:
    """One call on its way: what a worker needs to run it, and who waits for it.

    It holds the state and the entries it was sent with, so that nothing a worker may open is
    removed before the outcome has been loaded. Its `weight` is how many calls it stands for;
    `on_progress` is told how far it is.
    """

    __slots__ = (
        "call",
        "deadline",
        "deaths",
        "done",
        "estimate_s",
        "inputs",
        "number",
        "on_progress",
        "outcome",
        "reference",
        "spared",
        "state",
        "timeout",
        "weight",
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
        weight: int = 1,
        on_progress: Callable[[Progress], object] | None = None,
    ) -> None:
        self.number = 0
        self.reference = reference
        self.state = state
        self.call = call
        self.inputs = inputs
        self.outcome = outcome
        self.timeout = timeout
        self.weight = weight
        self.on_progress = on_progress
        self.deadline = None if timeout is None else time.monotonic() + timeout
        self.estimate_s = 0.0
        self.done = False
        self.spared = 0  # how many workers ended with this first in line, and not begun
        self.deaths: tuple[WorkerDiedError, ...] = ()

    @property
    def is_native(self) -> bool:
        """Whether it goes by name, with plain values."""
        return self.call in (CALL_NATIVE, CALL_NATIVE_ITEMS)


class Driver(Protocol):
    """What a future needs of the dispatcher."""

    def drive(self, future: Future[Any], timeout: float | None) -> None:
        """Move tasks forward from this thread until `future` is done or `timeout` has passed."""
        ...

    def cancel(self, task: Task) -> None:
        """Stop `task` wherever it is."""
        ...


class TaskFuture(LateFuture[T]):
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
        self._progress: Progress | None = None

    @property
    def progress(self) -> Progress | None:
        """How far the task said it was when it last said so; None if it never did."""
        return self._progress

    def result(self, timeout: float | None = None) -> T:
        """Return the task's result; wait up to `timeout` seconds for it.

        Raises
        ------
        TimeoutError
            If the task is not done by then. It goes on running.
        CancelledError
            If the future was cancelled.
        """
        if not self.done():
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

    def resolve(self, value: Any) -> None:
        """See :class:`Outcome`."""
        # The two refer to each other, and large results must not wait for the garbage collector.
        self.task = None
        if not self.settle(value):
            self._settle(self.set_result, value)

    def fail(self, error: BaseException) -> None:
        """See :class:`Outcome`."""
        self.task = None
        if isinstance(error, CancelledError) and super().cancel():
            self._notify()
        else:
            self._settle(self.set_exception, error)

    def advance(self, progress: Progress) -> None:
        """See :class:`Outcome`."""
        self._progress = progress

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
        super().fail(not_an_end(error))


def not_an_end(error: BaseException) -> BaseException:
    """Return what can leave an iterator or a coroutine without ending it, as PEP 479 has it."""
    if not isinstance(error, StopIteration | StopAsyncIteration):
        return error
    stand_in = RuntimeError(f"the process raised {type(error).__name__}")
    stand_in.__cause__ = error
    return stand_in


class LoopOutcome:
    """The outcome of ``engine.execute``: kept until it is asked for, or an asyncio future's."""

    __slots__ = ("_loop", "_settled", "_thread")

    def __init__(self) -> None:
        # What is there first, the outcome or the future that waits for it; setdefault is one step.
        self._settled: dict[str, Any] = {}
        self._loop: asyncio.AbstractEventLoop | None = None
        self._thread = 0

    @property
    def settled(self) -> bool:
        """Whether the outcome is there, before it was waited for."""
        return bool(self._settled)

    def take(self) -> Any:
        """Return the outcome that is there, or raise it."""
        value, error = self._settled["outcome"]
        if error is None:
            return value
        raise asyncio.CancelledError if isinstance(error, CancelledError) else not_an_end(error)

    def future(self, loop: asyncio.AbstractEventLoop) -> asyncio.Future[Any]:
        """Return a future of the outcome, of the loop that runs; to be called once."""
        self._thread = threading.get_ident()
        self._loop = loop
        future: asyncio.Future[Any] = loop.create_future()
        first = self._settled.setdefault("outcome", future)
        if first is not future:
            _settle(future, *first)
        return future

    def start(self) -> bool:
        """See :class:`Outcome`."""
        future = self._settled.get("outcome")
        return future is None or not future.done()

    def resolve(self, value: object) -> None:
        """See :class:`Outcome`."""
        self._deliver(value, None)

    def fail(self, error: BaseException) -> None:
        """See :class:`Outcome`."""
        self._deliver(None, error)

    def advance(self, progress: Progress) -> None:
        """See :class:`Outcome`: who awaits a coroutine cannot look at it."""

    def _deliver(self, value: object, error: BaseException | None) -> None:
        outcome = value, error
        future = self._settled.setdefault("outcome", outcome)
        if future is outcome:
            return
        if threading.get_ident() == self._thread:
            _settle(future, value, error)
        elif self._loop is not None and not self._loop.is_closed():
            self._loop.call_soon_threadsafe(_settle, future, value, error)


def _settle(future: asyncio.Future[Any], value: object, error: BaseException | None) -> None:
    if future.done():
        return
    if error is None:
        future.set_result(value)
    elif isinstance(error, CancelledError):
        future.cancel()
    else:
        future.set_exception(not_an_end(error))
