"""``ShmArray``: a numpy array over shared memory, and the handles by which it travels.

The address decides what a handle is. An array whose bytes lie in a published segment is described
by the segment's name, the offset of its first item, its shape and its strides, whether it is the
entry itself, a slice, a transpose, or a plain ndarray some library made of it. Nothing is looked up
by object identity, so no route loses the offset.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any
from weakref import WeakKeyDictionary, WeakValueDictionary

import numpy as np

from theus import _theus
from theus.errors import SegmentNotFoundError, StaleSegmentError, UnsupportedDtypeError

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from theus._theus import Output, Segment

__all__ = [
    "Handle",
    "ShmArray",
    "buffer_of",
    "describe_dtype",
    "empty_handle",
    "extent",
    "handle_of",
    "restore_dtype",
    "tensor_layout",
    "view_handle",
    "view_segment",
]

Handle = tuple[str, int, tuple[int, ...], tuple[int, ...], Any]
"""Segment name, offset of the first item, shape, strides in bytes, dtype."""

_ELEMENTS = {
    np.dtype(code): code
    for code in ("i1", "i2", "i4", "i8", "u1", "u2", "u4", "u8", "f2", "f4", "f8")
}
_AS_INTEGERS = {"b": "u1", "M": "i8", "m": "i8"}

attached: WeakValueDictionary[str, Segment] = WeakValueDictionary()
"""Segments mapped in this process, by name, for as long as somebody holds them."""

_views: WeakKeyDictionary[Segment | Output, ShmArray] = WeakKeyDictionary()
"""The whole of each, as making an array of it takes several times as long as making one of that."""

_MOST_VIEWS = 1024
"""How many of them are kept, as each keeps its mapping."""


class ShmArray(np.ndarray[Any, Any]):
    """A numpy array whose bytes lie in shared memory, or a view of one.

    It is an ndarray in every respect but three: arithmetic returns plain ndarrays (in-place
    operators return the array itself), pickling one sends a handle of a few hundred bytes while its
    entry is published, and a one-dimensional one exports its bytes to Arrow without a copy.

    The array keeps the memory mapped: it stays valid after the entry was freed, and after the
    engine was closed. Arrays of published entries are read-only by the MMU: neither assignment,
    ``setflags(write=True)`` nor an ``out=`` argument can change them.

    Notes
    -----
    ``pickle.dumps`` by hand gives a handle that is valid while its session lives and its entry is
    referred to. To save the data itself, pickle ``np.array(arr)``.
    """

    __slots__ = ()

    def __array_ufunc__(self, ufunc: np.ufunc, method: str, *inputs: Any, **kwargs: Any) -> Any:
        """Compute on plain views, so that results are plain ndarrays and ``out`` is returned."""
        out = kwargs.get("out")
        if out:
            kwargs["out"] = tuple(_plain(item) for item in out)
        if isinstance(kwargs.get("where"), ShmArray):
            kwargs["where"] = _plain(kwargs["where"])
        result = getattr(ufunc, method)(*(_plain(item) for item in inputs), **kwargs)
        if not out or result is NotImplemented:
            return result
        if isinstance(result, tuple):
            return tuple(
                given if given is not None else made
                for given, made in zip(out, result, strict=True)
            )
        return out[0] if out[0] is not None else result

    def __reduce_ex__(self, protocol: Any, /) -> tuple[Any, ...]:
        """Reduce to a handle if the bytes lie in a published segment, else to a plain ndarray."""
        handle = handle_of(self)
        segment = None if handle is None else attached.get(handle[0])
        if handle is None or segment is None or not segment.linked:
            return _plain(self).__reduce_ex__(protocol)
        return _load_by_hand, (handle, segment.key)

    def __arrow_c_array__(self, requested_schema: object | None = None) -> tuple[object, object]:
        """Export a one-dimensional contiguous array to Arrow, over these very bytes.

        Parameters
        ----------
        requested_schema : PyCapsule, optional
            Ignored, as the protocol allows: the data is exported as it is.

        Returns
        -------
        tuple of PyCapsule
            ``arrow_schema`` and ``arrow_array``; they keep the memory mapped.

        Raises
        ------
        TypeError
            If the array is not one-dimensional and contiguous, is not in a published segment or in
            a mutable one, whose bytes go on changing as no Arrow data may, or has a dtype
            that Arrow does not have as a fixed-width number.

        References
        ----------
        The Arrow PyCapsule interface,
        https://arrow.apache.org/docs/format/CDataInterface/PyCapsuleInterface.html
        """
        del requested_schema
        element = _ELEMENTS.get(self.dtype)
        handle = handle_of(self)
        segment = None if handle is None else attached.get(handle[0])
        plain = self.ndim == 1 and self.flags.c_contiguous and element is not None
        if not plain or element is None or segment is None or segment.mutable:
            msg = (
                f"an Arrow array can be made without a copy only from a contiguous 1-D numeric "
                f"array of a published, immutable entry, not from shape {self.shape}, dtype "
                f"{self.dtype}: "
                "seal the entry first, or pass np.ascontiguousarray(arr)"
            )
            raise TypeError(msg)
        assert handle is not None  # noqa: S101 - narrowed with segment above
        return segment.buffer().arrow_array(element, handle[1], len(self))


def _plain(item: Any) -> Any:
    return item.view(np.ndarray) if isinstance(item, ShmArray) else item


# --- how a numpy array lies in an Arrow tensor -------------------------------------------------


def tensor_layout(
    shape: Sequence[int], dtype: np.dtype[Any]
) -> tuple[tuple[int, ...], str, str | None, bool]:
    """Return the Arrow tensor that holds arrays of `shape` and `dtype`.

    Arrow's tensors know integers and floats. Every other dtype lies in a tensor of integers of its
    size (bool, datetime64, timedelta64), or of bytes with the item's bytes as the last dimension.

    Returns
    -------
    shape : tuple of int
        The tensor's shape.
    element : str
        The tensor's element type, such as ``"f4"``.
    text : str or None
        The numpy dtype for the message's custom metadata, if the element type does not say it.
    trailing : bool
        Whether the last dimension is the item's bytes.

    Raises
    ------
    UnsupportedDtypeError
        If the dtype holds Python objects or was registered by another package.
    """
    if dtype.hasobject:
        msg = (
            f"dtype {dtype} holds Python objects, which are addresses of this process and mean "
            "nothing in another: convert to numbers or to fixed-width strings first"
        )
        raise UnsupportedDtypeError(msg)
    if dtype.subdtype is not None:
        base, inner = dtype.subdtype
        return tensor_layout((*shape, *inner), base)
    if dtype in _ELEMENTS and dtype.isnative:
        return tuple(shape), _ELEMENTS[dtype], None, False
    text = json.dumps(describe_dtype(dtype), separators=(",", ":"))
    if dtype.kind in _AS_INTEGERS and dtype.isnative:
        return tuple(shape), _AS_INTEGERS[dtype.kind], text, False
    return (*shape, dtype.itemsize), "u1", text, True


def describe_dtype(dtype: np.dtype[Any]) -> Any:
    """Return `dtype` as JSON: its ``str``, ``[base, shape]``, or the dict numpy builds it from."""
    if dtype.subdtype is not None:
        return [describe_dtype(dtype.subdtype[0]), list(dtype.subdtype[1])]
    if dtype.names is None:
        if dtype.isbuiltin == 2:  # noqa: PLR2004 - numpy's code for types registered by others
            msg = f"dtype {dtype} is not numpy's own, so a reader could not rebuild it by name"
            raise UnsupportedDtypeError(msg)
        return dtype.str
    fields: Any = dtype.fields or {}
    return {
        "names": list(dtype.names),
        "formats": [describe_dtype(fields[name][0]) for name in dtype.names],
        "offsets": [fields[name][1] for name in dtype.names],
        "titles": [(fields[name][2:] or (None,))[0] for name in dtype.names],
        "itemsize": dtype.itemsize,
        "aligned": dtype.isalignedstruct,
    }


def restore_dtype(description: Any) -> np.dtype[Any]:
    """Return the dtype that :func:`describe_dtype` described."""
    match description:
        case str():
            return np.dtype(description)
        case [base, shape]:
            return np.dtype((restore_dtype(base), tuple(shape)))
        case dict():
            formats = [restore_dtype(item) for item in description["formats"]]
            spec: Any = {**description, "formats": formats}
            return np.dtype(spec, align=description["aligned"])
        case _:
            msg = f"not a description of a numpy dtype: {description!r}"
            raise ValueError(msg)


def view_segment(segment: Segment | Output) -> ShmArray:
    """Return the tensor of `segment` as an array over its bytes, without a copy.

    Parameters
    ----------
    segment : Segment
        An open segment. The array keeps its mapping alive.

    Returns
    -------
    ShmArray
        Writable only for the owner of an unpublished or mutable entry.
    """
    whole = _views.get(segment)
    if whole is None:
        whole = _view_anew(segment)
        if not (isinstance(segment, _theus.Segment) and _is_constant(segment)):
            return whole
        if len(_views) >= _MOST_VIEWS:
            _views.clear()
        _views[segment] = whole
    return whole.view()  # whose shape its user may change


def _is_constant(segment: Segment) -> bool:
    return segment.published and not (segment.mutable or segment.kept_by_views)


def _view_anew(segment: Segment | Output) -> ShmArray:
    shape, strides = segment.shape, segment.strides
    if segment.dtype is None:
        dtype = np.dtype(segment.element)
    else:
        dtype = restore_dtype(json.loads(segment.dtype))
        if dtype.kind not in _AS_INTEGERS or not dtype.isnative:
            shape, strides = shape[:-1], strides[:-1]
    return _over(segment, segment.body_offset, shape, strides, dtype)


def _over(
    segment: Segment | Output,
    offset: int,
    shape: tuple[int, ...],
    strides: tuple[int, ...],
    dtype: np.dtype[Any],
) -> ShmArray:
    empty = 0 in shape or not dtype.itemsize
    return ShmArray(
        shape,
        dtype,
        buffer=segment.buffer(),  # pyright: ignore[reportArgumentType] - a buffer by protocol
        offset=segment.body_offset if empty else offset,
        strides=None if empty else strides,
    )


# --- handles -----------------------------------------------------------------------------------


def extent(array: np.ndarray[Any, Any]) -> tuple[int, int, int]:
    """Return the addresses of the first item, of the lowest byte, and after the highest byte."""
    first: int = array.__array_interface__["data"][0]
    low, high = first, first + array.dtype.itemsize
    for length, stride in zip(array.shape, array.strides, strict=True):
        if stride < 0:
            low += (length - 1) * stride
        else:
            high += (length - 1) * stride
    return first, low, high


def handle_of(array: np.ndarray[Any, Any]) -> Handle | None:
    """Return the handle of `array` if all its bytes lie in a published segment mapped here.

    The array may be any view, with any strides: the lowest and the highest byte it can touch are
    looked up by address. Costs a few microseconds, whatever the array's size.
    """
    dtype = array.dtype
    if not array.size or not dtype.itemsize or dtype.hasobject:
        return None
    first, low, high = extent(array)
    found = _theus.locate(low, high - low)
    if found is None:
        return None
    name, offset, _ = found
    plain = dtype.names is None and dtype.metadata is None and np.dtype(dtype.str) == dtype
    return name, offset + first - low, array.shape, array.strides, dtype.str if plain else dtype


def empty_handle(array: np.ndarray[Any, Any]) -> Handle | None:
    """Return the handle of an array without items that was made of a published segment's buffer.

    It has no bytes to be found by. Its offset is that of the segment.
    """
    buffer = buffer_of(array)
    if array.size or buffer is None:
        return None
    found = _theus.locate(buffer.address, 1)
    return found and (found[0], 0, array.shape, array.strides, array.dtype.str)


def buffer_of(array: np.ndarray[Any, Any]) -> _theus.Buffer | None:
    """Return the buffer of a segment that an array was made over, in as many steps as there are."""
    base: Any = array
    while isinstance(base, np.ndarray):
        base = base.base
    return base if isinstance(base, _theus.Buffer) else None


def view_handle(
    handle: Handle, attach: Callable[[str], Segment] | None = None, key: str | None = None
) -> ShmArray:
    """Return the read-only array that a handle describes, without a copy.

    Parameters
    ----------
    handle : tuple
        As :func:`handle_of` returned it, perhaps in another process.
    attach : callable, optional
        How to map a segment by name; the default maps it if it is not mapped yet.
    key : str, optional
        The entry's name, for the error message.

    Raises
    ------
    StaleSegmentError
        If the segment is gone.
    """
    name, offset, shape, strides, dtype = handle
    try:
        segment = (attach or attach_segment)(name)
    except SegmentNotFoundError as error:
        what = f"entry {key!r} (segment {name})" if key else f"segment {name}"
        msg = (
            f"{what} is gone: its session has ended or the entry was freed since this handle was "
            "pickled. Pickle np.array(arr) to save the data itself"
        )
        raise StaleSegmentError(msg) from error
    return _over(segment, offset, shape, strides, np.dtype(dtype))


def attach_segment(name: str) -> Segment:
    """Return the segment `name`, mapped read-only; the one that is mapped already, if any."""
    segment = attached.get(name)
    if segment is None or not segment.linked:
        segment = _theus.open_segment(name)
        attached[name] = segment
    return segment


def _load_by_hand(handle: Handle, key: str) -> ShmArray:
    return view_handle(handle, key=key)
