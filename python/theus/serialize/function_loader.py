"""Functions as a worker gets them: imported, or loaded if they came by value."""

from __future__ import annotations

import hashlib
import importlib
import json
import marshal
import pickle
import sys
import time
from collections.abc import Callable
from pathlib import Path
from types import CodeType
from typing import TYPE_CHECKING, Any

from theus.protocol import BY_NAME, BY_REFERENCE
from theus.serialize.message import Message
from theus.serialize.unpickler import loads

if TYPE_CHECKING:
    from theus._theus import Transient

__all__ = ["StaleReferenceError", "Stamp", "code_digest", "resolve", "stamp_of"]

Stamp = tuple[int, int]
"""Modification time in nanoseconds and size in bytes of a module's source file."""

_MARSHAL_VERSION = 2  # without back references, whose layout depends on reference counts


def code_digest(function: Callable[..., Any]) -> str:
    """Return a digest of the code `function` runs, and of what it wraps, equal in every process."""
    digest = hashlib.blake2b(digest_size=16)
    while True:
        code = getattr(function, "__code__", None)
        if isinstance(code, CodeType):
            digest.update(marshal.dumps(code, _MARSHAL_VERSION))
        wrapped = getattr(function, "__wrapped__", None)
        if wrapped is None:
            return digest.hexdigest()
        function = wrapped


def stamp_of(origin: str) -> Stamp | None:
    """Return the stamp of a source file; None if it cannot be looked at."""
    try:
        status = Path(origin).stat()
    except OSError:
        return None
    return status.st_mtime_ns, status.st_size


class StaleReferenceError(Exception):
    """What the worker can import is not the caller's function: it has to come by value."""


_loaded: dict[str, Stamp | None] = {}
_STARTED_NS = time.time_ns()


def resolve(form: int, definition: bytes, parts: Transient | None) -> Callable[..., Any]:
    """Return the function of a FUNCTION frame, and of the PARTS before it.

    Raises
    ------
    StaleReferenceError
        If it came by reference and this process cannot import the very same code.
    """
    if form == BY_NAME:
        return _by_name(json.loads(definition)["name"])
    if form != BY_REFERENCE:
        stamps, payload = pickle.loads(definition)
        for name, stamp in stamps.items():
            _refresh(name, stamp)
        return loads(Message(payload, parts))
    reference = json.loads(definition)
    try:
        for name, stamp in reference["modules"].items():
            _refresh(name, stamp and tuple(stamp))
        found: Any = importlib.import_module(reference["module"])
        for part in reference["qualname"].split("."):
            found = getattr(found, part)
    except Exception as error:
        msg = f"{reference['module']}.{reference['qualname']} cannot be imported in the worker"
        raise StaleReferenceError(msg) from error
    if code_digest(found) != reference["code"]:
        msg = f"{reference['module']}.{reference['qualname']} is other code in the worker"
        raise StaleReferenceError(msg)
    return found


def _by_name(name: str) -> Callable[..., Any]:
    """Return the function of a name such as ``package.module:function``."""
    module, _, qualname = name.partition(":")
    try:
        found: Any = importlib.import_module(module)
        for part in qualname.split("."):
            found = getattr(found, part)
    except (ImportError, AttributeError, ValueError) as error:
        msg = f"{name!r} is no function that can be imported here, as module:function: {error}"
        raise StaleReferenceError(msg) from error
    return found


def _refresh(name: str, stamp: Stamp | None) -> None:
    """Import module `name` again if the caller's was loaded from another state of its source."""
    fresh = name not in sys.modules
    module = importlib.import_module(name)
    now = stamp_of(module.__spec__.origin) if module.__spec__ and module.__spec__.origin else None
    if fresh or name not in _loaded:
        # What another module imported was read from this state of the file only if the file is
        # older than this process.
        _loaded[name] = now if fresh or (now is not None and now[0] < _STARTED_NS) else None
    if stamp is None or now is None or stamp == _loaded[name] or now == _loaded[name]:
        return
    # From the source itself: bytecode caches compare whole seconds and would serve old code.
    spec: Any = module.__spec__
    code = spec.loader.source_to_code(spec.loader.get_data(spec.origin), spec.origin)
    exec(code, module.__dict__)  # noqa: S102 - that is what importing does
    _loaded[name] = now
