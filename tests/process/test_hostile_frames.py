"""Frames that are not what they claim, from a worker: it is dropped, and the others go on.

Those to a worker are in ``tests/conformance``.
"""

import json
import pickle
import struct

import pytest

from theus import ProtocolError, TheusEngine, WorkerDiedError, _theus, process
from theus._theus import encode_frame
from theus.dispatch.programs import PythonProgram

RESULT = _theus.KIND_RESULT
PARTS = encode_frame(_theus.KIND_PARTS, (64, 0, 64))


def head(kind, fields, attachments, total, *, version=_theus.PROTOCOL_VERSION, magic=b"TH"):
    return magic + struct.pack("<BBHHQ", version, kind, fields, attachments, total)


# A worker of a few lines, which does with its first task what the test says.
BROKEN = """
import json, mmap, os, socket, struct, sys, time

launch, answer = json.loads(os.environ["THEUS_WORKER"]), json.loads(sys.argv[1])
channel = socket.socket(fileno=launch["channel"])
control = mmap.mmap(launch["control"], 4096)

def frame(kind, fields, attachments=()):
    words = [*fields, *map(len, attachments)]
    total = 16 + 8 * len(words) + sum(map(len, attachments))
    head = struct.pack("<BBHHQ", 2, kind, len(fields), len(attachments), total)
    return b"TH" + head + struct.pack(f"<{len(words)}Q", *words) + b"".join(attachments)

def receive(count):
    data = channel.recv(count, socket.MSG_WAITALL)
    if len(data) < count:
        os._exit(0)
    return data

if answer["hello"]:
    channel.sendall(frame(2, (2, os.getpid()), (answer["hello"].encode(),)))
while True:
    head = receive(16)
    rest = receive(struct.unpack("<Q", head[8:])[0] - 16)
    if head[3] == 7:
        break
number = struct.unpack("<Q", rest[:8])[0]
if answer["begins"]:
    control[:8] = struct.pack("<Q", number)
descriptors = [os.open(os.devnull, os.O_RDONLY)] * answer["descriptors"]
for piece in answer["pieces"]:
    data = bytes.fromhex(piece).replace(b"NUMBERED", struct.pack("<Q", number))
    socket.send_fds(channel, [data], descriptors)
if answer["ends_its_task"]:
    control[:8] = bytes(8)
if answer["leaves"]:
    os._exit(0)
while channel.recv(65536):
    pass
"""

HELLO_SAYS = '{"language": "", "library": "", "capabilities": ["pickle"], "tasks": []}'
NUMBER = int.from_bytes(b"NUMBERED", "little")  # stands for the task's number
RESULT_HEAD = head(RESULT, 2, 1, 16 + 24 + 4)

ANSWERS = {
    "no frame": ([b"Traceback (most recent call last):\n"], "begins with"),
    "another version": ([head(RESULT, 2, 1, 40, version=7)], "version 7"),
    "wrong counts": ([head(RESULT, 1, 1, 32)], "2 fields"),
    "lengths that overflow": (
        [head(RESULT, 2, 1, 2**63) + struct.pack("<QQQ", NUMBER, 1, 2**64 - 1)],
        "says that it has",
    ),
    "another task's result": ([encode_frame(RESULT, (NUMBER + 77, 1), (b"",))], "not the one"),
    "a result twice": ([encode_frame(RESULT, (NUMBER, 1), (pickle.dumps(1),))] * 2, None),
    "an owner's frame": ([encode_frame(_theus.KIND_SETUP, (), (b"{}",))], "from the owner"),
    "an owner's task": (
        [encode_frame(_theus.KIND_TASK, (NUMBER, 1, 1, 1), (b"",))],
        "from the owner",
    ),
    "no pickle": ([encode_frame(RESULT, (NUMBER, 1), (b"no pickle",))], ""),
    "no parts": ([encode_frame(RESULT, (NUMBER, 1), (b"",))], ""),
    "no UTF-8": (
        [encode_frame(_theus.KIND_ERROR, (NUMBER, 1, 0), (pickle.dumps(KeyError(3)), b"\xff"))],
        "3",
    ),
    "no descriptor": ([PARTS], "no descriptor goes with"),
    "half a frame": ([RESULT_HEAD], "while it ran"),
    "an enormous claim": (
        [head(RESULT, 2, 1, 2**62) + struct.pack("<QQQ", NUMBER, 1, 2**62 - 40) + b"x" * 100],
        "while it ran",
    ),
}
DIES = {"half a frame", "an enormous claim"}
ENDS_ITS_TASK = {"no pickle", "no parts", "no UTF-8"}
WITH_DESCRIPTORS = {
    "a descriptor of something else": ([PARTS], "length is not the frame's", 1),
    "descriptors too many": ([PARTS[:16]], "came with no", 2),
    "a descriptor for nothing": ([b"TH", b"\x02\x08", b"\x02\x00"], "came with no", 1),
}


