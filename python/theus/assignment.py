"""Tasks to workers, and workers in their order: started, attended to, buried."""

from __future__ import annotations

import contextlib
import select
import time
from typing import TYPE_CHECKING

from theus import deaths
from theus.errors import CorruptSegmentError, NativeWorkerError, ProtocolError
from theus.stopping import GRACE_S
from theus.worker_process import StartFailure

if TYPE_CHECKING:
    from collections import deque
    from collections.abc import Callable, Iterable

    from theus.arrivals import Arrivals, Delivery
    from theus.loops import Loops
    from theus.pool import WorkerPool
    from theus.program import Program
    from theus.tasks import Task
    from theus.worker_process import Frame, WorkerProcess

__all__ = ["BROKEN", "Assignment"]

BROKEN = (ProtocolError, CorruptSegmentError, MemoryError, NativeWorkerError)
"""What a frame may raise after which its channel cannot be used."""


class Assignment:
    """Gives tasks to the workers of a program, and takes what comes of them.

    Called with the dispatcher's lock held. What is returned is to be delivered without it.

    Parameters
    ----------
    program : Program
        What the workers run.
    pool : WorkerPool
        The workers.
    pending : deque of Task
        Those that wait for one.
    arrivals : Arrivals
        Takes the workers' frames.
    loops : Loops
        Make a step when a new worker should be ready.
    forget : callable
        Notes that a task is done that nobody wants any more.

    Attributes
    ----------
    closed : bool
        Whether no task is given any more.
    """

    def __init__(
        self,
        program: Program,
        pool: WorkerPool,
        pending: deque[Task],
        arrivals: Arrivals,
        *,
        loops: Loops,
        forget: Callable[[Task], None],
    ) -> None:
        self._program = program
        self._pool = pool
        self._pending = pending
        self._arrivals = arrivals
        self._loops = loops
        self._forget = forget
        self.closed = False

    def attend(self, worker: WorkerProcess, descriptor: int, mask: int) -> list[Delivery]:
        """Take what a worker has sent, and send what waits for its socket; `mask` is of epoll."""
        deliveries: list[Delivery] = []
        # Another thread may have buried the worker of this event, and a new one have its numbers.
        if self._pool.get(worker.pidfd) is not worker:
            return deliveries
        gone = descriptor == worker.pidfd and worker.is_dead()
        try:
            if mask & select.EPOLLOUT:
                worker.wants_write = not worker.channel.flush()
                self._pool.watch_writes(worker)
            while (frame := worker.channel.try_recv()) is not None:
                self._arrivals.take(worker, frame, deliveries)
        except (EOFError, OSError):
            gone = True
        except BROKEN as error:
            return deliveries + self.bury(worker, error)
        if gone:
            deliveries += self.bury(worker)
        return deliveries

    def take(self, worker: WorkerProcess, frame: Frame) -> list[Delivery]:
        """Take a frame that somebody else has fetched."""
        deliveries: list[Delivery] = []
        try:
            self._arrivals.take(worker, frame, deliveries)
        except BROKEN as error:
            deliveries += self.bury(worker, error) + self.assign()
        return deliveries

    def assign(self) -> list[Delivery]:
        """Send pending tasks to workers that should have them; start workers while there may be."""
        refused: list[Delivery] = []
        given: set[WorkerProcess] = set()
        while self._pending and not self.closed:
            try:
                worker = self._pool.choose(self._pending[0])
            except (OSError, NativeWorkerError) as error:
                if any(self._pool):  # those that run will come to it
                    break
                refused += [(task, False, error) for task in self._pending]
                self._pending.clear()
                break
            if worker is None:
                break
            self._expect(worker)
            task = self._pending.popleft()
            if task.done or not task.outcome.start():
                self._forget(task)
                continue
            given.add(worker)
            refused += self._send(worker, task)
        return refused + self._flush(given.intersection(self._pool))

    def _send(self, worker: WorkerProcess, task: Task) -> list[Delivery]:
        try:
            worker.send(task)
        except (OSError, EOFError):
            if task not in worker.queue:
                self._pending.appendleft(task)
            return self.bury(worker)
        except Exception as error:  # noqa: BLE001 - the task's own, as it cannot be sent
            return [(task, False, error)]
        self._pool.note_sent(worker, task)
        return []

    def _flush(self, workers: Iterable[WorkerProcess]) -> list[Delivery]:
        refused: list[Delivery] = []
        for worker in workers:
            try:
                worker.flush()
            except (OSError, EOFError):
                refused += self.bury(worker)
            else:
                self._pool.watch_writes(worker)
        return refused

    def _expect(self, worker: WorkerProcess) -> None:
        """Have the event loops look whether a new worker is ready in time: no frame may tell."""
        if worker.deadline is None or worker.queue:
            return
        self._loops.step_in(max(0.0, worker.deadline - time.monotonic()))

    def bury(self, worker: WorkerProcess, broken: Exception | None = None) -> list[Delivery]:
        """Fail the task a dead or broken worker ran, send the others again, forget the worker."""
        self._pool.remove(worker)
        deliveries: list[Delivery] = []
        with contextlib.suppress(EOFError, OSError):
            try:
                while not broken and (frame := worker.channel.try_recv()) is not None:
                    self._arrivals.take(worker, frame, deliveries)
            except BROKEN as error:
                broken = error
        if broken is not None:
            worker.process.kill()
        status = worker.reap(GRACE_S)  # one that has closed its socket may live on
        error = None if worker.ready else self._note_failed_start(worker, status, broken)
        if error is None:
            failed, again = deaths.settle(worker, status, broken)
            deliveries += [(task, False, error) for task, error in failed]
            self._pending.extendleft(reversed(again))
        elif any(other.ready for other in self._pool):  # those that run will come to its tasks
            self._pending.extendleft(reversed(worker.queue))
            self._pool.hold_off()
        else:  # none of its tasks has begun, and no other worker would do better
            deliveries += [(task, False, error) for task in (*worker.queue, *self._pending)]
            self._pending.clear()
        worker.queue.clear()
        self._pool.vacate(worker)
        worker.close()
        return deliveries

    def _note_failed_start(
        self, worker: WorkerProcess, status: int, broken: Exception | None
    ) -> Exception | None:
        """Note that `worker` was never ready; what tasks fail with if there is no use in others."""
        late = worker.deadline is not None and time.monotonic() >= worker.deadline
        stderr = worker.trace()
        worker.failure = StartFailure(status, stderr, broken, late)
        attempts = self._pool.failed_starts + 1
        error = self._program.start_error(attempts, status, stderr, broken)
        if error is not None:
            self._pool.failed_starts = 0
        elif broken is None:
            self._pool.failed_starts = attempts
        return error
