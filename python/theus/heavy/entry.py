"""An entry of the heavy zone, and the read-only mapping that contexts and snapshots show.

Nothing counts references: an entry holds its segment, states hold entries, tasks hold states. When
the last of them is gone, so is the segment's name.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import islice
from typing import Any, Protocol

import numpy as np

from theus._theus import Segment
from theus.errors import EntryNotFoundError
from theus.heavy.array import Handle, describe_dtype, restore_dtype, view_handle, view_segment
from theus.heavy.tables import TablePart, to_pandas, to_polars, view_arrow, view_column, view_part

__all__ = [
    "Entry",
    "FrameViews",
    "HeavyView",
    "SupportsView",
    "view_described",
    "view_entry",
]

_SHOWN = 20


class SupportsView(Protocol):
    """What a heavy view needs of its values."""

    def view(self) -> Any:
        """Return the entry's array or table."""
        ...


@dataclass(frozen=True, slots=True, weakref_slot=True, eq=False)
class Entry:
    """A whole segment, or a view into one, under the name it was given first.

    Attributes
    ----------
    name : str
        The entry's own name; the state may know it under others as well.
    segment : Segment
        The bytes. The name of a published segment is removed when no entry holds it any more.
    handle : tuple or None
        Which part of the segment, if it is an array and not the whole.
    part : TablePart or None
        Which part of the segment, if it is a table and not the whole.
    """

    name: str
    segment: Segment
    handle: Handle | None = None
    part: TablePart | None = None

    def view(self) -> Any:
        """Return an array or table over the entry's bytes; read-only once it is published."""
        return view_entry(self.segment, self.handle, self.part)

    def descriptor(self, key: str) -> dict[str, Any]:
        """Return the plain data that locates the entry; see ``schemas/descriptor.json``."""
        descriptor: dict[str, Any] = {
            "key": key,
            "segment": self.segment.name,
            "kind": self.segment.kind,
            "length": self.segment.length_bytes,
        }
        if self.handle is not None:
            _, offset, shape, strides, dtype = self.handle
            descriptor["view"] = {
                "offset": offset,
                "shape": shape,
                "strides": strides,
                "dtype": describe_dtype(np.dtype(dtype)),
            }
        if self.part is not None:
            descriptor["part"] = self.part._asdict()
        return descriptor


def view_entry(segment: Segment, handle: Handle | None, part: TablePart | None) -> Any:
    """Return the array or table that an entry shows, over its bytes."""
    if handle is not None:
        return view_handle(handle, lambda _: segment)
    if part is not None:
        return view_part(segment, part)
    return view_segment(segment) if segment.kind == "tensor" else view_arrow(segment)


def view_described(segment: Segment, descriptor: Mapping[str, Any]) -> Any:
    """Return the array or table that a descriptor tells, over the bytes of its segment."""
    handle = part = None
    view, shown = descriptor.get("view"), descriptor.get("part")
    if view is not None:
        shape, strides = tuple(view["shape"]), tuple(view["strides"])
        handle = segment.name, view["offset"], shape, strides, restore_dtype(view["dtype"])
    if shown is not None:
        part = TablePart(tuple(shown["columns"]), shown["start"], shown["length"])
        if "kind" in shown:
            return view_column(segment, part, shown["kind"])
    return view_entry(segment, handle, part)


class FrameViews(Mapping[str, Any]):
    """Names to arrays and tables, and the latter as frames of other libraries."""

    __slots__ = ()

    def pandas(self, name: str) -> Any:
        """Return entry `name` as a pandas frame or series over the same bytes.

        Its columns are of `pandas.ArrowDtype`, and a frame's index is that of the frame that was
        put. Plain ``to_pandas()`` copies nearly all of a table, in each worker.

        Raises
        ------
        EntryNotFoundError
            If there is no such entry.
        TypeError
            If it is a tensor.
        """
        return to_pandas(name, self[name])

    def polars(self, name: str) -> Any:
        """Return entry `name` as a Polars frame or series over the same bytes.

        Polars copies strings, binaries and dictionaries, which it lays out in its own way; strings
        that were put with ``views=True`` it takes as they lie. docs/interop.md has the table.

        Raises
        ------
        EntryNotFoundError
            If there is no such entry.
        TypeError
            If it is a tensor.
        """
        return to_polars(name, self[name])


class HeavyView(FrameViews):
    """The heavy entries of one state: a read-only mapping from names to arrays and tables.

    Item access makes a view of the entry's own bytes, without a copy: a ShmArray for tensors, a
    pyarrow Table, Array or ChunkedArray for others. The view stays valid for as long as it is held.
    """

    __slots__ = ("_entries",)

    def __init__(self, entries: Mapping[str, SupportsView]) -> None:
        self._entries = entries

    def __getitem__(self, name: str) -> Any:
        """Return the array or table of entry `name`.

        Raises
        ------
        EntryNotFoundError
            If the state has no such entry.
        """
        return find_entry(self._entries, name).view()

    def __iter__(self) -> Iterator[str]:
        return iter(self._entries)

    def __len__(self) -> int:
        return len(self._entries)

    def __contains__(self, name: object) -> bool:
        return name in self._entries

    def __repr__(self) -> str:
        return f"HeavyView({', '.join(self._entries) or 'empty'})"


def find_entry(entries: Mapping[str, SupportsView], name: str) -> Any:
    """Return ``entries[name]``, or raise EntryNotFoundError saying what there is."""
    try:
        return entries[name]
    except KeyError:
        known = ", ".join(map(repr, islice(entries, _SHOWN))) or "no entries at all"
        more = f" and {len(entries) - _SHOWN} others" if len(entries) > _SHOWN else ""
        msg = (
            f"the heavy zone has no entry {name!r}; it has {known}{more}. What was allocated is "
            "seen after it was published, by seal or compare_and_swap"
        )
        raise EntryNotFoundError(msg) from None


def encode_descriptor(key: str, entry: Entry) -> bytes:
    """Return the JSON descriptor by which workers find the entry under this key."""
    return json.dumps(entry.descriptor(key), separators=(",", ":")).encode()
