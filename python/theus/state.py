"""Immutable, versioned snapshots of what tasks see, and the swap that makes the next one.

A state holds the domain as bytes, one pickle for each key, so that nobody can change it in place,
and the heavy entries by reference. States are plain values: the store replaces the current one.
"""

from __future__ import annotations

import json
import threading
from collections.abc import Iterable, Iterator, Mapping
from typing import TYPE_CHECKING, Any, NamedTuple

from theus import plain, wire
from theus.entry import Entry, HeavyView, encode_change, encode_descriptors
from theus.errors import StateConflictError
from theus.history import History
from theus.persistent import changed

if TYPE_CHECKING:
    from collections.abc import Callable

    from theus._theus import Segment, Session

__all__ = ["FrozenDomain", "State", "StateStore"]

_FEW = 64
_SMALL_BYTES = 64 << 10


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


class Sent(NamedTuple):
    """A state as it is told to a worker.

    Attributes
    ----------
    entries, domain_keys : bytes
        As in STATE frames.
    values : list of Message
        One for each of the domain keys that are set: pickles, or plain values.
    """

    entries: bytes
    domain_keys: bytes
    values: list[wire.Message]


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

    __slots__ = ("_descriptors", "_history", "_is_plain", "_version", "entries", "frozen")

    def __init__(
        self,
        version: int,
        frozen: Mapping[str, wire.Message],
        entries: Mapping[str, Entry],
        history: History,
    ) -> None:
        self._version = version
        self.frozen = frozen
        self.entries = entries
        self._history = history
        self._descriptors: bytes | None = None
        self._is_plain = False

    @property
    def version(self) -> int:
        """The state's number."""
        return self._version

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
        return self._is_plain or all(m.plain is not None for m in self.frozen.values())

    def make_plain(self) -> None:
        """Make plain values of the domain, once: what stands for its values where no pickles go.

        This unpickles them, so no lock should be held.
        """
        if not self._is_plain:
            for message in self.frozen.values():
                plain.encode_domain(message)
            self._is_plain = True

    def sent(self, base: int | None, *, as_plain: bool = False) -> Sent:
        """Return what tells this state to a worker that holds version `base`, or none.

        With `as_plain`, for a worker without pickles.
        """
        keys = self.frozen, self.entries
        changes = None if base is None else self._history.between(base, self._version, *keys)
        if base is None or changes is None:
            if self._descriptors is None:
                self._descriptors = encode_descriptors(self.entries)
            names = json.dumps(list(self.frozen)).encode()
            return Sent(self._descriptors, names, self._values(self.frozen, as_plain=as_plain))
        domain, heavy = changes
        return Sent(
            encode_change(base, heavy.removed, {key: self.entries[key] for key in heavy.set}),
            json.dumps({"removed": domain.removed, "set": domain.set}).encode(),
            self._values(domain.set, as_plain=as_plain),
        )

    def _values(self, keys: Iterable[str], *, as_plain: bool) -> list[wire.Message]:
        messages = [self.frozen[key] for key in keys]
        return [wire.Message(plain.encode_domain(m)) for m in messages] if as_plain else messages

    def is_small(self) -> bool:
        """Whether sending it costs next to nothing, so that it may be sent in vain."""
        if len(self.entries) + len(self.frozen) > _FEW:
            return False
        messages = self.frozen.values()
        return all(m.parts is None for m in messages) and (
            sum(len(m.data) for m in messages) <= _SMALL_BYTES
        )

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
        self._history = History()
        self._current = State(0, {}, {}, self._history)
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
            state = State(
                version,
                changed(current.frozen, domain),
                changed(current.entries, heavy),
                self._history,
            )
            self._session.commit(
                version,
                [(key, None if entry is None else entry.segment) for key, entry in heavy.items()],
            )
            self._history.note(version, domain, heavy, len(state.frozen) + len(state.entries))
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
            version, frozen = self._current.version, self._current.frozen
            self._current = State(version, frozen, {}, self._history)
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
