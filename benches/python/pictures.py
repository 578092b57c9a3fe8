"""The charts of a result: everybody's cost over Theus's, values sent with a task, attaching."""

from pathlib import Path

import charts
from results import Result, RowResult
from rounds import OURS
from samples import size_name

_LONGEST_BARS = 1e5

# What is counted across each panel, and its curves: the part of the rows' keys, and what it is.
_PANELS = {
    "workers": {"workers": "no-op"},
    "entries": {
        "entries": "no-op",
        "changed": "no-op in the next version",
        "put": "put of 128 B",
        "freed": "free",
    },
    "bytes of an entry": {"size-cold": "first look", "size-warm": "next look"},
    "columns of a table": {"columns-cold": "first look", "columns-warm": "next look"},
    "dead segments": {"sweep": "sweep", "sweep-each": "each"},
}
_STYLES = ["-", "--", ":", "-."]


def draw(result: Result, place: Path) -> list[Path]:
    with charts.styled():
        written = _overview(result, place / "overview")
        written += _by_size(
            result, place / "payload", "An array sent with a task", {"there-": ""}, "to a worker"
        )
        kinds = {"attach-cold-": "cold", "attach-warm-": "warm"}
        written += _by_size(result, place / "attach", "An array attached", kinds, "seen")
        written += _scale(result, place / "scale")
    return written


def _overview(result: Result, stem: Path) -> list[Path]:
    """Draw a line for each row, and on it a mark for everybody's cost over that of Theus."""
    rows = [row for row in result.rows.values() if not row.key.startswith(("there-", "frame-"))]
    rows = [row for row in rows if row.peers()][::-1]
    if not rows:
        return []
    figure, axes = charts.figure(
        "Cost of the others over that of Theus",
        "times as long, or as much (above 1: Theus is better)",
        size=(9, 1.6 + 0.3 * len(rows)),
    )
    seen: set[str] = set()
    for height, row in enumerate(rows):
        for line in row.shown():
            times = row.times(line)
            if line.is_ours or times is None or times == 0:
                continue
            name = "floor" if line.is_floor else line.who.partition(",")[0]
            axes.plot(
                min(times, _LONGEST_BARS),
                height,
                marker="|" if line.is_floor else charts.marker(name),
                markersize=13 if line.is_floor else 8,
                markeredgewidth=2.5 if line.is_floor else 0,
                linestyle="none",
                color=charts.colour(name),
                label=None if name in seen else name,
            )
            seen.add(name)
    axes.axvline(1, color=charts.COLOURS["theus"], linewidth=2.5, label="theus")
    axes.set_xscale("log")
    axes.xaxis.set_major_formatter("{x:g} x")
    axes.set_yticks(range(len(rows)), [row.title for row in rows])
    axes.set_ylim(-0.6, len(rows) - 0.4)
    figure.legend(loc="outside lower center", ncols=4)
    return charts.save(figure, stem)


def _by_size(
    result: Result, stem: Path, title: str, kinds: dict[str, str], what: str
) -> list[Path]:
    """Draw a curve over sizes for each contestant and each kind of row."""
    curves: dict[tuple[str, str], list[tuple[int, float]]] = {}
    for row in result.rows.values():
        for prefix, kind in kinds.items():
            if row.key.startswith(prefix):
                _collect(row, int(row.key.removeprefix(prefix)), kind, curves)
    if not curves:
        return []
    figure, axes = charts.figure(title, "size", f"{what} after, us", size=(8.5, 5))
    for (who, kind), points in curves.items():
        sizes, costs = zip(*sorted(points), strict=True)
        style = {"linestyle": ":"} if kind == "warm" else {}
        label = f"{who}, {kind}" if kind else who
        charts.line(axes, sizes, [cost * 1e6 for cost in costs], label, **style)
    axes.set_xscale("log", base=2)
    axes.set_yscale("log")
    sizes = sorted({size for points in curves.values() for size, _ in points})
    axes.set_xticks(sizes, [size_name(size) for size in sizes], rotation=30)
    axes.minorticks_off()
    figure.legend(loc="outside right center")
    return charts.save(figure, stem)


def _scale(result: Result, stem: Path) -> list[Path]:
    """Draw a panel for each thing that costs may grow with."""
    if not any(row.key.startswith("scale-") for row in result.rows.values()):
        return []
    figure, panels = charts.panels("What costs grow with", len(_PANELS), size=(10, 11))
    for axes, (across, kinds) in zip(panels, _PANELS.items(), strict=True):
        curves: dict[tuple[str, str], list[tuple[int, float]]] = {}
        for row in result.rows.values():
            prefix, _, point = row.key.rpartition("-")
            kind = kinds.get(prefix.removeprefix("scale-")) if prefix else None
            if kind is not None and row.key.startswith("scale-"):
                _collect(row, int(point), kind, curves)
        for (who, kind), points in curves.items():
            places, costs = zip(*sorted(points), strict=True)
            style = _STYLES[list(kinds.values()).index(kind)]
            name = who.partition(":")[0]
            charts.line(
                axes, places, [cost * 1e6 for cost in costs], f"{name}, {kind}", linestyle=style
            )
        axes.set(xlabel=across, ylabel="us", xscale="log", yscale="log")
        axes.set_ylim(*_widened(axes.get_ylim()))
        named = size_name if across.startswith("bytes") else "{:,}".format
        places = sorted({place for points in curves.values() for place, _ in points})
        axes.set_xticks(places, [named(place) for place in places])
        axes.minorticks_off()
        axes.legend(loc="upper center", bbox_to_anchor=(0.5, -0.16), ncols=2, fontsize=9)
    return charts.save(figure, stem)


def _widened(limits: tuple[float, float]) -> tuple[float, float]:
    """Return limits a hundredfold apart at least, so that what is flat looks flat."""
    low, high = limits
    missing = max(1.0, 100 / (high / low)) ** 0.5
    return low / missing, high * missing


def _collect(row: RowResult, size: int, kind: str, curves) -> None:
    for line in row.shown():
        if line.samples and (line.who == OURS or not line.is_ours):
            curves.setdefault((line.who, kind), []).append((size, line.summary.median))
