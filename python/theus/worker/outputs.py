"""``ctx.heavy`` in a worker: the entries to read, and what the task makes in place."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal, overload
from weakref import WeakSet

import numpy as np

from theus.heavy import put, tensors
from theus.heavy.array import Handle, ShmArray, extent, view_segment
from theus.heavy.entry import HeavyView, find_entry
from theus.heavy.table_draft import TableDraft, check_schema
from theus.heavy.tables import view_arrow

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from numpy.typing import DTypeLike

    from theus._theus import Output, Zone
    from theus.heavy.entry import SupportsView

__all__ = ["TaskHeavy"]


class TaskHeavy(HeavyView):
    """The heavy zone as one task sees it: the state's entries, and outputs of its own.

    An output lies in shared memory from the start. If the task's result refers to it, in whole or
    in part, it reaches the caller without a copy; otherwise it is gone with the task. Its name is
    the task's alone: tasks that run side by side may use the same, and it hides an entry of that
    name from this task only.
    """

    __slots__ = ("_made", "_outputs", "_put", "_tables", "_zone")

    def __init__(self, entries: Mapping[str, SupportsView], zone: Zone) -> None:
        super().__init__(entries)
        self._zone = zone
        self._outputs: dict[str, Output] = {}
        self._tables: dict[str, TableDraft] = {}
        # Made for the first output, as most tasks make none.
        self._made: WeakSet[Output] | None = None
        self._put: WeakSet[Output] | None = None

    def alloc(
        self,
        name: str,
        shape: int | tuple[int, ...],
        dtype: DTypeLike = np.float64,
        order: Literal["C", "F"] = "C",
    ) -> ShmArray:
        """Allocate a zero-filled array to be written in place and returned.

        Parameters
        ----------
        name : str
            Its name in this task, up to 216 bytes of UTF-8.
        shape : int or tuple of int
            Items in each dimension.
        dtype : dtype_like, default float64
            Any numpy dtype without Python objects.
        order : {"C", "F"}, default "C"
            Row-major or column-major.

        Returns
        -------
        ShmArray
            Writable. When the task has returned it is published, and read-only for everybody else;
            what is written to it later stays in this process.

        Raises
        ------
        HeavyZoneFullError
            If neither ``heavy_limit`` nor the machine has the space.
        UnsupportedDtypeError
            If `dtype` holds Python objects.
        """
        made = tensors.allocate(self._zone.create_output, name, shape, dtype, order)
        return view_segment(self._keep(name, made))

    def alloc_table(self, name: str, schema: Any, num_rows: int) -> TableDraft:
        """Lay out a table of fixed-width columns, to be filled in place and returned.

        Parameters
        ----------
        name : str
            Its name in this task.
        schema, num_rows
            As for the engine's ``heavy.alloc_table``.

        Returns
        -------
        TableDraft
            Its ``seal()`` gives the table, which the result may refer to.

        Raises
        ------
        HeavyZoneFullError, ValueError
            As for the engine's ``heavy.alloc_table``.
        """
        schema = check_schema(name, schema, num_rows)
        made = self._zone.alloc_table_output(name, schema, num_rows)

        def seal() -> Any:
            made.complete()
            if self._tables.get(name) is table:
                del self._tables[name]
            return view_arrow(self._keep(name, made))

        table = self._tables[name] = TableDraft(name, schema, num_rows, made, seal)
        return table

    @overload
    def put(self, name: str, obj: np.ndarray[Any, Any] | np.generic) -> ShmArray: ...
    @overload
    def put(self, name: str, obj: object, *, views: bool = False) -> Any: ...
    def put(self, name: str, obj: object, *, views: bool = False) -> Any:
        """Copy an array or a table into an output, once.

        Parameters
        ----------
        name : str
            Its name in this task.
        obj, views
            As for the engine's ``heavy.put``.

        Returns
        -------
        ShmArray, pyarrow.Table, pyarrow.Array or pyarrow.ChunkedArray
            A read-only view of the output.

        Raises
        ------
        TypeError
            If `obj` is neither an array nor a table.
        HeavyZoneFullError, UnsupportedDtypeError
            As for :meth:`alloc`.
        """
        create = self._zone.create_output, self._zone.create_table_output
        made = self._keep(name, put.copy_in(*create, name, obj, views=views))
        self._put = WeakSet() if self._put is None else self._put
        self._put.add(made)
        return self._view(made)

    def __getitem__(self, name: str) -> Any:
        """Return output `name` of this task, or the entry of that name.

        Raises
        ------
        EntryNotFoundError
            If there is neither.
        """
        if self._tables and name in self._tables:
            return self._tables[name]
        made = self._outputs.get(name) if self._outputs else None
        return find_entry(self._entries, name).view() if made is None else self._view(made)

    def __iter__(self) -> Iterator[str]:
        return iter(dict.fromkeys([*self._entries, *self._outputs, *self._tables]))

    def __len__(self) -> int:
        if not self._outputs and not self._tables:
            return len(self._entries)
        return len(self._entries.keys() | self._outputs.keys() | self._tables.keys())

    def __contains__(self, name: object) -> bool:
        return name in self._outputs or name in self._tables or name in self._entries

    def _view(self, made: Output) -> Any:
        if made.kind != "tensor":
            return view_arrow(made)
        view = view_segment(made)
        view.flags.writeable = not self._put or made not in self._put
        return view

    def _keep(self, name: str, made: Output) -> Output:
        self._outputs[name] = made
        self._made = WeakSet() if self._made is None else self._made
        self._made.add(made)
        return made

    # --- for the worker ---

    def locate(self, array: np.ndarray[Any, Any]) -> tuple[Output, Handle] | None:
        """Return the output that holds all of `array`'s bytes, and where they lie in it."""
        if not self._made or not array.size or array.dtype.hasobject:
            return None
        first, low, high = extent(array)
        made = self.holder(low, high - low)
        if made is None:
            return None
        offset = first - made.address
        return made, (made.key, offset, array.shape, array.strides, array.dtype)

    def holder(self, address: int, nbytes: int) -> Output | None:
        """Return the output that holds all of these bytes."""
        for made in self._made or ():
            if made.address <= address and address + nbytes <= made.address + made.length_bytes:
                return made
        return None
