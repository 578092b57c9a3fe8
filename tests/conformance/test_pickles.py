"""What workers have to do with the capability "pickle": all forms, all calls, SETUP and PARTS."""

import json
import os
import pickle

import numpy as np
import pytest

import tasks
from theus import _theus
from theus.serialize import functions
from theus.serialize.message import Message
from theus.serialize.pickler import dumps
from theus.serialize.unpickler import loads

pytestmark = pytest.mark.needs("pickle")

ITEM, PLAIN, ITEMS = 1, 2, 3
STALE = 2
BY_REFERENCE, BY_VALUE, BY_PARTS = 0, 1, 2


@pytest.fixture
def ready(owner):
    owner.send_state(1)
    return owner


@pytest.fixture
def send(ready):
    """Send a function of any form and a task of any call; what answers it."""
    numbers = iter(range(100, 200))

    def send(definition, inputs, *, form=BY_VALUE, call=PLAIN, parts=None, input_parts=None):
        number = next(numbers)
        if parts is not None:
            ready.send_parts(parts)
        ready.send(_theus.KIND_FUNCTION, (number, form), (definition,))
        if input_parts is not None:
            ready.send_parts(input_parts)
        ready.send(_theus.KIND_TASK, (number, 1, number, call), (inputs,))
        return ready.receive()

    return send


def by_value(function):
    return pickle.dumps(({}, pickle.dumps(function)))


def arguments(*args, **kwargs):
    return pickle.dumps((args, kwargs))


def test_setup_brings_the_path_the_environment_and_the_place(
    start, send, ready, tmp_path, monkeypatch
):
    (tmp_path / "brought_by_setup.py").write_text("def seven():\n    return 7\n")
    monkeypatch.syspath_prepend(tmp_path)
    from brought_by_setup import seven  # noqa: PLC0415 - it is there now

    setup = {
        "sys_path": [str(tmp_path), *json.loads(ready.dialect.greeting()[0][2][0])["sys_path"]],
        "environ": {"THEUS_TEST_SET": "größe", "HOME": None},
        "cwd": str(tmp_path),
        "unknown": 1,
    }
    ready.send(_theus.KIND_SETUP, (), (json.dumps(setup).encode(),))
    assert ready.result(send(by_value(seven), arguments())) == 7
    for name, value in [("THEUS_TEST_SET", "größe"), ("HOME", None)]:
        assert ready.result(send(by_value(os.getenv), arguments(name))) == value
    assert ready.result(send(by_value(os.getcwd), arguments())) == str(tmp_path)


def test_every_key_of_setup_is_optional(ready):
    ready.send(_theus.KIND_SETUP, (), (b"{}",))
    assert ready.call("echo", value=1) == 1


def test_a_function_goes_by_reference_and_is_refused_if_it_is_other_code(ready, send):
    references = functions.References(lambda name: None, None, lambda function: 0)
    definition = references.of(tasks.echo).definition
    inputs = pickle.dumps({"value": [1, "ä"]})
    assert ready.result(send(definition, inputs, form=BY_REFERENCE, call=0)) == [1, "ä"]
    said = json.loads(definition)
    for other in {**said, "code": "0" * 32}, {**said, "qualname": "nobody"}:
        frame = send(json.dumps(other).encode(), inputs, form=BY_REFERENCE, call=0)
        assert (frame.kind, frame.fields[2]) == (_theus.KIND_ERROR, STALE)
        assert frame.attachments[0] == b""


def test_a_function_goes_by_value_with_what_it_refers_to(ready, send):
    def promise(name):
        raise AssertionError(f"there is no segment {name}")

    weights = np.arange(1_000_000.0)
    message = dumps(lambda: float(weights.sum()), promise, label="function")
    assert message.parts is not None
    definition = pickle.dumps(({}, b""))
    frame = send(definition, arguments(), form=BY_PARTS, parts=message.parts)
    assert ready.result(frame) == weights.sum()


def test_large_values_go_and_come_by_parts(ready, send):
    values = np.arange(1_000_000.0)
    message = dumps(((values,), {}), lambda name: None, label="inputs")
    assert message.data == b""
    kind, fields, _ = send(by_value(np.square), b"", input_parts=message.parts)
    assert kind == _theus.KIND_PARTS
    parts = ready.channel.take_parts(fields)
    frame = ready.receive()
    assert frame.kind == _theus.KIND_RESULT
    squares = loads(Message(frame.attachments[0], parts))
    np.testing.assert_array_equal(squares, values**2)


def test_a_function_is_called_with_an_item_with_many_or_with_arguments(ready, send):
    assert ready.result(send(by_value(tasks.echo), pickle.dumps(7), call=ITEM)) == 7
    assert ready.result(send(by_value(divmod), arguments(7, 2))) == (3, 1)
    frame = send(by_value(int), arguments("ff", base=16))
    assert ready.result(frame) == 255
    items = pickle.dumps([pickle.dumps(n) for n in range(10)])
    assert send(by_value(tasks.echo), items, call=ITEMS).kind == _theus.KIND_RESULT


@pytest.mark.parametrize("definition", [b"no pickle", pickle.dumps(7)])
def test_a_function_that_is_no_pickle_is_answered(ready, send, definition):
    assert send(definition, arguments()).kind == _theus.KIND_ERROR
    assert ready.call("nothing") is None


def test_an_attachment_that_no_parts_came_for_ends_it(ready):
    ready.send_task("echo", raw=b"")
    assert ready.exit_code() == 1
    assert ready.says_why_it_ended()
