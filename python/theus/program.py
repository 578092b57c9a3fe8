"""What a worker process runs: this package's loop, or an executable in any language.

Both get what they are to know in the environment variable ``THEUS_WORKER``, whose format is in
``schemas/worker.json``.
"""

from __future__ import annotations

import errno
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from theus._theus import PROTOCOL_VERSION
from theus.errors import NativeWorkerError, ProtocolError, WorkerStartError
from theus.hello import ITEMS, PICKLE, PLAIN

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from theus.hello import Hello

__all__ = ["LAUNCH", "NativeProgram", "Program", "PythonProgram"]

LAUNCH = "THEUS_WORKER"
"""The environment variable that a worker finds its descriptors by."""

_THREAD_VARIABLES = (
    "OMP_NUM_THREADS",
    "OPENBLAS_NUM_THREADS",
    "MKL_NUM_THREADS",
    "BLIS_NUM_THREADS",
    "VECLIB_MAXIMUM_THREADS",
    "NUMEXPR_NUM_THREADS",
)
_PACKAGE_PARENT = str(Path(__file__).resolve().parent.parent)
_TRANSIENT = frozenset({errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.EAGAIN})
"""What a start fails with on a machine that is full for now: not the program's fault."""
_REASONS = {
    errno.EACCES: "it may not be executed: chmod +x it, if it is a program",
    errno.ENOEXEC: "it is no program for this machine, and has no #! line",
    errno.ETXTBSY: "it is still being written: wait until the build has ended",
}
_SPEAKS = re.compile(r"speaks version (\d+)")


class Program(Protocol):
    """What the owner has to know of what its workers run.

    Attributes
    ----------
    takes_pickles : bool
        Whether its workers are Pythons of the owner's kind: they get pickles and the owner's
        ``sys.path``, and an interrupt when a task is to end. Others get plain values.
    """

    takes_pickles: bool

    @property
    def takes_items(self) -> bool:
        """Whether its workers take several calls of a function in one task."""
        ...

    def spawn(
        self, launch: str, descriptors: Sequence[int], stderr: int, threads: int
    ) -> subprocess.Popen[bytes]:
        """Start a process that inherits `descriptors`; `launch` is its ``THEUS_WORKER``."""
        ...

    def greet(self, hello: Hello) -> None:
        """Look at what one of its workers says of itself.

        Raises
        ------
        ProtocolError, NativeWorkerError
            If it is no worker of this program.
        """
        ...

    def start_error(
        self, attempts: int, status: int, stderr: str, broken: Exception | None
    ) -> Exception | None:
        """Return what tasks fail with as workers do not become ready; None to try again.

        Parameters
        ----------
        attempts : int
            How many failed in a row.
        status : int
            The exit code of the last one, negative for a signal.
        stderr : str
            What that wrote.
        broken : Exception or None
            Why it was ended, if what it sent could not be taken.
        """
        ...


_MAX_ATTEMPTS = 3
_REPLACED = (
    "it was replaced since it was started first, and the workers of an engine run one program: "
    "make a new engine for the new one"
)


class PythonProgram:
    """The loop of this package, in this very interpreter."""

    takes_pickles = True
    takes_items = True

    def spawn(
        self, launch: str, descriptors: Sequence[int], stderr: int, threads: int
    ) -> subprocess.Popen[bytes]:
        """See :class:`Program`."""
        environment = _environment(launch, _THREAD_VARIABLES, threads)
        # Only until the owner's sys.path arrives: the worker must find this very package first.
        known = [_PACKAGE_PARENT, *filter(None, [os.environ.get("PYTHONPATH")])]
        environment["PYTHONPATH"] = os.pathsep.join(known)
        # Without -P a file json.py in the current directory would be taken for the library's.
        command = [sys.executable, "-P", "-m", "theus._worker"]
        return _spawn(command, descriptors, stderr, environment)

    def greet(self, hello: Hello) -> None:
        """See :class:`Program`."""
        if PICKLE not in hello.capabilities:
            msg = f"it is no worker for Python functions: {hello.library}"
            raise ProtocolError(msg)

    def start_error(
        self, attempts: int, status: int, stderr: str, broken: Exception | None
    ) -> Exception | None:
        """See :class:`Program`."""
        if broken is not None or attempts < _MAX_ATTEMPTS:
            return None
        program = f"{sys.executable} with this process's environment"
        return WorkerStartError(attempts, status, stderr, program)


