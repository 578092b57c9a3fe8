"""The front of the core's dispatcher: calls become tasks, and tasks futures.

::

    execute / submit / map                                   _theus.Dispatcher (Rust)
         |                                                   queues, workers, deadlines
         |  codec: inputs -> message                                  |
         +-------------- submit(program, function, snapshot, ...) --->|
         |                                                            |
         |<---- Task: done, wait, outcome, cancel --------------------+
         |  codec: outcome -> value, in the thread that asks for it   |
         v                                                            v
    future.result(), await                       Deliveries: callbacks, progress, log lines

Everything that threads share lies in the core. Nothing here takes a lock that a signal handler
could find taken.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

from theus import _theus
from theus.dispatch.deliveries import Deliveries
from theus.dispatch.futures import TaskFuture, load
from theus.dispatch.loops import until_done
from theus.dispatch.programs import (
    MAX_WORKERS,
    Native,
    NativePrograms,
    PythonProgram,
    is_native,
    refuse_function,
)
from theus.errors import SessionClosedError
from theus.protocol import ITEMS

if TYPE_CHECKING:
    import asyncio
    from collections.abc import Callable, Iterable, Mapping

    from theus._theus import Session, Task
    from theus.dispatch.programs import Program
    from theus.serialize.functions import References
    from theus.state.snapshot import State
    from theus.tasks.calls import Call, Codec
    from theus.tasks.native import NativeTask, TaskInfo

__all__ = ["Dispatcher"]

START_S = 60.0
"""How long a worker has to say hello."""

EXIT_S = 5.0
"""How long a worker has to end when it is replaced."""

HELLO_S = 10.0
"""How long the first worker of a native program has to say hello."""


class Dispatcher:
    """Sends calls to the workers of an engine.

    Parameters
    ----------
    session : Session
        Whose budget the workers share; they sweep it if this process dies.
    workers : int
        How many Python workers at most.
    cores : int
        How many cores the workers of a program share.
    codecs : tuple of Codec
        For Python workers, and for native programs.
    references : References
        Makes a function go by value if a worker cannot import it.
    max_tasks, max_rss : int or None
        When a worker is replaced.
    """

    def __init__(
        self,
        session: Session,
        workers: int,
        cores: int,
        codecs: tuple[Codec, Codec],
        references: References,
        *,
        max_tasks: int | None,
        max_rss: int | None,
    ) -> None:
        self._cores = cores
        self._limits: dict[str, int | None] = {"max_tasks": max_tasks, "max_rss": max_rss}
        self._core = _theus.Dispatcher(session, cores)

        def by_value(function: Callable[..., Any]) -> _theus.Function:
            return references.send_by_value(function).core

        self.deliveries = Deliveries(self._core, by_value)
        python, self._plain = codecs
        self._python = PythonProgram(python, workers)
        self._natives = NativePrograms()
        self._workers = workers
        self._add(self._python)

    def _add(self, program: Program) -> None:
        program.core = self._core.add_program(
            program.launch(),
            plain=program.codec.is_plain,
            pinned=program.codec.is_plain,
            workers=program.workers,
            threads=max(1, self._cores // program.workers),
            start_s=START_S,
            exit_s=EXIT_S,
            **self._limits,
        )

    # --- programs ---

    def program_of(self, fn: Callable[..., Any] | NativeTask) -> Program:
        """Return the program whose workers run `fn`.

        Raises
        ------
        NativeTaskNotFoundError
            If it is a native task that nobody has.
        TypeError
            If it is neither that nor a function.
        """
        if is_native(fn):
            return self._natives.of(fn.name)
        if not callable(fn):
            raise refuse_function(fn)
        return self._python

    def start_native(
        self, path: str, count: int, arguments: Iterable[str], environment: Mapping[str, str]
    ) -> tuple[str, ...]:
        """Start a worker of a native program, and return the tasks that it has.

        One that was started before is not started again.

        Raises
        ------
        NativeWorkerError
            If it cannot be started, is no worker, or has a task that another one has.
        ValueError
            If there would be more workers than an engine may have.
        """
        path = os.path.abspath(path)  # noqa: PTH100 - no link is to be followed
        native = Native(self._plain, path, arguments, environment, count)
        known = self._natives.known(path)
        if known is not None:
            known.check_same(native)
            return known.tasks
        if self._workers + count > MAX_WORKERS:
            msg = (
                f"an engine has up to {MAX_WORKERS} workers of all programs together: "
                f"there are {self._workers}, and {count} more are asked for"
            )
            raise ValueError(msg)
        self._workers += count
        try:
            registered = self._start(native)
        except BaseException:
            self._workers -= count
            raise
        if registered is not native:  # another thread started it too, and was quicker
            self._workers -= count
            self._core.remove_program(native.core)
        registered.check_same(native)
        return registered.tasks

    def _start(self, native: Native) -> Native:
        self._add(native)
        try:
            self.deliveries.start()
            first = self._core.start_first(native.core, HELLO_S)
            first.wait()
            native.hello = self._said(native, first.outcome())
            return self._natives.add(native)
        except BaseException:
            self._core.remove_program(native.core)
            raise

    def _said(self, native: Native, outcome: Any) -> tuple[str, str, list[str], list[str]]:
        """Return what the first worker said, or raise the reason why it said nothing."""
        if len(outcome) == 1:
            raise outcome[0]
        hello = self._core.hello(native.core)
        if hello is None or self._core.closed:
            msg = "the engine was closed while the native worker started"
            raise SessionClosedError(msg)
        return hello

    def tasks(self) -> dict[str, TaskInfo]:
        """Return what the native programs have, by name."""
        return self._natives.tasks()

    def takes_items(self, program: Program) -> bool:
        """Return whether the workers of `program` take several calls of a function in one task."""
        return not isinstance(program, Native) or ITEMS in program.hello[2]

    @property
    def worker_pids(self) -> list[int]:
        """The process ids of the workers that run now."""
        return self._core.worker_pids

    @property
    def traffic(self) -> tuple[int, int]:
        """How many bytes were sent to the workers that run now, and received from them."""
        return self._core.traffic

    def duration(self, program: Program, function: _theus.Function) -> float:
        """Return how many seconds a call of `function` takes; infinity if unknown."""
        return self._core.duration(program.core, function)

    def warm_up(self) -> None:
        """Have the workers start beside the caller: there will be work for them."""
        self._core.set_launch(self._python.core, self._python.launch())
        self._core.warm_up(self._python.core)

    # --- tasks ---

    def send(
        self,
        program: Program,
        call: Call,
        state: State,
        *,
        timeout: float | None = None,
        poll: bool = False,
    ) -> Task:
        """Send a call to a worker of `program`, or have it wait for one.

        With `poll`, poll for a short one's outcome for a moment.

        Raises
        ------
        SessionClosedError
            If the engine is closed.
        """
        self.deliveries.start()
        if self._core.would_start(program.core):  # with the environment of now
            self._core.set_launch(program.core, program.launch())
        progress = None
        if call.on_progress is not None:
            progress = self.deliveries.new_progress(call.function.name, call.on_progress)
        message = call.message
        task = self._core.submit(
            program.core,
            call.function,
            state.core,
            call.number,
            message.data,
            (state, message.pins),
            parts=message.parts,
            setup=program.setup(),
            weight=call.weight,
            timeout=timeout,
            progress=progress,
            poll=poll,
        )
        if progress is not None:
            self.deliveries.end_progress(progress, task)
        return task

    def submit(
        self,
        program: Program,
        call: Call,
        state: State,
        *,
        timeout: float | None = None,
        make: type[TaskFuture[Any]] = TaskFuture,
        stoppable: bool = True,
    ) -> TaskFuture[Any]:
        """Send a call and return its future."""
        task = self.send(program, call, state, timeout=timeout)
        return make(task, call.codec, call.function.name, self.deliveries, stoppable=stoppable)

    async def outcome(self, loop: asyncio.AbstractEventLoop, call: Call, task: Task) -> Any:
        """Return the result of a task, or raise its exception, from a coroutine of `loop`."""
        if not task.done:
            await until_done(loop, task)
        return result_of(call, task)

    # --- state ---

    def announce(self, state: State) -> None:
        """Let a few workers that have nothing to do see `state` before a task needs it."""
        self._core.announce(state.core, False)  # noqa: FBT003 - whether to native workers
        if self._natives and state.is_plain:
            self._core.announce(state.core, True)  # noqa: FBT003 - the same

    def release(self, number: int) -> None:
        """Tell the workers that a segment is gone."""
        self._core.release(number)

    # --- the end ---

    @property
    def busy(self) -> bool:
        """Whether something that was submitted has not ended."""
        return self._core.busy

    def finish(self) -> None:
        """Wait until everything that was submitted has ended."""
        self._core.wait_idle()

    def when_idle(self, then: Callable[[], None]) -> bool:
        """Have `then` called when everything that was submitted has ended; False if it has now."""
        self.deliveries.when_idle = then
        return self._core.tell_when_idle()

    def close(self) -> None:
        """End the workers; tasks that are not done fail. A second call waits, too."""
        self._core.close()
        self._core.wait_closed()


def result_of(call: Call, task: Task) -> Any:
    """Return the result of a task that has ended, or raise its exception; once."""
    outcome = task.outcome()
    assert outcome is not None  # noqa: S101 - it has ended, and only this loads it
    value, error = load(call.codec, call.function.name, outcome)
    task.discard()
    if error is None:
        return value
    raise error
