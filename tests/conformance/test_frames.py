"""The frames of ``schemas/frames.json`` that every worker takes and sends."""

import json
import os
import time
from pathlib import Path

import numpy as np
import pytest
from dialects import RAISED, STOPPED, UNSENDABLE
from owner import describe

from theus import _theus

SCHEMAS = Path(__file__).resolve().parents[2] / "schemas"
TYPES = {"string": str, "array": list}


@pytest.fixture
def ready(owner):
    """An owner whose worker has an empty state, of version 1."""
    owner.send_state(1)
    return owner


@pytest.fixture(params=[False, True], ids=["socket", "letters"])
def either_way(request, start):
    """An owner as `ready`, whose frames go by the socket alone, or by the control page too."""
    owner = start(page=request.param)
    owner.greet()
    owner.send_state(1)
    return owner


@pytest.fixture
def prices(session):
    segment = session.create_tensor("price", (4,), "f8", np.array([1.0, 2.0, 3.0, 4.5]))
    session.publish(segment)
    return segment


# --- HELLO ---


def test_it_says_what_it_is_before_anything_is_sent(start):
    owner = start()
    kind, fields, (attachment,) = owner.receive()
    assert (kind, fields) == (_theus.KIND_HELLO, (_theus.PROTOCOL_VERSION, owner.pid))
    hello = json.loads(attachment)
    schema = json.loads((SCHEMAS / "worker.json").read_text())["$defs"]["hello"]
    assert set(schema["required"]) <= set(hello)
    for key, described in schema["properties"].items():
        assert isinstance(hello[key], TYPES[described["type"]]), key
    assert all(isinstance(name, str) and name for name in hello["tasks"])
    assert len(set(hello["tasks"])) == len(hello["tasks"])
    assert owner.dialect.capability in hello["capabilities"]
    assert owner.dialect.lacks.isdisjoint([*hello["capabilities"], *hello["tasks"]])


# --- STATE, FORGET_STATE ---


def test_a_state_has_its_domain_and_its_entries(owner, prices):
    owner.send_state(1, [describe(prices, "größe")], {"rate": 0.25, "names": ["ä", "b"]})
    assert owner.call("domain", value="rate") == 0.25
    assert owner.call("domain", value="names") == ["ä", "b"]
    assert owner.call("entries") == ["größe"]
    assert owner.call("sum", column="größe") == 10.5


def test_a_state_may_tell_how_it_differs_from_another(owner, prices):
    owner.send_state(1, [describe(prices, key) for key in "abc"], {"x": 1, "y": 2})
    owner.send_change(
        2,
        1,
        removed=["b", "nobody has this"],
        entries=[describe(prices, key) for key in "cd"],
        gone=["x", "nobody has this"],
        domain={"y": 3, "z": 4},
    )
    assert owner.call("entries", state=2) == ["a", "c", "d"]
    assert [owner.call("domain", state=2, value=key) for key in "yz"] == [3, 4]
    assert owner.run("domain", state=2, value="x").kind == _theus.KIND_ERROR
    assert owner.call("entries", state=1) == ["a", "b", "c"]
    assert [owner.call("domain", state=1, value=key) for key in "xy"] == [1, 2]


def test_a_state_outlives_the_one_that_it_was_told_by(owner, prices):
    owner.send_state(1, [describe(prices, "a")], {"x": 1})
    owner.send_change(2, 1, domain={"y": 2})
    owner.send(_theus.KIND_FORGET_STATE, (1,))
    assert owner.call("domain", state=2, value="x") == 1
    assert owner.call("sum", state=2, column="a") == 10.5
    assert owner.run("domain", state=1, value="x").kind == _theus.KIND_ERROR


def test_a_state_sent_again_replaces_the_one_of_its_number(owner):
    owner.send_state(1, domain={"x": 1, "y": 1})
    owner.send_state(1, domain={"x": 2})
    assert owner.call("domain", value="x") == 2
    assert owner.run("domain", value="y").kind == _theus.KIND_ERROR


