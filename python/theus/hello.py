"""What a worker says of itself when it has started; ``schemas/worker.json`` has the format."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any, cast

from theus.errors import ProtocolError

__all__ = ["ITEMS", "PICKLE", "PLAIN", "Hello"]

PICKLE, PLAIN, ITEMS = "pickle", "plain", "items"
"""The capabilities: pickled functions and values; functions by name, plain values; several calls
of one in a task."""


@dataclass(frozen=True, slots=True)
class Hello:
    """A worker's HELLO.

    Attributes
    ----------
    language, library : str
        What it is written in, and what speaks the protocol for it, for people.
    capabilities : frozenset of str
        What it takes.
    tasks : tuple of str
        The functions that it has by name.
    """

    language: str
    library: str
    capabilities: frozenset[str]
    tasks: tuple[str, ...]

    @classmethod
    def parse(cls, data: bytes) -> Hello:
        """Return what the attachment of a HELLO frame says.

        Raises
        ------
        ProtocolError
            If it is not what the schema says.
        """
        try:
            said: Any = json.loads(data)
        except ValueError as error:
            msg = f"a worker's HELLO carries no JSON: {error}"
            raise ProtocolError(msg) from None
        if not isinstance(said, dict):
            msg = f"a worker's HELLO carries an object, not {said!r}"
            raise ProtocolError(msg)
        said = cast("dict[str, Any]", said)
        language, library = (_text(said, key) for key in ("language", "library"))
        capabilities, tasks = (_texts(said, key) for key in ("capabilities", "tasks"))
        if len(set(tasks)) < len(tasks) or "" in tasks:
            msg = f"a worker's HELLO has a task twice, or one without a name: {tasks!r}"
            raise ProtocolError(msg)
        return cls(language, library, frozenset(capabilities), tasks)


def _text(said: dict[str, Any], key: str) -> str:
    value = said.get(key)
    if not isinstance(value, str):
        msg = f"a worker's HELLO has {key!r}, a str, not {value!r}"
        raise ProtocolError(msg)
    return value


def _texts(said: dict[str, Any], key: str) -> tuple[str, ...]:
    values = said.get(key)
    if not isinstance(values, list):
        msg = f"a worker's HELLO has {key!r}, a list of str, not {values!r}"
        raise ProtocolError(msg)
    items = cast("list[Any]", values)
    if not all(isinstance(item, str) for item in items):
        msg = f"a worker's HELLO has {key!r}, a list of str, not {items!r}"
        raise ProtocolError(msg)
    return tuple(items)
