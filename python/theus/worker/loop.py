"""The worker's loop: ``python -m theus._worker``, started by the dispatcher and by nobody else.

One thread takes frames from the private socket and runs one task at a time. A second one, in Rust
and without the GIL, watches the owner: when that process ends, however it ends, the worker removes
what its session left and ends too.
"""

from __future__ import annotations

import faulthandler
import gc
import json
import os
import signal
import sys
import time
import traceback
from collections import deque
from collections.abc import Callable, Mapping
from types import FrameType
from typing import TYPE_CHECKING, Any

from theus import _theus
from theus._theus import Calls, Channel, Control, Segment, Transient, Zone
from theus.errors import ProtocolError, RemoteError, UnpicklableError
from theus.heavy.array import ShmArray
from theus.protocol import (
    BY_PARTS,
    CALL_CONTEXT,
    CALL_ITEM,
    CALL_NATIVE,
    CALL_PLAIN,
    CAUSE_RAISED,
    CAUSE_STALE,
    CAUSE_STOPPED,
    CAUSE_UNPICKLABLE,
    IMPORT,
    PICKLE,
    RECALL,
)
from theus.serialize import batches
from theus.serialize.function_loader import StaleReferenceError, resolve
from theus.serialize.message import NONE, NOTHING, Message, Outputs, pickle_small
from theus.serialize.pickler import dumps
from theus.serialize.unpickler import attach_with, loads
from theus.state.persistent_map import changed
from theus.tasks.contract import Arguments, finish, plan
from theus.worker.context import ParallelContext, looked_at
from theus.worker.prefetch import look_ahead
from theus.worker.reporter import Reporter
from theus.worker.snapshot import EntryReference, LazyDomain, SegmentReferences, WorkerSnapshot

if TYPE_CHECKING:
    from theus.worker.outputs import TaskHeavy

__all__ = ["main"]

_SPIN_S = 50e-6
_OWNER_ENDS_S = 30.0  # longer than the kernel takes to end a process with much memory


Step = Callable[[bytes | Message | None], bytes | Message | None]
"""Runs a task: inputs, pickled or None for none, to the result, pickled or None for None."""


class _PlainError(Exception):
    """An exception of a task that is called with plain values, as its caller is told it."""

    def __init__(self, cause: int, said: bytes, text: str) -> None:
        super().__init__(text)
        self.cause = cause
        self.said = said
        self.text = text


class _Stopped(KeyboardInterrupt):
    """Raised in a task that the owner wants to end."""


