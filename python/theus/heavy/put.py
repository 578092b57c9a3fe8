"""What can be put: arrays by their memory, tables by the Arrow C data interface."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from theus.heavy import copies, tensors

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["copy_in"]

_IN_MEMORY = ("pyarrow", "pandas", "polars")


@dataclass(frozen=True, slots=True)
class _Source:
    """Something with the Arrow C data interface.

    Attributes
    ----------
    value : object
        It has ``__arrow_c_stream__`` or ``__arrow_c_array__``.
    as_array : bool
        Whether structs are to stay one array, and not be taken for the rows of a table.
    streamed : bool
        Whether its batches may come to be only when they are asked for.
    """

    value: Any
    as_array: bool = False
    streamed: bool = False


def copy_in(
    create_tensor: Callable[..., Any],
    create_table: Callable[..., Any],
    name: str,
    obj: object,
    *,
    views: bool = False,
    asked: bool = True,
) -> Any:
    """Return what one of the two makes for `obj`, with one copy of its data.

    `asked` says whether a person has asked for this very copy.

    Raises
    ------
    TypeError
        If `obj` is neither an array nor a table.
    HeavyZoneFullError
        If there is no space.
    """
    tensors.check_name(name)
    source = _recognise(name, obj)
    if isinstance(source, np.ndarray):
        made = tensors.copy_in(create_tensor, name, source)
    else:
        made = create_table(
            name,
            source.value,
            as_array=source.as_array,
            views=views,
            streamed=source.streamed,
        )
        for column, nbytes, reason in made.extra_copies:
            copies.spend(name, column, nbytes, reason)
    note = copies.note if asked else copies.spend
    note(name, None, made.length_bytes, "it was put" if asked else "it is no entry yet")
    return made


def _recognise(name: str, obj: Any) -> np.ndarray[Any, Any] | _Source:
    if isinstance(obj, np.ndarray | np.generic):
        return tensors.check_array(name, obj)
    library = type(obj).__module__.partition(".")[0]
    if library == "pandas":
        return _Source(_pandas_to_arrow(name, obj))
    if hasattr(obj, "__arrow_c_stream__") or hasattr(obj, "__arrow_c_array__"):
        streamed = library not in _IN_MEMORY or hasattr(obj, "read_next_batch")
        return _Source(obj, as_array=_is_array(obj), streamed=streamed)
    if hasattr(obj, "__dlpack__"):
        return np.from_dlpack(obj)
    msg = (
        f"entry {name!r} takes numpy arrays, pyarrow, pandas and Polars data, and what has "
        f"__arrow_c_stream__, __arrow_c_array__ or __dlpack__, not {type(obj).__name__}: "
        "pass np.asarray(...) or pyarrow.table(...) of it"
    )
    raise TypeError(msg)


def _is_array(obj: Any) -> bool:
    """Whether structs in it are values: pyarrow's own arrays say so, others are tables."""
    if type(obj).__module__.partition(".")[0] != "pyarrow":
        return False
    return hasattr(obj, "type") and not hasattr(obj, "schema")


def _pandas_to_arrow(name: str, obj: Any) -> Any:
    import pandas as pd  # noqa: PLC0415 - loaded already: there is an object of it
    import pyarrow as pa  # noqa: PLC0415

    before = pa.total_allocated_bytes()
    if isinstance(obj, pd.DataFrame):
        table = pa.Table.from_pandas(obj)
    elif isinstance(obj, pd.Series):
        table = pa.Table.from_pandas(obj.to_frame())
    else:
        msg = f"entry {name!r} takes pandas frames and series, not {type(obj).__name__}"
        raise TypeError(msg)
    taken = pa.total_allocated_bytes() - before
    if taken > 0:
        copies.spend(name, None, taken, "pandas has values that Arrow keeps otherwise")
    return table
