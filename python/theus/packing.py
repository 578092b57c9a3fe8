"""Making tasks of calls: their inputs as pickles or as plain values, and their functions."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from theus import chunks, native_items, plain, wire
from theus.contracts import require_context
from theus.native_tasks import NativeTask
from theus.tasks import (
    CALL_CONTEXT,
    CALL_ITEM,
    CALL_ITEMS,
    CALL_NATIVE,
    CALL_NATIVE_ITEMS,
    Outcome,
    Task,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from pathlib import Path

    from theus._theus import Segment
    from theus.functions import Reference, References
    from theus.native_tasks import Progress
    from theus.state import State, StateStore

__all__ = ["Packing", "Stream"]


class Packing:
    """Puts calls into the form in which they travel.

    Parameters
    ----------
    store : StateStore
        Tasks are sent with its current state.
    references : References
        Makes functions ready.
    pin : callable
        Given a segment's name, returns what keeps that name, or None if it cannot be promised.
    spill_dir : pathlib.Path or None
        Where large parts go that do not fit in memory.
    """

    def __init__(
        self,
        store: StateStore,
        references: References,
        pin: Callable[[str], Segment | None],
        spill_dir: Path | None,
    ) -> None:
        self._store = store
        self._references = references
        self._pin = pin
        self._spill_dir = spill_dir

    def pickle(self, value: object, label: str) -> wire.Message:
        """Return a value pickled; `label` is what errors call it.

        Raises
        ------
        UnpicklableError
            If it cannot be; the message names the path to the part.
        """
        return wire.dumps(value, self._pin, label=label, spill_dir=self._spill_dir)

    def inputs(
        self, fn: Callable[..., Any] | NativeTask, inputs: Mapping[str, Any]
    ) -> wire.Message:
        """Return the inputs of a call of `fn`.

        Raises
        ------
        UnpicklableError, NotPlainError
            If one cannot be sent.
        """
        if isinstance(fn, NativeTask):
            return plain.encode(inputs, self._pin, label="inputs") if inputs else plain.NOTHING
        return self.pickle(inputs, "inputs") if inputs else wire.NOTHING

    def arguments(
        self, fn: Callable[..., Any] | NativeTask, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> wire.Message:
        """Return the arguments of a call of `fn` without a context.

        Raises
        ------
        TypeError
            If a native task is given some by position.
        """
        if not isinstance(fn, NativeTask):
            return self.pickle((args, kwargs), "inputs")
        if args:
            msg = (
                f"the native task {fn.name} takes its inputs by name alone: submit(task, x=...). "
                "engine.map(task, items) passes each as the input `item`"
            )
            raise TypeError(msg)
        return self.inputs(fn, kwargs)

    def task(
        self,
        fn: Callable[..., Any] | NativeTask,
        message: wire.Message,
        outcome: Outcome,
        *,
        call: int = CALL_CONTEXT,
        timeout: float | None = None,
    ) -> Task:
        """Return a task of the current state; `call` is how a Python function is called.

        Raises
        ------
        TypeError
            If it is called with a context, and takes none.
        UnpicklableError
            If `fn` cannot be sent.
        """
        state, on_progress = self._store.current, None
        if isinstance(fn, NativeTask):
            call, on_progress = CALL_NATIVE, fn.on_progress
            state.make_plain()
        elif call == CALL_CONTEXT:
            require_context(fn)
        return Task(
            self._references.of(fn),
            state,
            call=call,
            inputs=message,
            outcome=outcome,
            timeout=timeout,
            on_progress=on_progress,
        )

    def stream(self, fn: Callable[..., Any] | NativeTask, *, takes_items: bool) -> Stream:
        """Return what makes tasks of `fn` with an item each, or several if its workers take them.

        Raises
        ------
        TypeError
            If `fn` takes no context.
        """
        state = self._store.current
        if isinstance(fn, NativeTask):
            state.make_plain()

            def pack(item: object) -> wire.Message:
                return plain.encode({"item": item}, self._pin, label="inputs")

            return Stream(
                self._references.of(fn),
                state,
                pack,
                join=native_items.join if takes_items else None,
                calls=(CALL_NATIVE, CALL_NATIVE_ITEMS),
                on_progress=fn.on_progress,
            )
        require_context(fn, for_items=True)

        def pickle(item: object) -> wire.Message:
            return self.pickle(item, "item")

        return Stream(
            self._references.of(fn), state, pickle, join=chunks.join, calls=(CALL_ITEM, CALL_ITEMS)
        )


class Stream:
    """Calls of one function with an item each, all of them in the same state.

    Attributes
    ----------
    reference : Reference
        The function.
    pack : callable
        Makes a message of an item.
    """

    def __init__(
        self,
        reference: Reference,
        state: State,
        pack: Callable[[object], wire.Message],
        *,
        join: Callable[[Sequence[wire.Message]], wire.Message] | None,
        calls: tuple[int, int],
        on_progress: Callable[[Progress], object] | None = None,
    ) -> None:
        self.reference = reference
        self.pack = pack
        self._state = state
        self._join = join
        self._calls = calls
        self._on_progress = on_progress

    def size_for(self, estimate_s: float) -> int:
        """Return how many items should go together that take so many seconds each."""
        return 1 if self._join is None else chunks.size_for(estimate_s)

    def task(self, items: Sequence[wire.Message], outcome: Outcome) -> Task:
        """Return the task of one item, or of a chunk."""
        alone = len(items) == 1 or self._join is None
        return Task(
            self.reference,
            self._state,
            call=self._calls[not alone],
            inputs=items[0] if self._join is None or alone else self._join(items),
            outcome=outcome,
            weight=len(items),
            on_progress=self._on_progress,
        )