def test_what_is_forgotten_takes_no_memory(ready):
    text, (kind, form) = "x" * 10_000, (_theus.KIND_FUNCTION, ready.dialect.form)

    def live_through(versions):
        for version in versions:
            ready.send_change(
                version, version - 1, domain={str(version): text}, gone=[str(version - 1)]
            )
            ready.send(_theus.KIND_FORGET_STATE, (version - 1,))
            ready.send(kind, (version, form), (ready.dialect.definition("nothing"),))
            ready.send(_theus.KIND_FORGET_FUNCTION, (version,))
        assert ready.call("nothing", state=versions[-1]) is None

    live_through(range(2, 200))
    before = ready.anonymous_bytes()
    live_through(range(200, 5000))
    assert ready.anonymous_bytes() < before + (10 << 20)


def test_a_state_told_by_one_that_nobody_sent_ends_it(ready):
    ready.send_change(2, 7)
    ends(ready)


def test_a_task_in_a_state_that_nobody_sent_is_answered(ready):
    assert ready.run("nothing", state=5).kind == _theus.KIND_ERROR
    assert ready.call("nothing") is None


def view(start, shape, strides, dtype="<f8"):
    return {"view": {"offset": start, "shape": shape, "strides": strides, "dtype": dtype}}


BAD_PLACES = {
    "another name": {"segment": "theus-aaaaaaaaaaaa-7"},
    "no name": {"segment": "../etc/passwd"},
    "an item behind the end": view(0, [10_000], [8]),
    "an item before the start": view(4096, [10_000], [-8]),
    "a start behind the end": view(2**40, [1], [8]),
    "more items than there are numbers": view(4096, [2**62, 4], [8, 8]),
    "a stride that overflows": view(4096, [4], [2**62]),
    "other dimensions than strides": view(4096, [1], [8, 8]),
}


@pytest.mark.parametrize("place", BAD_PLACES)
def test_an_entry_that_is_not_where_it_is_said_to_be_fails_its_task_alone(owner, prices, place):
    owner.send_state(1, [{**describe(prices, "a"), **BAD_PLACES[place]}, describe(prices, "b")])
    assert owner.run("sum", column="a").kind == _theus.KIND_ERROR
    assert owner.call("sum", column="b") == 10.5


@pytest.mark.needs("types")
def test_items_of_no_type_fail_their_task_alone(owner, prices):
    untyped = view(4096, [1], [8], 7)
    owner.send_state(1, [{**describe(prices, "a"), **untyped}, describe(prices, "b")])
    assert owner.run("sum", column="a").kind == _theus.KIND_ERROR
    assert owner.call("sum", column="b") == 10.5


def ends(owner):
    """Whether it ends, saying why."""
    assert owner.exit_code() == 1
    assert owner.says_why_it_ended()


# --- FUNCTION, FORGET_FUNCTION ---


def test_a_function_is_known_by_its_number_until_it_is_forgotten(ready):
    first, second = ready.function("echo"), ready.function("nothing")
    assert ready.call("echo", value=1) == 1
    assert ready.call("nothing") is None
    ready.send(_theus.KIND_FORGET_FUNCTION, (first,))
    assert ready.run("", function=first, value=1).kind == _theus.KIND_ERROR
    assert ready.call("", function=second) is None


def test_a_function_that_nobody_sent_is_answered_but_not_forgotten(ready):
    assert ready.run("", function=9).kind == _theus.KIND_ERROR
    assert ready.call("nothing") is None
    ready.send(_theus.KIND_FORGET_FUNCTION, (9,))
    ends(ready)


# --- TASK, RESULT, ERROR ---


def test_tasks_are_answered_in_the_order_in_which_they_were_sent(either_way):
    owner = either_way
    sent = [owner.send_task("echo", value=n) for n in range(500)]
    frames = [owner.receive() for _ in sent]
    assert [frame.fields[0] for frame in frames] == sent
    assert [owner.result(frame) for frame in frames] == list(range(500))
    for n in range(500):  # one after the other, as letters if both sides poll
        assert owner.call("echo", value=n) == n


