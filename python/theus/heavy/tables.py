"""Arrow tables and arrays in segments: what comes out, without a copy.

A segment holds an Arrow IPC file; pyarrow reads it in place. Opening costs a time for each column
and batch, none for each row, and is done once for each segment that is mapped here.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any, NamedTuple
from weakref import WeakKeyDictionary

if TYPE_CHECKING:
    from collections.abc import Callable

    from theus._theus import Output, Segment

__all__ = [
    "TablePart",
    "find_part",
    "is_whole",
    "to_pandas",
    "to_polars",
    "view_arrow",
    "view_column",
    "view_part",
]

Arrow = Any
"""A pyarrow Table, Array or ChunkedArray."""


class TablePart(NamedTuple):
    """Which columns and rows of a segment's table a table shows.

    Attributes
    ----------
    columns : tuple of int
        Their places in the segment's table, in the order they are shown.
    start, length : int
        The first row, and how many.
    """

    columns: tuple[int, ...]
    start: int
    length: int


@dataclass(slots=False)
class _Opened:
    """A segment's table as pyarrow sees it."""

    value: Arrow
    table: Arrow

    @cached_property
    def places(self) -> dict[tuple[int, ...], tuple[int, int, int]]:
        """Which column a chunk's buffers belong to, its number, and its first row."""
        found: dict[tuple[int, ...], tuple[int, int, int]] = {}
        for column, chunks in enumerate(self.table.columns):
            start = 0
            for number, chunk in enumerate(chunks.chunks):
                key = _addresses(chunk)
                if key is not None:
                    # The same buffers twice tell nothing: those columns go buffer by buffer.
                    found[key] = (column, number, start) if key not in found else (-1, -1, -1)
                start += len(chunk)
        return found


_opened: WeakKeyDictionary[Segment | Output, _Opened] = WeakKeyDictionary()
_MOST_OPENED = 1024  # each keeps its segment mapped, of which there may be too many


def view_arrow(segment: Segment | Output) -> Arrow:
    """Return the table or array that lies in `segment`, over its bytes.

    Returns
    -------
    pyarrow.Table, pyarrow.Array or pyarrow.ChunkedArray
        It keeps the bytes mapped for as long as it, or anything made of it, is held.
    """
    return _open(segment).value


def view_part(segment: Segment | Output, part: TablePart) -> Arrow:
    """Return a part of the table in `segment`, without a copy."""
    table = _open(segment).table
    return table.select(list(part.columns)).slice(part.start, part.length)


def view_column(segment: Segment | Output, part: TablePart, kind: str) -> Arrow:
    """Return the only column of a part as a chunked array, or the chunk that it is as an array."""
    column = view_part(segment, part).column(0)
    if kind == "chunked_array":
        return column
    return next((chunk for chunk in column.chunks if len(chunk)), column.chunk(0))


def _open(segment: Segment | Output) -> _Opened:
    opened = _opened.get(segment)
    if opened is None:
        opened = _read(segment)
        # Bytes that keep their segment, as a worker's output does, would never let go of the key.
        if not segment.kept_by_views:
            _opened[segment] = opened
            if len(_opened) > _MOST_OPENED:
                _opened.pop(next(iter(_opened)), None)  # the one that was opened first
    return opened


def _read(segment: Segment | Output) -> _Opened:
    import pyarrow as pa  # noqa: PLC0415 - only who has tables needs it

    options = pa.ipc.IpcReadOptions(use_threads=False)  # there is nothing to decode
    reader = pa.ipc.open_file(pa.py_buffer(segment.buffer()), options=options)
    table = reader.read_all()
    match segment.kind:
        case "table":
            value = table
        case "chunked_array":
            value = table.column(0)
        case _:
            value = reader.get_batch(0).column(0)
    return _Opened(value, table)


