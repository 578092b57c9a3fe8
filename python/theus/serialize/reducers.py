"""How values with large buffers are taken apart, so that the buffers travel by themselves.

Pickle's protocol 5 hands out of band what offers it. This room makes those offer it that do not:
datetime64 and structured arrays, strided ones, subclasses, masked arrays, Polars frames, Arrow data
that is a small part of its buffers, and PyTorch's tensors. Each reducer returns what
``__reduce_ex__`` would, or None to leave the value to its own pickling.
"""

from __future__ import annotations

import copyreg
import sys
from pickle import PickleBuffer
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["LIBRARIES", "OUT_OF_BAND_BYTES", "reduce_array", "reduce_other"]

OUT_OF_BAND_BYTES = 512 * 1024
"""Buffers from this size on leave the pickle. See benches/NOTES.md for how it was measured."""

LIBRARIES = frozenset({"pandas", "polars", "pyarrow", "torch"})
"""The packages whose values :func:`reduce_other` knows."""

Array = np.ndarray[Any, Any]
Reduced = tuple[Any, ...]


# --- numpy -------------------------------------------------------------------------------------


def reduce_array(array: Array, room_for: Callable[[Array], PickleBuffer]) -> Reduced | None:
    """Reduce a large array of any dtype without objects, with any strides, of any plain subclass.

    Parameters
    ----------
    array : ndarray
        The array. One that is smaller than `OUT_OF_BAND_BYTES` or has its own pickling is left.
    room_for : callable
        Returns a buffer that stands for the items of an array which is not contiguous.
    """
    if array.nbytes < OUT_OF_BAND_BYTES or array.dtype.hasobject:
        return None
    kind = type(array)
    if kind is np.ma.MaskedArray:
        return _reduce_masked(array)
    own = (kind.__reduce__, kind.__reduce_ex__, kind.__setstate__)
    if own != (np.ndarray.__reduce__, np.ndarray.__reduce_ex__, np.ndarray.__setstate__):
        return None
    # The axis with the smallest step comes last, so that reading the source runs with the memory.
    axes = sorted(range(array.ndim), key=lambda axis: -abs(array.strides[axis]))
    ordered = array.view(np.ndarray).transpose(axes)
    if ordered.flags.c_contiguous:
        buffer = PickleBuffer(ordered.reshape(-1).view(np.uint8))  # pyright: ignore[reportArgumentType]
    else:
        buffer = room_for(ordered)
    straight = axes == list(range(array.ndim))
    whole = (buffer, array.dtype, ordered.shape, None if straight else tuple(np.argsort(axes)))
    if kind is np.ndarray:
        return _load_array, whole
    return _load_kind, (kind, getattr(array, "__dict__", None), *whole)


def _load_array(
    buffer: Any, dtype: np.dtype[Any], shape: tuple[int, ...], axes: tuple[int, ...] | None
) -> Array:
    array = np.ndarray(shape, dtype, buffer)
    return array if axes is None else array.transpose(axes)


def _load_kind(kind: type[Array], state: dict[str, Any] | None, *whole: Any) -> Array:
    array = _load_array(*whole).view(kind)
    if state:
        array.__dict__.update(state)
    return array


def _reduce_masked(array: Any) -> Reduced:
    names = ("_fill_value", "_hardmask", "_optinfo")
    state = {name: vars(array)[name] for name in names if name in vars(array)}
    return _load_masked, (array.data, array.mask if array.mask is not np.ma.nomask else None, state)


def _load_masked(data: Array, mask: Array | None, state: dict[str, Any]) -> Array:
    array = np.ma.MaskedArray(data, np.ma.nomask if mask is None else mask)
    array.__dict__.update(state)
    return array


# --- Arrow, Polars and PyTorch -----------------------------------------------------------------


def reduce_other(
    library: str, value: object, lies_in_segment: Callable[[int, int], bool]
) -> Reduced | None:
    """Reduce a Polars frame or series, pandas' Arrow data, a tensor, or a part of Arrow data.

    A library that is not loaded has no values to reduce, so none is imported here.

    Parameters
    ----------
    library : str
        The package of the value's type, one of `LIBRARIES`.
    value : object
        Any value.
    lies_in_segment : callable
        Whether bytes at an address travel by handle, given their number.
    """
    if library == "polars":
        return _reduce_polars(value)
    if library == "pyarrow":
        return _reduce_arrow(value, lies_in_segment)
    if library == "pandas":
        return _reduce_pandas(value)
    return _reduce_torch(value)


