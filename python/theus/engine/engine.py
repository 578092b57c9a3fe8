"""The engine: a heavy zone, a state, and workers that see both.

Over 450 lines, as its docstrings are the reference of the public methods.
"""

from __future__ import annotations

import asyncio
import inspect
import os
import time
from collections.abc import Callable, Coroutine, Iterable, Mapping, Sequence
from concurrent.futures import Executor, Future
from typing import TYPE_CHECKING, Any, TypeVar, overload

from theus._theus import Session
from theus.dispatch.dispatcher import Dispatcher, result_of
from theus.dispatch.futures import ItemFuture, TaskFuture
from theus.dispatch.programs import MAX_WORKERS
from theus.engine.executor import EngineExecutor
from theus.engine.heavy_zone import HeavyZone
from theus.engine.lifecycle import Closing
from theus.engine.map import MapResults
from theus.engine.validation import check_int, check_positive, check_seconds
from theus.errors import SessionClosedError
from theus.serialize.functions import References
from theus.serialize.message import Message
from theus.state.snapshot import State
from theus.state.store import StateStore
from theus.tasks.calls import PickleCodec, PlainCodec
from theus.tasks.context import ProcessContext
from theus.tasks.contract import call_with_context, contract_of
from theus.tasks.native import NativeTask, TaskInfo

if TYPE_CHECKING:
    from types import TracebackType
    from typing import Self


__all__ = ["TheusEngine"]

T = TypeVar("T")

_GIVE_WAY_S = 1e-3


