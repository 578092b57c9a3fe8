"""A `concurrent.futures.Future` that costs little until somebody waits for it."""

from __future__ import annotations

import threading
from concurrent.futures import Future
from typing import Any, TypeVar

__all__ = ["LateFuture"]

T = TypeVar("T")

_PENDING, _FINISHED = "PENDING", "FINISHED"
_CANCELLED = frozenset({"CANCELLED", "CANCELLED_AND_NOTIFIED"})
_DONE = _CANCELLED | {_FINISHED}

_MADE_LATE: dict[str, Any] = {
    "_condition": threading.Condition,
    "_waiters": list[Any],
    "_done_callbacks": list[Any],
}
_AT_ONCE: dict[str, Any] = {"_state": _PENDING, "_result": None, "_exception": None}

IS_KNOWN = vars(Future()).keys() == {*_MADE_LATE, *_AT_ONCE}
"""Whether the standard library's futures are made of what is known here; else ours are made as they
are, at their cost."""


class LateFuture(Future[T]):
    """A future whose condition, waiters and callbacks are made when they are first looked at.

    Most futures of many are set before anybody waits for them. Making all of it takes 3 us of the
    4 us that such a future takes in all, and leaves the garbage collector eight objects to look at.
    """

    if IS_KNOWN:
        _state = _PENDING
        _result: Any = None
        _exception: BaseException | None = None

        def __init__(self) -> None:
            """Make nothing: the class has what a pending future has."""

        def __getattr__(self, name: str) -> Any:
            make = _MADE_LATE.get(name)
            if make is None:
                msg = f"{type(self).__name__!r} object has no attribute {name!r}"
                raise AttributeError(msg)
            return vars(self).setdefault(name, make())  # one step: others have the same

    # Reading one attribute needs no lock.

    def cancelled(self) -> bool:
        """Return whether the future was cancelled."""
        return self._state in _CANCELLED

    def done(self) -> bool:
        """Return whether the future is cancelled or has its outcome."""
        return self._state in _DONE

    def result(self, timeout: float | None = None) -> T:
        """Return the result, or raise the exception; see `concurrent.futures.Future.result`."""
        if self._state == _FINISHED and self._exception is None:
            return self._result
        return super().result(timeout)

    def settle(self, result: T) -> bool:
        """Set the result of a pending future that nobody looked at yet; False if that is not so.

        Whoever makes the condition afterwards finds the future finished. Whoever made it just
        before has it here, and is told.
        """
        own = vars(self)
        if not IS_KNOWN or "_condition" in own or "_state" in own:
            return False
        self._result = result
        if own.setdefault("_state", _FINISHED) != _FINISHED:
            return True  # cancelled, or set, in this moment: that stays
        if "_condition" in own:
            with self._condition:
                if self._state == _FINISHED:
                    for waiter in self._waiters:
                        waiter.add_result(self)
                    self._condition.notify_all()
            self._invoke_callbacks()
        return True
