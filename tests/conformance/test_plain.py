"""What workers have to do with the capability "plain": the encodings of ``schemas/values.json``."""

import json
import math
from pathlib import Path

import msgspec
import pytest
from dialects import INPUTS, RAISED, STOPPED, UNKNOWN
from hypothesis import given
from owner import describe
from values import MANY, PLAIN

from theus import _theus

pytestmark = pytest.mark.needs("plain")

SCHEMAS = Path(__file__).resolve().parents[2] / "schemas"
GOLDEN = json.loads((SCHEMAS / "golden/values.json").read_text())["values"]
ECHOED = [vector for vector in GOLDEN if "ext" not in str(vector["value"])]
ENTRY, OUTPUT, OPAQUE = 1, 2, 3
ITEMS = 5


@pytest.fixture
def ready(owner):
    owner.send_state(1)
    return owner


def echo(owner, data):
    """Return the bytes that come back for those of a value."""
    frame = owner.run("echo", raw=b"\x81\xa5value" + data)
    assert frame.kind == _theus.KIND_RESULT, frame
    return frame.attachments[0]


@pytest.mark.needs("shortest values")
def test_golden_values_come_back_byte_for_byte(ready):
    assert len(ECHOED) >= 10
    for vector in ECHOED:
        data = bytes.fromhex(vector["bytes"])
        assert echo(ready, data) == data, vector["name"]


LONG_FORMS = [
    ("ce00000007", 7),
    ("d3ffffffffffffffdf", -33),
    ("d9016c", "l"),
    ("da00016c", "l"),
    ("db000000016c", "l"),
    ("c500020102", b"\1\2"),
    ("c6000000020102", b"\1\2"),
    ("dc00020102", [1, 2]),
    ("dd000000020102", [1, 2]),
    ("de0001a16101", {"a": 1}),
    ("df00000001a16101", {"a": 1}),
    ("ca3f000000", 0.5),
]


@pytest.mark.parametrize(("data", "value"), LONG_FORMS)
def test_a_value_may_be_in_any_of_its_encodings(ready, data, value):
    found = msgspec.msgpack.decode(echo(ready, bytes.fromhex(data)))
    assert found == value
    assert type(found) is type(value)


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf, -0.0, 5e-324])
def test_floats_come_back_bit_for_bit(ready, value):
    data = msgspec.msgpack.encode(value)
    assert echo(ready, data) == data


@MANY
@given(value=PLAIN)
def test_any_value_comes_back(ready, value):
    assert ready.call("echo", value=value) == value


def test_an_entry_goes_in_and_out_by_its_descriptor(ready, session):
    segment = session.create_tensor("m", (3,), "f8", memoryview(b"\0" * 24).cast("d"))
    session.publish(segment)
    whole = describe(segment, "m")
    view = {"offset": segment.body_offset, "shape": [2], "strides": [16], "dtype": "<f8"}
    for descriptor in whole, {**whole, "view": view}:
        entry = msgspec.msgpack.Ext(ENTRY, json.dumps(descriptor).encode())
        assert ready.call("sum_of", array=entry) == 0.0
        frame = ready.run("same", array=entry)
        found = msgspec.msgpack.decode(frame.attachments[0])
        assert found.code == ENTRY
        assert json.loads(found.data) == descriptor


def test_what_is_no_value_of_the_domain_is_told_when_it_is_asked_for(owner):
    what = msgspec.msgpack.Ext(OPAQUE, "a größe.Thing".encode())
    owner.send_state(1, domain={"thing": what, "rate": 1})
    cause, _, text = owner.error(owner.run("domain", value="thing"))
    assert cause == RAISED
    assert "a größe.Thing" in text
    assert owner.call("domain", value="rate") == 1


@pytest.mark.parametrize("code", [OUTPUT, OPAQUE, 99])
def test_an_extension_that_is_no_entry_does_not_fit_one(ready, code):
    array = msgspec.msgpack.Ext(code, bytes(8))
    assert ready.error(ready.run("sum_of", array=array))[0] == INPUTS


