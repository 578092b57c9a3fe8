"""What lies in a segment, for people: ``theus inspect``."""

from __future__ import annotations

import argparse
import json
import sys
from typing import Any

from theus import _theus
from theus.entry import view_entry
from theus.errors import TheusError
from theus.segments import find_segment

__all__ = ["inspect", "main"]


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


def main(arguments: list[str] | None = None) -> int:
    """Run the command line; the exit status."""
    parser = argparse.ArgumentParser(prog="theus", description="Looks at shared memory of theus.")
    commands = parser.add_subparsers(dest="command", required=True)
    command = commands.add_parser("inspect", help="say what lies in a segment, and check all of it")
    command.add_argument("segment", help="a path, theus-<session>-<n>, or <session>/<entry>")
    command.add_argument("--json", action="store_true", help="as JSON")
    chosen = parser.parse_args(arguments)
    try:
        found = inspect(chosen.segment)
    except TheusError as error:
        print(f"theus: {error}", file=sys.stderr)  # noqa: T201 - a command line
        return 1
    if chosen.json:
        print(json.dumps(found))  # noqa: T201 - a command line
        return 0
    columns = found.pop("columns", {})
    lines = [f"{key:8} {value}" for key, value in found.items()]
    lines += [f"  {name}: {kind}" for name, kind in columns.items()]
    print("\n".join(lines))  # noqa: T201 - a command line
    return 0


if __name__ == "__main__":
    sys.exit(main())
