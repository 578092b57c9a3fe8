"""A value as it travels between processes, and the pickles of what plain pickle sends fast."""

from __future__ import annotations

import pickle
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    import numpy as np

    from theus._theus import Output, Transient
    from theus.heavy.array import Handle

__all__ = ["NONE", "NOTHING", "PROTOCOL", "Message", "Outputs", "Pins", "pickle_small"]

PROTOCOL = 5

_NUMBERS = frozenset({int, float, bool, type(None)})
_TEXTS = frozenset({str, bytes})
_SMALL_BYTES = 1024
_FEW = 60

Pins = list[object]
"""What must stay referenced until the receiver has loaded the pickle."""


@dataclass(slots=True)
class Message:
    """An object as it travels.

    Attributes
    ----------
    data : bytes
        The pickle; empty if it is large, or refers to large buffers: then `parts` has it.
    parts : Transient or None
        The pickle and the buffers it refers to.
    pins : sequence
        Hold these until the receiver has loaded the message.
    outputs : list
        The outputs that the pickle refers to, in the order of their numbers: of type `Output` on
        the way out of a worker, and `Segment` when their owner has taken them over.
    plain : bytes or None
        The same object as a plain value, once a worker without pickles was told of it.
    """

    data: bytes
    parts: Transient | None = None
    pins: Sequence[object] = ()
    outputs: Sequence[Any] = ()
    plain: bytes | None = None


NOTHING = Message(pickle.dumps({}, PROTOCOL))
"""The inputs of a call without any."""

NONE = pickle.dumps(None, PROTOCOL)
"""The result of a task that returns nothing."""


class Outputs(Protocol):
    """The outputs that a task has made, as a pickler finds them."""

    def locate(self, array: np.ndarray[Any, Any]) -> tuple[Output, Handle] | None:
        """Return the output that holds all of an array's bytes, and where they lie in it."""
        ...

    def holder(self, address: int, nbytes: int) -> Output | None:
        """Return the output that holds all of these bytes."""
        ...


def pickle_small(obj: object) -> bytes | None:
    """Return the pickle of what plain pickle sends in a few microseconds; None for all else."""
    return pickle.dumps(obj, PROTOCOL) if type(obj) in _NUMBERS or _is_plain(obj) else None


def _is_plain(obj: object) -> bool:
    if type(obj) is dict:
        items: Any = obj
        return len(items) <= _FEW and all(type(k) is str and _is_small(v) for k, v in items.items())
    return _is_small(obj)


def _is_small(value: Any) -> bool:
    kind = type(value)
    return kind in _NUMBERS or (kind in _TEXTS and len(value) <= _SMALL_BYTES)
