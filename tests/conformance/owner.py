"""An owner's side of one worker, by hand: what an engine sends, and anything else."""

import contextlib
import fcntl
import json
import os
import select
import signal
import subprocess
import time
from collections import Counter, defaultdict
from typing import NamedTuple

from theus import _theus

DEADLINE_S = 10.0
POLLS_S = 0.001
TRACE_BYTES = 1 << 16

exchanged = defaultdict(Counter)
"""How many frames of each kind went to or came from the workers of each implementation."""


class Frame(NamedTuple):
    kind: int
    fields: tuple
    attachments: list


class Owner:
    """Starts a worker as ``schemas/worker.json`` says.

    Parameters
    ----------
    dialect
        How it is spoken to.
    session : str
        The session's id.
    budget : int
        A descriptor of its budget, which stays the caller's.
    pid : int, optional
        The process that is its owner; without it, one that does nothing.
    page : bool, default False
        Whether letters may lie in the control page, both ways.
    """

    def __init__(self, dialect, session, budget, *, pid=None, page=False, threads=1):
        command = dialect.command()  # which may not be there
        self.dialect = dialect
        self._known = {}
        self._tasks = 0
        self._files = contextlib.ExitStack()
        self.dummy = None
        if pid is None:
            self.dummy = subprocess.Popen(["/bin/sleep", "1000"])
            pid = self.dummy.pid
        self.channel, channel = _theus.Channel.pair()
        self.control, control = _theus.Control.create()
        self._page = page
        if page:
            self.channel.use_page(self.control, "owner")
        self._stderr = self._memory("theus-stderr")
        self.trace = self._memory("theus-trace", TRACE_BYTES)
        files = {
            "channel": channel,
            "control": control,
            "owner": os.pidfd_open(pid),
            "budget": os.dup(budget),
            "trace": os.dup(self.trace),
            "stderr": os.dup(self._stderr),
        }
        launch = {"session": session, "seat": 1, "threads": threads, **files}
        self.process = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stderr=self.trace,
            pass_fds=tuple(files.values()),
            process_group=0,
            env={**os.environ, **dialect.environment(), "THEUS_WORKER": json.dumps(launch)},
        )
        for descriptor in files.values():
            os.close(descriptor)

    def _memory(self, name, length=0):
        file = os.memfd_create(name, os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
        self._files.callback(os.close, file)
        if length:
            os.ftruncate(file, length)
            fcntl.fcntl(file, fcntl.F_ADD_SEALS, fcntl.F_SEAL_GROW | fcntl.F_SEAL_SHRINK)
        return file

    @property
    def pid(self):
        return self.process.pid

    def close(self):
        for process in filter(None, (self.process, self.dummy)):
            process.kill()
            process.wait(DEADLINE_S)
        self.channel.close()
        self._files.close()

    # --- frames ---

    def send(self, kind, fields=(), attachments=()):
        exchanged[self.dialect.name][kind] += 1
        self.channel.send_blocking(kind, fields, attachments)

    def send_parts(self, parts):
        exchanged[self.dialect.name][_theus.KIND_PARTS] += 1
        self.channel.send_parts_blocking(parts)

    def receive(self, deadline_s=DEADLINE_S):
        until = time.monotonic() + deadline_s
        while (frame := self._try_recv()) is None:
            left = until - time.monotonic()
            assert left > 0, f"nothing came for {deadline_s} s: {self.stderr()}"
            if not (self._page and self.channel.poll(POLLS_S)):
                select.select([self.channel.fileno()], [], [], min(left, 0.01))
        exchanged[self.dialect.name][frame[0]] += 1
        return Frame(*frame)

    def _try_recv(self):
        try:
            return self.channel.try_recv()
        except EOFError as error:
            with contextlib.suppress(subprocess.TimeoutExpired):
                self.process.wait(1)
            error.add_note(f"exit code {self.process.poll()}, and wrote: {self.stderr()}")
            raise

    def greet(self):
        """Take its HELLO, and tell it what comes before all else."""
        hello = self.receive()
        for frame in self.dialect.greeting():
            self.send(*frame)
        return hello

    def send_state(self, version, entries=(), domain=None):
        domain = domain or {}
        self.send(
            _theus.KIND_STATE,
            (version,),
            (
                as_json(list(entries)),
                as_json(list(domain)),
                *map(self.dialect.value, domain.values()),
            ),
        )

    def send_change(self, version, base, *, entries=(), removed=(), domain=None, gone=()):
        domain = domain or {}
        changed = {"base": base, "removed": list(removed), "set": list(entries)}
        keys = {"removed": list(gone), "set": list(domain)}
        values = map(self.dialect.value, domain.values())
        self.send(_theus.KIND_STATE, (version,), (as_json(changed), as_json(keys), *values))

    def function(self, name):
        """Return the number of the function, which is sent if it is not known."""
        if name not in self._known:
            number = self._known[name] = len(self._known) + 1
            definition = self.dialect.definition(name)
            self.send(_theus.KIND_FUNCTION, (number, self.dialect.form), (definition,))
        return self._known[name]

    def send_task(self, name, *, state=1, function=None, raw=None, **inputs):
        """Send a task; its number."""
        function = self.function(name) if function is None else function
        self._tasks += 1
        data = self.dialect.value(inputs) if raw is None else raw
        self.send(_theus.KIND_TASK, (self._tasks, state, function, self.dialect.call), (data,))
        return self._tasks

    def run(self, name, **inputs):
        """Return the frame that answers a task of these inputs."""
        number = self.send_task(name, **inputs)
        frame = self.receive()
        assert frame.fields[0] == number
        return frame

    def call(self, name, **inputs):
        """Return the result of a task of these inputs."""
        return self.result(self.run(name, **inputs))

    def result(self, frame, outputs=()):
        if frame.kind == _theus.KIND_ERROR:
            raise AssertionError(f"{self.error(frame)}: {frame.attachments[1].decode()}")
        assert frame.kind == _theus.KIND_RESULT
        return self.dialect.result(frame.attachments[0], outputs)

    def error(self, frame):
        """Return the cause, the type and the text of an ERROR frame."""
        assert frame.kind == _theus.KIND_ERROR, frame
        return frame.fields[2], *self.dialect.error(frame.attachments[0])

    # --- the process ---

    def stop(self, number):
        """Ask it to stop the task of this number, as an engine does."""
        self.control.cancel = number
        if self.dialect.is_interrupted:
            self.process.send_signal(signal.SIGINT)

    def wait_until_running(self, number):
        until = time.monotonic() + DEADLINE_S
        while self.control.running != number:
            assert time.monotonic() < until, f"{self.control.running} runs, not {number}"
            time.sleep(0.001)

    def exit_code(self):
        return self.process.wait(DEADLINE_S)

    def stderr(self):
        written = os.pread(self._stderr, 1 << 16, 0) or os.pread(self.trace, TRACE_BYTES, 0)
        return written.rstrip(b"\0").decode(errors="replace")

    def says_why_it_ended(self):
        said = self.stderr()
        return f"theus: worker {self.pid} ends" in said if self.dialect.quotes_the_core else said

    def anonymous_bytes(self):
        """Return how much memory it has for itself."""
        with open(f"/proc/{self.pid}/statm") as statm:
            _, resident, shared, *_ = map(int, statm.read().split())
        return (resident - shared) * os.sysconf("SC_PAGE_SIZE")

    def maps(self, inode):
        """Return its mappings of the file of this inode, each as the rights that it has there."""
        with open(f"/proc/{self.pid}/maps") as maps:
            fields = [line.split() for line in maps]
        return [rights for _, rights, _, _, found, *_ in fields if int(found) == inode]


def as_json(value):
    return json.dumps(value).encode()


def describe(segment, key):
    """Return the descriptor of an entry."""
    return {
        "key": key,
        "segment": segment.name,
        "kind": segment.kind,
        "length": segment.length_bytes,
    }
