"""The Rust core of theus: segments, sessions, sweeping, and the dispatcher's frames.

Everything here is private to the package; the public names live in ``theus``.
"""

import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Final, Literal, Self, TypeAlias, final

from typing_extensions import Buffer as SupportsBuffer

__version__: Final[str]

PROTOCOL_VERSION: Final[int]
KIND_SETUP: Final[int]
KIND_HELLO: Final[int]
KIND_STATE: Final[int]
KIND_FORGET_STATE: Final[int]
KIND_FUNCTION: Final[int]
KIND_FORGET_FUNCTION: Final[int]
KIND_TASK: Final[int]
KIND_RESULT: Final[int]
KIND_ERROR: Final[int]
KIND_RELEASE: Final[int]
KIND_SHUTDOWN: Final[int]
KIND_PARTS: Final[int]
KIND_OUTPUT: Final[int]
KIND_LOG: Final[int]
KIND_PROGRESS: Final[int]

# A frame is (kind, fields as unsigned 64 bit integers, attachments).

@final
class Session:
    """The lifetime root: its lock file lives exactly as long as this process holds it."""

    @staticmethod
    def create(
        *,
        backend: str | None = None,
        heavy_limit: int | None = None,
        spill_dir: str | os.PathLike[str] | None = None,
        reserve: int = 0,
    ) -> Session:
        """Sweep what dead sessions left, then create a session with its lock and its catalog.

        `backend` is "linux" (the default) or "portable".
        """

    @property
    def backend(self) -> str: ...
    @property
    def id(self) -> str: ...
    @property
    def closed(self) -> bool:
        """True after :meth:`close`, and in a forked child of the owner."""

    def create_tensor(
        self,
        key: str,
        shape: Sequence[int],
        element: str,
        data: SupportsBuffer | None = None,
        *,
        dtype: str | None = None,
        fortran: bool = False,
        trailing_bytes: bool = False,
        mutable: bool = False,
    ) -> Segment:
        """Create a nameless, reserved, writable tensor segment.

        It holds zeros, or one parallel copy of ``data``: contiguous bytes in the tensor's order.
        ``element`` is one of i1 i2 i4 i8 u1 u2 u4 u8 f2 f4 f8. ``dtype`` is free text kept in the
        message's custom metadata. With ``trailing_bytes`` the last dimension of ``shape`` is the
        item's bytes: it stays innermost when ``fortran`` orders the others. ``mutable`` links the
        segment at once and flags it.
        """

    def create_table(
        self,
        key: str,
        source: object,
        *,
        as_array: bool = False,
        views: bool = False,
        streamed: bool = False,
    ) -> Segment:
        """Write what has ``__arrow_c_array__`` or ``__arrow_c_stream__`` into a nameless segment.

        One parallel copy. Structs are the rows of a table, or values with ``as_array``. String and
        binary views stay such with ``views``. With ``streamed`` batches are written as they come.
        """

    def alloc_table(self, key: str, schema: object, rows: int) -> Segment:
        """Lay out a table of zeros, to be filled in place; publication counts its nulls."""

    def publish(self, segment: Segment) -> None:
        """Seal ``segment`` and link its name. Idempotent."""

    def budget_fd(self) -> int:
        """A new descriptor by which a worker maps the budget, for subprocess's pass_fds."""

    def adopt(self, channel: Channel, seat: int) -> Segment:
        """Take over what came by descriptor with an OUTPUT frame of the worker in `seat`.

        It is published then, and its name lasts as long as somebody has its bytes.
        """

    def commit(self, version: int, changes: Sequence[tuple[str, Segment | None]]) -> None:
        """Enter the changed keys of state ``version`` in the catalog (None removes the key)."""

    def ready_bytes(self) -> int:
        """Bytes of no segment, ready for the next ones: freed ones' pages, and the reserve."""

    def used_bytes(self) -> int:
        """Bytes reserved by living segments of this session (they count against the limit)."""

    @property
    def heavy_limit(self) -> int | None: ...
    @property
    def spill_dir(self) -> Path | None:
        """The directory for segments that do not fit in memory."""

    def close(self) -> None:
        """Unlink every name of the session, the lock last. Idempotent. Views stay valid."""

