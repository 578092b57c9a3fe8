"""What a task's answer is in the owner: the value, or the exception to raise."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from theus import wire
from theus.arrivals import Failure
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
            return True, wire.loads(value)
        if isinstance(value, Failure):
            return False, wire.load_error(value.message, value.traceback)
    except BaseException as error:  # noqa: BLE001 - loading runs code of the user's classes
        return False, error
    return False, value