def test_numbers_of_64_bits_are_taken(owner):
    last = 2**64 - 1
    owner.send_state(last, domain={"x": 1})
    owner.send(
        _theus.KIND_FUNCTION, (last, owner.dialect.form), (owner.dialect.definition("domain"),)
    )
    inputs = owner.dialect.value({"value": "x"})
    owner.send(_theus.KIND_TASK, (last, last, last, owner.dialect.call), (inputs,))
    frame = owner.receive()
    assert frame.fields[0] == last
    assert owner.result(frame) == 1


def test_a_result_tells_how_long_its_task_took(ready):
    started = time.monotonic_ns()
    frame = ready.run("sleep", seconds=0.05, polite=True)
    assert ready.result(frame) is None
    assert 50_000_000 <= frame.fields[1] <= time.monotonic_ns() - started


def test_large_inputs_and_results_come_whole(ready):
    text = "größe" * 20_000
    assert ready.call("echo", value=text) == text


def test_an_error_has_its_cause_its_type_and_its_text(ready):
    frame = ready.run("fail", message="größe: 7")
    assert ready.error(frame) == (RAISED, "Failed", "größe: 7")
    assert frame.fields[1] > 0


@pytest.mark.parametrize("name", ["panic", "panic_in_parallel"])
def test_a_panic_ends_its_task_alone_and_tells_where_it_was(ready, name):
    frame = ready.run(name, message="never this")
    cause, _, text = ready.error(frame)
    assert (cause, text) == (ready.dialect.panic_cause, "never this")
    assert ready.dialect.source in frame.attachments[1].decode()
    assert ready.call("pid") == ready.pid
    assert "never this" not in ready.stderr()


def test_a_result_that_cannot_be_sent_is_told(ready):
    cause, _, text = ready.error(ready.run("unsendable"))
    assert cause == UNSENDABLE
    assert text
    assert ready.call("nothing") is None


@pytest.mark.parametrize("inputs", [{}, {"seconds": "x", "polite": True}, {"seconds": 0}])
def test_other_inputs_than_the_function_takes_are_told(ready, inputs):
    cause, _, text = ready.error(ready.run("sleep", **inputs))
    assert cause == ready.dialect.inputs_cause
    assert text
    assert ready.call("nothing") is None


def test_inputs_that_are_no_value_are_answered(ready):
    assert ready.run("echo", raw=ready.dialect.no_value).kind == _theus.KIND_ERROR
    assert ready.call("nothing") is None


@pytest.mark.needs("strictness")
def test_inputs_that_are_cut_short_are_answered(ready):
    cut = ready.dialect.value({"value": "a text"})[:-3]
    assert ready.run("echo", raw=cut).kind == _theus.KIND_ERROR
    assert ready.call("nothing") is None


# --- the control page ---


def test_the_page_says_which_task_runs(ready):
    assert ready.control.running == 0
    number = ready.send_task("sleep", seconds=0.1, polite=True)
    ready.wait_until_running(number)
    assert ready.receive().fields[0] == number
    ready.wait_until_running(0)


def test_a_task_that_is_to_stop_before_it_begins_never_does(ready):
    first = ready.send_task("sleep", seconds=0.1, polite=True)
    second = ready.send_task("sleep", seconds=60, polite=False)
    ready.control.cancel = second
    assert ready.result(ready.receive()) is None
    frame = ready.receive()
    assert frame.fields[0] == second != first
    assert ready.error(frame)[0] == STOPPED
    assert ready.call("nothing") is None


def test_a_task_that_looks_whether_it_is_to_stop_does(ready):
    number = ready.send_task("sleep", seconds=60, polite=True)
    ready.wait_until_running(number)
    ready.stop(number)
    frame = ready.receive(1)
    assert frame.fields[0] == number
    assert ready.error(frame)[0] == STOPPED
    ready.wait_until_running(0)
    assert ready.call("nothing") is None


