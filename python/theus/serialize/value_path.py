"""Which part of a value is the one that cannot be sent, for error messages."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields, is_dataclass
from types import FunctionType, ModuleType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

__all__ = ["find_culprit", "items_of", "parts_of", "shortened"]

_LONGEST = 200


def find_culprit(
    obj: object,
    path: str,
    send: Callable[[object], object],
    error: Exception,
    children: Callable[[Any], Iterable[tuple[str, object]]],
) -> tuple[str, object, Exception]:
    """Descend to the innermost part of `obj` that fails to be sent by itself.

    Parameters
    ----------
    obj : object
        It failed.
    path : str
        What it is called.
    send : callable
        Raises if a part cannot be sent.
    error : Exception
        What it raised for `obj`.
    children : callable
        Returns the parts of a value, each with how the path goes on to it: `items_of`, `parts_of`.

    Returns
    -------
    path : str
        From `path` to the part, without its middle if that is long.
    part : object
    error : Exception
        What was raised for the part.
    """
    seen: set[int] = set()
    while id(obj) not in seen:
        seen.add(id(obj))
        parts = iter(children(obj))
        while True:
            try:
                step, child = next(parts)
            except Exception:  # noqa: BLE001 - there are no more, or its own code fails at them
                return shortened(path), obj, error
            try:
                send(child)
            except Exception as found:  # noqa: BLE001 - whatever sending raises is the finding
                obj, path, error = child, path + step, found
                break
    return shortened(path), obj, error


def shortened(text: str) -> str:
    """Return `text`, without its middle if it is too long for a message."""
    if len(text) <= _LONGEST:
        return text
    half = _LONGEST // 2
    return f"{text[:half]} ... {text[-half:]}"


def items_of(obj: Any) -> Iterator[tuple[str, object]]:
    """Yield what a mapping, list or tuple has in it."""
    if isinstance(obj, Mapping):
        yield from ((f"[{key!r}]", value) for key, value in obj.items())
    elif isinstance(obj, list | tuple):
        yield from ((f"[{index}]", value) for index, value in enumerate(obj))


def parts_of(obj: Any) -> Iterator[tuple[str, object]]:
    """Yield what is pickled with `obj`."""
    if isinstance(obj, Mapping | list | tuple):
        yield from items_of(obj)
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
        yield from ((f".{part.name}", getattr(obj, part.name)) for part in fields(obj))
    elif hasattr(obj, "__dict__") and not isinstance(obj, type | ModuleType):
        yield from ((f".{name}", value) for name, value in vars(obj).items())
