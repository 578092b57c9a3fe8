"""The ``@process`` contract: what a function promises, and how it is called.

A process is a plain function whose first parameter is the context. Inputs of the call whose names
are parameters of the function are passed as arguments as well, so ``def f(ctx, price)`` and
``ctx.input.price`` see the same value.
"""

from __future__ import annotations

import functools
import inspect
import operator
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, TypeVar, overload
from weakref import WeakKeyDictionary

__all__ = [
    "Arguments",
    "ProcessContract",
    "call_with_context",
    "contract_of",
    "finish",
    "plan",
    "process",
    "require_context",
]

F = TypeVar("F", bound=Callable[..., Any])

_CONTEXT_NAMES = frozenset({"ctx", "context", "c", "_", "_ctx", "_context"})
_ATTRIBUTE = "__theus_process__"
_NO_COROUTINES = frozenset({type(None), bool, int, float, str, bytes, tuple, list, dict})


@dataclass(frozen=True, slots=True)
class ProcessContract:
    """What ``@process`` recorded about a function.

    Attributes
    ----------
    parallel : bool
        Whether ``engine.execute`` sends it to a worker process.
    retries : int
        How often it is run again when the worker that runs it dies.
    """

    parallel: bool = False
    retries: int = 0


@overload
def process(fn: F, /) -> F: ...
@overload
def process(*, parallel: bool = False, retries: int = 0) -> Callable[[F], F]: ...
def process(
    fn: F | None = None, /, *, parallel: bool = False, retries: int = 0
) -> F | Callable[[F], F]:
    """Mark a function as a process of the engine.

    Parameters
    ----------
    fn : callable, optional
        The function, when the decorator is used without parentheses.
    parallel : bool, default False
        ``True`` lets ``engine.execute`` run it in a worker process, beside this one.
    retries : int, default 0
        How often a task with this function is run again, from its start, when the worker that runs
        it dies: a promise that running it twice does no harm. It concerns deaths alone, not
        exceptions, timeouts or cancellation. A task that has killed ``retries + 1`` workers fails
        with :class:`PoisonTaskError`.

    Returns
    -------
    callable
        The function itself, marked: it stays callable and picklable as it was.

    Raises
    ------
    ValueError
        If `retries` is negative.
    TypeError
        If what is marked is no function, or `retries` no number.

    Examples
    --------
    >>> @process(parallel=True)
    ... def double(ctx, x):
    ...     return 2 * x
    >>> double(None, x=21)
    42
    """
    if operator.index(retries) < 0:
        msg = f"retries is how often a task is run again, at least 0, not {retries}"
        raise ValueError(msg)

    def mark(function: F) -> F:
        if not callable(function):
            msg = f"@process marks functions, not {type(function).__name__} objects"
            raise TypeError(msg)
        setattr(function, _ATTRIBUTE, ProcessContract(parallel, operator.index(retries)))
        return function

    return mark if fn is None else mark(fn)


def contract_of(fn: Any) -> ProcessContract:
    """Return what ``@process`` recorded on `fn`; a function without a mark is a plain process."""
    while isinstance(fn, functools.partial):
        fn = fn.func
    return getattr(fn, _ATTRIBUTE, None) or ProcessContract()


@dataclass(frozen=True, slots=True)
class Arguments:
    """How a function takes its arguments."""

    context: bool
    named: frozenset[str]
    takes_item: bool
    first_name: str | None

    def call(self, fn: Callable[..., Any], ctx: object, inputs: Mapping[str, Any]) -> Any:
        """Call ``fn(ctx, ...)`` with the inputs that are parameters of `fn` as arguments too."""
        if not self.context:
            require_context(fn)
        if not inputs:
            return fn(ctx)
        return fn(ctx, **{name: inputs[name] for name in inputs if name in self.named})

    def call_with_item(self, fn: Callable[..., Any], ctx: object, item: object) -> Any:
        """Call ``fn(ctx, item)``, or ``fn(ctx)`` if it takes the context alone."""
        if not self.context:
            require_context(fn)
        return fn(ctx, item) if self.takes_item else fn(ctx)


_plans: WeakKeyDictionary[Callable[..., Any], Arguments] = WeakKeyDictionary()


def plan(fn: Callable[..., Any]) -> Arguments:
    """Return how `fn` takes its arguments, looked at once."""
    try:
        known = _plans.get(fn)
    except TypeError:  # neither hashable nor weakly referenceable: look every time
        return _inspect(fn)
    if known is None:
        known = _plans[fn] = _inspect(fn)
    return known


def _inspect(fn: Callable[..., Any]) -> Arguments:
    try:
        parameters = list(inspect.signature(fn).parameters.values())
    except (TypeError, ValueError):  # a builtin without a signature
        return Arguments(context=False, named=frozenset(), takes_item=False, first_name=None)
    positional = [p for p in parameters if p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)]
    spread = any(p.kind is p.VAR_POSITIONAL for p in parameters)
    rest = positional[1:] + [p for p in parameters if p.kind is p.KEYWORD_ONLY]
    return Arguments(
        context=bool(positional) or spread,
        named=frozenset(p.name for p in rest if p.kind is not p.POSITIONAL_ONLY),
        takes_item=len(positional) > 1 or spread,
        first_name=positional[0].name if positional else None,
    )


def require_context(fn: Callable[..., Any], *, for_items: bool = False) -> None:
    """Raise TypeError if `fn` has no parameter that could take the context.

    With `for_items`, also if its only one is meant for the item, by its name.
    """
    arguments = plan(fn)
    lacking = not arguments.context
    if for_items and not arguments.takes_item:
        lacking = lacking or arguments.first_name not in _CONTEXT_NAMES
    if lacking:
        name = getattr(fn, "__qualname__", repr(fn))
        msg = (
            f"{name}() takes no ctx: a process is called with the context as its first argument. "
            "Write def f(ctx, ...), or use engine.executor(), its map too, for functions of plain "
            "arguments"
        )
        raise TypeError(msg)


def call_with_context(fn: Callable[..., Any], ctx: object, inputs: Mapping[str, Any]) -> Any:
    """Call ``fn(ctx, ...)`` with the inputs that are parameters of `fn` as arguments too."""
    return plan(fn).call(fn, ctx, inputs)


def finish(result: Any) -> Any:
    """Run a coroutine that a process returned to its end; anything else is returned as it is."""
    if type(result) in _NO_COROUTINES or not inspect.isawaitable(result):
        return result
    import asyncio  # noqa: PLC0415 - only coroutines need it, and it takes as long as a small task

    return asyncio.run(_await(result))


async def _await(awaitable: Any) -> Any:
    return await awaitable
