"""What the death of a worker means for the tasks that it had."""

from __future__ import annotations

from typing import TYPE_CHECKING

from theus.contracts import contract_of
from theus.errors import PoisonTaskError, ProtocolError, WorkerDiedError

if TYPE_CHECKING:
    from theus.tasks import Task
    from theus.worker_process import WorkerProcess

__all__ = ["settle"]

_MAX_SPARED = 5
"""How many workers may die with a task first in line, which none of them had begun."""


def settle(
    worker: WorkerProcess, status: int, broken: Exception | None
) -> tuple[list[tuple[Task, Exception]], list[Task]]:
    """Decide which of a dead worker's tasks fail, and which are sent again.

    The task that it ran fails, or is sent again if it was declared safe to be; the others had not
    begun. A worker that dies between two tasks is nobody's fault, but not for ever.

    Parameters
    ----------
    worker : WorkerProcess
        It has ended; its queue is as it was then.
    status : int
        Its exit code, negative for a signal.
    broken : Exception or None
        Why it was ended, if what it sent could not be taken.

    Returns
    -------
    failed : list of (Task, Exception)
    again : list of Task
        In the order in which they were sent.
    """
    running, trace = worker.control.running, worker.trace()
    failed: list[tuple[Task, Exception]] = []
    again: list[Task] = []
    for place, task in enumerate(worker.queue):
        begun = task.number == running
        if place == 0 and not begun and (worker.ready or broken is not None):
            task.spared += 1
        error: Exception | None = None
        if place == 0 and broken is not None and (begun or task.spared > 1):
            error = _blame(worker, task, broken)
        elif begun or task.spared > _MAX_SPARED:
            error = _death(task, WorkerDiedError(task.reference.name, worker.pid, status, trace))
        if error is None:
            again.append(task)
        else:
            failed.append((task, error))
    return failed, again


def _death(task: Task, error: WorkerDiedError) -> WorkerDiedError | None:
    """Count that `task` had a worker die; what it fails with, or None if it is sent again."""
    task.deaths = (*task.deaths, error)
    retries = contract_of(task.reference.function).retries
    if not task.done and len(task.deaths) <= retries:
        return None
    return PoisonTaskError(task.reference.name, task.deaths) if retries else error


def _blame(worker: WorkerProcess, task: Task, broken: Exception) -> Exception:
    msg = (
        f"worker {worker.pid} was ended while it had {task.reference.name}: "
        f"what it sent cannot be taken: {broken}"
    )
    error = MemoryError(msg) if isinstance(broken, MemoryError) else ProtocolError(msg)
    error.__cause__ = broken
    return error
