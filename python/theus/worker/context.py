"""The context of a task in a worker."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from theus.tasks.context import Context, checked_level, checked_text, counted
from theus.worker.outputs import TaskHeavy

if TYPE_CHECKING:
    from theus._theus import Zone
    from theus.heavy.entry import SupportsView
    from theus.worker.reporter import Reporter

__all__ = ["ParallelContext", "looked_at"]


class ParallelContext(Context):
    """The context of a process that runs in a worker.

    Attributes
    ----------
    domain : Domain
        A private copy of the domain state, overlaid with the inputs.
    input : Domain
        The same object.
    heavy : TaskHeavy
        Names to read-only arrays over the very bytes the engine's process wrote, which the hardware
        keeps read-only; and ``alloc`` and ``put`` for arrays that the result returns in place.
    """

    __slots__ = ("_entries", "_made", "_reporter", "_zone")

    def __init__(
        self,
        domain: Mapping[str, Any],
        inputs: Mapping[str, Any],
        entries: Mapping[str, SupportsView],
        zone: Zone,
        reporter: Reporter,
    ) -> None:
        self._base = domain  # not by way of super(), as every task makes one of these
        self._inputs = inputs
        self._domain = None
        self._entries = entries
        self._zone = zone
        self._reporter = reporter
        self._made: TaskHeavy | None = None

    @property
    def heavy(self) -> TaskHeavy:
        """The heavy zone as this task sees it."""
        if self._made is None:
            self._made = TaskHeavy(self._entries, self._zone)
        return self._made

    def log(self, message: str, level: str = "info") -> None:
        """Send a line to the log of the engine's process, to the logger ``theus.worker``."""
        self._reporter.log(checked_level(level), checked_text(message))

    def progress(self, done: int, total: int | None = None, message: str = "") -> None:
        """Tell how far the task is: the future of ``engine.submit`` has it as ``progress``."""
        self._reporter.progress(*counted(done, total), checked_text(message))


def looked_at(context: ParallelContext) -> TaskHeavy | None:
    """Return the heavy zone of a task that may have made something there."""
    return context._made  # noqa: SLF001  # pyright: ignore[reportPrivateUsage]
