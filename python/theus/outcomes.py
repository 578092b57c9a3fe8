"""What a task's answer is in the owner: the value, or the exception to raise."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from theus import native_items, plain, wire
from theus.arrivals import Failure
from theus.native_errors import make_native_error
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
    try:
        if success:
            return True, _load_result(task, value)
        if isinstance(value, Failure):
            return False, _load_failure(task, value)
    except BaseException as error:  # noqa: BLE001 - loading runs code of the user's classes
        return False, error
    return False, value


def _load_result(task: Task, value: bytes | wire.Message) -> Any:
    if not task.is_native:
        return wire.loads(value)
    data, outputs = (value, ()) if isinstance(value, bytes) else (value.data, value.outputs)
    if task.call == CALL_NATIVE:
        return plain.decode(data, outputs)
    return native_items.load(task.reference.name, data, outputs)


def _load_failure(task: Task, failure: Failure) -> BaseException:
    if task.is_native:
        said = plain.decode(failure.message.data) if failure.message.data else None
        return make_native_error(task.reference.name, failure.cause, said, failure.traceback)
    return wire.load_error(failure.message, failure.traceback)
