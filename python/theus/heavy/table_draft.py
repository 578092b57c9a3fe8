"""Tables that are laid out first and filled in place: ``heavy.alloc_table``."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from theus.heavy.tensors import check_name

if TYPE_CHECKING:
    from collections.abc import Callable

    from theus._theus import Output, Segment

__all__ = ["TableDraft", "check_schema"]

Array = np.ndarray[Any, Any]

_INTEGERS = {"date32": "i4", "date64": "i8", "time32": "i4", "time64": "i8"}
_INTERVAL = [("months", "i4"), ("days", "i4"), ("nanoseconds", "i8")]


class TableDraft:
    """A table in shared memory that is being filled, column by column.

    ``draft[name]`` is a column's memory as a numpy array, to be written in place. All values are
    zero at first, and there. `set` fills a column from values of its type, and takes nulls. `seal`
    publishes the table.

    Attributes
    ----------
    name : str
        The entry's name.
    schema : pyarrow.Schema
        Of its columns, each of a fixed width.
    num_rows : int
        How many rows it has.
    held : Segment or Output
        Its memory.
    """

    def __init__(
        self,
        name: str,
        schema: Any,
        num_rows: int,
        held: Segment | Output,
        seal: Callable[[], Any],
    ) -> None:
        self.name = name
        self.schema = schema
        self.num_rows = num_rows
        self.held = held
        self._places = dict(zip(schema.names, held.blanks, strict=True))
        self._seal = seal

    def __getitem__(self, column: str) -> Array:
        """Return the memory of `column`, writable until the table is sealed.

        Returns
        -------
        ndarray
            Numbers as such; dates, times, timestamps and durations as their integers; decimals and
            fixed-size binaries as rows of bytes, fixed-size lists as rows of items. What is written
            after the table was sealed stays in this process.

        Raises
        ------
        KeyError
            If there is no such column.
        TypeError
            If it is of bools, whose bits numpy cannot address: use :meth:`set`.
        """
        kind = self._type_of(column)
        dtype, inner = _layout(kind)
        if dtype is None:
            msg = f"column {column!r} is of bools, eight to a byte: use set({column!r}, values)"
            raise TypeError(msg)
        flat = self._bytes(self._places[column][1]).view(dtype)
        return flat.reshape(self.num_rows, *inner)

    def set(self, column: str, values: Any, mask: Any = None) -> None:
        """Fill all of `column`.

        Parameters
        ----------
        column : str
            Its name.
        values : array_like or pyarrow.Array
            A value for each row, or anything that `pyarrow.array` makes the column's type of.
        mask : array_like of bool, optional
            True where a value is null, as for `pyarrow.array`.

        Raises
        ------
        KeyError
            If there is no such column.
        ValueError
            If the number of values is another, or there are nulls and the schema allows none.
        pyarrow.ArrowInvalid, pyarrow.ArrowTypeError
            If the values are not of the column's type.
        """
        import pyarrow as pa  # noqa: PLC0415 - who has a schema has it

        kind = self._type_of(column)
        hidden = None if mask is None else np.asarray(mask, dtype=bool)
        dtype, inner = _layout(kind)
        if (
            isinstance(values, np.ndarray)
            and values.dtype == dtype
            and values.ndim == 1 + len(inner)
        ):
            self._check_rows(column, len(values))
            self[column][...] = values
        else:
            chunks: Any = values if isinstance(values, pa.ChunkedArray) else None
            made: Any = (
                pa.array(values, kind) if chunks is None else chunks.cast(kind).combine_chunks()
            )
            self._check_rows(column, len(made))
            self._copy(column, made)
            null = made.is_null().to_numpy(zero_copy_only=False)
            hidden = null if hidden is None else null | hidden
        self._set_validity(column, hidden)

    def seal(self) -> Any:
        """Publish the table: from now on nobody can write it.

        Returns
        -------
        pyarrow.Table
            Over the same bytes.
        """
        return self._seal()

    def __len__(self) -> int:
        return self.num_rows

    def __repr__(self) -> str:
        return f"TableDraft({self.name!r}, {self.num_rows} rows of {', '.join(self.schema.names)})"

    # --- inside ---

    def _type_of(self, column: str) -> Any:
        if column not in self._places:
            msg = f"table {self.name!r} has no column {column!r}; it has {self.schema.names}"
            raise KeyError(msg)
        return self.schema.field(column).type

    def _bytes(self, place: tuple[int, int]) -> Array:
        offset, length = place
        whole: Any = np.frombuffer(memoryview(self.held.buffer()), np.uint8)
        return whole[offset : offset + length]

    def _check_rows(self, column: str, found: int) -> None:
        if found != self.num_rows:
            msg = f"column {column!r} takes {self.num_rows} values, {found} were given"
            raise ValueError(msg)

    def _copy(self, column: str, made: Any) -> None:
        """Copy the values of an array of the column's type."""
        kind, place = made.type, self._bytes(self._places[column][1])
        if str(kind) == "bool":
            bits = made.fill_null(False).to_numpy(zero_copy_only=False)  # noqa: FBT003
            place[:] = np.packbits(bits, bitorder="little")
            return
        while str(kind).startswith("fixed_size_list"):
            # Not by `flatten`, which leaves out the items of nulls.
            made = made.values.slice(made.offset * kind.list_size, len(made) * kind.list_size)
            kind = made.type
            if made.null_count:
                msg = f"column {column!r} has nulls within its lists, which have no place for them"
                raise ValueError(msg)
        width = kind.bit_width // 8
        start = made.offset * width
        place[:] = np.frombuffer(made.buffers()[1], np.uint8)[start : start + len(made) * width]

    def _set_validity(self, column: str, hidden: Array | None) -> None:
        place = self._places[column][0]
        if hidden is None:
            hidden = np.zeros(self.num_rows, bool)
        self._check_rows(column, len(hidden))
        if place is not None:
            self._bytes(place)[:] = np.packbits(~hidden, bitorder="little")
        elif hidden.any():
            msg = f"column {column!r} has nulls, and its field says that it has none"
            raise ValueError(msg)


def _layout(kind: Any) -> tuple[np.dtype[Any] | None, tuple[int, ...]]:
    """Return the dtype of a column's memory, None for bits, and the shape of one row."""
    name = str(kind)
    if name.startswith("fixed_size_list"):
        dtype, inner = _layout(kind.value_type)
        return dtype, (kind.list_size, *inner)
    if name == "bool":
        return None, ()
    if name.startswith(("decimal", "fixed_size_binary")):
        return np.dtype(np.uint8), (kind.bit_width // 8,)
    if name.startswith(("timestamp", "duration")):
        return np.dtype("i8"), ()
    if name == "month_day_nano_interval":
        return np.dtype(_INTERVAL), ()
    integer = _INTEGERS.get(name.partition("[")[0])
    return np.dtype(integer or kind.to_pandas_dtype()), ()


def check_schema(name: str, schema: Any, num_rows: object) -> Any:
    """Return the pyarrow schema of a table to be laid out, or say why it cannot be."""
    import pyarrow as pa  # noqa: PLC0415 - only who has tables needs it

    check_name(name)
    if not isinstance(num_rows, int | np.integer) or num_rows < 0:
        msg = f"num_rows is the number of rows, not {num_rows!r}"
        raise ValueError(msg)
    schema = schema if isinstance(schema, pa.Schema) else pa.schema(schema)
    if len(set(schema.names)) != len(schema.names):
        msg = f"table {name!r} has columns of the same name: {schema.names}"
        raise ValueError(msg)
    return schema
