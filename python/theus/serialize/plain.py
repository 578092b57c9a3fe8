"""Plain values: what every language reads, in MessagePack; ``schemas/values.json`` has the format.

Arrays and tables of the heavy zone are among them, as descriptors. What lies outside of it is not:
it is never copied unasked, and the error says how to put it there.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from functools import partial
from typing import TYPE_CHECKING, Any

import msgspec
import numpy as np

from theus import _theus
from theus.errors import NotPlainError, ProtocolError
from theus.heavy.array import ShmArray, attach_segment, empty_handle, handle_of, view_segment
from theus.heavy.entry import Entry, view_described, view_entry
from theus.heavy.tables import find_part, is_whole
from theus.serialize.message import Message
from theus.serialize.plain_errors import TOO_DEEP, explain, name_of
from theus.serialize.unpickler import loads
from theus.serialize.value_path import find_culprit, items_of, shortened

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from theus._theus import Segment

    Pin = Callable[[str], Segment | None]

__all__ = ["NONE", "NOTHING", "Opaque", "decode", "encode", "encode_domain"]

_ENTRY, _OUTPUT, _OPAQUE = 1, 2, 3
_SCALARS = frozenset({type(None), bool, int, float, str, bytes})
_BASES: tuple[tuple[type, Any], ...] = (
    (int, int.__int__),
    (float, float.__float__),
    (str, str.__str__),
    (bytes, bytes.__bytes__),
)
_NUMBER_BYTES = 8
_TIME = b"\xff"


@dataclass(frozen=True, slots=True)
class Opaque:
    """Stands for a value of the domain that is not plain.

    Attributes
    ----------
    text : str
        What it is, such as ``"a sklearn.svm.SVC"``.
    """

    text: str


NOTHING = Message(msgspec.msgpack.encode({}))
"""The inputs of a task without any."""

NONE = msgspec.msgpack.encode(None)
"""The result of a task that returns nothing."""


def encode(obj: object, pin: Pin, *, label: str) -> Message:
    """Return `obj` as a plain value.

    Parameters
    ----------
    obj : object
        None, numbers, str, bytes, lists, tuples and mappings of them, numpy's scalars, and arrays
        and tables whose bytes lie in the heavy zone.
    pin : callable
        Given a segment's name, returns what keeps that name, or None if it cannot be promised.
    label : str
        What `obj` is, as the root of the path in an error message.

    Raises
    ------
    NotPlainError
        If a part of it is something else; the message names the path to it, and what to do.
    """
    encoder = _Encoder(pin)
    try:
        data = encoder.encode(obj)
    except RecursionError:
        path = _find_deep(obj, label, pin)
        msg = f"{path} cannot be sent to a native task: it {TOO_DEEP}"
        raise NotPlainError(msg) from None  # of a thousand frames that are all the same
    except Exception as error:
        path, culprit, reason = find_culprit(obj, label, _Encoder(pin).encode, error, items_of)
        what, advice = explain(culprit, pin, reason)
        msg = f"{path} cannot be sent to a native task: {what}. {advice}"
        raise NotPlainError(msg) from error
    return Message(data, pins=encoder.pins)


def _find_deep(obj: object, path: str, pin: Pin) -> str:
    """Return the path to which of the items of `obj` is too deep, without a look further down."""
    for step, child in items_of(obj):
        try:
            _Encoder(pin).encode(child)
        except RecursionError:
            return path + step
        except Exception:  # noqa: BLE001, S112 - that is not what it failed for
            continue
    return path


def decode(data: bytes, outputs: Sequence[Segment] = ()) -> Any:
    """Return the object that a plain value is.

    Entries, and those of `outputs` that it names by number, arrive as read-only views of the
    segment's bytes.

    Raises
    ------
    ProtocolError
        If it is no plain value, or names what is not there.
    """
    try:
        value = msgspec.msgpack.decode(data, ext_hook=partial(_load_extension, outputs))
    except ProtocolError:
        raise
    except (msgspec.DecodeError, ValueError, TypeError, LookupError, RecursionError) as error:
        msg = f"this is no plain value as schemas/values.json has it: {error}"
        raise ProtocolError(msg) from error
    # Its code has this byte: few values have it, and those are looked at.
    if _TIME in data and _has_times(value):
        msg = "plain values have no extension -1: tell times as numbers or texts"
        raise ProtocolError(msg)
    return value


def _has_times(value: Any) -> bool:
    """Whether msgspec has made times of what MessagePack calls its own extension."""
    todo = [value]
    while todo:
        found = todo.pop()
        if isinstance(found, datetime):
            return True
        if isinstance(found, dict):
            pairs: dict[Any, Any] = found
            todo += pairs  # the keys
            found = pairs.values()
        elif not isinstance(found, list | tuple):
            continue
        items: Any = found
        if not _SCALARS.issuperset(map(type, items)):
            todo += items
    return False


def encode_domain(message: Message) -> bytes:
    """Return a value of the domain as a plain value, which stands for it if it is none."""
    if message.plain is None:
        message.plain = _encode_domain(message)
    return message.plain


def _encode_domain(message: Message) -> bytes:
    try:
        value = loads(message)
    except Exception as error:  # noqa: BLE001 - loading runs code of the user's classes
        opaque = Opaque(f"a value that cannot be loaded: {type(error).__name__}: {error}")
        return _Encoder(lambda _: None).encode(opaque)
    # The pickle has promised the same segments.
    pinned: Any = message.pins
    pins: dict[str, Segment] = {held.name: held for held in pinned}
    encoder = _Encoder(pins.get)
    try:
        return encoder.encode(value)
    except RecursionError:
        return encoder.encode(Opaque(f"{name_of(value)} that {TOO_DEEP}"))
    except Exception as error:  # noqa: BLE001 - whatever it is, it is no plain value
        path, culprit, _ = find_culprit(value, "", encoder.encode, error, items_of)
        text = _what(value, pins.get)
        if path:
            text = f"{text}, whose {path} is {_what(culprit, pins.get)}"
        return encoder.encode(Opaque(text))


def _what(value: object, pin: Pin) -> str:
    return explain(value, pin).what.removeprefix("it is ")


class _Encoder:
    """Makes what msgspec encodes of an object, and nothing that it would encode in its own way."""

    def __init__(self, pin: Pin) -> None:
        self.pins: list[object] = []
        self._pin = pin

    def encode(self, obj: object) -> bytes:
        return msgspec.msgpack.encode(self._prepare(obj))

    def _prepare(self, obj: Any) -> Any:
        kind = type(obj)
        if kind in _SCALARS or kind is bytearray:
            return obj
        if isinstance(obj, list | tuple):
            items: Any = obj
            plain = _SCALARS.issuperset(map(type, items))
            return list(items) if plain else [self._prepare(item) for item in items]
        if isinstance(obj, Mapping):
            pairs: Any = obj
            return {self._prepare_key(key): self._prepare(pairs[key]) for key in pairs}
        if isinstance(obj, np.generic) and type(item := obj.item()) in _SCALARS:
            return item
        for base, strip in _BASES:
            if isinstance(obj, base):
                return strip(obj)
        return self._extension(obj)

    def _extension(self, obj: Any) -> msgspec.msgpack.Ext:
        if isinstance(obj, Opaque):
            return msgspec.msgpack.Ext(_OPAQUE, obj.text.encode())
        found = describe(obj, self._pin)
        if found is None:
            msg = f"a {type(obj).__name__} is not plain"
            raise TypeError(msg)
        descriptor, held = found
        self.pins.append(held)
        text = json.dumps(descriptor, separators=(",", ":"), ensure_ascii=False)
        return msgspec.msgpack.Ext(_ENTRY, text.encode())

    def _prepare_key(self, key: object) -> Any:
        prepared = self._prepare(key)
        if type(prepared) not in _SCALARS:
            msg = f"its key {shortened(repr(key))} is {name_of(key)}, and keys are str or numbers"
            raise TypeError(msg)
        return prepared


def describe(value: Any, pin: Pin) -> tuple[dict[str, Any], Segment] | None:
    """Return the descriptor of an array or table of the heavy zone, and what keeps its bytes."""
    if type(value) in (np.ndarray, ShmArray):
        handle = handle_of(value) or empty_handle(value)
        held = None if handle is None else pin(handle[0])
        if handle is None or held is None:
            return None
        if not value.size:
            handle = (handle[0], held.body_offset, *handle[2:])
        whole = held.kind == "tensor" and handle_of(view_segment(held)) == handle
        entry = Entry(held.key, held, handle=None if whole else handle)
        return entry.descriptor(held.key), held
    return _describe_arrow(value, pin)


def _describe_arrow(value: Any, pin: Pin) -> tuple[dict[str, Any], Segment] | None:
    def hold(address: int, nbytes: int) -> Segment | None:
        found = _theus.locate(address, nbytes)
        return None if found is None else pin(found[0])

    pyarrow = sys.modules.get("pyarrow")
    if pyarrow is None:
        return None
    kind = _kind_of(value, pyarrow)
    table = value if kind == "table" else pyarrow.table([value], [""])
    found = find_part(table, hold, even_empty=True)
    if found is None:
        return None
    held, part, schema = found
    if schema is not None and kind == "table":  # one with other names has no descriptor
        return None
    whole = is_whole(held, part) and held.kind == kind
    descriptor = Entry(held.key, held, part=None if whole else part).descriptor(held.key)
    if not whole and kind != "table":
        descriptor["part"]["kind"] = kind
    return descriptor, held


def _kind_of(value: Any, pyarrow: Any) -> str:
    if isinstance(value, pyarrow.Array):
        return "array"
    return "chunked_array" if isinstance(value, pyarrow.ChunkedArray) else "table"


def _load_extension(outputs: Sequence[Segment], code: int, data: memoryview) -> Any:
    if code == _ENTRY:
        descriptor = json.loads(bytes(data))
        return view_described(attach_segment(descriptor["segment"]), descriptor)
    if code == _OUTPUT:
        number = int.from_bytes(data, "little")
        if len(data) != _NUMBER_BYTES or number >= len(outputs):
            msg = f"the result names output {number} of {len(outputs)} that were sent"
            raise ProtocolError(msg)
        return view_entry(outputs[number], None, None)
    if code == _OPAQUE:
        return Opaque(str(data, "utf-8"))
    msg = f"plain values have no extension {code}"
    raise ProtocolError(msg)
