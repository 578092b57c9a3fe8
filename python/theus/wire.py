"""Pickling for workers: handles for what lies in segments, bytes for the rest.

The pickler is cloudpickle's, so lambdas and classes of ``__main__`` travel, with one rule before
its own: an ndarray whose bytes lie in a published segment becomes a handle.
"""

from __future__ import annotations

import io
import pickle
from collections.abc import Mapping
from dataclasses import fields, is_dataclass
from types import FunctionType, ModuleType
from typing import TYPE_CHECKING, Any

import cloudpickle
import numpy as np

from theus.array import Handle, ShmArray, attach_segment, handle_of, view_handle
from theus.errors import UnpicklableError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from theus._theus import Segment

__all__ = ["PROTOCOL", "Pins", "dumps", "loads"]

PROTOCOL = 5

_SCALARS = frozenset({int, float, str, bool, bytes, type(None)})
_SMALL_BYTES = 1024

Pins = list[object]
"""What must stay referenced until the receiver has loaded the pickle."""


class _Pickler(cloudpickle.Pickler):
    def __init__(
        self, file: io.BytesIO, pin: Callable[[str], object | None], modules: set[str | None] | None
    ) -> None:
        super().__init__(file, protocol=PROTOCOL)
        self.pins: Pins = []
        self._pin = pin
        self._modules = modules

    def reducer_override(self, obj: Any) -> Any:
        if isinstance(obj, np.ndarray):
            reduced = self._reduce_array(obj)
            if reduced is not None:
                return reduced
        elif self._modules is not None:
            if isinstance(obj, ModuleType):
                self._modules.add(obj.__name__)
            elif isinstance(obj, FunctionType | type):
                self._modules.add(obj.__module__)
        return super().reducer_override(obj)

    def _reduce_array(self, array: np.ndarray[Any, Any]) -> Any:
        handle = handle_of(array)
        pin = None if handle is None else self._pin(handle[0])
        if pin is None:
            kept = isinstance(array, ShmArray)
            return array.view(np.ndarray).__reduce_ex__(PROTOCOL) if kept else None
        self.pins.append(pin)
        kind = type(array)
        if kind is ShmArray:
            return _load, (handle,)
        state = getattr(array, "__dict__", None)
        return _load_as, (handle, kind, state) if state else (handle, kind)


def _load(handle: Handle) -> ShmArray:
    return view_handle(handle, _attach)


def _load_as(
    handle: Handle, kind: type[np.ndarray[Any, Any]], state: dict[str, Any] | None = None
) -> np.ndarray[Any, Any]:
    array = view_handle(handle, _attach).view(kind)
    if state:
        array.__dict__.update(state)
    return array


_attach: Callable[[str], Segment] = attach_segment


def attach_with(attach: Callable[[str], Segment]) -> None:
    """Let handles be mapped by `attach` from now on; a worker notes what its task was given."""
    global _attach  # noqa: PLW0603 - one worker, one way to attach
    _attach = attach


def dumps(
    obj: object,
    pin: Callable[[str], object | None],
    *,
    label: str,
    modules: set[str | None] | None = None,
) -> tuple[bytes, Pins]:
    """Pickle `obj` for another process of this engine.

    Parameters
    ----------
    obj : object
        Anything cloudpickle can send, with arrays of the heavy zone anywhere inside.
    pin : callable
        Given a segment's name, returns what keeps that name alive, or None if the segment cannot
        be promised to the receiver; the array then goes by value.
    label : str
        What `obj` is, as the root of the path in an error message.
    modules : set of str, optional
        Collects the names of the modules the pickle refers to.

    Returns
    -------
    data : bytes
        The pickle. An array of the heavy zone takes a few hundred bytes of it, whatever its size.
    pins : list
        Hold these until the receiver has loaded the pickle.

    Raises
    ------
    UnpicklableError
        Naming the path from `label` to the value that could not be pickled.
    """
    if _is_plain(obj):
        return pickle.dumps(obj, PROTOCOL), []
    file = io.BytesIO()
    pickler = _Pickler(file, pin, modules)
    try:
        pickler.dump(obj)
    except Exception as error:
        path, culprit, reason = _find_culprit(obj, label, pin, error)
        msg = (
            f"{path} cannot be sent to another process: {reason}. "
            f"It is a {type(culprit).__module__}.{type(culprit).__qualname__}; "
            "send plain data instead, and open files, locks and connections inside the function"
        )
        raise UnpicklableError(msg) from error
    return file.getvalue(), pickler.pins


def loads(data: bytes | memoryview) -> Any:
    """Load a pickle that :func:`dumps` made. Heavy entries arrive as read-only views."""
    return pickle.loads(data)


def _is_plain(obj: object) -> bool:
    kind = type(obj)
    if kind in _SCALARS:
        return True
    if kind is dict:
        items: Any = obj
        return len(items) <= _SMALL_BYTES and all(
            type(k) is str and type(v) in _SCALARS for k, v in items.items()
        )
    return False


def _find_culprit(
    obj: object, path: str, pin: Callable[[str], object | None], error: Exception
) -> tuple[str, object, Exception]:
    """Descend to the innermost part of `obj` that fails to pickle by itself."""
    seen: set[int] = set()
    while id(obj) not in seen:
        seen.add(id(obj))
        for step, child in _children(obj):
            try:
                _Pickler(io.BytesIO(), pin, None).dump(child)
            except Exception as found:  # noqa: BLE001 - whatever pickling raises is the finding
                obj, path, error = child, path + step, found
                break
        else:
            break
    return path, obj, error


def _children(obj: Any) -> Iterator[tuple[str, object]]:
    if isinstance(obj, Mapping):
        yield from ((f"[{key!r}]", value) for key, value in obj.items())
    elif isinstance(obj, list | tuple):
        yield from ((f"[{index}]", value) for index, value in enumerate(obj))
    elif isinstance(obj, set | frozenset):
        yield from (("{...}", value) for value in obj)
    elif isinstance(obj, FunctionType):
        code = obj.__code__
        for name, cell in zip(code.co_freevars, obj.__closure__ or (), strict=True):
            yield f" closure {name}", cell.cell_contents
        for name in code.co_names:
            if name in obj.__globals__:
                yield f" global {name}", obj.__globals__[name]
    elif is_dataclass(obj) and not isinstance(obj, type):
        yield from ((f".{field.name}", getattr(obj, field.name)) for field in fields(obj))
    elif hasattr(obj, "__dict__") and not isinstance(obj, type | ModuleType):
        yield from ((f".{name}", value) for name, value in vars(obj).items())
