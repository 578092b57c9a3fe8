"""``ctx.heavy`` in a worker: the entries to read, and what the task makes in place."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal
from weakref import WeakSet

import numpy as np

from theus import tensor
from theus.array import Handle, ShmArray, extent, view_segment
from theus.entry import HeavyView

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from numpy.typing import ArrayLike, DTypeLike

    from theus._theus import Budget, Output
    from theus.entry import SupportsView

__all__ = ["TaskHeavy"]


class TaskHeavy(HeavyView):
    """The heavy zone as one task sees it: the state's entries, and outputs of its own.

    An output lies in shared memory from the start. If the task's result refers to it, in whole or
    in part, it reaches the caller without a copy; otherwise it is gone with the task. Its name is
    the task's alone: tasks that run side by side may use the same, and it hides an entry of that
    name from this task only.
    """

    __slots__ = ("_budget", "_made", "_outputs")

    def __init__(self, entries: Mapping[str, SupportsView], budget: Budget) -> None:
        super().__init__(entries)
        self._budget = budget
        self._outputs: dict[str, Output] = {}
        self._made: WeakSet[Output] = WeakSet()

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
        made = tensor.allocate(self._budget.create_output, name, shape, dtype, order)
        return view_segment(self._keep(name, made))

    def put(self, name: str, obj: ArrayLike) -> ShmArray:
        """Copy an array into an output, once.

        Parameters
        ----------
        name : str
            Its name in this task.
        obj : ndarray
            The data, of any dtype without Python objects, in any memory order.

        Returns
        -------
        ShmArray
            A read-only view of the output.

        Raises
        ------
        TypeError
            If `obj` is not a numpy array or scalar.
        HeavyZoneFullError, UnsupportedDtypeError
            As for :meth:`alloc`.
        """
        tensor.check_name(name)
        source = tensor.check_array(name, obj)
        made = tensor.copy_in(self._budget.create_output, name, source)
        view = view_segment(self._keep(name, made))
        view.flags.writeable = False
        return view

    def __getitem__(self, name: str) -> ShmArray:
        """Return output `name` of this task, or the entry of that name.

        Raises
        ------
        EntryNotFoundError
            If there is neither.
        """
        made = self._outputs.get(name)
        return super().__getitem__(name) if made is None else view_segment(made)

    def __iter__(self) -> Iterator[str]:
        return iter({**dict.fromkeys(self._entries), **dict.fromkeys(self._outputs)})

    def __len__(self) -> int:
        return len(self._entries.keys() | self._outputs.keys())

    def __contains__(self, name: object) -> bool:
        return name in self._outputs or name in self._entries

    def _keep(self, name: str, made: Output) -> Output:
        self._outputs[name] = made
        self._made.add(made)
        return made

    # --- for the worker ---

    def locate(self, array: np.ndarray[Any, Any]) -> tuple[Output, Handle] | None:
        """Return the output that holds all of `array`'s bytes, and where they lie in it."""
        if not self._made or not array.size or array.dtype.hasobject:
            return None
        first, low, high = extent(array)
        for made in self._made:
            start = made.address
            if start <= low and high <= start + made.length_bytes:
                return made, (made.key, first - start, array.shape, array.strides, array.dtype)
        return None
