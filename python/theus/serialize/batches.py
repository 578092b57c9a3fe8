"""Several items of ``engine.map`` in one task: what is small costs more on its way than to run.

Items and results are pickled one by one, so that they share nothing. A chunk ends early, at an item
that raised, or whose result has large parts or outputs: the caller sends the items after it again.
"""

from __future__ import annotations

import pickle
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from theus.errors import RemoteTraceback
from theus.serialize.message import PROTOCOL, Message, pickle_small
from theus.serialize.unpickler import loads

if TYPE_CHECKING:
    from theus.serialize.message import Outputs

__all__ = ["MAX_BYTES", "MAX_ITEMS", "ItemResults", "join", "run", "size_for"]

MAX_ITEMS = 256
MAX_BYTES = 32 << 10
_CHUNK_S = 250e-6

Failure = tuple[BaseException, str]
"""An exception that can be pickled, and the text of its traceback."""


def size_for(estimate_s: float) -> int:
    """Return how many items should go together that take so many seconds each."""
    return max(1, min(MAX_ITEMS, int(_CHUNK_S / max(estimate_s, 1e-9))))


def join(items: Sequence[Message]) -> Message:
    """Return small items as the inputs of one task."""
    pins = [pin for item in items for pin in item.pins]
    return Message(pickle.dumps([item.data for item in items], PROTOCOL), pins=pins)


class ItemResults:
    """What came of the first items of a chunk.

    Attributes
    ----------
    values : list
        The results, in order.
    error : BaseException or None
        What the item after them raised.
    """

    __slots__ = ("error", "values")

    def __init__(self, values: list[Any], error: BaseException | None) -> None:
        self.values = values
        self.error = error


class _Travelling:
    """Results as a pickle that loads as :class:`ItemResults`."""

    __slots__ = ("_parts",)

    def __init__(self, *parts: Any) -> None:
        self._parts = parts

    def __reduce__(self) -> tuple[Any, ...]:
        return _load, self._parts


def _load(pickles: list[bytes], last: list[Any], failure: Failure | None) -> ItemResults:
    values: list[Any] = []
    for data in pickles:
        try:
            values.append(loads(data))
        except BaseException as error:  # noqa: BLE001 - loading runs code of the user's classes
            return ItemResults(values, error)
    values += last
    if failure is None:
        return ItemResults(values, None)
    error, traceback = failure
    error.__cause__ = RemoteTraceback(traceback)
    return ItemResults(values, error)


def run(
    items: list[bytes],
    call: Callable[[Any], tuple[Any, Outputs | None]],
    dumps: Callable[[object, Outputs | None], Message],
    report: Callable[[BaseException], Failure],
) -> Message:
    """Run a chunk in a worker.

    Parameters
    ----------
    items : list of bytes
        Their pickles.
    call : callable
        Runs the process for one item; its result, and the heavy zone as it saw it.
    dumps : callable
        Makes a message of a result.
    report : callable
        Makes what can be sent of an exception; raises it if the whole chunk is to end with it.
    """
    pickles: list[bytes] = []
    for item in items:
        made = None
        try:
            result, made = call(loads(item))
            data = pickle_small(result)
            if data is None:
                message = dumps(result, made)
                if message.parts is not None or message.outputs:
                    return dumps(_Travelling(pickles, [result], None), made)
                data = message.data
        except BaseException as error:  # noqa: BLE001 - it belongs to the caller, whatever it is
            return dumps(_Travelling(pickles, [], report(error)), None)
        pickles.append(data)
    return dumps(_Travelling(pickles, [], None), None)
