"""Frames that are not what they claim, to a worker and from one: it ends, with a reason.

What a pickle does when it is loaded is its sender's to say, so a frame's pickles are only replaced
by some that cannot be loaded: owner and workers trust each other that far.
"""

import json
import os
import pickle
import random
import struct
import subprocess
import sys

import pytest

from theus import ProtocolError, TheusEngine, WorkerDiedError, _theus, process
from theus._theus import encode_frame
from theus.program import PythonProgram

# --- to a worker ---

# Its own process starts workers by fork, which takes milliseconds: each runs the product's loop.
NURSERY = """
import json, os, random, resource, socket, sys, time
from theus import _theus, _worker

_worker._OWNER_ENDS_S = 0.05
resource.setrlimit(resource.RLIMIT_CORE, (0, 0))

def run(session, pieces):
    ours, theirs = socket.socketpair()
    control, control_fd = _theus.Control.create()
    owner = os.pidfd_open(os.getpid())
    errors, trace = os.memfd_create("errors"), os.memfd_create("trace")
    budget = session.budget_fd()
    child = os.fork()
    if child == 0:
        ours.close()
        os.dup2(errors, 2)
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        resource.setrlimit(resource.RLIMIT_AS, (8 << 30, 8 << 30))
        status = 99
        try:
            files = {"channel": theirs.detach(), "control": control_fd, "owner": owner}
            files |= {"trace": trace, "budget": budget, "stderr": os.dup(errors)}
            _worker.main({"session": session.id, "seat": 1, "threads": 1, **files})
            status = 0
        except SystemExit as leaving:
            print(leaving.code, file=sys.stderr)
            status = 1
        except BaseException as error:
            print(f"{type(error).__name__}: {error}", file=sys.stderr)
        sys.stderr.flush()
        os._exit(status)
    for descriptor in (theirs.detach(), control_fd, owner, trace, budget):
        os.close(descriptor)
    ours.settimeout(10)
    null = os.open(os.devnull, os.O_RDONLY)
    try:
        for data, descriptors in pieces:
            socket.send_fds(ours, [bytes.fromhex(data)], [null] * descriptors)
        ours.shutdown(socket.SHUT_WR)
    except OSError:
        pass
    os.close(null)
    deadline = time.monotonic() + 20
    while True:
        pid, status, usage = os.wait4(child, os.WNOHANG)
        if pid:
            break
        if time.monotonic() > deadline:
            os.kill(child, 9)
            os.wait4(child, 0)
            return {"hung": True}
        time.sleep(0.002)
    ours.close()
    os.lseek(errors, 0, os.SEEK_SET)
    text = os.read(errors, 1 << 16).decode(errors="replace")
    os.close(errors)
    code = os.waitstatus_to_exitcode(status)
    return {"hung": False, "code": code, "errors": text, "memory": usage.ru_maxrss << 10}

session = _theus.Session.create(backend=None, heavy_limit=None)
with open(sys.argv[1]) as file:
    cases = json.load(file)
print(json.dumps([run(session, pieces) for pieces in cases]))
session.close()
"""

HELLO, STATE, RESULT = _theus.KIND_HELLO, _theus.KIND_STATE, _theus.KIND_RESULT
CALL = pickle.dumps(((), {}), 5)
FUNCTION = pickle.dumps(({}, pickle.dumps(int)), 5)
SETUP = encode_frame(_theus.KIND_SETUP, (), (json.dumps({"sys_path": sys.path}).encode(),))
ONE_STATE = encode_frame(STATE, (1,), (b"[]", b"[]"))
ONE_FUNCTION = encode_frame(_theus.KIND_FUNCTION, (1, 1), (FUNCTION,))
SHUTDOWN = encode_frame(_theus.KIND_SHUTDOWN, ())


def differing(state, base):
    entries = b'{"base":%d,"removed":["x"],"set":[]}' % base
    return encode_frame(STATE, (state,), (entries, b'{"removed":["a"],"set":["b"]}', CALL))


def task(number=1, state=1, function=1, call=2, inputs=CALL):
    return encode_frame(_theus.KIND_TASK, (number, state, function, call), (inputs,))


WORK = [SETUP, ONE_STATE, ONE_FUNCTION, task(), SHUTDOWN]