@final
class Segment:
    """One entry's bytes: under construction (owner), or published (owner or reader).

    `shape`, `strides`, `element` and `dtype` are a tensor's alone; they raise TypeError for others.
    """

    @property
    def kind(self) -> str:
        """One of "tensor", "table", "array" and "chunked_array"."""

    @property
    def blanks(self) -> list[tuple[tuple[int, int] | None, tuple[int, int]]]:
        """Where the columns lie of a table that is filled in place.

        For each, the (offset, bytes) of its bitmap, if it has one, and of its values.
        """

    def validate(self) -> None:
        """Look at all that a table's values say, once; raises CorruptSegmentError.

        A tensor was checked when it was opened.
        """

    @property
    def kept_by_views(self) -> bool:
        """True if whoever has its bytes keeps its name."""

    @property
    def extra_copies(self) -> list[tuple[str, int, str]]:
        """(column, bytes, reason) of the copies that writing a table made besides the one."""

    @property
    def name(self) -> str:
        """``theus-<session>-<n>``; given at creation, linked at publication."""

    @property
    def number(self) -> int: ...
    @property
    def key(self) -> str: ...
    @property
    def length_bytes(self) -> int: ...
    @property
    def published(self) -> bool: ...
    @property
    def mutable(self) -> bool: ...
    @property
    def linked(self) -> bool:
        """True while the name exists (published, not yet unlinked)."""

    @property
    def path(self) -> str:
        """Raises UnpublishedError before publication."""

    @property
    def shape(self) -> tuple[int, ...]: ...
    @property
    def strides(self) -> tuple[int, ...]:
        """In bytes."""

    @property
    def element(self) -> str: ...
    @property
    def dtype(self) -> str | None: ...
    @property
    def spilled(self) -> bool:
        """Whether it lies on disk, because it did not fit in memory."""

    @property
    def copied_at_publication(self) -> bool:
        """True if a fork between allocation and publication made a copy necessary."""

    def buffer(self) -> Buffer:
        """The whole segment's bytes.

        Unpublished or mutable, in the owner: writable, until publication. Published: a mapping the
        MMU keeps read-only (O_RDONLY, PROT_READ), the same one at each call.
        """

    @property
    def body_offset(self) -> int: ...
    def unlink(self) -> None:
        """Remove the name; mappings stay valid. A no-op in a forked child. Idempotent."""

@final
class Buffer:
    """A buffer-protocol export (format B, 1-D) of a mapping, which it keeps alive."""

    def __buffer__(self, flags: int, /) -> memoryview: ...
    def __len__(self) -> int: ...
    @property
    def readonly(self) -> bool: ...
    @property
    def address(self) -> int: ...
    def arrow_array(self, element: str, offset: int, length: int) -> tuple[object, object]:
        """Arrow C data interface capsules (schema, array) over these very bytes."""

@final
class Transient:
    """A nameless segment with a message's pickle (part 0) and buffers (the others)."""

    @staticmethod
    def create(
        pickle: Sequence[SupportsBuffer],
        buffers: Sequence[SupportsBuffer | int],
        what: str,
        spill_dir: str | os.PathLike[str] | None = None,
    ) -> Transient:
        """Copy the pieces of a pickle and the buffers in, in parallel.

        A buffer given as a number is so many zero bytes, to be filled by :meth:`write`.
        Raises HeavyZoneFullError, which names `what`.
        """

    @property
    def parts(self) -> tuple[tuple[int, int], ...]:
        """(offset, length) of each part in bytes."""

    def __len__(self) -> int: ...
    def write(self, offset: int, data: SupportsBuffer) -> None:
        """Copy `data` to `offset`, before it is sent."""

    def private(self) -> Buffer:
        """A private copy-on-write view of the bytes, a new one at each call."""

