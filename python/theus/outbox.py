"""What has come of tasks, on its way to who waits for it: passed on without the dispatcher's lock.

Callbacks of the user run there, and may wait for other tasks, so that nothing that has come may
stay with the thread that runs one: any thread passes on what is next. Only what belongs to one task
keeps its order: while one of its callbacks runs, what it tells waits for that to end, and so does
its outcome, unless the callback waits for just that.
"""

from __future__ import annotations

import threading
from collections import deque
from typing import TYPE_CHECKING, Any

from theus.news import News

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from theus.arrivals import Delivery
    from theus.tasks import Task

__all__ = ["Outbox"]


class _Telling:
    """A thread that passes on news of a task, and what has come of it meanwhile."""

    __slots__ = ("awaited", "rest", "thread")

    def __init__(self, thread: int) -> None:
        self.thread = thread
        self.rest: list[Delivery] = []
        self.awaited = False


class Outbox:
    """The deliveries of a dispatcher.

    Parameters
    ----------
    lock : RLock
        The dispatcher's.
    finish : callable
        Settles a task, if it is not done, given whether it succeeded and its outcome.
    told : callable
        Is called when something was passed on, for those who wait.
    """

    def __init__(
        self,
        lock: threading.RLock,
        finish: Callable[..., None],
        told: Callable[[], None],
    ) -> None:
        self._lock: Any = lock
        self._finish = finish
        self._told = told
        self._waiting: deque[Delivery] = deque()
        self._telling: dict[Task, _Telling] = {}

    def put(self, deliveries: Iterable[Delivery]) -> None:
        """Add what has come; with the lock held, so that it stays in its order."""
        self._waiting.extend(deliveries)

    def deliver(self) -> None:
        """Pass on what has come, without the lock.

        Raises
        ------
        BaseException
            The first that a callback raised, when all is passed on.
        """
        raised: BaseException | None = None
        some = False
        while (claimed := self._claim()) is not None:
            some = True
            delivery, task = claimed
            try:
                if isinstance(delivery, News):
                    delivery.tell()
                else:
                    self._finish(delivery[0], success=delivery[1], value=delivery[2])
            except BaseException as error:  # noqa: BLE001 - others wait for what comes after
                raised = raised or error
            finally:
                if task is not None:
                    self._let_go(task)
        if some:
            self._told()
        if raised is not None:
            raise raised

    def _claim(self) -> tuple[Delivery, Task | None] | None:
        """Take the next delivery, and its task if that is to be let go of after it."""
        with self._lock:
            while self._waiting:
                delivery = self._waiting.popleft()
                is_news = isinstance(delivery, News)
                task = delivery.task if isinstance(delivery, News) else delivery[0]
                telling = None if task is None else self._telling.get(task)
                if telling is not None and (is_news or not telling.awaited):
                    telling.rest.append(delivery)
                elif task is not None and is_news:
                    self._telling[task] = _Telling(threading.get_ident())
                    return delivery, task
                else:
                    return delivery, None
        return None

    def expect(self, task: Task) -> bool:
        """Let the outcome of `task` go past what it told, if a callback of it waits for it here.

        Returns
        -------
        bool
            Whether that is so: there may be something to deliver, and :meth:`expect_no_more` is to
            be called when the wait ends.
        """
        if task not in self._telling:
            return False
        with self._lock:
            telling = self._telling.get(task)
            if telling is None or telling.thread != threading.get_ident():
                return False
            telling.awaited = True
            self._waiting.extendleft(reversed(telling.rest))
            telling.rest.clear()
            return True

    def expect_no_more(self, task: Task) -> None:
        """Let the outcome of `task` wait again until the callback that waited for it has ended."""
        self._telling[task].awaited = False

    def _let_go(self, task: Task) -> None:
        with self._lock:
            self._waiting.extendleft(reversed(self._telling.pop(task).rest))
