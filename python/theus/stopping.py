"""When tasks have to end, and what is done to those that do not."""

from __future__ import annotations

import heapq
import signal
import time
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from theus.pool import WorkerPool
    from theus.tasks import Task
    from theus.worker_process import WorkerProcess

__all__ = ["GRACE_S", "Stopping"]

GRACE_S = 0.1


class Stopping:
    """The deadlines of tasks and of workers: a task is asked to end, and then its worker killed.

    Parameters
    ----------
    pool : WorkerPool
        The workers.
    """

    def __init__(self, pool: WorkerPool) -> None:
        self._pool = pool
        self._stops: list[tuple[float, int, int]] = []
        self._deadlines: list[tuple[float, int]] = []
        self._timed: dict[int, Task] = {}

    def __bool__(self) -> bool:
        """Whether a task was asked to end."""
        return bool(self._stops)

    def watch(self, task: Task) -> None:
        """Note the deadline of a task, if it has one."""
        if task.deadline is not None:
            heapq.heappush(self._deadlines, (task.deadline, task.number))
            self._timed[task.number] = task

    def forget(self, task: Task) -> None:
        """Note that a task is done."""
        self._timed.pop(task.number, None)

    def take_late(self) -> list[Task]:
        """Return the tasks whose deadline has passed, once."""
        now = time.monotonic()
        late: list[Task] = []
        while self._deadlines and self._deadlines[0][0] <= now:
            task = self._timed.pop(heapq.heappop(self._deadlines)[1], None)
            late += [] if task is None else [task]
        return late

    def interrupt(self, worker: WorkerProcess, task: Task) -> None:
        """Ask the worker to end `task`: it looks at the page before a task and at a SIGINT.

        A native program looks there as it sees fit; a SIGINT would end one that does not expect it.
        """
        worker.control.cancel = task.number
        if worker.program.takes_pickles and worker.control.running == task.number:
            signal.pidfd_send_signal(worker.pidfd, signal.SIGINT)
        heapq.heappush(self._stops, (time.monotonic() + GRACE_S, worker.pidfd, task.number))

    def enforce(self) -> None:
        """Kill the workers that did not end their task, or were not ready or gone, in time."""
        now = time.monotonic()
        while self._stops and self._stops[0][0] <= now:
            _, descriptor, number = heapq.heappop(self._stops)
            worker = self._pool.get(descriptor)
            if worker is None or not worker.queue or worker.queue[0].number != number:
                continue
            if worker.ready:
                signal.pidfd_send_signal(worker.pidfd, signal.SIGKILL)
        if self._pool.hurried:
            self._pool.hurry(now)

    def next_timeout(self) -> float | None:
        """Return how many seconds are left until something is due; None if nothing is."""
        moments = [heap[0][0] for heap in (self._deadlines, self._stops) if heap]
        moments += [w.deadline for w in self._pool.hurried if w.deadline is not None]
        return max(0.0, min(moments) - time.monotonic()) if moments else None
