"""Numbers and names of the worker protocol, as ``schemas/`` has them.

The kinds of frames and the version of the protocol are the core's: ``theus._theus.KIND_TASK`` and
the like.
"""

from __future__ import annotations

__all__ = [
    "BY_NAME",
    "BY_PARTS",
    "BY_REFERENCE",
    "BY_VALUE",
    "CALL_CONTEXT",
    "CALL_ITEM",
    "CALL_ITEMS",
    "CALL_NATIVE",
    "CALL_NATIVE_ITEMS",
    "CALL_PLAIN",
    "CAUSE_INPUTS",
    "CAUSE_PANICKED",
    "CAUSE_RAISED",
    "CAUSE_STALE",
    "CAUSE_STOPPED",
    "CAUSE_UNPICKLABLE",
    "IMPORT",
    "ITEMS",
    "LAUNCH",
    "PICKLE",
    "PLAIN",
    "RECALL",
]

LAUNCH = "THEUS_WORKER"
"""The environment variable that a worker finds its descriptors by."""

PICKLE, PLAIN, ITEMS, IMPORT, RECALL = "pickle", "plain", "items", "import", "recall"
"""The capabilities in HELLO frames: pickled functions and values; tasks by name and plain values;
several calls of a function in one task; functions as ``module:function`` and plain values; tasks
that the owner takes back."""

BY_REFERENCE, BY_VALUE, BY_PARTS, BY_NAME = range(4)
"""The forms of definitions in FUNCTION frames."""

CALL_CONTEXT, CALL_ITEM, CALL_PLAIN, CALL_ITEMS, CALL_NATIVE, CALL_NATIVE_ITEMS = range(6)
"""How a function is called, in TASK frames."""

CAUSE_RAISED, CAUSE_UNPICKLABLE, CAUSE_STALE = range(3)
CAUSE_INPUTS, CAUSE_PANICKED, CAUSE_STOPPED = range(3, 6)
"""The causes in ERROR frames."""
