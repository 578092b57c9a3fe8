"""What crosses a process is what `schemas/` says, byte for byte."""

import json
import struct
from pathlib import Path

import numpy as np
import pytest

from theus import _theus, errors

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
