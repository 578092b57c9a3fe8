"""One worker process as its owner sees it: starting it, telling it what it does not know."""

from __future__ import annotations

import fcntl
import json
import os
import select
import signal
import subprocess
import sys
import time
from collections import OrderedDict, deque
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

from theus import _theus
from theus._theus import Channel, Control

if TYPE_CHECKING:
    from theus._theus import Segment, Session, Transient
    from theus.functions import Reference
    from theus.program import Program
    from theus.state import State
    from theus.tasks import Task

__all__ = ["Frame", "StartFailure", "WorkerProcess"]

_MAX_FUNCTIONS = 256
_MAX_FIELDS = 65_535  # a frame counts them in 16 bits
_STDERR = 2
_START_S = 60.0
_EXIT_S = 5.0
_TRACE_BYTES = 1 << 20
_SHOWN_BYTES = 8192
_PAGE_BYTES = os.sysconf("SC_PAGE_SIZE")
Frame = tuple[int, tuple[int, ...], list[bytes]]
"""Kind, fields and attachments."""


class StartFailure(NamedTuple):
    """Why a worker ended before it was ready.

    Attributes
    ----------
    status : int
        Its exit code, negative for a signal.
    stderr : str
        What it wrote.
    broken : Exception or None
        Why it was ended, if what it sent could not be taken.
    late : bool
        Whether its time was over.
    """

    status: int
    stderr: str
    broken: Exception | None
    late: bool


