"""Frames that are not what they claim: a worker ends, with a reason, or answers.

What a pickle does when it is loaded is its sender's to say, so a frame's pickles are only replaced
by some that cannot be loaded: owner and workers trust each other that far.
"""

import json
import random
import struct
import subprocess
import sys
from pathlib import Path

import pytest

from theus import _theus
from theus._theus import encode_frame

NURSERY = Path(__file__).with_name("nursery.py")
MEMORY = 512 << 20
STATE, TASK, RESULT = _theus.KIND_STATE, _theus.KIND_TASK, _theus.KIND_RESULT
FUNCTION, FORGET_FUNCTION = _theus.KIND_FUNCTION, _theus.KIND_FORGET_FUNCTION
ONE_STATE = encode_frame(STATE, (1,), (b"[]", b"[]"))
RELEASE = encode_frame(_theus.KIND_RELEASE, (1, 2))
SHUTDOWN = encode_frame(_theus.KIND_SHUTDOWN, ())
PARTS = encode_frame(_theus.KIND_PARTS, (64, 0, 64))


def head(kind, fields, attachments, total, *, version=_theus.PROTOCOL_VERSION, magic=b"TH"):
    return magic + struct.pack("<BBHHQ", version, kind, fields, attachments, total)


HUGE = head(STATE, 1, 2, 2**62) + struct.pack("<QQQ", 1, 8, 2**62 - 16 - 24 - 8)


def in_one(*frames, descriptors=0):
    return [[b"".join(frames).hex(), descriptors]]


def one_by_one(*frames, descriptors=0):
    return [[frame.hex(), descriptors] for frame in frames]


def differing(dialect, state, base):
    entries = b'{"base":%d,"removed":["x"],"set":[]}' % base
    keys = b'{"removed":["a"],"set":["b"]}'
    return encode_frame(STATE, (state,), (entries, keys, dialect.value(1)))


def function(dialect):
    return encode_frame(FUNCTION, (1, dialect.form), (dialect.definition("nothing"),))


def task(dialect, *, state=1, number=1, inputs=None):
    data = dialect.value({}) if inputs is None else inputs
    return encode_frame(TASK, (1, state, number, dialect.call), (data,))


def work(dialect):
    greeting = [encode_frame(*frame) for frame in dialect.greeting()]
    return [*greeting, ONE_STATE, function(dialect), task(dialect), RELEASE, SHUTDOWN]


def ends(dialect):
    """Return what is sent after which it has to end, and what the core says then, if it does.

    It says nothing of an owner that goes away, whose end it waits for.
    """
    one = encode_frame(STATE, (1,), (b"[]", b'["a", "b"]', dialect.value(1)))
    return {
        "no frame": (in_one(b"GET / HTTP/1.1\r\n\r\n"), "begins with"),
        "another version": (in_one(head(STATE, 0, 1, 24, version=9), bytes(8)), "version 9"),
        "no kind": (in_one(head(77, 0, 0, 16)), "number 77"),
        "wrong counts": (in_one(head(TASK, 3, 1, 48), bytes(32)), "4 fields"),
        "a total that is too small": (
            in_one(head(STATE, 1, 2, 17), bytes(24)),
            "says that it has 17",
        ),
        "lengths that overflow": (
            in_one(head(STATE, 1, 2, 40), struct.pack("<QQQ", 1, 2**63, 2**63)),
            "says that it has 40",
        ),
        "an enormous claim": (in_one(HUGE, b"[]" * 4), None),
        "a start of a frame": (in_one(ONE_STATE[:-3]), None),
        "a worker's frame": (in_one(encode_frame(RESULT, (1, 1), (b"",))), "means nothing"),
        "parts without a descriptor": (in_one(PARTS), ""),
        "a descriptor of something else": (one_by_one(PARTS, descriptors=1), ""),
        "a descriptor too many": (one_by_one(PARTS[:16], descriptors=2), "came with no"),
        "a descriptor for nothing": (
            one_by_one(ONE_STATE, SHUTDOWN[:5], descriptors=1),
            "came with no",
        ),
        "descriptors in the middle": (
            one_by_one(ONE_STATE[:20], ONE_STATE[20:30], ONE_STATE[30:40], descriptors=1),
            "came with no",
        ),
        "no JSON": (in_one(encode_frame(STATE, (1,), (b"{", b"[]"))), "means nothing here"),
        "other JSON": (in_one(encode_frame(STATE, (1,), (b"[7]", b"[]"))), "means nothing here"),
        "no UTF-8": (
            in_one(encode_frame(STATE, (1,), (b"[]", b'["\xff"]', dialect.value(1)))),
            "means nothing here",
        ),
        "more keys than values": (in_one(one), "means nothing here"),
        "a difference from a state nobody sent": (
            in_one(ONE_STATE, differing(dialect, 2, 7)),
            "means nothing here",
        ),
        "a difference from nothing": (
            in_one(
                encode_frame(STATE, (1,), (b'{"removed":[],"set":[]}', b'{"removed":[],"set":[]}'))
            ),
            "means nothing here",
        ),
        "a difference in one half": (
            in_one(ONE_STATE, encode_frame(STATE, (2,), (b"[]", b'{"removed":[],"set":[]}'))),
            "means nothing here",
        ),
        "a difference in the other half": (
            in_one(
                ONE_STATE,
                encode_frame(STATE, (2,), (b'{"base":1,"removed":[],"set":[]}', b"[]")),
            ),
            "means nothing here",
        ),
        "a function nobody sent": (
            in_one(encode_frame(FORGET_FUNCTION, (9,))),
            "means nothing here",
        ),
        "frames in another order": (in_one(PARTS[:16], *work(dialect)), ""),
    }