class TheusEngine:
    """Runs processes beside shared state, in this process or in workers that copy nothing.

    Parameters
    ----------
    domain : mapping of str to object, optional
        The first domain state. Values are pickled, so later changes to them do not show.
    workers : int, optional
        How many Python workers at most. The default is the number of cores this process may use.
        They start when there is work for them, or while the first large entry is written.
    heavy_limit : int, optional
        How many bytes of shared memory the heavy zone may reserve; what older snapshots and running
        tasks still hold counts. The default is what the machine has.
    spill_dir : path, optional
        An existing directory, on a disk. What does not fit into `heavy_limit` or the machine's
        memory is written to files there, which are mapped and removed like the rest; it does not
        count against `heavy_limit`. Without it, it is a :class:`HeavyZoneFullError`.
    reserve : int, default 0
        How many bytes of shared memory a thread makes ready in the background, so that the first
        array or table of about this size is written as fast as a later one, which gets the pages of
        one that was freed. More are made when these are used. They give way to whatever needs them.
    max_tasks_per_worker : int, optional
        After so many tasks a worker is replaced by a new one.
    max_worker_rss : int, optional
        A worker is replaced that has more bytes of memory for itself when it has run a task; what
        it maps of the heavy zone is everybody's and does not count.

    Raises
    ------
    ValueError
        If `workers`, or one of the limits, is not positive, `reserve` is negative, or
        ``THEUS_BACKEND`` is no backend.
    HeavyZoneFullError
        If there is no room for `reserve`.
    SpillDirectoryError
        If `spill_dir` cannot keep segments; it says what it lacks.

    Notes
    -----
    Use it as a context manager, synchronous or asynchronous, or call :meth:`close`. Without
    either it is closed when it is collected or the interpreter ends, after everything that was
    submitted has ended. Views outlive it. If this process is killed, its workers remove what it
    left.

    Callbacks of its futures run in a thread of the engine's, one after the other.

    A forked child of this process owns nothing: there the engine is closed.

    The environment variable ``THEUS_BACKEND`` chooses how shared memory is made: ``linux``, the
    default, or ``portable``, which reserves nothing, so that full memory can end a process.
    ``THEUS_HUGE_PAGES=never`` has no huge pages asked for.

    Examples
    --------
    >>> import numpy as np
    >>> with TheusEngine({"scale": 10}, workers=1) as engine:
    ...     _ = engine.heavy.put("x", np.arange(5))
    ...     total = lambda ctx, k: k * ctx.domain.scale * int(ctx.heavy["x"].sum())
    ...     engine.submit(total, k=2).result()
    200
    """

    def __init__(
        self,
        domain: Mapping[str, Any] | None = None,
        *,
        workers: int | None = None,
        heavy_limit: int | None = None,
        spill_dir: str | os.PathLike[str] | None = None,
        reserve: int = 0,
        max_tasks_per_worker: int | None = None,
        max_worker_rss: int | None = None,
    ) -> None:
        cores = len(os.sched_getaffinity(0))
        count = cores if workers is None else workers
        if not 1 <= count <= MAX_WORKERS:
            msg = f"workers must be from 1 to {MAX_WORKERS}, not {workers}"
            raise ValueError(msg)
        check_positive("heavy_limit", heavy_limit, "bytes")
        check_positive("max_tasks_per_worker", max_tasks_per_worker, "tasks")
        check_positive("max_worker_rss", max_worker_rss, "bytes")
        if reserve < 0:
            msg = f"reserve must be a number of bytes, not {reserve}"
            raise ValueError(msg)
        backend = os.environ.get("THEUS_BACKEND")
        self._session = Session.create(
            backend=backend, heavy_limit=heavy_limit, spill_dir=spill_dir, reserve=reserve
        )
        self._store = StateStore(self._session)
        # None of these refers back to the engine, so that it is collected when it is let go.
        heavy = self._heavy = HeavyZone(self._session, self._store)
        spill = self._session.spill_dir
        references = References(heavy.pin, spill, lambda fn: contract_of(fn).retries)
        self._codec = PickleCodec(references, heavy.pin, heavy.watch, spill)
        self._dispatcher = Dispatcher(
            self._session,
            count,
            cores,
            (self._codec, PlainCodec(heavy.pin, heavy.watch)),
            references,
            max_tasks=max_tasks_per_worker,
            max_rss=max_worker_rss,
        )
        heavy.released = self._dispatcher.release
        heavy.grown = self._dispatcher.warm_up
        heavy.published = self._dispatcher.announce
        self._workers = count
        self._gave_way = 0.0
        self._closing = Closing(self._session, self._store, self._dispatcher, heavy.clear)
        self._closing.watch(self)
        if domain:
            self.compare_and_swap(0, domain=domain)

    # --- state ---

    @property
    def heavy(self) -> HeavyZone:
        """The heavy zone: named arrays in shared memory."""
        return self._heavy

    @property
    def state(self) -> State:
        """The current state, an immutable snapshot."""
        return self._store.current

    @property
    def workers(self) -> int:
        """How many Python workers the engine uses at most; native ones count apart."""
        return self._workers

    @property
    def worker_pids(self) -> list[int]:
        """The process ids of the workers that run now."""
        return self._dispatcher.worker_pids

    def compare_and_swap(
        self,
        version: int,
        domain: Mapping[str, Any] | None = None,
        heavy: Mapping[str, Any] | None = None,
        *,
        strict: bool = False,
    ) -> State:
        """Change the state, unless what is written was changed by somebody else since `version`.

        Parameters
        ----------
        version : int
            The version of the state that the changes were computed from.
        domain : mapping of str to object, optional
            Domain keys to set; other keys stay. Values are pickled now. ``None`` is a value.
        heavy : mapping of str to array, optional
            Heavy keys to set. Arrays that ``alloc`` made are published, under this key as well as
            under their own name, and read-only from then on. Views of entries stay views. Other
            numpy arrays are copied in. ``None`` removes the key.
        strict : bool, default False
            Whether any change since `version` is a conflict, not only one of the same keys.

        Returns
        -------
        State
            The new state.

        Raises
        ------
        StateConflictError
            On a conflict; the state is as it was.
        UnpicklableError
            If a domain value cannot be pickled; the message names the path to it.
        """
        self._check_open()
        if isinstance(version, bool) or not isinstance(version, int):
            msg = f"version is a number, such as engine.state.version, not {version!r}"
            raise TypeError(msg)
        frozen = {key: self._freeze(key, value) for key, value in (domain or {}).items()}
        return self._heavy.swap(version, frozen, heavy or {}, strict=strict)

    # --- running ---

    @overload
    async def execute(
        self, fn: NativeTask, /, *, timeout: float | None = None, **inputs: Any
    ) -> Any: ...
    @overload
    async def execute(
        self,
        fn: Callable[..., Coroutine[Any, Any, T]],
        /,
        *,
        timeout: float | None = None,
        **inputs: Any,
    ) -> T: ...
    @overload
    async def execute(
        self, fn: Callable[..., T], /, *, timeout: float | None = None, **inputs: Any
    ) -> T: ...
    async def execute(
        self, fn: Callable[..., Any] | NativeTask, /, *, timeout: float | None = None, **inputs: Any
    ) -> Any:
        """Run a process and return its result.

        Parameters
        ----------
        fn : callable or NativeTask
            The process. One marked ``@process(parallel=True)`` runs in a worker with a
            ``ParallelContext``; any other runs here, with a ``ProcessContext``, and blocks the
            event loop unless it is a coroutine function. A task of :func:`theus.native` runs in a
            native worker.
        timeout : float, optional
            Seconds after which a parallel process is stopped: interrupted, and killed with its
            worker 100 ms later.
        **inputs
            Found in ``ctx.input``; those that are parameters of `fn` are passed to it as well.

        Returns
        -------
        object
            What `fn` returned. Arrays of the heavy zone in it come back as views.

        Raises
        ------
        TimeoutError
            If it did not end in time; it is stopped.
        WorkerDiedError
            If its worker died.
        UnpicklableError, NotPlainError
            If `fn` or an input cannot be sent.
        NativeTaskNotFoundError
            If no native worker has the task.
        NativeTaskError
            If a native task returned an error.
        ValueError
            If `timeout` is given for a process that runs here, or is not a number.
        Exception
            Whatever `fn` raised, with the worker's traceback as its cause.

        Notes
        -----
        Cancelling the await stops the process: SIGINT, and SIGKILL 100 ms later.

        An importable function that was measured to take less than a wake-up does is polled for, for
        60 us at most, without suspending the coroutine; other coroutines get their turn each
        millisecond.
        """
        program = self._dispatcher.program_of(fn)
        if not isinstance(fn, NativeTask) and not contract_of(fn).parallel:
            return await self._execute_here(fn, timeout, inputs)
        if timeout is not None:
            check_seconds(timeout)
        self._check_open()
        state = self._store.current
        program.codec.prepare(state)
        call = program.codec.call(fn, inputs)
        task = self._dispatcher.send(program, call, state, timeout=timeout, poll=True)
        if not task.done:
            return await self._dispatcher.outcome(asyncio.get_running_loop(), call, task)
        if self._is_to_give_way():
            await asyncio.sleep(0)
        return result_of(call, task)

    def _is_to_give_way(self) -> bool:
        """Whether it is the other coroutines' turn: what is polled for does not suspend."""
        now = time.perf_counter()
        if now - self._gave_way < _GIVE_WAY_S:
            return False
        self._gave_way = now
        return True

    @overload
    def submit(
        self, fn: NativeTask, /, *, timeout: float | None = None, **inputs: Any
    ) -> TaskFuture[Any]: ...
    @overload
    def submit(
        self,
        fn: Callable[..., Coroutine[Any, Any, T]],
        /,
        *,
        timeout: float | None = None,
        **inputs: Any,
    ) -> TaskFuture[T]: ...
    @overload
    def submit(
        self, fn: Callable[..., T], /, *, timeout: float | None = None, **inputs: Any
    ) -> TaskFuture[T]: ...
    def submit(
        self, fn: Callable[..., Any] | NativeTask, /, *, timeout: float | None = None, **inputs: Any
    ) -> TaskFuture[Any]:
        """Send a process to a worker, marked parallel or not.

        Parameters
        ----------
        fn, timeout, **inputs
            As for :meth:`execute`.

        Returns
        -------
        TaskFuture
            A ``concurrent.futures.Future``. Cancelling it stops a running task, and ``result()``
            may be called inside a running event loop, as in a notebook cell.
        """
        self._check_open()
        if timeout is not None:
            check_seconds(timeout)
        program = self._dispatcher.program_of(fn)
        state = self._store.current
        program.codec.prepare(state)
        call = program.codec.call(fn, inputs)
        return self._dispatcher.submit(program, call, state, timeout=timeout)

    @overload
    def map(
        self, fn: NativeTask, items: Iterable[Any], *, progress: bool = False
    ) -> MapResults[Any]: ...
    @overload
    def map(
        self,
        fn: Callable[..., Coroutine[Any, Any, T]],
        items: Iterable[Any],
        *,
        progress: bool = False,
    ) -> MapResults[T]: ...
    @overload
    def map(
        self, fn: Callable[..., T], items: Iterable[Any], *, progress: bool = False
    ) -> MapResults[T]: ...
    def map(
        self, fn: Callable[..., Any] | NativeTask, items: Iterable[Any], *, progress: bool = False
    ) -> MapResults[Any]:
        """Run a process once for each item, in the workers.

        Parameters
        ----------
        fn : callable
            Called as ``fn(ctx, item)``, or as ``fn(ctx)`` with ``ctx.input.item`` if it takes the
            context alone. A single parameter is the context if its name says so: ``ctx``. A native
            task gets it as the input ``item``.
        items : iterable
            Read as results are taken, a bounded number ahead. Small ones travel several together
            once the process has shown that it takes less than they do.
        progress : bool, default False
            Whether to show a progress bar.

        Returns
        -------
        MapResults
            The results in the order of the items, for ``for`` and ``async for``. All tasks see the
            state of this moment. What travels together is one task: a worker that dies takes it
            along whole, and with ``retries`` all of it is run again.

        Raises
        ------
        TypeError
            If `fn` takes no context.
        """
        self._check_open()
        dispatcher = self._dispatcher
        program = dispatcher.program_of(fn)
        state = self._store.current
        program.codec.prepare(state)
        calls = program.codec.items(fn, together=dispatcher.takes_items(program))

        def send(items: Sequence[Message]) -> TaskFuture[Any]:
            return dispatcher.submit(program, calls.call(items), state, make=ItemFuture)

        return MapResults(
            calls.pack,
            send,
            lambda: calls.size_for(dispatcher.duration(program, calls.function)),
            items,
            ahead=max(64, 4 * program.workers),
            chunks_ahead=4 * program.workers,
            progress=progress,
        )

    def executor(self) -> Executor:
        """Return a ``concurrent.futures.Executor`` over the same workers.

        It calls ``fn(*args, **kwargs)`` without a context, and native tasks by keywords alone. It
        keeps the standard library's rules: what runs cannot be cancelled, and ``shutdown`` waits.
        It does not close the engine.
        """

        def send(fn: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Future[Any]:
            self._check_open()
            program = self._dispatcher.program_of(fn)
            state = self._store.current
            program.codec.prepare(state)
            call = program.codec.call_plain(fn, args, kwargs)
            return self._dispatcher.submit(program, call, state, stoppable=False)

        return EngineExecutor(send)

    # --- tasks in other languages ---

    def native_worker(
        self,
        path: str | bytes | os.PathLike[str] | os.PathLike[bytes],
        *,
        count: int | None = None,
        args: Iterable[str] = (),
        env: Mapping[str, str] | None = None,
    ) -> tuple[str, ...]:
        """Start a program as a worker, and let :func:`theus.native` name the tasks that it has.

        Parameters
        ----------
        path : path
            Of an executable that calls ``theus::worker::serve`` of the Rust crate, or speaks the
            protocol of ``schemas/`` otherwise.
        count : int, optional
            How many processes of it at most. The default is the engine's `workers`, which count
            apart. One starts now, the others when there is work for them.
        args : iterable of str, optional
            What the program is given.
        env : mapping of str to str, optional
            Environment variables that it gets beside this process's.

        Returns
        -------
        tuple of str
            The names of its tasks.

        Raises
        ------
        NativeWorkerError
            If the program cannot be started, is no worker or says no hello within ten seconds,
            speaks another version of the protocol, or has a task that another program has.
        ValueError
            If `count` is not positive, or too large.
        TypeError
            If `count` is no int, or `args` a single text.

        Notes
        -----
        It blocks until the first process is ready, a few milliseconds. The path of a program that
        runs already, unchanged, starts nothing: its tasks are returned.
        """
        self._check_open()
        check_int("count", count, "processes")
        if count is not None and not 1 <= count <= MAX_WORKERS:
            msg = f"count must be from 1 to {MAX_WORKERS}, not {count}"
            raise ValueError(msg)
        if isinstance(args, str | bytes):
            msg = f"args is a list of arguments, such as [{args!r}], not {args!r}"
            raise TypeError(msg)
        count = count or self._workers
        return self._dispatcher.start_native(os.fsdecode(path), count, args, env or {})

    def tasks(self) -> dict[str, TaskInfo]:
        """Return what the native workers have, by name."""
        self._check_open()
        return self._dispatcher.tasks()

    # --- end ---

    def close(self) -> None:
        """End the workers and remove everything the engine put into shared memory.

        Tasks that are not done fail with SessionClosedError. Views stay valid. Idempotent.
        """
        self._closing.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """Close the engine; without an exception, wait for what was submitted first."""
        try:
            if self._is_to_finish(kind):
                self._dispatcher.finish()
        finally:
            self.close()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """Close the engine; without an exception, wait for what was submitted first."""
        try:
            if self._is_to_finish(kind):
                await asyncio.to_thread(self._dispatcher.finish)
        finally:
            self.close()

    def _is_to_finish(self, kind: type[BaseException] | None) -> bool:
        """Whether leaving the context waits for tasks: an open engine, here, without exception."""
        return kind is None and not self._closing.begun and not self._closing.is_foreign

    def __repr__(self) -> str:
        if self._closing.begun:
            return "TheusEngine(closed)"
        return f"TheusEngine(session={self._session.id!r}, workers={self._workers})"

    # --- inside ---

    def _check_open(self) -> None:
        if self._closing.begun or self._session.closed:
            msg = (
                "this engine is closed, or was made before this process was forked: "
                "make a new TheusEngine"
            )
            raise SessionClosedError(msg)

    def _freeze(self, key: object, value: object) -> Message:
        if not isinstance(key, str):
            msg = f"domain keys are str, not {type(key).__name__}: {key!r}"
            raise TypeError(msg)
        return self._codec.pickle(value, f"domain[{key!r}]")

    async def _execute_here(
        self, fn: Callable[..., Any], timeout: float | None, inputs: Mapping[str, Any]
    ) -> Any:
        self._check_open()
        if timeout is not None and not inspect.iscoroutinefunction(fn):
            msg = (
                "timeout= can stop only what runs in a worker: "
                "mark the function @process(parallel=True), or use engine.submit"
            )
            raise ValueError(msg)
        state = self._store.current
        result = call_with_context(fn, ProcessContext(state.domain, inputs, state.heavy), inputs)
        if inspect.isawaitable(result):
            return await asyncio.wait_for(_awaited(result), timeout)
        return result


async def _awaited(awaitable: Any) -> Any:
    return await awaitable