class Worker:
    """The state of one worker process."""

    def __init__(self, channel: Channel, control: Control, zone: Zone) -> None:
        channel.use_page(control, "worker")
        self._channel = channel
        self._control = control
        self._zone = zone
        self._reporter = Reporter(channel, control)
        self._segments: dict[str, Segment] = {}
        self._names: dict[int, str] = {}
        self._seen: dict[str, ShmArray] = {}
        self._states: dict[int, WorkerSnapshot] = {}
        self._functions: dict[int, tuple[int, bytes, Transient | None]] = {}
        self._planned: dict[int, tuple[Callable[..., Any], Arguments]] = {}
        self._parts: deque[Transient] = deque()
        # What the owner keeps for the task: its state's segments, and those that it was sent.
        self._references = SegmentReferences({})
        self._sent: set[str] = set()
        self._unseen: set[str] = set()
        self._calls = Calls(channel, control, NOTHING.data, self._ended, _flush, _SPIN_S)

    def serve(self) -> None:
        """Take frames until the owner says that it was the last."""
        channel = self._channel
        signal.signal(signal.SIGINT, self._on_interrupt)
        attach_with(self._attach_given)
        channel.send_blocking(
            _theus.KIND_HELLO, (_theus.PROTOCOL_VERSION, os.getpid()), (_describe_self(),)
        )
        handlers: dict[int, Callable[[tuple[int, ...], list[bytes]], None]] = {
            _theus.KIND_SETUP: self._setup,
            _theus.KIND_STATE: self._state,
            _theus.KIND_FORGET_STATE: lambda fields, _: self._forget_state(fields[0]),
            _theus.KIND_FUNCTION: self._function,
            _theus.KIND_FORGET_FUNCTION: lambda fields, _: self._forget_function(fields[0]),
            _theus.KIND_TASK: self._task,
            _theus.KIND_RELEASE: lambda fields, _: self._release(fields),
            _theus.KIND_PARTS: lambda fields, _: self._parts.append(channel.take_parts(fields)),
        }
        while True:
            kind, fields, attachments = self._calls.next()
            if kind == _theus.KIND_SHUTDOWN:
                return
            try:
                handlers[kind](fields, attachments)
            except (EOFError, OSError):
                raise
            except Exception as error:  # a task's own exceptions are answered
                msg = f"a frame of kind {kind} means nothing here: {error!r}"
                raise ProtocolError(msg) from error
            if self._unseen and not channel.has_more():
                unseen, self._unseen = self._unseen, set[str]()
                look_ahead(unseen, self._attach, channel.has_more)

    # --- frames ---

    def _setup(self, _: tuple[int, ...], attachments: list[bytes]) -> None:
        setup = json.loads(attachments[0])
        sys.path[:] = setup.get("sys_path", sys.path)
        if "cwd" in setup:
            os.chdir(setup["cwd"])
        for name, value in setup.get("environ", {}).items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value

    def _state(self, fields: tuple[int, ...], attachments: list[bytes]) -> None:
        entries, keys = json.loads(attachments[0]), json.loads(attachments[1])
        if isinstance(entries, dict):
            domain, heavy, references = self._states[entries["base"]]
        else:
            domain, heavy, references = LazyDomain({}), {}, SegmentReferences({})
            entries, keys = {"removed": [], "set": entries}, {"removed": [], "set": keys}
        removed: list[str] = entries["removed"]
        come = {d["key"]: EntryReference(d, self._attach, self._seen) for d in entries["set"]}
        gone = dict.fromkeys([*removed, *come])
        references = references.changed(map(heavy.get, gone), come.values())
        heavy = changed(changed(heavy, dict.fromkeys(removed)), come)
        messages = map(self._message, attachments[2:])
        domain = domain.changed(dict.fromkeys(keys["removed"]))
        domain = domain.changed(dict(zip(keys["set"], messages, strict=True)))
        self._states[fields[0]] = (domain, heavy, references)
        self._unseen = {entry.name for entry in come.values()} - self._segments.keys()

    def _forget_state(self, version: int) -> None:
        self._states.pop(version, None)
        self._calls.forget()

    def _function(self, fields: tuple[int, ...], attachments: list[bytes]) -> None:
        number, form = fields
        parts = self._parts.popleft() if form == BY_PARTS else None
        self._functions[number] = (form, attachments[0], parts)
        self._planned.pop(number, None)
        self._calls.forget()

    def _forget_function(self, number: int) -> None:
        _, _, parts = self._functions.pop(number)
        self._planned.pop(number, None)
        self._calls.forget()
        if parts is not None:
            gc.collect()  # a function and the globals it came with refer to each other

    def _release(self, numbers: tuple[int, ...]) -> None:
        for number in numbers:
            name = self._names.pop(number, None)
            if name is not None:
                self._seen.pop(name, None)
                del self._segments[name]

    # --- tasks ---

    def _task(self, fields: tuple[int, ...], attachments: list[bytes]) -> None:
        task, version, number, call = fields
        self._unseen = set()  # it looks at what it needs of its state
        inputs = self._message(attachments[0])
        control, calls = self._control, self._calls
        control.running = task
        started = time.perf_counter_ns()
        try:
            calls.interruptible = True
            if control.cancel == task or control.recalled >= task:
                raise _Stopped  # noqa: TRY301 - handled as if the task had been interrupted
            step = self._step(version, number, call)
            outcome = step(inputs)
            outcome = NONE if outcome is None else outcome
            calls.interruptible = False
        except BaseException as error:  # noqa: BLE001 - it belongs to the caller, whatever it is
            calls.interruptible = False
            outcome = error
        else:
            calls.learn(version, number, call, step)
        self._ended(task, time.perf_counter_ns() - started, outcome)
        control.running = 0
        _flush()

    def _ended(self, task: int, took: int, outcome: object) -> None:
        """Send the outcome of a task: its step's, an exception, or None if it was to stop."""
        if isinstance(outcome, bytes):
            outcome = Message(outcome)
        if isinstance(outcome, Message):
            self._send(_theus.KIND_RESULT, (task, took), outcome)
        else:
            assert outcome is None or isinstance(outcome, BaseException)  # noqa: S101
            error = _Stopped() if outcome is None else outcome
            cause, message, text = self._report(error)
            self._send(_theus.KIND_ERROR, (task, took, cause), message, text)

    def _step(self, version: int, number: int, call: int) -> Step:
        """Return what runs tasks of this version, function and call."""
        planned = self._planned.get(number)
        if planned is None:
            function = resolve(*self._functions[number])
            planned = self._planned[number] = function, plan(function)
        function, arguments = planned
        domain, entries, references = self._states[version]
        zone, pin, spill_dir = self._zone, self._pin, self._zone.spill_dir
        reporter = self._reporter

        def pack(result: object, made: Outputs | None) -> Message:
            return dumps(result, pin, label="result", made=made, spill_dir=spill_dir)

        def with_item(item: Any) -> tuple[Any, TaskHeavy | None]:
            context = ParallelContext(domain, {"item": item}, entries, zone, reporter)
            result = finish(arguments.call_with_item(function, context, item))
            return result, looked_at(context)

        def with_inputs(inputs: Any) -> tuple[Any, TaskHeavy | None]:
            context = ParallelContext(domain, inputs, entries, zone, reporter)
            result = finish(arguments.call(function, context, inputs))
            return result, looked_at(context)

        def without_context(given: Any) -> tuple[Any, TaskHeavy | None]:
            args, kwargs = given
            return finish(function(*args, **kwargs)), None

        run = {CALL_ITEM: with_item, CALL_CONTEXT: with_inputs, CALL_PLAIN: without_context}.get(
            call
        )

        if call == CALL_NATIVE:
            return self._plain_step(with_inputs, references)

        def step(inputs: bytes | Message | None) -> bytes | Message | None:
            self._references = references
            self._sent.clear()
            given: Any = {} if inputs is None else loads(inputs)
            if run is None:
                return batches.run(given, with_item, pack, self._failure)
            result, made = run(given)
            if result is None:
                return None
            return pickle_small(result) or pack(result, made)

        return step

    def _plain_step(
        self,
        call: Callable[[Any], tuple[Any, TaskHeavy | None]],
        references: SegmentReferences,
    ) -> Step:
        """Return what runs a function by name, whose caller may be written in another language."""
        from theus.serialize import plain  # noqa: PLC0415 - few workers need it

        def step(inputs: bytes | Message | None) -> Message:
            self._references = references
            self._sent.clear()
            given = inputs.data if isinstance(inputs, Message) else inputs
            try:
                result, _ = call(plain.decode(given) if given else {})
                return plain.encode(result, self._pin, label="result")
            except _Stopped:
                raise
            except BaseException as error:  # noqa: BLE001 - it belongs to the caller
                said, text = _said_of(error)
                data = plain.encode(said, lambda _: None, label="error").data
                raise _PlainError(CAUSE_RAISED, data, text) from None

        return step

    def _message(self, data: bytes) -> Message:
        """Return what an attachment stands for: an empty one for the parts that came before it."""
        return Message(data, None if data else self._parts.popleft())

    def _send(self, kind: int, fields: tuple[int, ...], message: Message, *more: bytes) -> None:
        for number, output in enumerate(message.outputs):
            self._channel.send_output_blocking(number, output)
        if message.parts is not None:
            self._channel.send_parts_blocking(message.parts)
        self._channel.send_blocking(kind, fields, (message.data, *more))

    def _report(self, error: BaseException) -> tuple[int, Message, bytes]:
        """Return the cause code of an ERROR frame, the exception, and the traceback."""
        if isinstance(error, _PlainError):
            return error.cause, Message(error.said), error.text.encode(errors="backslashreplace")
        if isinstance(error, StaleReferenceError):
            return CAUSE_STALE, Message(b""), str(error).encode()
        cause = CAUSE_STOPPED if isinstance(error, _Stopped) else CAUSE_RAISED
        cause = CAUSE_UNPICKLABLE if isinstance(error, UnpicklableError) else cause
        sendable, text = self._sendable(error)
        message = dumps(sendable, self._pin, label="exception")
        return cause, message, text.encode(errors="backslashreplace")

    def _sendable(self, error: BaseException) -> tuple[BaseException, str]:
        """Return an exception that can be pickled, and the traceback."""
        # The first frame is this file's own, of no interest to the caller.
        text = _describe(lambda: "".join(traceback.format_exception(error)))
        bare = error.with_traceback(None)
        try:
            # An exception with its own __init__ may dump and not load.
            loads(dumps(bare, self._pin, label="exception"))
        except BaseException:  # noqa: BLE001 - the exception's own pickling is the user's code
            kind = f"{type(error).__module__}.{type(error).__qualname__}"
            return RemoteError(f"{kind}: {_describe(lambda: str(error))}"), text
        return bare, text

    def _failure(self, error: BaseException) -> tuple[BaseException, str]:
        """Return an item's exception as its chunk's result has it."""
        if isinstance(error, _Stopped):
            raise error
        return self._sendable(error)

    def _on_interrupt(self, _: int, __: FrameType | None) -> None:
        """End the running task if the owner asked for it; the terminal's Ctrl-C is not ours."""
        running = self._control.running
        if self._calls.interruptible and running and self._control.cancel == running:
            self._calls.interruptible = False
            raise _Stopped

    # --- segments ---

    def _attach(self, name: str) -> Segment:
        """Map a segment the owner named; it is found again until the owner releases it."""
        segment = self._segments.get(name)
        if segment is None:
            segment = self._segments[name] = _theus.attach_segment(name)
            self._names[segment.number] = name
        return segment

    def _attach_given(self, name: str) -> Segment:
        self._sent.add(name)
        return self._attach(name)

    def _pin(self, name: str) -> Segment | None:
        """Promise the owner only what its own task refers to: that it keeps alive for us."""
        known = name in self._sent or name in self._references
        return self._segments.get(name) if known else None


