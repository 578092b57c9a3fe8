"""What was allocated in the heavy zone and is not published yet."""

from __future__ import annotations

from weakref import ref

from theus.heavy.array import ShmArray, view_segment
from theus.heavy.entry import Entry
from theus.heavy.table_draft import TableDraft

__all__ = ["Draft"]


class Draft:
    """An allocated entry that is still being written, and what was handed out to write it."""

    __slots__ = ("_array", "address", "entry", "table")

    def __init__(self, entry: Entry, written: ShmArray | TableDraft) -> None:
        self.entry = entry
        self.table = written if isinstance(written, TableDraft) else None
        self._array = None if isinstance(written, TableDraft) else ref(written)
        self.address = entry.segment.buffer().address

    def view(self) -> ShmArray | TableDraft:
        """Return what writes the entry: what was handed out, if somebody still has it."""
        if self.table is not None:
            return self.table
        held = self._array and self._array()
        if held is None:
            held = view_segment(self.entry.segment)
            self._array = ref(held)
        return held

    def close(self) -> None:
        """Let the array that was handed out refuse writes; the segment itself is sealed."""
        held = self._array and self._array()
        if held is not None:
            held.flags.writeable = False

    def holds(self, low: int) -> bool:
        """Whether the byte at this address is the entry's."""
        return self.address <= low < self.address + self.entry.segment.length_bytes