@final
class Zone:
    """A worker's part of its session's heavy zone."""

    @staticmethod
    def from_fd(fd: int, seat: int, session: str) -> Zone:
        """The worker in `seat` at the budget behind a descriptor, which is taken over."""

    @property
    def spill_dir(self) -> Path | None:
        """The directory for segments that do not fit in memory."""

    def create_output(
        self,
        key: str,
        shape: Sequence[int],
        element: str,
        data: SupportsBuffer | None = None,
        *,
        dtype: str | None = None,
        fortran: bool = False,
        trailing_bytes: bool = False,
    ) -> Output:
        """Reserve a tensor without a name: zeros, or a parallel copy of `data`."""

    def create_table_output(
        self,
        key: str,
        source: object,
        *,
        as_array: bool = False,
        views: bool = False,
        streamed: bool = False,
    ) -> Output:
        """As :meth:`Session.create_table`."""

    def alloc_table_output(self, key: str, schema: object, rows: int) -> Output:
        """As :meth:`Session.alloc_table`."""

@final
class Output:
    """An entry without a name that a task makes for its result."""

    @property
    def kind(self) -> str:
        """One of "tensor", "table", "array" and "chunked_array"."""

    @property
    def blanks(self) -> list[tuple[tuple[int, int] | None, tuple[int, int]]]:
        """As of segments."""

    def complete(self) -> None:
        """Enter the numbers of nulls of a table that was filled in place."""

    @property
    def kept_by_views(self) -> bool:
        """True: whoever has its bytes keeps it."""

    @property
    def extra_copies(self) -> list[tuple[str, int, str]]:
        """(column, bytes, reason) of the copies that writing a table made besides the one."""

    @property
    def key(self) -> str: ...
    @property
    def shape(self) -> tuple[int, ...]: ...
    @property
    def strides(self) -> tuple[int, ...]: ...
    @property
    def element(self) -> str: ...
    @property
    def dtype(self) -> str | None: ...
    @property
    def body_offset(self) -> int: ...
    @property
    def length_bytes(self) -> int: ...
    @property
    def address(self) -> int: ...
    def buffer(self) -> Buffer:
        """The bytes. Who has them keeps the output, so that its reservation lasts as long."""

def open_segment(name_or_path: str) -> Segment:
    """Map a published segment read-only, by name or by path; structure is always checked."""

def attach_segment(name: str) -> Segment:
    """As `open_segment`, of a name that lasts: it is unmapped if nobody looks for long."""

def locate(address: int, length: int) -> tuple[str, int, int] | None:
    """(segment name, offset, mapped length) if the bytes lie in a segment mapped in this process.

    Unpublished segments are not found.
    """

def sessions() -> list[tuple[str, bool, int, int, int]]:
    """(session, alive, entries, bytes, user) for every session that has names on this machine."""

def catalog(session: str) -> tuple[int, list[tuple[str, str, int, int]]]:
    """State version and (key, segment name, version, length in bytes) of a living session."""

def sweep(spill_dir: str | os.PathLike[str] | None = None) -> list[str]:
    """Remove what dead sessions of this user left; the names that were removed."""

@final
class DirectoryReport:
    """What was found out about a directory."""

    @property
    def path(self) -> Path: ...
    @property
    def file_system(self) -> str:
        """Its kind, by name or magic number; empty if the directory is not there."""

    @property
    def total_bytes(self) -> int: ...
    @property
    def free_bytes(self) -> int: ...
    @property
    def missing(self) -> list[tuple[str, str]]:
        """(code, text) of each thing that segments would miss in it; the code stays the same."""

def probe_directory(path: str | os.PathLike[str]) -> DirectoryReport:
    """Try in a directory what segments need of it; nothing is left there."""

def memory_limit(root: str | os.PathLike[str]) -> tuple[Path, int, int] | None:
    """(group, limit, available bytes) of the tightest control group; `root` is / but in tests."""

