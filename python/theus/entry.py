"""An entry of the heavy zone, and the read-only mapping that contexts and snapshots show.

Nothing counts references: an entry holds its segment, states hold entries, tasks hold states. When
the last of them is gone, so is the segment's name.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

from theus._theus import Segment
from theus.array import Handle, ShmArray, describe_dtype, view_handle, view_segment
from theus.errors import EntryNotFoundError

__all__ = ["Entry", "HeavyView", "SupportsView"]


class SupportsView(Protocol):
    """What a heavy view needs of its values."""

    def view(self) -> ShmArray:
        """Return the entry's array."""
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
        Which part of the segment, if it is not the whole.
    """

    name: str
    segment: Segment
    handle: Handle | None = None

    def view(self) -> ShmArray:
        """Return a fresh array over the entry's bytes; read-only once it is published."""
        if self.handle is None:
            return view_segment(self.segment)
        return view_handle(self.handle, lambda _: self.segment)

    def descriptor(self, key: str) -> dict[str, Any]:
        """Return the plain data that locates the entry; see ``schemas/descriptor.json``."""
        descriptor: dict[str, Any] = {
            "key": key,
            "segment": self.segment.name,
            "kind": "tensor",
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
        return descriptor


class HeavyView(Mapping[str, ShmArray]):
    """The heavy entries of one state: a read-only mapping from names to arrays.

    Item access makes a view of the entry's own bytes, without a copy. The view stays valid for as
    long as it is held.
    """

    __slots__ = ("_entries",)

    def __init__(self, entries: Mapping[str, SupportsView]) -> None:
        self._entries = entries

    def __getitem__(self, name: str) -> ShmArray:
        """Return the array of entry `name`.

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
        known = ", ".join(map(repr, entries)) or "no entries at all"
        msg = (
            f"the heavy zone has no entry {name!r}; it has {known}. What was allocated is seen "
            "after it was published, by seal or compare_and_swap"
        )
        raise EntryNotFoundError(msg) from None


def encode_descriptors(entries: Mapping[str, Entry]) -> bytes:
    """Return the JSON list of descriptors that a STATE frame carries."""
    return json.dumps(
        [entry.descriptor(key) for key, entry in entries.items()], separators=(",", ":")
    ).encode()
