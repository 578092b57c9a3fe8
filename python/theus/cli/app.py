"""The command line: ``theus ls``, ``inspect``, ``sweep``, ``doctor`` and ``bench``.

What they print is described in docs/command-line.md.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from theus._theus import __version__
from theus.cli.bench import DEFAULT_BYTES, SMALLEST_BYTES, measure, render
from theus.cli.doctor import Finding, examine, format_bytes
from theus.cli.inspection import inspect, list_sessions
from theus.cli.leftovers import SHARED_MEMORY, survey
from theus.errors import TheusError
from theus.heavy.sessions import sessions, sweep

__all__ = ["main"]


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line.

    Returns
    -------
    int
        The exit status: 0, or 1 after an error and if the doctor found one. Wrong usage exits
        with 2.
    """
    chosen = _parser().parse_args(arguments)
    try:
        answer, text, status = chosen.run(chosen)
        _show(json.dumps(answer) if chosen.json else text)
    except (TheusError, OSError, ValueError) as error:  # the last of what is no name
        print(f"theus: {error}", file=sys.stderr)  # noqa: T201 - a command line
        return 1
    except KeyboardInterrupt:
        return 130
    return int(status)


def _show(text: str) -> None:
    """Print; whoever stops reading, as ``| head`` does, has seen enough."""
    try:
        print(text.encode("utf-8", "backslashreplace").decode(), flush=True)  # noqa: T201 - the same
    except UnicodeEncodeError:
        print(text.encode("ascii", "backslashreplace").decode(), flush=True)  # noqa: T201 - the same
    except OSError as error:
        # The interpreter flushes once more when it ends.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        if not isinstance(error, BrokenPipeError):
            raise


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="theus", description="Looks at shared memory of theus, and measures it."
    )
    commands = parser.add_subparsers(dest="command", required=True)
    command = commands.add_parser("ls", help="list sessions and their entries")
    command.set_defaults(run=_ls)
    command = commands.add_parser("inspect", help="say what lies in a segment, and check all of it")
    command.add_argument("segment", help="a path, theus-<session>-<n>, or <session>/<entry>")
    command.set_defaults(run=_inspect)
    command = commands.add_parser("sweep", help="remove what dead sessions of this user left")
    _take_spill_dirs(command, "remove what was left in DIR, too")
    command.set_defaults(run=_sweep)
    command = commands.add_parser("doctor", help="say what on this machine is in the way")
    _take_spill_dirs(command, "try DIR, too")
    command.set_defaults(run=_doctor)
    command = commands.add_parser("bench", help="measure what theus does on this machine")
    command.add_argument(
        "--size",
        type=_size,
        default=DEFAULT_BYTES,
        metavar="BYTES",
        help="of the arrays: 268435456, 256M, 1G (default: 256M)",
    )
    command.set_defaults(run=_bench)
    for command in commands.choices.values():
        command.add_argument("--json", action="store_true", help="as JSON")
    return parser


def _take_spill_dirs(command: argparse.ArgumentParser, text: str) -> None:
    command.add_argument(
        "--spill-dir", type=Path, action="append", default=[], metavar="DIR", help=text
    )


def _size(text: str) -> int:
    units = {"K": 10, "M": 20, "G": 30}
    digits, power = (text[:-1], units[text[-1]]) if text[-1:] in units else (text, 0)
    try:
        size = int(digits) << power
    except ValueError:
        msg = f"{text!r} is no size: bytes, or with K, M or G"
        raise argparse.ArgumentTypeError(msg) from None
    if size < SMALLEST_BYTES:
        msg = f"{text} is too small to measure: give 1M or more"
        raise argparse.ArgumentTypeError(msg)
    return size


_Answer = tuple[Any, str, int]


def _ls(_: argparse.Namespace) -> _Answer:
    found = list_sessions()
    width = shutil.get_terminal_size().columns
    lines: list[str] = []
    for session in found["sessions"]:
        state = {True: "alive", False: "dead", None: "not known whether alive"}[session["alive"]]
        facts = [
            state,
            f"process {session['owner']}" if session["owner"] else "",
            f"user {session['user']}" if session["user"] != os.geteuid() else "",
            f"{session['segments']} segments",
            format_bytes(session["nbytes"]),
        ]
        lines.append(f"{session['id']}  {', '.join(filter(None, facts))}")
        if session["problem"]:
            lines.append(f"  {session['problem']}")
        lines += [f"  {line}" for line in _table(session["entries"] or [], width - 2)]
    if not found["sessions"]:
        lines.append("no sessions")
    elif not found["all_processes_seen"]:
        lines.append("not every process could be asked: there may be more readers")
    return found, "\n".join(lines), 0


