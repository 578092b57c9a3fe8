"""Theus beside its peers, and beside what nobody can beat, in one run.

``--smoke`` runs everything next to never on next to nothing: its figures mean nothing, and it fails
if anything raises. Peers that are not installed are said not to have run.
"""

import argparse
import os
import sys
from importlib import import_module
from pathlib import Path

# Workers of all kinds find the modules of the benches; Theus's inherit the path anyway.
sys.path.insert(0, str(Path(__file__).parent))
os.environ["PYTHONPATH"] = str(Path(__file__).parent)

import machine
import report
import results
import rounds
from rows import Scale

KINDS = ["dispatch", "native", "payload", "attach", "put", "compute", "upkeep", "scale"]


def main():
    from rich.console import Console

    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--smoke", action="store_true")
    parser.add_argument("--only", nargs="+", choices=KINDS, default=KINDS, metavar="KIND")
    parser.add_argument("--into", type=Path, help="where results go; nowhere in a smoke run")
    parser.add_argument("--add", action="store_true", help="to the rows that are there")
    chosen = parser.parse_args()
    console = Console(width=110)
    result = results.Result({**machine.describe(), "load": machine.load()})
    console.print(machine.sentence(result.machine), report.HOW_TO_READ, sep="\n\n")
    place = chosen.into or (None if chosen.smoke else results.PLACE)
    if chosen.add and place is not None:
        result.rows = results.Result.load(place / "latest.json").rows
    raised = False
    for kind in chosen.only:
        raised |= measure(kind, Scale(chosen.smoke), result, console)
        if place is not None:  # what comes later may fail
            result.save(place / "latest.json")
    if place is not None:
        (place / "latest.md").write_text(report.markdown(result))
        if not report.draw(result, place):
            console.print("no charts: matplotlib is not installed here")
    if raised:
        sys.exit("a contestant raised: see above")


def measure(kind, scale, result, console):
    """Measure the rows of a kind, anew if they are there, and show them; whether someone raised."""
    raised = False
    for group in import_module(f"rows.{kind}").groups(scale):
        for row in group.rows:
            result.rows.pop(row.key, None)
        for measured in rounds.measure(group):
            result.add(measured)
            raised |= measured.raised
        for row in group.rows:
            if row.key in result.rows:
                report.print_row(console, result.rows[row.key])
    return raised


if __name__ == "__main__":
    main()
