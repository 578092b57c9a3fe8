"""What a process function gets as ``ctx``.

Both contexts look the same: ``ctx.domain`` (also ``ctx.input``), a private copy of the domain state
with the call's inputs laid over it, and ``ctx.heavy``, the heavy entries as read-only views.
"""

from __future__ import annotations

import operator
from collections.abc import Iterator, Mapping, MutableMapping
from typing import TYPE_CHECKING, Any

from theus.heavy.entry import HeavyView

if TYPE_CHECKING:
    pass

__all__ = [
    "Context",
    "Domain",
    "ProcessContext",
    "checked_level",
    "checked_text",
    "counted",
]

_LEVELS = {"debug": 10, "info": 20, "warning": 30, "error": 40}
"""As LOG frames and the standard library number them."""
_MOST = 2**64 - 1


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

    __slots__ = ("_base", "_gone", "_own")

    _base: Mapping[str, Any]
    _own: dict[str, Any]
    _gone: frozenset[object]

    def __init__(self, base: Mapping[str, Any], inputs: Mapping[str, Any]) -> None:
        _set_base(self, base)
        _set_own(self, dict(inputs))
        _set_gone(self, frozenset())

    def __getitem__(self, key: str) -> Any:
        if key in self._own:
            return self._own[key]
        if key not in self:
            raise KeyError(self._missing(key))
        value = self._own[key] = self._base[key]
        return value

    def __setitem__(self, key: str, value: Any) -> None:
        self._own[key] = value

    def __delitem__(self, key: str) -> None:
        if key not in self:
            raise KeyError(key)
        self._own.pop(key, None)
        _set_gone(self, self._gone | {key})

    def __contains__(self, key: object) -> bool:
        return key in self._own or (key in self._base and key not in self._gone)

    def __iter__(self) -> Iterator[str]:
        return iter(self._keys())

    def __len__(self) -> int:
        return len(self._keys())

    def _keys(self) -> dict[str, None]:
        base = (key for key in self._base if key not in self._gone or key in self._own)
        return dict.fromkeys([*base, *self._own])

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


# Past __setattr__, which sets items.
_set_base, _set_own, _set_gone = (vars(Domain)[name].__set__ for name in ("_base", "_own", "_gone"))


class Context:
    """What both contexts have; the domain is made when it is looked at."""

    __slots__ = ("_base", "_domain", "_inputs")

    def __init__(self, domain: Mapping[str, Any], inputs: Mapping[str, Any]) -> None:
        self._base = domain
        self._inputs = inputs
        self._domain: Domain | None = None

    @property
    def heavy(self) -> HeavyView:
        """The heavy entries, as read-only views."""
        raise NotImplementedError

    def log(self, message: str, level: str = "info") -> None:
        """Write a line to the log of the engine's process, to the logger ``theus.worker``.

        Parameters
        ----------
        message : str
            The line.
        level : {"debug", "info", "warning", "error"}, default "info"
            How much it matters.

        Raises
        ------
        ValueError
            If there is no such level.
        TypeError
            If `message` is no text.
        """
        raise NotImplementedError

    def progress(self, done: int, total: int | None = None, message: str = "") -> None:
        """Tell how far the task is: the future of ``engine.submit`` has it as ``progress``.

        Parameters
        ----------
        done : int
            How much is done, in any unit.
        total : int, optional
            How much it is in all.
        message : str, optional
            What it does now.

        Raises
        ------
        ValueError
            If a number is negative, or has more than 64 bits.
        TypeError
            If one is no int, or `message` no text.
        """
        raise NotImplementedError

    @property
    def domain(self) -> Domain:
        """A private copy of the domain state, overlaid with the inputs."""
        if self._domain is None:
            self._domain = Domain(self._base, self._inputs)
        return self._domain

    @property
    def input(self) -> Domain:
        """Another name of ``domain``."""
        return self.domain

    def __reduce__(self) -> tuple[Any, ...]:
        msg = "a context belongs to its task and cannot be sent: send values from it"
        raise TypeError(msg)

    def __repr__(self) -> str:
        return f"{type(self).__name__}(domain={self.domain!r}, heavy={self.heavy!r})"


class ProcessContext(Context):
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

    __slots__ = ("_heavy",)

    def __init__(
        self, domain: Mapping[str, Any], inputs: Mapping[str, Any], heavy: HeavyView
    ) -> None:
        super().__init__(domain, inputs)
        self._heavy = heavy

    @property
    def heavy(self) -> HeavyView:
        """The heavy entries, as read-only views."""
        return self._heavy

    def log(self, message: str, level: str = "info") -> None:
        """Write a line to the logger ``theus.worker``, as a task in a worker does."""
        import logging  # noqa: PLC0415 - workers have this module too, and do without

        logging.getLogger("theus.worker").log(checked_level(level), "%s", checked_text(message))

    def progress(self, done: int, total: int | None = None, message: str = "") -> None:
        """Tell nobody: who called the process here waits for it, and has no future to look at."""
        counted(done, total)
        checked_text(message)


def checked_level(name: str) -> int:
    """Return the number of a level of the log, by its name."""
    level = _LEVELS.get(name)
    if level is None:
        msg = f"a level is one of {', '.join(_LEVELS)}, not {name!r}"
        raise ValueError(msg)
    return level


def checked_text(message: str) -> str:
    """Return a message that is a str."""
    if not isinstance(message, str):
        msg = f"what a task tells is a str, not {message!r}"
        raise TypeError(msg)
    return message


def counted(done: int, total: int | None) -> tuple[int, int]:
    """Return what is done, and of how much; 0 if that is not known."""
    numbers = operator.index(done), 0 if total is None else operator.index(total)
    if min(numbers) < 0 or max(numbers) > _MOST:
        msg = (
            "progress counts what is done of a total, both at least 0 and of 64 bits, not "
            f"{done} of {total}"
        )
        raise ValueError(msg)
    return numbers