def find_part(
    table: Arrow, hold: Callable[[int, int], Segment | Output | None], *, even_empty: bool = False
) -> tuple[Any, TablePart, Arrow] | None:
    """Return which part of a segment's table `table` is, by the addresses of its buffers.

    Parameters
    ----------
    table : object
        The table, if it is a pyarrow Table.
    hold : callable
        Returns the segment in which the bytes at an address lie, given their number.
    even_empty : bool, default False
        Whether a part without rows is one: it keeps all of its segment.

    Returns
    -------
    tuple or None
        The segment, the part, and the schema, or None if it is the part's own. None if the table is
        no such part: other columns among its own, rows left out, columns of nested types, whose
        addresses do not tell all.
    """
    pyarrow = sys.modules.get("pyarrow")
    if pyarrow is None or not isinstance(table, pyarrow.Table):
        return None
    first = next((b for c in table.columns[:1] for a in c.chunks for b in a.buffers() if b), None)
    segment = None if first is None else hold(first.address, first.size)
    if segment is None or segment.kind == "tensor":
        return None
    part = _part_of(table, _open(segment)) if table.num_rows or even_empty else None
    if part is None:
        return None
    same = view_part(segment, part).schema.equals(table.schema, check_metadata=True)
    return segment, part, None if same else table.schema


def is_whole(segment: Segment, part: TablePart) -> bool:
    """Whether `part` is all of the table in `segment`."""
    table = _open(segment).table
    return part == (tuple(range(table.num_columns)), 0, table.num_rows)


def _part_of(table: Arrow, opened: _Opened) -> TablePart | None:
    columns: list[int] = []
    start = 0
    for place, chunks in enumerate(table.columns):
        found = _find_column(chunks, opened)
        if found is None or (place and found[1] != start):
            return None
        column, start = found
        if opened.table.schema.field(column).type != chunks.type:
            return None
        columns.append(column)
    return TablePart(tuple(columns), start, table.num_rows) if columns else None


def _find_column(chunks: Arrow, opened: _Opened) -> tuple[int, int] | None:
    """Return the column whose consecutive rows `chunks` are, and the first of them."""
    shown = [chunk for chunk in chunks.chunks if len(chunk)] or chunks.chunks[:1]
    first: tuple[int, int] | None = None
    expected = 0
    for chunk in shown:
        key = _addresses(chunk)
        column, number, begin = opened.places.get(key, (-1, -1, -1)) if key else (-1, -1, -1)
        if column < 0:
            return None
        row = begin + chunk.offset - opened.table.column(column).chunk(number).offset
        if first is None:
            first = column, row
        elif (column, row) != (first[0], expected):
            return None
        expected = row + len(chunk)
    return first


def _addresses(chunk: Arrow) -> tuple[int, ...] | None:
    """Return where the buffers of an array lie; None if that does not tell what it shows."""
    kind = chunk.type
    if kind.num_fields or hasattr(kind, "storage_type"):  # children have offsets of their own
        return None
    addresses = tuple(b.address if b else 0 for b in chunk.buffers())
    if hasattr(kind, "value_type"):  # a dictionary's
        values = _addresses(chunk.dictionary)
        shown = chunk.dictionary.offset, len(chunk.dictionary)
        return None if values is None else (*addresses, *values, *shown)
    return addresses if any(addresses) else None


# --- for other libraries -----------------------------------------------------------------------


def to_pandas(name: str, value: Any) -> Any:
    """Return a frame or series over the same bytes: its columns are of `pandas.ArrowDtype`.

    Raises
    ------
    TypeError
        If the entry is a tensor.
    """
    import pandas as pd  # noqa: PLC0415 - only who asks for it needs it
    import pyarrow as pa  # noqa: PLC0415

    _refuse_others(name, value, "pandas")
    if isinstance(value, pa.Table):
        return value.to_pandas(types_mapper=pd.ArrowDtype)
    chunked = value if isinstance(value, pa.ChunkedArray) else pa.chunked_array([value])
    return pd.Series(pd.arrays.ArrowExtensionArray(chunked), name=name)


def to_polars(name: str, value: Any) -> Any:
    """Return a Polars frame or series over the same bytes, where Polars has the type.

    Raises
    ------
    TypeError
        If the entry is a tensor.
    """
    import polars as pl  # noqa: PLC0415 - only who asks for it needs it

    _refuse_others(name, value, "polars")
    made: Any = pl.from_arrow(value, rechunk=False)
    return made.alias(name) if isinstance(made, pl.Series) else made


def _refuse_others(name: str, value: Any, library: str) -> None:
    if hasattr(value, "seal"):
        msg = f"entry {name!r} is still being filled: seal it first"
        raise TypeError(msg)
    if not hasattr(value, "type") and not hasattr(value, "schema"):
        msg = f"entry {name!r} is a tensor: take heavy[{name!r}], not heavy.{library}({name!r})"
        raise TypeError(msg)
