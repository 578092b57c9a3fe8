"""Calls on their way to workers: a codec makes messages of inputs, and values of messages.

Workers in Python take pickles, native programs plain values. A program has one codec; everything
that differs between the two stands here.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

from theus.protocol import (
    CALL_CONTEXT,
    CALL_ITEM,
    CALL_ITEMS,
    CALL_NATIVE,
    CALL_NATIVE_ITEMS,
    CALL_PLAIN,
)
from theus.serialize import batches, plain, plain_batches
from theus.serialize.functions import by_name
from theus.serialize.message import NOTHING, Message
from theus.serialize.native_errors import make_native_error
from theus.serialize.pickler import dumps
from theus.serialize.unpickler import load_error, loads
from theus.tasks.contract import require_context

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from pathlib import Path

    from theus._theus import Function, Segment, Transient
    from theus.serialize.functions import References
    from theus.state.snapshot import State
    from theus.tasks.native import NativeTask, Progress

    Pin = Callable[[str], Segment | None]

__all__ = ["Call", "Codec", "PickleCodec", "PlainCodec"]


class Call(NamedTuple):
    """A call as it travels.

    Attributes
    ----------
    function : Function
        The function.
    number : int
        How it is called, as in TASK frames.
    message : Message
        The inputs.
    codec : Codec
        Loads the result.
    weight : int
        How many calls of the function it stands for.
    on_progress : callable or None
        Called with each `Progress` that the task reports.
    """

    function: Function
    number: int
    message: Message
    codec: Codec
    weight: int = 1
    on_progress: Callable[[Progress], object] | None = None


class Codec(Protocol):
    """How the workers of a program encode values."""

    is_plain: bool

    def prepare(self, state: State) -> None:
        """Make `state` ready to be told to the workers."""
        ...

    def call(self, fn: Any, inputs: Mapping[str, Any]) -> Call:
        """Return a call with inputs by name, and a context."""
        ...

    def call_plain(self, fn: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Call:
        """Return a call without a context, as ``fn(*args, **kwargs)``."""
        ...

    def items(self, fn: Any, *, together: bool) -> Items:
        """Return what makes calls of `fn` with an item each, or with several `together`."""
        ...

    def load(
        self, name: str, data: bytes, parts: Transient | None, outputs: Sequence[Segment]
    ) -> Any:
        """Return the result of the task of this name."""
        ...

    def load_error(
        self, name: str, cause: int, message: Message, traceback: bytes
    ) -> BaseException:
        """Return the exception of the task of this name."""
        ...


class Items:
    """Calls of one function with an item each.

    Attributes
    ----------
    function : Function
        The function.
    pack : callable
        Makes a message of an item.
    """

    def __init__(
        self,
        function: Function,
        pack: Callable[[object], Message],
        *,
        join: Callable[[Sequence[Message]], Message] | None,
        numbers: tuple[int, int],
        codecs: tuple[Codec, Codec],
        on_progress: Callable[[Progress], object] | None = None,
    ) -> None:
        self.function = function
        self.pack = pack
        self._join = join
        self._numbers = numbers
        self._codecs = codecs
        self._on_progress = on_progress

    def size_for(self, estimate_s: float) -> int:
        """Return how many items should go together that take so many seconds each."""
        return 1 if self._join is None else batches.size_for(estimate_s)

    def call(self, items: Sequence[Message]) -> Call:
        """Return the call of one item, or of several."""
        alone = len(items) == 1 or self._join is None
        message = items[0] if self._join is None or alone else self._join(items)
        number, codec = self._numbers[not alone], self._codecs[not alone]
        return Call(self.function, number, message, codec, len(items), self._on_progress)


class PickleCodec:
    """Pickles, for workers that are Pythons of this kind.

    Parameters
    ----------
    references : References
        Makes functions ready.
    pin : callable
        Given a segment's name, returns what keeps that name, or None if it cannot be promised.
    watch : callable
        Takes care of a segment that a worker has made.
    spill_dir : pathlib.Path or None
        Where large parts go that do not fit in memory.
    """

    is_plain = False

    def __init__(
        self,
        references: References,
        pin: Pin,
        watch: Callable[[Segment], None],
        spill_dir: Path | None,
    ) -> None:
        self._references = references
        self._pin = pin
        self._watch = watch
        self._spill_dir = spill_dir

    def pickle(self, value: object, label: str) -> Message:
        """Return a value pickled; `label` is what errors call it.

        Raises
        ------
        UnpicklableError
            If it cannot be; the message names the path to the part.
        """
        return dumps(value, self._pin, label=label, spill_dir=self._spill_dir)

    def prepare(self, state: State) -> None:
        """See :class:`Codec`: states are pickled when they are made."""

    def call(self, fn: Callable[..., Any], inputs: Mapping[str, Any]) -> Call:
        """See :class:`Codec`.

        Raises
        ------
        UnpicklableError
            If `fn` or an input cannot be sent.
        TypeError
            If `fn` takes no context.
        """
        reference = self._references.of(fn)
        if not inputs and reference.bare_call is not None:
            return reference.bare_call
        require_context(fn)
        message = self.pickle(inputs, "inputs") if inputs else NOTHING
        call = Call(reference.core, CALL_CONTEXT, message, self)
        if not inputs:
            reference.bare_call = call
        return call

    def call_plain(
        self, fn: Callable[..., Any], args: tuple[Any, ...], kwargs: Mapping[str, Any]
    ) -> Call:
        """See :class:`Codec`."""
        message = self.pickle((args, kwargs), "inputs")
        return Call(self._references.of(fn).core, CALL_PLAIN, message, self)

    def items(self, fn: Callable[..., Any], *, together: bool) -> Items:
        """See :class:`Codec`: workers of this kind always take several.

        Raises
        ------
        TypeError
            If `fn` takes no context.
        """
        del together
        require_context(fn, for_items=True)

        def pack(item: object) -> Message:
            return self.pickle(item, "item")

        function = self._references.of(fn).core
        return Items(
            function,
            pack,
            join=batches.join,
            numbers=(CALL_ITEM, CALL_ITEMS),
            codecs=(self, self),
        )

    def load(
        self, name: str, data: bytes, parts: Transient | None, outputs: Sequence[Segment]
    ) -> Any:
        """See :class:`Codec`."""
        del name
        if parts is None and not outputs:
            return loads(data)
        for segment in outputs:
            self._watch(segment)
        return loads(Message(data, parts, outputs=outputs))

    def load_error(
        self, name: str, cause: int, message: Message, traceback: bytes
    ) -> BaseException:
        """See :class:`Codec`."""
        del name, cause
        for segment in message.outputs:
            self._watch(segment)
        return load_error(message, traceback)


class PlainCodec:
    """Plain values, for programs in any language.

    Parameters
    ----------
    pin, watch
        As for :class:`PickleCodec`.
    """

    is_plain = True

    def __init__(self, pin: Pin, watch: Callable[[Segment], None]) -> None:
        self._pin = pin
        self._watch = watch

    def prepare(self, state: State) -> None:
        """See :class:`Codec`."""
        state.make_plain()

    def call(self, fn: NativeTask, inputs: Mapping[str, Any]) -> Call:
        """See :class:`Codec`.

        Raises
        ------
        NotPlainError
            If an input is no plain value.
        """
        message = plain.encode(inputs, self._pin, label="inputs") if inputs else plain.NOTHING
        function = by_name(fn.name, fn.retries).core
        return Call(function, CALL_NATIVE, message, self, 1, fn.on_progress)

    def call_plain(self, fn: NativeTask, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Call:
        """See :class:`Codec`.

        Raises
        ------
        TypeError
            If inputs are given by position.
        """
        if args:
            msg = (
                f"the native task {fn.name} takes its inputs by name alone: submit(task, x=...). "
                "engine.map(task, items) passes each as the input `item`"
            )
            raise TypeError(msg)
        return self.call(fn, kwargs)

    def items(self, fn: NativeTask, *, together: bool) -> Items:
        """See :class:`Codec`."""

        def pack(item: object) -> Message:
            return plain.encode({"item": item}, self._pin, label="inputs")

        return Items(
            by_name(fn.name, fn.retries).core,
            pack,
            join=plain_batches.join if together else None,
            numbers=(CALL_NATIVE, CALL_NATIVE_ITEMS),
            codecs=(self, _PlainItemsCodec(self._pin, self._watch)),
            on_progress=fn.on_progress,
        )

    def load(
        self, name: str, data: bytes, parts: Transient | None, outputs: Sequence[Segment]
    ) -> Any:
        """See :class:`Codec`."""
        del name, parts
        for segment in outputs:
            self._watch(segment)
        return plain.decode(data, outputs)

    def load_error(
        self, name: str, cause: int, message: Message, traceback: bytes
    ) -> BaseException:
        """See :class:`Codec`."""
        said = plain.decode(message.data) if message.data else None
        return make_native_error(name, cause, said, traceback)


class _PlainItemsCodec(PlainCodec):
    """The results of several calls in one task."""

    def load(
        self, name: str, data: bytes, parts: Transient | None, outputs: Sequence[Segment]
    ) -> Any:
        """See :class:`Codec`."""
        del parts
        for segment in outputs:
            self._watch(segment)
        return plain_batches.load(name, data, outputs)
