"""The current state, and the swap that makes the next one of it."""

from __future__ import annotations

import threading
from collections.abc import Mapping
from typing import TYPE_CHECKING

from theus._theus import Snapshot
from theus.errors import StateConflictError
from theus.heavy.entry import Entry, encode_descriptor
from theus.state.persistent_map import changed
from theus.state.snapshot import State

if TYPE_CHECKING:
    from collections.abc import Callable

    from theus._theus import Segment, Session
    from theus.serialize.message import Message

__all__ = ["StateStore"]


class StateStore:
    """Holds the current state and replaces it, one change at a time."""

    def __init__(self, session: Session) -> None:
        self.lock = threading.RLock()
        self._session = session
        self._current = State(Snapshot(), {}, {})
        self._changed: dict[str, int] = {}
        self._by_segment: dict[int, dict[str, Entry]] = {}

    @property
    def current(self) -> State:
        """The newest state."""
        return self._current

    def commit(
        self,
        domain: Mapping[str, Message | None],
        heavy: Mapping[str, Entry | None],
        *,
        base: int | None = None,
        strict: bool = False,
        publish: Callable[[], None] | None = None,
    ) -> State:
        """Make the next state from the current one and the changed keys; None removes a key.

        Parameters
        ----------
        domain, heavy : mapping
            The changes.
        base : int, optional
            The version they were computed from; without it they cannot conflict.
        strict : bool, default False
            Whether any change since `base` is a conflict, not only one of the same keys.
        publish : callable, optional
            Called once the change is known not to conflict, before it shows.

        Raises
        ------
        StateConflictError
            On a conflict; nothing has changed then.
        ValueError
            If `base` is a version that does not exist yet.
        """
        with self.lock:
            current = self._current
            written = [f"domain.{key}" for key in domain] + [f"heavy.{key}" for key in heavy]
            if base is not None:
                self._check(written, base, strict=strict)
            if publish is not None:
                publish()
            version = current.version + 1
            core = current.core.changed(
                version,
                [(key, entry and encode_descriptor(key, entry)) for key, entry in heavy.items()],
                [(key, value and (value.data, value.parts)) for key, value in domain.items()],
            )
            state = State(core, changed(current.frozen, domain), changed(current.entries, heavy))
            self._session.commit(
                version,
                [(key, None if entry is None else entry.segment) for key, entry in heavy.items()],
            )
            # A signal handler may raise between any two steps: the state is the old or the new.
            self._changed.update(dict.fromkeys(written, version))
            self._current = state
            self._find_by_segment(current.entries, heavy)
            return state

    def entries_in(self, segment: Segment) -> Mapping[str, Entry]:
        """Return the current state's entries that lie in `segment`."""
        return self._by_segment.get(segment.number, {})

    def _find_by_segment(self, old: Mapping[str, Entry], new: Mapping[str, Entry | None]) -> None:
        for key, entry in new.items():
            known = old.get(key)
            if known is not None:
                number = known.segment.number
                others = self._by_segment.get(number, {})
                others.pop(key, None)
                if not others:
                    self._by_segment.pop(number, None)
            if entry is not None:
                self._by_segment.setdefault(entry.segment.number, {})[key] = entry

    def clear(self) -> None:
        """Forget every entry: the engine is closing."""
        with self.lock:
            self._current = State(self._current.core, self._current.frozen, {})
            self._by_segment.clear()

    def _check(self, written: list[str], base: int, *, strict: bool) -> None:
        current = self._current.version
        if base > current or base < 0:
            msg = f"version {base} does not exist: the state is at version {current}"
            raise ValueError(msg)
        asked = self._changed if strict and current > base else written
        keys = [key for key in asked if self._changed.get(key, 0) > base]
        if keys:
            raise StateConflictError(tuple(sorted(keys)), base, current)
