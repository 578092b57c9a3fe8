"""The results of ``engine.map``, as they are taken."""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import AsyncIterator, Callable, Iterable, Iterator, Sequence
from typing import Any, NamedTuple, Self, TypeVar

from theus.dispatch.futures import TaskFuture, not_an_end
from theus.serialize.batches import MAX_BYTES, MAX_ITEMS
from theus.serialize.message import Message

__all__ = ["MapResults"]

T = TypeVar("T")

_GATHERING_S = 1e-3


class _Flight(NamedTuple):
    future: TaskFuture[Any]
    items: Sequence[Message]


class MapResults(Iterator[T], AsyncIterator[T]):
    """The results of ``engine.map``, in order, for ``for`` and ``async for``.

    Items are taken from their iterable as results are taken from here, so that a bounded number is
    in flight. An exception ends the iteration and cancels what is in flight, as does :meth:`close`.

    Parameters
    ----------
    pack : callable
        Makes a message of an item.
    send : callable
        Sends messages as one task: of one item, with its result, or of several with `ItemResults`.
    size : callable
        How many items should go together now.
    items : iterable
        The items.
    ahead, chunks_ahead : int
        How many tasks are in flight at most, of one item and of several.
    progress : bool
        Whether to show a progress bar.
    """

    def __init__(
        self,
        pack: Callable[[object], Message],
        send: Callable[[Sequence[Message]], TaskFuture[Any]],
        size: Callable[[], int],
        items: Iterable[Any],
        *,
        ahead: int,
        chunks_ahead: int,
        progress: bool,
    ) -> None:
        self._flight: deque[_Flight] = deque()
        self._bar: Any = None
        self._pack = pack
        self._send = send
        self._size = size
        self._most = MAX_ITEMS
        self._items = iter(items)
        self._left_over: Message | None = None
        self._ahead = ahead
        self._chunks_ahead = chunks_ahead
        self._values: deque[Any] = deque()
        self._error: BaseException | None = None
        if progress:
            from tqdm.auto import tqdm  # noqa: PLC0415 - in a notebook, importing it may warn

            total = len(items) if hasattr(items, "__len__") else None  # pyright: ignore[reportArgumentType]
            self._bar = tqdm(total=total)

    def __iter__(self) -> Self:
        return self

    def __next__(self) -> T:
        """Return the next item's result, waiting for it."""
        if self._values and self._bar is None:
            return self._values.popleft()
        with self._watching():  # an interrupt that finds a future taken ends the iteration
            while not self._values:
                flight = self._next_flight()
                if flight is None:
                    raise StopIteration
                self._arrive(flight, flight.future.result())
            return self._values.popleft()

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> T:
        """Return the next item's result without blocking the event loop."""
        with self._watching():
            while not self._values:
                flight = self._next_flight()
                if flight is None:
                    raise StopAsyncIteration
                self._arrive(flight, await asyncio.wrap_future(flight.future))
            return self._values.popleft()

    def close(self) -> None:
        """Cancel what is in flight and take no further items."""
        self._items = iter(())
        self._left_over = None
        while self._flight:
            self._flight.pop().future.cancel()
        if self._bar is not None:
            self._bar.close()

    def __del__(self) -> None:
        """Stop tasks whose results nobody will take."""
        if "_values" in vars(self):  # it was made to its end
            self.close()

    def _arrive(self, flight: _Flight, result: Any) -> None:
        """Take what came of a task, and send again what it had not begun."""
        if len(flight.items) == 1:
            self._values.append(result)
            return
        self._values.extend(result.values)
        self._error = result.error
        rest = flight.items[len(result.values) :]
        if rest and self._error is None:
            self._most = 1  # results are large: each is better sent on its way as it comes
            again = [_Flight(self._send([item]), [item]) for item in rest]
            self._flight.extendleft(reversed(again))

    def _next_flight(self) -> _Flight | None:
        if self._error is not None:
            raise not_an_end(self._error)
        while True:
            count = min(self._most, self._size())
            if len(self._flight) >= (self._ahead if count == 1 else self._chunks_ahead):
                break
            items = self._take_items(count)
            if not items:
                break
            self._flight.append(_Flight(self._send(items), items))
        if not self._flight:
            self.close()
            return None
        return self._flight.popleft()

    def _take_items(self, count: int) -> list[Message]:
        """Take up to `count` items for a task, without waiting long for those after the first."""
        taken: list[Message] = []
        nbytes = 0
        until = None
        while len(taken) < count:
            message, self._left_over = self._left_over, None
            if message is None:
                try:
                    message = self._pack(next(self._items))
                except StopIteration:
                    break
            nbytes += len(message.data)
            if taken and (message.parts is not None or nbytes > MAX_BYTES):
                self._left_over = message
                break
            taken.append(message)
            if message.parts is not None:
                break
            now = time.monotonic()
            until = now + _GATHERING_S if until is None else until
            if now > until:
                break
        return taken

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
