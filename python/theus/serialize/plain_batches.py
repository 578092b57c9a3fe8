"""Several items of ``engine.map`` in one native task; ``schemas/frames.json`` has the format.

Items and results are plain values each by itself. A task ends early at an item that failed, or
whose result has outputs: the caller sends the items after it again.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import msgspec

from theus.errors import ProtocolError
from theus.serialize import plain
from theus.serialize.batches import ItemResults
from theus.serialize.message import Message
from theus.serialize.native_errors import make_native_error

if TYPE_CHECKING:
    from collections.abc import Sequence

    from theus._theus import Segment

__all__ = ["join", "load"]


class _Ended(msgspec.Struct):
    cause: int
    error: Any
    traceback: str


class _Results(msgspec.Struct):
    values: list[bytes]
    error: _Ended | None


_decode = msgspec.msgpack.Decoder(_Results).decode


def join(items: Sequence[Message]) -> Message:
    """Return the inputs of several calls as those of one task."""
    pins = [pin for item in items for pin in item.pins]
    return Message(msgspec.msgpack.encode([item.data for item in items]), pins=pins)


def load(task: str, data: bytes, outputs: Sequence[Segment]) -> ItemResults:
    """Return what came of several calls of the native task of this name.

    Raises
    ------
    ProtocolError
        If `data` is no such thing.
    """
    try:
        results = _decode(data)
    except msgspec.DecodeError as error:
        msg = f"these are no results of several calls, as schemas/frames.json has them: {error}"
        raise ProtocolError(msg) from error
    values = [plain.decode(value, outputs) for value in results.values]
    ended = results.error
    if ended is None:
        return ItemResults(values, None)
    traceback = ended.traceback.encode()
    return ItemResults(values, make_native_error(task, ended.cause, ended.error, traceback))
