"""Running what is short while its caller polls: no event loop, no wake-up, hardly any Python.

::

    execute --> lane.call ----------- the same function, state and worker as a moment ago
                   | something is not as it was
                   v
                  call -------------- an idle worker that knows function and state
                   | there is none, or the task may be long
                   v
            dispatcher.submit ------- as every task goes

Each of the first two sends the task, polls for its outcome and takes it out of the worker's queue
in one step of Rust, so that an interrupt finds the queues whole. What is not answered within the
time that a wake-up takes is a task like others from then on.
"""

from __future__ import annotations

import pickle
from typing import TYPE_CHECKING, Any, Protocol

from theus import plain, wire
from theus._theus import Lane
from theus.pool import CORES
from theus.tasks import CALL_NATIVE, LoopOutcome, Task

if TYPE_CHECKING:
    from collections import deque
    from collections.abc import Callable, Iterator

    from theus.functions import Reference, References
    from theus.native_tasks import NativeTask
    from theus.pool import WorkerPool
    from theus.worker_process import Frame, WorkerProcess

__all__ = ["SPIN_S", "ShortCuts"]

SPIN_S = 60e-6
"""How long an outcome is polled for, and how long a task may take for that: what waking up does."""

_MAX_LANES = 256


class Steps(Protocol):
    """What short cuts need of the dispatcher."""

    def pump(self, timeout: float | None) -> None:
        """Wait up to `timeout` seconds for news of the workers, and act on it."""
        ...

    def look_at(self, worker: WorkerProcess, task: Task) -> None:
        """Go on with a task that `worker` was sent, without its outcome."""
        ...

    def take(self, worker: WorkerProcess, task: Task, frame: Frame) -> bool:
        """Deliver the outcome of `task`; False if it has to be sent in another way."""
        ...


class ShortCuts:
    """The ways past the dispatcher's queues.

    Parameters
    ----------
    steps : Steps
        The dispatcher.
    pool : WorkerPool
        The workers.
    references : References
        Knows what a function relies on.
    numbers : iterator of int
        Gives each task its number.
    pending : deque of Task
        While tasks wait for a worker, none goes past them.

    Attributes
    ----------
    lanes : dict of callable to Lane
        By the function that was just called.
    """

    def __init__(
        self,
        steps: Steps,
        pool: WorkerPool,
        references: References,
        numbers: Iterator[int],
        pending: deque[Task],
    ) -> None:
        self._steps = steps
        self._pool = pool
        self._references = references
        self._numbers = numbers
        self._pending = pending
        # Versions, as a state would keep its entries after they were freed.
        self._last: tuple[Reference, int] | None = None
        self.lanes: dict[Callable[..., Any] | NativeTask, Lane] = {}

    def close(self) -> None:
        """Forget the lanes, which refer back to here."""
        self.lanes.clear()

    def call(self, task: Task) -> bool:
        """Run a task that was measured to be short, while this thread polls for its outcome.

        Not with more busy workers than there are cores for them and this thread.

        Returns
        -------
        bool
            Whether the task is sent; its outcome has been delivered, or will be as that of others.
            If not, it is to be submitted.
        """
        pool = self._pool
        if (
            self._pending
            or pool.limited
            or pool.estimate(task) > SPIN_S
            or not pool.has_core_for(len(pool.busy) + 1)
        ):
            return False
        worker = pool.idle()
        if worker is None or not worker.ready:
            return False
        task.number = next(self._numbers)
        try:
            frame = worker.call(task, SPIN_S)
            if frame is False:
                return False
            if frame is None:
                self._steps.look_at(worker, task)
                return True
            if not self._steps.take(worker, task, frame):
                return False
            self._open_lane(worker, task)
        finally:
            if self._pending:  # of other threads, which found this worker busy
                self._steps.pump(0.0)
        return True

    def adopt(self, task: Task) -> None:
        """Go on with a task that a lane has sent, and that was not answered in time."""
        self.lanes.pop(task.reference.function, None)
        for worker in self._pool:
            if task in worker.queue:
                self._steps.look_at(worker, task)

    def _open_lane(self, worker: WorkerProcess, task: Task) -> None:
        """Let calls of the same function in the same state go by a lane, from the third on."""
        last, self._last = self._last, (task.reference, task.state.version)
        native = task.call == CALL_NATIVE
        watched = None if native else self._references.watched(task.reference, worker.known_path)
        epoch = worker.channel.epoch  # before what it knows is looked up
        function = worker.number_of(task)
        if last != self._last or function is None or not (native or watched):
            return
        if len(self.lanes) >= _MAX_LANES:
            self.lanes.clear()
        outcome = LoopOutcome()

        def failed(task: Task, frame: Frame) -> Any:
            self.lanes.pop(task.reference.function, None)  # its outcome is used up
            self._steps.take(worker, task, frame)
            return outcome.take() if outcome.settled else task

        nothing = plain.NOTHING if native else wire.NOTHING
        lane = Lane(
            channel=worker.channel,
            queue=worker.queue,
            pending=self._pending,
            busy=self._pool.busy,
            most_busy=CORES - 2,
            numbers=self._numbers,
            fields=(task.state.version, function, task.call),
            watched=watched,
            loads=plain.decode if native else pickle.loads,
            none=plain.NONE if native else wire.NONE,
            failed=failed,
            limit_s=SPIN_S,
            task=Task(task.reference, task.state, call=task.call, inputs=nothing, outcome=outcome),
            epoch=epoch,
        )
        self.lanes[task.reference.function] = lane