def _table(entries: list[dict[str, Any]], width: int) -> list[str]:
    """Return lines with the columns beside each other, what is in the entries last."""
    if not entries:
        return []
    rows = [("ENTRY", "KIND", "BYTES", "READERS", "WHAT")]
    for entry in entries:
        key = entry["entry"]
        size, readers = format_bytes(entry["nbytes"]), str(entry["readers"])
        shown = key if key.isprintable() else repr(key)
        rows.append((shown, entry.get("kind", "?"), size, readers, _what(entry)))
    wide = [max(len(row[column]) for row in rows) for column in range(4)]
    lines: list[str] = []
    for name, kind, size, readers, what in rows:
        line = (
            f"{name:{wide[0]}}  {kind:{wide[1]}}  {size:>{wide[2]}}  {readers:>{wide[3]}}  {what}"
        )
        lines.append(line if len(line) <= width else f"{line[: max(width, 40) - 1]}…")
    return lines


def _what(entry: dict[str, Any]) -> str:
    if "problem" in entry:
        return f"unreadable: {entry['problem']}"
    if "shape" in entry:
        return f"{tuple(entry['shape'])} {entry['dtype']}"
    names = [name if name.isprintable() else repr(name) for name in entry["columns"]]
    columns = zip(names, entry["columns"].values(), strict=True)
    return f"{entry['rows']} rows: " + ", ".join(f"{name} {kind}" for name, kind in columns)


def _inspect(chosen: argparse.Namespace) -> _Answer:
    found = inspect(chosen.segment)
    shown = {**found}
    columns = shown.pop("columns", {})
    lines = [f"{key:8} {value}" for key, value in shown.items()]
    lines += [f"  {name}: {kind}" for name, kind in columns.items()]
    return found, "\n".join(lines), 0


def _sweep(chosen: argparse.Namespace) -> _Answer:
    removed = [name for place in (None, *chosen.spill_dir) for name in sweep(place)]
    alive = {info.id: info.alive for info in sessions() if info.user == os.geteuid()}
    kept: list[dict[str, str]] = [
        {"what": session, "why": "alive", "message": "a session that lives"}
        for session, lives in alive.items()
        if lives
    ]
    for item in survey([SHARED_MEMORY, Path(tempfile.gettempdir()), *chosen.spill_dir]):
        if item.why is not None:
            kept.append({"what": str(item.path), "why": item.why, "message": item.message})
        elif not alive.get(item.session or "", False):
            message = "the kernel gives no proof that nobody uses it"
            kept.append({"what": str(item.path), "why": "in-use", "message": message})
    lines = [f"removed  {name}" for name in removed]
    lines += [f"kept     {item['what']}: {item['message']}" for item in kept]
    return {"removed": removed, "kept": kept}, "\n".join(lines) or "nothing to sweep", 0


def _doctor(chosen: argparse.Namespace) -> _Answer:
    findings = list(examine(chosen.spill_dir))
    failed = any(finding.level == "error" for finding in findings)
    answer = {"findings": [asdict(finding) for finding in findings], "healthy": not failed}
    return answer, "\n".join(map(_finding, findings)), int(failed)


def _finding(finding: Finding) -> str:
    line = f"{finding.level:8} {finding.message}"
    return f"{line}\n{'':8} -> {finding.advice}" if finding.advice else line


def _bench(chosen: argparse.Namespace) -> _Answer:
    figures = list(measure(chosen.size))
    cores = len(os.sched_getaffinity(0))
    answer = {
        "version": __version__,
        "cores": cores,
        "size_bytes": chosen.size,
        "figures": [asdict(figure) for figure in figures],
    }
    title = f"theus {__version__}, {cores} cores, arrays of {format_bytes(chosen.size)}"
    return answer, f"{title}\n\n{render(figures)}", 0