def _describe_self() -> bytes:
    """Return the attachment of HELLO."""
    said = {
        "language": "python",
        "library": f"theus {_theus.__version__}",
        "capabilities": [PICKLE, IMPORT, RECALL],
        "tasks": [],
    }
    return json.dumps(said).encode()


def _said_of(error: BaseException) -> tuple[dict[str, str], str]:
    """Return the plain value that stands for an exception, and its traceback."""
    text = _describe(lambda: "".join(traceback.format_exception(error)))
    return {"type": type(error).__qualname__, "message": _describe(lambda: str(error))}, text


def _describe(describe: Callable[[], str]) -> str:
    """Return what the user's code says of its exception, or that it fails at that too."""
    try:
        return describe()
    except BaseException as error:  # noqa: BLE001 - whatever it raises
        return f"<its description raised {type(error).__name__}>"


def _flush() -> None:
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except (AttributeError, OSError, ValueError):
            continue


def _take_stderr(stderr: int, trace: int) -> None:
    """Go on with the owner's standard error; what was written so far is in `trace`."""
    _flush()
    early = os.pread(trace, os.fstat(trace).st_size, 0).rstrip(b"\0")
    os.dup2(stderr, sys.__stderr__.fileno() if sys.__stderr__ else 2)
    os.close(stderr)
    os.pwrite(trace, bytes(len(early)), 0)
    os.lseek(trace, 0, os.SEEK_SET)
    if early:
        os.write(2, early)


def main(launch: Mapping[str, Any]) -> None:
    """Run a worker; ``schemas/worker.json`` says what `launch` tells it."""
    session, stderr, trace = launch["session"], launch["stderr"], launch["trace"]
    _theus.watch_owner(launch["owner"], session)
    worker = Worker(
        Channel.from_fd(launch["channel"]),
        Control.from_fd(launch["control"]),
        Zone.from_fd(launch["budget"], launch["seat"], session),
    )
    _take_stderr(stderr, trace)
    faulthandler.enable(file=trace)
    try:
        worker.serve()
    except ProtocolError as error:
        sys.exit(f"theus: worker {os.getpid()} ends, as it cannot follow its owner: {error}")
    except (EOFError, BrokenPipeError, ConnectionResetError) as error:
        # The owner is on its way out without having said so. Its socket closes before its lock is
        # free, so leaving now would leave its session to nobody: the watching thread ends us.
        time.sleep(_OWNER_ENDS_S)
        sys.exit(f"theus: worker {os.getpid()} ends, as its owner does not talk to it: {error}")