def _reduce_polars(value: Any) -> Reduced | None:
    polars = sys.modules["polars"]
    if not isinstance(value, polars.DataFrame | polars.Series):
        return None
    if value.estimated_size() < OUT_OF_BAND_BYTES:
        return None
    frame = value if isinstance(value, polars.DataFrame) else value.to_frame()
    # Strings as Polars has them: the older layout would be a copy.
    table = frame.to_arrow(compat_level=polars.CompatLevel.newest())
    # What Arrow cannot say exactly (objects, some categories) is left to Polars.
    if polars.from_arrow(table).schema != frame.schema:
        return None
    return _load_polars, (table, isinstance(value, polars.Series))


def _load_polars(table: Any, single: bool) -> Any:  # noqa: FBT001 - an argument in a pickle
    import polars as pl  # noqa: PLC0415 - only who sends frames needs it

    frame: Any = pl.from_arrow(table)
    return frame.to_series() if single else frame


def _reduce_arrow(value: Any, lies_in_segment: Callable[[int, int], bool]) -> Reduced | None:
    pa = sys.modules["pyarrow"]
    if isinstance(value, pa.MapType) and value.keys_sorted:
        # Its own pickling forgets that the keys are sorted.
        return pa.map_, (value.key_field, value.item_field, True)
    if not isinstance(value, pa.Array | pa.ChunkedArray | pa.RecordBatch | pa.Table):
        return None
    held = value.get_total_buffer_size()
    if held < OUT_OF_BAND_BYTES or 2 * value.nbytes >= held:
        return None
    buffer = _first_buffer(value)
    if buffer is not None and lies_in_segment(buffer.address, buffer.size):
        return None
    # pyarrow pickles whole buffers, however little of them a slice shows; its IPC writes the slice.
    table = value if isinstance(value, pa.Table) else _to_table(pa, value)
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, table.schema) as writer:
        writer.write_table(table)
    return _load_arrow, (type(value).__name__, PickleBuffer(sink.getvalue()))


def _first_buffer(value: Any) -> Any:
    """Return a buffer of the value: others that it shows are taken to lie where this one does."""
    columns = value.columns if hasattr(value, "columns") else [value]
    for column in columns:
        for chunk in column.chunks if hasattr(column, "chunks") else [column]:
            for buffer in chunk.buffers():
                if buffer is not None and buffer.size:
                    return buffer
    return None


def _reduce_pandas(value: Any) -> Reduced | None:
    kind = sys.modules["pandas"].arrays.ArrowExtensionArray
    chunks = value.__dict__.get("_pa_array") if isinstance(value, kind) else None
    if chunks is None or not chunks.num_chunks:
        return None
    # Its own pickling would join the chunks, which copies even a single one.
    state = {**value.__dict__, "_pa_array": chunks.chunks, "_cache": {}}
    return copyreg.__newobj__, (type(value),), state  # pyright: ignore[reportAttributeAccessIssue]


def _to_table(pa: Any, value: Any) -> Any:
    if isinstance(value, pa.RecordBatch):
        return pa.Table.from_batches([value])
    return pa.table({"": value})


def _load_arrow(kind: str, buffer: Any) -> Any:
    import pyarrow as pa  # noqa: PLC0415 - only who sends Arrow data needs it

    table = pa.ipc.open_stream(pa.py_buffer(buffer)).read_all()
    if kind == "Table":
        return table
    if kind == "RecordBatch":
        batches = table.to_batches()
        return batches[0] if batches else pa.RecordBatch.from_pylist([], table.schema)
    column = table.column(0)
    return column if kind == "ChunkedArray" else column.combine_chunks()


def _reduce_torch(value: Any) -> Reduced | None:
    torch = sys.modules["torch"]
    if type(value) not in (torch.Tensor, torch.nn.Parameter):
        return None
    in_memory = value.device.type == "cpu" and value.layout is torch.strided
    if not in_memory or value.is_quantized or value.is_conj() or value.is_neg() or vars(value):
        return None
    if value.nbytes < OUT_OF_BAND_BYTES:
        return None
    plain = value.detach()
    try:
        array = plain.numpy()
    except TypeError:  # numpy has no such type: bfloat16 and its like travel as integers
        integer = {1: torch.uint8, 2: torch.int16}.get(value.itemsize)
        if integer is None:
            return None
        array = plain.view(integer).numpy()
    kind = torch.nn.Parameter if type(value) is torch.nn.Parameter else None
    return _load_torch, (array, value.dtype, value.requires_grad, kind)


def _load_torch(array: Array, dtype: Any, requires_grad: bool, kind: Any) -> Any:  # noqa: FBT001 - an argument in a pickle
    import torch  # noqa: PLC0415  # pyright: ignore[reportMissingImports] - only who has it

    tensor: Any = torch.from_numpy(array)
    if tensor.dtype is not dtype:
        tensor = tensor.view(dtype)
    if kind is not None:
        return kind(tensor, requires_grad)
    return tensor.requires_grad_(requires_grad)
