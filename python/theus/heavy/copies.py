"""Which copies were made, how large, and why; and a way to forbid those that nobody asked for.

``put`` copies what it is given, once: that is what it is for, and it is reported. Everything else
that copies data on its own account is reported too, and refused under ``zero_copy(strict=True)``.
"""

from __future__ import annotations

import threading
from collections import deque
from contextlib import contextmanager
from contextvars import ContextVar
from typing import TYPE_CHECKING, NamedTuple

from theus.errors import CopyRequiredError

if TYPE_CHECKING:
    from collections.abc import Generator

__all__ = ["CopyRecord", "copy_report", "note", "spend", "zero_copy"]

_KEPT = 10_000


class CopyRecord(NamedTuple):
    """One copy that was made.

    Attributes
    ----------
    what : str
        The entry, or what was sent: ``inputs``, ``result``.
    column : str or None
        The column, if it is not all of it.
    nbytes : int
        The bytes that were copied.
    reason : str
        Why.
    """

    what: str
    column: str | None
    nbytes: int
    reason: str


_records: deque[CopyRecord] = deque(maxlen=_KEPT)
_watches: dict[int, list[CopyRecord]] = {}
_lock = threading.Lock()
_strict: ContextVar[bool] = ContextVar("theus_strict", default=False)


def copy_report(*, clear: bool = False) -> list[CopyRecord]:
    """Return the copies that Theus made in this process, oldest first.

    Parameters
    ----------
    clear : bool, default False
        Whether to begin anew after this.

    Returns
    -------
    list of CopyRecord
        The last 10,000. What a worker copied is in the worker's own report.
    """
    with _lock:
        found = list(_records)
        if clear:
            _records.clear()
    return found


@contextmanager
def zero_copy(*, strict: bool = False) -> Generator[list[CopyRecord]]:
    """Watch the copies of a block of code, or forbid them.

    Parameters
    ----------
    strict : bool, default False
        Whether a copy of large data that was not asked for raises instead. ``put`` is asked for; a
        large value sent outside the heavy zone, plain data given to ``compare_and_swap``, and
        dictionaries that have to be unified are not.

    Yields
    ------
    list of CopyRecord
        The copies made in the block, by any thread.

    Raises
    ------
    CopyRequiredError
        Inside the block, from the call that would have copied.

    Examples
    --------
    >>> import numpy as np, theus
    >>> with theus.TheusEngine(workers=1) as engine, theus.zero_copy() as made:
    ...     entry = engine.heavy.put("x", np.zeros(1000))
    >>> made[0].what, made[0].reason
    ('x', 'it was put')
    """
    made: list[CopyRecord] = []
    with _lock:
        _watches[id(made)] = made
    token = _strict.set(strict or _strict.get())
    try:
        yield made
    finally:
        _strict.reset(token)
        with _lock:
            del _watches[id(made)]


def note(what: str, column: str | None, nbytes: int, reason: str) -> None:
    """Enter a copy into the report."""
    record = CopyRecord(what, column, nbytes, reason)
    with _lock:
        _records.append(record)
        for watch in _watches.values():
            watch.append(record)


def spend(what: str, column: str | None, nbytes: int, reason: str) -> None:
    """Enter a copy that nobody asked for into the report, or refuse it where that is forbidden.

    Raises
    ------
    CopyRequiredError
        Inside ``zero_copy(strict=True)``.
    """
    if _strict.get():
        where = what if column is None else f"{what}, column {column!r}"
        msg = (
            f"{where}: {nbytes} bytes would have to be copied, as {reason}, and "
            "zero_copy(strict=True) forbids it. Put the data into the heavy zone first"
        )
        raise CopyRequiredError(msg)
    note(what, column, nbytes, reason)
