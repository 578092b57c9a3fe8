"""The places at the budget, one for each worker of a session, whatever program it runs."""

from __future__ import annotations

import heapq
import threading
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from theus._theus import Session

__all__ = ["Seats"]


class Seats:
    """Gives each worker a place of its own, and takes it back when what it had reserved is gone.

    Parameters
    ----------
    session : Session
        Whose budget it is.
    """

    def __init__(self, session: Session) -> None:
        self._session = session
        self._lock = threading.Lock()
        self._free: list[int] = []
        self._next = 1

    def take(self) -> int:
        """Return the lowest place that nobody has."""
        with self._lock:
            if self._free:
                return heapq.heappop(self._free)
            self._next += 1
            return self._next - 1

    def vacate(self, seat: int) -> None:
        """Forget what the worker in `seat` had reserved, which is dead, its last frames read."""
        self._session.clear_seat(seat)
        with self._lock:
            heapq.heappush(self._free, seat)