class NativeProgram:
    """An executable that runs tasks by name.

    Parameters
    ----------
    path : str
        Where it is.
    arguments : iterable of str
        What it is given.
    environment : mapping of str to str
        Variables that it gets beside this process's, or other than there.

    Attributes
    ----------
    hello : Hello or None
        What the first of its workers said.
    """

    takes_pickles = False

    def __init__(self, path: str, arguments: Iterable[str], environment: Mapping[str, str]) -> None:
        self.path = path
        self.hello: Hello | None = None
        self._command = [path, *arguments]
        self._environment = dict(environment)
        self._stamp = _stamp(path)

    @property
    def takes_items(self) -> bool:
        """See :class:`Program`."""
        return self.hello is not None and ITEMS in self.hello.capabilities

    def same_as(self, other: NativeProgram) -> Hello:
        """Return what this said, if `other` of the same path would say it again.

        Raises
        ------
        NativeWorkerError
            If that would be another program, or run in another way.
        """
        if self._stamp != other._stamp:
            raise NativeWorkerError(self.path, _REPLACED)
        if (self._command, self._environment) != (other._command, other._environment):
            reason = "it runs already, with other arguments or variables: names of tasks are unique"
            raise NativeWorkerError(self.path, reason)
        assert self.hello is not None  # noqa: S101 - as it is registered
        return self.hello

    def spawn(
        self, launch: str, descriptors: Sequence[int], stderr: int, threads: int
    ) -> subprocess.Popen[bytes]:
        """See :class:`Program`.

        Raises
        ------
        NativeWorkerError
            If the file cannot be run, or is another one than before: the workers of an engine run
            one program.
        """
        if _stamp(self.path) not in (self._stamp, None):
            raise NativeWorkerError(self.path, _REPLACED)
        variables = (*_THREAD_VARIABLES, "RAYON_NUM_THREADS")
        environment = _environment(launch, variables, threads, self._environment)
        try:
            return _spawn(self._command, descriptors, stderr, environment)
        except OSError as error:
            reason = self._why_not(error)
            if reason is None:
                raise
            raise NativeWorkerError(self.path, reason) from error

    def greet(self, hello: Hello) -> None:
        """See :class:`Program`."""
        if PLAIN not in hello.capabilities:
            reason = f"it is a worker ({hello.library}), but takes no plain values"
            raise NativeWorkerError(self.path, reason)
        if not hello.tasks:
            reason = "it has no tasks: register some in what is given to theus::worker::serve"
            raise NativeWorkerError(self.path, reason)
        if self.hello is None:
            self.hello = hello
        elif (self.hello.tasks, self.hello.capabilities) != (hello.tasks, hello.capabilities):
            raise NativeWorkerError(self.path, _REPLACED)

    def start_error(
        self, attempts: int, status: int, stderr: str, broken: Exception | None
    ) -> Exception | None:
        """See :class:`Program`."""
        if broken is not None:  # it would send the same again
            return self.no_worker(broken, stderr)
        if attempts < _MAX_ATTEMPTS:
            return None
        return WorkerStartError(attempts, status, stderr, self.path)

    def first_start_error(self, status: int, stderr: str, late_s: float | None) -> Exception:
        """Return why the first of its workers ended before it was ready.

        `late_s` is how many seconds it had, if they were over.
        """
        if late_s is not None:
            reason = (
                f"it said no hello within {late_s:g} s: it has to call theus::worker::serve, or "
                "speak the protocol of schemas/frames.json, before anything that takes long"
            )
        elif status < 0:
            reason = f"it was ended by signal {-status} before it said hello"
        else:
            reason = (
                f"it left with exit code {status} before it said hello, as a program does that "
                "does not call theus::worker::serve"
            )
        wrote = f"It wrote:\n\n{stderr}" if stderr else "It wrote nothing to its standard error"
        return NativeWorkerError(self.path, f"{reason}. {wrote}")

    def no_worker(self, broken: Exception, stderr: str) -> NativeWorkerError:
        """Return why what one of its workers sent first is not what workers send."""
        if isinstance(broken, NativeWorkerError):
            return broken
        speaks = _SPEAKS.search(str(broken))
        if speaks is None:
            wrote = f". It wrote:\n\n{stderr}" if stderr else ""
            error = NativeWorkerError(self.path, f"it is no worker: {broken}{wrote}")
        else:
            version = int(speaks[1])
            reason = (
                f"it speaks version {version} of the worker protocol, and this engine speaks "
                f"version {PROTOCOL_VERSION}: build it again with the theus crate of this version"
            )
            error = NativeWorkerError(self.path, reason, version)
        error.__cause__ = broken
        return error

    def _why_not(self, error: OSError) -> str | None:
        """Return what the program lacks; None if it is the machine that has no room."""
        if error.errno in _TRANSIENT:
            return None
        if error.errno in (errno.ENOENT, errno.ENOTDIR):
            return self._why_not_found()
        if error.errno == errno.EACCES and Path(self.path).is_dir():
            return "it is a directory: give the path of the program in it"
        return _REASONS.get(error.errno or 0, error.strerror)

    def _why_not_found(self) -> str:
        path = Path(self.path)
        if path.exists():
            return "the interpreter that its #! line names does not exist"
        if any(part.startswith("~") for part in path.parts):
            return "there is no such file: ~ is not expanded, os.path.expanduser(path) does it"
        return "there is no such file: build the program first, and give its path"


def _stamp(path: str) -> tuple[int, ...] | None:
    try:
        status = Path(path).stat()
    except OSError:
        return None
    return status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns


def _environment(
    launch: str, variables: Iterable[str], threads: int, more: Mapping[str, str] | None = None
) -> dict[str, str]:
    """Return the worker's environment: the owner's, with the cores shared out among workers."""
    environment = {**os.environ, **(more or {})}
    for variable in variables:
        environment.setdefault(variable, str(threads))
    environment[LAUNCH] = launch
    return environment


def _spawn(
    command: list[str], descriptors: Sequence[int], stderr: int, environment: dict[str, str]
) -> subprocess.Popen[bytes]:
    return subprocess.Popen(  # noqa: S603 - our own module, or what the caller asked for
        command,
        stdin=subprocess.DEVNULL,
        stderr=stderr,  # until it is ready: then it takes the owner's
        pass_fds=descriptors,
        env=environment,
        process_group=0,  # a Ctrl-C in the terminal is the owner's business
    )