def fork_generation() -> int:
    """How many forks lie between this process and the one that first loaded the library."""

def watch_owner(pidfd: int, session: str) -> None:
    """Start a thread that needs no GIL: when the owner ends, sweep its session, end this process.

    Takes the descriptor over.
    """

@final
class Channel:
    """One end of a worker's private socket pair, carrying frames."""

    @staticmethod
    def pair() -> tuple[Channel, int]:
        """The owner's end, and the worker's descriptor, to be closed once the worker has it.

        Both are close-on-exec: ``pass_fds`` makes the second inheritable, in the worker alone.
        """

    @staticmethod
    def from_fd(fd: int) -> Channel:
        """The worker's end; takes the descriptor over and makes it close-on-exec."""

    def use_page(self, control: Control, side: Literal["owner", "worker"]) -> None:
        """Let small frames go by the page, to a peer that polls."""

    def fileno(self) -> int: ...
    def send(
        self,
        kind: int,
        fields: Sequence[int],
        attachments: Sequence[SupportsBuffer] = (),
    ) -> bool:
        """Queue a frame and write what the socket takes. True if nothing is left to write."""

    def queue(
        self,
        kind: int,
        fields: Sequence[int],
        attachments: Sequence[SupportsBuffer] = (),
    ) -> None:
        """Queue a frame, to be written by the next flush."""

    def flush(self) -> bool:
        """Write more of what is queued. True if nothing is left to write."""

    def send_blocking(
        self,
        kind: int,
        fields: Sequence[int],
        attachments: Sequence[SupportsBuffer] = (),
    ) -> None:
        """Write a whole frame, waiting without the GIL."""

    def send_aside(
        self,
        kind: int,
        fields: Sequence[int],
        attachments: Sequence[SupportsBuffer] = (),
    ) -> None:
        """Write a whole frame by the socket, also to a peer that polls; wait without the GIL."""

    def send_parts(self, parts: Transient) -> bool:
        """Queue a PARTS frame with the segment's descriptor. True if nothing is left to write."""

    def send_parts_blocking(self, parts: Transient) -> None:
        """Write a whole PARTS frame, waiting without the GIL."""

    def send_output_blocking(self, number: int, output: Output) -> None:
        """Hand an output over in a whole OUTPUT frame, waiting without the GIL."""

    def take_parts(self, fields: Sequence[int]) -> Transient:
        """The segment that came with a PARTS frame of these fields; once for each, in order."""

    def try_recv(self) -> tuple[int, tuple[int, ...], list[bytes]] | None:
        """The next whole frame, or None. Raises EOFError when the peer closed its end."""

    def has_more(self) -> bool:
        """Whether something has arrived that is not taken yet."""

    def recv(self, spin_s: float = 0.0) -> tuple[int, tuple[int, ...], list[bytes]]:
        """Wait for a frame without the GIL, polling for up to ``spin_s`` before blocking.

        Interruptible by Python signal handlers. Raises EOFError when the peer closed its end.
        """

    def poll(self, limit_s: float) -> bool:
        """Look for a frame for up to ``limit_s``, without the GIL, and take none."""

    @property
    def sent_bytes(self) -> int: ...
    @property
    def received_bytes(self) -> int: ...
    def close(self) -> None: ...

@final
class Control:
    """A page shared by the owner and one worker: which task runs, which one is to stop."""

    @staticmethod
    def create() -> tuple[Control, int]:
        """The page, and the worker's descriptor, close-on-exec as that of :meth:`Channel.pair`."""

    @staticmethod
    def from_fd(fd: int) -> Control: ...
    running: int
    cancel: int
    recalled: int

@final
class Program:
    """A program of a dispatcher."""

_Launch: TypeAlias = tuple[str, Sequence[str], Sequence[tuple[str, str]]]
"""Path, arguments, and all variables of the environment."""

