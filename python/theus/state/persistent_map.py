"""Mappings that never change: the next one costs what differs, not what there is.

A few items are a dict, which is copied in less than a microsecond and read fastest. Many are a hash
trie, which shares all but the path to what differs with the one before.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from types import MappingProxyType
from typing import Any, TypeVar

from rpds import HashTrieMap

__all__ = ["changed"]

V = TypeVar("V")

_MANY = 256
_FEW = 64  # far enough below, so that going up and down by one does not make all anew


def changed(old: Mapping[str, V], changes: Mapping[str, V | None]) -> Mapping[str, V]:
    """Return `old` with `changes` made, of which None removes a key.

    Parameters
    ----------
    old : Mapping
        An empty one, or one that this function returned.
    changes : Mapping
        New keys are the last of all, in this order; known ones stay where they are.

    Returns
    -------
    Mapping
        Immutable. It iterates in the order in which keys came in, as a dict does.
    """
    if not changes:
        return old
    if not isinstance(old, _Many) and len(old) + len(changes) <= _MANY:
        items: Any = old
        return MappingProxyType(_merge(items.copy(), changes))
    many = old if isinstance(old, _Many) else _Many.of(old)
    found = many.changed(changes)
    return MappingProxyType(dict(found)) if len(found) < _FEW else found


def _merge(items: dict[str, V], changes: Mapping[str, V | None]) -> dict[str, V]:
    for key, value in changes.items():
        if value is None:
            items.pop(key, None)
        else:
            items[key] = value
    return items


class _Many(Mapping[str, V]):
    """Each value with the number under which its key came in."""

    __slots__ = ("_found", "_next", "_order")

    def __init__(self, found: HashTrieMap[str, tuple[int, V]], following: int) -> None:
        self._found = found
        self._next = following
        self._order: list[str] | None = None

    @classmethod
    def of(cls, items: Mapping[str, V]) -> _Many[V]:
        found = {key: (number, value) for number, (key, value) in enumerate(items.items())}
        return cls(HashTrieMap(found), len(found))

    def changed(self, changes: Mapping[str, V | None]) -> _Many[V]:
        found, following = self._found, self._next
        for key, value in changes.items():
            known = found.get(key)
            if value is not None:
                number = following if known is None else known[0]
                following += known is None
                found = found.insert(key, (number, value))
            elif known is not None:
                found = found.remove(key)
        return _Many(found, following)

    def __getitem__(self, key: str) -> V:
        return self._found[key][1]

    def __contains__(self, key: Any) -> bool:
        return key in self._found

    def __len__(self) -> int:
        return len(self._found)

    def __iter__(self) -> Iterator[str]:
        if self._order is None:
            numbered = sorted((number, key) for key, (number, _) in self._found.items())
            self._order = [key for _, key in numbered]
        return iter(self._order)
