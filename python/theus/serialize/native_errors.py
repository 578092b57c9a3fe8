"""The error of a native task as an exception of this package."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, cast

from theus.errors import (
    CorruptSegmentError,
    EntryNotFoundError,
    HeavyZoneFullError,
    NativeInputError,
    NativePanicError,
    NativeTaskError,
    NativeTypeError,
    ProtocolError,
    RemoteTraceback,
)
from theus.protocol import CAUSE_INPUTS, CAUSE_PANICKED, CAUSE_STALE

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["make_native_error"]

_BY_MEANING: dict[str, Callable[[str], Exception]] = {
    "entry not found": EntryNotFoundError,
    "heavy zone full": HeavyZoneFullError,
    "corrupt": CorruptSegmentError,
}


def make_native_error(task: str, cause: int, said: Any, traceback: bytes) -> Exception:
    """Return the exception for what ended a native task.

    Parameters
    ----------
    task : str
        The task's name.
    cause : int
        As in an ERROR frame.
    said : object
        What ``schemas/values.json`` calls an error.
    traceback : bytes
        Its text, perhaps none.

    Raises
    ------
    ProtocolError
        If `said` is no such thing.
    """
    if cause == CAUSE_STALE:
        said = {"type": "unknown task", "message": "its worker has no task of this name any more"}
    error = _make(task, cause, _read(said))
    if traceback:
        error.__cause__ = RemoteTraceback(traceback.decode(errors="replace"))
    return error


def _read(said: Any) -> dict[str, Any]:
    if isinstance(said, dict):
        fields = cast("dict[str, Any]", said)
        if all(isinstance(fields.get(key), str) for key in ("type", "message")):
            return fields
    msg = f"a native task's error is a map with a type and a message, not {said!r}"
    raise ProtocolError(msg)


def _make(task: str, cause: int, said: dict[str, Any]) -> Exception:
    if cause == CAUSE_PANICKED:
        kind = NativePanicError
    elif cause == CAUSE_INPUTS:
        kind = NativeInputError
    elif said.get("meaning") in _BY_MEANING:
        return _BY_MEANING[said["meaning"]](f"{task}: {said['message']}")
    else:
        kind = NativeTypeError if said.get("meaning") == "wrong type" else NativeTaskError
    return kind(task, said["type"], said["message"])
