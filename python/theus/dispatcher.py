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

No thread owns the sockets. Whoever waits moves things forward by calling ``pump``: an event loop
when the epoll descriptor becomes readable, a thread inside ``future.result()`` (one leads, the
others wait for its news), and a thread of the dispatcher's own while there are futures that nobody
waits for. A lock guards all state; outcomes are delivered after it has been let go, since they run
callbacks of the user.

A worker gets a second task behind the one it runs only if tasks of both functions were measured to
be short, so that a long one never blocks another while a worker is idle.
"""

from __future__ import annotations

import asyncio
import contextlib
import heapq
import os
import select
import signal
import subprocess
import threading
import time
from collections import deque
from concurrent.futures import Future
from typing import TYPE_CHECKING, Any
from weakref import WeakSet, finalize

from theus import _theus, wire
from theus.errors import (
    ProtocolError,
    RemoteTraceback,
    SessionClosedError,
    UnpicklableError,
    WorkerDiedError,
)
from theus.tasks import Task
from theus.worker_process import WorkerProcess

if TYPE_CHECKING:
    from collections.abc import Callable

    from theus.functions import References

__all__ = ["CALL_CONTEXT", "CALL_ITEM", "CALL_PLAIN", "Dispatcher"]

CALL_CONTEXT, CALL_ITEM, CALL_PLAIN = range(3)
_CAUSE_STALE = 2

_GRACE_S = 0.1
_SHORT_S = 1e-3
_BACKLOG_S = 2e-3
_MAX_QUEUE = 128
_MAX_MEASURED = 4096
_MAX_FAILED_STARTS = 3
_LINGER_S = 1e-3
_PATIENCE_S = 50e-3
_SPIN_S = 60e-6
_CORES = len(os.sched_getaffinity(0))

Delivery = tuple[Task, bool, Any]


class Dispatcher:
    """Routes tasks to the workers of one session.

    Parameters
    ----------
    session : str
        The session's id; workers sweep it if this process dies.
    workers : int
        How many processes at most; they start when there is work for them.
    threads : int
        How many threads the numeric libraries of each worker may use.
    references : References
        Makes a function go by value if a worker cannot import it.
    """

    def __init__(self, session: str, workers: int, threads: int, references: References) -> None:
        self._session = session
        self._limit = workers
        self._threads = threads
        self._references = references
        self._lock = threading.RLock()
        self._pending: deque[Task] = deque()
        self._workers: dict[int, WorkerProcess] = {}
        self._stops: list[tuple[float, int, int]] = []
        self._deadlines: list[tuple[float, int, Task]] = []
        self._durations: dict[int, float] = {}
        self._released: deque[int] = deque()
        self._numbers = 0
        self._failed_starts = 0
        self._closed = False
        self._epoll = select.epoll()
        self._wake = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        self._epoll.register(self._wake, select.EPOLLIN)
        finalize(self, os.close, self._wake)
        self._loops: WeakSet[asyncio.AbstractEventLoop] = WeakSet()
        self._news_lock = threading.Lock()
        self._news = threading.Condition(self._news_lock)
        self._help_wanted = threading.Condition(self._news_lock)
        self._help_sleeps = False
        self._leader: int | None = None
        self._waiters = 0
        self._unattended: set[int] = set()
        self._helper: threading.Thread | None = None

    # --- what the engine calls ---

    @property
    def worker_pids(self) -> list[int]:
        """The process ids of the workers that run now."""
        with self._lock:
            return sorted({worker.pid for worker in self._workers.values()})

    def submit(self, task: Task, *, attended: bool) -> None:
        """Queue `task`; `attended` says that an event loop waits for it."""
        with self._lock:
            if self._closed:
                msg = "the engine is closed: make a new TheusEngine to run tasks"
                raise SessionClosedError(msg)
            self._numbers += 1
            task.number = self._numbers
            if not attended:
                self._unattended.add(task.number)
                if task.deadline is not None:
                    heapq.heappush(self._deadlines, (task.deadline, task.number, task))
            self._pending.append(task)
            deliveries = self._assign()
        self._deliver(deliveries)
        if not attended:
            self._want_helper()
            if task.deadline is not None:
                self._poke()

    def spin(self, task: Task) -> None:
        """Poll for the outcome of a task measured to be short, for less than a wake-up takes.

        Not with more busy workers than there are cores for them and this thread.
        """
        with self._lock:
            busy = sum(bool(worker.queue) for worker in self._distinct())
            if self._estimate(task) >= _SPIN_S or busy >= _CORES:
                return
        limit = time.perf_counter() + _SPIN_S
        while not task.done and time.perf_counter() < limit:
            self.pump(0.0)

    def attach(self, loop: asyncio.AbstractEventLoop) -> None:
        """Let `loop` move tasks forward whenever a worker has news."""
        if loop not in self._loops:
            loop.add_reader(self._epoll.fileno(), self.pump, 0.0)
            self._loops.add(loop)

    def _detach(self, loop: asyncio.AbstractEventLoop) -> None:
        if loop.is_closed():
            return
        descriptor = self._epoll.fileno()
        if loop.is_running() and loop is not _running_loop():
            loop.call_soon_threadsafe(loop.remove_reader, descriptor)
        else:
            loop.remove_reader(descriptor)

    def cancel(self, task: Task) -> None:
        """Stop `task` wherever it is; its outcome is the caller's to set."""
        with self._lock:
            if not task.done:
                self._withdraw(task)
                task.done = True
                self._unattended.discard(task.number)
        self._want_helper()
        self._poke()

    def time_out(self, task: Task) -> None:
        """Stop `task` and fail it with TimeoutError, unless it is done."""
        with self._lock:
            late = self._late(task)
        self._deliver(late)
        self._want_helper()
        self._poke()

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
        deadline = None if timeout is None else time.monotonic() + timeout
        if future.done():
            return
        with self._news:
            self._waiters += 1
            self._poke()
        try:
            while not future.done():
                if not self._lead(future.done, deadline):
                    return
        finally:
            with self._news:
                self._waiters -= 1
                self._news.notify_all()

    def finish(self) -> None:
        """Let everything that was submitted end."""
        while True:
            with self._lock:
                queued = [task for worker in self._distinct() for task in worker.queue]
                if all(task.done for task in (*queued, *self._pending)):
                    return
            self.pump(0.05)

    def close(self) -> None:
        """End the workers; tasks that are not done fail."""
        with self._lock:
            if self._closed:
                return
            self._closed = True
            tasks = list(self._pending)
            workers = self._distinct()
            for worker in workers:
                tasks += worker.queue
                with contextlib.suppress(OSError, EOFError):
                    worker.shut_down()
            self._pending.clear()
            self._workers.clear()
            self._unattended.clear()
        error = SessionClosedError("the engine was closed before this task ended")
        self._deliver([(task, False, error) for task in tasks])
        _end(workers)
        for loop in list(self._loops):
            self._detach(loop)
        with self._news_lock:
            self._news.notify_all()
            self._help_wanted.notify_all()
        self._poke()

    def abandon(self) -> None:
        """Forget the workers in a forked child: they are the parent's."""
        self._lock = threading.RLock()
        self._news_lock = threading.Lock()
        self._news = threading.Condition(self._news_lock)
        self._help_wanted = threading.Condition(self._news_lock)
        self._closed = True
        self._helper = None
        self._pending.clear()
        for worker in self._distinct():
            worker.abandon()
        self._workers.clear()
        self._epoll.close()

    # --- moving things forward ---

    def pump(self, timeout: float | None) -> None:
        """Wait up to `timeout` seconds for news of the workers, and act on it."""
        try:
            events = self._epoll.poll(timeout)
        except ValueError:  # closed in a forked child
            return
        deliveries: list[Delivery] = []
        with self._lock:
            for descriptor, mask in events:
                if descriptor == self._wake:
                    # Only the leader takes the news: it was meant for nobody else.
                    if self._leader == threading.get_ident():
                        self._drain_wake()
                    continue
                worker = self._workers.get(descriptor)
                if worker is not None:
                    deliveries += self._attend(worker, descriptor, mask)
            deliveries += self._expire()
            deliveries += self._assign()
            self._send_releases()
        self._deliver(deliveries)

    def _attend(self, worker: WorkerProcess, descriptor: int, mask: int) -> list[Delivery]:
        deliveries: list[Delivery] = []
        gone = descriptor == worker.pidfd
        try:
            if mask & select.EPOLLOUT:
                worker.wants_write = not worker.channel.flush()
                self._watch_writes(worker)
            while (frame := worker.channel.try_recv()) is not None:
                deliveries += self._on_frame(worker, *frame)
        except (EOFError, OSError):
            gone = True
        except ProtocolError:
            worker.process.kill()
            gone = True
        if gone:
            deliveries += self._bury(worker)
        return deliveries

    def _on_frame(
        self, worker: WorkerProcess, kind: int, fields: tuple[int, ...], attachments: list[bytes]
    ) -> list[Delivery]:
        if kind == _theus.KIND_HELLO:
            worker.ready = True
            self._failed_starts = 0
            return []
        if not worker.queue or worker.queue[0].number != fields[0]:
            msg = f"worker {worker.pid} answered task {fields[0]}, which is not the one it runs"
            raise ProtocolError(msg)
        task = worker.queue.popleft()
        self._measure(task, fields[1] / 1e9)
        if kind == _theus.KIND_RESULT:
            return [(task, True, attachments[0])]
        if fields[2] == _CAUSE_STALE and not task.done:
            try:
                task.reference = self._references.send_by_value(task.reference.function)
            except UnpicklableError as error:
                return [(task, False, error)]
            self._pending.appendleft(task)
            return []
        return [(task, False, tuple(attachments))]

    def _deliver(self, deliveries: list[Delivery]) -> None:
        for task, success, value in deliveries:
            if not task.done:
                self._finish(task, success=success, value=value)
        if deliveries:
            with self._news:
                self._news.notify_all()

    def _finish(self, task: Task, *, success: bool, value: Any) -> None:
        task.done = True
        self._unattended.discard(task.number)
        try:
            if success:
                task.outcome.resolve(wire.loads(value))
            else:
                task.outcome.fail(_remote(*value) if isinstance(value, tuple) else value)
        except Exception as error:  # noqa: BLE001 - loading runs code of the user's classes
            task.outcome.fail(error)
        task.pins = []

    # --- workers ---

    def _assign(self) -> list[Delivery]:
        """Send pending tasks to workers that should have them; start workers while there may be."""
        refused: list[Delivery] = []
        while self._pending and not self._closed:
            try:
                worker = self._choose(self._pending[0])
            except OSError as error:
                refused += [(task, False, error) for task in self._pending]
                self._pending.clear()
                break
            if worker is None:
                break
            task = self._pending.popleft()
            if task.done or not task.outcome.start():
                self._unattended.discard(task.number)
                continue
            try:
                worker.send(task)
            except (OSError, EOFError):
                if task not in worker.queue:
                    self._pending.appendleft(task)
                refused += self._bury(worker)
            else:
                self._watch_writes(worker)
        return refused

    def _choose(self, task: Task) -> WorkerProcess | None:
        workers = self._distinct()
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
            if len(worker.queue) >= _MAX_QUEUE:
                continue
            backlog = wanted + self._backlog(worker)
            if backlog < least:
                best, least = worker, backlog
        return best

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

    def _measure(self, task: Task, duration: float) -> None:
        # Rises at once and falls slowly: one long run is enough to stop queueing behind it.
        key = hash(task.reference.definition)
        if len(self._durations) >= _MAX_MEASURED:
            self._durations.clear()
        self._durations[key] = max(duration, 0.9 * self._durations.get(key, duration))

    def _start(self) -> WorkerProcess:
        worker = WorkerProcess(self._session, self._threads)
        for descriptor in (worker.channel.fileno(), worker.pidfd):
            self._workers[descriptor] = worker
            self._epoll.register(descriptor, select.EPOLLIN)
        return worker

    def _distinct(self) -> list[WorkerProcess]:
        return list(dict.fromkeys(self._workers.values()))

    def _watch_writes(self, worker: WorkerProcess) -> None:
        mask = select.EPOLLIN | (select.EPOLLOUT if worker.wants_write else 0)
        if mask != worker.watched:
            self._epoll.modify(worker.channel.fileno(), mask)
            worker.watched = mask

    def _bury(self, worker: WorkerProcess) -> list[Delivery]:
        """Fail the task a dead worker ran, send the others again, and forget the worker."""
        for descriptor in (worker.channel.fileno(), worker.pidfd):
            if self._workers.pop(descriptor, None) is not None:
                self._epoll.unregister(descriptor)
        deliveries: list[Delivery] = []
        with contextlib.suppress(EOFError, OSError, ProtocolError):
            while (frame := worker.channel.try_recv()) is not None:
                deliveries += self._on_frame(worker, *frame)
        try:
            status = worker.reap(_GRACE_S)
        except subprocess.TimeoutExpired:  # it closed its socket and lives on
            worker.process.kill()
            status = worker.reap()
        running, trace = worker.control.running, worker.trace()
        unstarted: list[Task] = []
        for task in worker.queue:
            if task.number == running:
                error = WorkerDiedError(task.reference.name, worker.pid, status, trace)
                deliveries.append((task, False, error))
            else:
                unstarted.append(task)
        self._pending.extendleft(reversed(unstarted))
        worker.queue.clear()
        if not worker.ready:
            deliveries += self._count_failed_start(worker, status, trace)
        worker.close()
        return deliveries

    def _count_failed_start(self, worker: WorkerProcess, status: int, trace: str) -> list[Delivery]:
        self._failed_starts += 1
        if self._failed_starts < _MAX_FAILED_STARTS:
            return []
        self._failed_starts = 0
        failed = [
            (task, False, WorkerDiedError(task.reference.name, worker.pid, status, trace))
            for task in self._pending
        ]
        self._pending.clear()
        return failed

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
        for worker in self._distinct():
            if worker.queue and worker.queue[0] is task:
                self._interrupt(worker, task)

    def _interrupt(self, worker: WorkerProcess, task: Task) -> None:
        """Ask the worker to end `task`: it looks at the page before a task and at a SIGINT."""
        worker.control.cancel = task.number
        if worker.control.running == task.number:
            signal.pidfd_send_signal(worker.pidfd, signal.SIGINT)
        deadline = time.monotonic() + _GRACE_S
        heapq.heappush(self._stops, (deadline, worker.pidfd, task.number))

    def _expire(self) -> list[Delivery]:
        """Time out what is late, and kill the workers that did not stop in time."""
        now = time.monotonic()
        late: list[Delivery] = []
        while self._deadlines and self._deadlines[0][0] <= now:
            late += self._late(heapq.heappop(self._deadlines)[2])
        while self._stops and self._stops[0][0] <= now:
            _, descriptor, number = heapq.heappop(self._stops)
            worker = self._workers.get(descriptor)
            if worker is None or not worker.queue or worker.queue[0].number != number:
                continue
            if worker.ready:
                signal.pidfd_send_signal(worker.pidfd, signal.SIGKILL)
        return late

    def _next_timeout(self) -> float | None:
        with self._lock:
            moments = [heap[0][0] for heap in (self._deadlines, self._stops) if heap]
        return max(0.0, min(moments) - time.monotonic()) if moments else None

    # --- who moves things forward ---

    def _lead(self, done: Callable[[], bool], deadline: float | None) -> bool:
        """Lead until `done`, or wait for the leading thread's news; False when out of time."""
        with self._news:
            if self._leader is not None:
                left = None if deadline is None else deadline - time.monotonic()
                if left is not None and left <= 0:
                    return False
                if not done():
                    self._news.wait(left)
                return True
            self._leader = threading.get_ident()
        try:
            while not done():
                timeouts = [self._next_timeout()]
                if deadline is not None:
                    timeouts.append(deadline - time.monotonic())
                    if timeouts[1] is not None and timeouts[1] <= 0:
                        return False
                known = [timeout for timeout in timeouts if timeout is not None]
                self.pump(min(known) if known else None)
            return True
        finally:
            with self._news:
                self._leader = None
                self._drain_wake()
                self._news.notify_all()

    def _poke(self) -> None:
        """Wake the thread that leads, to look again at what it should do."""
        if self._leader not in (None, threading.get_ident()):
            os.eventfd_write(self._wake, 1)

    def _drain_wake(self) -> None:
        with contextlib.suppress(BlockingIOError):
            os.eventfd_read(self._wake)

    def _want_helper(self) -> None:
        if not (self._unattended or self._stops):
            return
        if self._helper is None:
            with self._lock:
                if self._helper is None and not self._closed:
                    self._helper = threading.Thread(
                        target=self._help, name="theus-dispatcher", daemon=True
                    )
                    self._helper.start()
        elif self._help_sleeps:
            with self._news_lock:
                self._help_wanted.notify()

    def _help(self) -> None:
        """Lead while there are futures nobody waits for, but only if nobody waits.

        Whoever submits usually waits next, so this thread lets some time pass before it looks, and
        more and more while others wait: waking it for each task would cost more than the task.
        """

        def wanted() -> bool:
            return self._closed or bool(self._unattended or self._stops)

        def idle() -> bool:
            return self._closed or self._waiters > 0 or not wanted()

        patience = _LINGER_S
        while not self._closed:
            with self._news_lock:
                self._help_sleeps = True
                self._help_wanted.wait_for(wanted)
                self._help_sleeps = False
            time.sleep(patience)
            if idle():
                patience = min(2 * patience, _PATIENCE_S)
            else:
                patience = _LINGER_S
                self._lead(idle, None)

    def _send_releases(self) -> None:
        numbers: list[int] = []
        while self._released:
            numbers.append(self._released.popleft())
        if numbers:
            for worker in self._distinct():
                with contextlib.suppress(OSError, EOFError):
                    worker.release(tuple(numbers))
                    self._watch_writes(worker)


def _remote(data: bytes, traceback: bytes) -> BaseException:
    error = wire.loads(data)
    error.__cause__ = RemoteTraceback(traceback.decode())
    return error


def _running_loop() -> asyncio.AbstractEventLoop | None:
    try:
        return asyncio.get_running_loop()
    except RuntimeError:
        return None


def _end(workers: list[WorkerProcess]) -> None:
    """Wait shortly for workers that were asked to end, kill those that do not, and reap them."""
    deadline = time.monotonic() + _GRACE_S * 5
    for worker in workers:
        busy = bool(worker.queue) or not worker.ready
        try:
            worker.reap(0 if busy else max(0.0, deadline - time.monotonic()))
        except subprocess.TimeoutExpired:
            worker.process.kill()
            worker.reap()
        worker.close()