@final
class Dispatcher:
    """Sends tasks to the workers of an engine, and takes their outcomes; see ``theus.dispatch``.

    One thread of its own, in Rust and without the GIL, reads what workers send.
    """

    def __new__(cls, session: Session, cores: int) -> Self: ...
    def add_program(
        self,
        launch: _Launch,
        *,
        plain: bool,
        pinned: bool,
        workers: int,
        threads: int,
        start_s: float,
        exit_s: float,
        max_tasks: int | None = None,
        max_rss: int | None = None,
    ) -> Program:
        """Add a program, whose workers start when there is work for them."""

    def set_launch(self, program: Program, launch: _Launch) -> None:
        """Have workers that start from now on be started so."""

    def would_start(self, program: Program) -> bool:
        """Whether the next task of a program would have a worker started."""

    def start_first(self, program: Program, time_s: float) -> Task:
        """Have the first worker of a program started, which has `time_s` to say hello.

        The task that is returned ends when it has, or with the reason why it did not.
        """

    def warm_up(self, program: Program) -> None:
        """Have the workers of a program start that there are cores for."""

    def remove_program(self, program: Program) -> None:
        """End the workers of a program that is not to be used."""

    def hello(self, program: Program) -> tuple[str, str, list[str], list[str]] | None:
        """Language, library, capabilities and tasks of the first worker; None before its hello."""

    @property
    def worker_pids(self) -> list[int]: ...
    @property
    def traffic(self) -> tuple[int, int]:
        """How many bytes were sent to the workers that run now, and received from them."""

    def duration(self, program: Program, function: Function) -> float:
        """How many seconds a call of this function takes; infinity if that was never measured."""

    def submit(
        self,
        program: Program,
        function: Function,
        snapshot: Snapshot,
        call: int,
        data: bytes,
        keepalive: object,
        *,
        parts: Transient | None = None,
        setup: Setup | None = None,
        weight: int = 1,
        timeout: float | None = None,
        progress: int | None = None,
        poll: bool = False,
    ) -> Task:
        """Submit a task, and send it if a worker should have it now.

        `keepalive` lives until the outcome is discarded. With `poll`, the outcome is polled for a
        moment without the GIL, if the task should be short.

        Raises
        ------
        SessionClosedError
            If the dispatcher is closed; nothing was submitted then.
        OSError
            If its thread cannot be started; the same.
        """

    def announce(self, snapshot: Snapshot, plain: bool) -> None:
        """Let idle workers see a state before a task needs it."""

    def release(self, number: int) -> None:
        """Tell the workers that this segment is gone."""

    @property
    def busy(self) -> bool:
        """Whether a task that was submitted has no outcome yet."""

    @property
    def closed(self) -> bool:
        """Whether it is closed, or was made before this process was forked."""

    def wait_idle(self) -> None:
        """Wait without the GIL until every task that was submitted has its outcome."""

    def tell_when_idle(self) -> bool:
        """Have an event tell when every task has its outcome; False if that is so now."""

    def next_event(self) -> tuple[Any, ...] | None:
        """The next event, waited for without the GIL; None if the dispatcher is closed.

        ``("done", number)``, ``("log", pid, task or None, level, text)``, ``("progress", number,
        done, total or None, message)``, ``("stale", StaleTask)`` or ``("idle",)``.
        """

    def close(self) -> None:
        """Begin to end the workers; tasks that have not ended fail."""

    def wait_closed(self) -> None:
        """Wait without the GIL until no worker is left: less than a second."""

