"""Which worker a task goes to, and the workers there are."""

from __future__ import annotations

import errno
import os
import resource
import select
from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING

from theus.errors import DescriptorLimitError
from theus.worker_process import WorkerProcess

if TYPE_CHECKING:
    from collections.abc import Iterator

    from theus._theus import Session
    from theus.tasks import Task

__all__ = ["WorkerLimits", "WorkerPool"]

_SHORT_S = 1e-3
_BACKLOG_S = 2e-3
_MAX_QUEUE = 128
_MAX_MEASURED = 4096
_CORES = len(os.sched_getaffinity(0))


@dataclass(frozen=True, slots=True)
class WorkerLimits:
    """What a worker may come to before it is replaced.

    Attributes
    ----------
    tasks : int or None
        How many tasks it runs at most.
    rss : int or None
        How many bytes of memory it may have for itself when it has run a task.
    """

    tasks: int | None = None
    rss: int | None = None


class WorkerPool:
    """The workers of one session, started when there is work for them.

    A worker gets a second task behind the one it runs only if tasks of both functions were measured
    to be short, so that a long one never blocks another while a worker is idle.

    Parameters
    ----------
    session : Session
        Whose budget they share; workers sweep it if this process dies.
    limit : int
        How many processes at most.
    threads : int
        How many threads the numeric libraries of each worker may use.
    epoll : select.epoll
        Where each worker's channel and pidfd are registered.
    worker_limits : WorkerLimits
        When a worker is replaced.

    Attributes
    ----------
    hurried : set of WorkerProcess
        Those with a deadline.
    """

    def __init__(
        self,
        session: Session,
        limit: int,
        threads: int,
        epoll: select.epoll,
        *,
        worker_limits: WorkerLimits,
    ) -> None:
        self._session = session
        self._limit = limit
        self._threads = threads
        self._epoll = epoll
        self._by_descriptor: dict[int, WorkerProcess] = {}
        self._durations: dict[int, float] = {}
        self._leaving: set[int] = set()
        self._worker_limits = worker_limits
        self.hurried: set[WorkerProcess] = set()

    def __iter__(self) -> Iterator[WorkerProcess]:
        return iter(dict.fromkeys(self._by_descriptor.values()))

    def get(self, descriptor: int) -> WorkerProcess | None:
        """Return the worker whose channel or pidfd has this number."""
        return self._by_descriptor.get(descriptor)

    def choose(self, task: Task) -> WorkerProcess | None:
        """Return the worker that should have `task`, started if need be; None if it should wait.

        Raises
        ------
        OSError
            If a worker cannot be started.
        """
        workers = [worker for worker in self if not worker.retiring]
        for worker in workers:
            if not worker.queue:
                return worker
        if len(workers) < self._limit:
            return self._start()
        wanted = self._estimate(task)
        if wanted >= _SHORT_S:
            return None
        best, least = None, _BACKLOG_S
        for worker in workers:
            if len(worker.queue) >= self._room(worker):
                continue
            backlog = wanted + self._backlog(worker)
            if backlog < least:
                best, least = worker, backlog
        return best

    def idle(self) -> list[WorkerProcess]:
        """Return the workers that get the next tasks, no more than there are cores."""
        return [worker for worker in self if not worker.queue][:_CORES]

    def warm_up(self) -> bool:
        """Start one more of the workers that there are cores for; False if they all run.

        Raises
        ------
        OSError
            If a worker cannot be started.
        """
        if sum(not worker.retiring for worker in self) >= min(self._limit, _CORES):
            return False
        self._start()
        return True

    def _room(self, worker: WorkerProcess) -> int:
        tasks = self._worker_limits.tasks
        return _MAX_QUEUE if tasks is None else min(_MAX_QUEUE, tasks - worker.finished)

    def is_soon(self, task: Task, limit: float) -> bool:
        """Whether `task` should end within `limit` seconds and leaves this thread a core."""
        busy = sum(bool(worker.queue) for worker in self)
        return self._estimate(task) < limit and busy < _CORES

    def note_finished(self, worker: WorkerProcess, task: Task, duration: float) -> None:
        """Note that `worker` ran `task` in so many seconds; retire it if that was its last."""
        self._measure(task, duration)
        worker.finished += 1
        limits = self._worker_limits
        if (limits.tasks is not None and worker.finished >= limits.tasks) or (
            limits.rss is not None and worker.anonymous_bytes() > limits.rss
        ):
            worker.retiring = True
        if worker.retiring and not worker.queue:
            with suppress(OSError, EOFError):  # it is gone already
                worker.shut_down()
                self.watch_writes(worker)
            self.hurried.add(worker)

    def hurry(self, now: float) -> None:
        """Kill the workers that should be ready, or gone, by now."""
        for worker in list(self.hurried):
            if worker.deadline is None:
                self.hurried.discard(worker)
            elif worker.deadline <= now:
                self.hurried.discard(worker)
                worker.process.kill()

    def _measure(self, task: Task, duration: float) -> None:
        # One long run is enough to stop queueing behind it.
        key = hash(task.reference.definition)
        if len(self._durations) >= _MAX_MEASURED:
            self._durations.clear()
        # Rises at once and falls slowly.
        self._durations[key] = max(duration, 0.9 * self._durations.get(key, duration))

    def watch_writes(self, worker: WorkerProcess) -> None:
        """Have the epoll say when the worker takes more, if something is left to send."""
        mask = select.EPOLLIN | (select.EPOLLOUT if worker.wants_write else 0)
        if mask != worker.watched:
            self._epoll.modify(worker.channel.fileno(), mask)
            worker.watched = mask

    def remove(self, worker: WorkerProcess) -> None:
        """Forget a worker that is gone, but for its seat: see :meth:`vacate`."""
        self._leaving.add(worker.seat)
        self.hurried.discard(worker)
        for descriptor in (worker.channel.fileno(), worker.pidfd):
            if self._by_descriptor.pop(descriptor, None) is not None:
                self._epoll.unregister(descriptor)

    def vacate(self, worker: WorkerProcess) -> None:
        """Forget what a worker had reserved that is dead, and its last frames read."""
        self._session.clear_seat(worker.seat)
        self._leaving.discard(worker.seat)

    def clear(self) -> list[WorkerProcess]:
        """Forget all workers, and return them."""
        workers = list(self)
        self._by_descriptor.clear()
        self.hurried.clear()
        return workers

    def _start(self) -> WorkerProcess:
        seats = {worker.seat for worker in self} | self._leaving
        seat = next(seat for seat in range(1, len(seats) + 2) if seat not in seats)
        try:
            worker = WorkerProcess(self._session, seat, self._threads)
        except OSError as error:
            if error.errno != errno.EMFILE or isinstance(error, DescriptorLimitError):
                raise
            limit, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
            msg = (
                f"starting a worker failed: it takes three of the {limit} descriptors that this "
                "process may have. Publish or drop drafts, or raise the limit (ulimit -n)"
            )
            raise DescriptorLimitError(errno.EMFILE, msg) from error
        self.hurried.add(worker)
        for descriptor in (worker.channel.fileno(), worker.pidfd):
            self._by_descriptor[descriptor] = worker
            self._epoll.register(descriptor, select.EPOLLIN)
        return worker

    def _backlog(self, worker: WorkerProcess) -> float:
        total = 0.0
        for task in worker.queue:
            estimate = self._estimate(task)
            if estimate >= _SHORT_S:
                return float("inf")
            total += estimate
        return total

    def _estimate(self, task: Task) -> float:
        return self._durations.get(hash(task.reference.definition), _SHORT_S)
