"""Immutable, versioned snapshots of what tasks see, and the swap that makes the next one.

A state holds the domain as bytes, one pickle for each key, so that nobody can change it in place,
and the heavy entries by reference. States are plain values: the store replaces the current one.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

from theus import plain, wire
from theus._theus import Snapshot
from theus.entry import Entry, HeavyView, encode_descriptor
from theus.errors import StateConflictError
from theus.persistent import changed

if TYPE_CHECKING:
    from collections.abc import Callable

    from theus._theus import Segment, Session

__all__ = ["FrozenDomain", "State", "StateStore"]


class FrozenDomain(Mapping[str, Any]):
    """The domain of one state. Each access returns a copy, unpickled anew."""

    __slots__ = ("_frozen",)

    def __init__(self, frozen: Mapping[str, wire.Message]) -> None:
        self._frozen = frozen

    def __getitem__(self, key: str) -> Any:
        return wire.loads(self._frozen[key])

    def __iter__(self) -> Iterator[str]:
        return iter(self._frozen)

    def __len__(self) -> int:
        return len(self._frozen)

    def __contains__(self, key: object) -> bool:
        return key in self._frozen

    def __repr__(self) -> str:
        return f"FrozenDomain({', '.join(self._frozen) or 'empty'})"


class State:
    """One version of the engine's state; it never changes.

    While a state is held, the entries it shows stay readable, here and in tasks sent from it, even
    after they were replaced or freed.

    Attributes
    ----------
    version : int
        Grows by one with each change.
    domain : Mapping
        Names to values. Each access returns a copy.
    heavy : HeavyView
        Names to read-only arrays over shared memory. Access does not copy.
    """

    __slots__ = ("_is_plain", "core", "entries", "frozen")

    def __init__(
        self, core: Snapshot, frozen: Mapping[str, wire.Message], entries: Mapping[str, Entry]
    ) -> None:
        self.core = core
        self.frozen = frozen
        self.entries = entries
        self._is_plain = not frozen

    @property
    def version(self) -> int:
        """The state's number."""
        return self.core.version

    @property
    def domain(self) -> FrozenDomain:
        """The domain, as a mapping that unpickles a copy at each access."""
        return FrozenDomain(self.frozen)

    @property
    def heavy(self) -> HeavyView:
        """The heavy entries, as a read-only mapping of views."""
        return HeavyView(self.entries)

    @property
    def is_plain(self) -> bool:
        """Whether the domain has been made plain, which runs code of the user's classes."""
        return self._is_plain

    def make_plain(self) -> None:
        """Make plain values of the domain, once: what stands for its values where no pickles go.

        This unpickles them, so no lock should be held.
        """
        if not self._is_plain:
            for key, message in self.frozen.items():
                self.core.set_plain(key, plain.encode_domain(message))
            self._is_plain = True

    def __repr__(self) -> str:
        return (
            f"State(version={self.version}, domain=[{', '.join(self.frozen)}], "
            f"heavy=[{', '.join(self.entries)}])"
        )


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
        domain: Mapping[str, wire.Message | None],
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
            self._changed.update(dict.fromkeys(written, version))
            self._find_by_segment(current.entries, heavy)
            self._current = state
            return state

    def entries_in(self, segment: Segment) -> Mapping[str, Entry]:
        """Return the current state's entries that lie in `segment`."""
        return self._by_segment.get(segment.number, {})

    def _find_by_segment(self, old: Mapping[str, Entry], new: Mapping[str, Entry | None]) -> None:
        for key, entry in new.items():
            known = old.get(key)
            if known is not None:
                number = known.segment.number
                self._by_segment[number].pop(key)
                if not self._by_segment[number]:
                    del self._by_segment[number]
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
