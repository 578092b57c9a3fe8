"""The end of engines: by hand, when collected, at the interpreter's exit, in forked children."""

from __future__ import annotations

import atexit
import multiprocessing
import os
import threading
from contextlib import suppress
from multiprocessing import util
from typing import TYPE_CHECKING, Any
from weakref import WeakSet, finalize

from theus._theus import fork_generation

if TYPE_CHECKING:
    from collections.abc import Callable

    from theus._theus import Session
    from theus.dispatch.dispatcher import Dispatcher
    from theus.state.store import StateStore

__all__ = ["Closing"]


class Closing:
    """Closes one engine, once, whoever asks first. It does not refer to the engine.

    Parameters
    ----------
    session, store, dispatcher
        The engine's.
    clear : callable
        Drops the engine's drafts.
    """

    def __init__(
        self,
        session: Session,
        store: StateStore,
        dispatcher: Dispatcher,
        clear: Callable[[], None],
    ) -> None:
        self._generation = fork_generation()
        self._session = session
        self._store = store
        self._dispatcher = dispatcher
        self._clear = clear
        self.begun = False
        _open.add(self)
        _lingering.add(self)
        if multiprocessing.parent_process() is not None:
            # Its children leave without running what atexit has; this runs in their own way out.
            util.Finalize(None, self.close, exitpriority=100)

    @property
    def is_foreign(self) -> bool:
        """Whether the engine is another process's, of which this one is a fork."""
        return fork_generation() != self._generation

    def watch(self, engine: object) -> None:
        """Let the engine end when nobody refers to it any more."""
        finalize(engine, self.let_go).atexit = False

    def close(self) -> None:
        """End the workers, and remove what the engine put into shared memory. Idempotent."""
        if self.is_foreign:
            return
        self.begun = True
        try:
            self._dispatcher.close()
        finally:
            self._clear()
            self._store.clear()
            self._session.close()
            _lingering.discard(self)

    def let_go(self) -> None:
        """Close the engine when its last task has ended: its futures may be waited for."""
        if not self.is_foreign and not self.begun and not self._dispatcher.when_idle(self.close):
            self.close()

    def finish(self) -> None:
        """Wait for everything that was submitted."""
        if not self.is_foreign and not self.begun:
            self._dispatcher.finish()

    def abandon(self) -> None:
        """Let go in a forked child of locks that the parent's threads may hold."""
        self._store.lock = threading.RLock()


_open: WeakSet[Closing] = WeakSet()
_lingering: set[Closing] = set()
"""Engines that are not closed. Nobody may refer to one that has tasks left."""


def _finish_all() -> None:
    """Let everything end that was submitted, as the standard library's pools do at exit."""
    for closing in list(_lingering):
        with suppress(Exception):
            closing.finish()


def _close_all() -> None:
    for closing in list(_lingering):
        with suppress(Exception):
            closing.close()


def _abandon_all() -> None:
    for closing in list(_open):
        closing.abandon()


# Before the interpreter waits for its threads, as concurrent.futures does it.
_register: Any = vars(threading)["_register_atexit"]
_register(_finish_all)
atexit.register(_close_all)
os.register_at_fork(after_in_child=_abandon_all)
