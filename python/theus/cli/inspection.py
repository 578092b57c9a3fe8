"""What lies in a segment, and in all sessions: ``theus inspect`` and ``theus ls``."""

from __future__ import annotations

import contextlib
import os
from collections import defaultdict
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from theus import _theus
from theus.cli.leftovers import SHARED_MEMORY
from theus.errors import SegmentNotFoundError, TheusError
from theus.heavy.entry import view_entry
from theus.heavy.sessions import SessionInfo, find_segment, sessions

__all__ = ["inspect", "list_sessions"]

_Inode = tuple[int, int]


def inspect(path_or_name: str) -> dict[str, Any]:
    """Describe a published segment, after looking at all that is in it.

    Parameters
    ----------
    path_or_name : str
        As for :func:`theus.open`.

    Returns
    -------
    dict
        Its ``kind``, ``name`` and ``nbytes``; ``shape`` and ``dtype`` of a tensor; ``rows``,
        ``batches`` and ``columns`` (name to type) of a table or array.

    Raises
    ------
    SegmentNotFoundError
        If there is no such segment or entry.
    CorruptSegmentError
        If the bytes are not what the format promises; it says where.
    """
    segment: _theus.Segment = find_segment(path_or_name)
    segment.validate()
    return _describe(segment)


def _describe(segment: _theus.Segment) -> dict[str, Any]:
    view = view_entry(segment, None, None)
    found: dict[str, Any] = {
        "segment": segment.name,
        "name": segment.key,
        "kind": segment.kind,
        "nbytes": segment.length_bytes,
    }
    if segment.kind == "tensor":
        return {**found, "shape": list(view.shape), "dtype": str(view.dtype)}
    if segment.kind == "table":
        chunks = view.columns[0].num_chunks if view.columns else 0
        columns = {field.name: str(field.type) for field in view.schema}
        return {**found, "rows": view.num_rows, "batches": chunks, "columns": columns}
    return {**found, "rows": len(view), "columns": {segment.key: str(view.type)}}


def list_sessions(processes: Path = Path("/proc")) -> dict[str, Any]:
    """Describe every session that has names on this machine, and its entries.

    Returns
    -------
    dict
        ``sessions``, and ``all_processes_seen``: whether every process could be asked what it has
        mapped, without which ``readers`` may be too few. docs/command-line.md has the keys.

    Notes
    -----
    An entry that is freed meanwhile is left out. Nobody's bytes are looked at, only structure.
    """
    mapped, complete = _mappings(processes)
    listed = [_describe_session(info, mapped) for info in sessions()]
    return {"sessions": listed, "all_processes_seen": complete}


def _describe_session(info: SessionInfo, mapped: Mapping[_Inode, set[int]]) -> dict[str, Any]:
    known = info.user == os.geteuid()
    lock = _inode(SHARED_MEMORY / f"theus-{info.id}.lock")
    # No child inherits the mapping of the lock.
    owner = next(iter(mapped.get(lock, ())), None) if lock else None
    entries: list[dict[str, Any]] | None = None
    problem = None if known else "another user's session: its entries cannot be read"
    if known:
        try:
            entries = list(_describe_entries(info.id, owner, mapped))
        except SegmentNotFoundError:
            problem = "it has no catalog"
        except (TheusError, OSError) as error:
            problem = str(error)
    return {
        "id": info.id,
        "alive": info.alive if known or os.geteuid() == 0 else None,
        "user": info.user,
        "owner": owner,
        "segments": info.entries,
        "nbytes": info.nbytes,
        "entries": entries,
        "problem": problem,
    }


def _describe_entries(session: str, owner: int | None, mapped: Mapping[_Inode, set[int]]) -> Any:
    for key, name, version, nbytes in _theus.catalog(session)[1]:
        entry = {"entry": key, "version": version, "segment": name, "nbytes": nbytes}
        inode = _inode(SHARED_MEMORY / name)
        # This process has it mapped only while it describes it.
        pids = mapped.get(inode, set()) - {owner, os.getpid()} if inode else set[int]()
        with contextlib.suppress(SegmentNotFoundError):
            try:
                entry |= _describe(_theus.open_segment(name))
            except SegmentNotFoundError:
                raise
            except (TheusError, OSError) as error:
                entry["problem"] = str(error)
            yield {**entry, "readers": len(pids)}


def _inode(path: Path) -> _Inode | None:
    try:
        status = path.lstat()
    except OSError:
        return None
    return status.st_dev, status.st_ino


def _mappings(processes: Path) -> tuple[Mapping[_Inode, set[int]], bool]:
    """Return which processes have which files mapped, and whether all could be asked."""
    mapped: defaultdict[_Inode, set[int]] = defaultdict(set)
    complete = True
    for process in processes.iterdir():
        if not process.name.isdecimal():
            continue
        try:
            lines = (process / "maps").read_bytes().splitlines()
        except PermissionError:
            complete = False
            continue
        except OSError:
            continue  # it has ended
        for line in lines:
            # proc(5): an address range, permissions, an offset, the device, the inode, a path.
            _, _, _, device, inode, *_ = line.split(maxsplit=5)
            if inode != b"0":
                major, _, minor = device.partition(b":")
                number = os.makedev(int(major, 16), int(minor, 16))
                mapped[number, int(inode)].add(int(process.name))
    return mapped, complete
