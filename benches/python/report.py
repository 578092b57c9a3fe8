"""A result for people: a table in the terminal, a page in Markdown, and charts."""

from pathlib import Path

from machine import sentence
from results import Line, Result, RowResult
from rounds import OURS

HOW_TO_READ = (
    "Medians of rounds in which everybody took turns in random order. The ratio says how many times"
    " the cost of Theus (time, bytes, processor) another one has: above 1 Theus is better, below 1"
    " the other. Ray and Dask, whose daemons never rest, were measured in rounds of their own with"
    " Theus beside them, and are compared with that."
)


def cells(row: RowResult, line: Line) -> tuple[str, ...]:
    """Return who, the ratio, the median, the best, the 99th percentile, and of how many."""
    if not line.samples:
        return (line.who, "", f"not run: {line.problem}", "", "", "")
    who = f"{line.who} ({line.problem})" if line.problem else line.who
    times, found = row.times(line), line.summary
    ratio = "1" if line.who == OURS else "" if times is None else ratio_text(times)
    figures = (row.unit.shown(cost) for cost in found[:3])
    return (who, ratio, *figures, str(found.count))


def ratio_text(times: float) -> str:
    if times < 0.01:  # noqa: PLR2004 - two digits would be none
        return f"{times:.1g} x"
    if times < 10:  # noqa: PLR2004 - three digits are what the noise leaves
        return f"{times:.2f} x"
    return f"{times:,.0f} x"


_COLUMNS = ("who", "cost / Theus's", "median", "best", "p99", "n")


def print_row(console, row: RowResult) -> None:
    """Print one row's table, when it has been measured."""
    from rich.table import Table

    table = Table(*_COLUMNS, title=row.title, title_justify="left", min_width=78)
    for column in table.columns[1:]:
        column.justify = "right"
    for line in row.shown():
        style = "bold" if line.who == OURS else "dim" if line.is_floor else None
        table.add_row(*cells(row, line), style=style)
    console.print(table)


def markdown(result: Result) -> str:
    """Return the whole result as a page."""
    lines = ["# Side by side", "", f"{sentence(result.machine)}.", ""]
    versions = ", ".join(f"{name} {number}" for name, number in result.machine["versions"].items())
    huge, load = (result.machine[key] for key in ("huge_pages_of_shared_memory", "load"))
    lines += [
        f"With {versions}. Huge pages of shared memory: {huge}. Load before the run: {load}.",
        "",
        HOW_TO_READ,
        "",
        *_picture("overview", "Costs of the others over those of Theus"),
    ]
    for row in result.rows.values():
        lines += [f"## {row.title}", "", *_table(row), ""]
    for name, title in (("payload", "Values sent with a task"), ("attach", "Time to attach")):
        lines += _picture(name, title)
    if any(key.startswith("scale-") for key in result.rows):
        lines += _picture("scale", "What costs grow with")
    return "\n".join(lines).rstrip() + "\n"


def _picture(name: str, title: str) -> list[str]:
    return [f"![{title}]({name}.svg)", ""]


def _table(row: RowResult) -> list[str]:
    lines = [f"| {' | '.join(_COLUMNS)} |", "|---|--:|--:|--:|--:|--:|"]
    for line in row.shown():
        found = cells(row, line)
        if line.who == OURS:
            found = tuple(f"**{cell}**" for cell in found)
        lines.append(f"| {' | '.join(found)} |")
    return lines


def draw(result: Result, place: Path) -> list[Path]:
    """Draw the charts; nothing if matplotlib is not there."""
    try:
        import pictures
    except ImportError:
        return []
    return pictures.draw(result, place)
