"""Which keys the last versions of a state changed: a worker is told what it does not know."""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Container, Iterable, Mapping

__all__ = ["Changes", "History"]

_LEAST = 1024

_Step = dict[str, bool]
"""Keys, and whether they were set: those that were not were removed."""


class Changes(NamedTuple):
    """How one version's keys become another's: those removed go first, then others are set.

    Attributes
    ----------
    removed : list of str
        Some may not have been there.
    set : list of str
        Those that were there keep their place; others come last, in this order.
    """

    removed: list[str]
    set: list[str]


class History:
    """The keys that versions changed, as far back as telling them costs less than telling all."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._steps: dict[int, tuple[_Step, _Step]] = {}
        self._length = 0

    def note(
        self,
        version: int,
        domain: Mapping[str, object],
        heavy: Mapping[str, object],
        everything: int,
    ) -> None:
        """Note what `version` changed, None being what it removed; it has `everything` keys."""
        step = _step(domain), _step(heavy)
        with self._lock:
            self._steps[version] = step
            self._length += _length(step)
            while self._length > max(_LEAST, everything):
                self._length -= _length(self._steps.pop(next(iter(self._steps))))

    def between(
        self, base: int, version: int, domain: Container[str], heavy: Container[str]
    ) -> tuple[Changes, Changes] | None:
        """Return what makes `version`, whose keys are given, of `base`, which may be newer.

        Returns
        -------
        tuple or None
            The changes of the domain and of the heavy entries; None if it is not known, or would
            not give the keys their order.
        """
        first, last = sorted((base, version))
        with self._lock:
            if first + 1 not in self._steps or last not in self._steps:
                return None
            steps = [self._steps[number] for number in range(first + 1, last + 1)]
        make = _forward if base < version else _back
        domain_changes = make((step[0] for step in steps), domain)
        heavy_changes = make((step[1] for step in steps), heavy)
        if domain_changes is None or heavy_changes is None:
            return None
        return domain_changes, heavy_changes


def _step(keys: Mapping[str, object]) -> _Step:
    return {key: value is not None for key, value in keys.items()}


def _length(step: tuple[_Step, _Step]) -> int:
    return 1 + sum(map(len, step))


def _forward(steps: Iterable[_Step], _: Container[str]) -> Changes | None:
    removed: dict[str, None] = {}
    is_set: dict[str, None] = {}
    for step in steps:
        for key, was_set in step.items():
            if was_set:
                is_set[key] = None
            else:
                is_set.pop(key, None)
                removed[key] = None
    return Changes(list(removed), list(is_set))


def _back(steps: Iterable[_Step], there: Container[str]) -> Changes | None:
    removed: dict[str, None] = {}
    is_set: dict[str, None] = {}
    for step in steps:
        for key, was_set in step.items():
            if key not in there:
                removed[key] = None
            elif was_set:
                is_set[key] = None
            else:  # its place among the others is not known
                return None
    return Changes(list(removed), list(is_set))