def test_another_task_that_is_to_stop_disturbs_none(ready):
    number = ready.send_task("sleep", seconds=0.1, polite=True)
    ready.wait_until_running(number)
    ready.stop(number + 1000)
    assert ready.result(ready.receive()) is None


# --- OUTPUT ---


@pytest.mark.parametrize(
    ("name", "count"),
    [
        ("squares", 1000),
        ("squares", 1),
        pytest.param("numbers", 7, marks=pytest.mark.needs("tables")),
    ],
)
def test_an_output_comes_before_its_result_and_nobody_can_write_it(
    either_way, session, name, count
):
    ready = either_way
    assert ready.call("nothing") is None
    ready.send_task(name, count=count)
    kind, (number, length), _ = ready.receive()
    assert (kind, number) == (_theus.KIND_OUTPUT, 0)
    segment = session.adopt(ready.channel, 1)  # it proves that nobody can write it
    assert segment.published
    assert os.stat(segment.path).st_size == segment.length_bytes == length
    result = ready.result(ready.receive(), [segment])
    if name == "squares":
        assert result.dtype == np.uint64
        assert result.tolist() == [n * n for n in range(count)]
    else:
        assert result["table"].to_pydict() == {"n": list(range(count))}
    rights = ready.maps(os.stat(segment.path).st_ino)
    assert "rw-s" not in rights, rights


def test_an_output_that_no_result_refers_to_is_not_sent(ready):
    assert ready.call("forgets", count=1 << 20) is None
    assert ready.call("nothing") is None


# --- LOG, PROGRESS ---


def test_a_task_writes_lines_to_the_log_of_its_owner(either_way):
    for _ in range(20):
        number = either_way.send_task("log", message="größe")
        frames = [either_way.receive() for _ in range(4)]
        assert {frame.kind for frame in frames} == {_theus.KIND_LOG}
        assert [frame.fields for frame in frames] == [(number, n) for n in (10, 20, 30, 40)]
        assert {frame.attachments[0].decode() for frame in frames} == {"größe"}
        assert either_way.result(either_way.receive()) is None


def test_a_task_tells_how_far_it_is(ready):
    number = ready.send_task("progress", count=3)
    told = [ready.receive() for _ in range(4)]
    assert {frame.kind for frame in told} == {_theus.KIND_PROGRESS}
    assert [frame.fields for frame in told] == [
        *((number, done, 3) for done in (1, 2, 3)),
        (number, 3, 0),
    ]
    assert [frame.attachments[0] for frame in told] == [b"counting"] * 3 + [b""]
    assert ready.result(ready.receive()) == 3


# --- RELEASE, SHUTDOWN ---


@pytest.mark.needs("mappings")
def test_a_segment_stays_mapped_until_it_is_released(owner, prices):
    inode = os.stat(prices.path).st_ino
    owner.send_state(1, [describe(prices, "a")])
    assert owner.call("nothing") is None
    assert owner.call("sum", column="a") == 10.5
    rights = owner.maps(inode)
    assert rights
    assert "rw-s" not in rights, rights
    prices.unlink()  # it would not be found again
    assert owner.call("sum", column="a") == 10.5
    owner.send(_theus.KIND_RELEASE, (prices.number, 2**64 - 1))
    owner.send_state(2)
    assert owner.call("nothing", state=2) is None
    until = time.monotonic() + 5
    while owner.maps(inode) and time.monotonic() < until:
        time.sleep(0.005)
    assert not owner.maps(inode)


def test_a_segment_that_it_never_looked_at_may_be_released(ready, prices):
    ready.send(_theus.KIND_RELEASE, (prices.number, 2**64 - 1))
    assert ready.call("nothing") is None


def test_it_finishes_what_was_sent_before_it_was_shut_down(ready):
    sent = [ready.send_task("echo", value=n) for n in range(20)]
    sent.insert(0, ready.send_task("sleep", seconds=0.05, polite=True))
    ready.send(_theus.KIND_SHUTDOWN)
    assert len([ready.receive() for _ in sent]) == 21
    assert ready.exit_code() == 0
    assert ready.stderr() == ""
