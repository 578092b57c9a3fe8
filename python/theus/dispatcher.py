"""Moves tasks to workers and outcomes back.

::

    execute / submit / map                                     worker processes
            |                                                  (theus._worker)
            v                                                        ^
       +---------+   assign    +---------------+   TASK frames       |
       | pending | ----------> | worker.queue  | ------------------->|
       +---------+             +---------------+                     |
            ^  unstarted tasks        |  ^                           |
            +--- of a dead worker ----+  |      RESULT, ERROR frames |
                                         |                           |
       +----------+    pump()            |   epoll: sockets, pidfds, |
       | outcomes | <--------------------+-- wake-up counter <-------+
       +----------+

Whoever waits moves things forward by calling ``pump``: an event loop when the epoll descriptor
becomes readable, a thread inside ``future.result()`` by way of the `Driver`. A lock guards all
state; outcomes are delivered after it has been let go, since they run callbacks of the user.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import select
import threading
import time
from collections import deque
from concurrent.futures import Future
from typing import TYPE_CHECKING, Any

from theus import _theus, news, outcomes, wire
from theus.arrivals import Arrivals, Delivery, Failure
from theus.assignment import BROKEN, Assignment
from theus.driver import Driver
from theus.errors import ProtocolError, SessionClosedError
from theus.interrupts import InterruptsDeferred
from theus.loops import Loops
from theus.outbox import Outbox
from theus.pool import WorkerPool
from theus.shortcuts import SPIN_S, ShortCuts
from theus.stopping import GRACE_S, Stopping

if TYPE_CHECKING:
    from collections.abc import Callable

    from theus._theus import Channel, Segment, Session
    from theus.functions import Reference, References
    from theus.pool import WorkerLimits
    from theus.program import Program
    from theus.seats import Seats
    from theus.state import State
    from theus.tasks import Task
    from theus.worker_process import Frame, StartFailure, WorkerProcess

__all__ = ["Dispatcher"]

_ANNOUNCED = 4
_LOOK_S = 50e-3
_SUBMITTED = 64
"""How many submitted tasks may wait until who submits more makes a step itself."""


class Dispatcher:
    """Routes tasks to the workers of one program.

    Parameters
    ----------
    session : Session
        Whose budget the workers share; they sweep it if this process dies.
    workers : int
        How many processes at most; they start when there is work for them.
    threads : int
        How many threads the numeric libraries of each worker may use.
    references : References
        Makes a function go by value if a worker cannot import it.
    adopt : callable
        Takes over the output that a worker has just sent on its channel, given that and its seat.
    program : Program
        What the workers run.
    seats : Seats
        Their places at the session's budget.
    worker_limits : WorkerLimits
        When a worker is replaced.

    Attributes
    ----------
    workers : int
        How many processes at most.
    shortcuts : ShortCuts
        Runs what is short while its caller polls.
    """

    def __init__(
        self,
        session: Session,
        workers: int,
        threads: int,
        references: References,
        adopt: Callable[[Channel, int], Segment],
        *,
        program: Program,
        seats: Seats,
        worker_limits: WorkerLimits,
    ) -> None:
        self._lock = threading.RLock()
        self._pending: deque[Task] = deque()
        self._released: deque[int] = deque()
        self._unattended: set[int] = set()
        self._numbers = itertools.count(1)
        self._announced = self._announced_at = 0
        self.workers = workers
        self._program = program
        self._closed = False
        self._epoll = select.epoll()
        self._pool = WorkerPool(
            session,
            workers,
            threads,
            self._epoll,
            program=program,
            seats=seats,
            worker_limits=worker_limits,
        )
        self.shortcuts = ShortCuts(self, self._pool, references, self._numbers, self._pending)
        self._stopping = Stopping(self._pool)
        self._arrivals = Arrivals(
            program, self._pool, self._pending, self._stopping, references=references, adopt=adopt
        )
        self._loops = Loops(self._epoll.fileno(), self.pump)
        self._assignment = Assignment(
            program,
            self._pool,
            self._pending,
            self._arrivals,
            loops=self._loops,
            forget=self._forget,
        )
        self._driver = Driver(
            self.pump, self._next_timeout, lambda: bool(self._unattended or self._stopping)
        )
        self._epoll.register(self._driver.wake, select.EPOLLIN)
        self._outbox = Outbox(self._lock, self._settle, self._driver.tell)

    # --- what the engine calls ---

    @property
    def worker_pids(self) -> list[int]:
        """The process ids of the workers that run now."""
        with self._lock:
            return sorted(worker.pid for worker in self._pool)

    def submit(self, task: Task, *, attended: bool) -> None:
        """Queue `task`; `attended` says that an event loop waits for it."""
        with self._lock:
            if self._closed:
                msg = "the engine is closed: make a new TheusEngine to run tasks"
                raise SessionClosedError(msg)
            task.number = next(self._numbers)
            waiting = len(self._pending)
            self._pending.append(task)
            if not attended:
                self._unattended.add(task.number)
                self._stopping.watch(task)
        if not waiting or self._pool.may_take:  # an interrupt may have left some behind
            self._assign_first()
        elif waiting % _SUBMITTED == 0:  # else who moves the others forward comes to it
            self.pump(0.0)
        if not attended:
            self._driver.want_helper()
            if task.deadline is not None:
                self._driver.poke()

    def _assign_first(self) -> None:
        with InterruptsDeferred():
            with self._lock:
                self._outbox.put(self._assignment.assign())
            self._outbox.deliver()

    @property
    def takes_items(self) -> bool:
        """Whether the workers take several calls of a function in one task."""
        return self._program.takes_items

    def estimate(self, reference: Reference) -> float:
        """Return how many seconds a task of this function should take; infinity if unknown."""
        return self._pool.duration(reference)

    def warm_up(self) -> None:
        """Have the workers start beside the caller: there will be work for them."""
        threading.Thread(target=self._start_workers, name="theus-warm-up", daemon=True).start()

    def _start_workers(self) -> None:
        more = True
        while more:
            with self._lock, contextlib.suppress(OSError):  # tasks say so, if there are any
                more = False
                more = not self._closed and self._pool.warm_up()

    def start_first(self, wait_s: float) -> StartFailure | None:
        """Start a worker before there is work for it; why it is not ready within `wait_s` seconds.

        Raises
        ------
        OSError, NativeWorkerError
            If it cannot be started.
        SessionClosedError
            If the engine is closed meanwhile.
        """
        with InterruptsDeferred(), self._lock:
            worker = self._pool.start()
            worker.deadline = time.monotonic() + wait_s

        def settled() -> bool:
            return worker.ready or worker.failure is not None or self._closed

        self._driver.drive(settled, None)
        if self._closed:
            msg = "the engine was closed while the native worker started"
            raise SessionClosedError(msg)
        return worker.failure

    def announce(self, state: State) -> None:
        """Let a few workers that have nothing to do see `state` before a task needs it.

        A few times between two tasks: where one entry after the other is put, and none looked at,
        nobody gains by it.
        """
        with InterruptsDeferred():  # which would leave the lock held
            if not self._lock.acquire(blocking=False):
                return  # whoever has it gives them something to do
            try:
                self._announce(state)
            finally:
                self._lock.release()

    def _announce(self, state: State) -> None:
        before, self._announced_at = self._announced_at, next(self._numbers)
        # Tasks are numbered too.
        self._announced = self._announced + 1 if self._announced_at == before + 1 else 1
        if self._announced > _ANNOUNCED:
            return
        for worker in self._pool.resting():
            with contextlib.suppress(OSError, EOFError):  # a worker that has just died
                worker.announce(state)
                self._pool.watch_writes(worker)

    def look_at(self, worker: WorkerProcess, task: Task) -> None:
        """Look at a worker whose task was sent and not answered, or that broke off its channel."""
        with InterruptsDeferred():
            with self._lock:
                if task in worker.queue:  # another thread may have had the outcome
                    self._pool.note_sent(worker, task)
                attend, descriptor = self._assignment.attend, worker.channel.fileno()
                self._outbox.put(attend(worker, descriptor, select.EPOLLOUT))
                self._outbox.put(self._assignment.assign())
            self._outbox.deliver()

    def take(self, worker: WorkerProcess, task: Task, frame: Frame) -> bool:
        """Deliver the outcome that was polled for; False if the task has to be sent otherwise."""
        kind, fields, attachments = frame
        if kind not in (_theus.KIND_RESULT, _theus.KIND_ERROR) or fields[0] != task.number:
            self._take_early(worker, task, frame)
            return True
        self._pool.measure(task, fields[1] / 1e9)
        worker.finished += 1
        if kind == _theus.KIND_RESULT:
            self._finish(task, success=True, value=attachments[0])
        elif self._arrivals.is_stale(task, fields[2]):
            self._arrivals.send_by_value(task)
            return False
        else:
            failure = Failure(fields[2], wire.Message(attachments[0]), attachments[1])
            self._finish(task, success=False, value=failure)
        return True

    def _take_early(self, worker: WorkerProcess, task: Task, frame: Frame) -> None:
        """Take what came before the outcome that was polled for: news, or the worker's last."""
        with InterruptsDeferred():
            with self._lock:
                if frame[0] in news.KINDS:
                    self._outbox.put(self._assignment.take(worker, frame))
                else:
                    msg = f"it answered with a frame of kind {frame[0]}, not its task's outcome"
                    self._outbox.put(self._assignment.bury(worker, ProtocolError(msg)))
                    self._outbox.put(self._assignment.assign())
            self._outbox.deliver()
        self.look_at(worker, task)

    def _poll_for(self, task: Task) -> None:
        """Poll for the outcome of a task that was sent and should be short."""
        pool = self._pool
        if pool.estimate(task) > SPIN_S or not pool.has_core_for(len(pool.busy)):
            return
        with InterruptsDeferred():
            with self._lock:
                for worker in self._pool.busy:
                    if worker.queue and worker.queue[0] is task:
                        self._poll_worker(worker)
                        break
            self._outbox.deliver()

    def _poll_worker(self, worker: WorkerProcess) -> None:
        with contextlib.suppress(EOFError, OSError, *BROKEN):  # which the next look says again
            if not worker.channel.poll(SPIN_S):
                return
        self._outbox.put(self._assignment.attend(worker, worker.channel.fileno(), 0))
        self._outbox.put(self._assignment.assign())

    def attach(self, loop: asyncio.AbstractEventLoop) -> None:
        """Let `loop` move tasks forward whenever a worker has news."""
        self._loops.attach(loop)

    def cancel(self, task: Task) -> None:
        """Stop `task` wherever it is; its outcome is the caller's to set."""
        with InterruptsDeferred():
            with self._lock:
                if not task.done:
                    self._withdraw(task)
                    self._forget(task)
            self._driver.want_helper()
            self._driver.poke()

    def time_out(self, task: Task) -> None:
        """Stop `task` and fail it with TimeoutError, unless it is done."""
        with InterruptsDeferred():
            with self._lock:
                self._outbox.put(self._late(task))
            self._outbox.deliver()
            self._driver.want_helper()
            self._driver.poke()

    def release(self, number: int) -> None:
        """Note that segment `number` is gone; called by the garbage collector at any moment."""
        self._released.append(number)
        if self._lock.acquire(blocking=False):
            try:
                self._send_releases()
            finally:
                self._lock.release()

    def drive(self, future: Future[Any], timeout: float | None) -> None:
        """Move tasks forward from this thread until `future` is done or `timeout` has passed."""
        if future.done():
            return
        task = getattr(future, "task", None)
        if task is not None and self._outbox.expect(task):
            try:
                with InterruptsDeferred():
                    self._outbox.deliver()
                self._driver.drive(future.done, timeout)
            finally:
                self._outbox.expect_no_more(task)
            return
        if task is not None and (timeout is None or timeout > SPIN_S):
            self._poll_for(task)
        if not future.done():
            self._driver.drive(future.done, timeout)

    def finish(self) -> None:
        """Let everything that was submitted end."""
        while self.is_busy():
            self.pump(0.05)

    def is_busy(self) -> bool:
        """Whether something that was submitted has not ended."""
        with self._lock:
            queued = [task for worker in self._pool for task in worker.queue]
            return not all(task.done for task in (*queued, *self._pending))

    def close(self) -> None:
        """End the workers; tasks that are not done fail."""
        with self._lock:
            if self._closed:
                return
            self._closed = self._assignment.closed = True
            self.shortcuts.close()
            tasks = list(self._pending)
            workers = self._pool.clear()
            for worker in workers:
                tasks += worker.queue
                with contextlib.suppress(OSError, EOFError):
                    worker.shut_down()
            self._pending.clear()
            self._unattended.clear()
            error = SessionClosedError("the engine was closed before this task ended")
            self._outbox.put((task, False, error) for task in tasks)  # behind what has come
        try:
            self._outbox.deliver()
        finally:
            _end(workers)
            for worker in workers:
                self._pool.vacate(worker)
            self._loops.close()
            self._driver.close()

    def abandon(self) -> None:
        """Forget the workers in a forked child: they are the parent's."""
        self._lock = threading.RLock()
        self._outbox = Outbox(self._lock, self._settle, self._driver.tell)
        self._closed = self._assignment.closed = True
        self.shortcuts.close()
        self._driver.abandon()
        tasks = list(self._pending)
        self._pending.clear()
        for worker in self._pool.clear():
            tasks += worker.queue
            worker.abandon()
        error = SessionClosedError("this task is the parent's: a forked child gets no results")
        for task in tasks:
            if not task.done:
                self._forget(task)
                with contextlib.suppress(Exception):
                    task.outcome.fail(error)
        self._epoll.close()

    # --- moving things forward ---

    def pump(self, timeout: float | None) -> None:
        """Wait up to `timeout` seconds for news of the workers, and act on it."""
        try:
            events = self._epoll.poll(timeout)
        except ValueError:  # closed in a forked child
            return
        self._driver.steps += 1
        with InterruptsDeferred():
            with self._lock:
                for descriptor, mask in events:
                    if descriptor == self._driver.wake:
                        self._driver.woke()
                        continue
                    worker = self._pool.get(descriptor)
                    if worker is not None:
                        self._outbox.put(self._assignment.attend(worker, descriptor, mask))
                self._outbox.put(self._expire())
                self._outbox.put(self._assignment.assign())
                self._send_releases()
            self._outbox.deliver()

    def _settle(self, task: Task, *, success: bool, value: Any) -> None:
        if not task.done:
            self._finish(task, success=success, value=value)

    def _finish(self, task: Task, *, success: bool, value: Any) -> None:
        self._forget(task)
        success, value = outcomes.load(task, success=success, value=value)
        task.inputs = None
        # Outside of that: callbacks of the user run in these, and the outcome is settled by then.
        if success:
            task.outcome.resolve(value)
        else:
            task.outcome.fail(value)

    def _forget(self, task: Task) -> None:
        task.done = True
        self._unattended.discard(task.number)
        if task.deadline is not None:
            self._stopping.forget(task)

    # --- stopping tasks ---

    def _late(self, task: Task) -> list[Delivery]:
        if task.done:
            return []
        self._withdraw(task)
        msg = f"{task.reference.name} did not end within {task.timeout} s and was stopped"
        return [(task, False, TimeoutError(msg))]

    def _withdraw(self, task: Task) -> None:
        """Take `task` from where it waits, or have the worker that runs it stop."""
        if task in self._pending:
            self._pending.remove(task)
        for worker in self._pool:
            if worker.queue and worker.queue[0] is task:
                self._stopping.interrupt(worker, task)

    def _expire(self) -> list[Delivery]:
        """Time out what is late, and kill the workers that did not stop in time."""
        late: list[Delivery] = []
        for task in self._stopping.take_late():
            late += self._late(task)
        self._stopping.enforce()
        return late

    def _next_timeout(self) -> float | None:
        with self._lock:
            due = self._stopping.next_timeout()
            if self._pending:  # a thread that was interrupted may not have told of its idle worker
                return _LOOK_S if due is None else min(due, _LOOK_S)
            return due

    def _send_releases(self) -> None:
        numbers: list[int] = []
        while self._released:
            numbers.append(self._released.popleft())
        if numbers:
            for worker in self._pool:
                with contextlib.suppress(OSError, EOFError):
                    worker.release(tuple(numbers))
                    self._pool.watch_writes(worker)


def _end(workers: list[WorkerProcess]) -> None:
    """Wait shortly for workers that were asked to end, kill those that do not, and reap them."""
    deadline = time.monotonic() + GRACE_S * 5
    for worker in workers:
        busy = bool(worker.queue) or not worker.ready
        worker.reap(0 if busy else max(0.0, deadline - time.monotonic()))
        worker.close()
