#!/usr/bin/env python3
"""A worker written from `schemas/` alone, with nothing but the standard library.

It is what a program in a third language would be, so it imports nothing of theus: frames.json,
worker.json, values.json, control.json, budget.json and descriptor.json say all that it knows.
"""

import json
import mmap
import os
import select
import signal
import socket
import struct
import sys
import threading
import time
import traceback

VERSION = 2
HELLO, STATE, FORGET_STATE, FUNCTION, FORGET_FUNCTION, TASK = 2, 3, 4, 5, 6, 7
RESULT, ERROR, RELEASE, SHUTDOWN, OUTPUT, LOG, PROGRESS = 8, 9, 10, 11, 13, 14, 15
RAISED, UNSENDABLE, UNKNOWN, INPUTS, PANICKED, STOPPED = range(6)
RUNNING, CANCEL = 0, 64  # words of the control page
LIMIT, COUNTERS, SEATS = 0, 40, 1019  # of the budget page

# --- plain values: values.json, and the specification of MessagePack ---


class Extension:
    """An entry, an output, or what stands for a value that is not plain."""

    def __init__(self, code, data):
        self.code, self.data = code, data


SIZES = {0: ">B", 1: ">H", 2: ">I", 3: ">Q"}


def pack(value):  # noqa: PLR0911 - one for each kind of value
    if value is None or isinstance(value, bool):
        return {None: b"\xc0", False: b"\xc2", True: b"\xc3"}[value]
    if isinstance(value, int):
        return struct.pack(">Bq", 0xD3, value) if value < 0 else struct.pack(">BQ", 0xCF, value)
    if isinstance(value, float):
        return struct.pack(">Bd", 0xCB, value)
    if isinstance(value, str):
        data = value.encode()
        return struct.pack(">BI", 0xDB, len(data)) + data
    if isinstance(value, bytes):
        return struct.pack(">BI", 0xC6, len(value)) + value
    if isinstance(value, list):
        return struct.pack(">BI", 0xDD, len(value)) + b"".join(map(pack, value))
    if isinstance(value, dict):
        pairs = b"".join(pack(key) + pack(item) for key, item in value.items())
        return struct.pack(">BI", 0xDF, len(value)) + pairs
    if isinstance(value, Output):
        value = value.refer()
    if isinstance(value, Extension):
        return struct.pack(">BIb", 0xC9, len(value.data), value.code) + value.data
    raise TypeError(f"a {type(value).__name__} is no plain value")


class Unpacker:
    def __init__(self, data):
        self.data, self.at = data, 0

    def take(self, count):
        self.at += count
        return self.data[self.at - count : self.at]

    def number(self, form):
        return struct.unpack(form, self.take(struct.calcsize(form)))[0]

    def array(self, count):
        return [self.value() for _ in range(count)]

    def map(self, count):
        return {self.value(): self.value() for _ in range(count)}

    def extension(self, count):
        return Extension(self.number("b"), self.take(count))

    def value(self):
        first = self.number("B")
        if first < 0x80 or first >= 0xE0:
            return first if first < 0x80 else first - 256
        for start, end, count, kind in (
            (0x80, 0x90, first & 15, self.map),
            (0x90, 0xA0, first & 15, self.array),
            (0xA0, 0xC0, first & 31, lambda count: self.take(count).decode()),
            (0xD4, 0xD9, 1 << (first - 0xD4) % 8, self.extension),
        ):
            if start <= first < end:
                return kind(count)
        if first in (0xC0, 0xC2, 0xC3):
            return {0xC0: None, 0xC2: False, 0xC3: True}[first]
        if first in (0xCA, 0xCB):
            return self.number(">f" if first == 0xCA else ">d")
        if 0xCC <= first < 0xD4:
            return self.number(SIZES[first & 3] if first < 0xD0 else SIZES[first & 3].lower())
        for start, end, smallest, kind in (
            (0xC4, 0xC7, 0, self.take),
            (0xC7, 0xCA, 0, self.extension),
            (0xD9, 0xDC, 0, lambda count: self.take(count).decode()),
            (0xDC, 0xDE, 1, self.array),
            (0xDE, 0xE0, 1, self.map),
        ):
            if start <= first < end:
                return kind(self.number(SIZES[smallest + first - start]))
        raise ValueError(f"MessagePack has no byte {first:#x} here")


def unpack(data):
    return Unpacker(data).value()


