"""Immutable, versioned snapshots of what tasks see, and the swap that makes the next one.

A state holds the domain as bytes, one pickle for each key, so that nobody can change it in place,
and the heavy entries by reference. States are plain values: the store replaces the current one.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

from theus.heavy.entry import Entry, HeavyView
from theus.serialize import plain
from theus.serialize.message import Message
from theus.serialize.unpickler import loads

if TYPE_CHECKING:
    from theus._theus import Snapshot

__all__ = ["FrozenDomain", "State"]


class FrozenDomain(Mapping[str, Any]):
    """The domain of one state. Each access returns a copy, unpickled anew."""

    __slots__ = ("_frozen",)

    def __init__(self, frozen: Mapping[str, Message]) -> None:
        self._frozen = frozen

    def __getitem__(self, key: str) -> Any:
        return loads(self._frozen[key])

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
        self, core: Snapshot, frozen: Mapping[str, Message], entries: Mapping[str, Entry]
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