def answered(dialect):
    """Return what is answered, each for its task."""
    frames = work(dialect)
    start = [*frames[:-4], ONE_STATE, function(dialect)]
    return {
        "a whole day's work": in_one(*frames),
        "frames byte by byte": one_by_one(*(bytes([byte]) for byte in b"".join(frames))),
        "a state nobody sent": in_one(*start, task(dialect, state=5), SHUTDOWN),
        "a state that differs": in_one(
            *start, differing(dialect, 2, 1), task(dialect, state=2), SHUTDOWN
        ),
        "another state's number": in_one(*start, task(dialect, state=2**64 - 1), SHUTDOWN),
        "a function's number": in_one(*start, task(dialect, number=8), SHUTDOWN),
        "inputs that are no value": in_one(
            *start, task(dialect, inputs=dialect.no_value), SHUTDOWN
        ),
        "a value's start": in_one(
            *start, task(dialect, inputs=dialect.value({"a": "a text"})[:-3]), SHUTDOWN
        ),
    }


@pytest.fixture
def run_workers(dialect, tmp_path):
    """Start a worker for each case; what became of it."""

    def run(cases):
        data = tmp_path / "cases.json"
        data.write_text(json.dumps(cases))
        done = subprocess.run(
            [sys.executable, NURSERY, data, *dialect.nursed],
            capture_output=True,
            text=True,
            timeout=50,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        outcomes = json.loads(done.stdout)
        assert len(outcomes) == len(cases)
        return outcomes

    return run


def ended_by_itself(dialect, outcome):
    said = outcome["errors"]
    if dialect.quotes_the_core:
        said = "theus: worker" in said and " ends" in said
    return bool(outcome["code"] == 1 and not outcome["waited"] and said)


def ended_with_its_owner(outcome):
    return outcome["code"] == 1 and outcome["waited"] and not outcome["errors"]


def test_it_ends_with_a_reason(dialect, run_workers):
    cases = ends(dialect)
    outcomes = run_workers([case for case, _ in cases.values()])
    for (name, (_, reason)), outcome in zip(cases.items(), outcomes, strict=True):
        assert not outcome["hung"], name
        assert outcome["memory"] < MEMORY, (name, outcome)
        if reason is None:
            by_itself = "sweep" in dialect.lacks and ended_by_itself(dialect, outcome)
            assert by_itself or ended_with_its_owner(outcome), (name, outcome)
        else:
            assert ended_by_itself(dialect, outcome), (name, outcome)
            if dialect.quotes_the_core:
                assert reason in outcome["errors"], (name, outcome)


def test_it_answers(dialect, run_workers):
    cases = answered(dialect)
    for name, outcome in zip(cases, run_workers(list(cases.values())), strict=True):
        assert outcome["code"] == 0, (name, outcome)
        assert not outcome["waited"], (name, outcome)


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


def test_no_mutated_frames_make_it_hang_or_grow(dialect, run_workers):
    rng = random.Random(12)
    outcomes = run_workers([mutate(rng, work(dialect)) for _ in range(100)])
    for outcome in outcomes:
        assert not outcome["hung"], outcome
        assert outcome["memory"] < MEMORY, outcome
        assert (
            outcome["code"] == 0
            or ended_by_itself(dialect, outcome)
            or ended_with_its_owner(outcome)
        ), outcome
    assert sum(ended_by_itself(dialect, outcome) for outcome in outcomes) > 40