# --- frames: frames.json ---


def encode(kind, fields, attachments):
    words = [*fields, *map(len, attachments)]
    total = 16 + 8 * len(words) + sum(map(len, attachments))
    head = struct.pack("<2sBBHHQ", b"TH", VERSION, kind, len(fields), len(attachments), total)
    return head + struct.pack(f"<{len(words)}Q", *words) + b"".join(attachments)


def receive(channel, count):
    data = channel.recv(count, socket.MSG_WAITALL) if count else b""
    if len(data) < count:
        sys.exit("the owner has closed the channel")
    return data


def read_frame(channel):
    head = receive(channel, 16)
    magic, version, kind, field_count, attachment_count, total = struct.unpack("<2sBBHHQ", head)
    if (magic, version) != (b"TH", VERSION):
        sys.exit(f"this is no frame of version {VERSION}: {head!r}")
    rest = receive(channel, total - 16)
    count = field_count + attachment_count
    words = struct.unpack_from(f"<{count}Q", rest)
    attachments, at = [], 8 * count
    for length in words[field_count:]:
        attachments.append(rest[at : at + length])
        at += length
    return kind, words[:field_count], attachments


# --- the heavy zone: descriptor.json, and Arrow's tensors ---


def read_f8(descriptor):
    """The items of a tensor of float64 with one dimension."""
    if descriptor["kind"] != "tensor":
        raise TaskError("Kind", f"{descriptor['key']} is a {descriptor['kind']}", "wrong type")
    with open("/dev/shm/" + descriptor["segment"], "rb") as file:
        data = mmap.mmap(file.fileno(), descriptor["length"], prot=mmap.PROT_READ)
    (header,) = struct.unpack_from("<i", data, 4)
    start, stride, count = 8 + header, 8, (descriptor["length"] - 8 - header) // 8
    if "view" in descriptor:
        view = descriptor["view"]
        start, (count,), (stride,) = view["offset"], view["shape"], view["strides"]
    return [struct.unpack_from("<d", data, start + stride * i)[0] for i in range(count)]


def header_u8(count):
    """The bytes before a tensor of uint64 with one dimension: an Arrow message, then its items."""
    message = struct.pack(
        "<I6H ihBxI4xq 7H2x iB3xIIqq 4H ii II 2x3H i4xq",
        *(16, 12, 24, 4, 6, 8, 16),  # where Message begins; where its fields lie in it
        *(12, 4, 4, 56 - 24, 8 * count),  # its version 5, its header's type and place, the body
        *(14, 32, 4, 8, 12, 0, 16),  # Tensor: no strides
        *(16, 2, 96 - 64, 104 - 68, 0, 8 * count),  # the type's type and place, the shape, the body
        *(8, 8, 4, 0),  # Int, not signed
        *(8, 64),
        *(1, 120 - 108),  # the shape
        *(6, 16, 8),  # TensorDim, without a name
        *(6, count),
    )
    return struct.pack("<Ii", 0xFFFFFFFF, 4096 - 8) + message.ljust(4096 - 8, b"\0")


