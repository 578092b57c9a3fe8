"""Checks of arguments: a wrong kind is a TypeError that names the argument."""

from __future__ import annotations

import math
from contextlib import suppress
from numbers import Real

__all__ = ["check_int", "check_positive", "check_seconds"]


def check_seconds(timeout: float) -> None:
    """Refuse what is no number of seconds."""
    if not isinstance(timeout, Real):
        msg = f"timeout is a number of seconds, not {timeout!r}"
        raise TypeError(msg)
    with suppress(OverflowError):  # of an int that no float is
        if not math.isnan(timeout):
            return
    msg = f"timeout is a number of seconds, not {timeout}"
    raise ValueError(msg)


def check_int(name: str, value: int | None, unit: str) -> None:
    """Refuse what is no int, or None."""
    if isinstance(value, bool) or not isinstance(value, int | None):
        msg = f"{name} is a number of {unit}, an int, not {value!r}"
        raise TypeError(msg)


def check_positive(name: str, value: int | None, unit: str) -> None:
    """Refuse what is not a positive int, or None."""
    check_int(name, value, unit)
    if value is not None and value < 1:
        msg = f"{name} is a number of {unit}, at least 1, not {value}"
        raise ValueError(msg)
