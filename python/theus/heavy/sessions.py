"""Looking at segments and sessions from any process: ``theus.open``, ``sessions``, ``sweep``."""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import Any

from theus import _theus
from theus.errors import SegmentNotFoundError
from theus.heavy.entry import view_entry

__all__ = ["SessionInfo", "find_segment", "open_segment", "sessions", "sweep"]


@dataclass(frozen=True, slots=True)
class SessionInfo:
    """One session on this machine.

    Attributes
    ----------
    id : str
        As in its segments' names, ``theus-<id>-<n>``.
    alive : bool
        Whether its owner lives. What a dead one left is removed by the next sweep. Another user's
        session counts as alive where this user may not ask.
    entries : int
        How many segments have names.
    nbytes : int
        Their bytes together.
    user : int
        The numeric id of the user that it belongs to.
    """

    id: str
    alive: bool
    entries: int
    nbytes: int
    user: int


def open_segment(path_or_name: str | os.PathLike[str], *, trusted: bool = False) -> Any:
    """Open a published entry read-only, from any process.

    Parameters
    ----------
    path_or_name : str or path
        The path of a segment, its name, ``theus-<session>-<n>``, or ``<session>/<entry>``.
    trusted : bool, default False
        Whether whoever wrote it is trusted to have written valid Arrow data. Otherwise all values
        of a table are looked at before it is handed out: offsets, dictionary keys, UTF-8. Its
        structure is checked in any case.

    Returns
    -------
    ShmArray, pyarrow.Table, pyarrow.Array or pyarrow.ChunkedArray
        A read-only view, valid for as long as it is held.

    Raises
    ------
    SegmentNotFoundError
        If there is no such segment or entry.
    CorruptSegmentError
        If the bytes are not what the format promises; it says where.
    """
    segment = find_segment(path_or_name)
    if not trusted:
        segment.validate()
    return view_entry(segment, None, None)


def find_segment(path_or_name: str | os.PathLike[str]) -> _theus.Segment:
    """Map the segment that :func:`open_segment` opens, after checking its structure."""
    name = os.fspath(path_or_name)
    session, slash, key = name.partition("/")
    if session and slash and not name.startswith("."):
        for entry, segment, _, _ in _theus.catalog(session)[1]:
            if entry == key:
                return _theus.open_segment(segment)
        msg = f"session {session} has no published entry {key!r}"
        raise SegmentNotFoundError(msg)
    return _theus.open_segment(name)


def sessions() -> list[SessionInfo]:
    """Return every session that has names on this machine, living or dead."""
    return [SessionInfo(*info) for info in _theus.sessions()]


def sweep(spill_dir: str | os.PathLike[str] | None = None) -> list[str]:
    """Remove what dead sessions of this user left in shared memory, and where they spilled.

    Parameters
    ----------
    spill_dir : path, optional
        A directory that sessions spilled to: what they left there is removed even if they have
        nothing in memory any more, since the machine was restarted, say.

    Returns
    -------
    list of str
        The names that were removed. Sessions that live are never touched.

    Notes
    -----
    Every engine does this when it starts.
    """
    return _theus.sweep(spill_dir)