@final
class Task:
    """One task, until its outcome is discarded."""

    @property
    def done(self) -> bool: ...
    @property
    def running(self) -> bool:
        """Whether a worker has it, and no outcome is there."""

    @property
    def cancelled(self) -> bool: ...
    @property
    def foreign(self) -> bool:
        """Whether it is the parent's, and this process a forked child."""

    def wait(self, timeout: float | None = None) -> bool:
        """Wait without the GIL, polling first if the task should be short; whether it has ended."""

    def cancel(self, only_queued: bool) -> bool:
        """Cancel it, unless it has ended: one that runs is stopped, unless `only_queued`.

        Returns whether this call did.
        """

    def tell_loop(self, queue: LoopQueue, token: int) -> None:
        """Have an event loop told of the outcome, by this number."""

    def tell_events(self, token: int) -> None:
        """Have an event tell of the outcome, by this number."""

    @property
    def progress(self) -> tuple[int, int | None, str] | None:
        """What the task last reported: done, total or None, message."""

    def outcome(self) -> tuple[Any, ...] | None:
        """The outcome, until it is discarded; None before and after.

        ``(data, parts, outputs, keepalive)`` if the task returned, the same with ``cause`` and
        ``traceback`` if it raised, ``(exception,)`` if it was given up, ``()`` if it was cancelled.
        """

    def discard(self) -> None:
        """Let go of the outcome, which was loaded."""

@final
class LoopQueue:
    """The tasks that have ended for an event loop."""

    def __new__(cls) -> Self: ...
    def fileno(self) -> int:
        """A descriptor that is readable while there are some."""

    def take(self) -> list[int]:
        """Take the numbers of those that have ended."""

@final
class Function:
    """A function ready to be sent; `form` and `definition` are those of a FUNCTION frame."""

    def __new__(
        cls,
        name: str,
        form: int,
        definition: bytes,
        *,
        parts: Transient | None = None,
        retries: int = 0,
        keepalive: object | None = None,
    ) -> Self: ...
    @property
    def name(self) -> str: ...

@final
class Setup:
    """The environment that a worker takes over from its owner: the attachment of a SETUP frame."""

    def __new__(cls, data: bytes) -> Self: ...

@final
class StaleTask:
    """A task whose function its worker cannot import: to be sent again, or given up."""

    @property
    def keepalive(self) -> Any:
        """What its function was made to keep."""

    def resend(self, function: Function) -> None: ...
    def fail(self, exception: BaseException) -> None: ...

@final
class Snapshot:
    """One version of the state, as workers are told it; it never changes."""

    def __new__(cls) -> Self: ...
    @property
    def version(self) -> int: ...
    def changed(
        self,
        version: int,
        entries: Sequence[tuple[str, bytes | None]],
        domain: Sequence[tuple[str, tuple[bytes, Transient | None] | None]],
    ) -> Snapshot:
        """The next version: keys with descriptors, and with pickles; None removes a key."""

    def set_plain(self, key: str, plain: bytes) -> None:
        """Set the plain value that stands for a value of the domain where no pickles go."""

@final
class Calls:
    """What a worker asks for its next frame; tasks that it has *learned* are run in here.

    Parameters
    ----------
    channel, control
        The worker's.
    nothing
        The pickle of no inputs.
    ended
        Called with a task's number, the nanoseconds it took, and what came of it: an exception,
        what a step returned that is neither None nor bytes, or None if it was to stop before it
        began.
    flush
        Called after each task.
    spin_s
        A frame is polled for up to so many seconds, if they have been coming at that pace.
    """

    def __new__(
        cls,
        channel: Channel,
        control: Control,
        nothing: bytes,
        ended: Callable[[int, int, object], object],
        flush: Callable[[], object],
        spin_s: float,
    ) -> Self: ...
    def learn(
        self, version: int, function: int, call: int, step: Callable[[bytes | None], object]
    ) -> None:
        """Have tasks of this version, function and call run by ``step``.

        It is given their inputs, a pickle or None for no inputs, and returns the pickle of the
        result, or None for None.
        """

    def forget(self) -> None:
        """Forget what was learned."""
    interruptible: bool
    def next(self) -> tuple[int, tuple[int, ...], list[bytes]]:
        """Run tasks until a frame comes that is for others; wait without the GIL."""

def encode_frame(
    kind: int, fields: Sequence[int], attachments: Sequence[SupportsBuffer] = ()
) -> bytes: ...
def decode_frame(data: SupportsBuffer) -> tuple[int, tuple[int, ...], list[bytes]]: ...
