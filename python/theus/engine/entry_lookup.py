"""Values that are entries already, or parts of them: found by their addresses."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from theus import _theus
from theus.errors import EntryNotFoundError
from theus.heavy.array import ShmArray, handle_of
from theus.heavy.entry import Entry
from theus.heavy.table_draft import TableDraft
from theus.heavy.tables import find_part, is_whole

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from theus._theus import Segment
    from theus.engine.drafts import Draft
    from theus.state.store import StateStore

__all__ = ["EntryLookup"]

Array = np.ndarray[Any, Any]


class EntryLookup:
    """Finds the entry that a value is, or shows a part of.

    Parameters
    ----------
    store : StateStore
        The published entries.
    drafts : mapping of str to Draft
        The others; looked at anew each time.
    pin : callable
        Given a segment's name, returns what keeps that name, or None if it cannot be promised.
    """

    def __init__(
        self,
        store: StateStore,
        drafts: Mapping[str, Draft],
        pin: Callable[[str], Segment | None],
    ) -> None:
        self._store = store
        self._drafts = drafts
        self._pin = pin

    def find(self, key: str, value: Any) -> Entry | None:
        """Return the entry that `value` is, or the view of one; None for plain data."""
        if isinstance(value, np.ndarray):
            return self._array(key, value)
        if isinstance(value, TableDraft):
            return self.drafted(value)
        return self._table(key, value)

    def _array(self, key: str, value: Array) -> Entry | None:
        """Return the entry that an array is, or the view of one that it is."""
        draft = self._draft_of(value)
        if draft is not None:
            whole = draft.view()
            if isinstance(whole, ShmArray) and _same(value, whole):
                return draft.entry
            segment = draft.entry.segment
            offset = value.__array_interface__["data"][0] - draft.address
            part = (segment.name, offset, value.shape, value.strides, value.dtype)
            return Entry(key, segment, part)
        handle = handle_of(value)
        segment = None if handle is None else self._pin(handle[0])
        if handle is None or segment is None:
            return None
        for entry in self._store.entries_in(segment).values():
            whole = entry.view()
            if isinstance(whole, ShmArray) and _same(value, whole, moved=True):
                return entry
        return Entry(key, segment, handle)

    def drafted(self, table: TableDraft) -> Entry:
        """Return the entry that a table being filled is, or has become."""
        drafts = (draft.entry for draft in self._drafts.values())
        held = table.held
        known = self._store.entries_in(held) if isinstance(held, _theus.Segment) else {}
        for entry in (*drafts, *known.values()):
            if entry.segment is held and entry.handle is None and entry.part is None:
                return entry
        msg = f"table {table.name!r} was replaced or freed: its name is another's, or nobody's"
        raise EntryNotFoundError(msg)

    def _table(self, key: str, value: Any) -> Entry | None:
        """Return the entry that a table is, or the view of one that it is."""
        found = find_part(value, self._hold)
        if found is None or found[2] is not None:
            return None
        segment, part, _ = found
        part = None if is_whole(segment, part) else part
        same = self._store.entries_in(segment).values()
        known = next((e for e in same if e.part == part and e.handle is None), None)
        return known or Entry(key, segment, part=part)

    def _hold(self, address: int, nbytes: int) -> Segment | None:
        found = _theus.locate(address, nbytes)
        return None if found is None else self._pin(found[0])

    def _draft_of(self, value: Array) -> Draft | None:
        low, _ = np.lib.array_utils.byte_bounds(value)
        return next((d for d in self._drafts.values() if d.holds(low)), None)


def _same(value: Array, whole: Array, *, moved: bool = False) -> bool:
    """Say whether two arrays show the same items of the same segment.

    A published segment is mapped twice in its owner, so addresses are compared by handle then.
    """
    if (value.shape, value.strides, value.dtype) != (whole.shape, whole.strides, whole.dtype):
        return False
    if moved:
        return handle_of(value) == handle_of(whole)
    return bool(value.__array_interface__["data"][0] == whole.__array_interface__["data"][0])
