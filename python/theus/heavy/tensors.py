"""Making tensors: what an owner's entries and a worker's outputs have in common.

Both are made by a function with the signature of ``Session.create_tensor``, which reserves the
bytes and copies the data it is given.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from theus.heavy.array import tensor_layout, view_segment

if TYPE_CHECKING:
    from collections.abc import Callable

    from numpy.typing import DTypeLike

__all__ = ["allocate", "check_array", "check_name", "copy_in"]

_MAX_NAME_BYTES = 216  # what a slot of the catalog holds


def check_name(name: object) -> None:
    """Refuse what cannot name an entry."""
    if not isinstance(name, str):
        msg = f"entries are named by str, not {type(name).__name__}"
        raise TypeError(msg)
    if not name:
        msg = "an entry's name cannot be empty"
        raise ValueError(msg)
    if len(name.encode()) > _MAX_NAME_BYTES:
        msg = f"the name {name[:40]!r}... is longer than {_MAX_NAME_BYTES} bytes of UTF-8"
        raise ValueError(msg)


def check_array(name: str, obj: object) -> np.ndarray[Any, Any]:
    """Return `obj` as an array, or say why it cannot be put."""
    if isinstance(obj, np.ma.MaskedArray):
        msg = f"entry {name!r}: a masked array is two arrays; put .data and .mask separately"
        raise TypeError(msg)
    if not isinstance(obj, np.ndarray | np.generic):
        msg = (
            f"entry {name!r} takes an array of the heavy zone or a numpy array, "
            f"not {type(obj).__name__}: pass np.asarray(...) of it"
        )
        raise TypeError(msg)
    return np.asarray(obj)


def allocate(
    create: Callable[..., Any],
    name: str,
    shape: int | tuple[int, ...],
    dtype: DTypeLike,
    order: str,
    **more: bool,
) -> Any:
    """Return what `create` makes for a zero-filled array.

    Raises
    ------
    TypeError, ValueError
        If the name, the shape or the order is none.
    UnsupportedDtypeError
        If `dtype` holds Python objects.
    """
    check_name(name)
    if order not in ("C", "F"):
        msg = f"order must be 'C' or 'F', not {order!r}"
        raise ValueError(msg)
    dims = (shape,) if isinstance(shape, int | np.integer) else tuple(shape)
    layout, element, text, trailing = tensor_layout(dims, np.dtype(dtype))
    return create(
        name,
        layout,
        element,
        dtype=text,
        fortran=order == "F",
        trailing_bytes=trailing,
        **more,
    )


def copy_in(create: Callable[..., Any], name: str, source: np.ndarray[Any, Any]) -> Any:
    """Return what `create` makes for `source`, with one copy of its items.

    A contiguous source is copied by several threads without the GIL, and Fortran order is kept.
    """
    layout, element, text, trailing = tensor_layout(source.shape, source.dtype)
    fortran = source.flags.f_contiguous and not source.flags.c_contiguous
    if source.flags.c_contiguous or fortran:
        flat = source.reshape(-1, order="F" if fortran else "C")
        data = flat.view(np.uint8) if flat.nbytes else b""
        return create(
            name,
            layout,
            element,
            data,
            dtype=text,
            fortran=fortran,
            trailing_bytes=trailing,
        )
    made = create(name, layout, element, dtype=text, trailing_bytes=trailing)
    view_segment(made)[...] = source
    return made