def head(kind, fields, attachments, total, *, version=_theus.PROTOCOL_VERSION, magic=b"TH"):
    return magic + struct.pack("<BBHHQ", version, kind, fields, attachments, total)


def in_one(*frames, descriptors=0):
    return [[b"".join(frames).hex(), descriptors]]


def one_by_one(*frames, descriptors=0):
    return [[frame.hex(), descriptors] for frame in frames]


def run_workers(tmp_path, cases):
    """Run the loop on each case; what became of it."""
    script, data = tmp_path / "nursery.py", tmp_path / "cases.json"
    script.write_text(NURSERY)
    data.write_text(json.dumps(cases))
    done = subprocess.run(
        [sys.executable, script, data], capture_output=True, text=True, timeout=50, check=False
    )
    assert done.returncode == 0, done.stderr
    outcomes = json.loads(done.stdout)
    assert len(outcomes) == len(cases)
    return outcomes


PARTS = encode_frame(_theus.KIND_PARTS, (64, 0, 64))
HUGE = head(STATE, 1, 2, 2**62) + struct.pack("<QQQ", 1, 8, 2**62 - 16 - 24 - 8)

# What is sent after which the loop has to end, and what it says then.
ENDS = {
    "no frame": (in_one(b"GET / HTTP/1.1\r\n\r\n"), "begins with"),
    "another version": (in_one(head(1, 0, 1, 24, version=9), bytes(8)), "version 9"),
    "no kind": (in_one(head(77, 0, 0, 16)), "number 77"),
    "wrong counts": (in_one(head(_theus.KIND_TASK, 3, 1, 48), bytes(32)), "4 fields"),
    "a total that is too small": (in_one(head(STATE, 1, 2, 17), bytes(24)), "says that it has 17"),
    "lengths that overflow": (
        in_one(head(STATE, 1, 2, 40), struct.pack("<QQQ", 1, 2**63, 2**63)),
        "says that it has 40",
    ),
    "an enormous claim": (in_one(HUGE, b"[]" * 4), "into a frame"),
    "a start of a frame": (in_one(SETUP[:-3]), "into a frame"),
    "a worker's frame": (in_one(encode_frame(RESULT, (1, 1), (b"",))), f"kind {RESULT} means"),
    "no descriptor": (in_one(PARTS), "no descriptor goes with"),
    "a descriptor of something else": (
        one_by_one(PARTS, descriptors=1),
        "length is not the frame's",
    ),
    "a descriptor too many": (one_by_one(PARTS[:16], descriptors=2), "came with no PARTS"),
    "a descriptor for nothing": (one_by_one(SETUP, SHUTDOWN[:5], descriptors=1), "came with no"),
    "descriptors in the middle": (
        one_by_one(SETUP[:20], SETUP[20:30], SETUP[30:40], descriptors=1),
        "came with no PARTS",
    ),
    "no parts before their frame": (in_one(ONE_STATE, task(inputs=b"")), "means nothing here"),
    "no JSON": (in_one(encode_frame(STATE, (1,), (b"{", b"[]"))), "means nothing here"),
    "other JSON": (in_one(encode_frame(STATE, (1,), (b"[7]", b"[]"))), "means nothing here"),
    "more keys than values": (
        in_one(encode_frame(STATE, (1,), (b"[]", b'["a", "b"]', CALL))),
        "means nothing here",
    ),
    "a difference from a state nobody sent": (
        in_one(ONE_STATE, differing(2, 7)),
        "means nothing here",
    ),
    "a function nobody sent": (
        in_one(encode_frame(_theus.KIND_FORGET_FUNCTION, (9,))),
        "means nothing here",
    ),
    "frames in another order": (in_one(PARTS[:16], *WORK), "no descriptor goes with"),
}

