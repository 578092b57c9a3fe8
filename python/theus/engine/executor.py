"""The engine's workers behind the standard library's executor interface."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import CancelledError, Executor, Future
from contextlib import suppress
from typing import TYPE_CHECKING, Any
from weakref import WeakSet

if TYPE_CHECKING:
    from theus.tasks.native import NativeTask

__all__ = ["EngineExecutor"]


class EngineExecutor(Executor):
    """The engine's workers behind the standard library's interface."""

    def __init__(self, send: Callable[[Any, tuple[Any, ...], dict[str, Any]], Future[Any]]) -> None:
        self._send = send
        self._futures: WeakSet[Future[Any]] = WeakSet()
        self._shut = False

    def submit(
        self, fn: Callable[..., Any] | NativeTask, /, *args: Any, **kwargs: Any
    ) -> Future[Any]:
        """Send a call to the engine's workers; see `concurrent.futures.Executor.submit`."""
        if self._shut:
            msg = "cannot schedule new futures after shutdown"
            raise RuntimeError(msg)
        future = self._send(fn, args, kwargs)
        self._futures.add(future)
        return future

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:  # noqa: FBT001, FBT002 - the standard library's signature
        """Refuse further calls, and wait for those sent; the engine itself stays open."""
        self._shut = True
        futures = list(self._futures)
        if cancel_futures:  # all before one is waited for: others would start meanwhile
            for future in futures:
                future.cancel()
        if wait:
            for future in futures:
                with suppress(CancelledError):
                    future.exception()
