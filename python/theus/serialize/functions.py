"""How a function travels: by reference if the worker can import the same code, else by value.

A function never runs stale. One that is importable is sent as module and qualname, with a digest of
its code and a stamp for every source module it leans on; the worker imports a module again when its
stamp moved, and asks for the function by value when what it imported is still not the caller's. The
caller watches the globals that the function reads: once one of them is rebound here, the function
goes by value too. Functions of ``__main__``, notebooks and lambdas always do: they are pickled at
each call, and the worker keeps what it unpickled as long as the pickle stays the same. What a large
one refers to (a closure over an array, say) moves as the large parts of a message do, and is the
worker's for as long as a call or a ``map`` goes on.
"""

from __future__ import annotations

import json
import os
import pickle
import sys
import sysconfig
import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from types import CodeType, FunctionType, ModuleType
from typing import TYPE_CHECKING, Any
from weakref import WeakKeyDictionary

import cloudpickle

from theus._theus import Function
from theus.errors import UnpicklableError
from theus.protocol import BY_NAME, BY_PARTS, BY_REFERENCE, BY_VALUE
from theus.serialize.function_loader import code_digest, stamp_of
from theus.serialize.message import PROTOCOL
from theus.serialize.pickler import dumps

if TYPE_CHECKING:
    from theus._theus import Transient
    from theus.serialize.function_loader import Stamp

__all__ = [
    "Reference",
    "References",
    "by_name",
]

_LIBRARIES = tuple(
    {
        os.path.realpath(path) + os.sep
        for name in ("stdlib", "platstdlib", "purelib", "platlib")
        if (path := sysconfig.get_paths().get(name))
    }
)
_by_value_lock = threading.Lock()


def _renew_lock() -> None:
    global _by_value_lock  # noqa: PLW0603 - a thread that the child lacks may hold the old one
    _by_value_lock = threading.Lock()


os.register_at_fork(after_in_child=_renew_lock)


@dataclass(slots=True)
class Reference:
    """A function ready to be sent.

    Attributes
    ----------
    name : str
        For messages.
    form : int
        ``BY_REFERENCE``, ``BY_VALUE``, or ``BY_PARTS``: by value, the pickle in `parts`. Or
        ``BY_NAME``, for a native task.
    definition : bytes
        The attachment of the FUNCTION frame.
    function : callable or None
        The function, so that a worker that cannot import it gets it by value; none by name.
    pins : sequence
        Entries that the definition refers to.
    parts : Transient, optional
        The pickle and its large buffers.
    retries : int
        How often a task of it is sent again after its worker died.
    core : Function
        The core's.
    bare_call : object
        The call without inputs, for whoever makes one again.
    """

    name: str
    form: int
    definition: bytes
    function: Any
    pins: Sequence[object] = ()
    parts: Transient | None = None
    retries: int = 0
    core: Function = field(init=False)
    bare_call: Any = field(init=False, default=None)

    def __post_init__(self) -> None:
        """Make the core's function, which workers know for as long as they may use it."""
        # A function by value may refer to the engine, which would never be collected.
        kept = self.function if self.form == BY_REFERENCE else tuple(self.pins)
        self.core = Function(
            self.name,
            self.form,
            self.definition,
            parts=self.parts,
            retries=self.retries,
            keepalive=kept,
        )


@dataclass(slots=True)
class _Importable:
    """An importable function as it was first sent, and what must not change for that to hold."""

    reference: Reference
    code: CodeType
    bindings: list[tuple[dict[str, Any], str, object]]
    specs: list[tuple[str, object]]
    by_value: bool = False

    # Loops, as generators would cost each call twice as much.
    def unchanged(self) -> bool:
        if self.reference.function.__code__ is not self.code:
            return False
        for space, name, value in self.bindings:  # noqa: SIM110
            if space.get(name, _MISSING) is not value:
                return False
        return True

    def reloaded(self) -> bool:
        for name, spec in self.specs:  # noqa: SIM110
            if _spec_of(name) is not spec:
                return True
        return False


_MISSING = object()


