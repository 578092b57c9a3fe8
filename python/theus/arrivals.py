"""Frames from workers: what each means for the task that its worker runs."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

from theus import _theus, news, wire
from theus.errors import ProtocolError, TheusError, UnpicklableError
from theus.hello import Hello
from theus.news import News
from theus.tasks import Task

if TYPE_CHECKING:
    from collections import deque
    from collections.abc import Callable

    from theus._theus import Channel, Segment
    from theus.functions import References
    from theus.pool import WorkerPool
    from theus.program import Program
    from theus.stopping import Stopping
    from theus.worker_process import Frame, WorkerProcess

__all__ = ["Arrivals", "Delivery", "Failure"]

_CAUSE_STALE = 2
_NOTHING_ARRIVED: tuple[None, tuple[()], None] = (None, (), None)


class Failure(NamedTuple):
    """What an ERROR frame says.

    Attributes
    ----------
    cause : int
        As in the frame.
    message : Message
        The exception.
    traceback : bytes
        Its text.
    """

    cause: int
    message: wire.Message
    traceback: bytes


Delivery = tuple[Task, bool, Any] | News
"""What is passed on without the lock: news, or a task with whether it succeeded and its outcome.

The outcome is the data of a result, a `Failure` or an exception.
"""


class Arrivals:
    """Takes the frames of a program's workers; called with the dispatcher's lock held.

    Parameters
    ----------
    program : Program
        What the workers run.
    pool : WorkerPool
        Is told when one is ready, and when a task has ended.
    pending : deque of Task
        Where a task goes that has to be sent again.
    stopping : Stopping
        Ends a task that was withdrawn, and is next.
    references : References
        Makes a function go by value if a worker cannot import it.
    adopt : callable
        Takes over the output that a worker has just sent on its channel, given that and its seat.
    """

    def __init__(
        self,
        program: Program,
        pool: WorkerPool,
        pending: deque[Task],
        stopping: Stopping,
        *,
        references: References,
        adopt: Callable[[Channel, int], Segment],
    ) -> None:
        self._program = program
        self._pool = pool
        self._pending = pending
        self._stopping = stopping
        self._references = references
        self._adopt = adopt

    def take(self, worker: WorkerProcess, frame: Frame, deliveries: list[Delivery]) -> None:
        """Act on a frame, and add to `deliveries` what comes of it.

        Raises
        ------
        ProtocolError, CorruptSegmentError, MemoryError, NativeWorkerError
            If the worker has to be ended.
        """
        kind = frame[0]
        if kind in news.KINDS:
            deliveries.append(news.read(worker, frame))
            return
        if kind in (_theus.KIND_HELLO, _theus.KIND_PARTS, _theus.KIND_OUTPUT):
            self._prepare(worker, frame)
            return
        if kind not in (_theus.KIND_RESULT, _theus.KIND_ERROR):
            msg = f"frames of kind {kind} go from the owner to a worker"
            raise ProtocolError(msg)
        self._end(worker, frame, deliveries)

    def _end(self, worker: WorkerProcess, frame: Frame, deliveries: list[Delivery]) -> None:
        """Take a task's answer."""
        kind, fields, attachments = frame
        arrived = worker.take_arrived()
        queue = worker.queue
        if not queue or queue[0].number != fields[0]:
            msg = f"it answered task {fields[0]}, which is not the one it runs"
            raise ProtocolError(msg)
        task = worker.take_ended()
        if queue and queue[0].done:
            # Withdrawn while it waited behind this one: the worker may have begun it.
            self._stopping.interrupt(worker, queue[0])
        self._pool.note_finished(worker, task, fields[1] / 1e9)
        parts, outputs, refused = arrived or _NOTHING_ARRIVED
        if refused is not None:
            deliveries.append((task, False, refused))
        elif kind == _theus.KIND_RESULT:
            data = attachments[0]
            message = wire.Message(data, parts, outputs=outputs) if arrived else data
            deliveries.append((task, True, message))
        elif not task.done and self.is_stale(task, fields[2]):
            try:
                self.send_by_value(task)
            except UnpicklableError as error:
                deliveries.append((task, False, error))
            else:
                self._pending.appendleft(task)
        else:
            message = wire.Message(attachments[0], parts, outputs=outputs)
            deliveries.append((task, False, Failure(fields[2], message, attachments[1])))

    @staticmethod
    def is_stale(task: Task, cause: int) -> bool:
        """Whether an ERROR of this cause asks for the function by value."""
        return cause == _CAUSE_STALE and not task.is_native

    def send_by_value(self, task: Task) -> None:
        """Let `task` be sent with its function by value from now on."""
        task.reference = self._references.send_by_value(task.reference.function)

    def _prepare(self, worker: WorkerProcess, frame: Frame) -> None:
        """Take what comes before a worker's results."""
        kind, fields, attachments = frame
        if kind == _theus.KIND_HELLO:
            self._program.greet(Hello.parse(attachments[0]))
            self._pool.note_ready(worker)
        elif kind == _theus.KIND_PARTS:
            worker.parts = worker.channel.take_parts(fields)
        else:
            try:
                worker.outputs.append(self._adopt(worker.channel, worker.seat))
            except (TheusError, OSError) as error:  # no space for a copy, or the engine is closing
                worker.refused = error
