"""Event loops that wait for tasks: one queue of ended tasks for each loop, whatever the engine."""

from __future__ import annotations

import itertools
from typing import TYPE_CHECKING, Any
from weakref import WeakKeyDictionary

from theus._theus import LoopQueue

if TYPE_CHECKING:
    import asyncio

    from theus._theus import Task

__all__ = ["until_done"]


class _LoopTasks:
    """The tasks that coroutines of one loop wait for."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._queue = LoopQueue()
        self._numbers = itertools.count(1)
        self._waiting: dict[int, asyncio.Future[None]] = {}
        # For as long as the loop lives: its selector must never meet a descriptor that is closed.
        loop.add_reader(self._queue.fileno(), self._wake)

    def wait_for(self, loop: asyncio.AbstractEventLoop, task: Task) -> asyncio.Future[None]:
        """Return a future of the loop's that is done when the task is."""
        number = next(self._numbers)
        future = self._waiting[number] = loop.create_future()
        task.tell_loop(self._queue, number)
        return future

    def _wake(self) -> None:
        for number in self._queue.take():
            future = self._waiting.pop(number)
            if not future.done():
                future.set_result(None)


_loops: WeakKeyDictionary[Any, _LoopTasks] = WeakKeyDictionary()


async def until_done(loop: asyncio.AbstractEventLoop, task: Task) -> None:
    """Wait until the task has ended; if that is cancelled, so is the task."""
    tasks = _loops.get(loop)
    if tasks is None:
        tasks = _loops.setdefault(loop, _LoopTasks(loop))
    try:
        await tasks.wait_for(loop, task)
    except BaseException:
        task.cancel(False)  # noqa: FBT003 - whether only a queued one
        raise
