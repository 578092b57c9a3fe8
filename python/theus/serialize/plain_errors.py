"""Why a value does not go to a native task, and what its sender can do: the words of the errors."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from theus import _theus
from theus.heavy.array import ShmArray, attached, buffer_of, handle_of

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from theus._theus import Segment

    Pin = Callable[[str], Segment | None]

__all__ = ["TOO_DEEP", "explain", "name_of"]

TOO_DEEP = "is nested too deeply, or contains itself"

_MEGABYTE = 10**6
_SIMPLE = frozenset({type(None), bool, int, float, str, bytes})
_PUT = "Put it there first, engine.heavy.put(name, ...), and pass what that returns"
_FRAMES = ("pandas", "polars")


class Refusal(NamedTuple):
    """What a value is, and what to pass in its place."""

    what: str
    advice: str


class _Place(NamedTuple):
    what: str
    advice: str = _PUT


_OUTSIDE = _Place("outside the heavy zone")
_EMPTY = _Place(
    "without items", "Nothing tells where it lies, as it has no items: pass its name instead"
)
_DRAFT = _Place(
    "that is not published yet",
    "Publish it first, engine.heavy.seal(name), and pass what that returns",
)
_WITHOUT_BYTES = _Place(
    "without any bytes, of nulls alone", "Pass the name of the entry that has it instead"
)
_FILLING = _Place(
    "which is for filling a table", "Seal it, and pass the table that its seal() returns"
)
_FOREIGN = _Place(
    "of another engine's heavy zone",
    "Put it into this engine's, engine.heavy.put(name, ...), or have that engine call the task",
)
_FREED = _Place(
    "whose entry was freed",
    "Put it anew, engine.heavy.put(name, ...), and pass what that returns",
)


def explain(value: Any, pin: Pin, reason: Exception | None = None) -> Refusal:
    """Return what `value` is and what its sender can do.

    Parameters
    ----------
    value : object
        It cannot be sent by itself; its parts can.
    pin : callable
        Given a segment's name, returns the segment if it is this engine's.
    reason : Exception, optional
        What its encoder raised.
    """
    if reason is not None and type(value) in _SIMPLE:
        return Refusal(str(reason), _general(value))
    if reason is not None and isinstance(value, Mapping | list | tuple):
        # Its encoder's own words are TypeErrors, and what reading a user's mapping raises is not.
        own = isinstance(reason, TypeError | ValueError | OverflowError)
        said = str(reason) if own else f"reading it raised {type(reason).__name__}: {reason}"
        return Refusal(said, _general(value))
    name = name_of(value)
    place = _place_of(value, pin)
    if place is not None:
        return Refusal(f"it is {name}{_size(value)} {place.what}", place.advice)
    return Refusal(f"it is {name}", _general(value))


def name_of(value: Any) -> str:
    """Return the name of a value's type, with an article."""
    kind = type(value)
    module = "" if kind.__module__ == "builtins" else f"{kind.__module__}."
    name = f"{module}{kind.__qualname__}"
    article = "an" if name[0] in "aeiouAEIOU" else "a"
    return f"{article} {name}"


def _general(value: Any) -> str:
    if type(value).__module__.partition(".")[0] in _FRAMES:
        return "Pass a table of the heavy zone: what engine.heavy.put(name, ...) returns"
    return (
        "Pass None, numbers, str, bytes, lists and dicts of them, and arrays and tables of the "
        "heavy zone"
    )


def _size(value: Any) -> str:
    nbytes = getattr(value, "nbytes", None)
    if not isinstance(nbytes, int):
        return ""
    return f" of {nbytes / _MEGABYTE:.0f} MB" if nbytes >= _MEGABYTE else f" of {nbytes} bytes"


# --- where it lies -----------------------------------------------------------------------------


def _place_of(value: Any, pin: Pin) -> _Place | None:
    """Return where the bytes of an array or table lie; None if it is neither."""
    if isinstance(value, np.ndarray):
        return _place_of_array(value, pin)
    if type(value).__module__ == "theus.heavy.table_draft":
        return _FILLING
    pyarrow = sys.modules.get("pyarrow")
    if pyarrow is None:
        return None
    if isinstance(value, pyarrow.Table | pyarrow.RecordBatch):
        return _place_of_arrow(value.columns, pin)
    if isinstance(value, pyarrow.Array | pyarrow.ChunkedArray):
        return _place_of_arrow([value], pin)
    return None


def _place_of_array(array: np.ndarray[Any, Any], pin: Pin) -> _Place:
    if not array.size:
        return _EMPTY
    if array.dtype.hasobject:
        advice = "The heavy zone has no Python objects: pass a list, or an array of another dtype"
        return _Place("of Python objects", advice)
    handle = handle_of(array)
    if handle is None:
        return _DRAFT if _is_draft(array) else _OUTSIDE
    if pin(handle[0]) is None:
        return _not_ours(handle[0])
    if type(array) in (np.ndarray, ShmArray):
        return _OUTSIDE
    return _Place(
        "over an entry of the heavy zone",
        "Pass plain arrays of numpy, each of its parts as one: np.asarray(...)",
    )


def _is_draft(array: Any) -> bool:
    """Whether an array lies in a segment of this process that nobody else can find yet."""
    buffer = buffer_of(array)
    return buffer is not None and _theus.locate(buffer.address, 1) is None


def _not_ours(name: str) -> _Place:
    segment = attached.get(name)
    return _FREED if segment is None or not segment.linked else _FOREIGN


def _place_of_arrow(columns: list[Any], pin: Pin) -> _Place:
    if not any(map(len, columns)):
        return _EMPTY
    found = {name for column in columns for name in _segments_of(column)}
    if None in found:
        return _OUTSIDE if found == {None} else _Place("partly outside the heavy zone")
    keys: set[str] = set()
    for name in filter(None, found):
        segment = pin(name)
        if segment is None:
            return _not_ours(name)
        keys.add(segment.key)
    entries = " and ".join(repr(key) for key in sorted(keys))
    if len(keys) != 1:
        several = _Place(f"of entries {entries}", "Pass the tables themselves, in a list of them")
        return several if keys else _WITHOUT_BYTES
    if any(_is_nested(column.type) for column in columns):
        advice = (
            f"Of columns that have a nested type, nothing tells which part it is: pass the name "
            f"{entries} instead, and what is needed to find the part"
        )
        return _Place(f"of entry {entries}", advice)
    advice = (
        f"Pass a table, without a copy: engine.heavy[{entries}], or columns of it by "
        "table.select([...]), rows by table.slice(...)"
    )
    return _Place(f"of entry {entries}", advice)


def _is_nested(kind: Any) -> bool:
    return bool(kind.num_fields) or hasattr(kind, "storage_type")


def _segments_of(column: Any) -> Iterator[str | None]:
    """Yield the names of the segments in which a column's buffers lie, None for outside of any."""
    for chunk in getattr(column, "chunks", [column]):
        for buffer in chunk.buffers():
            if buffer is not None and buffer.size:
                found = _theus.locate(buffer.address, buffer.size)
                yield None if found is None else found[0]
