"""Which worker a task goes to, and the workers there are."""

from __future__ import annotations

import errno
import os
import resource
import select
import time
from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING

from theus.errors import DescriptorLimitError
from theus.worker_process import WorkerProcess

if TYPE_CHECKING:
    from collections.abc import Iterator

    from theus._theus import Session
    from theus.functions import Reference
    from theus.program import Program
    from theus.seats import Seats
    from theus.tasks import Task

__all__ = ["CORES", "WorkerLimits", "WorkerPool"]

_SHORT_S = 1e-3
_BACKLOG_S = 2e-3
_UNKNOWN_S = 1e9
_MAX_QUEUE = 128
_MAX_MEASURED = 4096
_HOLD_OFF_S = 1.0
_MAX_HOLD_OFF_S = 60.0
CORES = len(os.sched_getaffinity(0))


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
    """The workers of one program, started when there is work for them.

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
    program : Program
        What they run.
    seats : Seats
        Their places at the session's budget.
    worker_limits : WorkerLimits
        When a worker is replaced.

    Attributes
    ----------
    limited : bool
        Whether workers are replaced at some limit, so that each task has to be counted.
    busy : set of WorkerProcess
        Those that have tasks.
    hurried : set of WorkerProcess
        Those with a deadline.
    failed_starts : int
        How many in a row ended before they were ready.
    """

    def __init__(
        self,
        session: Session,
        limit: int,
        threads: int,
        epoll: select.epoll,
        *,
        program: Program,
        seats: Seats,
        worker_limits: WorkerLimits,
    ) -> None:
        self._session = session
        self._program = program
        self._seats = seats
        self._limit = limit
        self._threads = threads
        self._epoll = epoll
        self._workers: list[WorkerProcess] = []
        self._by_descriptor: dict[int, WorkerProcess] = {}
        self._durations: dict[int, float] = {}
        self._retiring = 0
        self._worker_limits = worker_limits
        self.limited = worker_limits != WorkerLimits()
        self.busy: set[WorkerProcess] = set()
        self.hurried: set[WorkerProcess] = set()
        self.failed_starts = 0
        self._start_again = 0.0
        self._held_off_s = _HOLD_OFF_S

    def __iter__(self) -> Iterator[WorkerProcess]:
        return iter(tuple(self._workers))

    def get(self, descriptor: int) -> WorkerProcess | None:
        """Return the worker whose channel or pidfd has this number."""
        return self._by_descriptor.get(descriptor)

    @property
    def may_take(self) -> bool:
        """Whether there are idle workers, or may be more of them."""
        return len(self.busy) < self._limit

    def idle(self) -> WorkerProcess | None:
        """Return a worker that has nothing to do: of several always the same, as it is awake."""
        for worker in self._workers:
            if not worker.queue and not worker.retiring:
                return worker
        return None

    def choose(self, task: Task) -> WorkerProcess | None:
        """Return the worker that should have `task`, started if need be; None if it should wait.

        Raises
        ------
        OSError
            If a worker cannot be started.
        """
        worker = self.idle()
        if worker is not None:
            return worker
        if len(self._workers) - self._retiring < self._limit and self._may_start():
            return self.start()
        wanted = self.estimate(task)
        if wanted >= _SHORT_S:
            return None
        best, least = None, _BACKLOG_S - wanted
        for worker in self._workers:
            if worker.backlog_s < least and len(worker.queue) < self._room(worker):
                best, least = worker, worker.backlog_s
        return best

    def resting(self) -> list[WorkerProcess]:
        """Return the workers that get the next tasks, no more than there are cores."""
        return [worker for worker in self._workers if not worker.queue][:CORES]

    def warm_up(self) -> bool:
        """Start one more of the workers that there are cores for; False if none is to start now.

        Raises
        ------
        OSError
            If a worker cannot be started.
        """
        all_run = len(self._workers) - self._retiring >= min(self._limit, CORES)
        if all_run or not self._may_start():
            return False
        self.start()
        return True

    def hold_off(self) -> None:
        """Start no worker for a while, as the last ones did not come up, and others run."""
        self._start_again = time.monotonic() + self._held_off_s
        self._held_off_s = min(2 * self._held_off_s, _MAX_HOLD_OFF_S)

    def _may_start(self) -> bool:
        return not self._workers or time.monotonic() >= self._start_again

    def _room(self, worker: WorkerProcess) -> int:
        if worker.retiring:
            return 0
        tasks = self._worker_limits.tasks
        return _MAX_QUEUE if tasks is None else min(_MAX_QUEUE, tasks - worker.finished)

    def estimate(self, task: Task) -> float:
        """Return how many seconds `task` should take; very many if it may be long."""
        estimate = self.duration(task.reference) * task.weight
        return estimate if estimate < _SHORT_S else _UNKNOWN_S

    def duration(self, reference: Reference) -> float:
        """Return how many seconds a call of this function takes, if that is known."""
        return self._durations.get(hash(reference.definition), _UNKNOWN_S)

    def has_core_for(self, workers: int) -> bool:
        """Whether this thread can poll while so many workers run, without taking one's core."""
        return workers < CORES

    def note_ready(self, worker: WorkerProcess) -> None:
        """Note that `worker` has said hello."""
        worker.ready = True
        worker.deadline = None
        self.failed_starts = 0
        self._held_off_s = _HOLD_OFF_S

    def note_sent(self, worker: WorkerProcess, task: Task) -> None:
        """Note that `worker` has `task`, whose estimate counts until it is finished."""
        task.estimate_s = self.estimate(task)
        worker.backlog_s += task.estimate_s
        self.busy.add(worker)

    def note_finished(self, worker: WorkerProcess, task: Task, duration: float) -> None:
        """Note that `worker` ran `task` in so many seconds; retire it if that was its last."""
        self.measure(task, duration)
        worker.finished += 1
        if worker.queue:
            worker.backlog_s -= task.estimate_s
        else:
            worker.backlog_s = 0.0
            self.busy.discard(worker)
        limits = self._worker_limits
        if (limits.tasks is not None and worker.finished >= limits.tasks) or (
            limits.rss is not None and worker.anonymous_bytes() > limits.rss
        ):
            self._retiring += not worker.retiring
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

    def measure(self, task: Task, duration: float) -> None:
        """Note how many seconds a task of this function ran."""
        duration /= task.weight
        # One long run is enough to stop queueing behind it.
        key = hash(task.reference.definition)  # not the definition, which may be large
        known = 0.9 * self._durations.get(key, 0.0)
        if len(self._durations) >= _MAX_MEASURED:
            self._durations.clear()
        # Rises at once and falls slowly.
        self._durations[key] = max(duration, known)

    def watch_writes(self, worker: WorkerProcess) -> None:
        """Have the epoll say when the worker takes more, if something is left to send."""
        mask = select.EPOLLIN | (select.EPOLLOUT if worker.wants_write else 0)
        if mask != worker.watched:
            self._epoll.modify(worker.channel.fileno(), mask)
            worker.watched = mask

    def remove(self, worker: WorkerProcess) -> None:
        """Forget a worker that is gone, but for its seat: see :meth:`vacate`."""
        worker.channel.renew()  # nobody calls it any more: what it has is settled next
        self.hurried.discard(worker)
        self.busy.discard(worker)
        if worker in self._workers:
            self._workers.remove(worker)
            self._retiring -= worker.retiring
        for descriptor in (worker.channel.fileno(), worker.pidfd):
            if self._by_descriptor.pop(descriptor, None) is not None:
                self._epoll.unregister(descriptor)

    def vacate(self, worker: WorkerProcess) -> None:
        """Forget what a worker had reserved that is dead, and its last frames read."""
        self._seats.vacate(worker.seat)

    def clear(self) -> list[WorkerProcess]:
        """Forget all workers, and return them."""
        workers = list(self)
        for worker in workers:
            worker.channel.renew()
        self._workers.clear()
        self._retiring = 0
        self._by_descriptor.clear()
        self.busy.clear()
        self.hurried.clear()
        return workers

    def start(self) -> WorkerProcess:
        """Start a worker.

        Raises
        ------
        OSError
            If the machine or a limit of this process does not allow it.
        NativeWorkerError
            If its program cannot be run.
        """
        seat = self._seats.take()
        try:
            worker = WorkerProcess(self._session, seat, self._threads, self._program)
        except BaseException as error:
            self._seats.vacate(seat)
            used_up = isinstance(error, OSError) and error.errno == errno.EMFILE
            if not used_up or isinstance(error, DescriptorLimitError):
                raise
            limit, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
            msg = (
                f"starting a worker failed: it takes three of the {limit} descriptors that this "
                "process may have. Publish or drop drafts, or raise the limit (ulimit -n)"
            )
            raise DescriptorLimitError(errno.EMFILE, msg) from error
        self.hurried.add(worker)
        self._workers.append(worker)
        for descriptor in (worker.channel.fileno(), worker.pidfd):
            self._by_descriptor[descriptor] = worker
            self._epoll.register(descriptor, select.EPOLLIN)
        return worker
