"""Many results at once: the stream of ``engine.map``, and the standard library's executor."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncIterator, Callable, Iterable, Iterator
from concurrent.futures import Executor, Future
from typing import Any, Self, TypeVar
from weakref import WeakSet

from theus.tasks import TaskFuture

__all__ = ["EngineExecutor", "MapResults"]

T = TypeVar("T")


class MapResults(Iterator[T], AsyncIterator[T]):
    """The results of ``engine.map``, in order, for ``for`` and ``async for``.

    Items are taken from their iterable as results are taken from here, so that a bounded number is
    in flight. An exception ends the iteration and cancels what is in flight, as does :meth:`close`.
    """

    def __init__(
        self,
        send: Callable[[object], TaskFuture[T]],
        items: Iterable[Any],
        *,
        ahead: int,
        progress: bool,
    ) -> None:
        self._flight: deque[TaskFuture[T]] = deque()
        self._bar: Any = None
        self._send = send
        self._items = iter(items)
        self._ahead = ahead
        if progress:
            from tqdm.auto import tqdm  # noqa: PLC0415 - in a notebook, importing it may warn

            total = len(items) if hasattr(items, "__len__") else None  # pyright: ignore[reportArgumentType]
            self._bar = tqdm(total=total)

    def __iter__(self) -> Self:
        return self

    def __next__(self) -> T:
        """Return the next item's result, waiting for it."""
        with self._watching():  # an interrupt that finds a future taken ends the iteration
            future = self._next_future()
            if future is None:
                raise StopIteration
            return future.result()

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> T:
        """Return the next item's result without blocking the event loop."""
        with self._watching():
            future = self._next_future()
            if future is None:
                raise StopAsyncIteration
            return await asyncio.wrap_future(future)

    def close(self) -> None:
        """Cancel what is in flight and take no further items."""
        self._items = iter(())
        while self._flight:
            self._flight.pop().cancel()
        if self._bar is not None:
            self._bar.close()

    def __del__(self) -> None:
        """Stop tasks whose results nobody will take."""
        self.close()

    def _next_future(self) -> TaskFuture[T] | None:
        while len(self._flight) < self._ahead:
            try:
                self._flight.append(self._send(next(self._items)))
            except StopIteration:
                break
        if not self._flight:
            self.close()
            return None
        return self._flight.popleft()

    def _watching(self) -> _Watch:
        return _Watch(self)

    def advance(self, *, failed: bool) -> None:
        """Count a result that was taken."""
        if failed:
            self.close()
        elif self._bar is not None:
            self._bar.update()


class _Watch:
    __slots__ = ("_results",)

    def __init__(self, results: MapResults[Any]) -> None:
        self._results = results

    def __enter__(self) -> None:
        return None

    def __exit__(self, kind: object, error: object, traceback: object) -> None:
        self._results.advance(failed=kind is not None)


class EngineExecutor(Executor):
    """The engine's workers behind the standard library's interface."""

    def __init__(self, send: Callable[[Callable[..., Any], object], Future[Any]]) -> None:
        self._send = send
        self._futures: WeakSet[Future[Any]] = WeakSet()
        self._shut = False

    def submit(self, fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Future[Any]:
        """Send a call to the engine's workers; see `concurrent.futures.Executor.submit`."""
        if self._shut:
            msg = "cannot schedule new futures after shutdown"
            raise RuntimeError(msg)
        future = self._send(fn, (args, kwargs))
        self._futures.add(future)
        return future

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:  # noqa: FBT001, FBT002 - the standard library's signature
        """Refuse further calls, and wait for those sent; the engine itself stays open."""
        self._shut = True
        for future in list(self._futures):
            if cancel_futures:
                future.cancel()
            if wait and not future.cancelled():
                future.exception()
