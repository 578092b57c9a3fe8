"""What workers tell while they run: lines for the log, and how far a task is."""

from __future__ import annotations

import logging
from contextlib import suppress
from typing import TYPE_CHECKING, NamedTuple

from theus import _theus
from theus.errors import ProtocolError
from theus.native_tasks import Progress

if TYPE_CHECKING:
    from theus.tasks import Task
    from theus.worker_process import Frame, WorkerProcess

__all__ = ["KINDS", "News", "read"]

KINDS = frozenset({_theus.KIND_LOG, _theus.KIND_PROGRESS})
_LEVELS = frozenset({logging.DEBUG, logging.INFO, logging.WARNING, logging.ERROR})

_workers_log = logging.getLogger("theus.worker")
_log = logging.getLogger("theus")


class News(NamedTuple):
    """Something a worker told, to be passed on without the dispatcher's lock.

    Attributes
    ----------
    pid : int
        The worker.
    task : Task or None
        The one that runs; None if that was over when a thread of it told this.
    level : int
        That of a line for the log; 0 for a progress.
    said : str or Progress
        The line, or the progress.
    """

    pid: int
    task: Task | None
    level: int
    said: str | Progress

    def tell(self) -> None:
        """Pass it on to the log, or to who wants to know how far the task is.

        What a handler of the log or a callback raises is logged: those who wait for other tasks in
        this thread have nothing to do with it.
        """
        name = None if self.task is None else self.task.reference.name
        try:
            self._tell(name)
        except Exception:  # noqa: BLE001 - it is the user's code
            with suppress(Exception):  # the same handler, perhaps
                is_line = isinstance(self.said, str)
                who = "a handler of the logger theus.worker" if is_line else "on_progress"
                _log.exception("%s raised for what %s told", who, name)

    def _tell(self, name: str | None) -> None:
        if isinstance(self.said, str):
            more = {"task": name, "pid": self.pid}
            _workers_log.log(self.level, "%s", self.said, extra=more)
        elif self.task is not None and not self.task.done:
            self.task.outcome.advance(self.said)
            if self.task.on_progress is not None:
                self.task.on_progress(self.said)


def read(worker: WorkerProcess, frame: Frame) -> News:
    """Return what a LOG or PROGRESS frame tells.

    Raises
    ------
    ProtocolError
        If a line has no level that there is.
    """
    kind, fields, attachments = frame
    text = attachments[0].decode(errors="replace")
    # A thread that a task has left behind may be late: its line is for the log all the same.
    runs = bool(worker.queue) and worker.queue[0].number == fields[0]
    task = worker.queue[0] if runs else None
    if kind == _theus.KIND_PROGRESS:
        return News(worker.pid, task, 0, Progress(fields[1], fields[2] or None, text))
    if fields[1] not in _LEVELS:
        msg = f"a line for the log has level 10, 20, 30 or 40, not {fields[1]}"
        raise ProtocolError(msg)
    return News(worker.pid, task, fields[1], text)
