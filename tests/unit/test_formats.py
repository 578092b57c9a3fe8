"""What crosses a process is what `schemas/` says, byte for byte."""

import json
import os
import re
import struct
from pathlib import Path

import numpy as np
import pytest

from theus import _theus, errors, protocol

SCHEMAS = Path(__file__).resolve().parents[2] / "schemas"
GOLDEN = json.loads((SCHEMAS / "golden/frames-2.json").read_text())


@pytest.mark.parametrize("vector", GOLDEN["frames"], ids=lambda vector: vector["name"])
def test_golden_frames(vector):
    parts = (
        vector["kind"],
        tuple(int(field) for field in vector["fields"]),
        [bytes.fromhex(data) for data in vector["attachments"]],
    )
    frame = bytes.fromhex(vector["frame"])
    assert _theus.encode_frame(*parts) == frame
    assert _theus.decode_frame(frame) == parts


def test_frames_begin_with_the_version_that_their_schema_has():
    schema = json.loads((SCHEMAS / "frames.json").read_text())
    prefix = {part["name"]: part.get("value") for part in schema["frame"]["parts"]}
    assert prefix["version"] == schema["version"] == _theus.PROTOCOL_VERSION


@pytest.mark.parametrize("vector", GOLDEN["refused"], ids=lambda vector: vector["name"])
def test_refused_frames(vector):
    with pytest.raises(errors.ProtocolError):
        _theus.decode_frame(bytes.fromhex(vector["frame"]))


def test_the_catalog_lies_where_its_schema_says(engine):
    layout = json.loads((SCHEMAS / "catalog.json").read_text())
    engine.heavy.put("größe", np.arange(5))
    data = Path(engine.heavy.path("größe")).with_name(f"theus-{engine.heavy.stats()['session']}-0")
    raw = data.read_bytes()
    header = {f["name"]: f["offset"] for f in layout["header"]["fields"]}
    slot = {f["name"]: f["offset"] for f in layout["slot"]["fields"]}

    def word(offset):
        return struct.unpack_from("<Q", raw, offset)[0]

    assert raw[header["magic"] :][:8] == b"THEUSCAT"
    assert word(header["layout_version"]) == 1
    assert word(header["state_version"]) == engine.state.version
    first = layout["slot"]["first_offset"]
    assert len(raw) == first + word(header["capacity"]) * layout["slot"]["bytes"]
    assert word(first + slot["sequence"]) % 2 == 0
    assert word(first + slot["number"]) == 1
    assert word(first + slot["length"]) == 4096 + 40
    key = raw[first + slot["key"] :][: word(first + slot["key_length"])]
    assert key.decode() == "größe"


def test_the_numbers_of_the_protocol_are_those_of_its_schema():
    schema = json.loads((SCHEMAS / "frames.json").read_text())
    fields = {(kind["name"], f["name"]): f for kind in schema["kinds"] for f in kind["fields"]}
    known = {
        "BY": fields["FUNCTION", "form"]["values"],
        "CALL": fields["TASK", "call"]["values"],
        "CAUSE": fields["ERROR", "cause"]["values"],
    }
    for prefix, values in known.items():
        names = [name for name in protocol.__all__ if name.startswith(f"{prefix}_")]
        numbers = sorted(getattr(protocol, name) for name in names)
        assert numbers == sorted(int(value) for value in values), prefix
    for kind in schema["kinds"]:
        assert getattr(_theus, f"KIND_{kind['name']}") == kind["id"]


def test_the_capabilities_are_those_of_the_schema():
    schema = json.loads((SCHEMAS / "worker.json").read_text())
    text = schema["$defs"]["hello"]["properties"]["capabilities"]["description"]
    described = set(re.findall(r'(?:^|\. )"(\w+)": it', text))
    names = "PICKLE", "PLAIN", "ITEMS", "IMPORT", "RECALL"
    assert described == {getattr(protocol, name) for name in names}


def test_the_control_page_has_its_words_where_the_schema_says():
    schema = json.loads((SCHEMAS / "control.json").read_text())
    control, descriptor = _theus.Control.create()
    try:
        for number, word in enumerate(schema["words"], 1):
            setattr(control, word["name"], number)
            found = struct.unpack("=Q", os.pread(descriptor, 8, word["offset"]))
            assert found == (number,), word["name"]
    finally:
        os.close(descriptor)
