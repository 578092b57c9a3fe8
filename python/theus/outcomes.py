"""What a task's answer is in the owner: the value, or the exception to raise."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from theus import plain, wire
from theus.arrivals import Failure
from theus.native_errors import load_native_error
from theus.tasks import CALL_NATIVE

if TYPE_CHECKING:
    from theus.tasks import Task

__all__ = ["load"]


def load(task: Task, *, success: bool, value: Any) -> tuple[bool, Any]:
    """Return whether `task` succeeded, and its value or exception.

    Parameters
    ----------
    task : Task
        It has ended.
    success : bool
        Whether `value` is a result.
    value : bytes, Message, Failure or BaseException
        What came of it.
    """
    is_native = task.call == CALL_NATIVE
    try:
        if success:
            return True, _load_plain(value) if is_native else wire.loads(value)
        if isinstance(value, Failure):
            return False, _load_failure(task, value, is_native=is_native)
    except BaseException as error:  # noqa: BLE001 - loading runs code of the user's classes
        return False, error
    return False, value


def _load_plain(value: bytes | wire.Message) -> Any:
    if isinstance(value, bytes):
        return plain.decode(value)
    return plain.decode(value.data, value.outputs)


def _load_failure(task: Task, failure: Failure, *, is_native: bool) -> BaseException:
    if is_native:
        name, data = task.reference.name, failure.message.data
        return load_native_error(name, failure.cause, data, failure.traceback)
    return wire.load_error(failure.message, failure.traceback)
