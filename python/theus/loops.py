"""The event loops that move tasks forward."""

from __future__ import annotations

import asyncio
import contextlib
from typing import TYPE_CHECKING
from weakref import WeakSet

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["Loops"]


class Loops:
    """Event loops that make a step whenever a descriptor is readable.

    Parameters
    ----------
    descriptor : int
        The dispatcher's epoll.
    step : callable
        Takes how many seconds it may wait: none, in a loop.
    """

    def __init__(self, descriptor: int, step: Callable[[float], None]) -> None:
        self._descriptor = descriptor
        self._step = step
        self._loops: WeakSet[asyncio.AbstractEventLoop] = WeakSet()

    def attach(self, loop: asyncio.AbstractEventLoop) -> None:
        """Let `loop` make the steps from now on, with others."""
        if loop not in self._loops:
            loop.add_reader(self._descriptor, self._step, 0.0)
            self._loops.add(loop)

    def step_in(self, delay: float) -> None:
        """Have the loops make a step in so many seconds, as no frame may tell of it."""
        for loop in list(self._loops):
            with contextlib.suppress(RuntimeError):  # it is closed
                loop.call_soon_threadsafe(loop.call_later, delay, self._step, 0.0)

    def close(self) -> None:
        """Leave the loops as they were."""
        for loop in list(self._loops):
            self._detach(loop)

    def _detach(self, loop: asyncio.AbstractEventLoop) -> None:
        if loop.is_closed():
            return
        if loop.is_running() and loop is not _running_loop():
            loop.call_soon_threadsafe(loop.remove_reader, self._descriptor)
        else:
            loop.remove_reader(self._descriptor)


def _running_loop() -> asyncio.AbstractEventLoop | None:
    try:
        return asyncio.get_running_loop()
    except RuntimeError:
        return None