# What is answered, each for its task.
ANSWERED = {
    "a whole day's work": in_one(*WORK),
    "frames byte by byte": one_by_one(*(bytes([byte]) for byte in b"".join(WORK))),
    "a state nobody sent": in_one(ONE_FUNCTION, task(state=5), SHUTDOWN),
    "a state that differs": in_one(
        ONE_STATE, differing(2, 1), ONE_FUNCTION, task(state=2), SHUTDOWN
    ),
    "another state's number": in_one(ONE_STATE, ONE_FUNCTION, task(state=2**64 - 1), SHUTDOWN),
    "a function's number": in_one(ONE_STATE, task(function=8), SHUTDOWN),
    "inputs that are no pickle": in_one(
        ONE_STATE, ONE_FUNCTION, task(inputs=b"no pickle"), SHUTDOWN
    ),
    "a pickle's start": in_one(ONE_STATE, ONE_FUNCTION, task(inputs=CALL[:-2]), SHUTDOWN),
    "a function that is no pickle": in_one(
        ONE_STATE, encode_frame(_theus.KIND_FUNCTION, (1, 1), (b"no",)), task(), SHUTDOWN
    ),
}


def test_a_worker_ends_with_a_reason_or_answers(tmp_path):
    cases = [case for case, _ in ENDS.values()] + list(ANSWERED.values())
    outcomes = run_workers(tmp_path, cases)
    for (name, (_, reason)), outcome in zip(ENDS.items(), outcomes, strict=False):
        assert not outcome["hung"], name
        assert outcome["code"] == 1, (name, outcome)
        assert "theus: worker" in outcome["errors"], (name, outcome)
        assert reason in outcome["errors"], (name, outcome)
        assert outcome["memory"] < 512 << 20, (name, outcome)
    for name, outcome in zip(ANSWERED, outcomes[len(ENDS) :], strict=True):
        assert outcome["code"] == 0, (name, outcome)


def mutate(rng, frames):
    """Frames with some bytes of their heads or order changed, in pieces of any size."""
    frames = [bytearray(frame) for frame in frames]
    for _ in range(rng.randint(1, 3)):
        frame = rng.choice(frames)
        change = rng.randrange(5)
        if change == 0:
            frame[rng.randrange(min(len(frame), 40))] = rng.choice([0, 1, 2, 127, 255])
        elif change == 1:
            frame[rng.randrange(min(len(frame), 40))] ^= 1 << rng.randrange(8)
        elif change == 2:
            del frame[rng.randrange(1, len(frame)) :]
        elif change == 3:
            rng.shuffle(frames)
        else:
            frames.insert(rng.randrange(len(frames)), bytearray(frame))
    data, pieces = b"".join(frames), []
    while data:
        length = rng.choice([1, 3, 16, 40, 1000, 1 << 20])
        pieces.append([data[:length].hex(), rng.choice([0] * 30 + [1, 2])])
        data = data[length:]
    return pieces


def test_no_mutated_frames_make_a_worker_hang_or_grow(tmp_path):
    rng = random.Random(12)
    outcomes = run_workers(tmp_path, [mutate(rng, WORK) for _ in range(150)])
    assert not any(outcome["hung"] for outcome in outcomes)
    assert max(outcome["memory"] for outcome in outcomes) < 512 << 20
    for outcome in outcomes:
        ended = outcome["code"] == 1 and "theus: worker" in outcome["errors"]
        assert ended or outcome["code"] == 0, outcome
    assert sum(outcome["code"] == 1 for outcome in outcomes) > 60


# --- from a worker ---

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


@pytest.fixture
def broken_worker(monkeypatch):
    """Make the first worker, or more, answer its first task like this."""
    spawn = PythonProgram.spawn
    answers = []

    def spawn_broken(program, launch, descriptors, stderr, threads):
        if not answers:
            return spawn(program, launch, descriptors, stderr, threads)
        return subprocess.Popen(
            [sys.executable, "-S", "-E", "-c", BROKEN, json.dumps(answers.pop())],
            stdin=subprocess.DEVNULL,
            pass_fds=descriptors,
            process_group=0,
            env={**os.environ, "THEUS_WORKER": launch},
        )

    monkeypatch.setattr(PythonProgram, "spawn", spawn_broken)

    def arm(pieces, *, leaves=False, ends_its_task=False, workers=1, **rest):
        answers[:] = [
            {
                "pieces": [piece.hex() for piece in pieces],
                "leaves": leaves or ends_its_task,
                "ends_its_task": ends_its_task,
                "descriptors": 0,
                "hello": HELLO_SAYS,
                "begins": True,
                **rest,
            }
        ] * workers

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
    "no language": ("{}", "'language'"),
    "a number for a name": (HELLO_SAYS.replace("[]", "[7]"), "'tasks'"),
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