class References:
    """The caller's side: makes the reference of a function for each call."""

    def __init__(
        self,
        pin: Callable[[str], object | None],
        spill_dir: Path | None,
        retries_of: Callable[[Any], int],
    ) -> None:
        self._retries_of = retries_of
        self._pin = pin
        self._spill_dir = spill_dir
        self._importable: WeakKeyDictionary[Callable[..., Any], _Importable] = WeakKeyDictionary()
        self._stamps: dict[str, tuple[object, Stamp | None]] = {}

    def of(self, function: Callable[..., Any]) -> Reference:
        """Return `function` ready to be sent, as it is at this moment.

        Raises
        ------
        UnpicklableError
            If it has to go by value and refers to something that cannot be pickled.
        """
        if not isinstance(function, FunctionType):
            return self.by_value(function)
        known = self._importable.get(function)
        if known is None or known.reloaded():
            if not _is_importable(function):
                return self.by_value(function)
            known = self._importable[function] = self._watch(function)
        if known.by_value:
            return self.by_value(function)
        if known.unchanged():
            return known.reference
        try:
            return self.by_value(function)
        except UnpicklableError:
            # A module that rebinds a global to a connection or a lock keeps it to itself.
            return known.reference

    def send_by_value(self, function: Callable[..., Any]) -> Reference:
        """Return `function` by value, now and at every later call: a worker could not import it."""
        known = self._importable.get(function) if isinstance(function, FunctionType) else None
        if known is not None:
            known.by_value = True
        return self.by_value(function)

    def by_value(self, function: Callable[..., Any]) -> Reference:
        """Return `function` pickled with the globals it reads."""
        name = name_of(function)
        modules: set[str | None] = set()
        home = sys.modules.get(getattr(function, "__module__", None) or "")
        with _by_value_lock:
            force = (
                isinstance(function, FunctionType)
                and home is not None
                and home.__name__ != "__main__"
                and home.__name__ not in cloudpickle.list_registry_pickle_by_value()
            )
            if force and home is not None:
                cloudpickle.register_pickle_by_value(home)
            try:
                message = dumps(
                    function,
                    self._pin,
                    label=f"function {name}",
                    modules=modules,
                    spill_dir=self._spill_dir,
                )
            finally:
                if force and home is not None:
                    cloudpickle.unregister_pickle_by_value(home)
        modules.update(_modules_read_by(function))
        if home is not None and force:
            modules.discard(home.__name__)
        definition = pickle.dumps((self._stamps_of(modules), message.data), PROTOCOL)
        form = BY_VALUE if message.parts is None else BY_PARTS
        retries = self._retries_of(function)
        return Reference(name, form, definition, function, message.pins, message.parts, retries)

    def _watch(self, function: FunctionType) -> _Importable:
        bindings: list[tuple[dict[str, Any], str, object]] = []
        for reader in _same_module(function):
            bindings += [
                (reader.__globals__, name, reader.__globals__.get(name, _MISSING))
                for name in _names(reader.__code__)
                if name in reader.__globals__
            ]
        modules: set[str | None] = {function.__module__, *_modules_read_by(function)}
        stamps = self._stamps_of(modules)
        definition = json.dumps(
            {
                "module": function.__module__,
                "qualname": function.__qualname__,
                "code": code_digest(function),
                "modules": stamps,
            },
            separators=(",", ":"),
        )
        specs = [(name, _spec_of(name)) for name in stamps]
        name, retries = name_of(function), self._retries_of(function)
        reference = Reference(name, BY_REFERENCE, definition.encode(), function, retries=retries)
        return _Importable(reference, function.__code__, bindings, specs)

    def _stamps_of(self, modules: set[str | None]) -> dict[str, Stamp | None]:
        """Return the stamp of each of `modules` that is the user's source, as loaded here.

        The stamp belongs to the module's spec, which importing or reloading it makes anew: a file
        that was edited but not reloaded keeps the stamp of the code that runs here.
        """
        stamps: dict[str, Stamp | None] = {}
        for name in sorted(filter(None, modules)):
            spec = _spec_of(name)
            if spec is None or not _is_user_source(spec):
                continue
            known = self._stamps.get(name)
            if known is None or known[0] is not spec:
                known = self._stamps[name] = (spec, stamp_of(spec.origin))
            stamps[name] = known[1]
        return stamps


@lru_cache(maxsize=1024)
def by_name(name: str, retries: int) -> Reference:
    """Return the task of this name in a worker's program, ready to be sent."""
    definition = json.dumps({"name": name}, ensure_ascii=False).encode()
    return Reference(name, BY_NAME, definition, None, retries=retries)


def name_of(function: Callable[..., Any]) -> str:
    """Return ``module.qualname`` for messages."""
    qualname = getattr(function, "__qualname__", None) or type(function).__qualname__
    return f"{getattr(function, '__module__', '?')}.{qualname}"


def _is_importable(function: FunctionType) -> bool:
    module = sys.modules.get(function.__module__ or "")
    if module is None or module.__name__ == "__main__" or getattr(module, "__spec__", None) is None:
        return False
    found: Any = module
    for part in function.__qualname__.split("."):
        found = getattr(found, part, None)
    return found is function


def _names(code: CodeType) -> Iterator[str]:
    yield from code.co_names
    for constant in code.co_consts:
        if isinstance(constant, CodeType):
            yield from _names(constant)


def _same_module(function: FunctionType) -> list[FunctionType]:
    """Return `function` and the functions of its module that it may call, through classes too."""
    found: dict[int, FunctionType] = {}
    todo: list[object] = [function, getattr(function, "__wrapped__", None)]
    while todo:
        item = todo.pop()
        if isinstance(item, type):
            if item.__module__ == function.__module__:
                todo += [part for part in vars(item).values() if isinstance(part, FunctionType)]
        elif isinstance(item, FunctionType) and id(item) not in found:
            if item.__globals__ is not function.__globals__:
                continue
            found[id(item)] = item
            todo += [item.__globals__.get(name) for name in _names(item.__code__)]
    return list(found.values())


def _modules_read_by(function: Callable[..., Any]) -> set[str]:
    """Return the loaded modules whose names the code mentions, imports in its body included."""
    if not isinstance(function, FunctionType):
        return set()
    modules: set[str] = set()
    for reader in _same_module(function):
        for name in _names(reader.__code__):
            value = reader.__globals__.get(name)
            if isinstance(value, ModuleType):
                modules.add(value.__name__)
            elif isinstance(value, FunctionType | type):
                modules.add(value.__module__)
            elif name in sys.modules:
                modules.add(name)
    modules.discard("__main__")
    return modules


def _spec_of(module: str) -> Any:
    return getattr(sys.modules.get(module), "__spec__", None)


def _is_user_source(spec: Any) -> bool:
    origin = getattr(spec, "origin", None)
    if not isinstance(origin, str) or not origin.endswith(".py"):
        return False
    return not os.path.realpath(origin).startswith(_LIBRARIES)
