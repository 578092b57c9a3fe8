"""A process of its own that starts a worker for each case, and tells what became of it.

``python nursery.py CASES [COMMAND...]``: without a command a worker is Python's loop in a fork of
this process, which takes milliseconds. A case is a list of pieces to be sent, as hex, each with a
number of descriptors that go with it.
"""

import array
import fcntl
import json
import os
import resource
import signal
import socket
import sys
import termios
import time

from theus import _theus
from theus.worker import loop

SENDS_S = 10
ENDS_S = 20
RESTS = 25  # looks in a row
EVERY_S = 0.002


def become_worker(command, launch):
    if "THEUS_SANITIZED" not in os.environ:  # a sanitizer maps terabytes
        resource.setrlimit(resource.RLIMIT_AS, (8 << 30, 8 << 30))
    if command:
        os.environ["THEUS_WORKER"] = json.dumps(launch)
        os.execv(command[0], command)  # noqa: S606 - it becomes the worker
    try:
        loop.main(launch)
    except SystemExit as leaving:
        print(leaving.code, file=sys.stderr, flush=True)
        os._exit(1)
    except BaseException as error:  # noqa: BLE001 - it is shown where it was not expected
        print(f"{type(error).__name__}: {error}", file=sys.stderr, flush=True)
        os._exit(99)
    os._exit(0)


def start(command, session, owner):
    """Start a worker; its process id, the socket to it, and what it writes to standard error."""
    ours, theirs = socket.socketpair()
    control = _theus.Control.create()[1]
    errors, trace = os.memfd_create("errors"), os.memfd_create("trace")
    files = {
        "channel": theirs.detach(),
        "control": control,
        "owner": os.pidfd_open(owner),
        "budget": os.dup(session[1]),
        "trace": trace,
        "stderr": os.dup(errors),
    }
    launch = {"session": session[0], "seat": 1, "threads": 1, **files}
    worker = os.fork()
    if worker == 0:
        ours.close()
        os.dup2(errors, 2)
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        for descriptor in files.values():
            os.set_inheritable(descriptor, True)  # noqa: FBT003 - as the library has it
        become_worker(command, launch)
    for descriptor in files.values():
        os.close(descriptor)
    return worker, ours, errors


def send(ours, pieces):
    ours.settimeout(SENDS_S)
    null = os.open(os.devnull, os.O_RDONLY)
    try:
        for data, descriptors in pieces:
            socket.send_fds(ours, [bytes.fromhex(data)], [null] * descriptors)
        ours.shutdown(socket.SHUT_WR)
    except OSError:
        pass  # it has ended
    finally:
        os.close(null)


def rests(worker, ours):
    """Whether it has taken all that was sent, and sleeps."""
    with open(f"/proc/{worker}/stat") as stat:
        state = stat.read().rpartition(")")[2].split()[0]
    return state == "S" and unsent(ours) == 0


def unsent(ours):
    waiting = array.array("i", [0])
    fcntl.ioctl(ours.fileno(), termios.TIOCOUTQ, waiting)
    return waiting[0]


def run(command, session, pieces):
    owner = os.fork()
    if owner == 0:
        signal.pause()
        os._exit(0)
    worker, ours, errors = start(command, session, owner)
    send(ours, pieces)
    deadline, looks, waited = time.monotonic() + ENDS_S, 0, False
    while True:
        pid, status, usage = os.wait4(worker, os.WNOHANG)
        if pid:
            break
        if time.monotonic() > deadline:
            os.kill(worker, signal.SIGKILL)
            os.wait4(worker, 0)
            break
        looks = looks + 1 if rests(worker, ours) else 0
        if looks == RESTS:  # its owner does not talk to it any more: it waits for its end
            waited = True
            os.kill(owner, signal.SIGKILL)
        time.sleep(EVERY_S)
    os.kill(owner, signal.SIGKILL)
    os.waitpid(owner, 0)
    ours.close()
    text = os.pread(errors, 1 << 16, 0).decode(errors="replace")
    os.close(errors)
    return {
        "hung": not pid,
        "waited": waited,
        "code": os.waitstatus_to_exitcode(status) if pid else None,
        "errors": text,
        "memory": usage.ru_maxrss << 10,
    }


def main(cases, *command):
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    session = _theus.Session.create()
    known = session.id, session.budget_fd()
    session.close()  # so that workers whose owner ends find nothing to sweep
    with open(cases) as file:
        pieces = json.load(file)
    print(json.dumps([run(command, known, case) for case in pieces]))


if __name__ == "__main__":
    main(*sys.argv[1:])
