"""Ctrl-C while tasks are moved: it waits for the step to end, so that nothing is half done."""

from __future__ import annotations

import _signal  # pyright: ignore[reportMissingImports]
import signal
import threading
import time
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable
    from types import FrameType, TracebackType
    from typing import Self

__all__ = ["InterruptsDeferred"]

# What `signal` wraps around them turns numbers into enums, which takes 5 us each time.
_set_handler: Any = _signal.signal
_get_handler: Any = _signal.getsignal

_PATIENCE_S = 1.0


class InterruptsDeferred:
    """Keeps a first KeyboardInterrupt out of a ``with`` block, and raises it at the block's end.

    One that comes more than a second later is raised at once: what runs in the block may be the
    user's code and hang. Only the main thread gets them, and only where nobody has set a handler of
    his own for SIGINT.

    Parameters
    ----------
    wake : callable, optional
        Called when one is noted, at any moment: it ends the waiting in the block, if there is any.

    Attributes
    ----------
    noted : bool
        Whether one waits for the end of the block, which should come soon then.
    """

    __slots__ = ("_active", "_since", "_wake", "noted")

    def __init__(self, wake: Callable[[], object] | None = None) -> None:
        self._active = False
        self._since = 0.0
        self._wake = wake
        self.noted = False

    def __enter__(self) -> Self:
        is_main = threading.get_ident() == threading.main_thread().ident
        if is_main and _get_handler(signal.SIGINT) is signal.default_int_handler:
            _set_handler(signal.SIGINT, self._note)
            self._active = True
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if not self._active:
            return
        self._active = False
        _set_handler(signal.SIGINT, signal.default_int_handler)
        if self.noted and error is None:
            raise KeyboardInterrupt

    def _note(self, number: int, frame: FrameType | None) -> None:
        if not self.noted:
            self._since = time.monotonic()
        elif time.monotonic() - self._since > _PATIENCE_S:
            signal.default_int_handler(number, frame)
        self.noted = True
        if self._wake is not None:
            self._wake()