def test_a_name_that_it_does_not_have_is_answered(ready):
    definition = json.dumps({"name": "nobody"}).encode()
    ready.send(_theus.KIND_FUNCTION, (77, ready.dialect.form), (definition,))
    frame = ready.run("", function=77)
    assert frame.kind == _theus.KIND_ERROR
    assert frame.fields[2] == UNKNOWN or "nobody" in ready.error(frame)[2]


@pytest.mark.needs("strictness")
@pytest.mark.parametrize("call", [0, 1, 2, 3, 6])
def test_calls_that_are_not_by_name_are_answered(ready, call):
    ready.send(_theus.KIND_TASK, (9, 1, ready.function("nothing"), call), (b"\x80",))
    assert ready.receive().kind == _theus.KIND_ERROR
    assert ready.call("nothing") is None


@pytest.mark.parametrize(
    ("form", "definition"), [(0, b"{}"), (1, b""), (2, b""), (3, b"{"), (3, b"{}")]
)
def test_a_function_that_is_not_by_name_ends_it(ready, form, definition):
    ready.send(_theus.KIND_FUNCTION, (1, form), (definition,))
    assert ready.exit_code() == 1
    assert ready.says_why_it_ended()


# --- several calls in one task ---


def call_each(ready, name, items, *, stops=False):
    """Return the frame that answers a task of several calls."""
    packed = msgspec.msgpack.encode([msgspec.msgpack.encode(item) for item in items])
    function = ready.function(name)
    if stops:
        ready.control.cancel = 99
    ready.send(_theus.KIND_TASK, (99, 1, function, ITEMS), (packed,))
    outputs = []
    while (frame := ready.receive()).kind == _theus.KIND_OUTPUT:
        outputs.append(frame)
    assert frame.fields[0] == 99
    return frame, outputs


def results_of(frame):
    assert frame.kind == _theus.KIND_RESULT
    found = msgspec.msgpack.decode(frame.attachments[0])
    assert set(found) == {"values", "error"}
    return found["values"], found["error"]


@pytest.mark.needs("items")
def test_several_calls_have_their_results_in_their_order(ready):
    for count in 0, 1, 256:
        frame, _ = call_each(ready, "double", [{"item": n} for n in range(count)])
        values, error = results_of(frame)
        assert [msgspec.msgpack.decode(value) for value in values] == [2 * n for n in range(count)]
        assert error is None


@pytest.mark.needs("items")
def test_a_call_that_fails_is_the_last(ready):
    frame, _ = call_each(ready, "double", [{"item": 1}, {"item": "x"}, {"item": 3}])
    values, error = results_of(frame)
    assert [msgspec.msgpack.decode(value) for value in values] == [2]
    assert error["cause"] == INPUTS
    assert set(error["error"]) >= {"type", "message"}
    frame, _ = call_each(ready, "panic", [{"message": "oops"}])
    values, error = results_of(frame)
    assert (values, error["cause"]) == ([], ready.dialect.panic_cause)
    assert error["error"]["message"] == "oops"


@pytest.mark.needs("items")
def test_a_call_that_makes_an_output_is_the_last(ready):
    frame, outputs = call_each(ready, "squares", [{"count": n} for n in (3, 4)])
    values, error = results_of(frame)
    assert (len(values), error, len(outputs)) == (1, None, 1)
    assert msgspec.msgpack.decode(values[0]) == msgspec.msgpack.Ext(OUTPUT, bytes(8))


@pytest.mark.needs("items")
def test_several_calls_stop_as_one_task(ready):
    frame, _ = call_each(ready, "double", [{"item": 1}, {"item": 2}], stops=True)
    assert ready.error(frame)[0] == STOPPED


@pytest.mark.needs("items")
@pytest.mark.parametrize("inputs", [b"", b"\x80", b"\x91\x80", b"\x92\xc4\x01"])
def test_what_is_not_the_inputs_of_several_calls_is_answered(ready, inputs):
    ready.send(_theus.KIND_TASK, (9, 1, ready.function("nothing"), ITEMS), (inputs,))
    assert ready.error(ready.receive())[0] == INPUTS
    assert ready.call("nothing") is None
