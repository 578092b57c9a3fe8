"""Loading of messages: handles become views, and buffers private views of the message's bytes."""

from __future__ import annotations

import pickle
import threading
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np

from theus.errors import RemoteTraceback
from theus.heavy.array import Handle, ShmArray, attach_segment, view_handle
from theus.heavy.tables import TablePart, view_part
from theus.serialize.message import Message

if TYPE_CHECKING:
    from collections.abc import Callable

    from theus._theus import Segment

__all__ = [
    "OUTPUT",
    "attach_with",
    "load_array",
    "load_array_as",
    "load_buffer",
    "load_error",
    "load_part",
    "loads",
]


def loads(message: Message | bytes) -> Any:
    """Load what :func:`dumps` made, here or in another process.

    Heavy entries arrive as read-only views. Buffers that had left the pickle arrive as private
    views of the segment's bytes, writable and copied page by page when they are written, new ones
    at each call. Bytes are the pickle of a message that has nothing else.
    """
    if isinstance(message, bytes):
        return pickle.loads(message)
    if message.outputs:
        outer = getattr(_arriving, "outputs", ())
        _arriving.outputs = message.outputs
        try:
            return loads(replace(message, outputs=()))
        finally:
            _arriving.outputs = outer
    if message.parts is None:
        return pickle.loads(message.data)
    private: Any = message.parts.private()
    memory: Any = np.frombuffer(private, np.uint8)
    data, *buffers = (memory[offset : offset + length] for offset, length in message.parts.parts)
    return pickle.loads(data, buffers=buffers)


def load_error(message: Message, traceback: bytes) -> BaseException:
    """Load an exception, with the text of its traceback in another process as its cause."""
    error: BaseException = loads(message)
    error.__cause__ = RemoteTraceback(traceback.decode(errors="replace"))
    return error


def load_array(handle: Handle) -> ShmArray:
    """Return the array of a handle in a pickle."""
    return view_handle(handle, _find)


def load_array_as(
    handle: Handle, kind: type[np.ndarray[Any, Any]], state: dict[str, Any] | None = None
) -> np.ndarray[Any, Any]:
    """Return the array of a handle in a pickle, of a subclass and with its attributes."""
    array = view_handle(handle, _find).view(kind)
    if state:
        array.__dict__.update(state)
    return array


def load_part(name: str, part: TablePart, schema: Any) -> Any:
    """Return the part of a segment's table that a pickle refers to."""
    table = view_part(_find(name), part)
    if schema is None:
        return table
    return type(table).from_arrays(table.columns, schema=schema)


def load_buffer(name: str, offset: int, nbytes: int) -> Any:
    """Return the buffer in a segment that a pickle refers to."""
    import pyarrow as pa  # noqa: PLC0415 - only who has such data needs it

    held = _find(name).buffer()
    return pa.foreign_buffer(held.address + offset, nbytes, base=held)


OUTPUT = "output:"
"""What stands for the name of a task's output, before its number."""

_attach: Callable[[str], Segment] = attach_segment
_arriving = threading.local()


def _find(name: str) -> Segment:
    if name.startswith(OUTPUT):
        return _arriving.outputs[int(name.removeprefix(OUTPUT))]
    return _attach(name)


def attach_with(attach: Callable[[str], Segment]) -> None:
    """Let handles be mapped by `attach` from now on; a worker notes what its task was given."""
    global _attach  # noqa: PLW0603 - one worker, one way to attach
    _attach = attach
