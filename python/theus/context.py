"""What a process function gets as ``ctx``.

Both contexts look the same: ``ctx.domain`` (also ``ctx.input``), a private copy of the domain state
with the call's inputs laid over it, and ``ctx.heavy``, the heavy entries as read-only views.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, MutableMapping
from typing import Any

from theus.entry import HeavyView
from theus.outputs import TaskHeavy

__all__ = ["Domain", "ParallelContext", "ProcessContext"]


class Domain(MutableMapping[str, Any]):
    """The domain values and inputs of one call: a private copy, read as items or attributes.

    Domain values are unpickled when they are first looked at. Changing them changes this copy only;
    the state is changed by ``engine.compare_and_swap``.

    Examples
    --------
    >>> domain = Domain({"rate": 0.5, "items": 3}, {"rate": 0.25})
    >>> domain["rate"], domain.items_, sorted(domain)
    Traceback (most recent call last):
        ...
    AttributeError: the domain has no 'items_'; it has 'rate', 'items'
    >>> domain["rate"], domain.rate, sorted(domain)
    (0.25, 0.25, ['items', 'rate'])
    """

    __slots__ = ("_base", "_own")

    def __init__(self, base: Mapping[str, Any], inputs: Mapping[str, Any]) -> None:
        object.__setattr__(self, "_base", dict.fromkeys(base, base))
        object.__setattr__(self, "_own", dict(inputs))

    _base: dict[str, Mapping[str, Any]]
    _own: dict[str, Any]

    def __getitem__(self, key: str) -> Any:
        if key not in self:
            raise KeyError(self._missing(key))
        if key not in self._own:
            self._own[key] = self._base[key][key]
        return self._own[key]

    def __setitem__(self, key: str, value: Any) -> None:
        self._own[key] = value

    def __delitem__(self, key: str) -> None:
        if key not in self:
            raise KeyError(key)
        self._own.pop(key, None)
        self._base.pop(key, None)

    def __contains__(self, key: object) -> bool:
        return key in self._own or key in self._base

    def __iter__(self) -> Iterator[str]:
        return iter({**self._base, **self._own})

    def __len__(self) -> int:
        return len(self._base.keys() | self._own.keys())

    def __getattr__(self, name: str) -> Any:
        if name.startswith("_") or name not in self:
            raise AttributeError(self._missing(name))
        return self[name]

    def _missing(self, name: str) -> str:
        known = ", ".join(map(repr, self)) or "nothing"
        return f"the domain has no {name!r}; it has {known}"

    def __setattr__(self, name: str, value: Any) -> None:
        self[name] = value

    def __reduce__(self) -> tuple[Any, ...]:
        return Domain, ({}, dict(self))

    def __repr__(self) -> str:
        return f"Domain({', '.join(self) or 'empty'})"


class _Context:
    __slots__ = ("domain", "heavy")

    def __init__(
        self, domain: Mapping[str, Any], inputs: Mapping[str, Any], heavy: HeavyView
    ) -> None:
        self.domain = Domain(domain, inputs)
        self.heavy = heavy

    @property
    def input(self) -> Domain:
        """The call's inputs over the domain state: another name of ``domain``."""
        return self.domain

    def __reduce__(self) -> tuple[Any, ...]:
        msg = "a context belongs to its task and cannot be sent: send values from it"
        raise TypeError(msg)

    def __repr__(self) -> str:
        return f"{type(self).__name__}(domain={self.domain!r}, heavy={self.heavy!r})"


class ProcessContext(_Context):
    """The context of a process that runs in the engine's own process.

    Attributes
    ----------
    domain : Domain
        A private copy of the domain state, overlaid with the inputs.
    input : Domain
        The same object.
    heavy : HeavyView
        Names to read-only arrays over shared memory.
    """

    __slots__ = ()


class ParallelContext(_Context):
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

    __slots__ = ()

    heavy: TaskHeavy
