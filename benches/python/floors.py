"""What nobody can beat on this machine: the system calls and copies that a row cannot do without.

Run as a program, it is the other end of the socket pair.
"""

import os
import pickle
import socket
import struct
import subprocess
import sys
import time
from contextlib import contextmanager
from pathlib import Path

import peers

_MESSAGE = ("nothing", 1)
_LENGTH = struct.Struct("<I")
_READ_BYTES = 1 << 16
_ON_THEIR_WAY = 128


@contextmanager
def socket_pair(mode):
    """Start the other end, on the processors that Theus gives its workers; give our end."""
    with peers.peer("theus")(1) as ours:
        cores = ours.engine.submit(lambda ctx: os.sched_getaffinity(0)).result()
    here, there = socket.socketpair()
    with here, there:
        command = [sys.executable, __file__, mode, str(there.fileno()), *map(str, cores)]
        with subprocess.Popen(command, pass_fds=[there.fileno()]) as child:
            there.close()
            try:
                yield here
            finally:
                here.close()
                child.wait(10)


@contextmanager
def ping_pong():
    """Give a function that sends a pickle over a blocking socket pair and has one back."""
    with socket_pair("echo") as end:

        def trip():
            end.sendall(pickle.dumps(_MESSAGE, 5))
            pickle.loads(end.recv(_READ_BYTES))

        yield trip


@contextmanager
def pipelined(in_one_write):
    """Give a function that has ``count`` pickles answered, so many of them in each write."""
    with socket_pair("answer each" if in_one_write == 1 else "answer all") as end:

        def trips(count):
            sent = answered = 0
            rest = b""
            while answered < count:
                # There is always something on its way, so that neither end waits.
                while sent < count and sent - answered <= _ON_THEIR_WAY:
                    many = min(in_one_write, count - sent)
                    end.sendall(b"".join(_framed(_MESSAGE) for _ in range(many)))
                    sent += many
                answers, rest = _unframed(rest + end.recv(_READ_BYTES))
                answered += len(answers)

        yield trips


def _framed(message):
    data = pickle.dumps(message, 5)
    return _LENGTH.pack(len(data)) + data


def _unframed(data):
    """Return the messages in it, and what is left of the last."""
    messages, place = [], 0
    while place + _LENGTH.size <= len(data):
        (length,) = _LENGTH.unpack_from(data, place)
        end = place + _LENGTH.size + length
        if end > len(data):
            break
        messages.append(pickle.loads(data[place + _LENGTH.size : end]))
        place = end
    return messages, data[place:]


@contextmanager
def copier(size):
    """Give a function that has ``examples/floor.rs`` copy or write ``size`` bytes; seconds."""
    program = os.environ.get("THEUS_FLOOR", "")
    if not Path(program).is_file():
        msg = "the program that copies is not built: make bench does"
        raise FileNotFoundError(msg)
    pipe = subprocess.PIPE
    with subprocess.Popen([program, str(size)], stdin=pipe, stdout=pipe, text=True) as child:

        def seconds(what, threads):
            child.stdin.write(f"{what} {threads}\n")
            child.stdin.flush()
            return int(child.stdout.readline()) / 1e9

        yield seconds


def timed(work):
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def _answer(mode, end):
    rest = b""
    while data := end.recv(_READ_BYTES):
        if mode == "echo":
            end.sendall(pickle.dumps(pickle.loads(data), 5))
            continue
        messages, rest = _unframed(rest + data)
        answers = map(_framed, messages)
        for answer in answers if mode == "answer each" else [b"".join(answers)]:
            end.sendall(answer)


if __name__ == "__main__":
    os.sched_setaffinity(0, set(map(int, sys.argv[3:])))
    _answer(sys.argv[1], socket.socket(fileno=int(sys.argv[2])))