def double(ctx, item):
    return 2 * item


# The first worker, and who comes in its place, takes an answer that nobody has taken; without one
# it is as others are.
CLAIMS = """
import json, os, sys
place, python, source, *arguments = sys.argv[1:]
first = json.loads(os.environ["THEUS_WORKER"])["seat"] == 1
for name in sorted(os.listdir(place)) if first else []:
    try:
        os.unlink(os.path.join(place, name))
    except FileNotFoundError:
        continue
    os.execv(python, [python, "-S", "-E", "-c", source, os.environ["ANSWER"]])
os.execv(python, [python, *arguments])
"""


@pytest.fixture
def broken_worker(monkeypatch, tmp_path):
    """Make the first worker, or more, answer its first task like this."""
    launch = PythonProgram.launch
    armed = tmp_path / "answers"
    armed.mkdir()

    def launch_broken(program):
        python, arguments, environment = launch(program)
        claims = ["-S", "-E", "-c", CLAIMS, str(armed), python, BROKEN, *arguments]
        return python, claims, environment

    monkeypatch.setattr(PythonProgram, "launch", launch_broken)

    def arm(pieces, *, leaves=False, ends_its_task=False, workers=1, **rest):
        answer = {
            "pieces": [piece.hex() for piece in pieces],
            "leaves": leaves or ends_its_task,
            "ends_its_task": ends_its_task,
            "descriptors": 0,
            "hello": HELLO_SAYS,
            "begins": True,
            **rest,
        }
        monkeypatch.setenv("ANSWER", json.dumps(answer))
        for number in range(workers):
            (armed / str(number)).touch()

    return arm


def outcomes_of(futures):
    found = []
    for future in futures:
        try:
            found.append(future.result(30))
        except Exception as error:  # noqa: BLE001 - whatever it is, it is looked at
            found.append(error)
    return found


@pytest.mark.parametrize("kind", [*ANSWERS, *WITH_DESCRIPTORS])
def test_a_broken_worker_is_dropped_and_the_others_go_on(broken_worker, kind):
    pieces, reason, descriptors = WITH_DESCRIPTORS.get(kind) or (*ANSWERS[kind], 0)
    broken_worker(
        pieces,
        descriptors=descriptors,
        leaves=kind in DIES,
        ends_its_task=kind in ENDS_ITS_TASK,
    )
    with TheusEngine(workers=2) as engine:
        futures = [engine.submit(process(double), item=item) for item in range(3)]
        first, *others = outcomes_of(futures)
        assert others == [2, 4]
        assert outcomes_of([engine.submit(process(double), item=8)]) == [16]
    if reason is None:  # the first answer counts, and what follows it ends the worker
        assert first == 1
        return
    assert isinstance(first, Exception)
    assert reason in str(first)
    if kind not in ENDS_ITS_TASK:
        assert isinstance(first, WorkerDiedError if kind in DIES else ProtocolError)
        assert "test_hostile_frames.double" in str(first)


def test_a_task_that_was_not_begun_goes_to_one_more_worker(broken_worker):
    for workers in 1, 2:
        broken_worker([b"no frame at all!"], hello=None, begins=False, workers=workers)
        with TheusEngine(workers=1) as engine:
            (first,) = outcomes_of([engine.submit(process(double), item=1)])
            assert first == 2 if workers == 1 else isinstance(first, ProtocolError)
            assert outcomes_of([engine.submit(process(double), item=8)]) == [16]


HELLOS = {
    "no JSON": ("{", "no JSON"),
    "another JSON": ("[]", "an object"),
    "no language": ("{}", "language"),
    "a number for a name": (HELLO_SAYS.replace("[]", "[7]"), "tasks"),
    "a task twice": (HELLO_SAYS.replace("[]", '["a", "a"]'), "twice"),
    "another capability": (HELLO_SAYS.replace("pickle", "plain"), "no worker for Python"),
}


@pytest.mark.parametrize("kind", HELLOS)
def test_a_worker_that_says_something_else_of_itself_is_ended(broken_worker, kind):
    says, reason = HELLOS[kind]
    broken_worker([], hello=says, begins=False, workers=2)
    with TheusEngine(workers=1) as engine:
        (first,) = outcomes_of([engine.submit(process(double), item=1)])
        assert isinstance(first, ProtocolError)
        assert reason in str(first)
        assert outcomes_of([engine.submit(process(double), item=8)]) == [16]
