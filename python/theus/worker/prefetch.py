"""What an idle worker does ahead of its tasks: it maps the entries that were just published.

The owner sends a new state to workers that have nothing to do. They map what is new in it, which is
then at hand when a task looks at it, and stop as soon as something else arrives.
"""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

from theus.errors import TheusError
from theus.heavy.array import view_segment
from theus.heavy.tables import view_arrow

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from theus._theus import Segment

__all__ = ["look_ahead"]

_MOST = 4


def look_ahead(
    names: Iterable[str], attach: Callable[[str], Segment], is_wanted: Callable[[], bool]
) -> None:
    """Map segments, and open the tables in them, until this worker is wanted elsewhere.

    Parameters
    ----------
    names : iterable of str
        The segments that are not mapped yet. The newest few are.
    attach : callable
        Maps one, and keeps it.
    is_wanted : callable
        Whether something has arrived that this worker should do instead.
    """
    for name in sorted(names, key=_number, reverse=True)[:_MOST]:
        if is_wanted():
            return
        try:
            segment = attach(name)
            if segment.kind == "tensor":
                view_segment(segment)
            elif "pyarrow" in sys.modules:  # its import would take longer than a task should wait
                view_arrow(segment)
        except (TheusError, OSError):  # it was freed meanwhile, or no task will be able to, either
            return


def _number(name: str) -> int:
    return int(name.rpartition("-")[2])