class Budget:
    """The worker's counter at the budget page."""

    def __init__(self, file, seat):
        self.page = memoryview(mmap.mmap(file, COUNTERS + 8 * SEATS)).cast("Q")
        self.seat = COUNTERS // 8 + seat
        self.unsent = 0
        self.fence = threading.Lock()

    def reserve(self, count):
        # There is no atomic addition in this language.
        until = time.monotonic() + 10
        while self.page[self.seat] != self.unsent:
            if time.monotonic() > until:
                raise TaskError("Full", "the owner has not taken what was sent", "heavy zone full")
            time.sleep(0.0001)
        counters = self.page[COUNTERS // 8 :]
        fits = self.unsent + count <= self.page[LIMIT]  # else it may have more than 64 bits
        if fits:
            self.page[self.seat] = self.unsent + count
            with self.fence:
                pass
            fits = sum(counters[1:]) + counters[0] <= self.page[LIMIT]
        if not fits:
            self.page[self.seat] = self.unsent
            text = f"{count} bytes are more than the limit leaves"
            raise TaskError("Full", text, "heavy zone full")
        self.unsent += count

    def release(self, count):
        self.page[self.seat] -= count
        self.unsent -= count


class Output:
    """A tensor of uint64 that a task makes in place."""

    def __init__(self, context, count):
        self.context, self.length = context, 4096 + 8 * count
        context.worker.budget.reserve(self.length)
        try:
            self.file = os.open("/dev/shm", os.O_TMPFILE | os.O_RDWR | os.O_CLOEXEC, 0o600)
            try:
                os.posix_fallocate(self.file, 0, self.length)
                self.mapping = mmap.mmap(self.file, self.length)
            except BaseException:
                os.close(self.file)
                raise
        except (OSError, OverflowError) as error:
            context.worker.budget.release(self.length)
            raise TaskError("Full", str(error), "heavy zone full") from error
        self.mapping[:4096] = header_u8(count)
        self.items = memoryview(self.mapping)[4096:].cast("Q")
        context.made.append(self)

    def refer(self):
        """What stands for it in the result."""
        if self not in self.context.referred:
            self.context.made.remove(self)
            self.context.referred.append(self)
        return Extension(2, struct.pack("<Q", self.context.referred.index(self)))

    def close(self):
        self.items.release()
        self.mapping.close()
        os.close(self.file)


# --- tasks ---


class TaskError(Exception):
    """An error that a task returns."""

    def __init__(self, kind, message, meaning=None, cause=RAISED):
        super().__init__(message)
        self.said = {"type": kind, "message": message}
        if meaning is not None:
            self.said["meaning"] = meaning
        self.cause = cause


class Context:
    """What a task has: its inputs, its state, and its owner's ear."""

    def __init__(self, worker, task):
        self.worker, self.task = worker, task
        self.state, self.inputs = None, None
        self.made, self.referred = [], []

    def tell(self, kind, numbers, text):
        self.worker.send(kind, (self.task, *numbers), (text.encode(),))

    def check_stopped(self):
        if self.worker.page[CANCEL // 8] == self.task:
            raise TaskError("Stopped", "it was stopped", cause=STOPPED)

    def entry(self, given):
        """The descriptor of an entry that was given, or named."""
        if isinstance(given, Extension):
            return json.loads(given.data)
        if given not in self.state["entries"]:
            raise TaskError("NoEntry", f"there is no entry {given!r}", "entry not found")
        return self.state["entries"][given]

    def drop(self, outputs):
        while outputs:
            output = outputs.pop()
            output.close()
            self.worker.budget.release(output.length)

    def send_outputs(self):
        """Send what the result refers to, by descriptors that can only read."""
        self.drop(self.made)  # first: from now on the owner may change the counter
        for number, output in enumerate(tuple(self.referred)):
            reader = os.open(f"/proc/self/fd/{output.file}", os.O_RDONLY | os.O_CLOEXEC)
            self.referred.remove(output)
            output.close()
            frame = encode(OUTPUT, (number, output.length), ())
            socket.send_fds(self.worker.channel, [frame], [reader])
            os.close(reader)
            self.worker.budget.unsent -= output.length


def echo(context):
    return context.inputs


def noop(_):
    return None


def add(context):
    try:
        return sum(context.inputs["numbers"])
    except (KeyError, TypeError) as error:
        raise TaskError(type(error).__name__, f"numbers: {error}", cause=INPUTS) from error


def double(context):
    return 2 * context.inputs["item"]


def total(context):
    return sum(read_f8(context.entry(context.inputs["column"])))


def domain(context):
    return {key: unpack(value) for key, value in context.state["domain"].items()}


def nap(context):
    """Sleep, looking at the page; or not looking, as a program that is stuck."""
    until = time.monotonic() + context.inputs["seconds"]
    while time.monotonic() < until:
        time.sleep(0.002)
        if not context.inputs.get("deaf"):
            context.check_stopped()
    return "slept"


def fail(context):
    given = context.inputs
    raise TaskError("Deliberate", "as asked", given.get("meaning"), given.get("cause", RAISED))


def unsendable(_):
    return object()


def log(context):
    for level in context.inputs.get("levels", [20]):
        context.tell(LOG, (level,), f"a line of level {level}")
    return "logged"


def progress(context):
    for done in range(1, 4):
        context.tell(PROGRESS, (done, context.inputs["total"]), f"step {done}")
    time.sleep(context.inputs.get("seconds", 0))
    return "done"


def die(context):
    """Die of SIGKILL; if there is a path, only as long as nothing is there, which it puts there."""
    path = context.inputs.get("path")
    if path is None or not os.path.exists(path):
        if path is not None:
            open(path, "x").close()
        os.kill(os.getpid(), signal.SIGKILL)
    return "survived"


def pid(_):
    return os.getpid()


def squares(context):
    output = Output(context, context.inputs["count"])
    for n in range(len(output.items)):
        output.items[n] = n * n
    return output


def environment(context):
    return os.environ.get(context.inputs["variable"])


FUNCTIONS = (
    add,
    die,
    domain,
    double,
    echo,
    environment,
    fail,
    log,
    nap,
    noop,
    pid,
    progress,
    squares,
    total,
    unsendable,
)
TASKS = {f"book.{function.__name__}": function for function in FUNCTIONS}

# --- the worker: worker.json and control.json ---


class Worker:
    def __init__(self, launch):
        self.channel = socket.socket(fileno=launch["channel"])
        self.owner = launch["owner"]
        self.page = memoryview(mmap.mmap(launch["control"], 4096)).cast("Q")
        self.budget = Budget(launch["budget"], launch["seat"])
        self.states = {}
        self.functions = {}

    def send(self, kind, fields, attachments):
        self.channel.sendall(encode(kind, fields, attachments))

    def say_hello(self):
        said = {"language": "python, by the book", "library": "none", "capabilities": ["plain"]}
        said["tasks"] = sorted(TASKS)
        self.send(HELLO, (VERSION, os.getpid()), (json.dumps(said).encode(),))

    def serve(self):
        handlers = {
            STATE: self.take_state,
            FORGET_STATE: lambda fields, _: self.states.pop(fields[0], None),
            FUNCTION: self.take_function,
            FORGET_FUNCTION: lambda fields, _: self.functions.pop(fields[0]),
            TASK: self.run,
            RELEASE: lambda *_: None,  # nothing stays mapped between two tasks
        }
        while True:
            ready, _, _ = select.select([self.channel, self.owner], [], [])
            if self.owner in ready:
                sys.exit("the owner has ended")
            kind, fields, attachments = read_frame(self.channel)
            if kind == SHUTDOWN:
                return
            handlers[kind](fields, attachments)

    def take_state(self, fields, attachments):
        entries, keys = map(json.loads, attachments[:2])
        known = {"entries": {}, "domain": {}}
        if isinstance(entries, dict):
            known = self.states[entries["base"]]
        else:
            entries, keys = ({"removed": [], "set": new} for new in (entries, keys))
        state = {part: dict(items) for part, items in known.items()}
        for part, change in ("entries", entries), ("domain", keys):
            for key in change["removed"]:
                state[part].pop(key, None)
        state["entries"] |= {descriptor["key"]: descriptor for descriptor in entries["set"]}
        state["domain"] |= dict(zip(keys["set"], attachments[2:], strict=True))
        self.states[fields[0]] = state

    def take_function(self, fields, attachments):
        number, form = fields
        if form != 3:
            sys.exit(f"it has no capability for functions of form {form}")
        self.functions[number] = json.loads(attachments[0])["name"]

    def run(self, fields, attachments):
        task, version, number, _ = fields
        self.page[RUNNING // 8] = task
        started = time.perf_counter_ns()
        context = Context(self, task)
        try:
            context.check_stopped()
            context.state, context.inputs = self.states[version], unpack(attachments[0])
            function = TASKS.get(self.functions[number])
            if function is None:
                raise TaskError("", "", cause=UNKNOWN)
            result = function(context)
            try:
                answer = RESULT, (), (pack(result),)
            except TypeError as error:
                raise TaskError("TypeError", str(error), cause=UNSENDABLE) from None
            context.send_outputs()
        except TaskError as error:
            data = b"" if error.cause == UNKNOWN else pack(error.said)
            answer = ERROR, (error.cause,), (data, b"")
        except Exception as error:  # noqa: BLE001 - the mistake of a task is its caller's to see
            said = {"type": type(error).__name__, "message": str(error)}
            answer = ERROR, (PANICKED,), (pack(said), traceback.format_exc().encode())
        kind, more, data = answer
        if kind == ERROR:
            context.drop(context.made)
            context.drop(context.referred)
        self.send(kind, (task, time.perf_counter_ns() - started, *more), data)
        self.page[RUNNING // 8] = 0


def main():
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    launch = json.loads(os.environ.pop("THEUS_WORKER"))
    worker = Worker(launch)
    worker.say_hello()
    os.dup2(launch["stderr"], 2)
    worker.serve()


if __name__ == "__main__":
    main()