class WorkerProcess:
    """A worker: its process, its socket, and what has been sent to it.

    Attributes
    ----------
    queue : deque of Task
        Sent and not finished, in the order they run. Which one runs, `control` tells.
    ready : bool
        Whether it has said hello.
    failure : StartFailure or None
        Why it never did, if it has ended.
    wants_write : bool
        Whether bytes wait for its socket to take them.
    watched : int
        The epoll events its socket is registered for.
    backlog_s : float
        How many seconds the tasks in its queue were thought to take when they were sent.
    finished : int
        How many tasks it has run.
    retiring : bool
        Whether it gets no more tasks, and ends when it has run those it has.
    deadline : float or None
        When it is killed, by the monotonic clock, unless it is ready, or gone, by then.
    program : Program
        What it runs.
    seat : int
        Its place at the session's budget.
    parts, outputs, refused
        What came for its next result, and why one of its outputs could not be taken over.
    """

    def __init__(self, session: Session, seat: int, threads: int, program: Program) -> None:
        self.program = program
        self.seat = seat
        self.queue: deque[Task] = deque()
        self.ready = False
        self.failure: StartFailure | None = None
        self.parts: Transient | None = None
        self.outputs: list[Segment] = []
        self.refused: Exception | None = None
        self.wants_write = False
        self.watched: int = select.EPOLLIN
        self._sys_path: list[str] = []
        self._states: set[int] = set()
        self._functions: OrderedDict[object, tuple[int, Reference]] = OrderedDict()
        self._next_function = 1
        self._flushed = True
        self.backlog_s = 0.0
        self.finished = 0
        self.retiring = False
        self.deadline: float | None = time.monotonic() + _START_S
        with ExitStack() as inherited, ExitStack() as failed:
            self.channel, channel_fd = Channel.pair()
            inherited.callback(os.close, channel_fd)
            failed.callback(self.channel.close)
            self.control, control_fd = Control.create()
            inherited.callback(os.close, control_fd)
            self.channel.use_page(self.control, "owner")
            owner_fd = os.pidfd_open(os.getpid())
            inherited.callback(os.close, owner_fd)
            budget_fd = session.budget_fd()
            inherited.callback(os.close, budget_fd)
            self._trace = _make_trace()
            failed.callback(os.close, self._trace)
            stderr_fd = _copy_stderr()
            inherited.callback(os.close, stderr_fd)
            launch = {
                "session": session.id,
                "seat": seat,
                "threads": threads,
                "channel": channel_fd,
                "control": control_fd,
                "owner": owner_fd,
                "budget": budget_fd,
                "trace": self._trace,
                "stderr": stderr_fd,
            }
            descriptors = channel_fd, control_fd, owner_fd, budget_fd, self._trace, stderr_fd
            self.process = program.spawn(json.dumps(launch), descriptors, self._trace, threads)
            failed.callback(self.process.wait)
            failed.callback(self.process.kill)
            self.pid = self.process.pid
            self.pidfd = os.pidfd_open(self.pid)
            failed.pop_all()

    def call(self, task: Task, limit: float) -> Frame | Literal[False] | None:
        """Send `task` if nothing has to go before it, and poll for its outcome.

        False if something has, or the worker is not idle; else what ``Channel.call`` returns.
        """
        epoch = self.channel.epoch  # before what it knows is looked up
        inputs, function = task.inputs, self.number_of(task)
        if function is None or inputs is None or inputs.parts is not None:
            return False
        fields = task.number, task.state.version, function, task.call
        return self.channel.call(self.queue, task, fields, inputs.data, limit, epoch)

    def number_of(self, task: Task) -> int | None:
        """Return the number of the function of `task`, if nothing has to be sent before it."""
        known = self._functions.get(task.reference.identity)
        if (
            known is None
            or self.wants_write
            or task.state.version not in self._states
            or (self.program.takes_pickles and self._sys_path != sys.path)
        ):
            return None
        return known[0]

    @property
    def known_path(self) -> list[str]:
        """The ``sys.path`` that the worker has."""
        return self._sys_path

    def send(self, task: Task) -> None:
        """Send `task`, and before it the state and the function if they are new to the worker.

        To be followed by :meth:`flush`.
        """
        self._send_path()
        self._send_state(task.state)
        function = self._send_function(task.reference)
        assert task.inputs is not None  # noqa: S101 - it has an outcome once they are gone
        self._send_parts(task.inputs.parts)
        fields = task.number, task.state.version, function, task.call
        if self.queue:
            self.channel.queue(_theus.KIND_TASK, fields, (task.inputs.data,))
            self._flushed = False
        else:
            self._send(_theus.KIND_TASK, fields, (task.inputs.data,))
        self.queue.append(task)

    def flush(self) -> None:
        """Write what :meth:`send` has queued: tasks behind others wait for each other first."""
        if not self._flushed:
            self._flushed = True
            self.wants_write = not self.channel.flush()

    def announce(self, state: State) -> None:
        """Send `state` ahead of any task, if the worker has nothing to do and it is small."""
        resting = self.ready and not (self.queue or self.retiring or self.wants_write)
        if resting and state.is_small():
            self._send_state(state)

    def take_ended(self) -> Task:
        """Return the task whose outcome is here, and let go of a large function after its last."""
        task = self.queue.popleft()
        reference = task.reference
        if reference.parts is not None and all(t.reference is not reference for t in self.queue):
            with suppress(OSError, EOFError):  # a worker that has just died needs no telling
                self._forget_function(reference.identity)
        return task

    def take_arrived(self) -> tuple[Transient | None, list[Segment], Exception | None] | None:
        """Return what came for the result that is here, if something did; make room for more."""
        arrived = self.parts, self.outputs, self.refused
        if arrived == (None, [], None):
            return None
        self.parts, self.outputs, self.refused = None, [], None
        return arrived

    def release(self, numbers: tuple[int, ...]) -> None:
        """Tell the worker which segments it need not keep mapped."""
        for start in range(0, len(numbers), _MAX_FIELDS):
            self._send(_theus.KIND_RELEASE, numbers[start : start + _MAX_FIELDS], ())

    def shut_down(self) -> None:
        """Ask the worker to end, for which it has some seconds."""
        self.deadline = time.monotonic() + _EXIT_S
        self._send(_theus.KIND_SHUTDOWN, (), ())

    def trace(self) -> str:
        """Return what faulthandler wrote at a fatal signal; its stderr, if it was not ready yet."""
        written = os.pread(self._trace, _TRACE_BYTES, 0).rstrip(b"\0")
        return written[-_SHOWN_BYTES:].decode(errors="replace").strip()

    def anonymous_bytes(self) -> int:
        """Return how much memory the process has for itself: none of what it maps from files."""
        pages = Path(f"/proc/{self.pid}/statm").read_bytes().split()
        return (int(pages[1]) - int(pages[2])) * _PAGE_BYTES

    def is_dead(self) -> bool:
        """Whether the process has ended; it is not reaped by this."""
        if self.process.returncode is not None:
            return True
        flags = os.WEXITED | os.WNOHANG | os.WNOWAIT
        try:
            return os.waitid(os.P_PIDFD, self.pidfd, flags) is not None
        except ChildProcessError:  # somebody waits for every child
            return True

    def reap(self, timeout: float) -> int:
        """Wait for the process, then kill it; its exit code, negative for a signal."""
        try:
            return self.process.wait(timeout)
        except subprocess.TimeoutExpired:
            self.process.kill()
        try:
            return self.process.wait(_EXIT_S)
        except subprocess.TimeoutExpired:  # the kernel has it, in a driver say, and does not let go
            return -signal.SIGKILL

    def close(self) -> None:
        """Close this side's descriptors, and let go of what came for a result that never will."""
        self.take_arrived()
        self.channel.close()
        for descriptor in (self.pidfd, self._trace):
            os.close(descriptor)

    def abandon(self) -> None:
        """Let go of the worker in a forked child: it is the parent's."""
        self.process.returncode = 0  # nothing to wait for, and no warning that it still runs
        self.close()

    def _send(self, kind: int, fields: tuple[int, ...], attachments: tuple[bytes, ...]) -> None:
        self.wants_write = not self.channel.send(kind, fields, attachments)

    def _send_parts(self, parts: Transient | None) -> None:
        if parts is not None:
            self.wants_write = not self.channel.send_parts(parts)

    def _send_path(self) -> None:
        if self._sys_path == sys.path or not self.program.takes_pickles:
            return
        self._sys_path = list(sys.path)
        places: list[Any] = [item for item in sys.path if isinstance(item, str | os.PathLike)]
        setup: dict[str, Any] = {"sys_path": [os.fspath(p) or str(Path.cwd()) for p in places]}
        setup["environ"] = {"PYTHONPATH": os.environ.get("PYTHONPATH")}
        self._send(_theus.KIND_SETUP, (), (json.dumps(setup).encode(),))

    def _send_state(self, state: State) -> None:
        if state.version in self._states:
            return
        older = [version for version in self._states if version < state.version]
        base = max(older) if older else min(self._states, default=None)
        sent = state.sent(base, as_plain=not self.program.takes_pickles)
        for message in sent.values:
            self._send_parts(message.parts)
        pickles = (message.data for message in sent.values)
        self._send(_theus.KIND_STATE, (state.version,), (sent.entries, sent.domain_keys, *pickles))
        # Only now: the state may have been told by what differs from one of these.
        in_flight = {task.state.version for task in self.queue}
        self.channel.renew()
        for version in self._states - in_flight:
            self._send(_theus.KIND_FORGET_STATE, (version,), ())
        self._states &= in_flight
        self._states.add(state.version)

    def _send_function(self, reference: Reference) -> int:
        identity = reference.identity
        known = self._functions.get(identity)
        if known is not None:
            self._functions.move_to_end(identity)
            return known[0]
        number = self._next_function
        self._next_function += 1
        # The reference is kept with its number: its pins live as long as the worker may use it.
        self._functions[identity] = (number, reference)
        self._send_parts(reference.parts)
        self._send(_theus.KIND_FUNCTION, (number, reference.form), (reference.definition,))
        if len(self._functions) > _MAX_FUNCTIONS:
            self._forget_function(next(iter(self._functions)))
        return number

    def _forget_function(self, identity: object) -> None:
        self.channel.renew()
        number, _ = self._functions.pop(identity)
        self._send(_theus.KIND_FORGET_FUNCTION, (number,), ())


def _make_trace() -> int:
    """Return a file in memory of fixed size, so that no worker fills the memory by it."""
    file = os.memfd_create("theus-trace", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    os.ftruncate(file, _TRACE_BYTES)
    fcntl.fcntl(file, fcntl.F_ADD_SEALS, fcntl.F_SEAL_GROW | fcntl.F_SEAL_SHRINK)
    return file


def _copy_stderr() -> int:
    try:
        return os.dup(_STDERR)
    except OSError:  # this process has none
        return os.open(os.devnull, os.O_WRONLY)
